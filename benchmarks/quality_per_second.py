"""Held-out KL against CPU-seconds and tokens: our fit, the reference recipe, and tuned-lens 0.2.0.

All fit the same model on the same tokens, and are measured by the same code at the same held-out positions: KL(final ||
lens) in bits, the mean over blocks 1..L-1. Each budget is a fit of its own, since a schedule depends on its length.
Contenders take turns, seed by seed; a seed draws text and starting values. Time is CPU time of one thread, from tokens
to lens, without loading the model. The reference recipe (docs/origin.md) runs on our engine, which is faster than its
own. It reads as much text as `make demo` has, in 32 passes at other positions each. It has no bank, so each pass is
charged a capture.

    python -m benchmarks.quality_per_second                  three seeds, two hours of a core; a table after each
    python -m benchmarks.quality_per_second --full           more budgets, the reference's 16M tokens: most of a day
    python -m benchmarks.quality_per_second --tokens 32768 --model FOLDER --corpus PACKED
                                                             another model by the defaults of params.yaml, beside
                                                             tuned-lens with this many tokens

`make peer` builds the environment of tuned-lens, once. Without it the run leaves tuned-lens out.
"""

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks import common
from lensmith.files import artifacts
from lensmith.lens.depth import PERCENTILES, depth_layer
from lensmith.process.draws import Stream
from lensmith.settings import params_yaml
from lensmith.source import corpus, prefetch

PEER_PYTHON = Path(__file__).parent / ".venv-peer" / "bin" / "python"
OURS, REFERENCE, SADDLE, PEER = "ours", "reference", "reference, U = V = 0", "tuned-lens"
K = 1024
# Tokens through the frozen model, of each contender's fits.
BUDGETS = {
    "default": {
        OURS: (1 * K, 4 * K, 16 * K, 64 * K, 128 * K),
        REFERENCE: (2048 * K,),
        SADDLE: (256 * K,),
        PEER: (512 * K,),
    },
    "full": {
        OURS: (8 * K, 16 * K, 32 * K, 64 * K, 128 * K, 256 * K, 512 * K),
        REFERENCE: (1024 * K, 4096 * K, 8192 * K, 16384 * K),
        SADDLE: (1024 * K, 8192 * K),
        PEER: (16 * K, 64 * K, 256 * K, 512 * K),
    },
    "quick": {OURS: (120, 240), REFERENCE: (480,), SADDLE: (480,), PEER: (120,)},
}
OURS_FIT = {"epochs": 2.5}  # the demo has half as many, and more text
# Tokens of text that the reference recipe reads, and positions of which each of its passes takes eight.
REFERENCE_TEXT, REFERENCE_POSITIONS = 256 * K, 64
# Targets: how many times fewer tokens, and how many times less CPU time, to reach the best KL of the rival.
LIMITS = {REFERENCE: (64.0, 40.0), SADDLE: (64.0, 40.0), PEER: (None, 40.0)}
REAL_LIMIT = 25.0  # of time, beside tuned-lens on a real model
COLUMNS = (
    "contender",
    "seed",
    "tokens",
    "cpu_s",
    "forward_s",
    "kl_bits",
    *(f"kl_bits_{depth}" for depth in PERCENTILES),
)


@dataclass(frozen=True)
class Point:
    """One fit."""

    contender: str
    seed: int
    tokens: int
    cpu_s: float
    forward_s: float | None  # of cpu_s: the frozen model's forward pass
    kl_bits: float  # mean over blocks 1..L-1
    kl_bits_25: float
    kl_bits_50: float
    kl_bits_75: float

    def row(self) -> list[object]:
        return [getattr(self, name) for name in COLUMNS]


