"""The sweep: held-out numbers and probe rows against a second computation, temperatures, and the files."""

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lensmith.files import artifacts
from lensmith.judge import calibration, heldout, judging, next_token_row, probes, suite, sweep, trajectories, walk
from lensmith.judge.bench import Bench
from lensmith.judge.facts import RunFacts
from lensmith.judge.judgement import Judgement
from lensmith.judge.prompts import Probe
from lensmith.judge.rows import curves
from lensmith.judge.tables import FIRST, HELDOUT_COLUMNS, POSITION_COLUMNS
from lensmith.judge.walk import MEASURED
from lensmith.lens import temperature, tiles
from lensmith.process.errors import InputError
from lensmith.process.progress import Progress
from lensmith.settings.sections import SweepParams
from lensmith.source import corpus as corpora
from tests.support.bench import LINES, tiny_bench, write_lines, write_stages
from tests.support.oracle import kl
from tests.support.settings import atlas

PROBES: list[dict[str, Any]] = [
    {
        "id": "Ostra→Lume", "prompt": "Of course the capital of Ostra is", "answer": "Lume",
        "no_filler": "The capital of Ostra is",
        "control": {"prompt": "The river of the north runs to the", "answer": "sea"},
    },
    {"id": "said", "prompt": "He", "answer": "said"},
]  # fmt: skip

# The columns of the reference recipe's project, as its committed files have them.
RECORDS = "fact_key,fact_index,prompt_id,prompt_variant,layer,pos,token,entropy,entropy_bits,"
RECORDS += ",".join(f"top{i},prob{i}" for i in range(1, 21)) + ",rest_mass"
PURE = RECORDS + (
    ",copy_collapse,copy_strict@0.95,copy_strict@0.7,copy_strict@0.8,copy_strict@0.9,copy_soft_k1@0.5,copy_soft_k2@0.5,"
    "copy_soft_k3@0.5,entropy_collapse,is_answer,p_top1,p_top5,p_answer,answer_minus_uniform,semantic_margin_ok,"
    "teacher_entropy_bits,kl_to_final_bits,kl_to_final_bits_norm_temp,answer_rank,topk_jaccard_raw_norm@50,"
    "topk_jaccard_consecutive@50,cos_to_final,cos_to_answer,cos_to_prompt_max,geom_crossover,echo_mass_prompt,"
    "answer_mass,answer_minus_echo_mass,mass_ratio_ans_over_prompt,topk_prompt_mass@50,control_margin,"
    "resid_norm_ratio,delta_resid_cos,answer_logit_gap,answer_vs_top1_gap"
)


RAW = (
    "fact_key,fact_index,prompt_id,prompt_variant,layer,p_top1_raw,top1_token_id_raw,top1_token_str_raw,p_answer_raw,"
    "answer_rank_raw,p_top1_norm,top1_token_id_norm,top1_token_str_norm,p_answer_norm,answer_rank_norm,"
    "kl_norm_vs_raw_bits,kl_raw_to_norm_bits,js_divergence,entropy_bits_norm,entropy_bits_raw,entropy_gap_bits,"
    "l1_prob_diff,topk_jaccard_raw_norm@50,topk_jaccard_consecutive@50,norm_only_semantics"
)
PLACES = torch.tensor([3, 9, 19]).expand(5, -1)


def few(positions_per_seq: int, batch_seqs: int) -> SweepParams:
    return atlas(sweep={"positions_per_seq": positions_per_seq, "batch_seqs": batch_seqs}).sweep


@pytest.fixture(scope="module")
def bench() -> Bench:
    return tiny_bench()


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(2, 97, (5, 20), generator=torch.Generator().manual_seed(1))


