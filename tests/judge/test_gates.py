"""Gates: hand-computed KPIs on small tables, signs, verdicts, intervals."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lensmith.files import artifacts
from lensmith.judge import bootstrap, gates, judging, rows
from lensmith.judge.judgement import Criterion, Estimate, Judgement, Verdict
from lensmith.judge.kpis import first_layers
from lensmith.lens.depth import depth_layer, scaled_layers
from lensmith.process.draws import Stream
from lensmith.process.errors import IntegrityError
from tests.support.judged import LENSES, World, settings


def width_of(judgement: Judgement, kpi: str) -> float:
    estimate = judgement.estimate(kpi)
    assert estimate.lo is not None and estimate.hi is not None
    return estimate.hi - estimate.lo


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_good_lens_passes_every_gate(world: World) -> None:
    """KL 3 -> 1 bits before the last block, the answer 3 of 4 layers earlier: far inside every limit."""
    found = world.judge()

    assert {gate: found.verdicts[gate] for gate in gates.LETTERS} == dict.fromkeys(gates.LETTERS, "pass")
    assert found.preferred == "tuned"
    assert found.number("median_delta_kl_bits_50") == 2.0
    assert found.number("earliness_shift_first_rank_le_10_layers") == 3.0
    assert found.number("rank1_coverage_gain") == pytest.approx(3 / 4)  # at the top from layer 1, not only at layer 4
    assert found.number("heldout_kl_tuned_bits_mean") == 1.0
    assert found.number("final_rank1_share") == 1.0


def break_nothing(world: World) -> None:
    pass


def break_a(world: World) -> None:
    """0.1 bits are saved, less than any limit of A."""
    world.kl = lambda unit, layer, lens: (
        0.0 if layer == 4 else {"tuned": 2.9, "bias": 3.5, "temperature": 4}.get(lens, 3)
    )


def break_b(world: World) -> None:
    world.rank = lambda unit, layer, lens: 0 if layer == 4 else 50


def break_c(world: World) -> None:
    world.last_layer = [0.2] * 5


def break_d(world: World) -> None:
    """On prompts half a bit is lost at layer 3, which is 75 %; on held-out text nothing is."""
    good = world.kl
    world.kl = lambda unit, layer, lens: 3.5 if (layer, lens) == (3, "tuned") else good(unit, layer, lens)
    world.at_position = lambda place, lens, percent: -2.5 if lens == "tuned" else 0.0
    world.on_text = lambda lens, percent: -2.5 if lens == "tuned" else 0.0


def break_f(world: World) -> None:
    """On held-out text the bias lens is as close to the model as the tuned one."""
    world.at_position = lambda place, lens, percent: -1.0 if lens == "bias" else 0.0


def break_g(world: World) -> None:
    """In the first half of the context the tuned lens loses half a bit; over all of it, it still gains."""
    world.at_position = lambda place, lens, percent: {True: 2.5, False: -0.9}[place < 2] if lens == "tuned" else 0.0
    good = world.kl
    world.kl = lambda unit, layer, lens: good(unit, layer, lens) + (layer < 4 and lens in ("bias", "temperature"))


def break_h(world: World) -> None:
    """Each text departs further from a reading without a norm, by a quarter of the scale."""
    world.scores["tuned"] = [0.75] * 4


def break_i(world: World) -> None:
    """On code half a bit is lost at three quarters of depth; on the text that it was fit on the lens gains."""
    world.on_text = lambda lens, percent: 2.5 if lens == "tuned" and percent == 75 else 0.0


def break_j(world: World) -> None:
    """Of 25 to 30 bits half a bit is saved: more than 0.3, and less than a tenth."""
    world.kl = lambda unit, layer, lens: 0.0 if layer == 4 else 25.0 + unit - 0.5 * (lens == "tuned")


@pytest.mark.parametrize(
    ("damage", "failed"),
    [
        (break_nothing, ""), (break_a, "AJ"), (break_b, "B"), (break_c, "C"), (break_d, "ADJ"),
        (break_f, "F"), (break_g, "G"), (break_h, "H"), (break_i, "I"), (break_j, "J"),
    ],
)  # fmt: skip
def test_each_gate_can_fail_alone(world: World, damage: Callable[[World], None], failed: str) -> None:
    """One fact is broken at a time: its gate says so, no other one does, and the tuned lens is not preferred.

    What D calls a loss, A calls too small a gain, with the reference recipe's limits; and what is too small a gain for
    A is too small a share where the norm lens is no more than 3 bits off.
    """
    damage(world)
    found = world.judge()

    assert "".join(gate for gate in gates.LETTERS if found.verdicts[gate] == "fail") == failed
    assert all(found.verdicts[gate] in ("pass", "fail") for gate in gates.LETTERS)
    assert found.preferred == ("norm" if failed else "tuned")


@pytest.mark.parametrize(
    ("limit", "value", "gate"),
    [
        ("delta_kl_bits_50", 2.1, "A"), ("delta_kl_share", 0.7, "J"),
        ("earliness_le_5_layers", 99.0, "B"), ("last_layer_kl_bits", 0.001, "C"),
        ("worst_delta_kl_bits", 2.1, "D"), ("ladder_gain_bits", 1.1, "F"), ("position_delta_kl_bits", 2.1, "G"),
        ("text_delta_kl_bits", 2.1, "I"),
    ],
)  # fmt: skip
def test_each_limit_is_the_settings(world: World, limit: str, value: float, gate: str) -> None:
    """The same rows under another limit: that gate fails, and the limit is in the judgement."""
    found = world.judge(**{limit: value})

    assert (found.verdicts[gate], found.preferred) == ("fail", "norm")
    if gate == "B":
        assert found.earliness_layers[5] == scaled_layers(value, 4)
    else:
        assert value in {check.limit for check in found.gate(gate).checks}


def test_other_text_is_judged_by_itself(world: World) -> None:
    """KL 3 -> 1 bits there too; a quarter of a bit less is saved at half depth. Without such text there is no gate."""
    world.on_text = lambda lens, percent: 0.25 if (lens, percent) == ("tuned", 50) else 0.0
    found = world.judge()
    saved = [found.number(f"text_code_delta_kl_bits_{percent}") for percent in (25, 50, 75)]

    assert saved == [2.0, 1.75, 2.0] and found.number("text_code_delta_kl_bits_50_part_1") == 1.75
    assert [found.number(f"text_code_kl_{lens}_bits_mean") for lens in ("norm", "tuned")] == [3.0, 1.0]
    assert (found.texts["code"].positions, found.texts["code"].tokens_per_byte) == (20, 0.5)

    world.texts = ()
    assert "I" not in world.judge().verdicts


@pytest.mark.parametrize("missing", ["temperature", "bias"])
def test_without_a_ladder_gate_f_is_invalid(world: World, missing: str) -> None:
    """Nothing was fit to compare with: that is no pass. The other gates do not need it."""
    world.lenses = tuple(lens for lens in LENSES if lens != missing)
    found = world.judge()

    assert {g for g in gates.LETTERS if found.verdicts[g] != "pass"} == {"F"}
    assert (found.verdicts["F"], found.gate("F").point, found.preferred) == ("invalid", "invalid", "norm")


@pytest.mark.parametrize(
    ("tuned", "verdict", "point"),
    [
        ([0.5, 0.5, 0.5, 0.5], "pass", "pass"),  # as the norm lens: 0 more
        ([0.2, 0.3, 0.4, 0.1], "pass", "pass"),  # fewer artefacts
        ([0.55, 0.5, 0.55, 0.5], "pass", "pass"),  # 0.025 more, at most 0.05
        ([0.9, 0.8, 0.9, 0.8], "fail", "fail"),  # 0.35 more, at least 0.3
        ([0.5, 0.5, 0.9, 0.9], "inconclusive", "fail"),  # 0.2 more, from 0 to 0.4
        ([0.5, 0.5, 0.5, 0.7], "inconclusive", "pass"),  # 0.05 more, from 0 to 0.2
        ([0.5, 0.5, 0.5, None], "invalid", "invalid"),
    ],
)
def test_gate_h_judges_the_difference_of_artefact_scores(
    world: World, tuned: list[Any], verdict: str, point: str
) -> None:
    """Scores of four texts, each a prompt of its own, against 0.5 of the norm lens and a limit of 0.1."""
    world.scores["tuned"] = tuned
    found = world.judge()

    assert (found.verdicts["H"], found.gate("H").point) == (verdict, point)
    increase = found.number("artifact_score_increase")
    assert increase is None if verdict == "invalid" else increase == pytest.approx(sum(tuned) / 4 - 0.5)


def test_a_probe_is_resampled_with_its_form_without_filler(world: World) -> None:
    """Two prompts of two forms each give a wider interval than four prompts."""
    world.scores["tuned"] = [0.5, 0.5, 0.9, 0.9]
    four = world.judge(bootstrap_samples=2000).estimate("artifact_score_increase")
    world.prompt_of = lambda text: text // 2
    two = world.judge(bootstrap_samples=2000).estimate("artifact_score_increase")

    assert four.lo is not None and two.lo is not None
    assert two.value == four.value and (two.lo, two.hi) == pytest.approx((0.0, 0.4))


def test_without_probes_gate_h_is_invalid(world: World) -> None:
    """No text was read without a norm: the risk is not known."""
    world.scores = {}
    found = world.judge()
    assert (found.verdicts["H"], found.preferred) == ("invalid", "norm")


def test_a_lens_is_judged_at_the_layers_that_it_has(world: World) -> None:
    """Of four layers it lacks the second, at 50 %: that KPI is missing and says why, means are over layers 1 and 3."""
    world.absent = (2,)
    world.kl = lambda unit, layer, lens: {1: 1.0, 2: 50.0, 3: 3.0}.get(layer, 0.0) + (layer < 4) * (lens != "tuned")
    world.rank = lambda unit, layer, lens: 0 if layer >= (2 if lens == "tuned" else 4) else 50
    judged = world.judge()
    checks = {check.kpi: check for check in judged.gate("A").checks}

    assert judged.estimate("heldout_kl_tuned_bits_50").value is None
    assert checks["median_delta_kl_bits_50"].verdict == "invalid"
    assert checks["median_delta_kl_bits_50"].label == "at 50 % depth (this lens lacks layer 2), bits"
    assert checks["median_delta_kl_bits_25"].verdict == "pass"
    assert judged.number("heldout_kl_tuned_bits_mean") == 2 and judged.number("heldout_kl_norm_bits_mean") == 3
    for prefix in ("", "heldout_"):
        assert judged.number(f"{prefix}earliness_shift_first_rank_le_1_layers") == 1  # 4 - 3: none is read at 2
        assert judged.number(f"{prefix}rank1_coverage_gain") == pytest.approx(1 / 3)
    with world.outputs.kl.open() as file:
        assert [int(row["layer"]) for row in csv.DictReader(file) if row["lens"] == "tuned"] == [1, 3, 4]


def test_the_ladder_says_what_each_rung_explains(world: World) -> None:
    """3 -> 2.5 -> 2 -> 1 bits: gains 0.5, 0.5 and 1 of 2 bits."""
    found = world.judge()

    assert " ".join(found.ladder) == "identity temperature bias low_rank"
    assert [found.number(f"ladder_kl_bits_{rung}_50") for rung in found.ladder] == [3.0, 2.5, 2.0, 1.0]
    assert [found.number(f"ladder_gain_bits_{rung}_50") for rung in found.ladder[1:]] == [0.5, 0.5, 1.0]
    assert [found.number(f"ladder_share_{rung}_50") for rung in found.ladder[1:]] == [0.25, 0.25, 0.5]
    assert found.number("heldout_median_delta_kl_bits_50_vs_temperature") == 1.5
    assert found.number("median_delta_kl_bits_50_vs_temperature") == 1.5


@pytest.mark.parametrize(
    ("kind", "order"),
    [("full", "identity temperature bias full"), ("imported", "identity temperature bias imported"),
     ("bias", "identity temperature bias")],
)  # fmt: skip
def test_the_judged_lens_stands_at_its_own_rung(world: World, kind: str, order: str) -> None:
    """Its own numbers are on that rung, whatever else was fit of the kind."""
    world.kind = kind
    found = world.judge()
    assert " ".join(found.ladder) == order
    assert found.number(f"ladder_kl_bits_{kind}_50") == 1.0


def test_parts_of_the_context_are_judged_apart(world: World) -> None:
    """1 bit more in the first part, for both norms: 3 bits are saved there, 2 in the other, 2.5 over both."""
    world.at_position = lambda place, lens, percent: 1.0 if place < 2 and "norm" in lens else 0.0
    found = world.judge()

    assert [found.number(f"position_delta_kl_bits_50_part_{part}") for part in (0, 1)] == [3.0, 2.0]
    assert found.number("heldout_delta_kl_bits_50") == 2.5
    assert (found.parts[1].first, found.parts[1].last) == (8, 15)


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("depth", [25, 50, 75])
def test_one_part_at_one_depth_fails_gate_g(world: World, part: int, depth: int) -> None:
    """Half a bit is lost there and nowhere else: the other five numbers do not make up for it."""
    world.at_position = lambda place, lens, percent: (
        2.5 if (lens, place // 2, percent) == ("tuned", part, depth) else 0.0
    )
    found = world.judge()
    assert (found.verdicts["G"], found.preferred) == ("fail", "norm")


def test_the_share_is_of_the_median_kl_of_the_norm_lens(world: World) -> None:
    break_j(world)
    assert world.judge().number("median_delta_kl_share_50") == pytest.approx(0.5 / 27.5)


def test_kpis_of_answered_prompts_are_those_of_a_suite_of_them(tmp_path: Path) -> None:
    """Of six prompts the model has the answer of the first three on top; the others save more and come later."""
    world, three = World(tmp_path / "six"), World(tmp_path / "three", prompts=3)
    world.rank = lambda unit, layer, lens: {True: 0, False: 50}[layer >= (2 if lens == "tuned" else 4)] + unit // 3
    world.kl = lambda unit, layer, lens: (4 - layer) * (3 - 2 * (lens == "tuned") + unit)
    three.rank, three.kl = world.rank, world.kl
    found, alone = world.judge(), three.judge()
    names = [name.removeprefix("answered_") for name in found.kpis if name.startswith("answered_")]

    assert found.number("final_rank1_share") == 0.5
    assert {"median_delta_kl_share_25", "earliness_share_le_5", "rank1_coverage_gain"} <= set(names)
    for name in names:
        ours = found.estimate(f"answered_{name}")
        assert (ours.value, ours.units) == (alone.number(name), 3) and ours.finite, name
    assert found.number("median_delta_kl_share_50") != found.number("answered_median_delta_kl_share_50")
    world.rank = lambda unit, layer, lens: 50
    assert world.judge().estimate("answered_median_delta_kl_bits_50").units == 0


def test_heldout_earliness_is_of_the_models_own_token(world: World) -> None:
    """At rank 1 from layer 1 on under the tuned lens, from layer 4 on under the norms, at every position."""
    found = world.judge()

    assert found.number("heldout_earliness_shift_first_rank_le_1_layers") == 3.0
    assert found.number("heldout_earliness_share_le_10") == 1.0
    assert found.number("heldout_rank1_coverage_gain") == 0.75


def test_neighbouring_sequences_are_drawn_together(tmp_path: Path) -> None:
    """Two alike sequences in a row, as of one long document: drawn one by one they would promise too much."""
    world = World(tmp_path, seqs=40)
    world.kl = lambda unit, layer, lens: (unit // 2 % 2) * (layer < 4 and lens != "tuned")
    one = world.judge()
    world.block_seqs = 2
    two = world.judge()
    width = [
        found.estimate("heldout_delta_kl_bits_50").hi - found.estimate("heldout_delta_kl_bits_50").lo
        for found in (one, two)
    ]

    assert (one.counts.heldout_resampled_by, two.counts.heldout_resampled_by) == ("sequence", "run of 2 sequences")
    assert width[1] > 1.2 * width[0]


def test_exchanging_the_lenses_turns_the_signs(world: World) -> None:
    """Positive means in favour of the tuned lens: with norm and tuned exchanged, every sign turns."""
    good = world.judge()
    kl, rank = world.kl, world.rank
    swapped = dict.fromkeys(LENSES, "tuned") | {"tuned": "norm"}
    world.kl = lambda unit, layer, lens: kl(unit, layer, swapped[lens])
    world.rank = lambda unit, layer, lens: rank(unit, layer, swapped[lens])
    bad = world.judge()

    for name in ("median_delta_kl_bits_25", "heldout_delta_kl_bits_50", "earliness_shift_first_rank_le_5_layers"):
        assert bad.number(name) == -good.number(name) != 0
    assert bad.number("rank1_coverage_gain") == -good.number("rank1_coverage_gain")
    assert (bad.verdicts["A"], bad.verdicts["B"], bad.verdicts["D"], bad.preferred) == ("fail", "fail", "fail", "norm")


def test_the_baseline_is_the_stronger_norm_at_each_depth(world: World) -> None:
    """At layer 1 norm_next is closer to the model, at layer 2 norm is: the tuned lens must beat the closer one."""
    kl = {("norm", 1): 5.0, ("norm_next", 1): 2.0, ("norm", 2): 2.5, ("norm_next", 2): 9.0}
    world.kl = lambda unit, layer, lens: kl.get((lens, layer), 1.0 if layer < 4 else 0.0)
    found = world.judge()

    assert (found.baselines["median_delta_kl_bits_25"], found.baselines["median_delta_kl_bits_50"]) == (
        "norm_next",
        "norm",
    )
    assert (found.number("median_delta_kl_bits_25"), found.number("median_delta_kl_bits_50")) == (1.0, 1.5)
    assert (found.number("heldout_delta_kl_bits_25"), found.number("heldout_delta_kl_bits_50")) == (1.0, 1.5)
    assert found.number("heldout_kl_norm_bits_25") == 5.0


def test_a_baseline_without_numbers_is_not_the_stronger_one(world: World) -> None:
    """NaN < 2 is false, and so is 2 < NaN: a careless minimum would return whichever came first."""
    world.kl = lambda unit, layer, lens: float("nan") if lens == "norm" and layer == 2 else 1.0 * (layer < 4)
    assert world.judge().baselines["median_delta_kl_bits_50"] == "norm_next"


def test_the_baseline_of_ranks_is_the_norm_that_gets_there_first(world: World) -> None:
    """Rank 1 at layer 4 under norm, at layer 2 under norm_next, at layer 1 tuned: one layer is gained, not three."""
    start = {"norm": 4, "norm_next": 2}
    world.rank = lambda unit, layer, lens: 0 if layer >= start.get(lens, 1) else 3
    found = world.judge()

    names = ("earliness_shift_first_rank_le_1_layers", "rank1_coverage_gain")
    assert [found.baselines[name] for name in names] == ["norm_next", "norm_next"]
    assert found.number("earliness_shift_first_rank_le_1_layers") == 1.0
    assert found.number("rank1_coverage_gain") == pytest.approx(1 / 4)
    assert (
        found.number("earliness_shift_first_rank_le_5_layers") == 0.0
    )  # token_rank 3 from layer 1 on, under every lens


def test_a_crossing_is_where_half_of_the_prompts_are(world: World) -> None:
    """Of six prompts the third arrives at layer 2 under the tuned lens, and only three arrive before layer 4."""
    start = [1, 2, 2, 4, 4, 4]
    world.rank = lambda unit, layer, lens: 0 if layer >= (start[unit] if lens == "tuned" else 3) else 50
    world.judge()
    lines = (world.folder / "kl.csv").read_text().splitlines()

    marked = [line.split(",")[:4] for line in lines if "rank" in line]
    assert marked == [["3", "norm", "3.0", "rank<=10/5/1"], ["2", "tuned", "1.0", "rank<=10/5/1"]]


def test_earliness_counts_a_prompt_that_never_arrives_as_beyond_the_last_layer(world: World) -> None:
    """L = 4. Norm never (layer 5), tuned at layer 2: shift 3. Never under either: left out and counted."""
    world.rank = lambda unit, layer, lens: 0 if lens == "tuned" and layer >= 2 and unit < 4 else 99
    found = world.judge()

    assert found.number("earliness_shift_first_rank_le_1_layers") == 3.0
    assert found.counts.never_in_rank[1] == 2
    assert found.number("earliness_share_le_10") == 1.0


def test_the_median_is_of_prompts_and_the_share_counts_those_at_the_limit(world: World) -> None:
    """Shifts 3 3 1 1 0 0 (L = 4, limit 1 layer): median 1, share of shifts >= 1 is 4/6."""
    start = [1, 1, 3, 3, 4, 4]
    world.rank = lambda unit, layer, lens: 0 if layer >= (start[unit] if lens == "tuned" else 4) else 50
    found = world.judge()

    assert found.earliness_layers[10] == 1.0
    assert found.number("earliness_shift_first_rank_le_10_layers") == 1.0
    assert found.number("earliness_share_le_10") == pytest.approx(4 / 6)
    assert (found.verdicts["B"], found.gate("B").point) == ("inconclusive", "pass")


@pytest.mark.parametrize(
    ("rank", "k", "within"), [(9, 10, True), (10, 10, False), (4, 5, True), (0, 1, True), (1, 1, False)]
)
def test_rank_k_counts_from_one_and_token_rank_from_zero(rank: int, k: int, within: bool) -> None:
    """Rank <= 10 in the reference recipe is token_rank 0..9."""
    found = first_layers(np.array([[99.0, 99.0, float(rank)]]), k, [1, 2])
    assert found.tolist() == [2.0 if within else 3.0]


def test_the_embedding_does_not_count_for_earliness() -> None:
    """A tuned lens has no layer 0; a norm lens that has the answer there must not win by a layer nobody else has."""
    assert first_layers(np.array([[0.0, 0.0, 0.0]]), 1, [1, 2]).tolist() == [1.0]


def test_unaligned_prompts_are_counted_and_left_out_of_ranks(world: World) -> None:
    """Their answer has no first token: no rank, but their KL is as good as any other's."""
    world.aligned = lambda unit: unit > 0
    found = world.judge()

    assert (found.counts.prompts, found.counts.unaligned, found.counts.in_training_text) == (6, 1, 1)
    assert found.verdicts["B"] == found.verdicts["A"] == "pass"


