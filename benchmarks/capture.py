"""Tokens per second of the capture against a bare forward pass of the same model, and the memory it needs beside it.

The bare forward pass is the model's own body without its head, in the same dtype and batches. The capture gathers all
layers' residuals at sampled positions and returns them. Neither writes a bank.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks import common
from benchmarks.shapes import Shape
from lensmith.source import skeleton
from lensmith.source.backbone import Backbone

# The largest whose forward pass takes seconds on one core.
MIDDLE = Shape("middle", "llama", 12, 768, 2048, 12, 12, 64, 32_000)
TINY = Shape("tiny", "llama", 2, 32, 64, 4, 4, 8, 97)
LIMIT = 0.9
COLUMNS = ("model", "dtype", "way", "tokens_per_second", "spread", "memory_bytes", "share_of_bare")


def backbone(spec: dict[str, Any]) -> Backbone:
    dtype = getattr(torch, spec["dtype"])
    if spec["model"] in SHAPES:
        return Backbone.from_model(SHAPES[spec["model"]].model(skeleton.pick_device("auto"), dtype))
    model: Any = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=dtype)
    return Backbone.from_model(model.to(skeleton.pick_device("auto")))


SHAPES = {shape.name: shape for shape in (MIDDLE, TINY)}


def batch(model: Backbone, spec: dict[str, Any]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    tokens = torch.randint(0, model.d_vocab, (spec["seqs"], spec["seq_len"]))
    positions = torch.rand(tokens.shape).argsort(-1)[:, : spec["positions"]].sort(-1).values
    return tokens, positions


@torch.inference_mode()
def bare(model: Backbone, tokens: Tensor) -> None:
    model.anatomy.body(input_ids=tokens.to(model.device), use_cache=False)


def memory(spec: dict[str, Any]) -> int:
    """Peak bytes over the loaded model of one pass."""
    model = backbone(spec)
    tokens, positions = batch(model, spec)
    peak = common.PeakMemory(model.device)
    if spec["way"] == "bare":
        bare(model, tokens)
    else:
        model.capture(tokens, positions)
    return peak.over_start()


def main(arguments: Sequence[str] | None = None) -> None:
    cli = common.parser(__doc__)
    cli.add_argument(
        "--models", nargs="+", default=["demo/atlas", "middle"], help="folders, or `middle`: random weights"
    )
    cli.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    cli.add_argument("--seqs", type=int, default=8)
    cli.add_argument("--seq-len", type=int, default=512)
    cli.add_argument("--positions", type=int, default=64)
    cli.add_argument("--repeats", type=int, default=3)
    args = common.parsed(cli, arguments)
    if args.quick:
        args.models, args.seqs, args.seq_len, args.positions, args.repeats = ["tiny"], 2, 16, 4, 1
    rows = [row for model in args.models for dtype in args.dtypes for row in measure(args, model, dtype)]
    shown = [
        [model, dtype, way, rate, f"{spread:.0%}", peak / 2**20, f"{share:.2f}"]
        for model, dtype, way, rate, spread, peak, share in rows
    ]
    sizes = f"{args.seqs} x {args.seq_len} tokens a pass, {args.positions} positions a sequence, all layers."
    text = [
        f"{sizes} Limit: capture >= {LIMIT} of bare.",
        common.table(
            ("model", "dtype", "way", "tokens/s", "spread", "memory MiB over the model", "share of bare"), shown
        ),
    ]
    common.publish(args.out, "capture", "Capture against a bare forward pass", text, COLUMNS, rows)


def measure(args: Any, model: str, dtype: str) -> list[list[Any]]:
    spec = {"model": model, "dtype": dtype, "seqs": args.seqs, "seq_len": args.seq_len, "positions": args.positions}
    loaded = backbone(spec)
    tokens, positions = batch(loaded, spec)
    ways = {"bare": lambda: bare(loaded, tokens), "capture": lambda: loaded.capture(tokens, positions)}
    timings = common.in_turns(ways, args.repeats, loaded.device)
    peaks = {way: common.in_own_process("benchmarks.capture", "memory", spec | {"way": way}) for way in ways}
    base = timings["bare"].median
    return [
        [model, dtype, way, tokens.numel() / time.median, time.spread, peaks[way], base / time.median]
        for way, time in timings.items()
    ]


if __name__ == "__main__":
    main()
