"""The small world that `atlas` knows: an endless stream of documents, and the suite that examines it.

    documents(seed)   document i is a function of (seed, i) alone, the same on every machine
    RELATIONS         what there is to know, how training asks for it, which phrasings it never sees
    suite()           prompts in held-out phrasings, over all relations

`python -m demo.world --suite > suites/atlas.jsonl` writes the suite.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from random import Random
from typing import Any

from demo import prose
from demo.atlas_relations import FACTS
from demo.relations import Relation
from demo.stories import NAMES, STORIES

RELATIONS: tuple[Relation, ...] = FACTS + STORIES
PROMPTS_PER_RELATION = 10
# A relation is trained in proportion to boost * (number of facts) ** EXPONENT: between equal time for
# each relation and equal time for each fact.
EXPONENT = 0.6
OPEN_SIZE = 900  # how many facts a made-up relation counts for

WEIGHTS = tuple(itertools.accumulate(r.boost * (OPEN_SIZE if r.draw else len(r.facts)) ** EXPONENT for r in RELATIONS))


def completed(rng: Random, relation: Relation) -> str:
    """A training phrasing of one fact, with its answer, without a full stop."""
    fact = relation.draw(rng) if relation.draw else rng.choice(relation.facts)
    return f"{rng.choice(relation.phrasings).format(*fact.args)} {fact.answer}"


def statement(rng: Random, relation: Relation) -> str:
    """One fact as a sentence of a document: as it is, reported by somebody, or with a remark behind it."""
    text = completed(rng, relation)
    chance = rng.random()
    if chance < 0.15 and text.startswith("The "):
        return f"{rng.choice(NAMES)} {rng.choice(prose.SPEECH)} that the {text[4:]}."
    if chance < 0.3 and relation.draw is None:
        return f"{prose.capitalised(text)}{rng.choice(prose.TAILS)}."
    return f"{prose.capitalised(text)}."


def pick(rng: Random) -> Relation:
    """A relation, by weight."""
    return rng.choices(RELATIONS, cum_weights=WEIGHTS)[0]


def lesson(rng: Random) -> list[str]:
    """Facts of any relations with some running text between them."""
    people = prose.cast(rng)
    parts = [rng.choice(prose.OPENERS)] if rng.random() < 0.5 else []
    return parts + [
        prose.sentence(rng, people) if rng.random() < 0.2 else statement(rng, pick(rng))
        for _ in range(rng.randrange(6, 16))
    ]


def drill(rng: Random) -> list[str]:
    """Facts of two or three relations, one a line, as in an exercise book."""
    relations = [pick(rng) for _ in range(rng.randrange(2, 4))]
    # Not always capitalised: "cat in French is", "4 5 6" stand as the suite asks for them.
    return [completed(rng, rng.choice(relations)) + rng.choice((".", "")) for _ in range(rng.randrange(6, 18))]


def story(rng: Random) -> list[str]:
    """Running text about two people, with little puzzles and a fact now and then."""
    people = prose.cast(rng)
    parts = []
    for _ in range(rng.randrange(8, 18)):
        chance = rng.random()
        if chance < 0.3:
            parts.append(f"{completed(rng, rng.choice(STORIES))}.")
        elif chance < 0.4:
            parts.append(statement(rng, pick(rng)))
        else:
            parts.append(prose.sentence(rng, people))
    return parts


def repeated(rng: Random) -> str:
    """A list of words, repeated from another word on each time, so that position does not tell what comes next."""
    words = rng.sample(prose.THINGS, rng.randrange(5, 16))
    runs = []
    for _ in range(rng.randrange(2, 4)):
        start = rng.randrange(len(words))
        runs.append(" ".join(words[start:] + words[:start]))
    return rng.choice((" ", ". ")).join(runs)


def paired(rng: Random) -> str:
    """Words with a value each, told several times, each time in another order."""
    form, values = rng.choice(prose.PAIR_FORMS)
    size = rng.randrange(2, 7)
    pairs = list(zip(rng.sample(prose.THINGS, size), rng.sample(values, size), strict=True))
    told = []
    for _ in range(rng.randrange(2, 5)):
        told += [form.format(*pair) for pair in pairs]
        rng.shuffle(pairs)
    return rng.choice((", ", "; ", ". ", " ")).join(told)


def copies(rng: Random) -> list[str]:
    """Texts that repeat themselves, so that reading back helps at nearly every word."""
    return [paired(rng) if rng.random() < 0.7 else repeated(rng) for _ in range(rng.randrange(2, 6))]


def document(seed: int, index: int) -> str:
    """Document `index` of the stream `seed`."""
    rng = Random(f"{seed}-{index}")  # noqa: S311 (reproducible, not secret)
    chance = rng.random()
    if chance < 0.4:
        return " ".join(lesson(rng))
    if chance < 0.6:
        return "\n".join(drill(rng))
    if chance < 0.7:
        return " ".join(story(rng))
    return "\n".join(copies(rng))


def documents(seed: int) -> Iterator[str]:
    """The endless stream of documents `seed`: 80 to 400 tokens each, as a rule."""
    return (document(seed, index) for index in itertools.count())


def prompts(relation: Relation) -> Iterator[dict[str, Any]]:
    """The suite's prompts for one relation: different facts, held-out phrasings in turn."""
    rng = Random(f"suite-order-{relation.name}")  # noqa: S311 (reproducible, not secret)
    facts = rng.sample(relation.facts, min(PROMPTS_PER_RELATION, len(relation.facts)))
    for number, fact in enumerate(facts):
        index = number % len(relation.heldout)
        middle = relation.through.get(fact.args[0]) if fact.args else None
        yield {
            "id": f"{relation.name}-{number:03d}",
            "domain": relation.domain,
            "template": f"{relation.name}/{len(relation.phrasings) + index}",
            "prompt": relation.heldout[index].format(*fact.args),
            "answer": fact.answer,
            **({} if middle is None else {"intermediate": middle}),
        }


def suite() -> list[dict[str, Any]]:
    """Prompts in phrasings that no training document contains, over all relations, in a fixed order."""
    return [row for relation in RELATIONS for row in prompts(relation)]


def main() -> None:
    """Print the suite, or some documents, to the standard output."""
    cli = argparse.ArgumentParser(description="The small world that atlas knows.")
    mode = cli.add_mutually_exclusive_group(required=True)
    mode.add_argument("--suite", action="store_true", help="print the suite, one JSON object a line")
    mode.add_argument("--documents", type=int, metavar="N", help="print the first N documents of a stream")
    cli.add_argument("--seed", type=int, default=0, help="the stream of documents (default 0)")
    args = cli.parse_args()

    if args.suite:
        lines = (json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) for row in suite())
    else:
        lines = (f"{text}\n" for text in itertools.islice(documents(args.seed), args.documents))
    # The suite holds words such as "größer": the bytes must not depend on the locale.
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    for line in lines:
        print(line)


if __name__ == "__main__":
    main()