def main(arguments: Sequence[str] | None = None) -> None:
    cli = common.parser(__doc__)
    cli.add_argument("--full", action="store_true", help="every budget, for most of a day")
    cli.add_argument("--seeds", type=int, default=3)
    cli.add_argument("--model", default="demo/atlas", help="folder of the model")
    cli.add_argument("--corpus", type=Path, help="a packed corpus as stage prefetch writes it; without it, atlas's")
    cli.add_argument("--tokens", type=int, help="of the fit of tuned-lens; ours has a quarter and a sixteenth too")
    args = common.parsed(cli, arguments)
    is_atlas = args.tokens is None
    budgets: Mapping[str, Sequence[int]] = BUDGETS["quick" if args.quick else "full" if args.full else "default"]
    work = args.out / "work" if args.quick else common.WORK / "quality"
    if not is_atlas:
        budgets = {OURS: [args.tokens // share for share in (16, 4, 1)], PEER: [args.tokens]}
        work = common.WORK / f"quality_{Path(args.model).name}"
    prepare(args.corpus or packed_text(work, max(map(max, budgets.values()))), work, args.seeds)
    points: list[Point] = []
    for seed in range(args.seeds):
        for contender in budgets:
            if contender != SADDLE:
                points += run(contender, seed, args, work, budgets)
        name = "quality_per_second" if is_atlas else work.name
        report(points, args.out, name, is_atlas=is_atlas)  # a run may be cut short


def packed_text(work: Path, n_tokens: int) -> Path:
    """A corpus of atlas's text with at least this many training tokens, packed once."""
    n_tokens = max(n_tokens, 2048 * K)  # so that every run reads the same text
    settings = params_yaml.read(common.REPOSITORY / "params.yaml")["atlas"]
    out = work / f"corpus-{n_tokens}"
    if not (out / corpus.MANIFEST).exists():
        prefetch.build(
            settings.model_copy(update={"corpus": settings.corpus.model_copy(update={"train_tokens": n_tokens})}), out
        )
    return out


def prepare(packed: Path, work: Path, seeds: int) -> None:
    """The files that contenders read: held-out text with its positions, and each seed's order of the training text."""
    tokens, heldout = corpus.read_tokens(packed), corpus.read_heldout(packed)
    half = len(heldout) // 2
    validation, measured = heldout[: min(16, half)], heldout[half:][:64]  # early stopping must not see what is measured
    n = min(32, measured.shape[1] // 2)
    draw = Stream(0, "benchmark-positions")
    positions = np.stack([draw.subset(measured.shape[1], n, step=i) for i in range(len(measured))])
    artifacts.write_tensors(work / "heldout.safetensors", {"tokens": measured, "positions": positions})
    for seed in range(seeds):
        order = Stream(seed, "benchmark-text").permutation(len(tokens), step=0)
        artifacts.write_tensors(work / f"seed-{seed}.safetensors", {"train": tokens[order], "validation": validation})


def run(
    contender: str, seed: int, args: argparse.Namespace, work: Path, budgets: Mapping[str, Sequence[int]]
) -> list[Point]:
    """One contender's fits of one seed, in a process of its own."""
    spec: dict[str, Any] = {"seed": seed, "model": args.model, "work": str(work.resolve())}
    sizes = budgets[contender]
    if contender == PEER:
        if not PEER_PYTHON.exists():
            print(f"{PEER_PYTHON}: missing, so {PEER} is left out. `make peer` builds it.", file=sys.stderr)
            return []
        spec |= {"budgets": sizes}
        fits = common.in_own_process("benchmarks.peers.tuned_lens_fit", "curve", spec, PEER_PYTHON)
    elif contender == REFERENCE:
        spec |= {"entry": "atlas-reference", "fit": {"positions_per_seq": min(REFERENCE_POSITIONS, _window(work))}}
        spec |= {"text": min(REFERENCE_TEXT, sizes[0] // 2), "positions_a_pass": 8}
        spec |= {"fits": [("proper", n) for n in sizes] + [("saddle", n) for n in budgets[SADDLE]]}
        fits = common.in_own_process("benchmarks.contenders", "curve", spec)
    else:
        is_atlas = args.tokens is None
        spec |= {"entry": "atlas" if is_atlas else None}
        spec |= {"fit": (OURS_FIT if is_atlas else {}) | common.settings_of(args.set)}
        spec |= {"text": sizes[-1], "fits": [("proper", n) for n in sizes]}
        fits = common.in_own_process("benchmarks.contenders", "curve", spec)
    points = [_point(contender, seed, fit) for fit in fits]
    for point in points:
        print(
            f"{point.contender}, seed {seed}: {point.tokens} tokens, {point.cpu_s:.1f} s, {point.kl_bits:.3f} bits",
            file=sys.stderr,
        )
    return points


def _window(work: Path) -> int:
    """Positions of a sequence that the reference recipe samples from."""
    seq_len = load_file(work / "heldout.safetensors")["tokens"].shape[1]
    return int(0.95 * seq_len) - int(0.6 * seq_len)


def _point(contender: str, seed: int, fit: dict[str, Any]) -> Point:
    by_layer = fit["kl_bits"]
    at = [by_layer[depth_layer(len(by_layer) + 1, depth) - 1] for depth in PERCENTILES]
    name = SADDLE if fit.get("start") == "saddle" else contender
    return Point(name, seed, fit["tokens"], fit["cpu_s"], fit["forward_s"], statistics.mean(by_layer), *at)


def reaches(points: Sequence[Point], kl_bits: float, cost: str) -> float | None:
    """The least `cost` (tokens or cpu_s) at which a curve reaches `kl_bits`, interpolated on a log scale.

    If the curve is better at its cheapest budget already, that budget is the answer, and a ratio to it is a lower
    bound. None if the curve never gets there.
    """
    curve = sorted(points, key=lambda point: point.tokens)
    if curve and curve[0].kl_bits <= kl_bits:
        return float(getattr(curve[0], cost))
    for worse, better in itertools.pairwise(curve):
        if better.kl_bits <= kl_bits < worse.kl_bits:
            share = (worse.kl_bits - kl_bits) / (worse.kl_bits - better.kl_bits)
            low, high = math.log(getattr(worse, cost)), math.log(getattr(better, cost))
            return math.exp(low + share * (high - low))
    return None


def report(points: Sequence[Point], out: Path, name: str, *, is_atlas: bool) -> None:
    contenders = list(dict.fromkeys(point.contender for point in points))
    text = [
        common.table(
            ("contender", "tokens", "CPU-seconds", "KL bits", "25 / 50 / 75 %"), list(_budget_rows(points, contenders))
        )
    ]
    text.append(
        "Cost of the KL that each rival reaches at its largest budget: medians over seeds, in brackets least and most."
    )
    ratios = [row for rival in contenders if rival != OURS for row in _ratio_rows(points, rival, is_atlas=is_atlas)]
    text.append(common.table(("rival", "cost", "rival", "ours", "ratio", "limit"), ratios))
    common.publish(out, name, "Quality per second and per token", text, COLUMNS, [p.row() for p in points])
    for cost, label in (("cpu_s", "CPU-seconds, one thread"), ("tokens", "tokens through the model")):
        lines = [_line(points, contender, cost) for contender in contenders]
        common.chart(out / f"{name}_{'time' if cost == 'cpu_s' else 'tokens'}.svg", lines, label, "held-out KL, bits")


def _groups(points: Sequence[Point], contender: str) -> list[list[Point]]:
    """A contender's points by budget, the seeds of a budget together."""
    budgets = sorted({point.tokens for point in points if point.contender == contender})
    return [[p for p in points if p.contender == contender and p.tokens == budget] for budget in budgets]


def _budget_rows(points: Sequence[Point], contenders: Sequence[str]) -> Any:
    for contender in contenders:
        for group in _groups(points, contender):
            kl = [point.kl_bits for point in group]
            depths = " / ".join(
                f"{statistics.median(getattr(p, f'kl_bits_{d}') for p in group):.2f}" for d in PERCENTILES
            )
            time = statistics.median(point.cpu_s for point in group)
            yield contender, group[0].tokens, time, f"{statistics.median(kl):.3f} [{min(kl):.3f} {max(kl):.3f}]", depths


def _ratio_rows(points: Sequence[Point], rival: str, *, is_atlas: bool) -> Any:
    tokens, time = LIMITS[rival]
    limits = {"tokens": tokens, "cpu_s": time if is_atlas else REAL_LIMIT}
    for cost, limit in limits.items():
        theirs, ours, ratios = [], [], []
        for seed in sorted({point.seed for point in points}):
            last = max((p for p in points if (p.contender, p.seed) == (rival, seed)), key=lambda p: p.tokens)
            mine = reaches([p for p in points if (p.contender, p.seed) == (OURS, seed)], last.kl_bits, cost)
            if mine is not None:
                theirs.append(getattr(last, cost))
                ours.append(mine)
                ratios.append(theirs[-1] / mine)
        target = "-" if limit is None else f">= {limit:.0f}"
        if not ratios:
            yield rival, cost, None, None, "not reached", target
            continue
        shown = f"{statistics.median(ratios):.1f} [{min(ratios):.1f} {max(ratios):.1f}]"
        yield rival, cost, statistics.median(theirs), statistics.median(ours), shown, target


def _line(points: Sequence[Point], contender: str, cost: str) -> common.Line:
    groups = _groups(points, contender)
    kl = [[point.kl_bits for point in group] for group in groups]
    x = [statistics.median(getattr(point, cost) for point in group) for group in groups]
    return common.Line(contender, x, [statistics.median(k) for k in kl], [min(k) for k in kl], [max(k) for k in kl])


if __name__ == "__main__":
    main()
