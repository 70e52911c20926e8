"""Training a lens: every layer's translator against the model's own final distribution.

Batches, draws and learning rate are functions of the step alone. `objective` says what is minimised.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lensmith.draws import Stream
from lensmith.edge.params import FitParams
from lensmith.errors import NumericError
from lensmith.lens import objective
from lensmith.lens.depth import PERCENTILES
from lensmith.lens.divergence import BITS
from lensmith.lens.objective import Validation
from lensmith.lens.translators import Lens
from lensmith.source.backbone import Head
from lensmith.source.bank import Rows


@dataclass(frozen=True)
class LogRow:
    """One line of fit_log.csv: a validation, and the training since the one before."""

    step: int
    positions: int  # trained on so far, repeats counted
    lr: float
    train_kl_bits: float | None
    val_kl_bits_25: float
    val_kl_bits_50: float
    val_kl_bits_75: float
    val_kl_bits_mean: float
    best: int


@dataclass(frozen=True)
class Fit:
    """A fitted lens and what was measured while it was fit."""

    lens: Lens
    log: list[LogRow]
    steps: int
    best_step: int
    stopped_early: bool
    total_steps: int
    warmup_steps: int
    batch_seqs: int
    layers_per_step: int
    positions_used: int
    tokens_forwarded: int  # through the frozen model, for training rows
    best: Validation


def fit(head: Head, train: Rows, held_out: Rows, settings: FitParams, start: Lens) -> Fit:
    """Train `start` on `train`, keep the step that is best on `held_out`.

    Raises:
        NumericError: the loss is not finite. The optimizer step that would have used it was not taken.
    """
    return _Run(head, train, held_out, settings, start).go()


def learning_rate(settings: FitParams, step: int, total_steps: int) -> float:
    """Linear warm-up to `lr`, then a cosine to zero at `total_steps`."""
    warmup = warmup_steps(settings, total_steps)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))


def warmup_steps(settings: FitParams, total_steps: int) -> int:
    return math.ceil(settings.warmup * total_steps)


def trainable(settings: FitParams) -> tuple[str, ...]:
    """The parameters that a kind of lens may change."""
    names = {"identity": (), "temperature": (), "bias": ("c",)}.get(settings.kind, ("U", "V", "c"))
    if settings.scale and "U" in names:
        names += ("scale",)
    return names if settings.kind == "identity" or not settings.temperature else (*names, "log_tau")


class _Run:
    """The state of one fit."""

    def __init__(self, head: Head, train: Rows, held_out: Rows, settings: FitParams, start: Lens) -> None:
        self.head, self.train, self.held_out, self.settings, self.lens = head, train, held_out, settings, start
        self.batch_seqs = min(settings.batch_seqs, train.n_seqs)
        self.steps_per_epoch = train.n_seqs // self.batch_seqs
        self.n_blocks = start.n_layers - 1
        self.names = trainable(settings) if self.n_blocks else ()
        self.total_steps = settings.epochs * self.steps_per_epoch if self.names else 0
        asked = self.n_blocks if settings.layers_per_step == "all" else settings.layers_per_step
        self.layers_per_step = min(asked, self.n_blocks)
        # Views into the stacked tensors: the optimizer skips a layer that has no gradient, as one parameter could not.
        self.leaves = {name: [getattr(start, name)[block] for block in range(self.n_blocks)] for name in self.names}
        self.log: list[LogRow] = []
        self.train_kl: list[float] = []

    def go(self) -> Fit:
        best_lens, best, best_step, waited, step = self.lens.with_tensors(Tensor.clone), self._validate(0), 0, 0, 0
        self._record(0, best, is_best=True)
        optimizer = self._optimizer()
        for done in tqdm(range(1, self.total_steps + 1), desc="fit", unit="step", disable=None):
            self._step(optimizer, step)
            step = done
            if step % self.settings.validate_every and step != self.total_steps:
                continue
            found = self._validate(step)
            is_better = found.score < best.score
            self._record(step, found, is_best=is_better)
            if is_better:
                best_lens, best, best_step, waited = self.lens.with_tensors(Tensor.clone), found, step, 0
            elif (waited := waited + 1) >= self.settings.patience:
                break
        return Fit(
            lens=best_lens,
            log=self.log,
            steps=step,
            best_step=best_step,
            stopped_early=step < self.total_steps,
            total_steps=self.total_steps,
            warmup_steps=warmup_steps(self.settings, self.total_steps),
            batch_seqs=self.batch_seqs,
            layers_per_step=self.layers_per_step,
            positions_used=step * self.batch_seqs * self.train.positions_per_seq,
            tokens_forwarded=self.train.tokens_forwarded,
            best=best,
        )

    def _optimizer(self) -> torch.optim.Optimizer | None:
        if not self.names:
            return None
        s = self.settings
        # Decay pulls to zero, and a factor of zero is no lens: `scale` rests at one.
        groups = [
            {"params": self.leaves[name], "weight_decay": 0.0 if name == "scale" else s.weight_decay}
            for name in self.names
        ]
        return torch.optim.AdamW(groups, lr=s.lr, betas=(s.beta1, s.beta2))

    def _step(self, optimizer: torch.optim.Optimizer | None, step: int) -> None:
        assert optimizer is not None
        seqs, blocks = self._batch(step), self._blocks(step)
        resid = self.train.resid_post(seqs)
        kl, gradients = objective.layer_gradients(self.head, self.lens, resid, blocks)
        if not kl.isfinite().all():
            block = blocks[int(kl.isfinite().logical_not().nonzero()[0])]
            raise NumericError(
                f"fit: KL of layer {block + 1} is not finite at step {step} (sequences {seqs.min()}..{seqs.max()}). "
                "A smaller fit.lr may help. No lens was written."
            )
        self.train_kl.append(float(kl.mean()) * BITS)
        for block, grad in gradients.items():
            penalty = objective.penalty_gradients(
                self.lens, block, self.settings.l2_smallness, self.settings.smooth_depth
            )
            for name, value in penalty.items():
                grad[name] += value
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, step, self.total_steps)
        for name in self.names:
            for block, leaf in enumerate(self.leaves[name]):
                leaf.grad = gradients[block][name] / len(blocks) if block in gradients else None
        optimizer.step()

    def _batch(self, step: int) -> NDArray[np.int64]:
        epoch, index = divmod(step, self.steps_per_epoch)
        order = Stream(self.settings.seed, "order").permutation(self.train.n_seqs, step=epoch)
        return np.sort(order[index * self.batch_seqs : (index + 1) * self.batch_seqs])

    def _blocks(self, step: int) -> list[int]:
        stream = Stream(self.settings.seed, "layers")
        return [int(block) for block in stream.subset(self.n_blocks, self.layers_per_step, step)]

    def _validate(self, step: int) -> Validation:
        found = objective.validate(self.head, self.lens, self.held_out)
        if not math.isfinite(found.score):
            raise NumericError(f"fit: held-out KL is {found.score} at step {step}. No lens was written.")
        return found

    def _record(self, step: int, found: Validation, *, is_best: bool) -> None:
        since, self.train_kl = self.train_kl, []
        at = " / ".join(f"{found.at(depth):.3f}" for depth in PERCENTILES)
        tqdm.write(f"step {step} of {self.total_steps}: held-out KL {at} bits at 25 / 50 / 75 % of depth")
        self.log.append(
            LogRow(
                step=step,
                positions=step * self.batch_seqs * self.train.positions_per_seq,
                lr=learning_rate(self.settings, step - 1, self.total_steps) if step else 0.0,
                train_kl_bits=sum(since) / len(since) if since else None,
                val_kl_bits_25=found.at(25),
                val_kl_bits_50=found.at(50),
                val_kl_bits_75=found.at(75),
                val_kl_bits_mean=sum(found.kl_bits) / max(1, len(found.kl_bits) - 1),
                best=int(is_best),
            )
        )
