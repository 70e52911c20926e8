"""What lenses read at some positions, and how far that is from what the model says, in one walk over the vocabulary.

All numbers of a reading q = softmax(z) are sums over tokens, counts or top tokens, so logits are needed for one tile
(`lens.tiles`) at a time. With p the model's distribution, z' its logits, m and m' the largest logits, and
e = exp(z - m):

    log q      = z - m - log <e, 1>
    H(q)       = log <e, 1> - <e, z - m> / <e, 1>
    KL(p || q) = <p, (z' - m') - (z - m)> + log <e, 1> - log <e', 1>
    KL(q || p) = <e, (z - m) - (z' - m')> / <e, 1> - log <e, 1> + log <e', 1>

The largest logit is subtracted first, so that terms are small where p and q are close, and the KL of equals is 0.
Products and the sums of a tile are float32, sums over tiles float64. p is computed once a tile for all readings, and
readings whose head inputs are equal (a temperature and its norm lens, every lens at the last layer) share a product.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lensmith.judge.tables import DISTANCES, NORM_LENS
from lensmith.lens.divergence import BITS
from lensmith.lens.tiles import LOWEST, Softmax, Tile, buffers, dot, part, tiles, transform
from lensmith.source.head import ByDevice, Head, HeadInput, NormKind

MEASURED = (*DISTANCES, "top1_agree")
ROWS = ByDevice(cpu=256, accelerator=2048)  # positions of a walk; with fewer, products wait for W_U
INPUT_BYTES = 2**28  # of the head inputs of all readings, which are held at once

Name = tuple[str, int]  # lens, layer
HeadReads = Callable[[str, int, Tensor], HeadInput]  # of a lens and layer of a stream (n, L + 1, d_model)
NORM_OF_LENS: dict[str, NormKind] = {lens: norm for norm, lens in NORM_LENS.items()}


class Reading(NamedTuple):
    """What one lens reads at one layer of n positions."""

    measured: Tensor  # (n, len(MEASURED)) float64
    top: Tensor  # (n,), the likeliest token
    ranks: Tensor  # (n, 1 + k): token_rank of the model's own answer, and of each target
    log_q: Tensor  # (n, 1 + k) float64, nats: of the same tokens
    top_ids: Tensor  # (n, top_k), likeliest first
    top_log_q: Tensor  # (n, top_k) float64, nats

    @classmethod
    def cat(cls, parts: Sequence["Reading"]) -> "Reading":
        """The same reading of all positions, from its parts, on the host."""
        return cls(*(torch.cat(tensors).cpu() for tensors in zip(*parts, strict=True)))

    def split(self, counts: Sequence[int]) -> list["Reading"]:
        """Its parts, of so many positions each."""
        return [Reading(*parts) for parts in zip(*(tensor.split(counts) for tensor in self), strict=True)]


class LensLike(Protocol):
    """Something fitted that reads a residual stream through the model's head: a lens or Prism."""

    def head_reads(self, head: Head, resid: Tensor, layer: int, /) -> HeadInput: ...


class LayeredLens(LensLike, Protocol):
    """A lens, in memory or on disk: it has no translator for the embedding, and may lack other layers."""

    @property
    def layers(self) -> tuple[int, ...]: ...


def head_reads(head: Head, lens: LensLike) -> HeadReads:
    """What the head reads under the norm lenses, by their names, and under any other name through `lens`."""

    def reads(name: str, layer: int, stream: Tensor) -> HeadInput:
        kind = NORM_OF_LENS.get(name)
        at_layer = stream[:, layer]
        return HeadInput(head.norm(at_layer, layer, kind)) if kind else lens.head_reads(head, at_layer, layer)

    return reads


