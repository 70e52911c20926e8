"""A training step of one layer over all tokens, over a sampled vocabulary, and over the teacher's likeliest alone.

    exact     `LinearKL` over all tokens
    sampled   over D and S of `lens.vocabulary`, the draw and the gathering of W_U included
    top-k     over the teacher's likeliest tokens of the step, their exponentials counted once: OmniLens's objective

Heads are random in the shapes of published models. Their bias is minus the logarithm of the token's number, so that p
follows Zipf's law as text does. `error` is the length of the mean gradient minus the exact one, relative to the length
of the exact one; `bias_bits` is the mean KL minus the exact one. The floor is the two products of a step's columns.
"""

import argparse
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import common
from benchmarks.cost import product_rate
from lensmith.lens.divergence import BITS, LinearKL
from lensmith.lens.vocabulary import SampledVocabulary
from lensmith.settings import params_yaml
from lensmith.source.head import Head, Transform
from lensmith.source.teacher import Teacher

SHAPES = {"smollm2-135m": (49_152, 576), "llama-3-8b": (128_256, 4096), "gemma-3-1b": (262_144, 1152)}
QUICK = {"tiny": (4000, 16)}
POSITIONS, APART = 512, 0.7  # of one step; scale of the noise by which the lens's head input differs from the teacher's
COLUMNS = (
    "shape", "d_vocab", "d_model", "step", "columns", "cpu_s", "floor_s", "exact_over_step", "error", "bias_bits",
)  # fmt: skip


def head_of(d_vocab: int, d_model: int) -> Head:
    """A random head whose logits, less a Zipf bias, have unit variance at inputs of unit variance."""
    draw = torch.Generator().manual_seed(0)
    W_U = torch.randn(d_vocab, d_model, generator=draw) / d_model**0.5 * 2
    bias = -torch.arange(1, d_vocab + 1).log()
    return Head(W_U, bias, Transform(), nn.Identity(), (None,), "")


def measured(name: str, d_vocab: int, d_model: int, repeats: int, rate: float) -> list[list[Any]]:
    """The rows of one head."""
    head, draw = head_of(d_vocab, d_model), torch.Generator().manual_seed(1)
    final = torch.randn(POSITIONS, d_model, generator=draw)
    y = (final + APART * torch.randn(POSITIONS, d_model, generator=draw))[None]
    teacher, exact, log_tau = Teacher.from_head_input(head, final), LinearKL(head), torch.zeros(1)
    fit = params_yaml.read(common.REPOSITORY / "params.yaml")["atlas"].fit.model_copy(update={"vocabulary": "sampled"})
    counts = np.maximum(1, 10_000 // np.arange(1, d_vocab + 1))
    text = np.repeat(np.arange(d_vocab, dtype=np.uint32), counts)
    vocabulary = SampledVocabulary.of(fit, head, text[None])
    assert vocabulary is not None and teacher.likely is not None
    likely = torch.unique(teacher.likely.long())
    ways = {
        "exact": lambda: exact,
        "sampled": lambda: exact.restricted_to(*vocabulary.draw(teacher, 0)),
        "top-k": lambda: exact.restricted_to(likely, torch.zeros(len(likely))),
    }

    def gradient(way: str) -> tuple[Tensor, Tensor, int]:
        linear_kl = ways[way]()
        kl, d_y, _ = linear_kl(teacher, y, log_tau)
        return kl.mean() * BITS, final.T @ d_y[0] / POSITIONS, len(linear_kl.head.W_U)

    spent = common.in_turns({way: functools.partial(gradient, way) for way in ways}, repeats)
    kl, whole, _ = gradient("exact")
    rows = []
    for way in ways:
        of_way, found, columns = gradient(way)
        rows.append([
            name, d_vocab, d_model, way, columns, spent[way].median,
            4 * POSITIONS * columns * d_model / rate, spent["exact"].median / spent[way].median,
            float((found - whole).norm() / whole.norm()), float(of_way - kl),
        ])  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    cli = common.parser(__doc__)
    cli.add_argument("--repeats", type=int, default=3)
    cli.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    args: argparse.Namespace = common.parsed(cli, arguments)
    rate, shapes = product_rate(), QUICK if args.quick else {name: SHAPES[name] for name in args.shapes}
    rows = [row for name, shape in shapes.items() for row in measured(name, *shape, args.repeats, rate)]
    text = [f"{POSITIONS} positions of one layer.", common.table(COLUMNS, rows)]
    common.publish(args.out, "vocabulary", "What a step pays for the vocabulary", text, COLUMNS, rows)


if __name__ == "__main__":
    main()
