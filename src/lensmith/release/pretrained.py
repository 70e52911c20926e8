"""A lens of a release, read with every check: index, hash of every file, form, and the model that it was fit to.

A release is a folder with INDEX.json, or a dataset repository of the Hub at a version that never moves.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import AliasPath, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lensmith.files import untrusted
from lensmith.hub import index as release_index
from lensmith.hub import models, releases
from lensmith.hub.index import PROVENANCE, Sha256
from lensmith.hub.pins import ModelPin
from lensmith.judge.judgement import Estimate
from lensmith.lens import depth, precision
from lensmith.lens.lens import Lens, check_head, check_identity, check_numbers
from lensmith.lens.lens_file import WEIGHTS, read_header
from lensmith.lens.provenance import RoundedHead
from lensmith.process.errors import IntegrityError
from lensmith.settings.sections import Dtype, SourceParams
from lensmith.source.backbone import Backbone
from lensmith.source.head import Head, HeadInput


class ReleasedLens(BaseModel):
    """One lens of a release: its folder, whose files are those of the index, and what its provenance says of its model.

    Other keys of provenance.json are for people.
    """

    model_config = ConfigDict(frozen=True)

    model_id: str
    model: ModelPin
    w_u_sha256: Sha256 = Field(validation_alias=AliasPath("head", "w_u_sha256"))  # of the head that it was fit to
    dtype: Dtype = Field("auto", validation_alias=AliasPath("machine", "dtype"))  # of the weights that it was fit on
    rounded_heads: dict[str, RoundedHead] = {}  # the same head in other dtypes
    layers: dict[int, int] = Field({}, validation_alias=AliasPath("judgement", "layers"))  # percent of depth -> layer
    kpis: dict[str, Estimate] = Field({}, validation_alias=AliasPath("judgement", "kpis"))
    folder: Path

    @classmethod
    def read(cls, folder: Path, model_id: str) -> "ReleasedLens":
        """The lens of `model_id` in this folder. IntegrityError where its provenance.json says otherwise."""
        path = folder / PROVENANCE
        record = untrusted.read_json(path)
        try:
            released = cls.model_validate({**record, "folder": folder} if isinstance(record, dict) else record)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise IntegrityError(f"{path}: {key or 'the file'}: {first['msg'].removeprefix('Value error, ')}") from None
        if released.model_id != model_id:
            raise IntegrityError(f"{path}: is about {released.model_id}, not about {model_id}")
        return released

    def load(self) -> Lens:
        """The lens. IntegrityError where the file is no whole lens."""
        return replace(Lens.load(self.folder), **self.head_facts())

    def head_facts(self) -> dict[str, Any]:
        """What is known of the head that the lens was fit to, as arguments of Lens and StreamedLens."""
        return {"w_u_sha256": self.w_u_sha256, "fit_dtype": self.dtype, "rounded_heads": self.rounded_heads}

    def load_model(self) -> Backbone:
        """The model that the lens was fit to, downloaded where it is not on this machine.

        Raises:
            InputError, IntegrityError, NumericError, ResourceError: as `Backbone.load`.
            RemoteError: the Hub refused, or could not be reached.
        """
        models.download(self.model)
        source = SourceParams(
            repo=self.model.repo,
            file=None,  # the pin names it
            path=self.model.path,
            revision=self.model.commit or "main",
            dtype=self.dtype,  # the hash of the head is of these numbers
            device="auto",
            placement="single",
            trust_remote_code=False,  # a release may name a model, but not have its code run
        )
        return Backbone.load(source, self.model)

    def recorded(self) -> dict[int, Estimate]:
        """Layer -> bits of KL that the lens saved at the median of held-out text, as the lab judged it."""
        by_layer = {layer: f"heldout_median_delta_kl_bits_{percent}" for percent, layer in self.layers.items()}
        return {layer: self.kpis[kpi] for layer, kpi in by_layer.items() if kpi in self.kpis}


def check_model(lens: "Lens | StreamedLens", backbone: Backbone, *, strict: bool = True) -> str:
    """Compare a model's head with the one that a lens was fit to, or for kind transferred judged with.

    The same weights in another precision are accepted, with a warning of what that costs; so is any head of the same
    shape where `strict` is off. A lens of kind transferred always has a warning.

    Returns:
        The warnings as text; "" where the head is the lens's own or nothing is known of that.

    Raises:
        IntegrityError: the lens is another model's.
    """
    replace(lens, w_u_sha256=None).check_head(backbone.head)  # the shape
    notes = []
    try:
        lens.check_head(backbone.head)
    except IntegrityError as error:
        dtype = str(backbone.dtype).removeprefix("torch.")
        precisions = f"fit on {lens.fit_dtype} weights, used with {dtype}"
        bits = rounding_bits(lens, backbone, dtype)
        if strict and bits is None:
            raise IntegrityError(f"{precisions}: {error}. strict=False takes the lens all the same") from None
        notes.append(f"{precisions}: {error if bits is None else f'the head alone differs by {bits:.2g} bits of KL'}")
    if lens.kind == "transferred":
        notes.append("the lens was fit to another model, which its provenance.json names, and judged on this one")
    if note := "; ".join(notes):
        warnings.warn(note, stacklevel=4)
    return note


def rounding_bits(lens: "Lens | StreamedLens", backbone: Backbone, dtype: str) -> float | None:
    """KL by which a model's head, in `dtype`, differs from the lens's own, the same in another precision; else None."""
    recorded = lens.rounded_heads.get(dtype)
    if recorded is not None and recorded.w_u_sha256 == backbone.head.fingerprint()["w_u_sha256"]:
        return recorded.kl_bits
    finer = precision.rounded(backbone.head, getattr(torch, lens.fit_dtype or "", torch.float32))
    return precision.cost_bits(backbone, finer) if finer.fingerprint()["w_u_sha256"] == lens.w_u_sha256 else None


def find(release: str | Path, model: str | None = None, revision: str | None = None) -> ReleasedLens:
    """Look a lens up, download it where `release` is no folder, and check the sha256 of every file.

    Raises:
        InputError: `release` is no release, or has no such lens; the message says what there is.
        IntegrityError: a file differs from the index.
        RemoteError: the Hub refused, or could not be reached.
    """
    index, revision = releases.index_of(release, revision)
    model_id = release_index.pick(index, model, str(release))
    if (root := Path(release)).is_dir():
        release_index.check(root, index[model_id])
    else:
        root = releases.download(str(release), model_id, revision)
    return ReleasedLens.read(root / index[model_id].path, model_id)


def load(release: str | Path, *, model: str | None = None, revision: str | None = None) -> Lens:
    """`lensmith.load`, which says what the arguments and errors are."""
    return find(release, model, revision).load()


def load_streamed(release: str | Path, *, model: str | None = None, revision: str | None = None) -> "StreamedLens":
    """`lensmith.load_streamed`."""
    released = find(release, model, revision)
    return replace(StreamedLens.open(released.folder), **released.head_facts())


@dataclass(frozen=True)
class StreamedLens:
    """A lens that stays on disk: each call reads one layer. For lenses that are larger than memory."""

    path: Path
    form: dict[str, Any]  # kind, norm, placement and absent, as arguments of Lens
    n_layers: int
    d_model: int
    w_u_sha256: str | None = None  # of the head that it was fit to, where that is known
    fit_dtype: str | None = None  # of the weights that it was fit on, where that is known
    rounded_heads: Mapping[str, RoundedHead] = field(default_factory=dict)  # the same head in other dtypes

    @classmethod
    def open(cls, folder: Path) -> "StreamedLens":
        """The lens in the folder of a ReleasedLens.

        Raises:
            IntegrityError: the file is not whole, is no lens, or its last layer is not the identity.
        """
        path = folder / WEIGHTS
        shapes, form = read_header(path)
        n_layers, d_model = shapes["c"]
        streamed = cls(path, form, n_layers, d_model)
        check_identity({name: tensor[0] for name, tensor in streamed._read(streamed.n_layers).items()}, path)
        return streamed

    @property
    def kind(self) -> str:
        """As `Lens.kind`."""
        return str(self.form["kind"])

    @property
    def absent(self) -> tuple[int, ...]:
        """As `Lens.absent`."""
        return tuple(self.form["absent"])

    @property
    def layers(self) -> tuple[int, ...]:
        """As `Lens.layers`."""
        return depth.layers(self.n_layers, self.absent)

    def check_head(self, head: Head) -> None:
        """As `Lens.check_head`."""
        check_head(head, self.n_layers, self.d_model, self.w_u_sha256)

    def to(self, device: torch.device) -> "StreamedLens":  # noqa: ARG002
        """The same lens: each layer goes to the head's device when it is read."""
        return self

    def layer(self, layer: int) -> Lens:
        """A lens that is right at `layer`, 1..n_layers, and nowhere else.

        Raises:
            InputError: the lens does not read this layer.
            IntegrityError: the layer holds a number that no lens has.
        """
        depth.check_layer(layer, self.n_layers, self.absent)
        # One layer seen as if every layer were it, which takes no memory: the code of Lens then finds it at its index.
        tensors: dict[str, Any] = {
            name: tensor.expand(self.n_layers, *tensor.shape[1:]) for name, tensor in self._read(layer).items()
        }
        return Lens(**self.form, **{"V": None, **tensors}, w_u_sha256=self.w_u_sha256)

    def center_at(self, layer: int) -> Tensor | None:
        """As `Lens.center_at`."""
        return self.layer(layer).center_at(layer)

    def transport(self, head: Head, resid: Tensor, layer: int) -> Tensor:
        """y of resid (n, d_model) at `layer`, as `Lens.transport`."""
        return self._on(head, layer).transport(head, resid, layer)

    def head_reads(self, head: Head, resid: Tensor, layer: int) -> HeadInput:
        """What the head reads of resid (n, d_model) at `layer`, as `Lens.head_reads`."""
        return self._on(head, layer).head_reads(head, resid, layer)

    def _on(self, head: Head, layer: int) -> Lens:
        """`layer` on the head's device, moved as one layer: `to` would copy each of the views."""
        return self.layer(layer).map_tensors(lambda t: t[:1].to(head.W_U.device).expand_as(t))

    def logits(self, head: Head, resid: Tensor, layer: int) -> Tensor:
        """What the lens reads in resid (n, d_model) at `layer`: (n, d_vocab), as `Lens.logits`."""
        return head.logits(*self.head_reads(head, resid, layer))

    def _read(self, layer: int) -> dict[str, Tensor]:
        try:
            with safe_open(self.path, framework="pt") as file:
                # Cloned: a slice keeps the whole file in memory.
                tensors = {name: file.get_slice(name)[layer - 1 : layer].clone() for name in file.keys()}  # noqa: SIM118, safe_open is no dict
        except (OSError, SafetensorError) as error:
            raise IntegrityError(f"{self.path}: not a whole lens file ({error})") from None
        check_numbers(tensors, self.path)
        return tensors
