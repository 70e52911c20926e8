"""A published lens, read as a stranger reads it: index, hash of every file, form, and the model that it belongs to.

`place` is a release: a folder with INDEX.json, or a dataset repository of the Hub at a version that never moves.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from lensmith.edge import artifacts, hub_lenses, release_index
from lensmith.errors import IntegrityError
from lensmith.lens.form import TENSORS, WEIGHTS
from lensmith.lens.translators import Lens
from lensmith.source.backbone import Backbone, Head


@dataclass(frozen=True)
class Found:
    """One lens of a release whose files are those of the index."""

    model_id: str
    folder: Path  # of the lens
    about: dict[str, Any]  # its provenance

    def load(self, base: PreTrainedModel | Backbone | None = None) -> Lens:
        """The lens, checked against the model that it will be used with where that is given.

        Raises:
            IntegrityError: the file is no whole lens, or `base` is another model.
        """
        lens = replace(Lens.load(self.folder), w_u_sha256=self.about["head"]["w_u_sha256"])
        if base is None:
            return lens
        backbone = base if isinstance(base, Backbone) else Backbone.of(base)
        shape, wanted = (backbone.n_layers, backbone.d_model), (lens.n_layers, lens.d_model)
        if shape != wanted:
            raise IntegrityError(
                f"the lens of {self.model_id} is of (layers, d_model) {wanted}, this model has {shape}: another model"
            )
        try:
            lens.check_head(backbone.head)
        except IntegrityError as error:
            dtype = self.about.get("machine", {}).get("dtype")
            raise IntegrityError(f"{self.model_id}, fit on {dtype} weights: {error}") from None
        return lens.to(backbone.device)


def find(place: str | Path, model: str | None = None, revision: str | None = None) -> Found:
    """Look a lens up, download it where `place` is no folder, and check every file's sha256.

    Raises:
        InputError: `place` is no release, or has no such lens; the message says what there is.
        IntegrityError: a file is not the one of the index.
        RemoteError: the Hub refused, or could not be reached.
    """
    index, revision = hub_lenses.index_of(place, revision)
    model_id = release_index.pick(index, model, str(place))
    if (root := Path(place)).is_dir():
        release_index.check(root, index[model_id])
    else:
        root = hub_lenses.download(str(place), model_id, revision)
    folder = root / index[model_id].path
    about = artifacts.read_json(folder / "provenance.json")
    if not isinstance(about, dict) or about.get("model_id") != model_id or "head" not in about:
        raise IntegrityError(f"{folder / 'provenance.json'}: is not about {model_id}")
    return Found(model_id, folder, about)


def load(
    place: str | Path, model: str | None, revision: str | None, base: PreTrainedModel | Backbone | None = None
) -> Lens:
    """`Lens.from_pretrained`."""
    return find(place, model, revision).load(base)


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
            IntegrityError: the file is not whole, or is no lens.
        """
        path = folder / WEIGHTS
        with _opened(path) as file:
            form = Lens.form_of(file, path)
            n_layers, d_model, rank = file.get_slice("U").get_shape()
            shapes = {"U": [n_layers, d_model, rank], "V": [n_layers, d_model, rank], "c": [n_layers, d_model]}
            shapes |= {"scale": [n_layers, d_model], "log_tau": [n_layers]}
            for name, shape in shapes.items():
                if (found := list(file.get_slice(name).get_shape())) != shape:
                    raise IntegrityError(f"{path}: {name} is {found}, U asks for {shape}")
        return cls(path, form, n_layers)

    def layer(self, row: int) -> Lens:
        """A lens that is right at `row`, 1..n_layers, and nowhere else."""
        if not 1 <= row <= self.n_layers:
            raise ValueError(f"StreamedLens.layer: row is {row}, must be in 1..{self.n_layers}")
        with _opened(self.path) as file:
            own = {
                name: file.get_slice(name)[row - 1 : row].clone() for name in TENSORS
            }  # a slice holds on to the file
        # One layer seen as if every layer were it, which takes no memory: the lens's own code finds it at its row.
        return Lens(
            **self.form, **{name: tensor.expand(self.n_layers, *tensor.shape[1:]) for name, tensor in own.items()}
        )

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
