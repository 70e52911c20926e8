"""Training a lens: every layer's translator against the model's own final distribution.

A fit begins at the norm lens or at the closed form, and goes on in the coordinates that the settings name. Batches,
draws and learning rate are functions of the step alone. `objective` says what is minimised.
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
from lensmith.lens import closed_form, objective, optimizers
from lensmith.lens.closed_form import Solution
from lensmith.lens.coordinates import Coordinates
from lensmith.lens.depth import PERCENTILES
from lensmith.lens.divergence import BITS, LinearKL
from lensmith.lens.objective import Validation
from lensmith.lens.prism import Prism
from lensmith.lens.translators import Lens
from lensmith.source.head import Head
from lensmith.source.loading import has_fast_bf16
from lensmith.source.rows import Batch, Rows, ahead


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
    settings: FitParams  # as they ran
    products: str  # dtype of the head's products
    ridge: tuple[float, ...] | None  # of the closed form by block, None where the fit began at the norm lens


@dataclass(frozen=True)
class Bases:
    """What several fits of one model share: the factors of the closed form, and the model's Prism."""

    solution: Solution | None = None
    prism: Prism | None = None


def fit(
    head: Head, train: Rows, held_out: Rows, settings: FitParams, start: Lens, *, bases: Bases | None = None
) -> Fit:
    """Fit `start`, a lens as `Lens.start` made it, on training rows; return its best form on held-out rows.

    `bases` spares what an earlier fit of the same model, norm and at least this rank has computed.

    Raises:
        NumericError: KL left the finite numbers.
    """
    return _Run(head, train, held_out, settings, start, bases=bases or Bases()).go()


def needs_solution(settings: FitParams) -> bool:
    """Whether a fit starts from second moments, or is trained in their coordinates."""
    if settings.kind in {"identity", "temperature"}:
        return False
    return settings.start == "closed_form" or settings.coordinates == "whitened"


