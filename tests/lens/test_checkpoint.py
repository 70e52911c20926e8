"""Checkpoints and their folders. test_resume shows that a fit resumes bit for bit."""

import csv
import fcntl
import subprocess
import sys

import pytest
import torch

from lensmith.files import cache
from lensmith.lens import checkpoint, training, work
from lensmith.lens.checkpoint import Checkpoints, State
from lensmith.lens.lens import Lens
from lensmith.lens.objective import Validation
from lensmith.lens.optimizers import Optimizers
from lensmith.process import environment
from lensmith.process.errors import InputError, ResourceError
from lensmith.source import tensor_file
from tests.support.settings import fit_params
from tests.support.toy_fit import D, L, toy, toy_head

START = Lens.start(fit_params(rank=2), n_layers=3, d_model=4)


def state(step: int, **changes) -> State:
    made = State(
        step=step,
        trained={"U": torch.full((2, 4, 2), float(step))},
        optimizers=[{0: {"exp_avg": torch.ones(4)}}],
        best_lens=START,
        best=Validation((2.0, 1.0, 0.0)),
        best_step=0,
        waited=0,
        log=[],
        train_kl=[0.1 + 0.2],
        ridge=(1e-3, 1e-2),
        tokens_forwarded=5,
    )
    return made.model_copy(update=changes)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_state_comes_back_as_it_was(tmp_path):
    """Every field, to the last bit."""
    Checkpoints(tmp_path).save(state(7), wait=True)
    read = Checkpoints(tmp_path).newest(START)

    assert torch.equal(read.trained["U"], state(7).trained["U"])
    assert torch.equal(read.optimizers[0][0]["exp_avg"], torch.ones(4))
    assert torch.equal(read.best_lens.U, START.U)
    facts = ("step", "best", "best_step", "waited", "log", "train_kl", "ridge", "tokens_forwarded", "finished")
    assert all(getattr(read, name) == getattr(state(7), name) for name in facts)


