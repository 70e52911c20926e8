"""The reference recipe's rules for large vocabularies, and the heads that take bfloat16."""

from dataclasses import replace

import pytest
import torch

from lensmith.lens.recipe import products_of
from lensmith.lens.schedule import scaled_to_vocabulary
from lensmith.source import skeleton
from tests.support.settings import fit_params
from tests.support.toy_fit import toy_head


@pytest.mark.parametrize(
    ("d_vocab", "layers", "positions", "products"),
    [
        (32_000, 24, 16, "float32"),
        (64_000, 17, 12, "float32"),
        (128_256, 12, 12, "bfloat16"),
        (256_000, 8, 12, "bfloat16"),
    ],
)
def test_layers_and_positions_shrink_with_the_vocabulary(d_vocab, layers, positions, products):
    """24 layers and 16 positions shrink by the square root of 32,000 / d_vocab, down to the floors of 8 and 12."""
    asked = fit_params(vocab_scaling=True, layers_per_step=24, positions_per_seq=16)

    found = scaled_to_vocabulary(asked, d_vocab, n_layers=33)
    assert (found.layers_per_step, found.positions_per_seq, found.products) == (layers, positions, products)


def test_a_floor_never_raises_a_setting_and_without_vocab_scaling_nothing_changes():
    """8 positions stay 8, though the floor is 12."""
    plain, few = fit_params(), fit_params(vocab_scaling=True, positions_per_seq=8)

    assert scaled_to_vocabulary(plain, 256_000, 33) == plain
    assert scaled_to_vocabulary(few, 256_000, 33).positions_per_seq == 8


@pytest.mark.parametrize(
    ("shape", "products", "taken"),
    [
        ((4096, 160), "auto", torch.float32),
        ((49_152, 576), "auto", torch.bfloat16),
        ((49_152, 576), "float32", torch.float32),
        ((23, 12), "bfloat16", torch.bfloat16),
    ],
)
def test_auto_takes_bfloat16_for_large_heads_alone(shape, products, taken, monkeypatch):
    """`auto` on a processor with bfloat16 takes it from LARGE_HEAD on; `bfloat16` takes it for every head."""
    monkeypatch.setattr(skeleton, "has_fast_bf16", lambda _: True)
    head = replace(toy_head(), W_U=torch.empty(shape, device="meta"))

    assert products_of(fit_params(products=products), head) == taken
