"""Training a lens: every layer's translator against the model's own final distribution.

A fit starts from the norm lens or, with `start: closed_form`, at each layer from the closed form or the lens of the
rung below, whichever has the lower held-out KL. It trains in the coordinates of the settings and keeps each layer as it
was at its best validation, so no layer ends with a higher held-out KL than it started with. Temperatures alone take no
step: Newton's method finds them. Batches, draws and learning rate are functions of the step alone, so a stopped fit
goes on from a checkpoint bit for bit (`checkpoint`). `objective` says what is minimised.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

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
from lensmith.lens.provenance import JacobianRecord
from lensmith.lens.schedule import Schedule
from lensmith.lens.vocabulary import SampledVocabulary
from lensmith.process import stopping
from lensmith.process.errors import NumericError
from lensmith.process.progress import Progress, track
from lensmith.process.stopping import Interrupted
from lensmith.settings.sections import FitParams
from lensmith.source import skeleton
from lensmith.source.head import Head
from lensmith.source.residuals import Batch, Residuals, read_ahead

# A fit has diverged when its held-out KL is above DIVERGED x max(best, FLOOR bits), so 10 x max(best, 0.1 bits).
DIVERGED, FLOOR = 10.0, 0.1
# Numbers in W_U from which `products: auto` may take bfloat16. A smaller head stays in the cache in float32, where its
# products are a small part of a step, and its lens is then the same on every CPU.
LARGE_HEAD = 2**23
BIAS_POSITIONS = 128  # of a step that trains no U, V: a bias and a temperature need few
COPIES = 6  # of a lens in training: itself, its gradient, two moments, the start and the best


@dataclass(frozen=True)
class Fit:
    """A fitted lens and what was measured while it was fit."""

    lens: Lens
    log: list[LogRow]
    steps: int
    best_step: int
    schedule: Schedule
    positions_used: int
    tokens_forwarded: int  # through the frozen model, for training residuals
    best: Validation
    settings: FitParams  # as they ran
    vocabulary: str  # of a step's softmax: exact or sampled
    products: str  # dtype of the head's products
    ridge: tuple[float, ...] | None  # of the closed form by block, None where the fit began at the norm lens
    jacobian: JacobianRecord | None = None

    @property
    def stopped_early(self) -> bool:
        """Whether patience ended the fit before its schedule."""
        return self.steps < self.schedule.total_steps


@dataclass(frozen=True)
class Task:
    """What a fit reads and does not change."""

    head: Head
    train: Residuals
    held_out: Residuals
    settings: FitParams
    names: tuple[str, ...]  # of the trained tensors
    schedule: Schedule
    step_kl: LinearKL  # of training steps, in `products`
    exact_kl: LinearKL  # of ridges and validation, in float32
    vocabulary: SampledVocabulary | None  # of training steps; None for all tokens
    solution: Solution | None  # the closed form, where it is known already
    prism: Prism | None
    below: "Fit | None"  # the rung below of the ladder

    def positions(self, steps: int) -> int:
        """Positions that this many steps train on, repeats counted."""
        return steps * self.schedule.batch_seqs * self.train.positions_per_seq


def fit(
    head: Head,
    train: Residuals,
    held_out: Residuals,
    settings: FitParams,
    start: Lens,
    *,
    vocabulary: SampledVocabulary | None = None,
    solution: Solution | None = None,
    prism: Prism | None = None,
    below: Fit | None = None,
    checkpoints: Checkpoints | None = None,
) -> Fit:
    """Fit `start`, made by `Lens.start`, on training residuals; return each layer as it was at its best validation.

    Args:
        vocabulary: draws the tokens of each step's softmax; None for all tokens.
        solution: the closed form of the same model and norm, with at least the rank of `start`; None to compute it.
        prism: of the same model, for a fit that is preconditioned.
        below: the fit of a kind with fewer parameters on the same residuals.
        checkpoints: of the same fit, which goes on from the newest.

    Raises:
        NumericError: KL is not finite, or the fit diverged.
        ResourceError: a checkpoint does not fit on the disk.
        Interrupted: TERM or INT came; there is a checkpoint of the last step.
    """
    names, products = trainable(settings) if start.n_layers > 1 else (), products_of(settings, head)
    schedule = Schedule(settings, train.n_seqs, start.n_layers - 1, trains=bool(names))
    step_kl = LinearKL(head, products)
    exact_kl = step_kl if products == torch.float32 else LinearKL(head)
    task = Task(head, train, held_out, settings, names, schedule, step_kl, exact_kl, vocabulary, solution, prism, below)
    checkpoints = checkpoints or Checkpoints()
    state = checkpoints.newest(start)
    if state is None or not state.finished:
        done, total = 0 if state is None else state.step, schedule.total_steps
        validations = (state is None) + sum(map(schedule.is_judged, range(done + 1, total + 1)))
        with Progress(f"fit {settings.kind}", total, "step", done=done, extras=validations) as progress:
            state = train_steps(task, start, checkpoints, state=state, progress=progress)
    # The fits of a ladder share `train`: the next one counts on from here, also where this one was finished before.
    train.tokens_forwarded = state.tokens_forwarded
    return Fit(
        lens=state.best_lens.to(head.W_U.device),
        log=state.log,
        steps=state.step,
        best_step=state.best_step,
        schedule=schedule,
        positions_used=task.positions(state.step),
        tokens_forwarded=state.tokens_forwarded,
        best=state.best,
        settings=settings,
        vocabulary="exact" if vocabulary is None else "sampled",
        products=str(products).removeprefix("torch."),
        ridge=state.ridge,
    )


def measured(
    head: Head, lens: Lens, held_out: Residuals, settings: FitParams, mean_of: JacobianRecord | None = None
) -> Fit:
    """The Fit of a lens that was made without steps: imported, or the mean of Jacobians. It is validated once.

    Raises:
        NumericError: KL is not finite.
    """
    best = objective.validate(LinearKL(head), lens, held_out)
    check_finite(lens, best, step=0)
    return Fit(
        lens=lens,
        log=[log_row(best, is_best=True, kept=best)],
        steps=0,
        best_step=0,
        schedule=Schedule(settings, held_out.n_seqs, lens.n_layers - 1, trains=False),
        positions_used=mean_of.positions if mean_of else 0,
        tokens_forwarded=mean_of.tokens if mean_of else 0,
        best=best,
        settings=settings,
        vocabulary="exact",
        products="float32",
        ridge=None,
        jacobian=mean_of,
    )


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
        is_bf16 = head.W_U.numel() >= LARGE_HEAD and skeleton.has_fast_bf16(head.W_U.device)
    else:
        is_bf16 = settings.products == "bfloat16"
    return torch.bfloat16 if is_bf16 else torch.float32


def trainable(settings: FitParams) -> tuple[str, ...]:
    """The parameters that the steps of a kind of lens change."""
    names = {"identity": (), "temperature": (), "bias": ("c",)}.get(settings.kind, ("U", "V", "c"))
    if settings.scale and "U" in names:
        names += ("scale",)
    return (*names, "log_tau") if names and settings.temperature else names


def memory(settings: FitParams, n_layers: int, d_model: int) -> int:
    """Bytes that the fit of a lens holds on its device, fp32."""
    lens = (n_layers - 1) * (2 * d_model * rank_of(settings, d_model) + 2 * d_model)
    whitening = n_layers * d_model**2 if settings.coordinates == "whitened" else 0
    sums = 2 * (n_layers - 1) * d_model**2 if settings.kind == "jacobian" else 0
    return 4 * (COPIES * lens + whitening + sums)


def train_steps(task: Task, start: Lens, checkpoints: Checkpoints, *, state: State | None, progress: Progress) -> State:
    """Take the steps after `state`, the checkpoint's, or all of them where it is None; return the last state."""
    settings, schedule, device = task.settings, task.schedule, task.head.W_U.device
    solution = task.solution
    if solution is None and task.names and needs_solution(settings):
        solution = closed_form.solve(task.exact_kl, task.train, task.held_out, start)
    coordinates = coordinates_of(task, start, solution)
    resumed, state = state, state or first_state(task, start, coordinates, solution, progress)
    # Contiguous, as in a checkpoint: the last bits of a product depend on the memory layout of its factors.
    state.trained = {name: tensor.to(device).contiguous() for name, tensor in state.trained.items()}
    # Views of the stacked tensors, one a layer: an optimizer skips a layer without a gradient.
    leaves = {name: list(state.trained[name]) for name in task.names}
    layer_optimizers = optimizers.make(settings, leaves)
    if resumed is None:
        checkpoints.reserve(state.trained)
    else:
        progress.note(f"fit {settings.kind}: goes on from its checkpoint of step {state.step}")
        task.train.tokens_forwarded = state.tokens_forwarded
        optimizers.restore(layer_optimizers, state.optimizers)
    progress.advance(0, kl_bits=state.best.at_depths)
    checkpoints.show(state.log)

    def save(*, wait: bool = False) -> None:
        state.optimizers = [optimizer.state_dict()["state"] for optimizer in layer_optimizers]
        state.tokens_forwarded = task.train.tokens_forwarded
        checkpoints.save(state, wait=wait)

    batches = [schedule.batch(step) for step in range(state.step, schedule.total_steps)]
    with stopping.deferred() as stop:
        for batch in read_ahead(task.train, batches):
            kl_bits, gradients = step_gradients(task, coordinates, state.trained, batch.to(device), state.step)
            rate = schedule.learning_rate(state.step)
            optimizers.take_step(layer_optimizers, leaves, gradients, schedule.blocks(state.step), rate)
            state.train_kl.append(kl_bits)
            state.step += 1
            progress.advance()
            if schedule.is_judged(state.step):
                judge(task, state, coordinates.leave(state.trained, state.best_lens), progress)
                checkpoints.show(state.log)
                if state.waited >= settings.patience:
                    break
            if stop.signal is not None:
                save(wait=True)
                fate = "its checkpoint is kept. `dvc repro` goes on from there." if checkpoints.folder else "not kept."
                raise Interrupted(stop.signal, f"fit stopped after step {state.step} of {schedule.total_steps}; {fate}")
            if checkpoints.is_due:
                save()
    state.finished = True
    save()
    return state


