"""A model's metrics as its readers see them: what each gate asks, what was measured, and the verdict.

Verdicts are taken as `gates` wrote them. Nothing is judged again here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lensmith.files import artifacts
from lensmith.process import wording
from lensmith.process.errors import IntegrityError
from lensmith.settings.sections import ModelParams

PERCENTILES = (25, 50, 75)
RANKS = (10, 5, 1)
GATES = "ABCDEFGH"
BEATEN = ("temperature", "bias")
VERDICTS = ("pass", "fail", "inconclusive", "invalid")


@dataclass(frozen=True)
class Estimate:
    """A measured number and its interval; None where there is none."""

    value: float | None
    lo: float | None
    hi: float | None

    @property
    def has_interval(self) -> bool:
        return self.lo is not None and self.hi is not None and self.lo != self.hi

    def text(self, form: Callable[[float | None], str]) -> str:
        """The number and its interval in one line."""
        return f"{form(self.value)} ({form(self.lo)} to {form(self.hi)})" if self.has_interval else form(self.value)


@dataclass(frozen=True)
class Part:
    """One number that a gate asks about. At least `limit`, or at most."""

    label: str
    measured: Estimate
    limit: float | None
    at_least: bool
    form: Callable[[float | None], str]

    @property
    def interval_text(self) -> str:
        m = self.measured
        if m.has_interval:
            return f"{self.form(m.lo)} to {self.form(m.hi)}"
        return "none" if m.value is None or m.lo is None else "exact"

    @property
    def limit_text(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.form(self.limit)}"

    @property
    def span(self) -> "Span | None":
        """Where measured number, interval and limit lie; None where one of them is missing."""
        m = self.measured
        if m.value is None or self.limit is None:
            return None
        lo, hi = (m.lo, m.hi) if m.lo is not None and m.hi is not None else (m.value, m.value)
        low, high = min(lo, self.limit, 0.0), max(hi, self.limit)
        margin = 0.08 * (high - low) or 1.0
        low, width = low - margin, high - low + 2 * margin
        return Span(*(round(100 * (x - low) / width, 2) for x in (m.value, lo, hi, self.limit)))


@dataclass(frozen=True)
class Span:
    """Places on a line from 0 to 100."""

    value: float
    lo: float
    hi: float
    limit: float


@dataclass(frozen=True)
class Gate:
    letter: str
    name: str
    asks: str
    verdict: str
    point: str  # what the numbers would say without their intervals
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Rung:
    """A kind of lens on held-out text, at the depths of PERCENTILES."""

    kind: str
    name: str
    kl: tuple[Estimate, ...]  # bits that it leaves
    share: tuple[Estimate, ...]  # of what the last rung saves, beyond the rung before; none for the norm lens


@dataclass(frozen=True)
class Scorecard:
    """The metrics of one model, by key as in metrics/<model>.json."""

    metrics: Mapping[str, Any]
    settings: ModelParams

    def number(self, key: str) -> float | None:
        value = self.metrics.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value)

    def estimate(self, key: str) -> Estimate:
        return Estimate(self.number(key), self.number(f"{key}_lo"), self.number(f"{key}_hi"))

    @property
    def preferred(self) -> str:
        """The lens that summaries should read: the tuned one where every gate passes."""
        return "tuned" if self.metrics.get("preferred") == 1 else "norm"

    @property
    def confidence(self) -> str:
        return wording.percent(self.number("limit_confidence") or self.settings.gates.confidence)

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        return tuple(getattr(self, f"_gate_{letter.lower()}")() for letter in GATES)

    def ladder(self) -> tuple[Rung, ...]:
        """What each kind of lens has left of the KL, from the norm lens up; empty where no ladder was measured."""
        names = str(self.metrics.get("ladder", "")).split()
        found = (
            Rung(
                name,
                wording.KINDS.get(name, name),
                tuple(self.estimate(f"ladder_kl_bits_{name}_{p}") for p in PERCENTILES),
                tuple(self.estimate(f"ladder_share_{name}_{p}") for p in PERCENTILES),
            )
            for name in names
        )
        return tuple(found) if len(names) > 2 else ()

    def open_gates(self) -> tuple[Gate, ...]:
        """Those that do not pass."""
        return tuple(gate for gate in self.gates if gate.verdict != "pass")

    def plan_kpis(self) -> dict[str, Any]:
        """The KPIs under the names of the written plan (section 7)."""
        return {
            "median_delta_kl_bits@{25,50,75}%": [self.number(f"median_delta_kl_bits_{p}") for p in PERCENTILES],
            "earliness_shift_first_rank_le_{10,5,1}": [
                self.number(f"earliness_shift_first_rank_le_{k}_layers") for k in RANKS
            ],
            "last_layer_kl_after_temp_bits": self.number("last_layer_kl_after_temp_bits"),
            "rank1_coverage_gain": self.number("rank1_coverage_gain"),
        }

    def _gate(self, letter: str, name: str, asks: str, *parts: Part) -> Gate:
        verdict = str(self.metrics.get(f"gate_{letter}", "invalid"))
        return Gate(letter, name, asks, verdict, str(self.metrics.get(f"gate_{letter}_point", "invalid")), parts)

    def _gate_a(self) -> Gate:
        return self._gate(
            "A",
            "Closer to the model",
            "On the median prompt, the tuned lens is closer to the model's final answer than the stronger norm lens, "
            "by at least the limit.",
            *(self._delta(p, f"limit_delta_kl_bits_{p}") for p in PERCENTILES),
        )

    def _gate_b(self) -> Gate:
        share = self.number("limit_earliness_share")
        parts = []
        for k in (10, 5):
            layers = wording.number(self.number(f"limit_earliness_le_{k}_layers")).removesuffix(".00")
            label = f"rank ≤ {k}, at least {layers} layer{'' if layers == '1' else 's'} earlier"
            parts.append(Part(label, self.estimate(f"earliness_share_le_{k}"), share, True, wording.percent))
        return self._gate(
            "B",
            "Answers appear earlier",
            "On a large enough share of prompts, the answer rises among the first tokens that much earlier.",
            *parts,
        )

    def _gate_c(self) -> Gate:
        key = "last_layer_kl_after_temp_bits"
        part = Part(
            "last layer, one temperature, bits", self.estimate(key), self._limit("last_layer_kl"), False, wording.number
        )
        return self._gate("C", "Agrees at the end", "After the last layer, the norm lens is the model itself.", part)

    def _gate_d(self) -> Gate:
        parts = (self._delta(p, "limit_worst_delta_kl_bits") for p in PERCENTILES)
        return self._gate(
            "D", "Nowhere worse", "At none of the depths does the tuned lens lose more than this.", *parts
        )

    def _gate_e(self) -> Gate:
        part = Part(
            "largest KL, last layer, bits",
            self.estimate("identity_kl_bits"),
            self._limit("identity_kl"),
            False,
            wording.number,
        )
        return self._gate("E", "Identity at the end", "The tuned lens changes nothing after the last layer.", part)

    def _gate_f(self) -> Gate:
        limit = self.number("limit_ladder_gain_bits")
        parts = (
            Part(
                f"{wording.lens(lens)}, {p} % depth, bits",
                self.estimate(f"heldout_delta_kl_bits_{p}_vs_{lens}"),
                limit,
                True,
                wording.signed,
            )
            for lens in BEATEN
            for p in PERCENTILES
        )
        asks = "On held-out text the tuned lens saves more than a temperature, or a bias, fit in the same way."
        return self._gate("F", "More than a calibration", asks, *parts)

    def _gate_g(self) -> Gate:
        asks = "In no part of the context, not at its beginning either, does the tuned lens lose more than this."
        return self._gate("G", "At every position", asks, *(self._worst_position(p) for p in PERCENTILES))

    def _worst_position(self, percentile: int) -> Part:
        """The part of the context that is worst off at a depth, or the first one that has no number."""
        keys = [
            f"position_delta_kl_bits_{percentile}_part_{part}"
            for part in range(int(self.number("n_position_parts") or 0))
        ]
        worst = min(keys, key=lambda key: -math.inf if (v := self.number(key)) is None else v, default="")
        first, last = (self.number(f"position_part_{worst.rpartition('_')[2]}_{end}") for end in ("first", "last"))
        label = f"{percentile} % depth, worst part (tokens {wording.count(first)} to {wording.count(last)}), bits"
        limit = self.number("limit_position_delta_kl_bits")
        return Part(label, self.estimate(worst), limit, True, wording.signed)

    def _gate_h(self) -> Gate:
        part = Part(
            "risk tiers, tuned minus norm",
            self.estimate("risk_tier_steps"),
            self.number("limit_risk_tier_steps"),
            False,
            wording.number,
        )
        asks = "Beside a reading without any norm, the tuned lens is at no higher risk of artefacts than the norm lens."
        return self._gate("H", "No new artefacts", asks, part)

    def _limit(self, name: str) -> float | None:
        return self.number(f"limit_{name}_bits")

    def _delta(self, percentile: int, limit: str) -> Part:
        estimate = self.estimate(f"median_delta_kl_bits_{percentile}")
        return Part(f"at {percentile} % depth, bits", estimate, self.number(limit), True, wording.signed)


def read(path: Path, settings: ModelParams) -> Scorecard:
    """The metrics of one model, as `gates` wrote them.

    Raises:
        IntegrityError: missing, no flat JSON, or a gate has no verdict.
    """
    metrics = artifacts.read_json(path)
    if not isinstance(metrics, dict):
        raise IntegrityError(f"{path}: is no JSON object. `dvc repro` writes it again.")
    card = Scorecard(metrics, settings)
    if missing := [f"gate_{gate.letter}" for gate in card.gates if f"gate_{gate.letter}" not in metrics]:
        raise IntegrityError(f"{path}: lacks {', '.join(missing)}. `dvc repro` writes it again.")
    for gate in card.gates:
        if gate.verdict not in VERDICTS:
            raise IntegrityError(
                f"{path}: gate_{gate.letter} is {gate.verdict!r}, must be one of {', '.join(VERDICTS)}. "
                "`dvc repro` writes it again."
            )
    return card
