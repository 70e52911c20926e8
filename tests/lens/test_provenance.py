"""Provenance: measured counters, hashes that can be checked, independence of the clock."""

import hashlib
import itertools
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from lensmith.files import artifacts
from lensmith.judge.bench import Bench
from lensmith.lens import jacobian, recipe, recording, stage, training
from lensmith.lens.divergence import kl_bits
from lensmith.lens.lens import Lens
from lensmith.lens.provenance import Provenance
from lensmith.process.errors import IntegrityError
from lensmith.settings.sections import ModelParams
from lensmith.source import corpus, prefetch
from lensmith.source.residuals import sample_positions
from tests.support.settings import atlas
from tests.support.tiny import save_tiny

FIT = {"positions_per_seq": 4, "epochs": 3, "batch_seqs": 4, "rank": 2, "validation_seqs": 2}


@pytest.fixture
def fitted(tmp_path):
    """A folder in which a tiny model was really fit, twice: `lens`, and `again` from the bank of the first."""
    (tmp_path / "text.txt").write_text("\n\n".join(f"The king went to the market on day {i}." for i in range(200)))
    save_tiny(tmp_path / "model")
    prefetch.build(settings_in(tmp_path), tmp_path / "corpus")
    artifacts.write_json(tmp_path / "code.json", {"stages/fit.py": "0" * 64})
    fit(tmp_path, "lens")
    fit(tmp_path, "again")
    return tmp_path


def settings_in(folder: Path, **changes: object) -> ModelParams:
    text = {"kind": "files", "files": [str(folder / "text.txt")], "seq_len": 16}
    return atlas(
        source={"path": str(folder / "model")},
        corpus=text | {"train_tokens": 176, "heldout_tokens": 128},
        fit=FIT | changes,
        sweep={"heldout_seqs": 4, "positions_per_seq": 4},
    )


def fit(folder: Path, out: str, **changes: object) -> Path:
    """The folder of a lens fit with these changes."""
    stage.run(settings_in(folder, **changes), folder / "code.json", folder / "corpus", folder / out)
    return folder / out


def bench_and_resid(folder: Path, lens: Path, tokens: np.ndarray, positions_per_seq: int) -> tuple[Bench, torch.Tensor]:
    """The lens with its model, and the residuals (n, L + 1, d_model) at the sampled positions of these tokens."""
    bench = Bench.load(settings_in(folder), folder / "corpus", lens)
    few = settings_in(folder).fit.model_copy(update={"positions_per_seq": positions_per_seq})
    positions = torch.from_numpy(sample_positions(few, *tokens.shape))
    return bench, bench.backbone.capture(torch.as_tensor(tokens).long(), positions).flatten(0, 1)


def test_validation_reads_few_positions_of_a_sequence(fitted, monkeypatch):
    """Training reads all that the settings ask for."""
    monkeypatch.setattr(recipe, "VALIDATION_POSITIONS", 2)
    lens = fit(fitted, "few", epochs=2)  # another fit: one of the same settings is in the cache
    bench, resid = bench_and_resid(fitted, lens, corpus.read_heldout(fitted / "corpus")[:2], 2)
    bits = kl_bits(bench.final(resid), bench.lens.logits(bench.backbone.head, resid[:, 1], 1))
    record = Provenance.read(lens / "provenance.json")

    assert record.val_kl_bits_by_layer[0] == pytest.approx(float(bits.mean()), rel=1e-4)
    assert record.measured.positions_trained == 4 * 4 * 4


def test_a_lens_keeps_the_center_of_its_training_text(fitted):
    """In numpy, from the residuals that it was fit on; the rungs keep the same."""
    bench, resid = bench_and_resid(fitted, fitted / "lens", corpus.read_tokens(fitted / "corpus"), 4)
    h = resid[:, 1:].double().numpy()
    length = np.linalg.norm(h, axis=-1, keepdims=True)
    mean = (h / length).mean(0)
    expected = mean / np.linalg.norm(mean, axis=-1, keepdims=True) / (1 / length).mean(0)

    np.testing.assert_allclose(bench.lens.center, expected, rtol=1e-4)
    np.testing.assert_allclose(Lens.load(fitted / "lens/ladder/bias").center, expected, rtol=1e-4)


def test_counters_are_measured(fitted):
    """11 sequences of 16 tokens in batches of 4: 2 whole batches an epoch, 3 epochs, 4 positions a sequence."""
    about = artifacts.read_json(fitted / "lens/provenance.json")

    assert about["measured"]["tokens_forwarded"] == 11 * 16
    assert about["measured"]["steps"] == about["optim"]["total_steps"] == 6
    assert about["measured"]["positions_trained"] == 6 * 4 * 4
    assert about["measured"]["low_rank_norms"][0] > 0 and about["measured"]["low_rank_norms"][-1] == 0
    assert about["temperatures"][-1] == 1.0


