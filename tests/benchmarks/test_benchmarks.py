"""Each benchmark runs in its tiny mode and its numbers are sane. Nothing here asserts a time."""

import csv
import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from benchmarks import (
    capture,
    checkpoint,
    common,
    contenders,
    cost,
    engine,
    gpu_shapes,
    growth,
    held_out,
    jacobian,
    jacobian_readings,
    jacobian_shrinkage,
    judging,
    linear_kl,
    overhead,
    pipeline,
    quality_per_second,
    reading,
    recipe,
    sampled_text,
    shapes,
    variants,
    vocabulary,
)
from lensmith.judge import causal
from lensmith.lens.divergence import kl_bits
from lensmith.source.backbone import Backbone
from lensmith.source.residuals import Batch
from tests.support.bench import random_lens, write_stages
from tests.support.settings import atlas, fit_params
from tests.support.tiny import tiny_model


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    """Children are called and not started: torch alone takes seconds to import."""

    def called(module, function, spec, python=None):
        return json.loads(json.dumps(getattr(importlib.import_module(module), function)(json.loads(json.dumps(spec)))))

    monkeypatch.setattr(common, "in_own_process", called)


def rows_of(path: Path) -> list[dict[str, float | str | None]]:
    def number(text: str) -> float | str | None:
        try:
            return float(text) if text else None
        except ValueError:
            return text

    with path.open() as file:
        return [{name: number(text) for name, text in row.items()} for row in csv.DictReader(file)]


def run(module, folder: Path, *arguments: str) -> list[dict]:
    """A benchmark's tiny mode; the rows of its result."""
    module.main(["--quick", "--out", str(folder), *arguments])
    name = module.__name__.rsplit(".", 1)[-1]
    page = (folder / f"{name}.md").read_text()
    assert all(word in page for word in ("- command: `", "- date: `", "- device: `", "- commit: `"))
    return rows_of(folder / f"{name}.csv")


@pytest.fixture
def packed(tmp_path) -> tuple[Path, str]:
    """A corpus of a tiny model, and the model's folder."""
    model = str(tmp_path / "model")
    corpus, _ = write_stages(tmp_path, atlas(source={"path": model}))
    return corpus, model


@pytest.fixture
def tiny_fit(monkeypatch):
    """Settings of params.yaml at the size of a tiny model."""
    own = contenders.settings_of
    small = {"positions_per_seq": 8, "batch_seqs": 2, "rank": 4}
    monkeypatch.setattr(contenders, "settings_of", lambda spec: own(spec | {"fit": small | spec.get("fit", {})}))
    monkeypatch.setattr(recipe, "settings_of", contenders.settings_of)


@pytest.mark.parametrize("way", [way for way in linear_kl.WAYS if way not in ("compiled", linear_kl.HARD)])
def test_every_way_of_the_kl_computes_the_same(way):
    """KL and gradient against float64 autograd, written with plain torch."""
    case = linear_kl.Case.draw(61, 12, 3, 7)
    kl, gradient = linear_kl.WAYS[way](case)
    y = case.y.double().requires_grad_()
    p, q = (case.final.double() @ case.W_U.double().T).expand(3, -1, -1), y @ case.W_U.double().T
    exact = torch.nn.functional.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="none").sum(-1).mean(-1)
    exact.sum().backward()

    assert torch.allclose(kl.double(), exact, atol=1e-5)
    assert torch.allclose(gradient.double(), y.grad, atol=1e-5)


def test_both_ways_of_judging_give_the_same(tmp_path):
    """Readings against whole logits in float64; a temperature on kept logits against one that decodes at each step."""
    case = judging.Case.draw(97, 8, 9)
    exact = judging.by_whole_logits(case.double())

    for lens, numbers in judging.by_walk(case).items():
        torch.testing.assert_close(numbers, exact[lens], rtol=1e-5, atol=2e-6)
    assert judging.kept(case) == pytest.approx(judging.decoded_anew(case), rel=1e-4)
    assert [row["way"] for row in run(judging, tmp_path)] == [*judging.READINGS, *judging.TEMPERATURES]


