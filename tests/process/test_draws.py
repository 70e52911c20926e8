"""Draws are the same on every machine and in every release of NumPy."""

import numpy as np

from lensmith.process.draws import Stream


def test_words_are_pinned():
    """Positions, batches and starts follow from these: another machine must draw the same ones."""
    assert [int(word) for word in Stream(316, "positions").words(3, step=2)] == [
        3869958576320581854,
        12636800277802609925,
        5585198718481048637,
    ]


def test_streams_and_steps_are_independent():
    """Two names, or two steps, never share their draws."""
    a, b = Stream(316, "order"), Stream(316, "layers")

    assert not np.array_equal(a.words(8, 0), b.words(8, 0))
    assert not np.array_equal(a.words(8, 0), a.words(8, 1))


def test_a_subset_is_distinct_ascending_and_uniform():
    """Each of n is drawn size / n of the time: 3 of 10 in 4000 steps, within 5 sigma."""
    draws = np.stack([Stream(1, "s").subset(10, 3, step=step) for step in range(4000)])

    assert (np.diff(draws, axis=1) > 0).all()
    counts = np.bincount(draws.ravel(), minlength=10)
    assert np.abs(counts - 1200).max() < 5 * np.sqrt(4000 * 0.3 * 0.7)


def test_normal_draws_have_mean_zero_and_variance_one():
    """Within 5 sigma of the estimates for 40,000 draws, and their fourth moment is 3."""
    draws = Stream(1, "n").normal((200, 200), step=0).astype(np.float64)

    assert abs(draws.mean()) < 5 / 200
    assert abs(draws.var() - 1) < 5 * np.sqrt(2) / 200
    assert abs((draws**4).mean() - 3) < 5 * np.sqrt(96) / 200
