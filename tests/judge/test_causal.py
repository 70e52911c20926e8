"""What a lens causes: changes of a residual, the model's answer to them, and their cosine with what a lens says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lensmith.judge import causal
from lensmith.judge.bench import Bench
from lensmith.judge.tables import CAUSAL_COLUMNS, DIRECTIONS
from tests.support.bench import tiny_bench
from tests.support.judged import World

SEQS, FIRST = 5, 7


@pytest.fixture(scope="module")
def bench() -> Bench:
    return tiny_bench("llama", every=True)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(2, 97, (SEQS, 40), generator=torch.Generator().manual_seed(1))


def test_a_change_of_one_residual_runs_on(bench: Bench, tokens: torch.Tensor) -> None:
    """Written out: the blocks from that layer on, called by hand on the changed stream; unchanged, nothing changes."""
    at = torch.full((SEQS, 1), tokens.shape[1] - 1)
    resid = bench.backbone.capture(tokens, at)[:, 0]
    changed = resid[:, 2] + torch.randn(SEQS, bench.backbone.d_model, generator=torch.Generator().manual_seed(2))
    whole = bench.backbone.capture(tokens, torch.arange(tokens.shape[1]).expand_as(tokens))[:, :, 2].clone()
    whole[:, -1] = changed
    model = bench.backbone.model.model
    places = torch.arange(tokens.shape[1])[None]
    mask = torch.full((tokens.shape[1], tokens.shape[1]), -torch.inf).triu(1)[None, None]
    with torch.inference_mode():
        for block in model.layers[2:]:
            whole = block(whole, attention_mask=mask, position_embeddings=model.rotary_emb(whole, places))

    torch.testing.assert_close(causal.run_on(bench.backbone, tokens, 2, changed), whole[:, -1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(causal.run_on(bench.backbone, tokens, 2, resid[:, 2]), resid[:, -1])
    assert not bench.backbone.anatomy.blocks[1]._forward_hooks


def test_the_cosine_is_of_weighted_centred_changes() -> None:
    """By the definition in fp64: log-ratios to the weighted geometric mean, so that a constant changes nothing."""
    draw = np.random.default_rng(0)
    p = draw.dirichlet(np.ones(9), 4)
    s, r = draw.normal(size=(2, 4, 9))
    measured = causal.alignment(*(torch.from_numpy(x) for x in (p, s + 3.0, r))).numpy()
    for weights, changes, (cosine, s_bits, r_bits) in zip(p, np.stack([s, r], 1), measured, strict=True):
        a, b = (change - np.average(change, weights=weights) for change in changes)
        inner = np.average(a * b, weights=weights)
        lengths = [np.sqrt(np.average(x * x, weights=weights)) for x in (a, b)]
        assert cosine == pytest.approx(inner / lengths[0] / lengths[1])
        assert (s_bits, r_bits) == pytest.approx(tuple(length / np.log(2) for length in lengths))


def test_every_lens_is_compared_with_the_same_changes(bench: Bench, tokens: torch.Tensor) -> None:
    """A line for each text, layer, direction and lens; the response to a change is the same for all lenses."""
    lines = [dict(zip(CAUSAL_COLUMNS, line, strict=True)) for line in causal.lines(bench, tokens, 3, FIRST)]
    responses = {(line["seq"], line["layer"], line["direction"]): set() for line in lines}
    for line in lines:
        responses[line["seq"], line["layer"], line["direction"]].add(line["response_bits"])

    assert len(lines) == SEQS * 2 * len(DIRECTIONS) * len(bench.names)
    assert {line["seq"] for line in lines} == set(range(FIRST, FIRST + SEQS))
    assert all(len(response) == 1 for response in responses.values())
    assert all(-1 <= line["cosine"] <= 1 for line in lines)


def test_where_the_last_block_does_nothing_the_norm_lens_says_what_comes(bench: Bench, tokens: torch.Tensor) -> None:
    """There the model reads the layer before as the norm lens does."""
    silent = bench.backbone.anatomy.blocks[-1].register_forward_hook(lambda _m, args, _out: args[0].clone())
    try:
        lines = [dict(zip(CAUSAL_COLUMNS, line, strict=True)) for line in causal.lines(bench, tokens, 3, FIRST)]
    finally:
        silent.remove()
    cosines = [line["cosine"] for line in lines if line["lens"] == "norm" and line["layer"] == bench.n_layers - 1]
    assert min(cosines) > 0.999


def test_all_changes_of_a_layer_are_as_long_and_those_of_the_lens_move_it_most(
    bench: Bench, tokens: torch.Tensor
) -> None:
    """STEP of the root mean square distance from the mean; and a lens answers its own directions more than any."""
    at = torch.arange(20, 40).expand(SEQS, -1)
    resid = bench.backbone.capture(tokens, at)[:, :, 1]
    p = bench.final(bench.backbone.capture(tokens, at)[:, -1]).softmax(-1)
    changes = dict(causal.directions(bench, resid, p, 1, 3))
    around = resid.flatten(0, 1) - resid.flatten(0, 1).mean(0)
    head, h = bench.backbone.head, resid[:, -1]
    before = bench.lens.logits(head, h, 1).log_softmax(-1)

    def moved(change: torch.Tensor) -> float:
        stimulus = bench.lens.logits(head, h + 1e-2 * change, 1).log_softmax(-1) - before
        return float(causal.alignment(p, stimulus, stimulus)[:, 1].mean())

    for change in changes.values():
        wanted = causal.STEP * float(around.square().sum(-1).mean().sqrt())
        torch.testing.assert_close(change.norm(dim=-1), torch.full((SEQS,), wanted))
    assert moved(changes["lens"]) > 1.2 * moved(changes["random"])


def test_kpis_are_means_over_layers_and_directions(tmp_path: Path) -> None:
    """By hand: 0.1 a layer for the tuned lens; 0, 0.1, … by sequence for the norm lens, so an interval around 0.2.

    Directions of the judged lens are of one entry alone, so a number that entries are compared by leaves them out.
    """
    world = World(tmp_path)
    cosine = {"tuned": lambda seq, layer: 0.1 * layer}
    world.cosine = lambda seq, layer, lens, direction: (
        0.9 if direction == "lens" else cosine.get(lens, lambda seq, layer: 0.1 * seq)(seq, layer)
    )
    judged = world.judge()

    assert judged.number("causal_cosine_tuned") == pytest.approx(0.2)
    assert judged.number("causal_cosine_random_tuned") == pytest.approx(0.2)
    assert judged.number("causal_cosine_lens_tuned") == pytest.approx(0.9)
    norm = judged.estimate("causal_cosine_norm")
    assert norm.value == pytest.approx(0.2) and 0 <= norm.lo < 0.15 and 0.25 < norm.hi <= 0.4
    assert "3,tuned,0.3," in world.outputs.causal.read_text()
