"""`lensmith doctor`: each broken state is made, named with what to do, and mended only where nothing can be lost."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from lensmith.lab import doctor, experiments
from lensmith.process import amounts, environment
from tests.support import toy
from tests.support.lab import REPOSITORY, Lab

RWLOCK = Path(".dvc/tmp/rwlock")


LOCK = """schema: '2.0'
stages:
  fit@one:
    cmd: python fit.py one
"""


@pytest.fixture
def lab(tmp_path) -> Lab:
    """A lab with only the files that the doctor reads."""
    root = tmp_path / "lab"
    for folder in (".dvc/tmp", ".dvc/cache/files/md5/ab", "metrics", "artifacts/one/lens"):
        (root / folder).mkdir(parents=True)
    shutil.copy(REPOSITORY / "params.yaml", root)
    shutil.copytree(REPOSITORY / "lenses", root / "lenses")
    (root / "dvc.lock").write_text(LOCK)
    (root / RWLOCK).write_text('{"write": {}, "read": {}}')
    (root / "artifacts/one/lens/weights.safetensors").touch()
    return Lab(root)


def only(check: Callable, root: Path) -> doctor.Finding:
    (finding,) = check(root)
    return finding


def test_a_sound_lab_has_nothing_to_do(lab, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    assert list(doctor.examine(lab.root)) == []


@pytest.mark.parametrize("left", ["", '{"write": {"artifa', "[]"])
def test_a_lock_file_that_a_kill_left_unreadable_is_mended(lab, left):
    """DVC itself fails on it at every command."""
    (lab.root / RWLOCK).write_text(left)
    finding = only(doctor.rwlock, lab.root)

    assert "every dvc command fails" in str(finding) and f"`rm {lab.root / RWLOCK}`" in str(finding)
    finding.mend()
    assert list(doctor.rwlock(lab.root)) == []


@pytest.mark.long
def test_dvc_fails_on_an_empty_lock_file_and_doctor_mends_it(tmp_path):
    lab = toy.make(tmp_path / "toy")
    (lab.root / RWLOCK).write_text("")
    assert lab.attempt("dvc", "repro").returncode != 0
    done = lab.attempt("lensmith", "doctor", "--fix")

    assert f"mended: {RWLOCK}: a killed dvc left it unreadable" in done.stdout
    assert lab.repro() == (set(), set())


def test_a_lock_held_by_the_pid_of_another_program_is_mended(lab):
    """Here the dead dvc had the pid of this test."""
    (lab.root / RWLOCK).write_text(f'{{"write": {{"artifacts/x": {{"pid": {os.getpid()}, "cmd": "dvc repro"}}}}}}')

    assert "processes that are not dvc any more" in str(only(doctor.rwlock, lab.root))


def test_a_lock_stays_while_a_dvc_runs_in_the_lab(lab, tmp_path):
    """A dvc of another lab does not count."""
    (lab.root / RWLOCK).write_text("")
    (tmp_path / "dvc").write_text("import time; print(flush=True); time.sleep(60)\n")
    for folder, count in ((lab.root, 0), (tmp_path, 1)):
        with subprocess.Popen([sys.executable, tmp_path / "dvc"], cwd=folder, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            assert len(list(doctor.rwlock(lab.root))) == count
            process.kill()


def test_a_damaged_dvc_lock_is_named_with_its_line(lab):
    file = lab.root / "dvc.lock"
    lines = LOCK.splitlines(keepends=True)

    file.write_text("".join([*lines[:3], "<<<<<<< HEAD\n", *lines[3:]]))
    assert f"{file}:4: holds the marks of an unfinished merge" in str(only(doctor.dvc_lock, lab.root))
    file.write_text('schema: "2.0"\nstages:\n  fit: [\n')
    assert "is cut short, or is no lock file. `git checkout -- dvc.lock`" in str(only(doctor.dvc_lock, lab.root))
    file.write_text("")
    assert "cut short" in str(only(doctor.dvc_lock, lab.root))
    file.write_text(LOCK)
    assert list(doctor.dvc_lock(lab.root)) == []


def test_temporary_files_are_deleted_when_they_are_a_day_old(lab):
    """A process may still write a younger one; other files stay."""
    old, young = (
        lab.root / ".dvc/cache/files/md5/ab/.pZ1xkq2Wq_9-AbCdEfGhIj.tmp",
        lab.root / "metrics/.one.json.ab12cd_8",
    )
    kept = lab.root / "artifacts/one/lens/weights.safetensors"
    for path in (old, young):
        path.write_bytes(b"half")
    for path in (old, kept):
        os.utime(path, (time.time() - doctor.OLD - 60,) * 2)
    finding = only(doctor.leftovers, lab.root)
    finding.mend()

    assert "1 temporary files" in finding.what
    assert not old.exists() and young.exists() and kept.exists()


def test_models_that_need_a_missing_gpu_are_named(tmp_path, monkeypatch):
    text = (REPOSITORY / "params.yaml").read_text()
    assert text.count("device: auto") == 1
    (tmp_path / "params.yaml").write_text(text.replace("device: auto", "device: cuda"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    assert "params.yaml: atlas, atlas-reference, atlas-jacobian: source.device is cuda" in str(
        only(doctor.devices, tmp_path)
    )


def test_what_is_missing_or_left_over_of_lenses_is_named(lab):
    """An entry that somebody wrote into params.yaml has no file; one that was removed has left its file."""
    (lab.root / "lenses/atlas").rename(lab.root / "lenses/old")
    missing, left = doctor.lenses(lab.root)

    assert "lenses/atlas/dvc.yaml: is missing" in str(missing)
    assert str(left) == "lenses/old: is left over: params.yaml has no model old. `git rm -r lenses/old`"
    missing.mend()
    assert list(doctor.lenses(lab.root)) == [left]


def test_a_path_that_leads_to_another_python_is_named(tmp_path, monkeypatch):
    """`.venv/bin/dvc repro` does not put `.venv/bin` on PATH, and stages run the python of PATH."""
    monkeypatch.setenv("PATH", "/usr/bin")

    assert f'`export PATH="{Path(sys.executable).parent}:$PATH"`' in str(only(doctor.programs, tmp_path))


def test_a_package_below_its_lowest_version_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "0.1" if name == "safetensors" else "99")
    monkeypatch.setattr(
        doctor.metadata, "requires", lambda name: ["safetensors>=0.8", "torch>=2", 'ruff>=1; extra == "dev"']
    )

    assert (
        str(only(doctor.packages, tmp_path))
        == "package safetensors: is 0.1, must be >=0.8. `rm -f .venv/.installed && make install`"
    )


def test_a_home_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    """It is no folder, or on a network file system, where locks may not hold."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("LENSMITH_HOME", str(tmp_path / "file/home"))
    assert "cannot be written" in str(only(doctor.home, tmp_path))

    monkeypatch.setenv("LENSMITH_HOME", str(tmp_path / "home"))
    assert list(doctor.home(tmp_path)) == []
    mounts = [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint=str(tmp_path), fstype="nfs4")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    assert "is on nfs4, where a lock may not hold" in str(only(doctor.home, tmp_path))


