"""The lens of the settings and the rungs of its ladder: kinds with fewer parameters, fit on the same residuals."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from lensmith.lens import closed_form, rank_curve, recipe, training
from lensmith.lens.checkpoint import Checkpoints
from lensmith.lens.closed_form import Solution
from lensmith.lens.divergence import LinearKL
from lensmith.lens.fitted import Fit
from lensmith.lens.lens import Lens
from lensmith.lens.lens_file import RANK_CURVE
from lensmith.lens.prism import Prism
from lensmith.lens.rank_curve import Curve
from lensmith.lens.schedule import Schedule
from lensmith.lens.vocabulary import SampledVocabulary
from lensmith.lens.work import Work
from lensmith.settings.sections import FitParams
from lensmith.source.backbone import Backbone
from lensmith.source.residuals import Residuals

# Steps and peak rate for a bias. They need no setting: in whitened coordinates a step has one scale for all models.
BIAS_STEPS, BIAS_LR = 96, 1e-2
KINDS = ("identity", "temperature", "bias", "low_rank", "full")  # each has the parameters of those before it


def fit_all(
    backbone: Backbone,
    train: Residuals,
    held_out: Residuals,
    settings: FitParams,
    *,
    vocabulary: SampledVocabulary | None,
    prism: Prism | None,
    work: Work,
) -> dict[str, Fit]:
    """The lens of `settings` and the rungs of its ladder, by kind. One closed form serves all of them.

    Each kind can start from the kind below it, so they are fit in the order of KINDS.

    Args:
        work: held; of the lens's checkpoints, and of the rank curve where a closed form gives one.
    """
    kinds = [kind for kind in KINDS if kind in {settings.kind, *settings.ladder}]
    works = {
        # What stands above the lens starts from it, and is as much its own as it.
        kind: work if settings.kind in kinds[: i + 1] else work.rung(rung(settings, kind, train), kinds[:i])
        for i, kind in enumerate(kinds)
    }
    checkpoints = {kind: Checkpoints(works[kind].folder / kind) for kind in kinds}
    curve = work.folder / RANK_CURVE
    todo = [
        kind for kind in kinds if not checkpoints[kind].is_finished or (kind == settings.kind and not curve.exists())
    ]
    solution, closed_curve = solve(backbone, train, held_out, settings, todo)
    if closed_curve and settings.kind == "low_rank" and settings.rank == "auto" and settings.start == "closed_form":
        settings = settings.model_copy(update={"rank": rank_curve.smallest_rank(closed_curve)})
    fits: dict[str, Fit] = {}
    on_device = None if prism is None else prism.to(backbone.device)
    for kind in kinds:
        of_kind, is_rung = rung(settings, kind, train), works[kind] is not work
        if is_rung:
            work.link(works[kind], kind)
        with works[kind].held() if is_rung else nullcontext():
            fits[kind] = training.fit(
                backbone.head,
                train,
                held_out,
                of_kind,
                start_of(of_kind, backbone),
                vocabulary=vocabulary,
                solution=solution,
                prism=on_device,
                below=list(fits.values())[-1] if fits else None,
                checkpoints=checkpoints[kind],
            )
    if solution is not None and settings.kind in fits:
        trained = rank_curve.of_lens(LinearKL(backbone.head), solution, fits[settings.kind].lens, train, held_out)
        rank_curve.write(curve, trained, closed_curve)
    return fits


def solve(
    backbone: Backbone,
    train: Residuals,
    held_out: Residuals,
    settings: FitParams,
    kinds: Sequence[str],
) -> tuple[Solution | None, Curve]:
    """The closed form for the fits of these kinds, and its rank curve; None and no curve where none needs it."""
    linear_kl = LinearKL(backbone.head)
    rungs = [rung(settings, kind, train) for kind in kinds]
    if backbone.n_layers == 1 or not any(map(recipe.needs_solution, rungs)):
        return None, {}
    widest = max((start_of(of_kind, backbone) for of_kind in rungs), key=lambda start: start.rank)
    solution = closed_form.solve(linear_kl, train, held_out, widest)
    # A wider rung of the ladder must not change the rank that is chosen.
    curved = start_of(settings, backbone) if settings.kind in KINDS else widest
    return solution, rank_curve.of_closed_form(linear_kl, solution, held_out, curved)


def start_of(settings: FitParams, backbone: Backbone) -> Lens:
    """The lens before the first step of a fit, on the model's device."""
    return Lens.start(settings, backbone.n_layers, backbone.d_model).to(backbone.device)


def rung(settings: FitParams, kind: str, train: Residuals) -> FitParams:
    """The settings of one kind: those of the lens for its own, and for a rung the recipe of rungs."""
    if kind == settings.kind:
        return settings
    to_optimum: dict[str, Any] = {
        "kind": kind, "start": "closed_form", "coordinates": "whitened", "layers_per_step": "all",
        "l2_smallness": 0.0, "smooth_depth": 0.0, "weight_decay": 0.0,
    }  # fmt: skip
    if kind != "full":
        steps_per_epoch = Schedule(settings, train.n_seqs, 1).steps_per_epoch
        to_optimum |= {"epochs": (BIAS_STEPS - 0.5) / steps_per_epoch, "optimizer": "adamw", "lr": BIAS_LR}
        to_optimum |= {"validate_every": BIAS_STEPS}
    return settings.model_copy(update=to_optimum)