KPI = Estimate(value=0.5, lo=0.4, hi=0.6, units=10)


@pytest.mark.parametrize(
    ("limit", "at_least", "verdict", "point"),
    [
        (0.3, True, "pass", "pass"), (0.4, True, "pass", "pass"), (0.45, True, "inconclusive", "pass"),
        (0.55, True, "inconclusive", "fail"), (0.6, True, "inconclusive", "fail"), (0.7, True, "fail", "fail"),
        (0.7, False, "pass", "pass"), (0.55, False, "inconclusive", "pass"), (0.45, False, "inconclusive", "fail"),
        (0.3, False, "fail", "fail"),
    ],
)  # fmt: skip
def test_a_check_passes_fails_or_straddles(limit: float, at_least: bool, verdict: str, point: str) -> None:
    """0.5 with interval 0.4..0.6 against limits on every side of it, both directions."""
    check = gates.check(Criterion(kpi="k", label="", limit=limit, at_least=at_least), KPI)
    assert (check.verdict, check.point) == (verdict, point)


@pytest.mark.parametrize("at_least", [True, False])
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["value", "lo", "hi"])
def test_a_number_that_is_not_finite_is_invalid(at_least: bool, broken: float, field: str) -> None:
    """NaN passes `not value < limit`, and infinity passes `value >= limit`."""
    numbers = {"value": 0.5, "lo": 0.4, "hi": 0.6, field: broken}
    criterion = Criterion(kpi="k", label="", limit=0.0 if at_least else 1.0, at_least=at_least)
    check = gates.check(criterion, Estimate(**numbers, units=10))
    assert check.verdict == check.point == "invalid"


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["pass", "pass"], "pass"), (["pass", "inconclusive"], "inconclusive"),
        (["inconclusive", "fail"], "fail"), (["fail", "invalid", "pass"], "invalid"),
    ],
)  # fmt: skip
def test_the_worst_word_stands_for_the_gate(words: list[Verdict], word: str) -> None:
    """One number on the wrong side fails a gate whatever the others say; a broken one judges nothing."""
    assert gates.verdict_of(words) == word


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_row_makes_its_gates_invalid_and_never_reaches_json(world: World, broken: float) -> None:
    """One infinite KL of six would leave the median finite: finiteness is asked of rows, not of results."""
    good = world.kl
    world.kl = lambda unit, layer, lens: broken if (unit, layer, lens) == (3, 2, "tuned") else good(unit, layer, lens)
    found = world.judge()

    assert found.estimate("median_delta_kl_bits_50") == Estimate(value=None, lo=None, hi=None, units=6)
    assert "d50" not in artifacts.read_json(world.outputs.metrics)
    assert (found.verdicts["A"], found.verdicts["D"], found.verdicts["C"], found.preferred) == (
        "invalid",
        "invalid",
        "pass",
        "norm",
    )


