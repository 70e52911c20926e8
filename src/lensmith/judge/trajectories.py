"""Trajectories: what the norm lens and a tuned lens read at every layer and position of one text.

With p the model's final distribution at a position and q what a lens reads there, one number for each layer and
position:

    entropy_bits         H(q)
    kl_final_lens_bits   KL(p || q)
    kl_lens_final_bits   KL(q || p)
    final_token_rank     the place of the model's own answer (the top token of p) in q, 0 = top
    p_final_token        its probability under q
    next_token_rank      the rank of the token that follows in the text; nothing at the last position
    next_token_bits      -log2 of its probability under q: the lens's cross-entropy with the text
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lensmith.files import artifacts
from lensmith.judge import walk
from lensmith.judge.bench import Bench
from lensmith.judge.tables import TRAJECTORIES, Floats
from lensmith.judge.walk import MEASURED, LayeredLens, Reading
from lensmith.lens import divergence
from lensmith.process.errors import InputError
from lensmith.process.progress import Progress
from lensmith.source.backbone import Backbone
from lensmith.source.configuration import max_length

Ints = NDArray[np.int64]

LENSES = ("norm", "tuned")
STATISTICS = (
    "entropy_bits", "kl_final_lens_bits", "kl_lens_final_bits", "final_token_rank", "p_final_token", "next_token_rank",
    "next_token_bits",
)  # fmt: skip
TOP_K = 5


@dataclass(frozen=True)
class LensReading:
    """One lens at n positions of a text."""

    layers: tuple[int, ...]  # ascending, the last one L; the tuned lens has none for the embedding
    top_ids: Ints  # (layers, n, k): the likeliest tokens, likeliest first
    top_p: Floats  # (layers, n, k)
    statistics: dict[str, Floats]  # name -> (layers, n); NaN where there is no next token

    @classmethod
    def of(cls, by_layer: Mapping[int, Reading], known: Tensor) -> "LensReading":
        """From a reading of each layer, ascending, whose target is the next token where `known` (n,) is true."""
        bits = [MEASURED.index(name) for name in STATISTICS[:3]]
        tables = [
            torch.cat(
                [
                    reading.measured[:, bits],
                    reading.ranks[:, :1],
                    reading.log_q[:, :1].exp(),
                    torch.where(known, reading.ranks[:, 1], torch.nan)[:, None],
                    torch.where(known, -divergence.BITS * reading.log_q[:, 1], torch.nan)[:, None],
                ],
                1,
            )
            for reading in by_layer.values()
        ]
        return cls(
            tuple(by_layer),
            np.stack([reading.top_ids.numpy() for reading in by_layer.values()]),
            np.stack([reading.top_log_q.exp().numpy() for reading in by_layer.values()]),
            dict(zip(STATISTICS, torch.stack(tables, 1).permute(2, 1, 0).numpy(), strict=True)),
        )

    def packed(self, place: Mapping[int, int]) -> dict[str, Any]:
        """Plain data for a page, see `Readings.packed`; `place` is that of each token in its list of words."""

        def whole(name: str, factor: int) -> Any:
            return np.rint(self.statistics[name] * factor).astype(int).tolist()

        return {
            "layers": list(self.layers),
            "top": [[[place[token] for token in cell] for cell in layer] for layer in self.top_ids.tolist()],
            "p": np.rint(self.top_p * 1000).astype(int).tolist(),
            "entropy": whole("entropy_bits", 100),
            "kl": whole("kl_final_lens_bits", 100),
            "rank": whole("final_token_rank", 1),
            "p_final": whole("p_final_token", 1000),
        }


@dataclass(frozen=True)
class Readings:
    """Both lenses at n positions of one text."""

    positions: tuple[int, ...]
    ids: tuple[int, ...]  # the tokens that stand there
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
            "lenses": {name: reading.packed(place) for name, reading in self.by_lens.items()},
        }


@torch.inference_mode()
def read(
    backbone: Backbone,
    lens: LayeredLens,
    ids: Sequence[int],
    word: Callable[[int], str],
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    top_k: int = TOP_K,
    advance: Callable[[int], None] = lambda _: None,
) -> Readings:
    """Read one text.

    Args:
        ids: the text's tokens, BOS included where the model wants it.
        lens: on the model's device, in memory or on disk.
        word: the text of a token.
        layers: those to read, of 0..L and ascending; None for all. The last one is always read.
        positions: those to read, of range(len(ids)); None for all.
        advance: called with the number of readings done since the last call, one for each lens, layer and position.

    Raises:
        InputError: the text is empty or longer than the model's context.
    """
    options: dict[str, Any] = {"layers": layers, "positions": positions, "top_k": top_k, "advance": advance}
    (readings,) = read_each(backbone, lens, [ids], word, **options)
    return readings


@torch.inference_mode()
def read_each(
    backbone: Backbone,
    lens: LayeredLens,
    texts: Sequence[Sequence[int]],
    word: Callable[[int], str],
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    top_k: int = TOP_K,
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[Readings]:
    """As `read`, of each of some texts, the same positions of each."""
    limit, head, n_layers = max_length(backbone.model.config), backbone.head, backbone.n_layers
    for ids in texts:
        if not ids or (limit is not None and len(ids) > limit):
            raise InputError(f"trajectory: the text has {len(ids)} tokens, must have 1..{limit or 'any number'}")
    at = [torch.arange(len(ids)) if positions is None else torch.tensor(positions) for ids in texts]
    depths = range(n_layers + 1) if layers is None else sorted({*layers, n_layers})
    names = [(name, layer) for name in LENSES for layer in depths if name == "norm" or layer in lens.layers]

    def streams() -> Iterator[tuple[Tensor, Tensor]]:
        for ids, wanted in zip(texts, at, strict=True):
            resid = backbone.capture(torch.tensor([list(ids)]), wanted[None])[0]
            yield resid, torch.tensor([*ids[1:], 0])[wanted].to(resid.device)[:, None]

    each = walk.read_each(head, streams(), names, walk.head_reads(head, lens), top_k=top_k, advance=advance)
    for ids, wanted, found in zip(texts, at, each, strict=True):
        by_lens = {
            name: LensReading.of(
                {layer: found[name, layer] for lens, layer in names if lens == name}, wanted < len(ids) - 1
            )
            for name in LENSES
        }
        read_ids, final_ids = [ids[position] for position in wanted.tolist()], found["norm", n_layers].top.tolist()
        used = {*read_ids, *final_ids, *chain(*(reading.top_ids.flatten().tolist() for reading in by_lens.values()))}
        words = {token: word(token) for token in sorted(used)}
        yield Readings(tuple(wanted.tolist()), tuple(read_ids), tuple(final_ids), words, by_lens)


@dataclass(frozen=True)
class Shown:
    """One text."""

    id: str
    prompt: str
    answer: str
    ids: list[int]


@torch.inference_mode()
def write(folder: Path, bench: Bench, texts: Sequence[Shown], name: str) -> None:
    """Read every text under the norm lens and the tuned lens, with progress under a name.

    Writes `folder`/trajectories.json.
    """
    packed = []
    total = (bench.n_layers + 1 + len(bench.lens.layers)) * sum(len(text.ids) for text in texts)
    with Progress(name, total, "reading") as progress:
        ids = [text.ids for text in texts]
        each = read_each(bench.backbone, bench.lens, ids, bench.text, advance=progress.advance)
        for text, readings in zip(texts, each, strict=True):
            packed.append({"id": text.id, "prompt": text.prompt, "answer": text.answer} | readings.packed())
    artifacts.write_text(folder / TRAJECTORIES, artifacts.canonical_json(packed) + "\n")
