"""The table of gates: what each asks, of which numbers, and which limits it sets.

A gate takes a word from the intervals of its numbers:

    pass          every interval is on the right side of its limit
    fail          some interval is on the wrong side
    inconclusive  neither: some interval straddles its limit
    invalid       a number is missing or not finite, or was computed from too few units

Its `point` is what the numbers alone would say. A to D are the gates of the reference recipe. E, the identity at the
last layer, is true by construction: loading a lens and `lensmith verify` prove it.

A new gate is one entry here, its limit in params.yaml (`GatesParams`), and a test.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lensmith.judge.facts import ContextPart
from lensmith.judge.judgement import MISSING, Check, Criterion, Estimate, GateResult, Verdict
from lensmith.lens.depth import PERCENTILES, depth_layer, scaled_layers
from lensmith.process import wording
from lensmith.settings.sections import GatesParams

BEATEN = ("temperature", "bias")  # lenses that gate F compares with


@dataclass(frozen=True)
class Scope:
    """What limits and labels depend on."""

    limits: GatesParams
    n_layers: int
    parts: tuple[ContextPart, ...] = ()
    texts: tuple[str, ...] = ()  # of corpus.also_heldout, by name
    absent: tuple[int, ...] = ()  # layers that the lens lacks

    def depth(self, percent: int) -> str:
        """A depth in words; it says so where the lens has no layer there, and so no number."""
        layer = depth_layer(self.n_layers, percent)
        return f"at {percent} % depth" + (f" (this lens lacks layer {layer})" if layer in self.absent else "")

    @property
    def delta_kl_bits(self) -> dict[int, float]:
        """Percent of depth -> bits that gate A asks for."""
        return {25: self.limits.delta_kl_bits_25, 50: self.limits.delta_kl_bits_50, 75: self.limits.delta_kl_bits_75}

    def earliness_layers(self, rank: int) -> float:
        """Layers that the answer must rise earlier by, at the same share of depth in a shallower model."""
        limit = {10: self.limits.earliness_le_10_layers, 5: self.limits.earliness_le_5_layers}[rank]
        return scaled_layers(limit, self.n_layers)

    def earlier(self, rank: int) -> str:
        layers = wording.number(self.earliness_layers(rank)).removesuffix(".00")
        return f"rank ≤ {rank}, at least {layers} layer{'' if layers == '1' else 's'} earlier"

    def on_prompts(self, kpi: str, label: str, limit: float, **form: Any) -> Criterion:
        """A criterion over prompts: it needs enough of them."""
        return Criterion(kpi=kpi, label=label, limit=limit, min_units=self.limits.min_prompts, **form)


@dataclass(frozen=True)
class Gate:
    """One entry of the table."""

    letter: str
    name: str
    asks: str
    criteria: Callable[[Scope], Iterable[Criterion]]
    optional: bool = False  # left out where it has nothing to check


def _saved_on_prompts(scope: Scope, limits: Mapping[int, float]) -> Iterator[Criterion]:
    """The median KL saved on prompts, at each depth of `limits` (per cent -> bits)."""
    for percent, limit in limits.items():
        yield scope.on_prompts(f"median_delta_kl_bits_{percent}", f"{scope.depth(percent)}, bits", limit)


GATES = (
    Gate(
        "A",
        "Closer to the model",
        "On the median prompt, the lens is closer to the model's final answer than the stronger norm lens, by at "
        "least the limits.",
        lambda scope: _saved_on_prompts(scope, scope.delta_kl_bits),
    ),
    Gate(
        "B",
        "Answers appear earlier",
        "On a large enough share of prompts, the answer rises among the first tokens that much earlier. The limit in "
        "layers is set for 32 of them, and scaled to the depth of a shallower model. This gate rewards a lens that "
        "reads the prediction, not one that reads what leads to it.",
        lambda scope: (
            scope.on_prompts(
                f"earliness_share_le_{rank}", scope.earlier(rank), scope.limits.earliness_share, form="percent"
            )
            for rank in (10, 5)
        ),
    ),
    Gate(
        "C",
        "Agrees at the end",
        "After the last layer, the norm lens agrees with the model, after one temperature.",
        lambda scope: (
            Criterion(
                kpi="last_layer_kl_after_temp_bits",
                label="last layer, one temperature, bits",
                limit=scope.limits.last_layer_kl_bits,
                at_least=False,
                form="number",
            ),
        ),
    ),
    Gate(
        "D",
        "Nowhere worse",
        "At each depth, the lens loses at most what the limit allows.",
        lambda scope: _saved_on_prompts(scope, dict.fromkeys(PERCENTILES, scope.limits.worst_delta_kl_bits)),
    ),
    Gate(
        "F",
        "More than a calibration",
        "On held-out text the lens saves more than a temperature, or a bias, fit in the same way.",
        lambda scope: (
            Criterion(
                kpi=f"heldout_delta_kl_bits_{percent}_vs_{lens}",
                label=f"{wording.lens(lens)}, {scope.depth(percent)}, bits",
                limit=scope.limits.ladder_gain_bits,
            )
            for lens in BEATEN
            for percent in PERCENTILES
        ),
    ),
    Gate(
        "G",
        "At every position",
        "In each part of the context, its beginning included, the lens loses at most what the limit allows.",
        lambda scope: (
            Criterion(
                kpi=f"position_delta_kl_bits_{percent}_part_{number}",
                label=f"{scope.depth(percent)}, tokens {wording.count(part.first)} to {wording.count(part.last)}, bits",
                limit=scope.limits.position_delta_kl_bits,
                group=f"{percent} %",
            )
            for percent in PERCENTILES
            for number, part in enumerate(scope.parts)
        ),
    ),
    Gate(
        "H",
        "No new artefacts",
        "On probe prompts, the artefact score of the lens exceeds that of the norm lens by at most the limit.",
        lambda scope: (
            Criterion(
                kpi="artifact_score_increase",
                label="artefact score from 0 to 1, tuned minus norm",
                limit=scope.limits.artifact_score_increase,
                at_least=False,
            ),
        ),
    ),
    Gate(
        "I",
        "On other text",
        "On no text of another kind the lens loses more than the limit allows.",
        lambda scope: (
            Criterion(
                kpi=f"text_{name}_delta_kl_bits_{percent}",
                label=f"{name}, {scope.depth(percent)}, bits",
                limit=scope.limits.text_delta_kl_bits,
                group=name,
            )
            for name in scope.texts
            for percent in PERCENTILES
        ),
        optional=True,
    ),
    Gate(
        "J",
        "By a share",
        "On the median prompt, the lens saves at least this share of the stronger norm lens's KL. Where the norm "
        "lens is 25 bits off, the limits of gate A are next to nothing.",
        lambda scope: (
            scope.on_prompts(
                f"median_delta_kl_share_{percent}",
                f"{scope.depth(percent)}, share of the norm lens's KL",
                scope.limits.delta_kl_share,
                form="percent",
            )
            for percent in PERCENTILES
        ),
    ),
)
LETTERS = tuple(gate.letter for gate in GATES)


def of_table(present: Collection[str]) -> tuple[Gate, ...]:
    """The gates that a table over several lenses has: none that is optional and whose letter is not `present`."""
    return tuple(gate for gate in GATES if not gate.optional or gate.letter in present)


def judge(kpis: Mapping[str, Estimate], scope: Scope) -> tuple[GateResult, ...]:
    """Every gate of the table that applies; a KPI that is not among `kpis` is missing, and its gate invalid."""
    results = []
    for gate in GATES:
        checks = tuple(check(criterion, kpis.get(criterion.kpi, MISSING)) for criterion in gate.criteria(scope))
        if gate.optional and not checks:
            continue
        results.append(
            GateResult(
                letter=gate.letter,
                name=gate.name,
                asks=gate.asks,
                verdict=verdict_of([each.verdict for each in checks]),
                point=verdict_of([each.point for each in checks]),
                checks=checks,
            )
        )
    return tuple(results)


def check(criterion: Criterion, measured: Estimate) -> Check:
    """One number against its limit."""
    value, lo, hi = measured.value, measured.lo, measured.hi
    verdict: Verdict = "invalid"
    point: Verdict = "invalid"
    # Finiteness first: NaN passes `not value < limit`.
    if value is not None and lo is not None and hi is not None and measured.units >= criterion.min_units:
        sign = 1 if criterion.at_least else -1
        worst, best = sorted((sign * lo, sign * hi))
        limit = sign * criterion.limit
        verdict = "pass" if worst >= limit else "inconclusive" if best >= limit else "fail"
        point = "pass" if sign * value >= limit else "fail"
    asked = {name: getattr(criterion, name) for name in Criterion.model_fields}
    return Check(**asked, measured=measured, verdict=verdict, point=point)


def verdict_of(verdicts: Sequence[Verdict]) -> Verdict:
    """One word for several checks: the first of invalid, fail, inconclusive that occurs, else pass.

    No checks at all are invalid.
    """
    words: tuple[Verdict, ...] = ("invalid", "fail", "inconclusive")
    return next((word for word in words if word in verdicts), "pass" if verdicts else "invalid")
