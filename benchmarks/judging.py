"""What a lens reads, measured: the walk over the vocabulary against whole logits, and temperatures on kept logits.

One layer is read by five lenses, as a sweep reads it: two norms, a temperature (which shares the first norm's logits),
a bias and a tuned lens. The head is random, of the size of a real one. Both ways give the same numbers of each position
(`walk.MEASURED`, the rank of the model's own answer), and each is compared with float64.

    walk           `judge.walk.read`
    whole logits   how the sweep measured before: a log_softmax and about ten passes over (positions, d_vocab) tensors
                   that are made anew for each lens and layer
    floor          the products of the four different head inputs alone, tile by tile in one buffer

and for one temperature of the norm lens at one layer, by Newton steps

    kept           `lens.temperature.fit` on logits that are decoded once
    decoded anew   how it was fit before: at each step, in pieces that hold 2**25 logits
    floor          the product of the logits, once
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import common
from lensmith.judge import walk
from lensmith.lens import divergence, temperature, tiles
from lensmith.source.head import Head, HeadInput, Transform

SHAPES = ((49_152, 576, 1024), (131_072, 2048, 384))  # d_vocab, d_model, positions
WHOLE_LOGITS = 2**25  # held at a time, before
COLUMNS = ("d_vocab", "d_model", "work", "way", "positions", "seconds", "spread", "ratio_to_ours", "largest_error")


# Which of a stream's layers a lens reads here, and log tau.
LENSES = {"norm": (0, 0.0), "norm_next": (1, 0.0), "temperature": (0, 0.5), "bias": (2, 0.2), "tuned": (3, 0.1)}


@dataclass(frozen=True)
class Case:
    """A head, and in place of a residual stream (n, 5, d_model) four head inputs and the one after the last block."""

    head: Head
    stream: Tensor

    @classmethod
    def draw(cls, d_vocab: int, d_model: int, positions: int) -> "Case":
        generator = torch.Generator().manual_seed(d_vocab)
        W_U = torch.randn(d_vocab, d_model, generator=generator) / d_model**0.5
        final = 3 * torch.randn(positions, d_model, generator=generator)
        far = torch.tensor([3.0, 2.0, 1.5, 1.0, 0.0])[:, None]
        stream = final[:, None] + far * torch.randn(positions, 5, d_model, generator=generator)
        return cls(Head(W_U, None, Transform(), nn.Identity(), (None,), "none"), stream)

    def double(self) -> "Case":
        """The same in float64."""
        return Case(replace(self.head, W_U=self.head.W_U.double()), self.stream.double())

    def head_reads(self, lens: str, _layer: int, stream: Tensor) -> HeadInput:
        layer, log_tau = LENSES[lens]
        return HeadInput(stream[:, layer], torch.tensor(log_tau))


Numbers = dict[str, Tensor]  # lens -> (n, len(MEASURED) + 1): MEASURED and the rank of the model's own answer


def by_walk(case: Case) -> Numbers:
    read = walk.read(case.head, case.stream, [(lens, 1) for lens in LENSES], case.head_reads)
    return {lens: torch.cat([read[lens, 1].measured, read[lens, 1].ranks.double()], 1) for lens in LENSES}


def by_whole_logits(case: Case) -> Numbers:
    parts: dict[str, list[Tensor]] = {lens: [] for lens in LENSES}
    for stream in case.stream.split(max(1, WHOLE_LOGITS // len(case.head.W_U))):
        logits = case.head.logits(stream[:, -1])
        log_p = logits.log_softmax(-1)
        p, top = log_p.exp(), logits.argmax(-1)
        for lens in LENSES:
            z = case.head.logits(*case.head_reads(lens, 1, stream))
            numbers = _compared(logits, log_p, p, z)
            parts[lens].append(torch.cat([numbers, divergence.token_rank(z, top)[:, None]], 1))
    return {lens: torch.cat(pieces) for lens, pieces in parts.items()}


def _compared(logits: Tensor, log_p: Tensor, p: Tensor, z: Tensor) -> Tensor:
    dot, log_q = torch.linalg.vecdot, z.log_softmax(-1)
    q, gap = log_q.exp(), log_p - log_q
    length = z.norm(dim=-1) * logits.norm(dim=-1)
    nats = torch.stack([dot(p, gap), -dot(q, gap), -dot(q, log_q)], -1)
    agree = (z.argmax(-1) == logits.argmax(-1)).to(z)
    return torch.cat([nats * divergence.BITS, (dot(z, logits) / length)[:, None], agree[:, None]], -1)


def kept(case: Case) -> float:
    p = case.head.logits(case.stream[:, -1]).softmax(-1)
    return temperature.fit(case.head.logits(case.stream[:, 0]), p)


def decoded_anew(case: Case) -> float:
    streams = case.stream.split(max(1, WHOLE_LOGITS // len(case.head.W_U)))
    expected = []
    for stream in streams:
        p, z = case.head.logits(stream[:, -1]).softmax(-1), case.head.logits(stream[:, 0])
        expected.append(torch.where(p > 0, p * z, 0.0).sum(-1))

    def sums(b: float) -> Iterator[tuple[float, float]]:
        for stream, part in zip(streams, expected, strict=True):
            z = case.head.logits(stream[:, 0])
            q = (b * z).softmax(-1)
            mean = torch.where(q > 0, q * z, 0.0).sum(-1)
            spread = torch.where(q > 0, q * (z - mean[:, None]) ** 2, 0.0).sum(-1)
            yield float((mean - part).double().sum()), float(spread.double().sum())

    return temperature.search(sums)


def products(case: Case, layers: Sequence[int]) -> None:
    """Logits of some layers, tile by tile in one buffer."""
    rows = walk.ROWS.cpu
    (buffer,) = tiles.buffers(case.head, rows, 1)
    for stream in case.stream.split(rows):
        for tile in tiles.tiles(case.head):
            for layer in layers:
                tile.products(stream[:, layer], buffer)


Ways = dict[str, Callable[[Case], Any]]
READINGS: Ways = {"walk": by_walk, "whole logits": by_whole_logits, "floor": lambda case: products(case, range(4))}
TEMPERATURES: Ways = {"kept": kept, "decoded anew": decoded_anew, "floor": lambda case: products(case, [0])}


def largest_error(case: Case, way: Callable[[Case], Any]) -> float:
    """Of both KLs, the entropy and the cosine at a few positions, over the larger of 1 and the number in float64."""
    few = Case(case.head, case.stream[:64])
    exact, found = by_whole_logits(few.double()), way(few)
    errors = [(found[lens] - exact[lens]).abs() / exact[lens].abs().clamp(min=1) for lens in LENSES]
    return max(float(error[:, :4].max()) for error in errors)


def main(arguments: Sequence[str] | None = None) -> None:
    cli = common.parser(__doc__)
    cli.add_argument("--repeats", type=int, default=3)
    cli.add_argument("--vocabularies", type=int, nargs="+", default=[d_vocab for d_vocab, *_ in SHAPES])
    cli.add_argument("--positions", type=int, help="instead of those of each shape")
    args = common.parsed(cli, arguments)
    chosen = [shape for shape in SHAPES if shape[0] in args.vocabularies]
    shapes, repeats = ([(97, 8, 8)], 1) if args.quick else (chosen, args.repeats)
    rows: list[list[object]] = []
    for d_vocab, d_model, positions in shapes:
        case = Case.draw(d_vocab, d_model, args.positions or positions)
        for work, ways in (("readings", READINGS), ("temperature", TEMPERATURES)):
            timings = common.in_turns({name: partial(way, case) for name, way in ways.items()}, repeats)
            ours = next(iter(timings.values())).median
            for name, timing in timings.items():
                exact = work == "readings" and name != "floor"
                error = largest_error(case, READINGS[name]) if exact else None
                numbers = [timing.median, timing.spread, timing.median / ours, error]
                rows.append([d_vocab, d_model, work, name, len(case.stream), *numbers])
    text = [
        f"Five lenses at one layer, or one temperature; float32; rounds in turns: {repeats}.",
        "Errors are of both KLs, the entropy (bits) and the cosine, against float64: relative or, below 1, absolute.",
        common.table(
            ("vocabulary", "d_model", "work", "way", "positions", "ms", "spread", "time over ours", "largest error"),
            [_shown(row) for row in rows],
        ),
    ]
    common.publish(args.out, "judging", "Judging: readings and temperatures", text, COLUMNS, rows)


def _shown(row: list[object]) -> list[object]:
    *which, spent, spread, ratio, error = row
    assert isinstance(spent, float)
    return [*which, 1e3 * spent, f"{spread:.0%}", f"{ratio:.2f}", None if error is None else f"{error:.0e}"]


if __name__ == "__main__":
    main()