def test_a_full_disk_is_named_once_per_disk(tmp_path, monkeypatch):
    environment.home().mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 2**30))

    assert f"{amounts.size(2**30)} are free" in str(only(doctor.disk, tmp_path))


@pytest.mark.long
@pytest.mark.parametrize("queued", [True, False])
def test_a_killed_experiment_is_named(tmp_path, queued):
    """DVC lists it as running for ever; what the message names clears it."""
    lab = toy.make(tmp_path / "toy")
    lab.replace("fit.py", "    lens = Path", "    import time; time.sleep(300)\n    lens = Path")
    options = ("--name", "lost", "-S", "models.one.rank=5")
    if queued:
        lab.run("dvc", "exp", "run", "--queue", *options)
        lab.run("bash", "-c", "dvc queue start > /dev/null 2>&1")  # the worker would hold on to a pipe
    else:
        lab.run("bash", "-c", f"dvc exp run --temp {' '.join(options)} > /dev/null 2>&1 &")
    wait_for(lambda: [words for words, _ in processes_of(lab) if words[1:2] == ["fit.py"]])
    assert list(doctor.queue(lab.root)) == [] and experiments.read(lab.root).unfinished == {"running": 1}
    for _, process in processes_of(lab):
        process.kill()
    assert experiments.read(lab.root).unfinished == {"killed": 1}
    finding = only(doctor.queue, lab.root)

    assert f"dvc {'queue' if queued else 'exp run'}: lost: is marked as running, but no" in str(finding)
    if finding.mend is None:
        lab.run("dvc", "queue", "kill", "-f", "lost")
    else:
        finding.mend()
    assert list(doctor.queue(lab.root)) == []
    assert experiments.read(lab.root).unfinished == ({"failed": 1} if queued else {})


def processes_of(lab: Lab) -> list[tuple[list[str], psutil.Process]]:
    """Command lines and processes that run in this lab, or in a copy that the queue made of it."""
    running = psutil.process_iter(["cmdline", "cwd"])
    return [(p.info["cmdline"] or [], p) for p in running if (p.info["cwd"] or "").startswith(str(lab.root))]


def wait_for(find: Callable[[], list]) -> list:
    end = time.monotonic() + 120
    while not (found := find()):
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.5)
    return found