def coordinates_of(task: Task, start: Lens, solution: Solution | None) -> Coordinates:
    """The coordinates of the settings."""
    if task.settings.prism == "precondition" and task.prism is not None:
        return Coordinates(task.prism.mean.expand(start.n_layers - 1, -1), *task.prism.basis())
    if task.settings.coordinates == "whitened" and solution is not None:
        head_whitening = solution.head_whitening
        return Coordinates(solution.mean[:-1], solution.whitening, R=head_whitening, B=head_whitening)
    return Coordinates.plain(start)


def first_state(
    task: Task, start: Lens, coordinates: Coordinates, solution: Solution | None, progress: Progress
) -> State:
    """The state before the first step; the start is the best lens so far."""
    settings, is_closed_form = task.settings, task.settings.start == "closed_form"
    if is_closed_form and task.names and solution is not None:
        start = solution.lens(start)
    if settings.temperature and settings.kind != "identity" and (is_closed_form or settings.kind == "temperature"):
        blocks = track(range(start.n_layers - 1), f"fit {settings.kind}, temperatures", "layer")
        start = start.with_tensors({"log_tau": closed_form.temperatures(task.head, start, task.train, blocks)})
    with progress.extra():
        best = validate(task, start, step=0)
    if is_closed_form and task.below is not None:
        start, best = best_by_layer((start, best), (start.with_map_of(task.below.lens), task.below.best))
    state = State(
        trained=coordinates.enter(start),
        best_lens=start,
        best=best,
        ridge=solution.ridge if is_closed_form and task.names and solution is not None else None,
        tokens_forwarded=task.train.tokens_forwarded,
    )
    record(task, state, best, is_best=True)
    return state


