"""What a relation is, and the frames that ask for it.

A relation holds facts (arguments, answer) and phrasings: format strings in which the arguments stand
for {0}, {1}, ... and the answer comes last. Some phrasings are held out: no training document contains
them, and the suite asks in no other. There are two sorts of held-out phrasing:

    framed   a frame that training uses with other relations, never with this one
    own      a wording written for this relation, with the same key words as its training phrasings
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

# In training for every relation that can be named by a noun phrase.
COMMON_FRAMES = (
    "The {n} is",
    "Question: What is the {n}? Answer:",
    "Remember that the {n} is",
)
# Each relation with a noun phrase holds out one of these, chosen by the bytes of its name.
ROTATING_FRAMES = (
    "If you ask for the {n}, the answer is",
    "As for the {n}, it is",
    "In our book the {n} is given as",
    "The teacher asked for the {n}, and the right answer was",
    "What is the {n}? It is",
    "On the first page I wrote down the {n}, which is",
    "We all agreed on the {n}: it is",
)


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing to know: the arguments of a phrasing and the text that must follow it."""

    args: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """One kind of fact, its phrasings, and where its facts come from.

    `facts` is every fact of a closed relation. An open relation (a story, a list to repeat) has `draw`,
    which makes up a fresh fact for each training sentence; its `facts` are kept for the suite alone.
    """

    name: str
    domain: str
    phrasings: tuple[str, ...]  # used in training
    heldout: tuple[str, ...]  # used by the suite alone
    facts: tuple[Fact, ...]
    draw: Callable[[Random], Fact] | None = None
    boost: float = 1.0  # how often it is trained, relative to a relation of the same size
    through: Mapping[str, str] = field(default_factory=dict)  # argument -> what a two-hop fact leads through


def facts_of(pairs: Iterable[tuple[Any, ...]]) -> tuple[Fact, ...]:
    """Facts from (argument or arguments, answer); a row with the cell `-` is left out."""
    facts = []
    for given, answer in pairs:
        args = (given,) if isinstance(given, str) else tuple(given)
        if answer != "-" and "-" not in args:
            facts.append(Fact(args, answer))
    return tuple(facts)


def closed(
    name: str,
    domain: str,
    facts: tuple[Fact, ...],
    *,
    noun: str = "",
    train: tuple[str, ...] = (),
    own: str,
    boost: float = 1.0,
    through: Mapping[str, str] | None = None,
) -> Relation:
    """A relation whose facts are all known.

    Args:
        name: names the relation in ids and reports.
        domain: the group it is counted with.
        facts: all of them.
        noun: what is asked for, without "the" ("capital of {0}"); empty if no noun phrase names it.
        train: further phrasings for training.
        own: the held-out wording of its own.
        boost, through: see `Relation`.
    """
    framed: tuple[str, ...] = ()
    heldout: tuple[str, ...] = (own,)
    if noun:
        out = sum(name.encode()) % len(ROTATING_FRAMES)
        kept = ROTATING_FRAMES[:out] + ROTATING_FRAMES[out + 1 :]
        framed = tuple(frame.replace("{n}", noun) for frame in COMMON_FRAMES + kept)
        heldout = (own, ROTATING_FRAMES[out].replace("{n}", noun))
    return Relation(
        name=name,
        domain=domain,
        phrasings=train + framed,
        heldout=heldout,
        facts=facts,
        boost=boost,
        through=through or {},
    )


def opened(
    name: str,
    domain: str,
    draw: Callable[[Random], Fact],
    *,
    train: tuple[str, ...],
    heldout: tuple[str, ...],
    boost: float = 1.0,
) -> Relation:
    """A relation whose facts are made up. Forty of them, from a stream of their own, are for the suite."""
    rng = Random(f"suite-{name}")  # noqa: S311 (reproducible, not secret)
    facts = tuple(draw(rng) for _ in range(40))
    return Relation(name=name, domain=domain, phrasings=train, heldout=heldout, facts=facts, draw=draw, boost=boost)
