"""The plan's rules for large vocabularies, against what its project recorded."""

import pytest

from lensmith.lens import memory
from tests.support.settings import fit_params


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
    """24 layers and 16 positions, by the square root of 32,000 tokens over the model's, with the plan's floors."""
    asked = fit_params(vocab_scaling=True, layers_per_step=24, positions_per_seq=16)

    found = memory.scaled(asked, d_vocab, n_layers=33)
    assert (found.layers_per_step, found.positions_per_seq, found.products) == (layers, positions, products)


def test_without_the_rule_nothing_changes_and_a_floor_never_raises_what_was_asked():
    """8 positions stay 8, though the floor is 12."""
    plain, few = fit_params(), fit_params(vocab_scaling=True, positions_per_seq=8)

    assert memory.scaled(plain, 256_000, 33) == plain
    assert memory.scaled(few, 256_000, 33).positions_per_seq == 8
