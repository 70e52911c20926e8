"""The walk over the vocabulary against whole logits in fp64."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lensmith.judge import walk
from lensmith.lens import divergence, tiles
from lensmith.source.head import Head, HeadInput, Transform

D_VOCAB, D_MODEL, N, TOP = 50, 8, 9, 4


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head_of(transform: Transform, bias: Tensor | None) -> Head:
    return Head(drawn(D_VOCAB, D_MODEL, seed=0), bias, transform, nn.Identity(), (None,), "")


def read(head: Head, inputs: dict[str, HeadInput], final: Tensor, **options: Any) -> dict[str, walk.Reading]:
    """The readings by lens, of a stream whose last layer is what the head reads."""
    stream = final[:, None].expand(-1, 2, -1)
    found = walk.read(head, stream, [(lens, 1) for lens in inputs], lambda lens, *_: inputs[lens], **options)
    return {lens: found[lens, 1] for lens in inputs}


BIASES = {"none": None, "bias": drawn(D_VOCAB, seed=1), "excluded": drawn(D_VOCAB, seed=1)}
BIASES["excluded"][7] = -torch.inf  # type: ignore[index]


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("transform", [Transform(), Transform(scale=0.3), Transform(scale=2.0, softcap=5.0)])
def test_every_number_is_that_of_whole_logits(transform: Transform, bias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 13 tokens, the last one short; near and far readings, with and without a temperature of their own."""
    monkeypatch.setattr(tiles, "TOKENS", tiles.TOKENS._replace(cpu=13))
    head = head_of(transform, BIASES[bias])
    final, far, targets = drawn(N, D_MODEL, seed=2), drawn(N, D_MODEL, seed=3), torch.arange(2 * N).reshape(N, 2) % 50
    inputs = {
        "same": HeadInput(final),
        "near": HeadInput(final + 1e-3 * far),
        "far": HeadInput(far, torch.tensor(0.3)),
        "as far": HeadInput(far),
    }
    found = read(head, inputs, final, targets=targets, top_k=TOP)

    assert found["same"].measured[:, :2].abs().max() < 5e-7
    p = head.logits(final).double()
    for lens, (y, log_tau) in inputs.items():
        z, reading = head.logits(y, log_tau).double(), found[lens]
        tokens = torch.cat([p.argmax(-1)[:, None], targets], 1)
        expected = [divergence.kl_bits(p, z), divergence.kl_bits(z, p), divergence.entropy_bits(z)]
        if bias != "excluded" or transform.softcap is not None:  # else the cosine has an infinite length
            expected.append(divergence.cosine(z, p))
        for column, values in enumerate(expected):
            torch.testing.assert_close(reading.measured[:, column], values, rtol=1e-5, atol=2e-6)
        assert torch.equal(reading.measured[:, -1], (z.argmax(-1) == p.argmax(-1)).double())
        assert torch.equal(reading.top, z.argmax(-1))
        assert torch.equal(reading.ranks, torch.stack([divergence.token_rank(z, t) for t in tokens.T], 1))
        assert torch.equal(reading.top_ids, z.topk(TOP).indices)
        torch.testing.assert_close(reading.top_log_q, z.log_softmax(-1).topk(TOP).values, rtol=1e-5, atol=2e-6)
        q = z.softmax(-1).gather(1, tokens)
        torch.testing.assert_close(reading.log_q.exp(), q, rtol=1e-5, atol=1e-7)


def test_a_product_is_shared_where_the_head_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five readings of two inputs take two products a tile, beside the two of the model."""
    products = []
    monkeypatch.setattr(tiles.Tile, "products", lambda tile, y, out: products.append(y) or torch.mm(y, tile.W_U.T))
    y, other = drawn(N, D_MODEL, seed=2), drawn(N, D_MODEL, seed=3)
    taus = (0.1, 0.2, 0.3, 0.4)
    inputs = {f"tau {tau}": HeadInput(y.clone(), torch.tensor(tau)) for tau in taus} | {"other": HeadInput(other)}
    read(head_of(Transform(), None), inputs, y)

    assert len(products) == 2 + 2


def test_progress_counts_every_reading_of_every_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tile by tile, and all of them at the end: 9 positions in two parts, 3 readings."""
    monkeypatch.setattr(tiles, "TOKENS", tiles.TOKENS._replace(cpu=13))
    monkeypatch.setattr(walk, "ROWS", walk.ROWS._replace(cpu=5))
    done: list[int] = []
    final = drawn(N, D_MODEL, seed=2)
    stream = final[:, None].expand(-1, 2, -1)
    names = [("a", 1), ("b", 1), ("c", 1)]
    walk.read(
        head_of(Transform(), None), stream, names, lambda *which: HeadInput(which[-1][:, -1]), advance=done.append
    )

    assert (sum(done), len(done)) == (N * len(names), 2 * 4)
    assert max(done) <= 6


@pytest.mark.parametrize("rows", [1, 6, 100])  # positions at which a walk is full
def test_texts_that_share_a_walk_are_read_as_each_alone(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "ROWS", walk.ROWS._replace(cpu=rows))
    head, names, sizes = head_of(Transform(), None), [("lens", 0), ("lens", 1)], (3, 1, 5)
    texts = [(drawn(n, 2, D_MODEL, seed=n), torch.arange(n)[:, None]) for n in sizes]

    def reads(_lens: str, layer: int, stream: Tensor) -> HeadInput:
        return HeadInput(stream[:, layer])

    together = list(walk.read_each(head, iter(texts), names, reads, top_k=TOP))

    assert len(together) == len(texts)
    for (stream, targets), found in zip(texts, together, strict=True):
        alone = walk.read(head, stream, names, reads, targets=targets, top_k=TOP)
        for name in names:
            for got, expected in zip(found[name], alone[name], strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-6)