def test_reading_is_measured_against_its_least(packed, tmp_path):
    """One vector and texts, each beside what it cannot do without."""
    _, model = packed
    config = AutoConfig.from_pretrained(model)
    random_lens(config.num_hidden_layers, config.hidden_size).save(tmp_path / "lens")
    rows = run(reading, tmp_path / "out", model, str(tmp_path / "lens"))

    assert [row["case"] for row in rows if row["ratio"] == 1] == ["a sum over W_U", "the base model alone"]
    assert len(rows) == 6 and all(row["cpu_ms"] > 0 for row in rows)


def test_linear_kl_names_a_row_for_every_way_and_size(tmp_path):
    rows = run(linear_kl, tmp_path)

    assert {row["d_vocab"] for row in rows} == {64, 128}
    assert all(row["seconds"] > 0 and row["memory_bytes"] >= 0 for row in rows)
    assert all(row["gradient_error"] < 1e-5 for row in rows if row["gradient_error"] is not None)
    assert all(row["ratio_to_ours"] == 1 for row in rows if row["way"] == "ours")
    assert "<svg" in (tmp_path / "linear_kl_time.svg").read_text()


def test_one_step_of_the_engine_is_the_step_of_the_naive_graph():
    """What is timed against each other has the same gradients, all positions and a sampled few alike."""
    spec = {"config": engine.shape_of(97, quick=True).config(), "seqs": 2, "seq_len": 9, "positions": 5, "rank": 3}
    steps = engine.Steps(spec)
    ours, naive = steps.ours(), steps.naive()

    assert all(torch.allclose(ours[name], naive[name], rtol=1e-3, atol=1e-6) for name in naive)
    assert all(naive[name].abs().max() > 0 for name in naive)


@pytest.mark.parametrize("module", [capture, engine, growth])
def test_a_benchmark_runs_and_measures_something(module, tmp_path):
    rows = run(module, tmp_path)

    amounts = [row[name] for row in rows for name in ("seconds", "tokens_per_second", "tok_s") if name in row]
    assert amounts and all(amount > 0 for amount in amounts)


def test_distance_from_a_line_is_zero_on_one_and_a_share_off_it():
    """1, 2, 4 to 10, 20, 40 is a line; with 20 at the end the least-squares line is far off."""
    assert max(growth.off_line([1, 2, 4], [10, 20, 40])) < 1e-9
    assert max(growth.off_line([1, 2, 4], [10, 20, 20])) > 0.1


def test_shapes_have_the_parameters_and_flop_of_the_models_they_name():
    """Against the models that transformers builds: the published counts are theirs."""
    for name, billions in {"mistral-7b": 7.24, "llama-3-8b": 8.03, "qwen3-8b": 8.19, "gemma-2-9b": 9.24}.items():
        assert shapes.SHAPES[name].parameters() / 1e9 == pytest.approx(billions, abs=0.01)
    assert shapes.SHAPES["mistral-7b"].forward_flop(512) / 1e9 == pytest.approx(14.09, abs=0.01)
    for shape in shapes.TINY.values():
        model = shape.model(torch.device("cpu"), torch.float32)
        matrices = sum(p.numel() for p in model.parameters() if p.dim() > 1)
        assert shape.parameters() == matrices


def test_gpu_shapes_runs_tiny_shapes_on_a_cpu_and_says_so(tmp_path):
    rows = run(gpu_shapes, tmp_path)

    assert [row["shape"] for row in rows] == list(shapes.TINY)
    assert all(0 < row["capture_share"] < 1 and 0 < row["fit_floor_s"] < row["fit_s"] for row in rows)
    assert "no GPU figures" in (tmp_path / "gpu_shapes.md").read_text()


def test_rows_in_memory_are_the_rows_of_the_capture():
    backbone = gpu_shapes.Backbone.from_model(tiny_model("llama"))
    fit = fit_params(positions_per_seq=4)
    tokens = np.random.default_rng(0).integers(0, 97, (5, 12)).astype(np.uint32)
    streamed = gpu_shapes.StreamedResiduals(backbone, tokens, gpu_shapes.sample_positions(fit, *tokens.shape))
    kept, seqs = gpu_shapes.MemoryRows.capture(streamed), np.array([1, 4])

    assert torch.allclose(kept.read(seqs).resid, streamed.read(seqs).resid, atol=1e-5)
    assert kept.tokens_forwarded == tokens.size


