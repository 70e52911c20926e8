"""Trajectories: what the norm lens and a tuned lens read at every layer and position of one text.

With p the model's final distribution at a position and q what a lens reads there, one number for each layer and
position:

    entropy_bits         H(q)
    kl_final_lens_bits   KL(p || q)
    kl_lens_final_bits   KL(q || p)
    final_token_rank     the place of the model's own answer (the top token of p) in q, 0 = top
    p_final_token        its probability under q
    next_token_rank      the same for the token that follows in the text; nothing at the last position
    next_token_bits      -log2 of its probability under q: the lens's cross-entropy with the text
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lensmith.files import artifacts
from lensmith.judge.bench import Bench, positions_at_once
from lensmith.judge.tables import TRAJECTORIES, Floats
from lensmith.lens import divergence
from lensmith.process.errors import InputError
from lensmith.source.backbone import Backbone, Head
from lensmith.source.skeleton import max_length

Ints = NDArray[np.int64]

LENSES = ("norm", "tuned")
STATISTICS = (
    "entropy_bits", "kl_final_lens_bits", "kl_lens_final_bits", "final_token_rank", "p_final_token", "next_token_rank",
    "next_token_bits",
)  # fmt: skip
TOP_K = 5


class Decoder(Protocol):
    """What is asked of a Hugging Face tokenizer: the text of one token."""

    def decode(self, token_ids: list[int]) -> Any: ...


class LayerReader(Protocol):
    """What is asked of a lens, in memory or on disk: logits (n, d_vocab) of residuals (n, d_model) at a layer."""

    def logits(self, head: Head, resid: Tensor, layer: int, /) -> Tensor: ...


@dataclass(frozen=True)
class _Cells:
    """One lens at one layer of some positions."""

    top_ids: Ints
    top_p: Floats
    statistics: Floats  # (n, len(STATISTICS))

    @classmethod
    def of(cls, final: Tensor, logits: Tensor, following: Tensor, top_k: int) -> "_Cells":
        answer, known = final.argmax(-1), following >= 0
        follower = following.clamp(min=0)
        log_q = logits.log_softmax(-1)
        p, ids = log_q.exp().topk(top_k)
        columns = (
            divergence.entropy_bits(logits),
            divergence.kl_bits(final, logits),
            divergence.kl_bits(logits, final),
            divergence.token_rank(logits, answer),
            log_q.gather(-1, answer[:, None])[:, 0].exp(),
            torch.where(known, divergence.token_rank(logits, follower), torch.nan),
            torch.where(known, -divergence.BITS * log_q.gather(-1, follower[:, None])[:, 0], torch.nan),
        )
        table = torch.stack([column.double() for column in columns], -1)
        return cls(ids.cpu().numpy(), p.double().cpu().numpy(), table.cpu().numpy())


@dataclass(frozen=True)
class LensReading:
    """One lens over a text of n tokens, at layers first_layer..L."""

    first_layer: int  # 1 for the tuned lens, which has none for the embedding
    top_ids: Ints  # (layers, n, k): the likeliest tokens, likeliest first
    top_p: Floats  # (layers, n, k)
    statistics: dict[str, Floats]  # name -> (layers, n); NaN where there is no next token

    @classmethod
    def of(cls, by_layer: Sequence[list[_Cells]]) -> "LensReading":
        """From the pieces of each layer 0..L; a lens that has none for the embedding begins at layer 1."""
        read = [parts for parts in by_layer if parts]

        def stack(name: str) -> Any:
            return np.stack([np.concatenate([getattr(cell, name) for cell in parts]) for parts in read])

        statistics = stack("statistics")
        by_name = {name: statistics[..., place] for place, name in enumerate(STATISTICS)}
        return cls(len(by_layer) - len(read), stack("top_ids"), stack("top_p"), by_name)


@dataclass(frozen=True)
class Readings:
    """Both lenses over one text of n tokens."""

    ids: tuple[int, ...]
    final_ids: tuple[int, ...]  # the model's own answer at each position
    words: dict[int, str]  # the text of every token that occurs here
    by_lens: dict[str, LensReading]

    def packed(self) -> dict[str, Any]:
        """Plain data for a page: tokens as places in one list of words, bits in hundredths, probabilities per mille.

        The model's own answer at a position is the top token of the last layer: both lenses are the model there.
        """
        place = {token: index for index, token in enumerate(self.words)}
        return {
            "words": list(self.words.values()),
            "tokens": [place[token] for token in self.ids],
            "lenses": {name: _packed(reading, place) for name, reading in self.by_lens.items()},
        }


def _packed(reading: LensReading, place: dict[int, int]) -> dict[str, Any]:
    def whole(name: str, factor: int) -> Any:
        return np.rint(reading.statistics[name] * factor).astype(int).tolist()

    return {
        "first_layer": reading.first_layer,
        "top": [[[place[token] for token in cell] for cell in layer] for layer in reading.top_ids.tolist()],
        "p": np.rint(reading.top_p * 1000).astype(int).tolist(),
        "entropy": whole("entropy_bits", 100),
        "kl": whole("kl_final_lens_bits", 100),
        "rank": whole("final_token_rank", 1),
        "p_final": whole("p_final_token", 1000),
    }


@torch.inference_mode()
def read(backbone: Backbone, lens: LayerReader, ids: Sequence[int], decoder: Decoder, top_k: int = TOP_K) -> Readings:
    """Read one text.

    Args:
        ids: the text's tokens, BOS included where the model wants it.
        lens: on the model's device.

    Raises:
        InputError: the text is empty or longer than the model's context.
    """
    limit = max_length(backbone.model.config)
    if not ids or (limit is not None and len(ids) > limit):
        raise InputError(f"trajectory: the text has {len(ids)} tokens, must have 1..{limit or 'any number'}")
    head, top_k = backbone.head, min(top_k, backbone.d_vocab)
    resid = backbone.capture(torch.tensor([list(ids)]), torch.arange(len(ids))[None])[0]
    followers = torch.tensor([*ids[1:], -1], device=resid.device)
    chunk = positions_at_once(backbone.d_vocab)
    final_ids: list[int] = []
    cells: dict[str, list[list[_Cells]]] = {name: [[] for _ in range(backbone.n_layers + 1)] for name in LENSES}
    for part, following in zip(resid.split(chunk), followers.split(chunk), strict=True):
        final = head.logits(head.norm(part[:, -1], backbone.n_layers))
        final_ids += final.argmax(-1).tolist()
        # One layer of one lens at a time: all of them at once could be gigabytes.
        for layer in range(backbone.n_layers + 1):
            norm = head.logits(head.norm(part[:, layer], layer))
            cells["norm"][layer].append(_Cells.of(final, norm, following, top_k))
            if layer:
                tuned = lens.logits(head, part[:, layer], layer)
                cells["tuned"][layer].append(_Cells.of(final, tuned, following, top_k))
    by_lens = {name: LensReading.of(by_layer) for name, by_layer in cells.items()}
    used = {*ids, *final_ids, *(int(token) for reading in by_lens.values() for token in np.unique(reading.top_ids))}
    words = {token: str(decoder.decode([token])) for token in sorted(used)}
    return Readings(tuple(ids), tuple(final_ids), words, by_lens)


@dataclass(frozen=True)
class Shown:
    """One text."""

    id: str
    prompt: str
    answer: str
    ids: list[int]


def write(folder: Path, bench: Bench, texts: Iterable[Shown]) -> None:
    """Read every text under the norm lens and the tuned lens; write `folder`/trajectories.json."""
    assert bench.backbone.tokenizer is not None  # a bench has one: prompts were tokenized with it
    packed = [
        {"id": text.id, "prompt": text.prompt, "answer": text.answer}
        | read(bench.backbone, bench.lens, text.ids, bench.backbone.tokenizer).packed()
        for text in texts
    ]
    artifacts.write_text(folder / TRAJECTORIES, artifacts.canonical_json(packed) + "\n")
