"""Writes docs/lenses.md from files in git: plots/lenses/ and resolved/ of both labs.

    python -m docs.write_lenses        after `dvc repro` and `make real`, in the repository's root

Every number and every comparison is computed here, so that a new fit needs no edit of the prose.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from docs.write_results import ROOT, Model, models, table
from lensmith.process import wording

PAGE = ROOT / "docs" / "lenses.md"
BASELINES = ("norm", "full")  # beside the lens that an entry is about, where they were measured
ANSWERED = "answered_"

INTRODUCTION = """# Which lens for which question

A tuned lens is fit to the model's output: it reads what the model is about to say. A Jacobian lens, the mean
derivative of the final residual, reads what the residual stream holds, also what is not said. Here both stand beside
the norm lens, on the same text and prompts. `python -m docs.write_lenses` writes this page from `plots/lenses/` of
both labs, and `lensmith compare-lenses` prints the same numbers for any entries. [How it
works](how-it-works.md#what-a-lens-holds) says how they are measured, [suites](../suites/README.md) what the prompts
are. Brackets are intervals of 95 %; two lenses are called apart where their intervals share no number."""

KL = {"kl_25": "25 % of depth", "kl_50": "50 % of depth", "kl_75": "75 % of depth", "kl_mean": "mean over layers"}
HELD = {
    "within_1": "top 1",
    "within_5": "top 5",
    "within_10": "top 10",
    "chance_10": "top 10 by chance",
    "best_depth": "best at depth",
    "skip_ahead": "answer ranks above it",
}


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
    """The lenses of one model's entries; a baseline that entries share stands once."""
    found: list[Lens] = []
    for entry in entries:
        rows = [row for row in entry.rows("lenses") if row["value"]]
        measured: dict[str, dict[str, Number]] = {}
        for row in rows:
            number = Number(*(float(row[column]) for column in ("value", "lo", "hi")), int(row["units"]))
            measured.setdefault(row["lens"], {})[row["number"]] = number
        kind = settings(entry)["fit"]["kind"]
        named = {lens: wording.lens(lens) for lens in BASELINES}
        named["tuned"] = f"{wording.lens(wording.JUDGED.get(kind, 'tuned'))} `{entry.key}`"
        for lens in (*BASELINES, "tuned"):
            if lens in measured and measured[lens] not in [other.numbers for other in found]:
                found.append(Lens(named[lens], measured[lens]))
    return found


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


def ranked(measured: Iterable[Lens], name: str, *, high: bool) -> list[Lens]:
    """The lenses that have a number, the best first."""
    known = [lens for lens in measured if name in lens.numbers]
    return sorted(known, key=lambda lens: lens.numbers[name].value, reverse=high)


def finding(measured: Iterable[Lens], name: str, question: str, unit: tuple[float, int, str], *, high: bool) -> str:
    """Which lens answers a question best and which worst, and whether they are apart."""
    order = ranked(measured, name, high=high)
    said = [f"{lens.name} {lens.numbers[name].text(*unit[:2])}{unit[2]}" for lens in order]
    first, second = (lens.numbers[name] for lens in order[:2])
    apart = first.lo > second.hi or first.hi < second.lo
    words = "apart from the next" if apart else "not apart from the next"
    return f"- {question} Best: {said[0]}, {words}. Then: {', '.join(said[1:])}."


def beyond_chance(measured: Iterable[Lens], prefix: str) -> str:
    """Which lenses find the intermediate no more often than that of another prompt."""
    no_better = [
        lens.name
        for lens in measured
        if prefix + "chance_10" in lens.numbers
        and lens.numbers[prefix + "within_10"].lo <= lens.numbers[prefix + "chance_10"].hi
    ]
    verdict = f"not for {', '.join(no_better)}" if no_better else "for every lens"
    return f"- Is that more than chance? In the top 10, with intervals apart: {verdict}."


def findings(measured: Sequence[Lens], prefix: str) -> Iterator[str]:
    """The questions that a reader of middle layers has, answered from the tables."""
    share = (100.0, 0, " %")
    yield finding(measured, "kl_mean", "What will the model say?", (1.0, 2, " bits"), high=False)
    for k in (1, 10):
        question = f"What does it think of on the way, in the top {k}?"
        yield finding(measured, f"{prefix}within_{k}", question, share, high=True)
    yield beyond_chance(measured, prefix)
    yield finding(measured, f"{prefix}best_depth", "Where is the intermediate clearest? Earliest is", share, high=False)
    yield finding(
        measured, f"{prefix}skip_ahead", "Which lens skips least to the answer where it reads the intermediate best?",
        share, high=False,
    )  # fmt: skip


def section(entries: Sequence[Model]) -> str:
    measured = lenses(entries)
    counts = {prefix: measured[0].numbers[f"{prefix}skip_ahead"].units for prefix in ("", ANSWERED)
              if f"{prefix}skip_ahead" in measured[0].numbers}  # fmt: skip
    kl = [[lens.name, *(lens.numbers[name].text(1, 2) for name in KL)] for lens in measured]
    parts = [
        f"## {entries[0].key}",
        "KL to the model's final distribution, bits, on held-out text:",
        table(["bits", *KL.values()], kl),
    ]
    for prefix, n in counts.items():
        whose = "that the model answers" if prefix else "with an intermediate"
        parts += [f"Intermediates, over the {n} prompts {whose}:", held(measured, prefix)]
    # Of a prompt that is not answered nobody knows whether the model went through its intermediate.
    prefix = list(counts)[-1]
    whose = "of the answered prompts" if prefix else "of all prompts"
    parts += [f"In words, the shares being those {whose}:", "\n".join(findings(measured, prefix))]
    return "\n\n".join(parts)


def page() -> str:
    known = [model for model in models() if any(row["number"] == "within_10" for row in model.rows("lenses"))]

    def of_model(model: Model) -> tuple[str, str]:
        return str(model.lab), json.dumps([settings(model)[name] for name in ("source", "suite")])

    groups = [list(group) for _, group in itertools.groupby(sorted(known, key=of_model), key=of_model)]
    return "\n\n".join([INTRODUCTION, *map(section, reversed(groups))]) + "\n"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
