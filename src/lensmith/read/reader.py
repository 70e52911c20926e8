"""A lens bound to its model: `lensmith.bind` gives one, and its head is checked once.

A vector is read in one of two ways. With y(h) what the head reads of a residual h under the lens of a layer (its norm
included), and W_U, tau and g of the head and the lens:

    state       a residual h:            softmax(g(y(h) W_U^T / tau))
    direction   a difference v of two:   J v W_U^T / tau, J = dy/dh, the mean over given states h, or at the center

A direction has no norm to divide by, so that its own length scales what is read: changes of logits per unit of v, to
first order and before a softcap. The center lies amid the residuals of the text that the lens was fit on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.autograd.functional import jvp
from transformers import PreTrainedTokenizerBase

from lensmith.judge import trajectories
from lensmith.lens import divergence
from lensmith.lens.depth import check_layer
from lensmith.lens.lens import Lens
from lensmith.process.errors import InputError
from lensmith.read.text import NOTHING, Text, word
from lensmith.read.trajectory import Trajectory
from lensmith.release import pretrained
from lensmith.release.pretrained import StreamedLens
from lensmith.source.backbone import Backbone
from lensmith.source.borrowed import borrow, evaluating


@dataclass(frozen=True, kw_only=True)
class VectorReading:
    """What a lens reads in vectors of shape (..., d_model).

    Scores are probabilities of states, and of directions changes of logits.
    """

    kind: Literal["state", "direction"]
    words: dict[int, str]  # the text of every token below
    top_ids: Tensor  # (..., top_k), likeliest first
    top_scores: Tensor  # (..., top_k)
    target_ids: tuple[int, ...]
    target_ranks: Tensor  # (..., targets), 0 is the top
    target_scores: Tensor  # (..., targets)
    entropy_bits: Tensor | None = None  # (...), of states
    logits: Tensor | None = None  # (..., d_vocab), where they were asked for

    def __repr__(self) -> str:
        shape = tuple(self.top_ids.shape[:-1])
        return f"VectorReading({self.kind}, vectors={shape}, top_k={self.top_ids.shape[-1]})"

    def frame(self) -> pd.DataFrame:
        """A row for each vector, whose places in the leading dimensions are the columns dim0, dim1, ....

        Columns: entropy_bits of states; top1 and prob1 (change1 of directions), top2, ...; and for each target its
        text, rank and score: target1, target_rank1, target_prob1, ....
        """
        shape, score = self.top_ids.shape[:-1], "prob" if self.kind == "state" else "change"
        columns: dict[str, Any] = {f"dim{n}": index.ravel() for n, index in enumerate(np.indices(shape))}
        if self.entropy_bits is not None:
            columns["entropy_bits"] = self.entropy_bits.flatten().tolist()
        for k, (ids, scores) in enumerate(zip(_columns(self.top_ids), _columns(self.top_scores), strict=True), 1):
            columns[f"top{k}"], columns[f"{score}{k}"] = [self.words[token] for token in ids], scores
        ranks, scores = _columns(self.target_ranks), _columns(self.target_scores)
        for k, token in enumerate(self.target_ids):
            columns[f"target{k + 1}"] = self.words[token]
            columns[f"target_rank{k + 1}"], columns[f"target_{score}{k + 1}"] = ranks[k], scores[k]
        return pd.DataFrame(columns)


def _columns(table: Tensor) -> list[list[Any]]:
    columns: list[list[Any]] = torch.atleast_2d(table).flatten(0, -2).T.tolist()
    return columns


@dataclass(frozen=True)
class Reader:
    """A lens with its model."""

    lens: Lens | StreamedLens
    backbone: Backbone
    head_note: str  # how the head differs from the one that the lens was fit to; "" where it does not

    def __repr__(self) -> str:
        note = f", {self.head_note}" if self.head_note else ""
        return f"Reader({self.lens!r}, {type(self.backbone.model).__name__}{note})"

    def read(
        self,
        vectors: Tensor,
        *,
        layer: int,
        as_: Literal["state", "direction"] = "state",
        at: Tensor | None = None,
        top_k: int = 10,
        targets: str | int | Sequence[str | int] = (),
        logits: bool = False,
    ) -> VectorReading:
        """What the lens reads in vectors of the residual stream: from a hook, a cache, an SAE, or made by yourself.

            reader.read(resid, layer=8).frame()
            reader.read(sae.W_dec, layer=8, as_="direction", at=resid).frame()

        Args:
            vectors: (..., d_model), of any float type, on any device.
            layer: 1 to the number of blocks; layer i is the stream after block i - 1.
            as_: `state` for a residual, which the norm divides by its length; `direction` for a difference of two, such
                as an SAE's decoder row or a steering vector.
            at: (..., d_model), the states at which directions are read: residuals of this layer, to which such a
                direction might be added. The changes are means over them. None for the center that the lens keeps.
            top_k: how many tokens are returned for each vector; of directions, those that rise most.
            targets: tokens whose rank and score are returned, as text (` Paris`, with its space) or ids.
            logits: whether all logits (changes, of directions) are returned too, (..., d_vocab). Gradients pass
                through those of states.

        Raises:
            InputError: a vector or state is no tensor of finite floats of the model's width, a layer is out of range,
                a target is no single token, or `at` is None and the lens keeps no center.
        """
        self._check_layer(layer)
        flat = self._rows("vectors", vectors)
        if as_ not in ("state", "direction"):
            raise InputError(f"read: as_ is {as_!r}, must be 'state' or 'direction'. {NOTHING}")
        if as_ == "state" and at is not None:
            raise InputError(f"read: at is given, so as_ must be 'direction', it is 'state'. {NOTHING}")
        if not 1 <= top_k <= self.backbone.d_vocab:
            raise InputError(f"read: top_k is {top_k}, must be in 1..{self.backbone.d_vocab}. {NOTHING}")
        target_ids = self.tokens(targets)
        states = self._states(at, layer) if as_ == "direction" else None
        parts = []
        with torch.set_grad_enabled(logits and states is None and torch.is_grad_enabled()):
            for rows in flat.split(self.backbone.head.positions_at_once()):
                if states is None:
                    z = self.lens.logits(self.backbone.head, rows, layer)
                else:
                    z = self._changes(rows, states, layer)
                parts.append(_summary(z.detach(), as_, top_k, target_ids) | ({"logits": z} if logits else {}))
        tables = {
            name: torch.cat([part[name] for part in parts]).reshape(vectors.shape[:-1] + table.shape[1:])
            for name, table in parts[0].items()
        }
        words = {token: word(self.backbone, token) for token in {*target_ids, *tables["top_ids"].unique().tolist()}}
        return VectorReading(kind=as_, words=words, target_ids=tuple(target_ids), **tables)

    def transport(self, vectors: Tensor, layer: int) -> Tensor:
        """Residuals of a layer, carried to the last layer by the lens, before any token is read.

            reader.transport(resid, 8) @ model.lm_head.weight[token]    # of a tuned lens, but for its temperature

        Args:
            vectors: (..., d_model), of any float type, on any device.
            layer: 1 to the number of blocks; layer i is the stream after block i - 1.

        Returns:
            (..., d_model), float32, on the head's device; gradients pass through. A Jacobian lens gives J h, and an
            imported one h A^T + h + b, in place of the last layer's residual: the final norm comes next. A tuned lens
            gives y, in place of that residual after its norm: W_U comes next.

        Raises:
            InputError: `vectors` is no tensor of finite floats of the model's width, or the lens lacks the layer.
        """
        self._check_layer(layer)
        rows = self._rows("vectors", vectors)
        return self.lens.transport(self.backbone.head, rows, layer).reshape(vectors.shape)

    def trajectory(
        self,
        text: str | Sequence[int] | Sequence[dict[str, Any]],
        *,
        layers: Iterable[int] | None = None,
        positions: slice | Iterable[int] | None = None,
        targets: str | int | Sequence[str | int] | None = None,
        top_k: int = 5,
        skip_special: bool = False,
    ) -> Trajectory:
        """What the norm lens and the lens read at every layer and position of a text.

            reader.trajectory("The capital of France is").figure()
            reader.trajectory([{"role": "user", "content": "Name a river."}], positions=[-1]).targets()

        Args:
            text: a text, which gets the tokens (BOS) that the tokenizer adds elsewhere; ids as they are; or a chat as a
                list of messages, by the model's own template, opened for an answer unless the last message is one.
            layers: those to read, 0 (the embedding, which the tuned lens does not read) to the number of blocks; None
                for all. The last one, whose answer the others are compared with, is always read.
            positions: those to read, negative ones from the end; None for all.
            targets: what `Trajectory.targets` follows over the layers, as text or ids; None for the tokens that are
                first at any layer.
            top_k: how many of the likeliest tokens are kept for each layer and position.
            skip_special: whether positions of special tokens (BOS, those of a template) are left out.

        Raises:
            InputError: the text is empty, too long or no text, or a layer, position or target does not exist.
        """
        source, n_layers = Text.of(text, self.backbone), self.backbone.n_layers
        depths = None if layers is None else sorted(set(layers))
        if depths is not None and not set(depths) <= set(range(n_layers + 1)):
            raise InputError(f"trajectory: layers are {depths}, must be in 0..{n_layers}. {NOTHING}")
        if top_k < 1:
            raise InputError(f"trajectory: top_k is {top_k}, must be at least 1. {NOTHING}")
        at = source.positions(positions, skip_special=skip_special)
        wanted = None if targets is None else tuple(self.tokens(targets))
        with evaluating(self.backbone.model):
            readings = trajectories.read(
                self.backbone, self.lens, source.ids, partial(word, self.backbone), layers=depths, positions=at,
                top_k=top_k,
            )  # fmt: skip
        return Trajectory(self.backbone, self.lens, source, readings, wanted)

    def tokens(self, targets: str | int | Sequence[str | int]) -> list[int]:
        """The ids of tokens that are given as text or ids.

        Raises:
            InputError: a text is not one token, or an id not of this model.
        """
        ids = []
        for target in [targets] if isinstance(targets, str | int) else targets:
            if isinstance(target, str):
                if self.backbone.tokenizer is None:
                    raise InputError(f"target {target!r} is text, and bind was given no tokenizer. {NOTHING}")
                pieces = self.backbone.tokenizer.encode(target, add_special_tokens=False)
                if len(pieces) != 1:
                    shown = " ".join(repr(word(self.backbone, piece)) for piece in pieces)
                    raise InputError(f"target {target!r} is {len(pieces)} tokens ({shown}), must be one. {NOTHING}")
                ids += pieces
            elif 0 <= target < self.backbone.d_vocab:
                ids.append(int(target))
            else:
                raise InputError(f"target is id {target}, must be in 0..{self.backbone.d_vocab - 1}. {NOTHING}")
        return ids

    def _check_layer(self, layer: int) -> None:
        try:
            check_layer(layer, self.lens.n_layers, self.lens.absent)
        except InputError as error:
            raise InputError(f"read: {error}. {NOTHING}") from None

    def _rows(self, name: str, vectors: object) -> Tensor:
        """Vectors (..., d_model) as rows (n, d_model) on the head's device."""
        if not isinstance(vectors, Tensor):
            raise InputError(
                f"read: {name} is a {type(vectors).__name__}, must be a tensor: some blocks return it in a tuple. "
                f"{NOTHING}"
            )
        width = self.lens.d_model
        if vectors.shape[-1:] != (width,) or not vectors.numel() or not vectors.is_floating_point() or vectors.is_meta:
            raise InputError(
                f"read: {name} is {vectors.dtype} of shape {tuple(vectors.shape)} on {vectors.device}, must be "
                f"(..., {width}): floats of the residual stream. {NOTHING}"
            )
        rows = vectors.to(self.backbone.device).reshape(-1, width)
        if len(wrong := (~rows.isfinite().all(-1)).nonzero()):
            raise InputError(f"read: {name} holds a number that is not finite in row {int(wrong[0])}. {NOTHING}")
        return rows

    def _states(self, at: Tensor | None, layer: int) -> Tensor:
        """The states (m, d_model) of this layer at which directions are read."""
        if at is not None:
            return self._rows("at", at)
        if (center := self.lens.center_at(layer)) is None:
            raise InputError(
                f"read: at is None, and the lens keeps no center of its training text to read directions at, must be "
                f"residuals of layer {layer}. {NOTHING}"
            )
        return center[None].to(self.backbone.device)

    def _changes(self, directions: Tensor, states: Tensor, layer: int) -> Tensor:
        """J v W_U^T / tau of directions (n, d_model), the mean over states (m, d_model): (n, d_vocab)."""
        head, directions = self.backbone.head, directions.float()

        def head_input(resid: Tensor) -> Tensor:
            return self.lens.head_reads(head, resid, layer).y

        change = torch.zeros_like(directions)
        for state in states.float():
            # By two backward passes: torch's forward mode compiles decompositions with a deprecated compiler.
            change += jvp(head_input, state.repeat(len(directions), 1), directions)[1]
        log_tau = self.lens.head_reads(head, states[:1], layer).log_tau
        tau = 1.0 if log_tau is None else torch.exp(log_tau)
        return change @ head.W_U.T * (head.scale / (len(states) * tau))


