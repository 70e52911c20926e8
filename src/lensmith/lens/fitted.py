"""What a fit gives: the lens as it is kept, and what was measured on the way."""

import math
from dataclasses import dataclass

from lensmith.lens import objective
from lensmith.lens.checkpoint import LogRow
from lensmith.lens.divergence import LinearKL
from lensmith.lens.lens import Lens
from lensmith.lens.objective import Validation
from lensmith.lens.provenance import JacobianRecord
from lensmith.lens.schedule import Schedule
from lensmith.process.errors import NumericError
from lensmith.settings.sections import FitParams
from lensmith.source.head import Head
from lensmith.source.residuals import Residuals


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


def measured(
    head: Head, lens: Lens, held_out: Residuals, settings: FitParams, mean_of: JacobianRecord | None = None
) -> Fit:
    """The Fit of a lens that was made without steps: read, or the mean of Jacobians. It is validated once.

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


def log_row(
    validation: Validation,
    *,
    is_best: bool,
    kept: Validation,
    step: int = 0,
    positions: int = 0,
    lr: float = 0.0,
    train_kl_bits: float | None = None,
) -> LogRow:
    """The line of a validation; `kept` is that of the layers which are kept so far."""
    quarter, half, three_quarters = (bits if math.isfinite(bits) else None for bits in validation.at_depths)
    return LogRow(
        step=step,
        positions=positions,
        lr=lr,
        train_kl_bits=train_kl_bits,
        val_kl_bits_25=quarter,
        val_kl_bits_50=half,
        val_kl_bits_75=three_quarters,
        val_kl_bits_mean=validation.mean,
        best=int(is_best),
        kept_kl_bits_mean=kept.mean,
    )


def check_finite(lens: Lens, validation: Validation, step: int) -> None:
    """NumericError where held-out KL of a layer that the lens reads is not finite."""
    for layer in lens.layers:
        if not math.isfinite(bits := validation.kl_bits[layer - 1]):
            raise NumericError(f"fit: held-out KL is {bits} at step {step}, layer {layer}. No lens was written.")
