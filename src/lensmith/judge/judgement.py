"""Everything that is known of one judged lens, as stage `gates` writes it to plots/judgement/<key>.json.

The report, the terminal's tables, the card, `compare`, `publish` and `verify` read it; nothing is judged again there.
`kpis` holds every number under a flat name, with its interval:

    median_delta_kl_bits_<p>          on prompts: KL(final || norm) - KL(final || tuned) at p % of depth, the median
    median_delta_kl_share_<p>         the same as a share of the median KL(final || norm)
    earliness_shift_first_rank_le_<k>_layers, earliness_share_le_<k>, rank1_coverage_gain       on prompts
    answered_<any of these>           the same on prompts whose answer the model itself has on top
    heldout_<any but the share>       the same on held-out positions, where the answer is the model's own token
    <any but the share>_vs_temperature                against the temperature lens in place of the norm lenses
    heldout_delta_kl_bits_<p>[_vs_<lens>], position_delta_kl_bits_<p>_part_<i>                  means
    text_<name>_kl_<lens>_bits_<p>, text_<name>_delta_kl_bits_<p>[_part_<i>]     on a text of corpus.also_heldout
    heldout_kl_<lens>_bits_<p>, heldout_kl_<lens>_bits_mean      what a lens leaves; the mean is over layers 1..L-1
    causal_cosine_<direction>_<lens>      of what a lens says that changes do with what they do
    causal_cosine_<lens>                  the same over the directions that no lens chose
    ladder_kl_bits_<rung>_<p>, ladder_gain_bits_<rung>_<p>, ladder_share_<rung>_<p>
    last_layer_kl_after_temp_bits, artifact_score_increase, final_rank1_share
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from lensmith.files.records import Number, Record
from lensmith.judge.facts import ContextPart, LensIdentity, Tier
from lensmith.judge.tables import NORMS, RANKS, TUNED
from lensmith.lens.depth import PERCENTILES
from lensmith.process import wording

Verdict = Literal["pass", "fail", "inconclusive", "invalid"]
VERDICTS: tuple[Verdict, ...] = ("pass", "fail", "inconclusive", "invalid")
FORMS: dict[str, Callable[[float | None], str]] = {
    "signed": wording.signed,
    "number": wording.number,
    "percent": wording.percent,
}


class Estimate(Record):
    """A measured number, its interval, and how many units it was computed from; None where there is none."""

    value: Number
    lo: Number
    hi: Number
    units: int

    @property
    def finite(self) -> bool:
        """Whether number and interval are all there: a gate judges nothing else."""
        return None not in (self.value, self.lo, self.hi)

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval of some width; an exact number has none."""
        return self.lo is not None and self.hi is not None and self.lo != self.hi

    def times(self, factor: float) -> "Estimate":
        """The same in another unit."""
        value, lo, hi = (None if x is None else factor * x for x in (self.value, self.lo, self.hi))
        return Estimate(value=value, lo=lo, hi=hi, units=self.units)

    def text(self, form: Callable[[float | None], str]) -> str:
        """The number and its interval in one line."""
        return f"{form(self.value)} ({form(self.lo)} to {form(self.hi)})" if self.has_interval else form(self.value)


MISSING = Estimate(value=None, lo=None, hi=None, units=0)


class Span(NamedTuple):
    """Places on a line from 0 to 100."""

    value: float
    lo: float
    hi: float
    limit: float


class Criterion(Record):
    """A KPI by its name, and the limit that a gate sets."""

    kpi: str
    label: str
    limit: float
    at_least: bool = True  # else: at most
    form: Literal["signed", "number", "percent"] = "signed"
    min_units: int = 1  # fewer are invalid
    group: str = ""  # of the checks of one group, readers show the worst


