"""The mean Jacobian by signs, as stage fit makes it, against the reference estimator, which takes it row by row.

    signs             `lens.jacobian`: signs at every position, attention to other positions constant
    signs, all        the same without `OwnPosition`: other positions' signs are noise
    signs, sum        one sign vector a sequence: the derivatives of this and all later positions, summed
    one-hot           a backward pass for each row of J, at all positions at once: the same mean without noise of signs
    one-hot, sum      the reference estimator: prompts of 128 tokens, ceil(d_model / 8) backward passes over 8 copies of
                      a prompt, the derivatives of this and all later positions summed

`agreement` is the cosine between the maps of two halves of the texts, `cosine` that with the one-hot maps of the same
definition. Both take the rows of `--rows`, evenly spaced, and one-hot computes no others: its time is scaled up to all
rows. `forwards` is the CPU time relative to that of a forward pass over `signs`' tokens. The noise of a mean falls as
1 / time, so `half_s`, the time at which the noise of each half would equal the mean, compares estimators of different
cost: (1 / agreement - 1) * time.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import common
from lensmith.hub.models import pin_model
from lensmith.lens import jacobian
from lensmith.settings import params_yaml
from lensmith.settings.sections import FitParams
from lensmith.source import corpus, prefetch
from lensmith.source.backbone import Backbone

PROMPT, TOKENS = 128, 1024  # of a prompt, as in the reference estimator, and of the copies in a backward pass
COLUMNS = ("estimator", "texts", "layer", "agreement", "cosine", "cpu_s", "forwards", "half_s")


def by_signs(backbone: Backbone, tokens: NDArray[np.uint32], settings: FitParams) -> Tensor:
    """The sums of `jacobian.estimate` as maps: (2, L - 1, d_model, d_model)."""
    return jacobian.estimate(backbone, tokens, settings).halves.mT


def one_hot(backbone: Backbone, tokens: NDArray[np.uint32], rows: Tensor, *, own_position: bool) -> Tensor:
    """Sums over even and odd sequences of some rows of J: (2, L - 1, rows, d_model)."""
    d_model, read = backbone.d_model, slice(jacobian.LEFT_OUT, None)
    halves, n_copies = torch.zeros(2, backbone.n_layers - 1, len(rows), d_model), TOKENS // tokens.shape[1]
    for i, seq in enumerate(tokens):
        copies = torch.from_numpy(seq.astype(np.int64)).expand(n_copies, -1)
        resid = jacobian.residuals(backbone, copies, own_position=own_position)
        for start in range(0, len(rows), n_copies):
            part = rows[start : start + n_copies]
            cotangent = torch.zeros_like(resid[-1])
            cotangent[: len(part), read].scatter_(
                2, part[:, None, None].expand(-1, tokens.shape[1] - jacobian.LEFT_OUT, 1), 1.0
            )
            gradients = torch.autograd.grad(resid[-1], resid[:-1], cotangent, retain_graph=True)
            for layer, gradient in enumerate(gradients):
                halves[i % 2, layer, start : start + len(part)] += gradient[: len(part), read].sum(1)
    return halves


def measured(backbone: Backbone, tokens: NDArray[np.uint32], args: argparse.Namespace) -> list[tuple[object, ...]]:
    """The rows of all estimators."""
    fit = params_yaml.read(common.REPOSITORY / "params.yaml")["atlas"].fit
    settings = fit.model_copy(update={"kind": "jacobian", "jacobian_seqs": args.seqs, "jacobian_agreement": 1.0})
    summed = settings.model_copy(update={"jacobian": "future_sum"})
    d_model = backbone.d_model
    rows = torch.linspace(0, d_model - 1, min(args.rows, d_model)).long()
    texts, prompts = tokens[: args.seqs], tokens[: args.prompts, :PROMPT]

    def all_positions() -> Tensor:
        with mock.patch.object(jacobian, "OwnPosition", nullcontext):
            return by_signs(backbone, texts, settings)

    estimators: dict[str, tuple[int, float, Callable[[], Tensor]]] = {
        "one-hot": (args.exact, d_model / len(rows), lambda: one_hot(
            backbone, texts[: args.exact], rows, own_position=True)),
        "one-hot, sum": (args.prompts, d_model / len(rows), lambda: one_hot(
            backbone, prompts, rows, own_position=False)),
        "signs": (args.seqs, 1.0, lambda: by_signs(backbone, texts, settings)),
        "signs, all": (args.seqs, 1.0, all_positions),
        "signs, sum": (args.seqs, 1.0, lambda: by_signs(backbone, texts, summed)),
    }  # fmt: skip
    text = torch.from_numpy(texts[:1].astype(np.int64))
    forward = common.in_turns({"forward": lambda: backbone.capture(text, text[:, :1] * 0)}, 3)["forward"].median
    maps: dict[str, Tensor] = {}
    table: list[tuple[object, ...]] = []
    for name, (n_texts, scale, estimate) in estimators.items():
        began = common.clock()
        found = estimate()
        spent = scale * (common.clock() - began)
        maps[name] = found if len(rows) == found.shape[2] else found[:, :, rows]
        even, odd = maps[name].flatten(2)
        target = maps["one-hot, sum" if name.endswith("sum") else "one-hot"].sum(0).flatten(1)
        agreement = torch.cosine_similarity(even, odd, dim=-1)
        cosine = torch.cosine_similarity(even + odd, target, dim=-1)
        forwards = spent / (forward * args.seqs)
        table += [
            (name, n_texts, layer, a, None if name.startswith("one-hot") else c, spent, forwards, (1 / a - 1) * spent)
            for layer, (a, c) in enumerate(zip(agreement.tolist(), cosine.tolist(), strict=True), 1)
        ]
        print(name, f"{spent:.0f} s, {forwards:.1f} forwards", [round(a, 3) for a in agreement.tolist()],
              [round(c, 3) for c in cosine.tolist()], flush=True)  # fmt: skip
    return table


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The arguments that name a model and its text."""
    cli = common.parser(doc)
    cli.add_argument("--model", default="demo/atlas", help="folder of the model")
    cli.add_argument("--corpus", type=Path, help="a packed corpus as stage prefetch writes it; without it, atlas's")
    return cli