def test_an_empty_suite_is_invalid(tmp_path: Path) -> None:
    """Nothing was asked: no gate on prompts may pass."""
    found = World(tmp_path, prompts=0).judge()
    assert [found.verdicts[gate] for gate in "ABCDF"] == ["invalid", "invalid", "pass", "invalid", "pass"]
    assert found.counts.prompts == 0


def test_fewer_prompts_than_the_minimum_are_invalid(world: World) -> None:
    """Six prompts where seven are asked for."""
    found = world.judge(min_prompts=7)
    assert [found.verdicts[gate] for gate in "ABCDF"] == ["invalid", "invalid", "pass", "invalid", "pass"]


def test_the_last_layer_has_a_limit_from_above(world: World) -> None:
    """C asks for a small number: 0.2 bits is too far from the model."""
    world.last_layer = [0.2] * 5
    assert world.judge().verdicts["C"] == "fail"
    world.last_layer = [None, 0.01, 0.01, 0.01, 0.01]
    assert world.judge().verdicts["C"] == "invalid"


def test_templates_are_drawn_as_a_whole(tmp_path: Path) -> None:
    """Two values in 10 templates of 6 alike prompts: drawn prompt by prompt the interval would be much narrower."""
    world = World(tmp_path, prompts=60)
    world.kl = lambda unit, layer, lens: 2.0 + (unit // 6) % 2 if lens != "tuned" and layer < 4 else 0.0
    world.rank = lambda unit, layer, lens: 0 if layer >= (1 if lens == "tuned" and (unit // 6) % 2 else 4) else 50
    world.template = lambda unit: f"t{unit // 6}"
    by_template = world.judge(bootstrap_samples=2000)
    world.template = lambda unit: f"t{unit}"
    by_prompt = world.judge(bootstrap_samples=2000)

    assert width_of(by_template, "earliness_share_le_10") > 1.8 * width_of(by_prompt, "earliness_share_le_10")


def test_few_templates_are_not_resampled(world: World) -> None:
    """One template drawn once is always itself: an interval of no width would turn every `inconclusive` to a word."""
    world.template = lambda unit: "only"
    start = [1, 1, 3, 3, 4, 4]
    world.rank = lambda unit, layer, lens: 0 if layer >= (start[unit] if lens == "tuned" else 4) else 50
    found = world.judge()

    assert found.counts.suite_resampled_by == "prompt"
    assert found.estimate("earliness_share_le_10").lo < found.estimate("earliness_share_le_10").hi


@pytest.mark.parametrize("statistic", [bootstrap.mean, bootstrap.median])
def test_intervals_cover_a_known_truth(statistic: bootstrap.Statistic) -> None:
    """200 samples of 60 draws around 1.0: a 90 % interval should cover it in about 180 of them."""
    source = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        draws = bootstrap.draw(range(60), 400, Stream(trial, "test"))
        low, high = bootstrap.interval(statistic, source.normal(1.0, 2.0, 60), draws, 0.9)
        covered += low <= 1.0 <= high
    assert 165 <= covered <= 195


def test_resampled_statistics_are_those_of_the_written_out_sample() -> None:
    """Weighted by counts or repeated so often, the same numbers, odd and even sizes alike."""
    values = np.array([3.0, -1.0, 7.0, 7.0, 2.0, 0.5])
    draws = bootstrap.draw("aabbcd", 50, Stream(1, "test"))
    other = values**2 + 1
    written = [np.repeat(np.arange(6), row) for row in draws.counts[:, draws.member]]

    assert bootstrap.median(values, draws) == pytest.approx([np.median(values[w]) for w in written])
    assert bootstrap.mean(values, draws) == pytest.approx([np.mean(values[w]) for w in written])
    both = np.stack([values, other], axis=1)
    assert bootstrap.ratio(both, draws) == pytest.approx([values[w].sum() / other[w].sum() for w in written])
    kept = np.array([True, False, True, True, False, True])
    of_kept = [values[[i for i in w if kept[i]]] for w in written]
    assert bootstrap.median(values[kept], draws.only(kept)) == pytest.approx([np.median(w) for w in of_kept])
    assert (draws.counts[:, draws.member[0]] == draws.counts[:, draws.member[1]]).all()


def test_judging_twice_gives_the_same_bytes_and_another_seed_another_interval(world: World) -> None:
    """Draws are a function of the seed: a re-run changes no file."""
    start = [1, 1, 3, 3, 4, 4]
    world.kl = lambda unit, layer, lens: 0.0 if lens == "tuned" else start[unit] * 1.37
    first, bytes_ = world.judge(), (world.folder / "metrics.json").read_bytes()

    assert world.judge() == first
    assert (world.folder / "metrics.json").read_bytes() == bytes_
    assert world.judge(seed=1, bootstrap_samples=100) != first


@pytest.mark.parametrize(
    ("n_layers", "layers"),
    [
        (1, (1, 1, 1)), (2, (1, 1, 2)), (3, (1, 2, 2)), (4, (1, 2, 3)), (5, (1, 2, 4)), (32, (8, 16, 24)),
        (42, (10, 21, 32)),
    ],
)  # fmt: skip
def test_percentiles_of_depth_are_those_of_the_reference_recipe(n_layers: int, layers: tuple[int, ...]) -> None:
    """round(L * p), halves to even (42 -> 10, 21, 32), never the embedding, never beyond L."""
    assert tuple(depth_layer(n_layers, percent) for percent in (25, 50, 75)) == layers


@pytest.mark.parametrize(
    ("limit", "n_layers", "scaled"), [(4, 32, 4), (4, 80, 4), (4, 12, 2), (4, 6, 1), (4, 2, 1), (2, 24, 2), (0, 6, 0)]
)
def test_limits_in_layers_shrink_with_the_model(limit: float, n_layers: int, scaled: float) -> None:
    """4 of 32 layers are an eighth of the depth; at least one layer; a limit of none stays none."""
    assert scaled_layers(limit, n_layers) == scaled


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_shallow_models_are_judged(tmp_path: Path, n_layers: int) -> None:
    """One block is the last block: the lens can win nothing, and says so without an error."""
    found = World(tmp_path, n_layers=n_layers).judge()
    assert found.verdicts["C"] == "pass"
    if n_layers == 1:
        assert found.number("median_delta_kl_bits_50") == 0.0


def test_rows_of_another_lens_are_refused(world: World) -> None:
    """A sweep of the new lens and a suite of the old one give metrics of neither."""
    world.write()
    about = artifacts.read_json(world.suite / "suite.json")
    other = about["lens"] | {"weights_sha256": "1" * 64}
    for changed in ({"lens": other}, {"lenses": ["norm", "norm_next", "tuned"]}):
        artifacts.write_json(world.suite / "suite.json", {**about, **changed})
        with pytest.raises(IntegrityError, match=f"different lenses: {next(iter(changed))} is"):
            rows.read(world.sweep, world.suite)


@pytest.mark.parametrize("name", ["run.json", "suite.json"])
def test_facts_of_older_code_are_refused_in_one_line(world: World, name: str) -> None:
    """What is missing, and how the file is written again; a KeyError would say neither."""
    world.write()
    path = (world.sweep if name == "run.json" else world.suite) / name
    data = artifacts.read_json(path)
    del data["lens"]["rank"]
    artifacts.write_json(path, data)
    with pytest.raises(IntegrityError, match=rf"{name}: lens\.rank is missing\. `dvc repro` writes it again"):
        rows.read(world.sweep, world.suite)


def test_an_edited_suite_is_refused(world: World) -> None:
    """The settings know the suite's sha256 as resolve saw it; the rows know the one that was measured."""
    world.write()
    changed = settings()
    suite = changed.suite.model_copy(update={"inputs": {"suites/atlas.jsonl": "f" * 64}})
    with pytest.raises(IntegrityError, match=r"suites/atlas\.jsonl: not the edition"):
        judging.run(changed.model_copy(update={"suite": suite}), world.sweep, world.suite, world.outputs)
    assert not world.outputs.judgement.exists() and not world.outputs.metrics.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: text.rindex("\n", 0, -1) + 1], "must hold each of 20 positions once"),
        (lambda text: text.replace("\n0,4,", "\n0,0,", 1), "must hold each of 20 positions once"),
        (lambda text: text.replace(",tuned,", ",tunnel,", 1), "positions.csv:82"),
        (lambda text: text.replace(",3.0,", ",3.0.0,", 1), "positions.csv:2"),
    ],
)
def test_damaged_positions_are_refused(world: World, damage: Callable[[str], str], message: str) -> None:
    """Position by position each lens must have its number, or a KPI would be of other text than it says."""
    world.write()
    path = world.sweep / "positions.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(IntegrityError, match=message):
        rows.read(world.sweep, world.suite)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: text.rindex("\n", 0, -1) + 1], "need"),  # the last line is gone
        (lambda text: text.replace(",tuned,", ",tuned,", 1) + text.splitlines()[-1] + "\n", "need"),  # one line twice
        (lambda text: text.replace(",tuned,", ",tunnel,", 1), "rows.csv:20"),
        (lambda text: text.replace(",3.0,", ",3.0.0,", 1), "rows.csv:2"),
    ],
)
def test_damaged_rows_are_refused(world: World, damage: Callable[[str], str], message: str) -> None:
    """A CSV cut short would otherwise be judged as a smaller suite."""
    world.write()
    path = world.suite / "rows.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(IntegrityError, match=message):
        rows.read(world.sweep, world.suite)