def test_held_out_measure_is_the_kl_of_the_models_own_states():
    """With the model's head as lens: the logit lens, layer by layer, against our own divergence."""
    model, tokens = tiny_model("llama", n_layers=3), torch.randint(0, 97, (3, 10))
    positions = torch.tensor([[1, 4], [0, 9], [5, 6]])
    head = torch.nn.Sequential(model.model.norm, model.lm_head)
    measured = held_out.kl_bits(model, tokens, positions, lambda h, row: head(h))
    with torch.no_grad():
        seen = model(tokens, output_hidden_states=True)
        at = torch.arange(3)[:, None], positions
        expected = [kl_bits(seen.logits[at], head(seen.hidden_states[row])[at]).mean().item() for row in (1, 2)]

    assert measured == pytest.approx(expected, rel=1e-5)


def test_quality_per_second_fits_and_measures_every_contender(tmp_path, packed, tiny_fit, monkeypatch):
    """The peer is absent here; the saddle keeps U = V = 0 and so is never below the proper start by more than noise."""
    monkeypatch.setattr(quality_per_second, "PEER_PYTHON", tmp_path / "absent")
    corpus, model = packed
    arguments = ("--seeds", "1", "--model", model, "--corpus", str(corpus))
    rows = run(quality_per_second, tmp_path / "out", *arguments)

    assert {row["contender"] for row in rows} == {"ours", "reference", "reference, U = V = 0"}
    assert all(row["kl_bits"] > 0 and 0 < row["forward_s"] < row["cpu_s"] for row in rows)
    reference, saddle = (
        next(row for row in rows if row["contender"] == name) for name in ("reference", "reference, U = V = 0")
    )
    assert reference["forward_s"] == saddle["forward_s"], "the same tokens cost both starts the same, bank or not"
    assert reference["tokens"] == max(quality_per_second.BUDGETS["quick"]["reference"])


def test_cost_of_a_kl_is_read_off_between_budgets():
    """Halfway between 100 and 400 tokens on a log scale is 200; better than the cheapest is the cheapest; else None."""

    def point(tokens: int, kl: float) -> quality_per_second.Point:
        return quality_per_second.Point("ours", 0, tokens, 2.0 * tokens, None, kl, kl, kl, kl)

    curve = [point(400, 1.0), point(100, 2.0)]
    assert quality_per_second.reaches(curve, 1.5, "tokens") == pytest.approx(200)
    assert quality_per_second.reaches(curve, 1.5, "cpu_s") == pytest.approx(400)
    assert quality_per_second.reaches(curve, 3.0, "tokens") == 100
    assert quality_per_second.reaches(curve, 0.5, "tokens") is None