def bind(
    lens: Lens | StreamedLens,
    model: object,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    strict: bool = True,
) -> Reader:
    """`lensmith.bind`, which says what the arguments and errors are."""
    backbone = borrow(model, tokenizer)
    if tokenizer is not None:
        backbone = replace(backbone, tokenizer=tokenizer)
    with evaluating(backbone.model):
        note = pretrained.check_model(lens, backbone, strict=strict)
    return Reader(lens.to(backbone.device), backbone, note)


def _summary(z: Tensor, as_: str, top_k: int, targets: list[int]) -> dict[str, Tensor]:
    """Fields of a VectorReading, of logits or their changes (n, d_vocab)."""
    top_scores, top_ids = z.topk(top_k)
    scores = z[:, targets]
    ranks = torch.empty_like(scores, dtype=torch.long)
    for column, score in enumerate(scores.T):
        ranks[:, column] = (z > score[:, None]).sum(-1)
    tables = {"top_ids": top_ids, "target_ranks": ranks}
    if as_ == "direction":
        return tables | {"top_scores": top_scores, "target_scores": scores}
    lse = z.logsumexp(-1, keepdim=True)
    states = {"top_scores": (top_scores - lse).exp(), "target_scores": (scores - lse).exp()}
    return tables | states | {"entropy_bits": divergence.entropy_bits(z)}
