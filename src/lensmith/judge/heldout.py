"""Every lens at every layer on held-out text, and the two tables of it.

A sequence is cut into `positions_per_seq` equal strata, and one position of each is drawn anew for every sequence. So
each position of the context has the same chance, the first ones among them, and a mean over what was measured is a
mean over the context. Strata are joined into parts of the context, narrow at its beginning, where little has been read
and predictions differ most from those further on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lensmith.judge.bench import Bench
from lensmith.judge.facts import ContextPart, HeldoutFacts
from lensmith.judge.tables import RANKS, TUNED, Floats
from lensmith.judge.walk import MEASURED, Name, Reading
from lensmith.lens.depth import PERCENTILES, depth_layer
from lensmith.process.draws import Stream
from lensmith.process.progress import Progress
from lensmith.settings.sections import SweepParams

KL = MEASURED.index("kl_final_lens_bits")
PART_ENDS = (1 / 32, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)  # of the context
CLOSE_BITS = 1.0  # `first_kl_le_1_bit`
MILESTONES = (0.2, 0.4, 0.6)  # of the cosine


@dataclass(frozen=True)
class Heldout:
    """MEASURED at every measured position of held-out text, and where its own most likely token ranks."""

    first: int  # index of the first measured sequence
    seq_len: int
    positions: NDArray[np.int64]  # (n_seqs, p)
    values: dict[tuple[str, int], Floats]  # (lens, layer) -> (n_seqs, p, len(MEASURED))
    ranks: dict[tuple[str, int], NDArray[np.int64]]  # (lens, layer) -> (n_seqs, p), token_rank of the final top-1
    resid: Tensor  # (m, p, L + 1, d_model) of the first sequences, as many as were asked for

    @property
    def n_seqs(self) -> int:
        return len(self.positions)

    @property
    def lenses(self) -> tuple[str, ...]:
        """Those that were measured, in the order of the tables."""
        return tuple(dict.fromkeys(lens for lens, _ in self.values))

    @property
    def parts(self) -> NDArray[np.int64]:
        """The part of the context that each stratum belongs to, (p,)."""
        return np.searchsorted(part_ends(self.positions.shape[1]), np.arange(self.positions.shape[1]), side="right")


def strata(seq_len: int, count: int) -> NDArray[np.int64]:
    """Where each of `count` strata begins, and where the last one ends: (count + 1,)."""
    return np.arange(count + 1) * seq_len // count


def draw_positions(seq_len: int, count: int, seqs: Sequence[int], seed: int) -> NDArray[np.int64]:
    """One position of each stratum for each sequence number, (len(seqs), count)."""
    edges, draws = strata(seq_len, count), Stream(seed, "heldout-positions")
    drawn = [draws.words(count, step=seq) % np.diff(edges).astype(np.uint64) for seq in seqs]
    return edges[:-1] + np.array(drawn, dtype=np.int64).reshape(-1, count)


def part_ends(count: int) -> NDArray[np.int64]:
    """One past the last stratum of each part; parts that hold no stratum are left out."""
    return np.unique([max(1, round(count * end)) for end in PART_ENDS])


@torch.inference_mode()
def measure(
    bench: Bench,
    tokens: Tensor,
    settings: SweepParams,
    first: int = 0,
    *,
    resid_seqs: int = 0,
    lenses: Sequence[str] | None = None,
    name: str = "sweep",
) -> Heldout:
    """MEASURED of every layer on sequences (n, seq_len), which are number `first` and on of the corpus.

    Args:
        lenses: those that are measured; all where it is None.
        name: of its progress.
        resid_seqs: number of sequences, from the first one on, whose residual stream is returned too.
    """
    n, seq_len = tokens.shape
    count = min(settings.positions_per_seq, seq_len)
    positions = draw_positions(seq_len, count, range(first, first + n), settings.seed)
    readings = [reading for reading in bench.decoded if lenses is None or reading[0] in lenses]
    cells, streams = list[dict[Name, Reading]](), list[Tensor]()
    starts = range(0, n, settings.batch_seqs)
    with Progress(name, n * count * len(readings), "reading", extras=len(starts)) as progress:
        for start in starts:
            batch = slice(start, start + settings.batch_seqs)
            with progress.extra():
                resid = bench.backbone.capture(tokens[batch], torch.from_numpy(positions[batch]))
            streams.append(resid[: max(0, resid_seqs - start)])
            cells.append(bench.read(resid.flatten(0, 1), readings, advance=progress.advance))
    whole = {key: Reading.cat([part[key] for part in cells]) for key in readings}
    return Heldout(
        first,
        seq_len,
        positions,
        {key: reading.measured.view(n, count, -1).numpy() for key, reading in whole.items()},
        {key: reading.ranks.view(n, count).numpy() for key, reading in whole.items()},
        torch.cat(streams),
    )


def lines(measured: Heldout) -> Iterator[list[object]]:
    """The lines of heldout.csv, sequence by sequence: means over its positions."""
    means = {key: values.mean(axis=1).tolist() for key, values in measured.values.items()}
    count = measured.positions.shape[1]
    for place in range(measured.n_seqs):
        for (lens, layer), by_seq in means.items():
            yield [measured.first + place, layer, lens, count, *by_seq[place]]


def position_lines(bench: Bench, measured: Heldout) -> Iterator[list[object]]:
    """The lines of positions.csv, lens by lens. All are compared at the layers that the tuned lens has."""
    parts, at = measured.parts.tolist(), bench.layers(TUNED)
    missing = np.full(measured.positions.shape, None)
    for lens in measured.lenses:
        ranks = np.stack([measured.ranks[lens, layer] for layer in at], -1)
        kl = {layer: measured.values[lens, layer][..., KL] for layer in at}
        firsts = [first_layer_where(ranks < k, at) for k in RANKS]
        firsts.append(first_layer_where(np.stack(list(kl.values()), -1) <= CLOSE_BITS, at))
        at_depth = [kl.get(depth_layer(bench.n_layers, percent), missing) for percent in PERCENTILES]
        # As Python's own numbers: a CSV shows NumPy's with their types.
        columns = [column.tolist() for column in (*firsts, (ranks < 1).mean(axis=-1), *at_depth)]
        for (seq, stratum), position in np.ndenumerate(measured.positions):
            where = (measured.first + seq, int(position), parts[stratum], lens)
            yield [*where, *(column[seq][stratum] for column in columns)]


def first_layer_where(reached: NDArray[np.bool_], layers: Sequence[int]) -> NDArray[Any]:
    """The first of n layers where (..., n) is true; None where it never is."""
    first: NDArray[Any] = np.array(layers)[reached.argmax(axis=-1)].astype(object)
    first[~reached.any(axis=-1)] = None
    return first


def facts(bench: Bench, measured: Heldout, block_seqs: int, tokens_per_byte: float | None) -> HeldoutFacts:
    """What run.json says about held-out text.

    Args:
        block_seqs: neighbouring sequences that a bootstrap draws together.
        tokens_per_byte: of the text, where it was recorded.
    """
    count = measured.positions.shape[1]
    edges, ends = strata(measured.seq_len, count), part_ends(count)
    at = {f"p{percent}": depth_layer(bench.n_layers, percent) for percent in PERCENTILES}
    return HeldoutFacts(
        block_seqs=block_seqs,
        n_positions=int(measured.positions.size),
        parts=tuple(
            ContextPart(first=int(edges[a]), last=int(edges[b]) - 1, n_positions=int(b - a) * measured.n_seqs)
            for a, b in zip([0, *ends[:-1]], ends, strict=True)
        ),
        median_kl_final_lens_bits={
            lens: {
                name: float(np.median(measured.values[lens, layer][..., KL])) if layer in bench.layers(lens) else None
                for name, layer in at.items()
            }
            for lens in measured.lenses
        },
        tokens_per_byte=tokens_per_byte,
    )


def milestones(cosine: Mapping[int, float]) -> dict[str, int | None]:
    """The first layer where the cosines of a lens, by layer, reach each of MILESTONES."""
    return {f"ge_{m}": next((layer for layer, c in cosine.items() if c >= m), None) for m in MILESTONES}