def test_resampled_rows_are_other_positions_of_the_same_sequences():
    """Eight of sixteen positions a reading: rows of the right sequence, and not the same ones twice."""
    stored = torch.arange(3 * 16).reshape(3, 16, 1, 1).float()
    rows = SimpleNamespace(
        n_seqs=3,
        positions_per_seq=16,
        tokens_forwarded=0,
        read=lambda seqs: Batch(stored[torch.from_numpy(seqs)].flatten(0, 1), None),
    )
    fresh = contenders.Resampled(rows, 8, seed=0)
    first, second = (fresh.read(np.array([2, 0])).resid.flatten().reshape(2, 8) for _ in range(2))

    assert ((first // 16) == torch.tensor([[2.0], [0.0]])).all()
    assert all(len(set(row.tolist())) == 8 for row in first)
    assert not torch.equal(first, second)


def test_recipe_measures_each_value_of_a_curve(tmp_path, packed, tiny_fit):
    corpus, model = packed
    only = (
        "--only",
        "rank",
        "ridge",
        "metric",
        "inputs alone",
        "--model",
        model,
        "--corpus",
        str(corpus),
        "--tokens",
        "240",
    )
    rows = run(recipe, tmp_path / "out", *only)

    assert [row["curve"] for row in rows] == ["rank"] * 2 + ["ridge"] * 2 + ["metric"] * 2 + ["inputs alone"] * 2
    assert all(row["kl_bits"] > 0 for row in rows)
    assert rows[2]["kl_bits"] != rows[3]["kl_bits"] and rows[4]["kl_bits"] != rows[5]["kl_bits"]
    assert (tmp_path / "out" / "recipe_rank.svg").exists()


def test_variants_keep_the_stage_apart_from_what_dvc_adds(tmp_path, monkeypatch):
    """The clone is a stand-in: a run of DVC takes seconds, and `test_pipeline` has real ones."""
    walls = {"prefetch": 1.0, "repro": 12.0, "exp": 4.0}

    class Clone(variants.Clone):
        def __init__(self, root, *_):
            self.clock = root / "clock.json"

        def __call__(self, *words):
            if words[2] != "prefetch@atlas":
                self.clock.write_text(json.dumps({"wall_s": 10.0 if words[1] == "repro" else 1.0, "cpu_s": 9.0}))
            return walls[words[1]]

    monkeypatch.setattr(variants, "Clone", Clone)
    first, variant = run(variants, tmp_path, "--source", str(tmp_path))

    assert (first["dvc_s"], first["share_of_first"]) == (2.0, 1.0)
    assert (variant["dvc_s"], variant["share_of_first"]) == (3.0, 0.1)


def test_the_floor_of_the_pipeline_is_its_arithmetic(tmp_path):
    """Of a tiny model: weights of its blocks by token, W_U by position, lens and layer, counted by hand."""
    shape = replace(
        shapes.SHAPES["qwen3-8b"], n_layers=3, d_model=8, d_mlp=16, heads=2, kv_heads=1, head_dim=4, d_vocab=50
    )
    AutoConfig.for_model(**shape.config()).save_pretrained(tmp_path)
    settings = {
        "corpus": {"train_tokens": 64, "seq_len": 16},
        "fit": {"validation_seqs": 2, "positions_per_seq": 4, "ladder": ["temperature", "bias"]},
        "sweep": {"heldout_seqs": 5, "positions_per_seq": 4},
    }

    blocks = 3 * (8 * 4 * (2 * 2 + 2 * 1) + 3 * 8 * 16)
    assert pipeline.floors(tmp_path, settings, n_prompts=7) == {
        "fit": 6 * (16 * 2 * blocks + 4 * 4 * 8 * 50),
        "sweep": 4 * 3 * 20 * 2 * 8 * 50,
        "suite-eval": 2 * 3 * 7 * 2 * 8 * 50,
    }


@pytest.mark.long
def test_every_stage_of_the_chain_is_measured(packed, tmp_path):
    """On a tiny model, beside this checkout itself: nine stages and their sum."""
    _, model = packed
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"the sea is {i} miles from here " * 20}) + "\n" for i in range(80)))
    rows = run(pipeline, tmp_path / "out", model, str(text), "--tree", str(common.REPOSITORY))

    assert [row["stage"] for row in rows] == [
        "resolve", "prefetch", "fit", "sweep", "suite-eval", "gates", "plots", "publish", "report", "chain"
    ]  # fmt: skip
    assert all(row["cpu_s"] > 0 and row["peak_gib"] > 0 and row["other_cpu_s"] > 0 for row in rows[:-1])


def test_lenses_of_sampled_and_of_real_text_are_judged_on_both(packed, tmp_path):
    """On each text the norm lens, both tuned lenses, and their paired difference."""
    _, model = packed
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"the sea is {i} miles from here " * 20}) + "\n" for i in range(80)))
    rows = run(sampled_text, tmp_path / "out", model, str(text), "--set", "rank=4", "positions_per_seq=8")
    kl = {(row["fit_on"], row["judged_on"], row["lens"]): row["kl_bits"] for row in rows}

    assert len(kl) == 8
    for own, other in (("real", "sampled"), ("sampled", "real")):
        loss = kl[other, own, "what it loses to the lens of that text"]
        assert loss == pytest.approx(kl[other, own, "tuned lens"] - kl[own, own, "tuned lens"], abs=1e-5)


