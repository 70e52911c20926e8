"""The curves behind the default recipe: one setting of section `fit` varies, all others are as in params.yaml.

Each point is a fit of entry `atlas` on the same text, measured as held-out KL(final || lens), the mean over blocks
1..L-1 in bits, on sequences that early stopping did not see. `docs/performance.md` says what follows.

    python -m benchmarks.recipe                          every curve, half an hour of one core
    python -m benchmarks.recipe --only rank lr           some of them
    python -m benchmarks.recipe --set optimizer=muon     around another base
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import common, quality_per_second
from benchmarks.contenders import settings_of
from lensmith.hub import models
from lensmith.lens import closed_form, moments, objective, training
from lensmith.lens.divergence import LinearKL
from lensmith.lens.lens import Lens
from lensmith.settings.sections import FitParams
from lensmith.source import bank, corpus
from lensmith.source.backbone import Backbone
from lensmith.source.residuals import Residuals

K = 1024
# For each curve: the setting, its values, and other settings that all of its points share.
CURVES: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "adamw": ("lr", (1e-3, 2e-3, 4e-3, 8e-3), {"optimizer": "adamw"}),
    "muon": ("lr", (2e-3, 4e-3, 8e-3), {"optimizer": "muon"}),
    "norm lens start": ("lr", (2.5e-4, 5e-4, 1e-3, 2e-3), {"start": "norm_lens"}),
    "inputs alone": ("lr", (1e-3, 2e-3, 5e-3, 1e-2, 2e-2), {}),  # whitened inputs; what the head reads is not
    "plain coordinates": ("lr", (2.5e-4, 5e-4, 1e-3, 3e-3), {"coordinates": "plain"}),
    "rank": ("rank", (8, 16, 32, 64, 128), {}),
    "positions": ("positions_per_seq", (16, 32, 64, 128, 256, 512), {}),
    "epochs": ("epochs", (0.625, 1.25, 2.5, 5.0), {}),
    "batch": ("batch_seqs", (1, 2, 4, 8), {}),
    "ridge": ("ridge", (1e-4, 1e-3, 1e-2, 1e-1, 1.0), {}),
    "metric": ("metric", ("fisher", "W_U Gram", "identity"), {}),
}
CLOSED_FORM_ONLY = ("ridge", "metric")  # measured before the first step
COLUMNS = ("curve", "setting", "value", "seed", "kl_bits", "kl_bits_25", "kl_bits_50", "kl_bits_75", "cpu_s")


class Study:
    """The model, the text of each seed, and fits on it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        spec = {"entry": "atlas", "model": args.model, "seed": 0, "fit": args.base}
        self.settings = settings_of(spec)
        self.pin = models.pin_model(self.settings.source)
        self.backbone = Backbone.load(self.settings.source, self.pin)
        self.linear_kl = LinearKL(self.backbone.head)
        self.tokens, heldout = corpus.read_tokens(args.corpus), corpus.read_heldout(args.corpus)
        self.validation, self.measured = heldout[: min(16, len(heldout) // 2)], heldout[len(heldout) // 2 :][:64]

    def rows(self, tokens: Any, settings: FitParams) -> Residuals:
        return bank.residuals(self.backbone, self.pin.files, tokens, settings)

    def point(self, curve: str, value: Any, seed: int) -> list[Any]:
        """A row of the table: the fit of one value."""
        name, _, others = CURVES[curve]
        varied = {} if curve in CLOSED_FORM_ONLY else {name: value}
        settings = self.settings.fit.model_copy(update={"seed": seed, **others, **varied})
        n = self.args.tokens // self.tokens.shape[1]
        train, validation = (
            self.rows(self.tokens[seed * n : (seed + 1) * n], settings),
            self.rows(self.validation, settings),
        )
        start = Lens.start(settings, self.backbone.n_layers, self.backbone.d_model)
        began = common.clock()
        with CHANGES[curve](value) if curve in CHANGES else nullcontext():
            if curve in CLOSED_FORM_ONLY:
                lens = closed_form.solve(self.linear_kl, train, validation, start).lens(start)
            else:
                lens = training.fit(self.backbone.head, train, validation, settings, start).lens
        spent = common.clock() - began
        # Positions as in the base, so that the measure does not change with the varied setting.
        kl = objective.validate(self.linear_kl, lens, self.rows(self.measured, self.settings.fit))
        at = [kl.at(depth) for depth in (25, 50, 75)]
        return [curve, name, value, seed, statistics.mean(kl.kl_bits[:-1]), *at, spent]


@contextmanager
def ridge(value: float) -> Iterator[None]:
    """The closed form with this ridge alone."""
    with mock.patch.object(closed_form, "RIDGES", (value,)):
        yield


@contextmanager
def metric(name: str) -> Iterator[None]:
    """The closed form in another metric of the head."""

    def mean(fisher: Any) -> torch.Tensor:
        W = fisher.head.W_U.double()
        return W.T @ W / len(W) if name == "W_U Gram" else torch.eye(W.shape[1], dtype=W.dtype)

    if name == "fisher":
        yield
        return
    with mock.patch.object(moments.FisherSum, "mean", mean):
        yield


@contextmanager
def inputs_alone(_lr: float) -> Iterator[None]:
    """A fit in coordinates that are whitened on one side."""
    solve = closed_form.solve

    def one_side(*args: Any) -> closed_form.Solution:
        coordinates = solve(*args)
        return dataclasses.replace(coordinates, head_whitening=torch.eye(len(coordinates.head_whitening)))

    with mock.patch.object(closed_form, "solve", one_side):
        yield


# Curves over what is no setting: what is changed while a point is measured.
CHANGES: dict[str, Callable[[Any], AbstractContextManager[None]]] = {
    "ridge": ridge,
    "metric": metric,
    "inputs alone": inputs_alone,
}


def main(arguments: Sequence[str] | None = None) -> None:
    cli = common.parser(__doc__)
    cli.add_argument("--only", nargs="+", choices=list(CURVES), default=list(CURVES))
    cli.add_argument("--tokens", type=int, default=64 * K)
    cli.add_argument("--seeds", type=int, default=1)
    cli.add_argument("--model", default="demo/atlas")
    cli.add_argument("--corpus", type=Path)
    args = common.parsed(cli, arguments)
    args.base = common.settings_of(args.set)
    args.corpus = args.corpus or quality_per_second.packed_text(common.WORK / "quality", args.tokens * args.seeds)
    study, rows = Study(args), []
    for curve in args.only:
        for value in CURVES[curve][1][: 2 if args.quick else None]:
            rows += [study.point(curve, value, seed) for seed in range(args.seeds)]
            print(f"{curve} {value}: {rows[-1][4]:.4f} bits, {rows[-1][-1]:.0f} s", file=sys.stderr)
        report(args, rows)  # after each curve: a long run may be cut short


def report(args: argparse.Namespace, rows: list[list[Any]]) -> None:
    shown, curves = [], list(dict.fromkeys(row[0] for row in rows))
    for curve in curves:
        for value in dict.fromkeys(row[2] for row in rows if row[0] == curve):
            group = [row for row in rows if row[0] == curve and row[2] == value]
            kl = [row[4] for row in group]
            depths = " / ".join(f"{statistics.median(row[i] for row in group):.3f}" for i in (5, 6, 7))
            spread = max(kl) - min(kl) if len(kl) > 1 else None
            shown.append(
                [curve, f"{group[0][1]} {value}", f"{statistics.median(kl):.4f}", spread, depths, group[0][-1]]
            )
    base = ", ".join(f"{name} {value}" for name, value in args.base.items()) or "as params.yaml has it"
    text = [
        f"{args.tokens} tokens of text, {args.seeds} seed(s); base: {base}.",
        common.table(("curve", "point", "KL bits", "spread", "25 / 50 / 75 %", "CPU-seconds of the fit"), shown),
    ]
    common.publish(args.out, "recipe", "Curves of the recipe", text, COLUMNS, rows)
    pictures(args.out, rows)


def pictures(out: Path, rows: list[list[Any]]) -> None:
    """One picture for each setting that is a number, a line for each of its curves."""
    for setting in dict.fromkeys(row[1] for row in rows if isinstance(row[2], int | float)):
        points = [row for row in rows if row[1] == setting]
        lines = [_line([row for row in points if row[0] == curve]) for curve in dict.fromkeys(row[0] for row in points)]
        common.chart(out / f"recipe_{setting}.svg", lines, setting, "held-out KL, bits")


def _line(rows: list[list[Any]]) -> common.Line:
    values = list(dict.fromkeys(row[2] for row in rows))
    kl = [[row[4] for row in rows if row[2] == value] for value in values]
    return common.Line(
        rows[0][0], values, [statistics.median(k) for k in kl], [min(k) for k in kl], [max(k) for k in kl]
    )


if __name__ == "__main__":
    main()
