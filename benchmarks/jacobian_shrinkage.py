"""How far two halves of a text agree on the mean Jacobian, and whether drawing it towards another map brings it nearer.

    python -m benchmarks.jacobian_shrinkage --model FOLDER --corpus PACKED --seqs 100

Stage fit's estimator runs on all sequences; `agreement` is the cosine between the maps of its even and odd ones. The
map of even sequences is then drawn towards a target, (1 - share) J + share * target, with the share that brings it
nearest to the map of odd sequences:

    regression    (Cov(h_l) + r)^-1 Cov(h_l, h_final) of further sequences, the best linear prediction of h_final
    identity      what a block adds has a derivative of mean zero

The map of odd sequences has no bias and noise of its own, so |S - J_odd|^2 is the squared error of S and a constant,
half of |J_even - J_odd|^2. `error_left` is the squared error of the map after drawing, as a share of that before.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import common
from benchmarks.jacobian import parser, subject
from lensmith.lens import jacobian
from lensmith.settings import params_yaml
from lensmith.source import corpus
from lensmith.source.backbone import Backbone

SHARES = tuple(share / 20 for share in range(21))
RIDGE = 1e-2  # of the mean variance
COLUMNS = ("layer", "agreement", "regression_share", "regression_error_left", "identity_share", "identity_error_left")


def regression(backbone: Backbone, tokens: NDArray[np.uint32]) -> Tensor:
    """Maps (L - 1, d_model, d_model), h_l to h_final, of all positions that the estimator reads."""
    L, d = backbone.n_layers, backbone.d_model
    cov, total, n = torch.zeros(2, L - 1, d, d, dtype=torch.float64), torch.zeros(L, d, dtype=torch.float64), 0
    shift: Tensor | None = None
    positions = torch.arange(jacobian.LEFT_OUT, tokens.shape[1])[None]
    for seq in tokens:
        resid = backbone.capture(torch.from_numpy(seq.astype(np.int64))[None], positions)[0, :, 1:].float()
        shift = resid.mean(0) if shift is None else shift
        h = (resid - shift).transpose(0, 1)
        for layer in range(L - 1):
            cov[0, layer] += h[layer].T @ h[layer]
            cov[1, layer] += h[layer].T @ h[-1]
        total += h.sum(1)
        n += h.shape[1]
    mean = total / n
    within = cov[0] / n - mean[:-1, :, None] * mean[:-1, None, :]
    cross = cov[1] / n - mean[:-1, :, None] * mean[-1]
    ridge = RIDGE * within.diagonal(dim1=1, dim2=2).mean(1)
    maps: Tensor = torch.linalg.solve(within + ridge[:, None, None] * torch.eye(d, dtype=torch.float64), cross)
    return maps.float()


def drawn_to(target: Tensor, even: Tensor, odd: Tensor) -> tuple[float, float]:
    """The best share of `target` in a map of even sequences, and the squared error that it leaves."""
    noise = float((even - odd).square().sum()) / 2
    errors = [float(((1 - share) * even + share * target - odd).square().sum()) - noise for share in SHARES]
    best = int(np.argmin(errors))
    return SHARES[best], max(0.0, errors[best]) / errors[0]


def measured(
    backbone: Backbone, tokens: NDArray[np.uint32], args: argparse.Namespace
) -> tuple[str, list[list[object]]]:
    """What it cost, and the lines of all layers."""
    fit = params_yaml.read(common.REPOSITORY / "params.yaml")["atlas"].fit
    settings = fit.model_copy(update={"kind": "jacobian", "jacobian_seqs": args.seqs, "jacobian_agreement": 1.0})
    texts = tokens[: args.seqs]
    text = torch.from_numpy(texts[:1].astype(np.int64))
    forward = common.in_turns({"forward": lambda: backbone.capture(text, text[:, :1] * 0)}, 3)["forward"].median
    began = common.clock()
    found = jacobian.estimate(backbone, texts, settings)
    spent = common.clock() - began
    halves = found.halves / (found.positions / 2 * jacobian.DRAWS)
    target = regression(backbone, tokens[args.seqs :][: args.regression])
    lines: list[list[object]] = []
    for layer, agreement in enumerate(found.agreement(), 1):
        even, odd = halves[:, layer - 1]
        by_target = (drawn_to(other, even, odd) for other in (target[layer - 1], torch.eye(backbone.d_model)))
        lines.append([layer, agreement, *(number for pair in by_target for number in pair)])
    cost = f"{args.seqs} sequences of {tokens.shape[1]}, {spent:.0f} CPU-seconds, {spent / (forward * len(texts)):.1f}"
    return f"{Path(args.model).name}: {cost} forward passes over them; regression on {args.regression} others.", lines


def main(arguments: Sequence[str] | None = None) -> None:
    cli = parser(__doc__)
    cli.add_argument("--seqs", type=int, default=100, help="sequences of the estimate")
    cli.add_argument("--regression", type=int, default=32, help="sequences of the regression")
    args = common.parsed(cli, arguments)
    if args.quick:
        args.seqs = args.regression = 4
    backbone, packed = subject(args)
    cost, lines = measured(backbone, corpus.read_tokens(packed), args)
    name = f"jacobian_shrinkage_{Path(args.model).name}"
    text = [cost, common.table(COLUMNS, lines)]
    common.publish(args.out, name, "Agreement of two halves, and shrinkage", text, COLUMNS, lines)


if __name__ == "__main__":
    main()