def test_the_mean_jacobian_of_every_estimator(packed, tmp_path):
    """One-hot rows are the target, so they have none; that of the same definition is near, and every cost is one."""
    corpus, model = packed
    module = SimpleNamespace(__name__="benchmarks.jacobian_model", main=jacobian.main)
    rows = run(module, tmp_path, "--model", model, "--corpus", str(corpus))

    assert {row["estimator"] for row in rows} == {"one-hot", "one-hot, sum", "signs", "signs, all", "signs, sum"}
    assert all(row["cosine"] is None for row in rows if row["estimator"].startswith("one-hot"))
    assert all(row["cosine"] > 0.5 for row in rows if row["estimator"] in ("signs", "signs, all"))
    assert all(row["cpu_s"] > 0 and row["forwards"] > 0 for row in rows)


def test_a_map_is_drawn_to_a_target_as_far_as_it_helps():
    """All the way to the map itself, not at all to noise, and half of the way where both are as far off."""
    draw = torch.Generator().manual_seed(0)
    true, noise, other, far = (torch.randn(64, 64, generator=draw) for _ in range(4))
    even, odd = true + noise, true + other

    assert jacobian_shrinkage.drawn_to(true, even, odd) == (1.0, pytest.approx(0.0, abs=0.1))
    assert jacobian_shrinkage.drawn_to(9 * far, even, odd) == (0.0, 1.0)
    share, left = jacobian_shrinkage.drawn_to(true + far, even, odd)
    assert share == pytest.approx(0.5, abs=0.05) and left == pytest.approx(0.5, abs=0.1)


def test_the_regression_is_that_of_numpy():
    """Ridge regression of the last residual on a middle one, at the positions that the estimator reads."""
    backbone = Backbone.from_model(tiny_model("llama"))
    tokens = np.random.default_rng(0).integers(3, 60, (4, 40)).astype(np.uint32)
    found = jacobian_shrinkage.regression(backbone, tokens)
    positions = torch.arange(16, 40).expand(4, 24)
    h = backbone.capture(torch.from_numpy(tokens.astype(np.int64)), positions).flatten(0, 1).double().numpy()
    x, y = (h[:, layer] - h[:, layer].mean(0) for layer in (1, -1))
    within = x.T @ x / len(x)
    ridge = jacobian_shrinkage.RIDGE * np.trace(within) / len(within)
    expected = np.linalg.solve(within + ridge * np.eye(len(within)), x.T @ y / len(x))

    np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-4)


def test_agreement_of_halves_and_what_shrinkage_leaves(packed, tmp_path):
    """A line for each middle layer."""
    corpus, model = packed
    module = SimpleNamespace(__name__="benchmarks.jacobian_shrinkage_model", main=jacobian_shrinkage.main)
    rows = run(module, tmp_path, "--model", model, "--corpus", str(corpus))

    assert [row["layer"] for row in rows] == [1, 2]
    for row in rows:
        drawn = [row[f"{target}_{of}"] for target in ("regression", "identity") for of in ("share", "error_left")]
        assert -1 <= row["agreement"] <= 1 and all(0 <= number <= 1 for number in drawn)


def test_readouts_of_a_mean_jacobian(packed, tmp_path):
    """With the last block alone after it, J_p h_p is (h_L(h + e h) - h_L(h)) / e at that position."""
    corpus, model = packed
    module = SimpleNamespace(__name__="benchmarks.jacobian_readings_model", main=jacobian_readings.main)
    (row,) = run(module, tmp_path, "--model", model, "--corpus", str(corpus), "--layers", "1")
    backbone = Backbone.from_model(tiny_model("gpt_neox"))
    tokens = torch.randint(3, 60, (1, 12), generator=torch.Generator().manual_seed(0))
    own = jacobian_readings.own_readout(jacobian_readings.own_residuals(backbone, tokens[0]), 2)[-1]
    h = backbone.capture(tokens, torch.tensor([[11]]))[0, 0, 2]
    plus, minus = (causal.run_on(backbone, tokens, 2, h[None] * factor)[0] for factor in (1.01, 0.99))

    torch.testing.assert_close(own, (plus - minus) / 0.02, rtol=5e-3, atol=5e-3)
    assert all(np.isfinite(row[name]) for name in jacobian_readings.COLUMNS) and row["layer"] == 1


