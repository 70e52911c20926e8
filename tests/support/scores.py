"""Metrics and curves as `gates` writes them, of a lens that passes every gate."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lensmith.files import artifacts
from lensmith.judge import plots

N_LAYERS = 6


def passing(**changed: Any) -> dict[str, Any]:
    """Flat metrics. `changed` replaces values; None leaves a key out."""
    flat: dict[str, Any] = {"n_layers": N_LAYERS, "n_prompts": 216, "n_prompts_unaligned": 0, "preferred": 1}
    flat |= {
        "n_heldout_seqs": 8,
        "n_heldout_positions": 256,
        "suite_resampled_by": "template",
        "final_rank1_share": 0.8,
    }
    for percentile, delta in ((25, 3.25), (50, 2.5), (75, 1.125)):
        flat |= interval(f"median_delta_kl_bits_{percentile}", delta, 0.25)
        flat |= interval(f"heldout_delta_kl_bits_{percentile}", delta - 0.5, 0.125)
        flat |= {f"layer_{percentile}": round(N_LAYERS * percentile / 100), f"baseline_{percentile}": "norm"}
        flat |= {f"heldout_kl_{lens}_bits_{percentile}": 4.0 for lens in ("norm", "norm_next", "tuned")}
        flat[f"limit_delta_kl_bits_{percentile}"] = 0.3
    flat |= {f"heldout_kl_{lens}_bits_mean": 3.5 for lens in ("norm", "norm_next", "tuned")}
    for k in (10, 5, 1):
        flat |= interval(f"earliness_shift_first_rank_le_{k}_layers", 2.0, 0.5)
    for k in (10, 5):
        flat |= interval(f"earliness_share_le_{k}", 0.75, 0.05) | {f"limit_earliness_le_{k}_layers": 1.0}
    flat |= interval("rank1_coverage_gain", 0.17, 0.04) | interval("last_layer_kl_after_temp_bits", 4e-6, 1e-6)
    flat |= interval("identity_kl_bits", 3e-8, 0)
    for p in (25, 50, 75):
        for lens in ("temperature", "bias"):
            flat |= interval(f"heldout_delta_kl_bits_{p}_vs_{lens}", 0.5, 0.125)
        for part in range(2):
            flat |= interval(f"position_delta_kl_bits_{p}_part_{part}", 1.0 + part, 0.25)
        for rung, kl, share in (("identity", 4.0, None), ("temperature", 3.5, 0.25), ("low_rank", 2.0, 0.75)):
            flat |= interval(f"ladder_kl_bits_{rung}_{p}", kl, 0.5)
            flat |= {} if share is None else interval(f"ladder_share_{rung}_{p}", share, 0.125)
    flat |= {"ladder": "identity temperature low_rank", "n_position_parts": 2, "limit_ladder_gain_bits": 0.01}
    flat |= {"position_part_0_first": 0, "position_part_0_last": 15, "position_part_1_first": 16}
    flat |= {"position_part_1_last": 63, "limit_position_delta_kl_bits": -0.1, "limit_risk_tier_steps": 0.0}
    flat |= interval("risk_tier_steps", 0.0, 0) | {"n_prompts_in_training_text": 2}
    flat |= {"limit_earliness_share": 0.6, "limit_last_layer_kl_bits": 0.05, "limit_worst_delta_kl_bits": -0.1}
    flat |= {"limit_identity_kl_bits": 1e-4, "limit_min_prompts": 12, "limit_confidence": 0.95}
    for letter in "ABCDEFGH":
        flat |= {f"gate_{letter}": "pass", f"gate_{letter}_pass": 1, f"gate_{letter}_point": "pass"}
    return {key: value for key, value in (flat | changed).items() if value is not None}


def interval(key: str, value: float, half: float) -> dict[str, float]:
    return {key: value, f"{key}_lo": value - half, f"{key}_hi": value + half}


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
    shifts = [(shift, "rank ≤ 10", 10 - shift, 50.0) for shift in range(-1, 4)]
    artifacts.write_csv(root / "earliness" / f"{key}.csv", plots.EARLINESS_COLUMNS, shifts)
    log = [(step, name, 4.0 / (1 + step), 0) for name in plots.CURVES for step in range(3)]
    artifacts.write_csv(root / "training" / f"{key}.csv", plots.TRAINING_COLUMNS, log)
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

    def lens(first_row: int) -> dict[str, Any]:
        rows = range(first_row, N_LAYERS + 1)

        def grid(number: Callable[[int, int], Any]) -> list[list[Any]]:
            return [[number(row, pos) for pos in range(n)] for row in rows]

        return {
            "first_row": first_row,
            "top": grid(lambda row, pos: [(row + pos + shift + i) % n for i in range(min(5, n))]),
            "p": grid(lambda row, pos: [500 >> i for i in range(min(5, n))]),
            "entropy": grid(lambda row, pos: 100 * (N_LAYERS - row) + pos),
            "kl": grid(lambda row, pos: 100 * (N_LAYERS - row) * (1 + first_row)),
            "rank": grid(lambda row, pos: (N_LAYERS - row) * 10**pos),
            "p_final": grid(lambda row, pos: 1000 * row // N_LAYERS),
        }

    return {"words": list(words), "tokens": list(range(n)), "lenses": {"norm": lens(0), "tuned": lens(1)}}