def best_by_layer(kept: tuple[Lens, Validation], tried: tuple[Lens, Validation]) -> tuple[Lens, Validation]:
    """At each layer the one of two lenses with the lower held-out KL; `kept` where both are equal."""
    pairs = list(zip(kept[1].kl_bits, tried[1].kl_bits, strict=True))
    lens = kept[0].with_layers(tried[0], [b < a for a, b in pairs])
    return lens, Validation(tuple(min(pair) for pair in pairs))


def step_gradients(
    task: Task, coordinates: Coordinates, trained: Mapping[str, Tensor], batch: Batch, step: int
) -> tuple[float, dict[str, Tensor]]:
    """Mean KL in bits of the blocks of a step, and the gradient of their summed loss for each trained tensor.

    Raises:
        NumericError: KL of a layer is not finite.
    """
    settings, blocks = task.settings, task.schedule.blocks(step)
    if "U" not in task.names:
        nth = max(1, len(batch.resid) // BIAS_POSITIONS)
        batch = batch.at(slice(step % nth, None, nth))
    x = objective.normed(task.head, batch.resid, blocks, settings.norm) - coordinates.mean[blocks, None]
    U, V, b = coordinates.factors(trained)
    translator = {name: tensor[blocks] for name, tensor in {**trained, "U": U, "V": V, "c": b}.items()}
    teacher, step_kl = objective.teacher_of(task.head, batch), task.step_kl
    if task.vocabulary is not None:
        step_kl = step_kl.restricted_to(*task.vocabulary.draw(teacher, step))
    kl, gradients = objective.layer_gradients(step_kl, teacher, x, translator)
    if not kl.isfinite().all():
        block = blocks[int(kl.isfinite().logical_not().nonzero()[0])]
        seqs = task.schedule.batch(step)
        raise NumericError(
            f"fit: KL of layer {block + 1} is not finite at step {step} (sequences {seqs.min()}..{seqs.max()}). "
            "A smaller fit.lr may help. No lens was written."
        )
    weights = {"l2_smallness": settings.l2_smallness, "smooth_depth": settings.smooth_depth}
    if any(weights.values()):
        for name, value in objective.penalty_gradients(U, V, b, blocks, **weights).items():
            gradients[name] += value
    return float(kl.mean()) * BITS, coordinates.pull(gradients, blocks)


def judge(task: Task, state: State, lens: Lens, progress: Progress) -> None:
    """Validate a lens, and keep each layer that is its best so far.

    Raises:
        NumericError: its KL is not finite, or above DIVERGED times the best.
    """
    with progress.extra():
        validation, before = validate(task, lens, state.step), state.best.score
    state.best_lens, state.best = best_by_layer((state.best_lens, state.best), (lens, validation))
    is_better = state.best.score < before
    record(task, state, validation, is_best=is_better)
    progress.advance(0, kl_bits=validation.at_depths)
    if is_better:
        state.best_step, state.waited = state.step, 0
        return
    state.waited += 1
    if validation.score > DIVERGED * max(state.best.score, FLOOR):
        raise NumericError(
            f"fit: held-out KL is {validation.score:.2f} bits at step {state.step}, it was {state.best.score:.2f} at "
            f"step {state.best_step}: the fit diverges. A smaller fit.lr than {task.settings.lr:g} or "
            "more fit.warmup may help. No lens was written."
        )


def validate(task: Task, lens: Lens, step: int) -> Validation:
    """Held-out KL of a lens. Raises NumericError where it is not finite."""
    validation = objective.validate(task.exact_kl, lens, task.held_out)
    check_finite(lens, validation, step)
    return validation


def check_finite(lens: Lens, validation: Validation, step: int) -> None:
    """NumericError where held-out KL of a layer that the lens reads is not finite."""
    for layer in lens.layers:
        if not math.isfinite(bits := validation.kl_bits[layer - 1]):
            raise NumericError(f"fit: held-out KL is {bits} at step {step}, layer {layer}. No lens was written.")


def record(task: Task, state: State, validation: Validation, *, is_best: bool) -> None:
    """Add a line to the log and clear `train_kl`."""
    train_kl, state.train_kl = state.train_kl, []
    row = log_row(validation, is_best=is_best, kept=state.best)
    state.log.append(
        replace(
            row,
            step=state.step,
            positions=task.positions(state.step),
            lr=task.schedule.learning_rate(state.step - 1) if state.step else 0.0,
            train_kl_bits=sum(train_kl) / len(train_kl) if train_kl else None,
        )
    )


def log_row(validation: Validation, *, is_best: bool, kept: Validation) -> LogRow:
    """The line of a validation before any step; `kept` is that of the layers which are kept so far."""
    quarter, half, three_quarters = (bits if math.isfinite(bits) else None for bits in validation.at_depths)
    return LogRow(
        step=0,
        positions=0,
        lr=0.0,
        train_kl_bits=None,
        val_kl_bits_25=quarter,
        val_kl_bits_50=half,
        val_kl_bits_75=three_quarters,
        val_kl_bits_mean=validation.mean,
        best=int(is_best),
        kept_kl_bits_mean=kept.mean,
    )
