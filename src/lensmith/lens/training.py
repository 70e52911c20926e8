"""Training a lens: every layer's translator against the model's own final distribution.

A fit starts from the norm lens or, with `start: closed_form`, at each layer from the closed form or the lens of the
rung below, whichever has the lower held-out KL. It trains in the coordinates of the settings and keeps each layer as it
was at its best validation, so no layer ends with a higher held-out KL than it started with. Temperatures alone take no
step: Newton's method finds them. Batches, draws and learning rate are functions of the step alone, so a stopped fit
goes on from a checkpoint bit for bit (`checkpoint`). `objective` says what is minimised.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lensmith.lens import closed_form, objective, recipe
from lensmith.lens.checkpoint import Checkpoints, State
from lensmith.lens.closed_form import Solution
from lensmith.lens.coordinates import Coordinates
from lensmith.lens.divergence import BITS, LinearKL
from lensmith.lens.fitted import Fit, check_finite, log_row
from lensmith.lens.lens import Lens
from lensmith.lens.objective import Validation
from lensmith.lens.optimizers import Optimizers
from lensmith.lens.prism import Prism
from lensmith.lens.schedule import Schedule
from lensmith.lens.vocabulary import SampledVocabulary
from lensmith.process import stopping
from lensmith.process.errors import NumericError
from lensmith.process.progress import Progress, track
from lensmith.process.stopping import Interrupted
from lensmith.settings.sections import FitParams
from lensmith.source.head import Head
from lensmith.source.residuals import Batch, Residuals, read_ahead

# A fit has diverged when its held-out KL is above DIVERGED x max(best, FLOOR bits), so 10 x max(best, 0.1 bits).
DIVERGED, FLOOR = 10.0, 0.1
BIAS_POSITIONS = 128  # of a step that trains no U, V: a bias and a temperature need few


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
    below: Fit | None  # the rung below of the ladder

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
    names, products = recipe.trainable(settings) if start.n_layers > 1 else (), recipe.products_of(settings, head)
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


def train_steps(task: Task, start: Lens, checkpoints: Checkpoints, *, state: State | None, progress: Progress) -> State:
    """Take the steps after `state`, the checkpoint's, or all of them where it is None; return the last state."""
    schedule, device = task.schedule, task.head.W_U.device
    coordinates, state, optimizers = begin(task, start, checkpoints, state, progress)

    def save(*, wait: bool = False) -> None:
        state.optimizers, state.tokens_forwarded = optimizers.states(), task.train.tokens_forwarded
        checkpoints.save(state, wait=wait)

    batches = [schedule.batch(step) for step in range(state.step, schedule.total_steps)]
    with stopping.deferred() as stop:
        for batch in read_ahead(task.train, batches):
            kl_bits, gradients = step_gradients(task, coordinates, state.trained, batch.to(device), state.step)
            optimizers.take_step(gradients, schedule.blocks(state.step), schedule.learning_rate(state.step))
            state.train_kl.append(kl_bits)
            state.step += 1
            progress.advance()
            if schedule.is_judged(state.step):
                judge(task, state, coordinates.leave(state.trained, state.best_lens), progress)
                checkpoints.show(state.log)
                if state.waited >= task.settings.patience:
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


def begin(
    task: Task, start: Lens, checkpoints: Checkpoints, resumed: State | None, progress: Progress
) -> tuple[Coordinates, State, Optimizers]:
    """What the next step needs: the coordinates, the state before it, and the optimizers of its tensors."""
    solution, device = task.solution, task.head.W_U.device
    if solution is None and task.names and recipe.needs_solution(task.settings):
        solution = closed_form.solve(task.exact_kl, task.train, task.held_out, start)
    coordinates = coordinates_of(task, start, solution)
    state = resumed or first_state(task, start, coordinates, solution, progress)
    # Contiguous, as in a checkpoint: the last bits of a product depend on the memory layout of its factors.
    state.trained = {name: tensor.to(device).contiguous() for name, tensor in state.trained.items()}
    optimizers = Optimizers(task.settings, {name: state.trained[name] for name in task.names})
    if resumed is None:
        checkpoints.reserve(state.trained)
    else:
        progress.note(f"fit {task.settings.kind}: goes on from its checkpoint of step {state.step}")
        task.train.tokens_forwarded = state.tokens_forwarded
        optimizers.restore(state.optimizers)
    progress.advance(0, kl_bits=state.best.at_depths)
    checkpoints.show(state.log)
    return coordinates, state, optimizers


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


def record(task: Task, state: State, validation: Validation, *, is_best: bool) -> None:
    """Add a line to the log and clear `train_kl`."""
    train_kl, state.train_kl = state.train_kl, []
    row = log_row(
        validation,
        is_best=is_best,
        kept=state.best,
        step=state.step,
        positions=task.positions(state.step),
        lr=task.schedule.learning_rate(state.step - 1) if state.step else 0.0,
        train_kl_bits=sum(train_kl) / len(train_kl) if train_kl else None,
    )
    state.log.append(row)