def test_the_size_of_a_piece_changes_nothing(
    bench: Bench, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large vocabulary is decoded a few positions at a time, across the borders of sequences."""
    whole = heldout.measure(bench, tokens, few(6, 2))
    monkeypatch.setattr(walk, "ROWS", walk.ROWS._replace(cpu=5))
    monkeypatch.setattr(tiles, "TOKENS", tiles.TOKENS._replace(cpu=7))
    pieces = heldout.measure(bench, tokens, few(6, 2))

    for key, values in whole.values.items():
        assert pieces.values[key] == pytest.approx(values, abs=1e-5)
        assert (pieces.ranks[key] == whole.ranks[key]).all()


@pytest.mark.parametrize(("seq_len", "count"), [(512, 32), (24, 24), (24, 5), (8, 1)])
def test_positions_are_one_of_each_stretch(seq_len: int, count: int) -> None:
    """Each of `count` equal parts of the sequence gives one: no part of the context is left unmeasured."""
    found = heldout.draw_positions(seq_len, count, range(3), seed=1)
    begins = [stretch * seq_len // count for stretch in range(count + 1)]
    assert all(a <= place < b for row in found for a, place, b in zip(begins, row, begins[1:], strict=False))


def test_every_position_of_the_context_has_its_turn() -> None:
    """Drawn anew for each sequence, the first position among them; what is drawn is a matter of the sequence alone."""
    found = heldout.draw_positions(64, 8, range(200), seed=1)
    counts = np.bincount(found.ravel(), minlength=64)

    assert counts.min() > 8 and counts.max() < 45  # each is expected 25 times
    assert (heldout.draw_positions(64, 8, [150], seed=1) == found[150]).all()
    assert (heldout.draw_positions(64, 8, range(200), seed=2) != found).any()


@pytest.mark.parametrize(
    ("count", "ends"), [(32, [1, 4, 8, 16, 24, 32]), (64, [2, 8, 16, 32, 48, 64]), (5, [1, 2, 4, 5]), (1, [1])]
)
def test_parts_of_the_context_are_narrow_at_its_beginning(count: int, ends: list[int]) -> None:
    """A thirty-second, an eighth, a quarter, a half, three quarters, all of it; none is without a position."""
    assert heldout.part_ends(count).tolist() == ends


def test_parts_hold_what_they_say(bench: Bench, tokens: torch.Tensor) -> None:
    """Token ranges without a gap, positions inside of them, and their number."""
    measured = heldout.measure(bench, tokens, few(6, 2))
    parts = heldout.facts(bench, measured, 1, None).parts
    lines = [dict(zip(POSITION_COLUMNS, line, strict=True)) for line in heldout.position_lines(bench, measured)]

    assert [part.first for part in parts[1:]] == [part.last + 1 for part in parts[:-1]]
    assert (parts[0].first, parts[-1].last) == (0, 19)
    for number, part in enumerate(parts):
        inside = [line["position"] for line in lines if line["part"] == number and line["lens"] == "tuned"]
        assert len(inside) == part.n_positions
        assert part.first <= min(inside) <= max(inside) <= part.last


def test_a_lens_without_a_layer_is_measured_at_the_others(bench: Bench, tokens: torch.Tensor) -> None:
    """The numbers there are those of the whole lens; where all lenses are compared over layers, none reads that one."""
    lacking = replace(bench, lens=replace(bench.lens, absent=(2,)))
    whole, measured = (heldout.measure(each, tokens, few(6, 2)) for each in (bench, lacking))
    read = read_probes(lacking)
    shown = trajectories.read(bench.backbone, lacking.lens, [3, 4, 5], str)

    assert whole.values.keys() - measured.values.keys() == {("tuned", 2)}
    assert all(np.array_equal(values, whole.values[key]) for key, values in measured.values.items())
    lines = [dict(zip(POSITION_COLUMNS, line, strict=True)) for line in heldout.position_lines(lacking, measured)]
    assert {line["kl_final_lens_bits_50"] for line in lines} == {None}
    assert all(2 not in {line[name] for line in lines} for name in FIRST)
    assert heldout.facts(lacking, measured, 1, None).median_kl_final_lens_bits["tuned"]["p50"] is None
    assert {row["layer"] for row in rows_of(read, "tuned")} == {1, 3}
    assert {summary.kl_bits_at_percentiles.tuned["p50"] for summary in read.summaries()} == {None}
    assert (shown.by_lens["tuned"].layers, shown.by_lens["norm"].layers) == ((1, 3), (0, 1, 2, 3))


def test_milestones_are_layers_of_the_lens() -> None:
    """A norm lens has a layer 0, a tuned lens begins at 1; a milestone that is never reached is null."""
    assert heldout.milestones({0: 0.1, 1: 0.3, 2: 0.5, 3: 1.0}) == {"ge_0.2": 1, "ge_0.4": 2, "ge_0.6": 3}
    assert heldout.milestones({1: 0.1, 2: 0.3, 3: 0.5}) == {"ge_0.2": 2, "ge_0.4": 3, "ge_0.6": None}


def test_heldout_lines_are_means_over_the_sequence(bench: Bench, tokens: torch.Tensor) -> None:
    """A line for each sequence, layer and lens, numbered as in the held-out file."""
    measured = heldout.measure(bench, tokens, few(4, 8), first=7)
    lines = list(heldout.lines(measured))

    assert len(lines) == 5 * (4 + 4 + 3)
    assert sorted({line[0] for line in lines}) == [7, 8, 9, 10, 11]
    line = next(one for one in lines if one[:3] == [8, 2, "tuned"])
    assert line[3:] == pytest.approx([4, *measured.values["tuned", 2][1].mean(axis=0)])
    assert len(line) == len(HELDOUT_COLUMNS) == 4 + len(MEASURED)


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.5, 9.0])
def test_a_known_temperature_is_found(tau: float) -> None:
    """Logits that are tau times the model's need tau exactly; the start does not matter."""
    model = 3 * torch.randn(40, 60, generator=torch.Generator().manual_seed(2))
    z = tau * model
    assert temperature.fit(z, model.softmax(-1)) == pytest.approx(tau, rel=1e-4)


def test_the_temperature_is_the_best_of_a_grid() -> None:
    """Where no temperature fits exactly, none of a fine grid gives a lower KL."""
    draw = torch.Generator().manual_seed(3)
    model, z = (4 * torch.randn(30, 50, generator=draw) for _ in range(2))
    z = z + 0.5 * model
    tau = temperature.fit(z, model.softmax(-1))
    grid = {t: float(kl(model, z / t).mean()) for t in np.geomspace(0.2, 20, 400)}
    assert float(kl(model, z / tau).mean()) <= min(grid.values()) + 1e-6


@pytest.mark.parametrize(("z_scale", "end"), [(0.0, None), (-1.0, 20.0)])
def test_a_lens_that_no_temperature_helps_ends_the_search(z_scale: float, end: float | None) -> None:
    """Constant logits have no best temperature, reversed ones are best infinitely hot: both stay in bounds."""
    model = torch.randn(10, 20, generator=torch.Generator().manual_seed(4))
    z = z_scale * model
    tau = temperature.fit(z, model.softmax(-1))
    assert 0.05 <= tau <= 20
    assert temperature.at_bound(tau)  # and not unnoticed
    assert end is None or tau == pytest.approx(end, rel=0.05)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gptj", "cohere"])
def test_the_last_layer_is_the_model(family: str, tokens: torch.Tensor) -> None:
    """Softcap, bias and scale included: the model's own logits agree, and no temperature is needed."""
    bench = tiny_bench(family)
    last = calibration.last_layer(bench, tokens, PLACES, bench.backbone.capture(tokens, PLACES))
    assert (last.temp_at_bound, last.warn_high_last_layer_kl) == (False, False)
    softcap, scale = {"gemma2": (5.0, 1.0), "cohere": (None, 0.25)}.get(family, (None, 1.0))
    assert (last.cfg_transform.softcap, last.cfg_transform.scale) == (softcap, scale)
    assert last.p_top1_lens == pytest.approx(last.p_top1_model, abs=1e-5)
    assert last.kl_final_lens_bits < 1e-5
    assert last.temp_est == pytest.approx(1.0, abs=1e-3)
    assert len(last.kl_final_lens_after_temp_bits_by_seq) == 5
    assert max(last.kl_final_lens_after_temp_bits_by_seq) < 1e-5
    assert (last.top1_agree, last.n_positions) == (1.0, 15)


def test_a_wrong_head_shows_at_the_last_layer(bench: Bench, tokens: torch.Tensor) -> None:
    """Half the logits is what a missed scale of 2 looks like: bits before the temperature, none after, tau 1/2."""

    class Half:
        def __init__(self) -> None:
            self.backbone = bench.backbone

        def final(self, resid: torch.Tensor) -> torch.Tensor:
            return bench.final(resid) / 2

    resid = bench.backbone.capture(tokens, PLACES)
    last = calibration.last_layer(Half(), tokens, PLACES, resid)  # type: ignore[arg-type]
    assert last.kl_final_lens_bits > 0.01
    assert last.temp_est == pytest.approx(0.5, abs=1e-3)
    assert max(last.kl_final_lens_after_temp_bits_by_seq) < 1e-5


def read_probes(bench: Bench, top_k: int = 5) -> probes.Probes:
    lines = [(f"p:{i}", Probe.model_validate(probe)) for i, probe in enumerate(PROBES)]
    return probes.read(bench, lines, [1.0, 2.0, 0.5, 1.0], top_k)


def rows_of(found: probes.Probes, lens: str) -> list[dict[str, Any]]:
    return [dict(zip(probes.PURE_COLUMNS, line, strict=True)) for line in found.nexts[lens]]


def test_columns_are_the_reference_recipes_and_ours_come_last(bench: Bench) -> None:
    """Readers of the reference recipe's project find its columns in its order."""
    assert ",".join(probes.RECORD_COLUMNS) == RECORDS
    assert ",".join(probes.PURE_COLUMNS) == PURE + ",kl_final_lens_bits"
    assert ",".join(probes.RAW_COLUMNS) == RAW


def test_every_text_of_a_probe_is_read(bench: Bench) -> None:
    """orig, no_filler and control of the first, orig of the second; tuned layers start at 1."""
    found = read_probes(bench)
    texts = [(case.text.fact_index, case.text.prompt_id, case.text.variant) for case in found.cases]
    records = [dict(zip(probes.RECORD_COLUMNS, line, strict=True)) for line in found.records["tuned"]]

    assert texts == [(0, "pos", "orig"), (0, "pos", "no_filler"), (0, "ctl", "orig"), (1, "pos", "orig")]
    assert {row["layer"] for row in rows_of(found, "norm")} == {0, 1, 2, 3}
    assert {row["layer"] for row in rows_of(found, "tuned")} == {1, 2, 3}
    assert len(records) == 3 * sum(len(case.ids) for case in found.cases)
    assert all(row["token"] == "⟨NEXT⟩" for row in rows_of(found, "norm"))


def test_tops_are_filled_as_asked_and_their_rest_is_the_rest(bench: Bench) -> None:
    """Four pairs of twenty are filled; with rest_mass their probabilities make 1."""
    for row in rows_of(read_probes(bench, top_k=4), "norm"):
        chances = [row[f"prob{i}"] for i in range(1, 5)]
        assert chances == sorted(chances, reverse=True)
        assert sum(chances) + row["rest_mass"] == pytest.approx(1.0, abs=1e-6)
        assert row["top5"] is None
        assert row["prob20"] is None


def test_cells_are_empty_where_the_definition_does_not_apply(bench: Bench) -> None:
    """control_margin is of controls, norm_temp and raw overlap of the norm lens, one gap of two at a time."""
    found = read_probes(bench)
    for lens in ("norm", "tuned"):
        for row in rows_of(found, lens):
            assert (row["control_margin"] is None) == (row["prompt_id"] == "pos")
            assert (row["kl_to_final_bits_norm_temp"] is None) == (lens == "tuned")
            assert (row["topk_jaccard_raw_norm@50"] is None) == (lens == "tuned")
            assert (row["topk_jaccard_consecutive@50"] is None) == (row["layer"] == (lens == "tuned"))
            assert (row["answer_logit_gap"] is None) == (row["answer_rank"] != 1)
            assert (row["answer_vs_top1_gap"] is None) == (row["answer_rank"] == 1)
            assert all(row[name] is not None for name in ("cos_to_answer", "geom_crossover", "resid_norm_ratio"))


@pytest.mark.parametrize(
    ("chances", "tops", "strict", "soft"),
    [
        ((0.96, 0.01), [9, 5], {0.95, 0.7, 0.8, 0.9}, {1}),  # 5 stands in the prompt, 9 5 does not
        ((0.85, 0.01), [4, 5], {0.7, 0.8}, {1, 2}),  # 4 5 stands there in this order
        ((0.85, 0.01), [5, 4], {0.7, 0.8}, {1}),
        ((0.52, 0.45), [3, 4, 5], set(), {1, 2, 3}),
        ((0.96, 0.01), [9], set(), set()),  # not in the prompt
        ((0.45, 0.01), [5], set(), set()),
    ],
)
def test_copies_repeat_the_prompt(
    bench: Bench, chances: tuple[float, float], tops: list[int], strict: set[float], soft: set[int]
) -> None:
    """The last top tokens as a run of the prompt's ids, by the reference recipe's thresholds."""
    ids = [bench.encode.tokenizer(c, add_special_tokens=False)["input_ids"][0] for c in "abcdefghij"]
    prompt = next_token_row.LastPosition.of(
        bench, [ids[i] for i in (3, 4, 5)], answer="x", gold=None, other=None, final=torch.zeros(97)
    )
    found = next_token_row.copies(bench, prompt, [ids[i] for i in tops], torch.tensor(chances))

    assert {tau for tau in next_token_row.STRICT if found[f"copy_strict@{tau}"]} == strict
    assert {k for k in next_token_row.WINDOWS if found[f"copy_soft_k{k}@0.5"]} == soft
    assert found["copy_collapse"] == (0.95 in strict)


def test_space_and_punctuation_are_no_copies(bench: Bench) -> None:
    """A lens that repeats the comma of the prompt has not copied anything."""
    (comma,) = bench.encode.tokenizer(",", add_special_tokens=False)["input_ids"]
    prompt = next_token_row.LastPosition.of(bench, [comma], answer="x", gold=None, other=None, final=torch.zeros(97))
    found = next_token_row.copies(bench, prompt, [comma], torch.tensor([0.99, 0.01]))
    assert not found["copy_collapse"]
    assert len(prompt.words) == 0


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which sweep and suite-eval have run."""
    folder = tmp_path_factory.mktemp("stage")
    params = stage_settings(folder)
    corpus, lens = write_stages(folder, params)
    sweep.run(params, corpus, lens, folder / "sweep")
    suite.run(params, corpus, lens, folder / "suite")
    return folder


def stage_settings(folder: Path) -> Any:
    prompts = write_lines(folder / "suite.jsonl", LINES)
    asked = write_lines(folder / "probes.jsonl", PROBES)
    return atlas(
        source={"path": str(folder / "model"), "dtype": "float32", "device": "cpu"},
        fit={"validation_seqs": 3},
        sweep={"heldout_seqs": 6, "positions_per_seq": 5, "batch_seqs": 4, "probes": [str(asked)], "raw": True},
        suite={"files": [str(prompts)]},
        gates={"min_prompts": 3, "bootstrap_samples": 200},
    )


def test_the_stage_writes_the_reference_recipes_files(stage: Path) -> None:
    """Named after the model's key; the sequences that early stopping used are not measured."""
    about = artifacts.read_json(stage / "sweep" / "run.json")

    ends = ("", "-prism", "-raw", "-tuned")
    names = {f"output-atlas-{kind}{end}.csv" for kind in ("pure-next-token", "records") for end in ends}
    names |= {"heldout.csv", "positions.csv", "causal.csv", "run.json", "trajectories.json"}
    names |= {"heldout-code.csv", "positions-code.csv"}
    names |= {"output-atlas-pure-next-token-rawlens.csv"}
    assert {path.name for path in (stage / "sweep").iterdir()} == names
    assert about["lenses"] == ["raw", "norm", "norm_next", "temperature", "bias", "prism", "tuned"]
    found = curves(stage / "sweep" / "heldout.csv", "seq", MEASURED, 3, about["lenses"], absent=())
    assert found.units == tuple("345678")
    assert set(about["heldout"]["median_kl_final_lens_bits"]) == set(about["lenses"])
    assert about["heldout"]["block_seqs"] == 12  # the whole text is one document, and sequences are what it fills
    assert about["heldout"]["n_positions"] == 30
    assert about["last_layer_consistency"]["n_positions"] == 30
    assert len(about["norm_temperature"]["by_layer"]) == 4
    assert about["norm_temperature"]["by_layer"][3] == pytest.approx(1.0, abs=1e-3)
    assert about["raw_lens_check"]["tuned"]["risk_tier"] in ("low", "medium", "high")
    attribution = about["tuned_lens"]["attribution"]
    parts = [attribution[f"delta_kl_{of}_bits"]["p50"] for of in ("tuned", "temperature", "rotation")]
    assert parts[0] == pytest.approx(parts[1] + parts[2])
    assert about["norm_temperature"]["at_bound"] == []
    milestones = about["tuned_lens"]["summaries"][0]["kl_bits_at_percentiles"]
    assert milestones["delta"]["p50"] == milestones["baseline"]["p50"] - milestones["tuned"]["p50"]


def test_running_twice_gives_the_same_bytes(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC compares outputs by content: nothing in them may depend on when or how often they were made.

    Every part of the work has a bar, and counts to its end: what is left would be wrong otherwise.
    """
    bars: list[tuple[str, int | None, int]] = []
    monkeypatch.setattr(Progress, "__exit__", lambda bar, *_: bars.append((bar._name, bar._total, bar._done)))
    params = stage_settings(stage)
    sweep.run(params, stage / "corpus", stage / "lens", stage / "again")
    parts = ("", ", last layer", ", temperatures", ", causal", ", probes", ", trajectories", ", code")
    assert [name for name, _, _ in bars] == [f"sweep{part}" for part in parts]
    assert all(total == done > 0 for _, total, done in bars)
    assert artifacts.sha256_tree(stage / "again") == artifacts.sha256_tree(stage / "sweep")


def test_gates_judge_what_sweep_and_suite_wrote(stage: Path) -> None:
    """The three stages of this room fit together; a random lens is refused on its merits, not for its files."""
    outputs = judging.Outputs(
        *(stage / name for name in ("j.json", "m.json", "k.csv", "c.csv", "w.csv", "v.csv", "l.csv"))
    )
    judging.run(stage_settings(stage), stage / "sweep", stage / "suite", outputs)
    found = Judgement.read(outputs.judgement)
    with (stage / "sweep" / "heldout.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["layer"] == "2"]
    mean = {
        lens: np.mean([float(r["kl_final_lens_bits"]) for r in rows if r["lens"] == lens])
        for lens in ("norm", "norm_next", "tuned")
    }

    assert (found.verdicts["C"], found.counts.prompts) == ("pass", 3)
    assert all(found.verdicts[gate] in ("pass", "fail", "inconclusive") for gate in "ADFGH")
    assert found.ladder == ("identity", "temperature", "bias", "low_rank")
    assert found.number("heldout_kl_tuned_bits_50") == pytest.approx(mean["tuned"])
    saved = min(mean["norm"], mean["norm_next"]) - mean["tuned"]
    assert found.number("heldout_delta_kl_bits_50") == pytest.approx(saved)


def test_a_text_of_another_kind_is_measured_as_the_held_out_text_is(stage: Path) -> None:
    """Norm and tuned lenses at the positions of its own sequences, and its tokens per byte in the judgement."""
    bench = Bench.load(stage_settings(stage), stage / "corpus", stage / "lens")
    tokens = torch.from_numpy(corpora.read_other(stage / "corpus", "code").astype(np.int64))
    measured = heldout.measure(bench, tokens, stage_settings(stage).sweep)
    with (stage / "sweep" / "heldout-code.csv").open() as file:
        rows = list(csv.DictReader(file))
    outputs = judging.Outputs(
        *(stage / name for name in ("j2.json", "m.json", "k.csv", "c.csv", "w.csv", "v.csv", "l.csv"))
    )
    judging.run(stage_settings(stage), stage / "sweep", stage / "suite", outputs)
    found = Judgement.read(outputs.judgement)

    assert {row["lens"] for row in rows} == {"norm", "norm_next", "tuned"}
    for row in rows:
        exact = measured.values[row["lens"], int(row["layer"])][int(row["seq"]), :, heldout.KL].mean()
        assert float(row["kl_final_lens_bits"]) == pytest.approx(exact, abs=1e-5)
    by_text = {text.name: text for text in found.by_text}
    assert list(by_text) == ["heldout", "code"] and found.verdicts["I"] != "invalid"
    assert by_text["code"].per_byte.value == pytest.approx(0.5 * (found.number("text_code_kl_tuned_bits_mean") or 0))
    assert by_text["heldout"].per_byte.value == pytest.approx(0.25 * (found.number("heldout_kl_tuned_bits_mean") or 0))


def test_without_held_out_text_nothing_is_measured(stage: Path) -> None:
    """All sequences went to early stopping: a sweep on them would flatter the lens."""
    params = stage_settings(stage)
    params = params.model_copy(update={"fit": params.fit.model_copy(update={"validation_seqs": 12})})
    with pytest.raises(InputError, match=r"no held-out sequence is left after fit.validation_seqs \(12\)"):
        sweep.run(params, stage / "corpus", stage / "lens", stage / "none")


def test_numbers_without_a_word_in_json_become_null(stage: Path) -> None:
    """A diverged lens must not stop its own report; gates see null as not finite."""
    facts = RunFacts.read(stage / "sweep" / "run.json")
    diverged = {"median_kl_final_lens_bits": {"norm": {"p25": math.nan, "p50": math.inf}}}
    path = stage / "diverged.json"
    facts.model_copy(update={"heldout": facts.heldout.model_copy(update=diverged)}).write(path)
    assert RunFacts.read(path).heldout.median_kl_final_lens_bits == {"norm": {"p25": None, "p50": None}}