def test_a_sampled_step_is_closer_to_the_exact_one_than_the_likeliest_tokens_alone(tmp_path):
    """The exact step has no error; the sampled one has less, and less bias, than a softmax over the likeliest."""
    exact, sampled, top = run(vocabulary, tmp_path, "--repeats", "1")

    assert (exact["error"], exact["bias_bits"], exact["columns"]) == (0, 0, 4000)
    assert sampled["error"] < 0.5 * top["error"] and abs(sampled["bias_bits"]) < 0.5 * abs(top["bias_bits"])


def test_a_checkpoint_is_measured_whole(tmp_path):
    """Trained tensors, two moments of each and the best lens: 3 blocks of 8, rank 2, two of them trained."""
    (row,) = run(checkpoint, tmp_path)

    trained, best = 2 * (8 * 2 * 2 + 8), 3 * (8 * 2 * 2 + 8 + 8 + 1)
    assert row["bytes"] > 4 * (3 * trained + best)
    assert 0 < row["held_up_s"] <= row["written_s"] and row["lost_s"] > 240


def test_bytes_of_bank_and_lens_are_those_of_the_formula(tmp_path, monkeypatch):
    """Of files that the stage's own code writes, up to their headers."""
    monkeypatch.setenv("LENSMITH_HOME", str(tmp_path))  # so that what the benchmark sets is undone
    rows = run(cost, tmp_path)
    page = (tmp_path / "cost.md").read_text()

    cells = ([cell.strip() for cell in line.split("|")] for line in page.splitlines() if ", bytes" in line)
    headers = {
        name: int(found.replace(",", "")) - int(formula.replace(",", "")) for _, name, formula, found, *_ in cells
    }
    assert set(headers) == {"bank, bytes", "lens, bytes"} and all(0 < size < 600 for size in headers.values())
    assert {row["model"]: round(row["weights GiB"]) for row in rows}["llama-3-405b"] == 756


@pytest.mark.long
def test_a_lab_grown_from_one_model_is_up_to_date_to_dvc(tmp_path):
    """Else `overhead` raises, as wherever other stages run than those that a change makes stale."""
    (row,) = run(overhead, tmp_path)

    assert row["models"] == 3 and all(row[name] > 0 for name in overhead.COLUMNS)


def test_peak_memory_is_what_a_call_held_and_gave_back():
    """64 MiB that are gone again at the end count; what was there at the start does not."""
    kept = torch.ones(2**22)
    peak = common.PeakMemory()
    torch.ones(2**24).sum()

    assert 60 * 2**20 < peak.over_start() < 90 * 2**20
    assert len(kept) == 2**22


def test_cases_take_turns():
    """a, b warm up; then rounds of a, b: never all of one and then all of the other."""
    called = []
    common.in_turns({name: lambda name=name: called.append(name) for name in "ab"}, 2)

    assert called == ["a", "b"] * 3


@pytest.mark.long
def test_requests_are_counted_by_command(tmp_path):
    """In a process of its own, since moto takes botocore apart. A push of what is there sends no object again."""
    command = [sys.executable, "-m", "benchmarks.requests", "--quick", "--out", str(tmp_path)]
    subprocess.run(command, cwd=common.REPOSITORY, check=True)
    rows = rows_of(tmp_path / "requests.csv")

    assert [row["command"] for row in rows] == [
        "push of one", "the same again", "push of all", "the same again", "pull", "restore"
    ]  # fmt: skip
    assert rows[0]["PUT"] > rows[1]["PUT"] > 0 and rows[4]["GET"] > 0 == rows[4]["PUT"]