def test_plots_have_every_lens_and_the_crossings(world: World) -> None:
    """Norm layers 0..4, fitted layers 1..4; the answer is first on top at 4 under norm, at 1 under tuned."""
    world.lenses = ("raw", *LENSES)  # of which the suite was not asked
    rounding = -8.6e-10  # another on each kind of CPU
    world.kl = lambda unit, layer, lens: rounding if layer == 4 else unit + {"tuned": 1.0}.get(lens, 3.0)
    world.judge()
    with (world.folder / "kl.csv").open() as file:
        rows = list(csv.DictReader(file))

    assert list(rows[0]) == ["layer", "lens", "kl_final_lens_bits", "crossing", "lo", "hi", "guide"]
    wanted = [(lens, layer) for lens in world.lenses for layer in world.layers(lens)]
    assert [(row["lens"], int(row["layer"])) for row in rows] == wanted
    # Sequences differ by whole bits: the interval is around the mean, and none where all are equal.
    for row in rows:
        value, lo, hi = (float(row[name]) for name in ("kl_final_lens_bits", "lo", "hi"))
        assert lo < value < hi if row["layer"] != "4" else lo == value == hi == 0
    guides = [(row["lens"], row["layer"], row["guide"]) for row in rows if row["guide"]]
    assert guides == [("tuned", "1", "25 %"), ("tuned", "2", "50 %"), ("tuned", "3", "75 %")]
    # Marks of more lenses would hide each other.
    marked = {(row["lens"], row["layer"]): row["crossing"] for row in rows if row["crossing"]}
    assert marked == {("norm", "4"): "rank<=10/5/1", ("tuned", "1"): "rank<=10/5/1"}
    cosine = (world.folder / "cosine.csv").read_text()
    assert cosine.startswith("layer,lens,cos_to_final,crossing,lo,hi,guide\n0,raw,0.5,,")


