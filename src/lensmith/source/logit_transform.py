"""Finds what a model does to its logits: of the scales and caps in its configuration, what gives the model's own."""

import itertools
from collections.abc import Iterator

from torch import Tensor
from transformers import PreTrainedModel

from lensmith.source.head import Transform

# Settings by which a family scales its logits. Their names do not tell how: `logits_scaling` divides in Granite and
# multiplies in HyperCLOVA X. Both are tried, and the model's own logits decide.
SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
SOFTCAPS = ("final_logit_softcapping", "output_logit_soft_cap", "logits_soft_cap")


def nearest(model: PreTrainedModel, head_out: Tensor, logits: Tensor) -> tuple[Transform, tuple[str, ...]]:
    """The transform that comes nearest to the model's logits, and the sources of all that were tried.

    The proof decides whether it is near enough.
    """
    scales: list[tuple[float, str]] = [(1.0, "")]
    for name, value in _settings(model, SCALES):
        scales += [(value, f"times {name}"), (1 / value, f"divided by {name}")]
    caps: list[tuple[float | None, str]] = [(None, "")]
    caps += [(value, f"softcap {name}") for name, value in _settings(model, SOFTCAPS)]
    transforms = [
        Transform(scale, cap, ", ".join(filter(None, (scaled, capped))) or "none")
        for (scale, scaled), (cap, capped) in itertools.product(scales, caps)
    ]
    if head_out.shape != logits.shape:
        return transforms[0], ("none",)
    errors = [float((transform(head_out.float()) - logits.float()).abs().max()) for transform in transforms]
    nearest = min(range(len(transforms)), key=errors.__getitem__)
    return transforms[nearest], tuple(transform.source for transform in transforms)


def _settings(model: PreTrainedModel, names: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """Those of the settings that the model's configuration has, with their values."""
    configs = (model.config.get_text_config(), model.config)
    for name in names:
        value = next((v for c in configs if (v := getattr(c, name, None)) is not None), None)
        if isinstance(value, int | float) and value != 0:
            yield name, float(value)
