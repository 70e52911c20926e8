"""A model with its lens and the lenses that it is compared with, and what they read in a residual stream."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensmith.files import artifacts
from lensmith.judge import tables, walk
from lensmith.judge.facts import LensIdentity
from lensmith.judge.tables import LENSES, NORM_LENS, NORMS, PRISM, RAW, RUNGS, TUNED
from lensmith.judge.walk import LensLike, Name, Reading
from lensmith.lens.lens import Lens
from lensmith.lens.lens_file import LADDER, WEIGHTS
from lensmith.lens.lens_file import PRISM as PRISM_FILE
from lensmith.lens.prism import Prism
from lensmith.lens.provenance import PROVENANCE, Provenance
from lensmith.process.errors import IntegrityError
from lensmith.settings.sections import ModelParams
from lensmith.source import corpus, tokenizer
from lensmith.source.backbone import Backbone
from lensmith.source.head import HeadInput
from lensmith.source.tokenizer import Encoder


@dataclass(frozen=True)
class Bench:
    """A model with its lens and the lenses that it is compared with, on the model's device."""

    backbone: Backbone
    lens: Lens
    encode: Encoder
    identity: LensIdentity
    others: dict[str, LensLike] = field(default_factory=dict)  # the ladder and Prism, by name, where they were fit
    raw: bool = False  # whether the residual is also read without a norm

    @classmethod
    def load(cls, settings: ModelParams, corpus_dir: Path, lens_dir: Path, *, raw: bool = False) -> "Bench":
        """The pinned model of a corpus and the lenses that were fit on it.

        Raises:
            IntegrityError: the lens was fit on a model of another shape, or on another head.
        """
        manifest = corpus.Manifest.read(corpus_dir)
        backbone = Backbone.load(settings.source, manifest.model)
        lens = Lens.load(lens_dir)
        others = others_beside(lens_dir, lens, backbone.device)
        recorded = Provenance.read(lens_dir / PROVENANCE).head.data()
        shape = (backbone.n_layers, backbone.d_model)
        if (lens.n_layers, lens.d_model) != shape or recorded != backbone.head.fingerprint():
            raise IntegrityError(
                f"{lens_dir}: fit on another model: (n_layers, d_model) {(lens.n_layers, lens.d_model)} and head "
                f"{recorded}, the model of {corpus_dir} has {shape} and {backbone.head.fingerprint()}. "
                "Nothing was measured."
            )
        sha256 = artifacts.sha256_file(lens_dir / WEIGHTS)
        identity = LensIdentity(
            weights_sha256=sha256, kind=lens.kind, norm=lens.norm, rank=lens.rank, absent=lens.absent
        )
        assert backbone.tokenizer is not None  # a loaded model has one
        tokenizer.check_behaviour(backbone.tokenizer, manifest.tokenizer.behaviour_sha256, str(corpus_dir))
        encode = Encoder(backbone.tokenizer, manifest.tokenizer.bos_policy, backbone.model.config)
        return cls(backbone, lens.to(backbone.device), encode, identity, others, raw)

    @property
    def n_layers(self) -> int:
        return self.backbone.n_layers

    @property
    def names(self) -> tuple[str, ...]:
        """The lenses that are measured, in the order of their tables."""
        measured = {*NORMS, *self._fitted, *([RAW] if self.raw else [])}
        return tuple(name for name in LENSES if name in measured)

    @property
    def decoded(self) -> Iterator[tuple[str, int]]:
        """Every lens at each of its layers, in the order of the tables."""
        return ((lens, layer) for lens in self.names for layer in self.layers(lens))

    def layers(self, lens: str) -> tuple[int, ...]:
        """The layers that a lens reads."""
        return tables.layers(lens, self.n_layers, self.lens.absent)

    @property
    def baseline(self) -> str:
        """The norm lens of the tuned lens's own norm."""
        return NORM_LENS[self.lens.norm]

    def final(self, resid: Tensor) -> Tensor:
        """The model's logits at positions whose residual stream is resid (n, L + 1, d_model): (n, d_vocab)."""
        return self.backbone.head.logits(self.head_reads("norm", self.n_layers, resid).y)

    def text(self, token: int) -> str:
        """A token as text."""
        assert self.backbone.tokenizer is not None  # a bench has one: prompts were tokenized with it
        return str(self.backbone.tokenizer.decode([token]))

    def head_reads(self, lens: str, layer: int, resid: Tensor) -> HeadInput:
        """What W_U reads under one lens at one layer of resid (n, L + 1, d_model), and the lens's temperature."""
        if lens == RAW:
            return HeadInput(resid[:, layer].float())
        return walk.head_reads(self.backbone.head, self._fitted.get(lens, self.lens))(lens, layer, resid)

    def read(self, resid: Tensor, readings: Sequence[Name], **options: Any) -> dict[Name, Reading]:
        """Some lenses at some layers of resid (n, L + 1, d_model); `walk.read` says what the options are."""
        return walk.read(self.backbone.head, resid, readings, self.head_reads, **options)

    def read_each(
        self, texts: Iterable[tuple[Tensor, Tensor | None]], readings: Sequence[Name], **options: Any
    ) -> Iterator[dict[Name, Reading]]:
        """As `read`, of each of some texts; see `walk.read_each`."""
        return walk.read_each(self.backbone.head, texts, readings, self.head_reads, **options)

    @property
    def _fitted(self) -> dict[str, LensLike]:
        return {**self.others, TUNED: self.lens}


def others_beside(lens_dir: Path, lens: Lens, device: torch.device) -> dict[str, LensLike]:
    """The smaller lenses beside a lens, by kind, and Prism.

    Raises:
        IntegrityError: one of them is damaged, of another shape than the lens, or reads through another norm.
    """
    readers: dict[str, LensLike] = {}
    for kind in RUNGS:
        folder = lens_dir / LADDER / kind
        if not (folder / WEIGHTS).exists():
            continue
        rung = Lens.load(folder)
        for name in ("n_layers", "d_model", "norm"):
            if (theirs := getattr(rung, name)) != (ours := getattr(lens, name)):
                raise IntegrityError(
                    f"{folder}: {name} is {theirs}, that of the lens beside it is {ours}. Nothing was measured."
                )
        readers[kind] = rung.to(device)
    if (path := lens_dir / PRISM_FILE).exists():
        readers[PRISM] = Prism.load(path).to(device)
    return readers
