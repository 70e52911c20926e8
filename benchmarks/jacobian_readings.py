"""What the readout of a mean Jacobian leaves of the model's answer, and what it would leave with more than the mean.

    norm           the norm lens: J = 1
    own            J_p h_p, with the derivative at the position itself
    mean           J h_p, with the mean of these derivatives over text: a Jacobian lens by its definition
    shortened      the same with no gradient longer than the median, as stage fit makes it
    future_sum     the reference's definition: the derivatives of this and all later positions, summed
    mean, centred  m_L + J (h_p - m_l), with m the mean residuals: an affine lens with the mean derivative

Each is the mean of KL(final || lens) in bits over positions of held-out text. `written` is |h_L - h_l| / |h_L|, the
part of the final residual that later blocks write. A pre-norm sublayer writes the same whatever the length of its
input, so its derivative along that input is zero: to first order in h_l nothing is known of what it writes there.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import common
from benchmarks.jacobian import parser, subject
from lensmith.lens import jacobian
from lensmith.lens.divergence import kl_bits
from lensmith.settings import params_yaml
from lensmith.source import corpus
from lensmith.source.backbone import Backbone

COLUMNS = ("layer", "written", "norm", "own", "mean", "shortened", "future_sum", "mean, centred")
EVERY = 8  # of the positions of a held-out sequence is read


def own_residuals(backbone: Backbone, seq: Tensor) -> list[Tensor]:
    """Residuals of tokens (pos,) whose attention to other positions is constant, to be differentiated twice."""
    with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
        return jacobian.residuals(backbone, seq[None], own_position=True)


def own_readout(resid: Sequence[Tensor], layer: int) -> Tensor:
    """J_p h_p at `layer` for every position, (pos, d_model), of `own_residuals`."""
    # A backward pass is linear in its cotangent; the transpose of that map is the forward derivative.
    cotangent = torch.zeros_like(resid[-1], requires_grad=True)
    (pulled,) = torch.autograd.grad(resid[-1], resid[layer - 1], cotangent, create_graph=True)
    (pushed,) = torch.autograd.grad(pulled, cotangent, resid[layer - 1].detach())
    return pushed[0]


def mean_maps(backbone: Backbone, tokens: NDArray[np.uint32], n_seqs: int) -> dict[str, Tensor]:
    """J^T by readout, (L - 1, d_model, d_model) each."""
    fit = params_yaml.read(common.REPOSITORY / "params.yaml")["atlas"].fit
    settings = fit.model_copy(update={"kind": "jacobian", "jacobian_seqs": n_seqs, "jacobian_agreement": 1.0})

    def maps(derivative: str) -> Tensor:
        of_derivative = settings.model_copy(update={"jacobian": derivative})
        return jacobian.estimate(backbone, tokens, of_derivative).lens().U[:-1].float()

    with mock.patch.object(jacobian, "shortened", lambda gradients: gradients):
        unbiased = maps("same_position")
    return {"mean": unbiased, "shortened": maps("same_position"), "future_sum": maps("future_sum")}


def measured(backbone: Backbone, packed: Path, args: argparse.Namespace) -> Iterator[list[object]]:
    """The rows of COLUMNS."""
    head, last, tokens = backbone.head, backbone.n_layers, corpus.read_tokens(packed)
    maps = mean_maps(backbone, tokens, args.seqs)
    text = torch.from_numpy(tokens[: min(args.seqs, 8)].astype(np.int64))
    every = torch.arange(jacobian.LEFT_OUT, text.shape[1]).expand(len(text), -1)
    means = backbone.capture(text, every).flatten(0, 1).float().mean(0)
    read, numbers = slice(jacobian.LEFT_OUT, None, EVERY), {layer: list[list[float]]() for layer in args.layers}
    for seq in torch.from_numpy(corpus.read_heldout(packed)[: args.held].astype(np.int64)):
        resid = own_residuals(backbone, seq)
        own = {layer: own_readout(resid, layer)[read].float() for layer in args.layers}
        final = resid[-1][0, read].detach().float()
        logits = head.logits(head.norm(final, last))
        for layer in args.layers:
            h = resid[layer - 1][0, read].detach().float()
            J = {name: by_layer[layer - 1] for name, by_layer in maps.items()}
            centred = means[last] + (h - means[layer]) @ J["mean"]
            readouts = [h, own[layer], *(h @ of_name for of_name in J.values()), centred]
            kl = [float(kl_bits(logits, head.logits(head.norm(y, last))).mean()) for y in readouts]
            numbers[layer].append([float(((final - h).norm(dim=-1) / final.norm(dim=-1)).mean()), *kl])
    return ([layer, *np.mean(by_seq, axis=0).tolist()] for layer, by_seq in numbers.items())


def main(arguments: Sequence[str] | None = None) -> None:
    cli = parser(__doc__)
    cli.add_argument("--seqs", type=int, default=16, help="training sequences of the means")
    cli.add_argument("--held", type=int, default=4, help="held-out sequences that are read")
    cli.add_argument("--layers", type=int, nargs="+", default=[3, 6, 9, 10, 11])
    args = common.parsed(cli, arguments)
    if args.quick:
        args.seqs, args.held, args.layers = 2, 1, args.layers[:1]
    backbone, packed = subject(args)
    table, name = list(measured(backbone, packed, args)), Path(args.model).name
    text = [f"{name}: means of {args.seqs} sequences, {args.held} held-out ones read.", common.table(COLUMNS, table)]
    title = "What the readout of a mean Jacobian leaves"
    common.publish(args.out, f"jacobian_readings_{name}", title, text, COLUMNS, table)


if __name__ == "__main__":
    main()
