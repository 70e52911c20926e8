"""Experiments through real DVC: a queue of variants, each in a copy of the tree. A lab of its own, apart from the
pipeline's, so that both may run at once.
"""

import re
import subprocess
import sys
import time

import pytest

from tests.support.lab import Lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    lab = Lab.make(tmp_path_factory.mktemp("lab"), {"one": {}})
    lab.repro()
    lab.commit("first build")
    return lab


def test_queued_experiments_read_one_bank_and_are_compared(lab: Lab):
    """A rank is no reason to run the frozen model again (docs/experiments.md); two commands show what it changed."""
    bank = {path: path.stat().st_mtime_ns for path in lab.root.glob(".lensmith/bank/*/*.safetensors")}
    lab.run("dvc", "exp", "run", "gates", "-S", "++models.one.fit.rank=2,3", "--queue", "--name", "rank")
    lab.run("dvc", "queue", "start")
    end = time.monotonic() + 300
    while re.search("Queued|Running", status := lab.run("dvc", "queue", "status")):
        assert time.monotonic() < end, status
        time.sleep(1)

    assert status.count("Success") == 2, status + lab.attempt("dvc", "queue", "logs", "rank-1").stdout
    assert bank == {path: path.stat().st_mtime_ns for path in lab.root.glob(".lensmith/bank/*/*.safetensors")}
    table = lab.run("lensmith", "compare", "--model", "one")
    assert all(word in table for word in ("rank-1", "rank-2", "kl25")) and "lr" not in table
    lab.run("lensmith", "compare", "--plot", "rank")
    assert "fit.rank" in (lab.root / "plots/compare-one.html").read_text()


def test_a_stage_runs_the_code_of_its_own_tree(lab: Lab):
    """An experiment is a copy of the tree; the installed package is the original, and may be edited meanwhile."""
    code = "import stages, lensmith; print(lensmith.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=lab.root, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == str(lab.root / "src/lensmith/__init__.py")