def test_metrics_are_a_page_that_fits_a_terminal(world: World) -> None:
    """DVC prints a column for each key, at least two characters wider than its name; a dot would be a level."""
    world.kl = lambda unit, layer, lens: 0.0 if layer == 4 else {"tuned": 2 / 3, "bias": 1.23456789}.get(lens, 3.0)
    world.last_layer = [7.1e-10] * world.seqs
    world.judge()
    found = artifacts.read_json(world.outputs.metrics)

    assert (found["kl25"], found["bias"], found["norm"], found["last"]) == (0.66667, 1.2346, 3.0, 0.0)
    assert (found["gates"], found["preferred"], found["n"]) == ("pass", "tuned", 6)
    assert len(found) <= 40 and all(isinstance(value, int | float | str) for value in found.values())
    assert not any(set(key) & set("./@") for key in found)


def test_metrics_name_the_gates_that_do_not_pass(world: World) -> None:
    """A verdict is a word in them, and its gates follow."""
    world.last_layer = [0.2] * 5
    world.rank = lambda unit, layer, lens: 0 if layer == 4 else 50
    world.scores["tuned"] = [0.5, 0.5, 0.9, 0.9]
    world.judge()

    assert artifacts.read_json(world.outputs.metrics)["gates"] == "fail BC, ? H"


