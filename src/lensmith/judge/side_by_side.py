"""The lenses of one judgement side by side: what each leaves of the KL, what it holds, and what it causes.

    kl_<p>, kl_mean            KL(final || lens) on held-out text at p % of depth, over layers 1..L-1, bits
    within_<k>, chance_<k>     share of prompts with the intermediate, or another prompt's, within rank k
    best_depth                 the layer where the intermediate ranks best, as a share of depth
    skip_ahead                 share of prompts where the answer ranks above it there
    answered_<one of these>    the same on prompts whose answer the model itself has on top
    causal_cosine              of what the lens says that changes of a layer do with what they do, no lens choosing them

Stage `gates` writes them for git, `dvc plots` and the pages that compare lenses.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from lensmith.judge.judgement import Estimate, Holding, Judgement
from lensmith.judge.tables import LENSES, NORMS, RANKS, TUNED
from lensmith.lens.depth import PERCENTILES

COMPARED = (NORMS[0], "full", TUNED)
COLUMNS = ("lens", "number", "value", "lo", "hi", "units")

Entry = TypeVar("Entry")
Numbers = TypeVar("Numbers")


def numbers(judged: Judgement) -> dict[str, dict[str, Estimate]]:
    """Lens -> number -> what was measured, in the order of tables; a number that was not measured has no key."""
    measured: dict[str, dict[str, Estimate]] = {}
    for lens in LENSES:
        kpis = {f"kl_{depth}": f"heldout_kl_{lens}_bits_{depth}" for depth in (*PERCENTILES, "mean")}
        kpis["causal_cosine"] = f"causal_cosine_{lens}"
        known = {name: judged.kpis[kpi] for name, kpi in kpis.items() if kpi in judged.kpis}
        if known := known | _held(judged.holds, lens, "") | _held(judged.holds_answered, lens, "answered_"):
            measured[lens] = known
    return measured


def _held(holdings: Sequence[Holding], lens: str, prefix: str) -> dict[str, Estimate]:
    for holding in holdings:
        if holding.lens == lens:
            within = {f"{prefix}within_{k}": holding.within[k] for k in RANKS}
            chance = {f"{prefix}chance_{k}": holding.by_chance[k] for k in RANKS}
            ahead = {f"{prefix}best_depth": holding.best_depth, f"{prefix}skip_ahead": holding.skip_ahead}
            return within | chance | ahead
    return {}


def lines(judged: Judgement) -> Iterator[tuple[object, ...]]:
    """The same as lines of COLUMNS."""
    for lens, known in numbers(judged).items():
        for name, estimate in known.items():
            yield lens, name, estimate.value, estimate.lo, estimate.hi, estimate.units


class Row(NamedTuple):
    """One lens of one entry."""

    entry: str
    lens: str  # in words
    numbers: dict[str, Estimate]


def rows(judged: Iterable[tuple[str, Judgement]]) -> Iterator[Row]:
    """The lenses that are compared, of each entry of one model or several."""
    of_entries = (((entry, judgement), numbers(judgement)) for entry, judgement in judged)
    for (entry, judgement), lens, measured in distinct(of_entries):
        yield Row(entry, judgement.lens_name(lens), measured)


def distinct(of_entries: Iterable[tuple[Entry, Mapping[str, Numbers]]]) -> Iterator[tuple[Entry, str, Numbers]]:
    """Norm lens, full-rank lens and the judged one of each entry; a baseline that entries share stands once.

    Args:
        of_entries: an entry, in any form, with its numbers by lens.
    """
    known: list[tuple[str, Numbers]] = []
    for entry, measured in of_entries:
        for lens in COMPARED:
            if lens in measured and (lens, measured[lens]) not in known:
                known.append((lens, measured[lens]))
                yield entry, lens, measured[lens]
