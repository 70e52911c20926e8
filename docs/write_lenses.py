"""Writes docs/lenses.md from files in git: plots/lenses/ and resolved/ of both labs.

    python -m docs.write_lenses        after `dvc repro` and `make real`, in the repository's root

Every number and every comparison is computed here, so that a new fit needs no edit of the prose.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from docs.write_results import ROOT, Model, models, table
from lensmith.judge import side_by_side
from lensmith.judge.tables import TUNED
from lensmith.process import wording

PAGE = ROOT / "docs" / "lenses.md"
ANSWERED = "answered_"

INTRODUCTION = """# Which lens for which question

A tuned lens is fit to the model's output: it reads what the model is about to say. A Jacobian lens, the mean
derivative of the final residual, reads what the residual stream holds, also what is not said. Here both stand beside
the norm lens, on the same text and prompts. `python -m docs.write_lenses` writes this page from `plots/lenses/` of
both labs, and `lensmith compare-lenses` prints the same numbers for any entries. [How it
works](how-it-works.md#what-a-lens-holds) says how they are measured, [suites](../suites/README.md) what the prompts
are. Brackets are intervals of 95 %; two lenses are called apart where their intervals share no number."""

CAUSAL = "causal_cosine"
KL = {"kl_25": "25 % of depth", "kl_50": "50 % of depth", "kl_75": "75 % of depth", "kl_mean": "mean over layers"}
HELD = {
    "within_1": "top 1",
    "within_5": "top 5",
    "within_10": "top 10",
    "chance_10": "top 10 by chance",
    "best_depth": "best at depth",
    "skip_ahead": "answer ranks above it",
}

KL_AND_CAUSES = """KL to the model's final distribution, bits, on held-out text. The cosine is that of the changes that
a lens predicts, where a layer is changed, with [those that come](how-it-works.md#what-a-lens-causes)."""


class Number(NamedTuple):
    """A measured number and its interval."""

    value: float
    lo: float
    hi: float
    units: int

    def text(self, scale: float, digits: int) -> str:
        value, lo, hi = (f"{scale * x:.{digits}f}" for x in self[:3])
        return f"{value} [{lo} {hi}]"


class Lens(NamedTuple):
    """One lens of a model."""

    name: str
    numbers: dict[str, Number]


def lenses(entries: Sequence[Model]) -> list[Lens]:
    """The lenses of one model's entries; a baseline that entries share stands once, others name their text."""
    of_entries = ((entry, numbers(entry)) for entry in entries)
    found: dict[str, Lens] = {}
    for entry, lens, measured in side_by_side.distinct(of_entries):
        words = name(entry, lens)
        words = f"{words} on the text of `{entry.key}`" if words in found else words
        found[words] = Lens(words, measured)
    return list(found.values())


def numbers(entry: Model) -> dict[str, dict[str, Number]]:
    """Lens -> number -> what was measured."""
    measured: dict[str, dict[str, Number]] = {}
    for row in (row for row in entry.rows("lenses") if row["value"]):
        number = Number(*(float(row[column]) for column in ("value", "lo", "hi")), int(row["units"]))
        measured.setdefault(row["lens"], {})[row["number"]] = number
    return measured


def name(entry: Model, lens: str) -> str:
    """A lens in words; the one that the entry is about by its kind and key."""
    if lens != TUNED:
        return wording.lens(lens)
    return f"{wording.lens(wording.JUDGED.get(settings(entry)['fit']['kind'], TUNED))} `{entry.key}`"


def settings(entry: Model) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((entry.lab / "resolved" / "models" / f"{entry.key}.json").read_text())
    return data


def held(measured: Iterable[Lens], prefix: str) -> str:
    """What each lens holds, in per cent."""
    rows = [
        [
            lens.name,
            *(lens.numbers[prefix + name].text(100, 0) if prefix + name in lens.numbers else "" for name in HELD),
        ]
        for lens in measured
    ]
    return table(["%", *HELD.values()], rows)


def finding(measured: Iterable[Lens], name: str, question: str, unit: tuple[float, int, str], *, high: bool) -> str:
    """The lenses in the order in which they answer a question, and whether the first is apart from the second."""
    known = [lens for lens in measured if name in lens.numbers]
    order = sorted(known, key=lambda lens: lens.numbers[name].value, reverse=high)
    said = [f"{lens.name} {lens.numbers[name].text(*unit[:2])}{unit[2]}" for lens in order]
    first, second = (lens.numbers[name] for lens in order[:2])
    words = "apart" if first.lo > second.hi or first.hi < second.lo else "not apart"
    return f"- {question} Best: {said[0]}, {words} from the next. Then: {', '.join(said[1:])}."


def beyond_chance(measured: Iterable[Lens], prefix: str) -> str:
    """The lenses that find the intermediate no more often than that of another prompt."""
    within, chance = f"{prefix}within_10", f"{prefix}chance_10"
    known = [lens for lens in measured if chance in lens.numbers]
    no_better = ", ".join(lens.name for lens in known if lens.numbers[within].lo <= lens.numbers[chance].hi)
    return f"- Is that more than chance, in the top 10? {f'Not for {no_better}' if no_better else 'For every lens'}."


def findings(measured: Sequence[Lens], prefix: str) -> Iterator[str]:
    """The questions that a reader of middle layers has, answered from the tables."""
    bits, share, cosine = (1.0, 2, " bits"), (100.0, 0, " %"), (1.0, 2, "")
    yield finding(measured, "kl_mean", "What will the model say?", bits, high=False)
    yield finding(measured, CAUSAL, "What would a change of this layer do to it?", cosine, high=True)
    for k in (1, 10):
        question = f"What does it hold on the way to the answer, in the top {k}?"
        yield finding(measured, f"{prefix}within_{k}", question, share, high=True)
    yield beyond_chance(measured, prefix)
    yield finding(measured, f"{prefix}best_depth", "How early is that clearest?", share, high=False)
    question = "Where it is clearest, how often does the answer rank above it all the same?"
    yield finding(measured, f"{prefix}skip_ahead", question, share, high=False)


def section(entries: Sequence[Model]) -> str:
    """One model: its tables, then what they say."""
    measured = lenses(entries)
    kl = [
        [lens.name, *(lens.numbers[name].text(1, 2) if name in lens.numbers else "" for name in (*KL, CAUSAL))]
        for lens in measured
    ]
    parts = [
        f"## {entries[0].key}",
        KL_AND_CAUSES,
        table(["bits", *KL.values(), "cosine of changes"], kl),
    ]
    units = {
        prefix: measured[0].numbers[f"{prefix}skip_ahead"].units
        for prefix in ("", ANSWERED)
        if f"{prefix}skip_ahead" in measured[0].numbers
    }
    for prefix, n in units.items():
        whose = "that the model answers" if prefix else "with an intermediate"
        parts += [f"Intermediates, over the {n} prompts {whose}:", held(measured, prefix)]
    prefix, n = list(units.items())[-1]
    parts.append(
        f"In words, over the last {n} prompts. Where the best lens is not apart from the next, these prompts do not "
        "decide between them."
    )
    return "\n\n".join([*parts, "\n".join(findings(measured, prefix))])


def page(root: Path = ROOT) -> str:
    known = [model for model in models(root) if any(row["number"] == "within_10" for row in model.rows("lenses"))]

    def of_model(model: Model) -> tuple[str, str]:
        return str(model.lab), json.dumps([settings(model)[name] for name in ("source", "suite")])

    known.sort(key=lambda model: (*of_model(model), model.key))
    groups = [list(group) for _, group in itertools.groupby(known, key=of_model)]
    return "\n\n".join([INTRODUCTION, *map(section, reversed(groups))]) + "\n"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