def test_verdicts_are_in_a_table_that_git_keeps(world: World) -> None:
    """A line for each check that readers see, with its interval and its limit."""
    world.last_layer = [0.2] * 5
    judged = world.judge()
    with world.outputs.verdicts.open() as file:
        rows = list(csv.DictReader(file))

    wanted = [(gate.letter, check.verdict, check.kpi) for gate in judged.gates for check in gate.shown]
    assert [(row["gate"], row["verdict"], row["kpi"]) for row in rows] == wanted
    last = next(row for row in rows if row["gate"] == "C")
    assert (last["verdict"], *map(float, (last["value"], last["lo"], last["hi"]))) == ("fail", 0.2, 0.2, 0.2)
    assert last["limit"].startswith("≤ 0.05")


def test_the_lenses_stand_side_by_side_in_a_table_that_git_keeps(world: World) -> None:
    """KL of each lens that was measured; what it holds only where prompts have an intermediate."""

    def table() -> dict[tuple[str, str], str]:
        world.judge()
        with world.outputs.lenses.open() as file:
            return {(row["lens"], row["number"]): row["value"] for row in csv.DictReader(file)}

    without = table()
    assert list(dict.fromkeys(lens for lens, _ in without)) == list(LENSES)
    assert {number for _, number in without} == {"kl_25", "kl_50", "kl_75", "kl_mean", "causal_cosine"}
    assert [float(without[lens, "kl_50"]) for lens in LENSES] == [3.0, 3.0, 2.5, 2.0, 1.0]
    world.middle = lambda unit, layer, lens: 0 if lens == "bias" else 7
    told = table()
    assert [float(told[lens, "within_5"]) for lens in LENSES] == [0, 0, 0, 1, 0]
    assert [float(told[lens, "answered_within_10"]) for lens in LENSES] == [1] * 5
    assert told["bias", "chance_1"] == ""


def test_a_judgement_is_read_as_it_was_written(world: World) -> None:
    """Full precision, also of its intervals; a file of another form is refused with the field that is wrong."""
    found = world.judge()
    path = world.outputs.judgement
    found.write(path)
    assert Judgement.read(path) == found

    data = artifacts.read_json(path)
    for harm, message in (
        ({"kpis": {"a": {"value": 1.0, "lo": 0.5, "hi": None}}}, r"kpis\.a\.units is missing"),
        ({"gates": []}, "gates is"),
        ({"old": 1}, "old is not a field"),
    ):
        artifacts.write_json(path, data | harm)
        with pytest.raises(IntegrityError, match=rf"judgement\.json: {message}.*`dvc repro` writes it again"):
            Judgement.read(path)