def test_hashes_are_those_of_the_files(fitted):
    """The record holds the sha256 of weights, tokens and every file of the model."""
    about = artifacts.read_json(fitted / "lens/provenance.json")

    assert about["weights_sha256"] == artifacts.sha256_file(fitted / "lens/weights.safetensors")
    assert about["model"]["files"]["model.safetensors"] == artifacts.sha256_file(fitted / "model/model.safetensors")
    tokens = artifacts.read_tensors(fitted / "corpus/tokens.safetensors")["tokens"]
    assert about["dataset"]["tokens_sha256"] == hashlib.sha256(tokens.astype("<u4").tobytes()).hexdigest()
    assert np.isfinite(about["val_kl_bits@{25,50,75}%"]).all()


def test_a_file_of_another_form_is_refused_in_one_line(fitted):
    """The line for a lens of older code names the file, the missing key, and what writes it again."""
    path = fitted / "lens/provenance.json"
    data = artifacts.read_json(path)
    assert Provenance.read(path).data() == data
    for key in data:
        artifacts.write_json(path, {name: value for name, value in data.items() if name != key})
        with pytest.raises(IntegrityError) as caught:
            Provenance.read(path)
        assert str(caught.value) == f"{path}: {key} is missing. `dvc repro` writes it again."


def test_the_same_fit_gives_the_same_bytes(fitted):
    """Weights, log and provenance depend neither on the clock nor on a bank of an earlier run."""
    files = artifacts.sha256_tree(fitted / "lens")

    lens = {"weights.safetensors", "provenance.json", "fit_log.csv"}
    assert set(files) == {"rank_curve.csv"} | lens | {
        f"ladder/{kind}/{name}" for kind in ("temperature", "bias") for name in lens
    }
    assert artifacts.sha256_tree(fitted / "again") == files


@pytest.fixture
def trained(fitted, monkeypatch) -> list[str]:
    """The kinds that take steps, or look for their start, after the fits of `fitted`."""
    kinds: list[str] = []
    train_steps = training.train_steps

    def watched(task, *rest, **more):
        kinds.append(task.settings.kind)
        return train_steps(task, *rest, **more)

    monkeypatch.setattr(training, "train_steps", watched)
    monkeypatch.setattr(jacobian, "LEFT_OUT", 4)
    return kinds


OTHERS = {"recipe": {"rank": 3, "lr": 5e-3, "epochs": 2, "validate_every": 2}, "kind": {"kind": "jacobian"}}


@pytest.mark.parametrize("change", OTHERS)
def test_fits_on_the_same_text_share_their_rungs(fitted, trained, change, monkeypatch):
    """Temperature and bias depend on few settings. A fit that differs in others finds what it would have fit itself."""
    found = fit(fitted, "found", **OTHERS[change])
    assert trained == (["low_rank"] if change == "recipe" else [])

    monkeypatch.setenv("LENSMITH_HOME", str(fitted / "empty"))
    alone = fit(fitted, "alone", **OTHERS[change])
    assert {"temperature", "bias"} < {*trained, change}
    assert artifacts.sha256_tree(found) == artifacts.sha256_tree(alone)


@pytest.mark.parametrize("change", [{"seed": 1}, {"positions_per_seq": 8}, {"ladder": ["bias"]}])
def test_a_rung_that_would_differ_is_fit(fitted, trained, change):
    fit(fitted, "other", **change)

    assert "bias" in trained


def test_a_fit_runs_without_the_model(fitted, monkeypatch):
    """The model is released once the bank holds its residuals: it may take hundreds of GiB."""
    held = []
    monkeypatch.setattr(
        stage.rungs, "fit_all", lambda backbone, *_, **__: held.extend(backbone.model.parameters()) or {}
    )
    fit(fitted, "none")

    assert held and not any(parameter.numel() for parameter in held)


def test_no_layer_of_a_rung_is_worse_than_the_rung_below(fitted):
    """Temperature, bias, lens: held-out KL by layer never rises."""
    folders = (fitted / "lens/ladder/temperature", fitted / "lens/ladder/bias", fitted / "lens")
    by_kind = [artifacts.read_json(folder / "provenance.json")["val_kl_bits_by_layer"] for folder in folders]

    assert all(np.less_equal(upper, lower).all() for lower, upper in itertools.pairwise(by_kind))
    assert np.mean(by_kind[2]) < np.mean(by_kind[1]) < np.mean(by_kind[0])


def test_the_commit_is_the_one_that_changed_the_fit(tmp_path, monkeypatch):
    """A commit of a fit's results leaves the recorded commit of the next run as it is."""

    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    for name in ("fit.py", "metrics.json"):
        (tmp_path / name).write_text(name)
        git("add", name)
        git("commit", "--quiet", "--message", name)

    assert recording.code_commit(["fit.py"]) == (git("rev-parse", "HEAD~1"), False)
    (tmp_path / "fit.py").write_text("edited")
    assert recording.code_commit(["fit.py"]) == (git("rev-parse", "HEAD~1"), True)
    (tmp_path / "second" / "lab").mkdir(parents=True)
    (tmp_path / "second" / "lab" / "code").symlink_to("../..")
    monkeypatch.chdir(tmp_path / "second" / "lab")
    assert recording.code_commit(["code/fit.py"]) == (git("rev-parse", "HEAD~1"), True), "of a lab that links to it"
