"""Minutes from tokens to lens at the exact shapes of published models, with random weights and nothing downloaded.

The rates of a large bfloat16 product and of a copy are measured first. They give the floor of each phase: the frozen
forward pass (its products and bytes, see `shapes`) and the fit (two products per position, layer and epoch). Then our
code runs on a sample of the default budget: capture to a bank in memory, closed form, and some steps of the fit, whose
time is scaled to all steps. Random weights cost what trained ones do; their KL means nothing.

    python -m benchmarks.gpu_shapes                                every shape that fits, about two minutes each
    python -m benchmarks.gpu_shapes --shapes llama-3-8b --tokens 2097152     one shape, its whole budget

Without CUDA it runs tiny shapes, as a test that it runs.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import common
from benchmarks.shapes import SHAPES, TINY, Shape
from lensmith.lens import training
from lensmith.lens.lens import Lens
from lensmith.settings import params_yaml
from lensmith.settings.sections import FitParams, ModelParams
from lensmith.source.backbone import Backbone
from lensmith.source.residuals import Batch, StreamedResiduals, sample_positions
from lensmith.source.teacher import LIKELY, Teacher

CAPTURE_LIMIT = 0.6  # share of the floor's tokens per second
MINUTES = {"mistral-7b": 3.0, "llama-3-8b": 4.0, "qwen3-8b": 4.0, "gemma-2-9b": 6.0}  # one H200, the default budget
SPARE = 6 * 2**30  # bytes beside the weights
HELD_SEQS = 16
COLUMNS = (
    "shape", "tokens", "product_flop_s", "copy_byte_s", "capture_tok_s", "capture_floor_tok_s", "capture_share",
    "closed_form_s", "step_s", "fit_s", "fit_floor_s", "end_to_end_min", "peak_bytes", "weight_bytes",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """What the device reaches: FLOP/s of a product in the model's dtype, bytes/s of a copy (read and written)."""

    flop: float
    byte: float

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype, *, tiny: bool) -> "Ceilings":
        n = 256 if tiny else 8192
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        source = torch.empty(2**20 if tiny else 2**30, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        work = {"product": lambda: a @ b, "copy": lambda: target.copy_(source)}
        spent = common.in_turns(work, 5, device)
        return cls(2 * n**3 / spent["product"].median, 2 * source.numel() / spent["copy"].median)


@dataclasses.dataclass
class MemoryRows:
    """A bank in the host's memory: the speed of a disk is not measured here."""

    resid: Tensor  # (n_seqs, positions, L, d_model)
    teacher: Teacher | None  # each tensor (n_seqs, positions, ...)
    tokens_forwarded: int
    reads_ahead = True

    @classmethod
    def capture(cls, rows: StreamedResiduals) -> "MemoryRows":
        head, pin = rows.backbone.head, rows.backbone.device.type == "cuda"
        shape = (rows.n_seqs, rows.positions_per_seq)
        resid = torch.empty(
            *shape, rows.backbone.n_layers, rows.backbone.d_model, dtype=rows.backbone.dtype, pin_memory=pin
        )
        teacher = None
        if head.softcap is None:
            packed = torch.empty(*shape, rows.backbone.d_model + 2, pin_memory=pin)
            likely = torch.empty(*shape, min(LIKELY, len(head.W_U)), dtype=torch.int32, pin_memory=pin)
            teacher = Teacher(packed, likely, None)
        for start in range(0, rows.n_seqs, rows.capture_seqs):
            seqs = np.arange(start, min(start + rows.capture_seqs, rows.n_seqs))
            captured = rows.read(seqs).resid
            of_chunk = Teacher.from_head_input(head, head.norm(captured[:, -1], rows.backbone.n_layers))
            pairs = [(resid, captured)]
            if of_chunk.packed is not None and of_chunk.likely is not None:
                pairs += [(packed, of_chunk.packed), (likely, of_chunk.likely)]
            for whole, part in pairs:
                whole[start : start + len(seqs)].copy_(part.unflatten(0, (len(seqs), -1)), non_blocking=True)
        return cls(resid, teacher, rows.tokens_forwarded)

    @property
    def n_seqs(self) -> int:
        return len(self.resid)

    @property
    def positions_per_seq(self) -> int:
        return self.resid.shape[1]

    def read(self, seqs: NDArray[np.int64]) -> Batch:
        picked = torch.from_numpy(seqs)
        teacher = None if self.teacher is None else self.teacher.map_tensors(lambda t: t[picked].flatten(0, 1))
        return Batch(self.resid[picked].flatten(0, 1), teacher)


def main(arguments: Sequence[str] | None = None) -> None:
    cli = common.parser(__doc__)
    cli.add_argument("--shapes", nargs="+", default=None, choices=[*SHAPES, *TINY])
    cli.add_argument("--tokens", type=int, default=None, help="captured; the rest of the budget is scaled from it")
    cli.add_argument("--steps", type=int, default=30, help="steps of the fit that are timed")
    cli.add_argument("--batch-tokens", type=int, default=None)
    args = common.parsed(cli, arguments)
    device = torch.device("cuda" if torch.cuda.is_available() and not args.quick else "cpu")
    tiny = device.type == "cpu"
    names = args.shapes or list(TINY if tiny else SHAPES)
    dtype = torch.float32 if tiny else torch.bfloat16
    ceilings = Ceilings.measure(device, dtype, tiny=tiny)
    settings = params_yaml.read(common.REPOSITORY / "params.yaml")["atlas"]
    rows = []
    for name in names:
        shape = (SHAPES | TINY)[name]
        weights = shape.parameters() * dtype.itemsize
        if not tiny and weights + SPARE > torch.cuda.get_device_properties(device).total_memory:
            print(
                f"{name}: {weights / 2**30:.0f} GiB of weights and {SPARE / 2**30:.0f} to work in do not fit. Left out."
            )
            continue
        rows.append(measure(shape, ceilings, settings, args, device, dtype))
    report(args, rows, device, tiny=tiny)


def measure(
    shape: Shape, ceilings: Ceilings, settings: ModelParams, args: argparse.Namespace, device: torch.device,
    dtype: torch.dtype,
) -> list[Any]:  # fmt: skip
    tiny = device.type == "cpu"
    seq_len, budget = (32, 2048) if tiny else (512, 2_097_152)
    tokens = args.tokens or (512 if tiny else 131_072)
    fit = default_fit(settings.fit, tiny=tiny)
    model = shape.model(device, dtype)
    peak = common.PeakMemory(device)
    backbone = Backbone.from_model(model)
    train, capture_s = captured(backbone, tokens // seq_len, seq_len, fit, "train")
    held_out, _ = captured(backbone, HELD_SEQS, seq_len, fit, "held-out")
    start = Lens.start(fit, backbone.n_layers, backbone.d_model).to(device)
    closed_s, step_s = fit_times(backbone, train, held_out, fit, start, min(args.steps, train.n_seqs // fit.batch_seqs))
    steps = fit.epochs * (budget // seq_len) / fit.batch_seqs
    rate, per_token = tokens / capture_s, shape.forward_flop(seq_len)
    floor = 1 / (per_token / ceilings.flop + shape.forward_bytes(min(tokens, 16384), dtype.itemsize) / ceilings.byte)
    positions = budget // seq_len * fit.positions_per_seq
    fit_floor = (
        (fit.epochs * (shape.n_layers - 1) * shape.lens_flop() + shape.teacher_flop()) * positions / ceilings.flop
    )
    fit_s = closed_s * budget / tokens + step_s * steps
    return [
        shape.name, tokens, ceilings.flop, ceilings.byte, rate, floor, rate / floor, closed_s, step_s, fit_s, fit_floor,
        (budget / rate + fit_s) / 60, peak.over_start(), shape.parameters() * dtype.itemsize,
    ]  # fmt: skip


def default_fit(fit: FitParams, *, tiny: bool) -> FitParams:
    small = {"positions_per_seq": 8, "batch_seqs": 2, "rank": 4, "epochs": 1} if tiny else {}
    return fit.model_copy(update={"validate_every": 10**9, "bank": "disk", **small})


def captured(backbone: Backbone, n_seqs: int, seq_len: int, fit: FitParams, name: str) -> tuple[MemoryRows, float]:
    """Random tokens through the model, and the seconds that took. One pass before is not timed."""
    draw = np.random.default_rng(len(name))
    tokens = draw.integers(0, backbone.d_vocab, (n_seqs, seq_len)).astype(np.uint32)
    streamed = StreamedResiduals(backbone, tokens, sample_positions(fit, *tokens.shape))
    streamed.read(np.arange(min(n_seqs, streamed.capture_seqs)))
    streamed.tokens_forwarded = 0
    began = common.clock(backbone.device)
    rows = MemoryRows.capture(streamed)
    return rows, common.clock(backbone.device) - began


def fit_times(
    backbone: Backbone, train: MemoryRows, held_out: MemoryRows, fit: FitParams, start: Lens, n_steps: int
) -> tuple[float, float]:
    """Seconds before the first step (moments, decompositions, ridge, temperature), and seconds of a step.

    Two fits are timed that differ in their number of steps; the part before the first step is what they share.
    """

    def spent(epochs: float) -> float:
        settings = fit.model_copy(update={"epochs": epochs})
        return common.seconds(lambda: training.fit(backbone.head, train, held_out, settings, start), backbone.device)

    per_epoch = train.n_seqs // fit.batch_seqs
    one = 1 / per_epoch
    spent(one)  # allocations and library set-up
    short, long = spent(one), spent((1 + n_steps) / per_epoch)
    step = max(long - short, 0.0) / n_steps
    return max(short - step, 0.0), step


def report(args: argparse.Namespace, rows: list[list[Any]], device: torch.device, *, tiny: bool) -> None:
    shown = []
    for row in rows:
        named = dict(zip(COLUMNS, row, strict=True))
        shown.append(
            [
                named["shape"], named["capture_tok_s"], named["capture_floor_tok_s"], f"{named['capture_share']:.0%}",
                1e3 * named["step_s"], named["fit_s"], named["fit_floor_s"], named["end_to_end_min"],
                MINUTES.get(named["shape"]), named["peak_bytes"] / 2**30, named["weight_bytes"] / 2**30,
            ]
        )  # fmt: skip
    setting = "Tiny shapes on a CPU, as a test that it runs; no GPU figures." if tiny else "One GPU, bfloat16."
    speed = f"Measured ceilings: {rows[0][2] / 1e12:.3g} TFLOP/s, {rows[0][3] / 1e12:.3g} TB/s." if rows else ""
    names = (
        "shape", "capture tok/s", "floor tok/s", f"share (limit {CAPTURE_LIMIT:.0%})", "step ms", "fit s",
        "fit floor s",
        "end to end min", "limit min (H200)", "peak GiB beside weights", "weights GiB",
    )  # fmt: skip
    common.publish(
        args.out,
        "gpu_shapes",
        "Shapes of published models",
        [f"{setting} {speed}", common.table(names, shown)],
        COLUMNS,
        rows,
        device,
    )


if __name__ == "__main__":
    main()
