"""What the lenses read in a residual stream, and how far that is from what the model says.

Decoding goes lens by lens and layer by layer: with d_vocab logits a position, all of them at once would be the
largest tensor of the lab.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lensmith.files import artifacts
from lensmith.judge.facts import LensIdentity
from lensmith.judge.tables import DISTANCES, LENSES, NORM_LENS, NORMS, PRISM, RAW, RUNGS, TUNED, layers
from lensmith.lens import divergence
from lensmith.lens.lens import Lens
from lensmith.lens.lens_file import LADDER, WEIGHTS
from lensmith.lens.lens_file import PRISM as PRISM_FILE
from lensmith.lens.prism import Prism
from lensmith.lens.provenance import PROVENANCE, Provenance
from lensmith.process.errors import IntegrityError
from lensmith.settings.sections import ModelParams
from lensmith.source import corpus, tokenizer
from lensmith.source.backbone import Backbone, Head
from lensmith.source.tokenizer import Encoder

MEASURED = (*DISTANCES, "top1_agree")
LOGITS = 2**25  # logits that are held at a time


def positions_at_once(d_vocab: int) -> int:
    """Positions whose logits are held at a time."""
    return max(1, LOGITS // d_vocab)


class Reader(Protocol):
    """Something fitted that reads a residual stream through the model's head: a lens of the ladder, or Prism."""

    def head_input(self, head: Head, resid: Tensor, layer: int, /) -> Tensor: ...

    def logits(self, head: Head, resid: Tensor, layer: int, /) -> Tensor: ...


@dataclass(frozen=True)
class Bench:
    """A model with its lens and the lenses that it is compared with, on the model's device."""

    backbone: Backbone
    lens: Lens
    encode: Encoder
    identity: LensIdentity
    others: dict[str, Reader] = field(default_factory=dict)  # the ladder and Prism, by name, where they were fit
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
        others = _others(lens_dir, lens, backbone.device)
        recorded = Provenance.read(lens_dir / PROVENANCE).head.data()
        shape = (backbone.n_layers, backbone.d_model)
        if (lens.n_layers, lens.d_model) != shape or recorded != backbone.head.fingerprint():
            raise IntegrityError(
                f"{lens_dir}: fit on another model: (n_layers, d_model) {(lens.n_layers, lens.d_model)} and head "
                f"{recorded}, the model of {corpus_dir} has {shape} and {backbone.head.fingerprint()}. "
                "Nothing was measured."
            )
        sha256 = artifacts.sha256_file(lens_dir / WEIGHTS)
        identity = LensIdentity(weights_sha256=sha256, kind=lens.kind, norm=lens.norm, rank=lens.rank)
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
        return ((lens, layer) for lens in self.names for layer in layers(lens, self.n_layers))

    @property
    def baseline(self) -> str:
        """The norm lens of the tuned lens's own norm."""
        return NORM_LENS[self.lens.norm]

    @property
    def chunk(self) -> int:
        """Positions that are decoded at a time."""
        return positions_at_once(self.backbone.d_vocab)

    def final(self, resid: Tensor) -> Tensor:
        """The model's logits at positions whose residual stream is resid (n, L + 1, d_model): (n, d_vocab)."""
        return self.decode("norm", self.n_layers, resid)

    def text(self, token: int) -> str:
        """A token as text."""
        assert self.backbone.tokenizer is not None  # a bench has one: prompts were tokenized with it
        return str(self.backbone.tokenizer.decode([token]))

    def decode(self, lens: str, layer: int, resid: Tensor) -> Tensor:
        """What one lens reads at one layer of resid (n, L + 1, d_model): logits (n, d_vocab), fp32."""
        if lens in self._fitted:
            return self._fitted[lens].logits(self.backbone.head, resid[:, layer], layer)
        return self.backbone.head.logits(self.head_input(lens, layer, resid[:, layer]))

    def head_input(self, lens: str, layer: int, resid: Tensor) -> Tensor:
        """What W_U reads under one lens of the residual (n, d_model) at one layer: (n, d_model), fp32."""
        head = self.backbone.head
        if lens in self._fitted:
            return self._fitted[lens].head_input(head, resid, layer)
        return resid.float() if lens == RAW else head.norm(resid, layer, "final" if lens == "norm" else "next_input")

    @property
    def _fitted(self) -> dict[str, Reader]:
        return {**self.others, TUNED: self.lens}


def _others(lens_dir: Path, lens: Lens, device: torch.device) -> dict[str, Reader]:
    """The smaller lenses beside a lens, by kind, and Prism.

    Raises:
        IntegrityError: one of them is damaged, of another shape than the lens, or reads through another norm.
    """
    readers: dict[str, Reader] = {}
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


class Target(NamedTuple):
    """The model's own reading of n positions: what every lens is compared with."""

    logits: Tensor  # (n, d_vocab)
    log_p: Tensor  # (n, d_vocab), nats
    p: Tensor  # (n, d_vocab)
    top: Tensor  # (n,)

    @classmethod
    def of(cls, logits: Tensor) -> "Target":
        log_p = logits.log_softmax(-1)
        return cls(logits, log_p, log_p.exp(), logits.argmax(-1))


class Reading(NamedTuple):
    """What a lens reads at n positions, and how far that is from the target."""

    logits: Tensor  # (n, d_vocab)
    log_q: Tensor  # (n, d_vocab), nats
    top: Tensor  # (n,)
    measured: Tensor  # (n, len(MEASURED))


def compare(target: Target, logits: Tensor) -> Reading:
    """MEASURED of a lens's logits (n, d_vocab).

    One log_softmax and five inner products: the functions of `divergence` would take the softmax of both sides anew
    for each number, and this is where a sweep spends its time.
    """
    log_q = logits.log_softmax(-1)
    q, gap, top = log_q.exp(), target.log_p - log_q, logits.argmax(-1)
    dot = torch.linalg.vecdot
    length = logits.norm(dim=-1) * target.logits.norm(dim=-1)
    nats = torch.stack([dot(target.p, gap), -dot(q, gap), -dot(q, log_q)], -1)
    if not bool(nats.isfinite().all()):
        # A token that one side excludes is 0 * inf here; `divergence` knows that it costs nothing.
        kl = divergence.kl_bits(target.logits, logits), divergence.kl_bits(logits, target.logits)
        nats = torch.stack([*kl, divergence.entropy_bits(logits)], -1) / divergence.BITS
    others = torch.stack([dot(logits, target.logits) / length, (top == target.top).float()], -1)
    return Reading(logits, log_q, top, torch.cat([nats * divergence.BITS, others], -1))
