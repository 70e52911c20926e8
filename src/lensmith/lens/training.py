"""Training a lens: every layer's translator against the model's own final distribution.

A fit begins at the norm lens or at the closed form, and goes on in the coordinates that the settings name. Batches,
draws and learning rate are functions of the step alone, so a fit that was stopped goes on from a checkpoint bit for bit
(`checkpoint`). `objective` says what is minimised.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lensmith.lens import closed_form, objective, optimizers
from lensmith.lens.checkpoint import Checkpoints, LogRow, State
from lensmith.lens.closed_form import Solution
from lensmith.lens.coordinates import Coordinates
from lensmith.lens.divergence import BITS, LinearKL
from lensmith.lens.lens import Lens, rank_of
from lensmith.lens.objective import Validation
from lensmith.lens.prism import Prism
from lensmith.lens.schedule import Schedule
from lensmith.process import stopping
from lensmith.process.errors import NumericError
from lensmith.process.progress import Progress
from lensmith.process.stopping import Interrupted, Stop
from lensmith.settings.sections import FitParams
from lensmith.source import skeleton
from lensmith.source.head import Head
from lensmith.source.residuals import Batch, Residuals, read_ahead

# A fit whose held-out KL is this many times the best, or this many times FLOOR bits where the best is less, is lost.
DIVERGED, FLOOR = 10.0, 0.1
# Numbers in W_U from which `products: auto` may take bfloat16. A smaller head stays in the cache in float32, where its
# products are a small part of a step, and its lens is then the same on every CPU.
LARGE_HEAD = 2**23
COPIES = 6  # of a lens in training: itself, its gradient, two moments, the start and the best


@dataclass(frozen=True)
class Fit:
    """A fitted lens and what was measured while it was fit."""

    lens: Lens
    log: list[LogRow]
    steps: int
    best_step: int
    stopped_early: bool
    schedule: Schedule
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
    head: Head,
    train: Residuals,
    held_out: Residuals,
    settings: FitParams,
    start: Lens,
    *,
    bases: Bases | None = None,
    checkpoints: Checkpoints | None = None,
) -> Fit:
    """Fit `start`, a lens as `Lens.start` made it, on training rows; return its best form on held-out rows.

    `bases` spares what an earlier fit of the same model, norm and at least this rank has computed. `checkpoints` are
    those of this very fit: it goes on from the newest.

    Raises:
        NumericError: KL left the finite numbers, or the fit diverged.
        ResourceError: a checkpoint does not fit on the disk.
        Interrupted: TERM or INT came; there is a checkpoint of the last step.
    """
    bases, checkpoints = bases or Bases(), checkpoints or Checkpoints()
    return _Run(head, train, held_out, settings, start, bases=bases, checkpoints=checkpoints).go()


def needs_solution(settings: FitParams) -> bool:
    """Whether a fit starts from second moments, or is trained in their coordinates."""
    if settings.kind in {"identity", "temperature"}:
        return False
    return settings.start == "closed_form" or settings.coordinates == "whitened"


def products_of(settings: FitParams, head: Head) -> torch.dtype:
    """The dtype of the head's products in a training step.

    `auto` is bfloat16 where the hardware multiplies it and the head is large enough to gain, else float32.
    """
    if settings.products == "auto":
        is_faster = head.W_U.numel() >= LARGE_HEAD and skeleton.has_fast_bf16(head.W_U.device)
        return torch.bfloat16 if is_faster else torch.float32
    return torch.float32 if settings.products == "float32" else torch.bfloat16


def trainable(settings: FitParams) -> tuple[str, ...]:
    """The parameters that a kind of lens may change."""
    names = {"identity": (), "temperature": (), "bias": ("c",)}.get(settings.kind, ("U", "V", "c"))
    if settings.scale and "U" in names:
        names += ("scale",)
    return names if settings.kind == "identity" or not settings.temperature else (*names, "log_tau")


def memory(settings: FitParams, n_layers: int, d_model: int) -> int:
    """Bytes that the fit of a lens holds on its device: fp32."""
    lens = (n_layers - 1) * (2 * d_model * rank_of(settings, d_model) + 2 * d_model)
    whitening = n_layers * d_model**2 if settings.coordinates == "whitened" else 0
    return 4 * (COPIES * lens + whitening)


class _Run:
    """One fit, from its settings to its end."""

    def __init__(
        self,
        head: Head,
        train: Residuals,
        held_out: Residuals,
        settings: FitParams,
        start: Lens,
        *,
        bases: Bases,
        checkpoints: Checkpoints,
    ) -> None:
        self.head, self.train, self.held_out, self.settings = head, train, held_out, settings
        self.start, self.bases, self.checkpoints = start, bases, checkpoints
        products = products_of(settings, head)
        self.products = str(products).removeprefix("torch.")
        self.linear_kl = LinearKL(head, products)
        # What chooses (ridges, temperatures, the best step) is computed in full precision.
        self.exact_kl = self.linear_kl if products == torch.float32 else LinearKL(head)
        self.n_blocks = start.n_layers - 1
        self.names = trainable(settings) if self.n_blocks else ()
        self.schedule = Schedule(settings, train.n_seqs, self.n_blocks, trains=bool(self.names))

    def go(self) -> Fit:
        state = self.checkpoints.newest(self.start)
        if state is None or not state.finished:
            done = 0 if state is None else state.step
            with Progress(f"fit {self.settings.kind}", self.schedule.total_steps, "step", done=done) as progress:
                state = self._trained(state, progress)
        # Rows are shared by the fits of a ladder, which must count on from here even if this one was over already.
        self.train.tokens_forwarded = state.tokens_forwarded
        return Fit(
            lens=state.best_lens.to(self.head.W_U.device),
            log=state.log,
            steps=state.step,
            best_step=state.best_step,
            stopped_early=state.step < self.schedule.total_steps,
            schedule=self.schedule,
            positions_used=self._positions(state.step),
            tokens_forwarded=state.tokens_forwarded,
            best=state.best,
            settings=self.settings,
            products=self.products,
            ridge=state.ridge,
        )

    def _trained(self, kept: State | None, progress: Progress) -> State:
        """The state after the last step, from the first step or from `kept` on."""
        ridge, self.start, self.coordinates = self._begin(self.start, self.bases)
        state = self._first(ridge) if kept is None else kept
        # Contiguous, as a checkpoint has them: the last bits of a product depend on how its factors lie in memory.
        self.trained = {name: tensor.to(self.head.W_U.device).contiguous() for name, tensor in state.trained.items()}
        state.trained = self.trained
        # Views of the stacked tensors: the optimizer skips a layer that has no gradient, as one parameter could not.
        self.leaves = {name: list(self.trained[name]) for name in self.names}
        self.optimizers = optimizers.make(self.settings, self.leaves)
        if kept is None:
            self.checkpoints.reserve(self.trained)
        else:
            progress.note(f"fit {self.settings.kind}: goes on from its checkpoint of step {kept.step}")
            self.train.tokens_forwarded = kept.tokens_forwarded
            optimizers.restore(self.optimizers, kept.optimizers)
        progress.advance(0, kl_bits=state.best.at_depths)
        plan = [self.schedule.batch(step) for step in range(state.step, self.schedule.total_steps)]
        with stopping.deferred() as stop:
            for batch in read_ahead(self.train, plan):
                self._step(batch.to(self.head.W_U.device), state)
                progress.advance()
                if self.schedule.is_judged(state.step):
                    self._judge(state, progress)
                    if state.waited >= self.settings.patience:
                        break
                self._keep(state, stop)
        state.finished = True
        self._save(state)
        return state

    def _first(self, ridge: tuple[float, ...] | None) -> State:
        """Before the first step; the start is the best so far."""
        state = State(
            step=0,
            trained=self.coordinates.enter(self.start),
            optimizers=[],
            best_lens=self.start,
            best=self._validate(self.start, 0),
            best_step=0,
            waited=0,
            log=[],
            train_kl=[],
            ridge=ridge,
            tokens_forwarded=self.train.tokens_forwarded,
        )
        self._record(state, state.best, is_best=True)
        return state

    def _judge(self, state: State, progress: Progress) -> None:
        """Validate, and keep the lens if it is the best so far."""
        lens = self.coordinates.leave(self.trained, self.start)
        found = self._validate(lens, state.step)
        is_better = found.score < state.best.score
        self._record(state, found, is_best=is_better)
        progress.advance(0, kl_bits=found.at_depths)
        if is_better:
            state.best_lens, state.best, state.best_step, state.waited = lens, found, state.step, 0
            return
        state.waited += 1
        if found.score > DIVERGED * max(state.best.score, FLOOR):
            raise NumericError(
                f"fit: held-out KL is {found.score:.2f} bits at step {state.step}, it was {state.best.score:.2f} at "
                f"step {state.best_step}: the fit diverges. A smaller fit.lr than {self.settings.lr:g} or "
                "more fit.warmup may help. No lens was written."
            )

    def _keep(self, state: State, stop: Stop) -> None:
        """Write a checkpoint if it is time for one, or if a signal came: then also stop."""
        if stop.signal is None:
            if self.checkpoints.is_due:
                self._save(state)
            return
        self._save(state, wait=True)
        kept = "its checkpoint is kept. `dvc repro` goes on from there." if self.checkpoints.folder else "not kept."
        raise Interrupted(stop.signal, f"fit stopped after step {state.step} of {self.schedule.total_steps}; {kept}")

    def _save(self, state: State, *, wait: bool = False) -> None:
        state.optimizers = [optimizer.state_dict()["state"] for optimizer in self.optimizers]
        state.tokens_forwarded = self.train.tokens_forwarded
        self.checkpoints.save(state, wait=wait)

    def _begin(self, start: Lens, bases: Bases) -> tuple[tuple[float, ...] | None, Lens, Coordinates]:
        """The ridges of the closed form, the lens before the first step, and what it is trained in."""
        solution, prism, ridge = bases.solution, bases.prism, None
        if solution is None and self.names and needs_solution(self.settings):
            solution = closed_form.solve(self.exact_kl, self.train, self.held_out, start)
        if self.names and self.settings.start == "closed_form":
            if solution is not None:
                ridge, start = solution.ridge, solution.lens(start)
            if "log_tau" in self.names:
                start = start.having({"log_tau": closed_form.temperatures(self.exact_kl, start, self.train)})
        if self.settings.prism == "precondition" and prism is not None:
            mean = prism.mean.expand(self.n_blocks, -1)
            return ridge, start, Coordinates(mean, *prism.basis())
        if solution is not None and self.names and self.settings.coordinates == "whitened":
            return ridge, start, Coordinates(solution.mean[:-1], solution.whitening, solution.head_whitening)
        return ridge, start, Coordinates.plain(start)

    def _step(self, batch: Batch, state: State) -> None:
        step = state.step
        blocks = self.schedule.blocks(step)
        x = objective.normed(self.head, batch.resid, blocks, self.start.norm) - self.coordinates.mean[blocks, None]
        U, V = self.coordinates.factors(self.trained)
        translator = {name: tensor[blocks] for name, tensor in (self.trained | {"U": U, "V": V}).items()}
        teacher = objective.teacher_of(self.head, batch)
        kl, gradients = objective.layer_gradients(self.linear_kl, teacher, x, translator)
        self._check(kl, blocks, step)
        state.train_kl.append(float(kl.mean()) * BITS)
        weights = {"l2_smallness": self.settings.l2_smallness, "smooth_depth": self.settings.smooth_depth}
        if any(weights.values()):
            for name, value in objective.penalty_gradients(U, V, self.trained["c"], blocks, **weights).items():
                gradients[name] += value
        gradients = self.coordinates.pull(gradients, blocks)
        place = {block: i for i, block in enumerate(blocks)}
        for name in self.names:
            for block, leaf in enumerate(self.leaves[name]):
                leaf.grad = gradients[name][place[block]] / len(blocks) if block in place else None
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.learning_rate(step)
            optimizer.step()
        state.step += 1

    def _check(self, kl: Tensor, blocks: list[int], step: int) -> None:
        if not kl.isfinite().all():
            block = blocks[int(kl.isfinite().logical_not().nonzero()[0])]
            seqs = self.schedule.batch(step)
            raise NumericError(
                f"fit: KL of layer {block + 1} is not finite at step {step} (sequences {seqs.min()}..{seqs.max()}). "
                "A smaller fit.lr may help. No lens was written."
            )

    def _validate(self, lens: Lens, step: int) -> Validation:
        found = objective.validate(self.exact_kl, lens, self.held_out)
        if not math.isfinite(found.score):
            raise NumericError(f"fit: held-out KL is {found.score} at step {step}. No lens was written.")
        return found

    def _positions(self, steps: int) -> int:
        return steps * self.schedule.batch_seqs * self.train.positions_per_seq

    def _record(self, state: State, found: Validation, *, is_best: bool) -> None:
        since, state.train_kl = state.train_kl, []
        state.log.append(
            LogRow(
                step=state.step,
                positions=self._positions(state.step),
                lr=self.schedule.learning_rate(state.step - 1) if state.step else 0.0,
                train_kl_bits=sum(since) / len(since) if since else None,
                val_kl_bits_25=found.at(25),
                val_kl_bits_50=found.at(50),
                val_kl_bits_75=found.at(75),
                val_kl_bits_mean=sum(found.kl_bits) / max(1, len(found.kl_bits) - 1),
                best=int(is_best),
            )
        )
