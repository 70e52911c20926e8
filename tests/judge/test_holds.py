"""What a lens holds, from rows made by hand."""

from pathlib import Path

import pytest

from tests.support.judged import World

# Token ranks of the intermediate, of chance and of the answer at layers 0 to 4 of five prompts, under one lens.
MIDDLE = [[0, 0, 7, 9, 0], [0, 40, 3, 3, 0], [0, 50, 40, 20, 0], [0, 90, 12, 0, 0], None]
CHANCE = [[0, 99, 99, 4, 0], [0, 99, 99, 99, 0], None, [0, 99, 0, 99, 0], None]
ANSWER = [[0, 5, 0, 0, 0], [0, 9, 2, 9, 0], [0, 9, 9, 30, 3], [0, 9, 9, 9, 0], [0, 0, 0, 0, 0]]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Under the norm lens the ranks above; under all others nothing is found."""
    world = World(tmp_path, prompts=5)

    def of(table: list[list[int] | None], elsewhere: int) -> object:
        def rank(unit: int, layer: int, lens: str) -> int | None:
            ranks = table[unit]
            return None if ranks is None else ranks[layer] if lens == "norm" or layer == 4 else elsewhere

        return rank

    world.middle, world.chance, world.rank = of(MIDDLE, 70), of(CHANCE, 80), of(ANSWER, 60)  # type: ignore[assignment]
    return world


def test_what_the_norm_lens_holds(world: World) -> None:
    """By hand, over layers 1 to 3 of the four prompts with an intermediate; three of them have one by chance."""
    norm = world.judge().holds[0]

    assert norm.lens == "norm"
    assert {k: (share.value, share.units) for k, share in norm.within.items()} == {
        10: (0.75, 4),
        5: (0.75, 4),
        1: (0.5, 4),
    }
    assert {k: (share.value, share.units) for k, share in norm.by_chance.items()} == {
        10: (pytest.approx(2 / 3), 3), 5: (pytest.approx(2 / 3), 3), 1: (pytest.approx(1 / 3), 3),
    }  # fmt: skip
    # Best layers 1, 2 (the first of two), 3, 3 of 4: the median lies between 2 and 3. The answer is above it at one.
    assert (norm.best_depth.value, norm.skip_ahead.value) == (2.5 / 4, 0.25)
    assert norm.by_layer == (1.0, 0.25, 0.5, 0.75, 1.0)


def test_what_other_lenses_hold(world: World) -> None:
    """Every lens of the suite has a record; no number stands at a layer that a lens has not."""
    judged = world.judge()
    tuned = judged.holds[-1]

    assert tuple(holding.lens for holding in judged.holds) == world.lenses
    assert (tuned.within[10].value, tuned.by_chance[10].value, tuned.skip_ahead.value) == (0.0, 0.0, 1.0)
    assert (tuned.best_depth.value, tuned.by_layer) == (0.25, (None, 0.0, 0.0, 0.0, 1.0))


def test_the_same_over_the_prompts_that_the_model_answers(world: World) -> None:
    """The third prompt's answer is not on top at the end: what is left of four are three."""
    held = world.judge().holds_answered[0]

    assert held.within[10].units == held.skip_ahead.units == 3
    assert (held.within[10].value, held.skip_ahead.value) == (1.0, pytest.approx(1 / 3))


def test_intervals_are_over_prompts_and_hold_the_number(world: World) -> None:
    """Below eight templates prompts are resampled; a share that differs between prompts has some width."""
    share = world.judge().holds[0].within[10]

    assert share.has_interval
    assert share.lo is not None
    assert share.hi is not None
    assert share.lo < 0.75 <= share.hi


def test_a_suite_without_intermediates_holds_nothing(tmp_path: Path) -> None:
    """Its judgement is as it was before: no record, no number that is missing."""
    judged = World(tmp_path).judge()

    assert judged.holds == judged.holds_answered == ()
