"""A published lens, read as a stranger reads it: index, hash of every file, form, and the model that it belongs to.

`place` is a release: a folder with INDEX.json, or a dataset repository of the Hub at a version that never moves.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from lensmith.files import untrusted
from lensmith.hub import index as release_index
from lensmith.hub import releases
from lensmith.hub.index import PROVENANCE, Sha256
from lensmith.hub.models import ModelPin
from lensmith.lens.lens import Lens, check_identity, check_numbers
from lensmith.lens.lens_file import TENSORS, WEIGHTS, read_header
from lensmith.process.errors import IntegrityError
from lensmith.settings.sections import Dtype
from lensmith.source.backbone import Backbone, Head


class _Head(BaseModel):
    w_u_sha256: Sha256


class _Machine(BaseModel):
    dtype: Dtype = "auto"


class About(BaseModel):
    """What is read of a lens's provenance.json. Other keys are for people."""

    model_config = ConfigDict(frozen=True)

    model_id: str
    model: ModelPin
    head: _Head
    machine: _Machine = _Machine()


@dataclass(frozen=True)
class Found:
    """One lens of a release whose files are those of the index."""

    model_id: str
    folder: Path  # of the lens
    about: About

    def load(self) -> Lens:
        """The lens. IntegrityError where the file is no whole lens."""
        return replace(Lens.load(self.folder), w_u_sha256=self.about.head.w_u_sha256)

    def fitted(self, lens: Lens, base: PreTrainedModel | Backbone) -> Lens:
        """The lens that `load` gave, on the device of the model that it will be used with.

        Raises:
            IntegrityError: `base` is another model than the lens was fit to.
        """
        backbone = base if isinstance(base, Backbone) else Backbone.from_model(base)
        shape, wanted = (backbone.n_layers, backbone.d_model), (lens.n_layers, lens.d_model)
        if shape != wanted:
            raise IntegrityError(
                f"the lens of {self.model_id} is of (layers, d_model) {wanted}, this model has {shape}: another model"
            )
        try:
            lens.check_head(backbone.head)
        except IntegrityError as error:
            raise IntegrityError(f"{self.model_id}, fit on {self.about.machine.dtype} weights: {error}") from None
        return lens.to(backbone.device)


def find(place: str | Path, model: str | None = None, revision: str | None = None) -> Found:
    """Look a lens up, download it where `place` is no folder, and check every file's sha256.

    Raises:
        InputError: `place` is no release, or has no such lens; the message says what there is.
        IntegrityError: a file is not the one of the index.
        RemoteError: the Hub refused, or could not be reached.
    """
    index, revision = releases.index_of(place, revision)
    model_id = release_index.pick(index, model, str(place))
    if (root := Path(place)).is_dir():
        release_index.check(root, index[model_id])
    else:
        root = releases.download(str(place), model_id, revision)
    folder = root / index[model_id].path
    return Found(model_id, folder, _about(folder / PROVENANCE, model_id))


def _about(path: Path, model_id: str) -> About:
    try:
        about = About.model_validate(untrusted.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise IntegrityError(f"{path}: {place or 'the file'}: {first['msg'].removeprefix('Value error, ')}") from None
    if about.model_id != model_id:
        raise IntegrityError(f"{path}: is about {about.model_id}, not about {model_id}")
    return about


def load(
    place: str | Path, model: str | None, revision: str | None, base: PreTrainedModel | Backbone | None = None
) -> Lens:
    """`Lens.from_pretrained`."""
    found = find(place, model, revision)
    lens = found.load()
    return lens if base is None else found.fitted(lens, base)


@dataclass(frozen=True)
class StreamedLens:
    """A lens that stays on disk: each call reads one layer. For lenses that are larger than memory."""

    path: Path
    form: dict[str, Any]
    n_layers: int

    @classmethod
    def open(cls, folder: Path) -> "StreamedLens":
        """The lens of a folder that `find` returned.

        Raises:
            IntegrityError: the file is not whole, is no lens, or its last block is not the identity.
        """
        path = folder / WEIGHTS
        shapes, _ = read_header(path)
        streamed = cls(path, Lens.form_of(path), *shapes["log_tau"])
        check_identity({name: tensor[0] for name, tensor in streamed._read(streamed.n_layers).items()}, path)
        return streamed

    def layer(self, row: int) -> Lens:
        """A lens that is right at `row`, 1..n_layers, and nowhere else.

        Raises:
            IntegrityError: the layer holds a number that no lens has.
        """
        if not 1 <= row <= self.n_layers:
            raise ValueError(f"StreamedLens.layer: row is {row}, must be in 1..{self.n_layers}")
        own = self._read(row)
        # One layer seen as if every layer were it, which takes no memory: the lens's own code finds it at its row.
        seen: dict[str, Any] = {name: tensor.expand(self.n_layers, *tensor.shape[1:]) for name, tensor in own.items()}
        return Lens(**self.form, **seen)

    def _read(self, row: int) -> dict[str, Tensor]:
        with _opened(self.path) as file:
            own = {name: file.get_slice(name)[row - 1 : row].clone() for name in TENSORS}  # a slice holds the file
        check_numbers(own, self.path)
        return own

    def logits(self, head: Head, resid: Tensor, row: int) -> Tensor:
        """As `Lens.logits`."""
        layer, device = self.layer(row), head.W_U.device
        # From the one layer that was read: `to` would copy each of the views.
        return layer.with_tensors(lambda t: t[:1].to(device).expand_as(t)).logits(head, resid, row)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{path}: not a whole lens file ({error})") from None
