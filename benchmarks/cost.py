"""What a lens costs by its model's shape: arithmetic and bytes, and how well both predict what can be measured here.

    capture   tokens x (2 x weights of the blocks + causal attention), and 4 d V a position for the teacher
    bank      positions x (L d in the model's dtype, d + 2 in fp32, the teacher's 16 likeliest tokens)
    fit       epochs x positions x (L - 1) x 4 d V: to the logits of all tokens and back
    lens      L x (2 d rank + 3 d + 1) in fp32; a checkpoint is four of them

`checks` captures and fits a model that suits this machine. It compares bytes exactly, and seconds with the arithmetic
divided by the rate of a large product.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import common
from benchmarks.capture import MIDDLE, TINY
from benchmarks.contenders import settings_of
from benchmarks.shapes import SHAPES, Shape
from lensmith.lens import moments, training
from lensmith.lens.lens import Lens, rank_of
from lensmith.lens.lens_file import WEIGHTS
from lensmith.settings.sections import FitParams
from lensmith.source import bank
from lensmith.source.backbone import Backbone
from lensmith.source.teacher import LIKELY

GIB, PETA = 2**30, 1e15
RATE = 400e12  # FLOP/s that large bfloat16 products reach on one H100 or H200, two fifths of the data sheet
SIZES = ("mistral-7b", "llama-3-8b", "qwen3-8b", "llama-3-70b")
LARGEST = Shape("llama-3-405b", "llama", 126, 16384, 53248, 128, 8, 128, 128_256)
COLUMNS = (
    "model", "capture PFLOP", "fit PFLOP", "minutes", "weights GiB", "bank GiB", "lens MiB", "checkpoints GiB",
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What one lens costs."""

    capture_flop: float
    fit_flop: float
    bank_bytes: int
    lens_bytes: int

    @classmethod
    def of(cls, shape: Shape, fit: FitParams, tokens: int, seq_len: int, itemsize: int) -> "Cost":
        positions = tokens // seq_len * fit.positions_per_seq
        d, L = shape.d_model, shape.n_layers
        rank = rank_of(fit, d)
        return cls(
            capture_flop=tokens * shape.forward_flop(seq_len) + positions * shape.teacher_flop(),
            fit_flop=fit.epochs * positions * (L - 1) * shape.lens_flop(),
            bank_bytes=positions * (L * d * itemsize + 4 * (d + 2 + LIKELY)),
            lens_bytes=4 * (L * (2 * d * rank + 3 * d) + L),
        )

    @property
    def flop(self) -> float:
        return self.capture_flop + self.fit_flop

    def row(self, shape: Shape) -> list[Any]:
        weights = 2 * shape.parameters() / GIB
        return [
            shape.name, self.capture_flop / PETA, self.fit_flop / PETA, self.flop / RATE / 60, weights,
            self.bank_bytes / GIB, self.lens_bytes / 2**20, 3 * 4 * self.lens_bytes / GIB,
        ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    args = common.parsed(common.parser(__doc__), arguments)
    fit = settings_of({"entry": "atlas", "model": "demo/atlas", "seed": 0, "fit": DEFAULT}).fit
    shapes = [*(SHAPES[name] for name in SIZES), LARGEST]
    rows = [Cost.of(shape, fit, 2_097_152, 512, 2).row(shape) for shape in shapes]
    text = [
        (
            "The default budget: 2,097,152 tokens in sequences of 512, 64 positions each, 4 epochs. Minutes are "
            f"arithmetic alone, on one GPU at {RATE / 1e12:.0f} TFLOP/s. Checkpoints: three files at most."
        ),
        common.table(COLUMNS, rows),
        "Checked on this machine:",
        common.table(("what", "by the formula", "measured", "measured / formula"), checks(args, fit)),
    ]
    common.publish(args.out, "cost", "What a lens costs", text, COLUMNS, rows)


# Values of section `fit` in `defaults` that entry atlas overrides.
DEFAULT = {"positions_per_seq": 64, "epochs": 4, "batch_seqs": 8}


def checks(args: argparse.Namespace, fit: FitParams) -> list[list[Any]]:
    """A capture and a fit through the code of stage `fit`, against the formulas."""
    shape, n_seqs, seq_len = (TINY, 8, 32) if args.quick else (MIDDLE, 32, 256)
    settings = fit.model_copy(update={"epochs": 1, "rank": 8, "validate_every": 999, "start": "norm_lens"} | SMALL)
    backbone = Backbone.from_model(shape.model(torch.device("cpu"), torch.float32))
    tokens = np.random.default_rng(0).integers(0, shape.d_vocab, (n_seqs, seq_len), dtype=np.uint32)
    expected = Cost.of(shape, settings, tokens.size, seq_len, 4)
    rate = product_rate()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LENSMITH_HOME"] = folder
        capture_s = common.seconds(lambda: bank.residuals(backbone, {}, tokens, settings))
        rows = bank.residuals(backbone, {}, tokens, settings)
        shards = sum(path.stat().st_size for path in Path(folder).glob("bank/*/shard-*"))
        start = Lens.start(settings, backbone.n_layers, backbone.d_model)
        few = replace(rows, n_seqs=1)  # type: ignore[type-var]
        fit_s = common.seconds(lambda: training.fit(backbone.head, rows, few, settings, start))
        start.with_tensors({"center": moments.centers(backbone.head, rows)}).save(Path(folder))
        lens = (Path(folder) / WEIGHTS).stat().st_size
    return [
        ["bank, bytes", expected.bank_bytes, shards, shards / expected.bank_bytes],
        ["lens, bytes", expected.lens_bytes, lens, lens / expected.lens_bytes],
        ["capture, CPU-seconds", expected.capture_flop / rate, capture_s, capture_s / (expected.capture_flop / rate)],
        ["fit, CPU-seconds", expected.fit_flop / rate, fit_s, fit_s / (expected.fit_flop / rate)],
    ]


SMALL = {"coordinates": "plain", "positions_per_seq": 16, "batch_seqs": 4}


def product_rate() -> float:
    """FLOP/s of a large product in fp32."""
    a, b = torch.randn(2048, 1024), torch.randn(4096, 1024)
    spent = common.in_turns({"product": lambda: a @ b.T}, 5)["product"].median
    return 2 * a.numel() * len(b) / spent


if __name__ == "__main__":
    main()
