"""What the settings of a fit decide before its first step: the trained tensors, the dtype, and the memory."""

import torch

from lensmith.lens.lens import rank_of
from lensmith.settings.sections import FitParams
from lensmith.source import skeleton
from lensmith.source.head import Head

# Numbers in W_U from which `products: auto` may take bfloat16. A smaller head stays in the cache in float32, where its
# products are a small part of a step, and its lens is then the same on every CPU.
LARGE_HEAD = 2**23
VALIDATION_POSITIONS = 64  # of a sequence, at most: they are alike, and a pass over all of them costs many steps
COPIES = 6  # of a lens in training: itself, its gradient, two moments, the start and the best


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


def of_validation(settings: FitParams) -> FitParams:
    """The settings by which held-out residuals are sampled."""
    return settings.model_copy(update={"positions_per_seq": min(settings.positions_per_seq, VALIDATION_POSITIONS)})


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