def products_of(settings: FitParams, head: Head) -> torch.dtype:
    """The dtype of the head's products: as asked, and for `auto` bfloat16 where the hardware has it."""
    if settings.products == "auto":
        return torch.bfloat16 if has_fast_bf16(head.W_U.device) else torch.float32
    return torch.float32 if settings.products == "float32" else torch.bfloat16


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

    def __init__(
        self, head: Head, train: Rows, held_out: Rows, settings: FitParams, start: Lens, *, bases: Bases
    ) -> None:
        self.head, self.train, self.held_out, self.settings = head, train, held_out, settings
        products = products_of(settings, head)
        self.products = str(products).removeprefix("torch.")
        self.linear_kl = LinearKL(head, products)
        self.batch_seqs = min(settings.batch_seqs, train.n_seqs)
        self.steps_per_epoch = train.n_seqs // self.batch_seqs
        self.n_blocks = start.n_layers - 1
        self.names = trainable(settings) if self.n_blocks else ()
        self.total_steps = math.ceil(settings.epochs * self.steps_per_epoch) if self.names else 0
        asked = self.n_blocks if settings.layers_per_step == "all" else settings.layers_per_step
        self.layers_per_step = min(asked, self.n_blocks)
        self.ridge: tuple[float, ...] | None = None
        self.start, self.coordinates = self._begin(start, bases)
        self.trained = self.coordinates.enter(self.start)
        # Views of the stacked tensors: the optimizer skips a layer that has no gradient, as one parameter could not.
        self.leaves = {name: list(self.trained[name]) for name in self.names}
        self.log: list[LogRow] = []
        self.train_kl: list[float] = []

    def _begin(self, start: Lens, bases: Bases) -> tuple[Lens, Coordinates]:
        """The lens before the first step, and what it is trained in."""
        solution, prism = bases.solution, bases.prism
        if solution is None and self.names and needs_solution(self.settings):
            solution = closed_form.solve(self.linear_kl, self.train, self.held_out, start)
        if self.names and self.settings.start == "closed_form":
            if solution is not None:
                self.ridge, start = solution.ridge, solution.lens(start)
            if "log_tau" in self.names:
                start = start.having({"log_tau": closed_form.temperatures(self.linear_kl, start, self.train)})
        if self.settings.prism == "precondition" and prism is not None:
            mean = prism.mean.expand(self.n_blocks, -1)
            return start, Coordinates(mean, *prism.basis())
        if solution is not None and self.names and self.settings.coordinates == "whitened":
            return start, Coordinates(solution.mean[:-1], solution.whitening)
        return start, Coordinates.plain(start)

    def go(self) -> Fit:
        best_lens, best, best_step, waited, step = self.start, self._validate(self.start, 0), 0, 0, 0
        self._record(0, best, is_best=True)
        optimizers_ = optimizers.make(self.settings, self.leaves)
        plan = [self._batch(step) for step in range(self.total_steps)]
        bar = tqdm(ahead(self.train, plan), total=self.total_steps, desc="fit", unit="step", disable=None)
        for batch in bar:
            self._step(optimizers_, batch.to(self.head.W_U.device), step)
            step += 1
            if step % self.settings.validate_every and step != self.total_steps:
                continue
            lens = self.coordinates.leave(self.trained, self.start)
            found = self._validate(lens, step)
            is_better = found.score < best.score
            self._record(step, found, is_best=is_better)
            if is_better:
                best_lens, best, best_step, waited = lens, found, step, 0
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
            settings=self.settings,
            products=self.products,
            ridge=self.ridge,
        )

    def _step(self, optimizers_: list[torch.optim.Optimizer], batch: Batch, step: int) -> None:
        blocks = self._blocks(step)
        x = objective.normed(self.head, batch.resid, blocks, self.start.norm) - self.coordinates.mean[blocks, None]
        U, V = self.coordinates.factors(self.trained)
        translator = {name: tensor[blocks] for name, tensor in (self.trained | {"U": U, "V": V}).items()}
        teacher = objective.teacher_of(self.head, batch)
        kl, gradients = objective.layer_gradients(self.linear_kl, teacher, x, translator)
        self._check(kl, blocks, step)
        self.train_kl.append(float(kl.mean()) * BITS)
        weights = {"l2_smallness": self.settings.l2_smallness, "smooth_depth": self.settings.smooth_depth}
        if any(weights.values()):
            for name, value in objective.penalty_gradients(U, V, self.trained["c"], blocks, **weights).items():
                gradients[name] += value
        gradients = self.coordinates.pull(gradients, blocks)
        place = {block: i for i, block in enumerate(blocks)}
        for name in self.names:
            for block, leaf in enumerate(self.leaves[name]):
                leaf.grad = gradients[name][place[block]] / len(blocks) if block in place else None
        for optimizer in optimizers_:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.settings, step, self.total_steps)
            optimizer.step()

    def _check(self, kl: Tensor, blocks: list[int], step: int) -> None:
        if not kl.isfinite().all():
            block = blocks[int(kl.isfinite().logical_not().nonzero()[0])]
            seqs = self._batch(step)
            raise NumericError(
                f"fit: KL of layer {block + 1} is not finite at step {step} (sequences {seqs.min()}..{seqs.max()}). "
                "A smaller fit.lr may help. No lens was written."
            )

    def _batch(self, step: int) -> NDArray[np.int64]:
        epoch, index = divmod(step, self.steps_per_epoch)
        order = Stream(self.settings.seed, "order").permutation(self.train.n_seqs, step=epoch)
        return np.sort(order[index * self.batch_seqs : (index + 1) * self.batch_seqs])

    def _blocks(self, step: int) -> list[int]:
        stream = Stream(self.settings.seed, "layers")
        return [int(block) for block in stream.subset(self.n_blocks, self.layers_per_step, step)]

    def _validate(self, lens: Lens, step: int) -> Validation:
        found = objective.validate(self.linear_kl, lens, self.held_out)
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