def read(
    head: Head,
    resid: Tensor,
    readings: Sequence[Name],
    reads: HeadReads,
    *,
    targets: Tensor | None = None,
    top_k: int = 0,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[Name, Reading]:
    """Some lenses at some layers of n positions.

    Args:
        resid: (n, L + 1, d_model).
        readings: (lens, layer), each of them once.
        reads: what the head reads under a lens at a layer of some rows of `resid`.
        targets: (n, k) ids of tokens to rank, beside the model's own answer.
        top_k: how many of a reading's likeliest tokens to return.
        advance: called with the number of readings done since the last call; they add up to n * len(readings).
    """
    if targets is None:
        targets = torch.empty(len(resid), 0, dtype=torch.long, device=resid.device)
    d_vocab, d_model = head.W_U.shape
    by_memory = INPUT_BYTES // (len(readings) * d_model * head.W_U.itemsize)
    rows = max(1, min(ROWS.of(head.W_U.device), by_memory))
    parts = []
    for stream, wanted in zip(resid.split(rows), targets.split(rows), strict=True):
        inputs = {reading: reads(*reading, stream) for reading in readings}
        model = _Model(head, head.norm(stream[:, -1], len(head.input_norms)))
        sums = {
            name: _Sums(head, value, torch.cat([model.softmax.top[:, None], wanted], 1), min(top_k, d_vocab))
            for name, value in inputs.items()
        }
        _walk(head, model, inputs, sums, advance)
        parts.append({name: reading.finish(model) for name, reading in sums.items()})
    return {reading: Reading.cat([part[reading] for part in parts]) for reading in readings}


def read_each(
    head: Head,
    texts: Iterable[tuple[Tensor, Tensor | None]],
    readings: Sequence[Name],
    reads: HeadReads,
    *,
    top_k: int = 0,
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[dict[Name, Reading]]:
    """As `read`, of each of some texts: short ones share a walk.

    Args:
        texts: residual streams (n, L + 1, d_model), each with the targets (n, k) at its positions, or all without.
    """
    for group in _groups(texts, ROWS.of(head.W_U.device)):
        resid, targets = (
            torch.cat([resid for resid, _ in group]),
            [targets for _, targets in group if targets is not None],
        )
        wanted = torch.cat(targets) if targets else None
        found = read(head, resid, readings, reads, targets=wanted, top_k=top_k, advance=advance)
        parts = {name: reading.split([len(resid) for resid, _ in group]) for name, reading in found.items()}
        for index in range(len(group)):
            yield {name: by_text[index] for name, by_text in parts.items()}


def _groups(texts: Iterable[tuple[Tensor, Tensor | None]], rows: int) -> Iterator[list[tuple[Tensor, Tensor | None]]]:
    """Neighbouring texts that have this many positions together."""
    group: list[tuple[Tensor, Tensor | None]] = []
    for text in texts:
        group.append(text)
        if sum(len(resid) for resid, _ in group) >= rows:
            yield group
            group = []
    if group:
        yield group


def _walk(
    head: Head,
    model: "_Model",
    inputs: Mapping[Name, HeadInput],
    sums: Mapping[Name, "_Sums"],
    advance: Callable[[int], None],
) -> None:
    """Add every tile of the vocabulary to the sums of the model and of each reading."""
    n, d_vocab, groups = len(model.softmax.top), len(head.W_U), by_input(inputs)
    products, z, *scratch = buffers(head, n, 4)
    for tile in tiles(head):
        at_tile = model.add(tile)
        for y, names in groups:
            raw = tile.products(y, products)
            for name in names:
                sums[name].add(transform(head, raw, sums[name].a, z), tile.start, at_tile, scratch)
        advance(n * len(inputs) * tile.stop // d_vocab - n * len(inputs) * tile.start // d_vocab)


def by_input(inputs: Mapping[Name, HeadInput]) -> list[tuple[Tensor, list[Name]]]:
    """The distinct head inputs, each with the names of its readings."""
    groups: dict[tuple[float, ...], list[tuple[Tensor, list[Name]]]] = {}
    for name, value in inputs.items():
        alike = groups.setdefault(tuple(value.y[0].tolist()), [])
        names = next((names for other, names in alike if torch.equal(value.y, other)), None)
        if names is None:
            alike.append((value.y, [name]))
        else:
            names.append(name)
    return [group for alike in groups.values() for group in alike]


class _Model:
    """The model's distribution p: its softmax over all tokens, and tile by tile its values and their sums."""

    def __init__(self, head: Head, final: Tensor) -> None:
        self._head, self._final = head, final
        self.softmax = Softmax(final)
        products, z, e, scratch = buffers(head, len(final), 4)
        for tile in tiles(head):
            self.softmax.add(transform(head, tile.products(final, products), 1.0, z), tile.start, e)
        self._buffers = products, z, e, scratch
        self.log_total = self.softmax.total.log()
        # Sums over the tiles so far: <p, 1>, <p, z - m>, <z, z>
        self.mass, self.p_z, self.z_z = torch.zeros(3, len(final), dtype=torch.float64, device=final.device)

    def add(self, tile: Tile) -> "_ModelTile":
        """Add a tile to the sums; return its values, in buffers that the next one reuses."""
        products, z, p, scratch = self._buffers
        z = transform(self._head, tile.products(self._final, products), 1.0, z)
        below = torch.sub(z, self.softmax.high[:, None], out=part(products, *z.shape))
        p = torch.sub(below, self.log_total.to(z.dtype)[:, None], out=part(p, *z.shape)).exp_()
        before = self.mass
        self.mass = before + p.sum(-1)
        self.p_z += dot(p, below, scratch)
        self.z_z += dot(z, z, scratch)
        return _ModelTile(z, below, p, before)


class _ModelTile(NamedTuple):
    """The model's values at the tokens of a tile, (n, t) each."""

    z: Tensor
    below: Tensor  # z - m
    p: Tensor
    mass_before: Tensor  # (n,): <p, 1> over the tiles before


class _Sums:
    """The sums of one reading over the tiles so far."""

    def __init__(self, head: Head, value: HeadInput, wanted: Tensor, top_k: int) -> None:
        n = len(wanted)
        self.softmax, self.wanted = Softmax(value.y), wanted
        products = torch.linalg.vecdot(head.W_U[wanted], value.y[:, None])
        if head.bias is not None:
            products += head.bias[wanted].clamp(min=LOWEST)
        self.a = math.exp(-float(value.log_tau or 0.0))
        self.z_wanted = transform(head, products, self.a, torch.empty_like(products).flatten())
        self.above = torch.zeros_like(self.z_wanted)
        self.top_z, self.top_ids = value.y.new_empty(n, 0), wanted.new_empty(n, 0)
        self.top_k = top_k
        # With z' and m' the model's: <z, z>, <z, z'>, <e, z - m>, <e, z' - m'>, <p, z - m>
        self.z_z, self.z_model, self.e_z, self.e_model, self.p_z = torch.zeros(
            5, n, dtype=torch.float64, device=wanted.device
        )

    def add(self, z: Tensor, start: int, model: _ModelTile, scratch: Sequence[Tensor]) -> None:
        """Add a tile of logits z (n, t), which are overwritten, by way of two buffers."""
        total, (buffer, products) = self.softmax.total, scratch
        # The same product computed row by row differs in its last bits, and no token may rank above itself.
        rows, columns = ((self.wanted >= start) & (self.wanted < start + z.shape[1])).nonzero(as_tuple=True)
        z[rows, self.wanted[rows, columns] - start] = self.z_wanted[rows, columns]
        self.z_z += dot(z, z, products)
        self.z_model += dot(z, model.z, products)
        for column, bound in enumerate(self.z_wanted.T):
            self.above[:, column] += torch.gt(z, bound[:, None], out=part(buffer, *z.shape)).sum(-1)
        if self.top_k:
            best = z.topk(min(self.top_k, z.shape[1]))
            values, ids = torch.cat([self.top_z, best.values], 1), torch.cat([self.top_ids, start + best.indices], 1)
            self.top_z, order = values.topk(min(self.top_k, values.shape[1]))
            self.top_ids = ids.gather(1, order)
        e, rise = self.softmax.add(z, start, buffer)
        shrink = torch.exp(-rise)
        self.e_z = (self.e_z - rise * total) * shrink + dot(e, z, products)
        self.e_model = self.e_model * shrink + dot(e, model.below, products)
        self.p_z += dot(model.p, z, products) - rise * model.mass_before

    def finish(self, model: _Model) -> Reading:
        """The numbers of the reading, after the last tile."""
        total, high = self.softmax.total, self.softmax.high.double()
        log_total = total.log()
        gap = log_total - model.log_total
        nats = [
            model.p_z - self.p_z + model.mass * gap,
            (self.e_z - self.e_model) / total - gap,
            log_total - self.e_z / total,
        ]
        cosine = self.z_model / (self.z_z * model.z_z).sqrt()
        agree = self.softmax.top == model.softmax.top
        lse = (high + log_total)[:, None]
        return Reading(
            measured=torch.stack([*(value * BITS for value in nats), cosine, agree.double()], 1),
            top=self.softmax.top,
            ranks=self.above.long(),
            log_q=self.z_wanted.double() - lse,
            top_ids=self.top_ids,
            top_log_q=self.top_z.double() - lse,
        )