def subject(args: argparse.Namespace) -> tuple[Backbone, Path]:
    """The model, without gradients of weights, and its packed corpus."""
    settings = params_yaml.read(common.REPOSITORY / "params.yaml")["atlas"]
    settings = settings.model_copy(update={"source": settings.source.model_copy(update={"path": args.model})})
    if (packed := args.corpus) is None:
        packed = common.WORK / "jacobian_atlas"
        prefetch.build(settings, packed)
    backbone = Backbone.load(settings.source, pin_model(settings.source))
    backbone.model.requires_grad_(False)
    return backbone, packed


def main(arguments: Sequence[str] | None = None) -> None:
    cli = parser(__doc__)
    cli.add_argument("--seqs", type=int, default=64, help="sequences of the estimators by signs")
    cli.add_argument("--prompts", type=int, default=16, help="prompts of the reference estimator")
    cli.add_argument("--exact", type=int, default=16, help="sequences of the one-hot estimator")
    cli.add_argument("--rows", type=int, default=10_000, help="rows of each map that one-hot computes, at most")
    args = common.parsed(cli, arguments)
    if args.quick:
        args.seqs, args.prompts, args.exact, args.rows = 4, 2, 2, 8
    backbone, packed = subject(args)
    table = measured(backbone, corpus.read_tokens(packed), args)
    name = f"jacobian_{Path(args.model).name}"
    text = [f"{Path(args.model).name}, {args.seqs} sequences.", common.table(COLUMNS, table)]
    common.publish(args.out, name, "The mean Jacobian, by estimator", text, COLUMNS, table)


if __name__ == "__main__":
    main()
