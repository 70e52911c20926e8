"""Judgement and curves as `gates` writes them, of a lens that passes every gate."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lensmith.files import artifacts
from lensmith.judge import gates, plots
from lensmith.judge.facts import ContextPart, LensIdentity
from lensmith.judge.judgement import ArtifactScore, Counts, Estimate, Holding, Judgement, OtherText, Verdict
from lensmith.lens.depth import PERCENTILES
from tests.support.settings import atlas

N_LAYERS = 6


LIMITS = {"delta_kl_bits_25": 0.3, "delta_kl_bits_50": 0.3, "delta_kl_bits_75": 0.3, "min_prompts": 12}
PARTS = (ContextPart(first=0, last=15, n_positions=64), ContextPart(first=16, last=63, n_positions=192))
LADDER = (("identity", 4.0, None), ("temperature", 3.5, 0.25), ("low_rank", 2.0, 0.75))


def passing(
    *,
    verdicts: dict[str, Verdict] | None = None,
    kpis: dict[str, Estimate | None] | None = None,
    limits: dict[str, Any] | None = None,
    **fields: Any,
) -> Judgement:
    """The judgement of a lens that passes every gate.

    Args:
        verdicts: replaced by letter, whatever the numbers say.
        kpis: replaced; None takes one away.
        limits: of section `gates`, replaced.
        fields: of the judgement, replaced.
    """
    changed = {**_passing_kpis(), **(kpis or {})}
    known = {name: kpi for name, kpi in changed.items() if kpi is not None}
    settings = atlas(gates={**LIMITS, **(limits or {})})
    scope = gates.Scope(settings.gates, N_LAYERS, PARTS)
    results = [
        gate.model_copy(update={"verdict": (verdicts or {}).get(gate.letter, gate.verdict)})
        for gate in gates.judge(known, scope)
    ]
    counts = Counts(
        prompts=216,
        unaligned=0,
        in_training_text=2,
        templates=40,
        never_in_rank={10: 0, 5: 1, 1: 2},
        heldout_seqs=8,
        heldout_positions=256,
        probes=4,
        suite_resampled_by="template",
        heldout_resampled_by="sequence",
    )
    whole: dict[str, Any] = {
        "model_key": "atlas",
        "model_id": "local/atlas",
        "lens": LensIdentity(weights_sha256="0" * 64, kind="low_rank", norm="final", rank=4),
        "n_layers": N_LAYERS,
        "layers": {p: round(N_LAYERS * p / 100) for p in PERCENTILES},
        "confidence": 0.95,
        "earliness_layers": {10: 1.0, 5: 1.0},
        "counts": counts,
        "kpis": known,
        "baselines": {f"median_delta_kl_bits_{p}": "norm" for p in PERCENTILES},
        "gates": tuple(results),
        "ladder": tuple(kind for kind, _, _ in LADDER),
        "parts": PARTS,
        "artifact_scores": {lens: ArtifactScore(score=0.7, risk_tier="high") for lens in ("norm", "tuned")},
        "last_layer_temp_at_bound": False,
    }
    return Judgement(**{**whole, **fields})


def _passing_kpis() -> dict[str, Estimate]:
    kpis = {}
    for percent, delta in ((25, 3.25), (50, 2.5), (75, 1.125)):
        kpis[f"median_delta_kl_bits_{percent}"] = interval(delta, 0.25)
        kpis[f"median_delta_kl_share_{percent}"] = interval(0.5, 0.125)
        kpis[f"answered_median_delta_kl_bits_{percent}"] = interval(delta + 0.5, 0.25)
        kpis[f"answered_median_delta_kl_share_{percent}"] = interval(0.75, 0.125)
        kpis[f"heldout_median_delta_kl_bits_{percent}"] = interval(delta - 0.25, 0.125)
        kpis[f"heldout_delta_kl_bits_{percent}"] = interval(delta - 0.5, 0.125)
        kpis |= {f"heldout_kl_{lens}_bits_{percent}": interval(4.0, 0.25) for lens in ("norm", "norm_next", "tuned")}
        kpis |= {f"heldout_delta_kl_bits_{percent}_vs_{lens}": interval(0.5, 0.125) for lens in gates.BEATEN}
        kpis |= {f"position_delta_kl_bits_{percent}_part_{part}": interval(1.0 + part, 0.25) for part in range(2)}
        for rung, kl, share in LADDER:
            kpis[f"ladder_kl_bits_{rung}_{percent}"] = interval(kl, 0.5)
            if share is not None:
                kpis[f"ladder_share_{rung}_{percent}"] = interval(share, 0.125)
    kpis |= {f"heldout_kl_{lens}_bits_mean": interval(3.5, 0.25) for lens in ("norm", "norm_next", "tuned")}
    kpis |= {f"earliness_shift_first_rank_le_{k}_layers": interval(2.0, 0.5) for k in (10, 5, 1)}
    kpis |= {f"{of}earliness_share_le_{k}": interval(0.75, 0.05) for k in (10, 5) for of in ("", "answered_")}
    kpis["rank1_coverage_gain"] = interval(0.17, 0.04)
    kpis["last_layer_kl_after_temp_bits"] = interval(4e-6, 1e-6)
    kpis["artifact_score_increase"] = interval(0.02, 0.05)
    kpis["final_rank1_share"] = interval(0.8, 0.05)
    return kpis


def with_other_text() -> Judgement:
    """As `passing`, with a text of corpus.also_heldout; tokens a byte are 0.25 and, of that text, 0.5."""
    kpis: dict[str, Estimate | None] = {"text_code_kl_tuned_bits_mean": interval(3.0, 0.5)}
    for percent in PERCENTILES:
        kpis[f"text_code_kl_tuned_bits_{percent}"] = interval(2.75, 0.25)
        kpis[f"text_code_delta_kl_bits_{percent}"] = interval(1.25, 0.25)
    texts = {"code": OtherText(positions=20, tokens_per_byte=0.5)}
    return passing(kpis=kpis, tokens_per_byte=0.25, texts=texts)


def with_intermediates() -> Judgement:
    """As `passing`, with what three lenses hold of intermediates and the judged one, a Jacobian lens, causes."""

    def holding(lens: str, share: float, units: int) -> Holding:
        numbers = {k: interval(share + k / 100, 0.125, units) for k in (10, 5, 1)}
        by_chance = {k: interval(0.0625, 0.03125, units) for k in (10, 5, 1)}
        by_layer = (0.0 if lens == "norm" else None, *(share * layer / N_LAYERS for layer in range(1, N_LAYERS + 1)))
        ahead = {"best_depth": interval(0.75, 0.125, units), "skip_ahead": interval(1 - share, 0.125, units)}
        return Holding(lens=lens, within=numbers, by_chance=by_chance, by_layer=by_layer, **ahead)

    shares = (("norm", 0.25), ("full", 0.375), ("tuned", 0.5))
    return passing(
        kpis={"causal_cosine_tuned": interval(0.5, 0.125)},
        lens=LensIdentity(weights_sha256="0" * 64, kind="jacobian", norm="final", rank=4),
        holds=tuple(holding(lens, share, 216) for lens, share in shares),
        holds_answered=tuple(holding(lens, share, 40) for lens, share in shares),
    )


def interval(value: float, half: float, units: int = 216) -> Estimate:
    return Estimate(value=value, lo=value - half, hi=value + half, units=units)


def write_curves(path: Path, quantity: str, crossing: str = "rank<=10/5") -> None:
    """A norm and a tuned curve, the tuned one at half the value, with one crossing each."""
    rows: list[tuple[object, ...]] = []
    for lens, factor in (("norm", 1.0), ("tuned", 0.5)):
        for layer in range(lens == "tuned", N_LAYERS + 1):
            value = (N_LAYERS - layer) * factor
            rows.append((layer, lens, value, crossing if layer == 3 else "", 0.9 * value, 1.1 * value, ""))
    artifacts.write_csv(path, ("layer", "lens", quantity, "crossing", "lo", "hi", "guide"), rows)


def write_drawn(root: Path, key: str, about: dict[str, Any] | None = None, **curve: str) -> None:
    """Everything that `gates` and `plots` write of one model for a report to draw; `about` in place of `detail`."""
    write_curves(root / "kl" / f"{key}.csv", "kl_final_lens_bits", **curve)
    write_curves(root / "cosine" / f"{key}.csv", "cos_to_final", **curve)
    write_curves(root / "causal" / f"{key}.csv", "causal_cosine", **curve)
    shifts = [(shift, "rank ≤ 10", 10 - shift, 50.0) for shift in range(-1, 4)]
    artifacts.write_csv(root / "earliness" / f"{key}.csv", plots.EARLINESS_COLUMNS, shifts)
    log = [(step, name, 4.0 / (1 + step), 0) for name in plots.CURVES for step in range(3)]
    artifacts.write_csv(root / "training" / f"{key}.csv", plots.TRAINING_COLUMNS, log)
    ranks = [(rank, name, 4.0 / rank) for name in plots.RANK_CURVES for rank in (1, 2, 4)]
    artifacts.write_csv(root / "rank_curve" / f"{key}.csv", plots.RANK_COLUMNS, ranks)
    artifacts.write_text(
        root / "detail" / f"{key}.json", artifacts.canonical_json(detail() if about is None else about)
    )


def detail(words: Sequence[str] = (" the", " river", " sea"), prompts: int = 3) -> dict[str, Any]:
    """Prompts, one trajectory of three tokens for each, and a provenance, as `plots` writes them."""
    rows = []
    for i in range(prompts):
        rank = None if i % 5 == 4 else 1 + i  # every fifth answer has no first token of its own
        layers, bits = (5, 3 + i, None, 4), (3.25, 1.5 + i / 2, 1.75 - i / 2)
        rows.append([f"p{i}", "places", f"{words[i % len(words)]} prompt {i}", words[-1], rank, *layers, *bits])
    shown = [
        {"id": f"p{i}", "prompt": f"{words[i % len(words)]} prompt {i}", "answer": words[-1], **_packed(words, i)}
        for i in range(min(prompts, 3))
    ]
    return {"columns": plots.PROMPT_COLUMNS, "prompts": rows, "trajectories": shown, "provenance": PROVENANCE}


PROVENANCE: dict[str, Any] = {
    "weights_sha256": "a" * 64,
    "model_id": "local/atlas",
    "head": {"w_u_sha256": "b" * 64, "final_norm_sha256": "c" * 64},
    "measured": {"tokens_forwarded": 262144, "steps": 384, "best_step": 384},
}


def _packed(words: Sequence[str], shift: int) -> dict[str, Any]:
    n = len(words)

    def lens(first_layer: int) -> dict[str, Any]:
        layers = range(first_layer, N_LAYERS + 1)

        def grid(number: Callable[[int, int], Any]) -> list[list[Any]]:
            return [[number(layer, pos) for pos in range(n)] for layer in layers]

        return {
            "layers": list(layers),
            "top": grid(lambda layer, pos: [(layer + pos + shift + i) % n for i in range(min(5, n))]),
            "p": grid(lambda layer, pos: [500 >> i for i in range(min(5, n))]),
            "entropy": grid(lambda layer, pos: 100 * (N_LAYERS - layer) + pos),
            "kl": grid(lambda layer, pos: 100 * (N_LAYERS - layer) * (1 + first_layer)),
            "rank": grid(lambda layer, pos: (N_LAYERS - layer) * 10**pos),
            "p_final": grid(lambda layer, pos: 1000 * layer // N_LAYERS),
        }

    return {"words": list(words), "tokens": list(range(n)), "lenses": {"norm": lens(0), "tuned": lens(1)}}
