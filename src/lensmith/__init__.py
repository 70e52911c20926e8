"""Tuned lenses for open-weight language models.

    import lensmith

    lens = lensmith.load("org/lenses", model="org/name", revision="v2026.11.29")
    reader = lensmith.bind(lens, model, tokenizer)
    reader.trajectory("The capital of France is").figure().show()

`__all__` is the API; README, cards, docs and examples use nothing else. `import lensmith` takes a moment: torch,
transformers and plotly are imported by the first call that needs them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    "Reader",
    "RemoteError",
    "ResourceError",
    "StreamedLens",
    "Trajectory",
    "TrajectoryDifference",
    "VectorReading",
    "__version__",
    "bind",
    "frames",
    "load",
    "load_streamed",
    "trajectory",
]

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pandas import DataFrame
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lensmith.lens.lens import Lens
    from lensmith.read.reader import Reader, VectorReading
    from lensmith.read.trajectory import Trajectory, TrajectoryDifference
    from lensmith.release.pretrained import StreamedLens
    from lensmith.source.backbone import Backbone
else:  # a type checker that saw this function would let every misspelt name pass

    def __getattr__(name: str) -> type:
        if name == "Lens":
            from lensmith.lens.lens import Lens

            return Lens
        if name == "StreamedLens":
            from lensmith.release.pretrained import StreamedLens

            return StreamedLens
        if name in ("Reader", "VectorReading"):
            from lensmith.read import reader

            return getattr(reader, name)
        if name in ("Trajectory", "TrajectoryDifference"):
            from lensmith.read import trajectory

            return getattr(trajectory, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")

    def __dir__() -> list[str]:
        return sorted(__all__)


def load(
    release: str | Path,
    *,
    model: str | None = None,
    revision: str | None = None,
    base: "PreTrainedModel | Backbone | None" = None,
) -> "Lens":
    """A released lens, after its files were checked against the index of the release.

        lensmith.load("release/atlas", base=model)
        lensmith.load("org/lenses", model="org/name", revision="v2026.11.29")

    Args:
        release: a folder with INDEX.json, or a dataset repository of the Hub.
        model: the id of the model that the lens was fit to, org/name. Not needed where the release holds one lens.
        revision: a version of the repository, None for the newest one. A folder has none.
        base: the model that the lens is for, checked as `bind` does.

    Raises:
        InputError: `release` is neither, or holds no such lens; the message says what it holds.
        IntegrityError: a file differs from the index, or the lens was fit to another model than `base`.
        RemoteError: the Hub refused, or could not be reached.
    """
    from lensmith.release import pretrained

    lens = pretrained.load(release, model=model, revision=revision)
    if base is not None:
        bind(lens, base)
    return lens


def load_streamed(release: str | Path, *, model: str | None = None, revision: str | None = None) -> "StreamedLens":
    """As `load`, for a lens that is larger than memory: it stays on disk, and each call reads one layer."""
    from lensmith.release import pretrained

    return pretrained.load_streamed(release, model=model, revision=revision)


def bind(
    lens: "Lens | StreamedLens",
    model: "PreTrainedModel | Backbone",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    strict: bool = True,
) -> "Reader":
    """A lens bound to its model: `.read` reads vectors of the residual stream, `.trajectory` a text.

        reader = lensmith.bind(lens, model, tokenizer)

    The model's head is found, proven and copied once, and compared with the one that the lens was fit to. Bind again
    after its weights have changed.

    Args:
        model: as you loaded it, or wrapped by nnsight, TransformerBridge, torch.compile or DataParallel. It comes back
            as it was; the lens is put on its device.
        tokenizer: the model's own. Without it texts and targets are ids.
        strict: whether a head of other weights is refused, such as a fine-tune's. A head of another shape always is. If
            the model has the same weights in another precision, a warning says how many bits of KL that costs.
            `Reader.head_note` keeps the warning.

    Raises:
        InputError: `model` is no transformers model, or its parts cannot be found.
        IntegrityError: the lens was fit to another model.
        NumericError: the model cannot be read as it reads itself, so no lens of it could be trusted.
    """
    from lensmith.read import reader

    return reader.bind(lens, model, tokenizer, strict=strict)


def trajectory(
    lens: "Lens | StreamedLens",
    model: "PreTrainedModel | Backbone",
    tokenizer: "PreTrainedTokenizerBase",
    text: "str | Sequence[int] | Sequence[dict[str, Any]]",
) -> "Trajectory":
    """`bind(lens, model, tokenizer).trajectory(text)`, for one text."""
    return bind(lens, model, tokenizer).trajectory(text)


def frames(path: str | Path) -> "dict[str, DataFrame]":
    """Tables of a lab as pandas frames, by name.

        lensmith.frames("metrics")["metrics"]  # a row for each model
        lensmith.frames("artifacts/atlas/sweep")["heldout"]
        lensmith.frames(".")["experiments"]  # a row for each variant of `dvc exp run` and model

    Args:
        path: a lab (its metrics and experiments), a folder of tables such as `metrics`, a sweep or a suite, or one file
            (.csv, .json of metrics, or .parquet as `lensmith read` writes it).

    Raises:
        InputError: there is no such place, or it holds no table.
    """
    from lensmith.read import frames as opened

    return opened.frames(path)
