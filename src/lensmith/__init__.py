"""Tuned lenses for open-weight language models.

    import lensmith

    lens = lensmith.load("org/lenses", model="org/name", revision="v2026.11.29", base=model)
    lensmith.trajectory(lens, model, tokenizer, "The capital of France is").figure().show()

`__all__` is the API; README, cards, docs and examples use nothing else. `import lensmith` takes a moment: torch,
transformers and plotly are imported by the first call that needs them.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import lensmith.source  # noqa: F401 (sets log levels before the caller's transformers imports torchao)
from lensmith.process.errors import (
    InputError,
    IntegrityError,
    LensmithError,
    NumericError,
    RemoteError,
    ResourceError,
)

__all__ = [
    "InputError",
    "IntegrityError",
    "Lens",
    "LensmithError",
    "NumericError",
    "RemoteError",
    "ResourceError",
    "StreamedLens",
    "Trajectory",
    "__version__",
    "load",
    "load_streamed",
    "logits",
    "trajectory",
]

__version__ = "0.1.0"

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lensmith.lens.lens import Lens
    from lensmith.read.trajectory import Trajectory
    from lensmith.release.pretrained import StreamedLens
    from lensmith.source.backbone import Backbone
else:  # a type checker that saw this function would let every misspelt name pass

    def __getattr__(name: str) -> type:
        if name == "Lens":
            from lensmith.lens.lens import Lens

            return Lens
        if name == "Trajectory":
            from lensmith.read.trajectory import Trajectory

            return Trajectory
        if name == "StreamedLens":
            from lensmith.release.pretrained import StreamedLens

            return StreamedLens
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")

    def __dir__() -> list[str]:
        return sorted(__all__)


def load(
    release: str | Path,
    *,
    model: str | None = None,
    revision: str | None = None,
    base: "PreTrainedModel | Backbone | None" = None,
    strict: bool = True,
) -> "Lens":
    """A released lens, after its files were checked against the index of the release.

        lensmith.load("release/atlas", base=model)
        lensmith.load("org/lenses", model="org/name", revision="v2026.11.29", base=model)

    Args:
        release: a folder with INDEX.json, or a dataset repository of the Hub.
        model: the id of the model that the lens was fit to, org/name. Not needed where the release holds one lens.
        revision: a version of the repository, None for the newest one. A folder has none.
        base: the model as you loaded it. The lens is checked against it and put on its device, and the model comes
            back as it was. Without it the lens is checked where it is first used with a model.
        strict: whether a head of other weights is refused. A head of another shape always is. If `base` has the same
            weights in a finer precision, a warning says how many bits of KL that costs.

    Raises:
        InputError: `release` is neither, or holds no such lens; the message says what it holds.
        IntegrityError: a file differs from the index, or the lens was fit to another model than `base`.
        NumericError: `base` cannot be read as the model reads itself, so no lens of it could be trusted.
        RemoteError: the Hub refused, or could not be reached.
    """
    from lensmith.release import pretrained

    return pretrained.load(release, model=model, revision=revision, base=base, strict=strict)


def load_streamed(
    release: str | Path,
    *,
    model: str | None = None,
    revision: str | None = None,
    base: "PreTrainedModel | Backbone | None" = None,
    strict: bool = True,
) -> "StreamedLens":
    """As `load`, for a lens that is larger than memory: it stays on disk, and `trajectory` reads it layer by layer."""
    from lensmith.release import pretrained

    return pretrained.load_streamed(release, model=model, revision=revision, base=base, strict=strict)


def trajectory(
    lens: "Lens | StreamedLens",
    model: "PreTrainedModel | Backbone",
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    *,
    top_k: int = 5,
) -> "Trajectory":
    """What the norm lens and the tuned lens read at every layer and position of a text.

    Args:
        lens: a lens that was fit to `model`.
        model: as you loaded it. Its head is found and proven first; it comes back as it was.
        tokenizer: the model's own; it adds the tokens (BOS) that it adds elsewhere.
        text: at least one token, at most what the model reads.
        top_k: how many of the likeliest tokens are kept for each layer and position.

    Returns:
        `.figure()` is a Plotly heat map of both lenses, `.frame()` a DataFrame with a row for each lens, layer and
        position. Layer 0 is the embedding, which the tuned lens does not read; layer i is the residual after block
        i - 1.

    Raises:
        InputError: the text is empty, too long or no string, or `top_k` is below 1.
        IntegrityError: the lens was fit to another model.
        NumericError: the model cannot be read as it reads itself.
    """
    from lensmith.read.trajectory import Trajectory

    return Trajectory.of(lens, model, tokenizer, text, top_k)


def logits(lens: "Lens | StreamedLens", model: "PreTrainedModel | Backbone", resid: "Tensor", layer: int) -> "Tensor":
    """What the tuned lens reads in residuals that you captured or changed yourself.

    Args:
        lens: a lens that was fit to `model`.
        model: as you loaded it; it comes back as it was.
        resid: (..., d_model), the residual stream after block `layer` - 1, in any precision. Gradients pass through.
        layer: 1 to the number of blocks.

    Returns:
        (..., d_vocab), float32: logits before the softmax.

    Raises:
        InputError: `resid` is no tensor of floats of the model's width, or `layer` is out of range.
        IntegrityError: the lens was fit to another model.
        NumericError: the model cannot be read as it reads itself.
    """
    from lensmith.read import residuals

    return residuals.logits(lens, model, resid, layer)