def test_the_newest_two_stay_and_the_last_outlives_the_fit(tmp_path):
    """The last one holds the best lens alone, without what only training needs."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(state(step), wait=True)
    assert names(tmp_path) == ["step-00000002.safetensors", "step-00000003.safetensors"]

    checkpoints.save(state(3, finished=True))
    assert names(tmp_path) == [checkpoint.FINISHED]
    assert set(tensor_file.read(tmp_path / checkpoint.FINISHED)[0]) == {f"best/{name}" for name in START.tensors()}


def test_the_log_grows_while_a_fit_runs(tmp_path, monkeypatch):
    """fit_log.csv has each validation before the next step is taken; nothing of a checkpoint depends on it."""
    settings = fit_params(rank=2, batch_seqs=8, validate_every=2, epochs=1, lr=0.02)
    start, lengths, take_step = Lens.start(settings, L, D), [], Optimizers.take_step

    def counted(*arguments):
        lengths.append(len((tmp_path / "fit_log.csv").read_text().splitlines()) - 1)
        return take_step(*arguments)

    monkeypatch.setattr(Optimizers, "take_step", counted)
    fit = training.fit(toy_head(), toy(64, seed=1), toy(16, seed=2), settings, start, checkpoints=Checkpoints(tmp_path))
    written = list(csv.DictReader((tmp_path / "fit_log.csv").read_text().splitlines()))

    assert lengths == [1 + step // 2 for step in range(8)]
    assert [(int(row["step"]), float(row["val_kl_bits_mean"])) for row in written] == [
        (row.step, row.val_kl_bits_mean) for row in fit.log
    ]


def test_the_clock_says_when_and_the_environment_how_often(tmp_path, monkeypatch):
    """Every four minutes by default; what is no number is refused before anything is fit."""
    now = [0.0]
    checkpoints = Checkpoints(tmp_path, clock=lambda: now[0])
    assert not checkpoints.is_due
    now[0] = checkpoint.EVERY
    assert checkpoints.is_due
    checkpoints.save(state(1), wait=True)
    assert not checkpoints.is_due

    for text in ("soon", "-1", "nan", "inf"):
        monkeypatch.setenv(environment.CHECKPOINT_SECONDS, text)
        with pytest.raises(InputError, match=r"LENSMITH_CHECKPOINT_SECONDS is .*, must be a number of seconds >= 0"):
            Checkpoints(tmp_path)


def test_a_disk_that_is_too_small_is_refused_before_the_first_step(tmp_path, monkeypatch):
    """The message gives both sizes. In the middle of a fit the steps since the last checkpoint would be lost."""
    usage = checkpoint.shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)

    with pytest.raises(ResourceError, match=r"checkpoints need .* Bytes, 10 Bytes are free.* No step was taken"):
        Checkpoints(tmp_path).reserve(state(0).trained)


def test_a_second_process_names_the_process_that_it_waits_for(tmp_path):
    """It does not write beside the first and does not fail: it gets the folder after the first."""
    program = (
        "import sys; from pathlib import Path; from lensmith.files import cache\n"
        "with cache.held(Path(sys.argv[1])): print('mine')"
    )
    with cache.held(tmp_path):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        second = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], **pipes)
        assert second.stderr.readline().startswith(f"{tmp_path}: busy, waiting for process ")
        assert second.poll() is None
    said, _ = second.communicate(timeout=30)

    assert said == "mine\n" and second.returncode == 0


def test_a_lock_is_free_once_its_process_is_gone(tmp_path):
    """The kernel frees it, however the process ends; nobody removes a stale lock by hand."""
    with cache.held(tmp_path):
        pass
    with (tmp_path / cache.LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Anything:
    """A manifest or a backbone with the facts that the key of a fit reads."""

    def __init__(self, **facts) -> None:
        self.facts = {"lens": None} | facts

    def __getattr__(self, name):
        return self.facts.get(name, self)

    def __eq__(self, other) -> bool:
        return isinstance(other, Anything)

    __hash__ = None


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("fit", {"settings": fit_params(lr=0.5)}),
        ("code", {"code": {"lens/training.py": "2"}}),
        ("tokens_sha256", {"manifest": Anything(tokens_sha256="other")}),
        ("model_files", {"manifest": Anything(model=Anything(files={"a": "other"}))}),
        ("machine", {"threads": 2}),
    ],
)
def test_every_input_that_decides_a_bit_decides_the_folder(part, change, monkeypatch):
    """A fit never resumes from a checkpoint of other text, weights, settings, code or threads."""

    def key(*, threads=1, **changes):
        monkeypatch.setattr(work.recording, "machine", lambda _: Anything(data=lambda: {"threads": threads}))
        same = {
            "settings": fit_params(),
            "manifest": Anything(),
            "backbone": Anything(),
            "code": {"lens/training.py": "1"},
        }
        return work.work_key("one", **same | changes)

    before, after = key(), key(**change)
    assert {name for name in before if before[name] != after[name]} == {part}


def test_the_cache_command_lists_and_prunes_checkpoints_too(tmp_path, monkeypatch):
    """Banks and fits are pruned by their last use; a locked folder stays."""
    monkeypatch.setenv("LENSMITH_HOME", str(tmp_path))
    for key in ("old", "new"):
        folder = cache.folder("fit", key)
        with cache.held(folder):
            Checkpoints(folder / "low_rank").save(state(3), wait=True)
            (folder / "key.json").write_text('{"model_key": "atlas"}')
    (cache.folder("fit", "old") / cache.LOCK).touch()

    assert {entry.contents() for entry in cache.entries()} == {"checkpoints of atlas: low_rank step-00000003"}
    with cache.held(cache.folder("fit", "old")):
        assert {entry.key for entry in cache.prune(0)} == {"new"}
    assert [entry.key for entry in cache.entries()] == ["old"]