class Check(Criterion):
    """A criterion, what was measured, and whether the limit is kept."""

    measured: Estimate
    verdict: Verdict
    point: Verdict  # what the number would say without its interval

    @property
    def value_text(self) -> str:
        return FORMS[self.form](self.measured.value)

    @property
    def limit_text(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {FORMS[self.form](self.limit)}"

    @property
    def interval_text(self) -> str:
        form, measured = FORMS[self.form], self.measured
        if measured.has_interval:
            return f"{form(measured.lo)} to {form(measured.hi)}"
        return "exact" if measured.finite else "none"

    @property
    def margin(self) -> float:
        """How far the number is inside of its limit; -inf where it is missing."""
        if self.measured.value is None:
            return -math.inf
        margin = self.measured.value - self.limit
        return margin if self.at_least else -margin

    @property
    def span(self) -> Span | None:
        """Where number, interval and limit lie on a line; None where the number is missing."""
        value = self.measured.value
        if value is None:
            return None
        lo = value if self.measured.lo is None else self.measured.lo
        hi = value if self.measured.hi is None else self.measured.hi
        low, high = min(lo, self.limit, 0.0), max(hi, self.limit)
        margin = 0.08 * (high - low) or 1.0
        low, width = low - margin, high - low + 2 * margin
        return Span(*(round(100 * (x - low) / width, 2) for x in (value, lo, hi, self.limit)))


class GateResult(Record):
    """One gate of the table in gates.py, judged."""

    letter: str
    name: str
    asks: str
    verdict: Verdict
    point: Verdict
    checks: tuple[Check, ...]

    @property
    def shown(self) -> tuple[Check, ...]:
        """The checks that readers see: of each group the worst one, or the first that has no number."""
        groups: dict[str, list[Check]] = {}
        for check in self.checks:
            groups.setdefault(check.group or check.kpi, []).append(check)
        shown = []
        for checks in groups.values():
            worst = min(checks, key=lambda check: check.margin)
            label = worst.label if len(checks) == 1 else f"{worst.label}, the worst of {len(checks)}"
            shown.append(worst.model_copy(update={"label": label}))
        return tuple(shown)


class Rung(NamedTuple):
    """A kind of lens on held-out text, at the depths of PERCENTILES."""

    kind: str
    name: str
    kl: tuple[Estimate, ...]  # bits that it leaves
    share: tuple[Estimate, ...]  # of what the last rung saves, beyond the rung before; none for the norm lens


class Counts(Record):
    """How much was measured, and what intervals are drawn over."""

    prompts: int
    unaligned: int  # prompts whose answer has no first token of its own
    in_training_text: int  # prompts that stand there word for word
    templates: int
    never_in_rank: dict[int, int]  # rank -> aligned prompts whose answer gets there under neither lens
    heldout_seqs: int
    heldout_positions: int
    probes: int  # texts of probe prompts
    suite_resampled_by: str
    heldout_resampled_by: str


class ArtifactScore(Record):
    """How far a lens departs from reading the residual without a norm: see `Probes.raw_lens_check`."""

    score: Number
    risk_tier: Tier


class OtherText(Record):
    """A text of corpus.also_heldout."""

    positions: int
    tokens_per_byte: Number


class TextKl(NamedTuple):
    """What the tuned lens leaves and saves on one held-out text."""

    name: str
    text: OtherText
    tuned: tuple[Estimate, ...]  # KL at the depths of PERCENTILES, bits a token
    saved: tuple[Estimate, ...]  # there, against the stronger norm lens
    per_byte: Estimate  # the mean KL over layers 1..L-1, bits a byte


class Holding(Record):
    """What one lens holds: how it ranks the intermediates of prompts at the layers between both ends (`holds.py`)."""

    lens: str
    within: dict[int, Estimate]  # rank -> share of prompts with the intermediate within it at some layer
    by_chance: dict[int, Estimate]  # the same of another prompt's intermediate
    best_depth: Estimate  # of the layer with the lowest rank, as a share of depth: the median prompt's
    skip_ahead: Estimate  # share of prompts where the answer ranks above the intermediate at that layer
    by_layer: tuple[Number, ...]  # share of prompts with it within rank 10, layers 0 to L; None where the lens has none


class Judgement(Record):
    """One judged lens."""

    schema_version: Literal[1] = 1
    model_key: str
    model_id: str
    lens: LensIdentity
    n_layers: int
    layers: dict[int, int]  # percent of depth -> layer
    confidence: float  # of every interval
    earliness_layers: dict[int, float]  # rank -> layers that gate B asks for in a model of this depth
    counts: Counts
    kpis: dict[str, Estimate]
    baselines: dict[str, str]  # KPI -> the norm lens that it compares with
    gates: Annotated[tuple[GateResult, ...], Field(min_length=1)]  # without any, `every gate passes` would be true
    ladder: tuple[str, ...]  # kinds of lenses from the norm lens up
    parts: tuple[ContextPart, ...]  # of the context, as position_delta_kl_bits_<p>_part_<i> counts them
    tokens_per_byte: Number = None  # of the held-out text: bits a byte are that many times bits a token
    texts: Mapping[str, OtherText] = {}  # of corpus.also_heldout, by name
    artifact_scores: dict[str, ArtifactScore]  # by lens
    last_layer_temp_at_bound: bool
    holds: tuple[Holding, ...] = ()  # by lens, over the prompts that have an intermediate; empty without any
    holds_answered: tuple[Holding, ...] = ()  # over those of them that the model answers

    def estimate(self, kpi: str) -> Estimate:
        """A KPI by its name; MISSING where it was not measured."""
        return self.kpis.get(kpi, MISSING)

    def number(self, kpi: str) -> float | None:
        return self.estimate(kpi).value

    def heldout_kl(self, percent: int) -> tuple[Estimate, Estimate]:
        """The headline: mean KL on held-out text at a depth, of the stronger norm lens and of the tuned lens, bits."""
        norms = [self.estimate(f"heldout_kl_{lens}_bits_{percent}") for lens in NORMS]
        stronger = min(norms, key=lambda norm: math.inf if norm.value is None else norm.value)
        return stronger, self.estimate(f"heldout_kl_{TUNED}_bits_{percent}")

    def lens_name(self, lens: str) -> str:
        """A lens in words; the judged one by its kind."""
        return wording.lens(wording.JUDGED.get(self.lens.kind, lens) if lens == TUNED else lens)

    @property
    def preferred(self) -> Literal["tuned", "norm"]:
        """The lens that summaries should read: the tuned one where every gate passes."""
        return "norm" if self.open_gates else "tuned"

    @property
    def open_gates(self) -> tuple[GateResult, ...]:
        """The gates that do not pass."""
        return tuple(gate for gate in self.gates if gate.verdict != "pass")

    def gate(self, letter: str) -> GateResult:
        return next(gate for gate in self.gates if gate.letter == letter)

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """Letter -> verdict."""
        return {gate.letter: gate.verdict for gate in self.gates}

    @property
    def confidence_text(self) -> str:
        return wording.percent(self.confidence)

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """What each kind of lens leaves of the KL, from the norm lens up; empty where no ladder was measured."""
        if len(self.ladder) <= 2:
            return ()
        return tuple(
            Rung(
                kind,
                wording.KINDS.get(kind, kind),
                tuple(self.estimate(f"ladder_kl_bits_{kind}_{p}") for p in PERCENTILES),
                tuple(self.estimate(f"ladder_share_{kind}_{p}") for p in PERCENTILES),
            )
            for kind in self.ladder
        )

    @property
    def over_answered(self) -> tuple[tuple[Check, Check], ...]:
        """The checks of gates A, B and J, which are over all prompts, each beside its number over those answered."""
        checks = (check for letter in "ABJ" for check in self.gate(letter).checks)
        return tuple(
            (check, check.model_copy(update={"measured": self.estimate(f"answered_{check.kpi}")})) for check in checks
        )

    @property
    def by_text(self) -> tuple[TextKl, ...]:
        """The held-out text, then those of corpus.also_heldout; empty where tokens per byte were not recorded."""
        if self.tokens_per_byte is None:
            return ()
        whole = OtherText(positions=self.counts.heldout_positions, tokens_per_byte=self.tokens_per_byte)
        texts = {"heldout": whole} | {f"text_{name}": text for name, text in self.texts.items()}
        return tuple(
            TextKl(
                prefix.removeprefix("text_"),
                text,
                tuple(self.estimate(f"{prefix}_kl_{TUNED}_bits_{p}") for p in PERCENTILES),
                tuple(self.estimate(f"{prefix}_delta_kl_bits_{p}") for p in PERCENTILES),
                self.estimate(f"{prefix}_kl_{TUNED}_bits_mean").times(text.tokens_per_byte or math.nan),
            )
            for prefix, text in texts.items()
        )

    def reference_kpis(self) -> dict[str, list[float | None] | float | None]:
        """The KPIs under the names of the reference recipe, as provenance and the index of a release hold them."""
        return {
            "median_delta_kl_bits@{25,50,75}%": [self.number(f"median_delta_kl_bits_{p}") for p in PERCENTILES],
            "earliness_shift_first_rank_le_{10,5,1}": [
                self.number(f"earliness_shift_first_rank_le_{k}_layers") for k in RANKS
            ],
            "last_layer_kl_after_temp_bits": self.number("last_layer_kl_after_temp_bits"),
            "rank1_coverage_gain": self.number("rank1_coverage_gain"),
        }


def read(path: Path) -> Judgement:
    """One model's judgement.

    Raises:
        IntegrityError: it is missing, or was written by other code.
    """
    return Judgement.read(path)
