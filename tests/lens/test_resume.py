"""A fit that is killed, stopped, or out of disk resumes and gives the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import time

import pytest

from lensmith.files import artifacts
from tests.support import killing
from tests.support.lab import Lab

SHORT = (
    "steps",
    "signals",
    "some_writes",
    "full_disk_at_some_writes",
    "flipped_bits",
    "file_size_limit",
    "tmpfs",
    "mutants",
    "steps:bf16",
)
FULL = (
    "mutants:bf16",
    "steps:muon",
    "steps:bias",
    "every_write",
    "every_write:muon",
    "full_disk_at_every_write",
    "at_random",
    "by_cadence",
)
PROMISES = {
    "steps": "SIGKILL before every step of a fit: rounds whose bytes differ",
    "steps:muon": "the same with Muon and layers drawn anew each step",
    "steps:bias": "the same for a rung of the ladder",
    "steps:bf16": "the same with bfloat16 products",
    "signals": "TERM or INT at every step: rounds that end otherwise than in order, or differ",
    "some_writes": "SIGKILL at file operations of three checkpoints: rounds whose bytes differ",
    "every_write": "SIGKILL at every file operation of a fit: rounds whose bytes differ",
    "every_write:muon": "the same with Muon",
    "full_disk_at_some_writes": "disk full at file operations of three checkpoints: rounds not told or not the same",
    "full_disk_at_every_write": "disk full at every file operation of a fit: rounds not told or not the same",
    "at_random": "SIGKILL at random moments: fits whose bytes differ",
    "flipped_bits": "one bit of the newest, or of both, checkpoints flipped: rounds not noticed or not the same",
    "file_size_limit": "RLIMIT_FSIZE: rounds not told or not the same",
    "tmpfs": "a tmpfs that is really full (0 rounds where none may be mounted): rounds not told or not the same",
    "mutants": "fits that forget one piece of their state: not noticed",
    "mutants:bf16": "the same with bfloat16 products",
    "by_cadence": "checkpoints every 0, 0.01, 0.03, 240 s: fits whose bytes differ",
}
MANY_STEPS = {"epochs": 150, "patience": 999, "validate_every": 75, "bank": "stream"}  # seconds, to be caught amid


def rounds_of(*names: str) -> dict[str, dict]:
    """What each scenario of `killing` found."""
    return {result["name"]: result for result in killing.run(*names)}


@pytest.fixture(scope="module")
def short():
    return rounds_of(*SHORT)


@pytest.mark.parametrize("name", SHORT)
def test_a_fit_that_is_cut_off_goes_on_to_the_same_bytes(short, name, record_property):
    """Weights, log and counters are the same, and one checkpoint stays. `killing` has the scenarios."""
    result = short[name]

    assert result["wrong"] == []
    assert result["rounds"] > 2 or name == "tmpfs"
    record_property(PROMISES[name], f"0 of {result['rounds']}")


@pytest.mark.long
@pytest.mark.parametrize("name", FULL)
def test_the_full_matrix(name, record_property):
    """Every operation, every form of fit."""
    result = rounds_of(name)[name]

    assert result["wrong"] == []
    record_property(PROMISES[name], f"0 of {result['rounds']}")


def begin(lab: Lab, home: str, *command: str, seconds: int = 0) -> "subprocess.Popen[str]":
    """A command in a cache of its own that writes a checkpoint every so many seconds, or after every step."""
    variables = {"LENSMITH_HOME": str(lab.root / home), "LENSMITH_CHECKPOINT_SECONDS": str(seconds)}
    environment = lab.environment() | variables | {"SHELL": "/bin/sh"}  # Debian's stays beside the command it runs
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=lab.root, env=environment, start_new_session=True, **pipes)


def after_steps(lab: Lab, home: str, steps: int, process: "subprocess.Popen[str]") -> None:
    """Wait for a checkpoint of at least so many steps."""
    while not any(int(p.stem[5:]) >= steps for p in (lab.root / home).glob("fit/*/low_rank/step-*.safetensors")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def test_dvc_is_killed_and_started_again_at_once(tmp_path):
    """The stage dies with its DVC, or the second one waits for it; the lens is that of an uninterrupted run.

    Somebody watches the first one, and Ctrl-C ends that alone.
    """
    lab = Lab.make(tmp_path, {"one": {"fit": MANY_STEPS}})
    first = begin(lab, "orphan", "dvc", "repro", "fit@one")
    after_steps(lab, "orphan", 5, first)
    with begin(lab, "orphan", "lensmith", "watch", "one") as watch:
        line = next((line for line in watch.stdout if line.startswith("low_rank step 0: held out ")), "")
        watch.send_signal(signal.SIGINT)
    assert line and watch.returncode == 0 and first.poll() is None
    first.kill()
    first.communicate()  # as a shell would: to DVC a process that nobody waited for is alive
    second = begin(lab, "orphan", "dvc", "repro", "fit@one", seconds=240)
    output, _ = second.communicate(timeout=200)

    assert second.returncode == 0, output
    assert "goes on from its checkpoint of step" in output
    lab.run_here("fit", "one", lens="whole")
    assert artifacts.sha256_tree(lab.root / "artifacts/one/lens") == artifacts.sha256_tree(lab.root / "whole")


@pytest.mark.long
def test_a_repro_that_is_killed_at_random_ends_with_the_same_bytes(tmp_path, record_property):
    """Six kills of `dvc repro`, of DVC alone or with its stage: lock, metrics, lenses and tables are the same."""
    draws, kills = random.Random(0), 0
    whole = Lab.make(tmp_path / "whole", {"one": {}})
    killed = Lab(shutil.copytree(whole.root, tmp_path / "killed"))  # the same commit, which a lens records
    whole.run("dvc", "repro")
    while kills < 6:
        process = begin(killed, ".lensmith", "dvc", "repro")
        time.sleep(draws.uniform(1, 25))
        if process.poll() is not None:
            process.communicate()
            shutil.rmtree(killed.root / "artifacts")  # it came to its end: from the start again, without its cache
            shutil.rmtree(killed.root / ".dvc" / "cache")
            shutil.rmtree(killed.root / ".lensmith")
            (killed.root / "dvc.lock").unlink()
            continue
        if kills % 2:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
    killed.run("dvc", "repro")

    files = [lab.run("git", "ls-files", "--others", "--exclude-standard").split() for lab in (whole, killed)]
    assert files[0] == files[1] and "dvc.lock" in files[0]
    for name in files[0]:
        assert (whole.root / name).read_bytes() == (killed.root / name).read_bytes(), name
    for folder in ("artifacts", "release"):
        assert artifacts.sha256_tree(whole.root / folder) == artifacts.sha256_tree(killed.root / folder)
    record_property(
        "SIGKILL of `dvc repro` at random: runs whose lock, metrics, tables or lenses differ", f"0 of {kills}"
    )
