"""The scripts of examples/ do what they say, with a scheduler that only starts what it is given."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from lensmith.files import artifacts
from tests.support.fleet_lab import HEAVY, FleetLab
from tests.support.lab import Lab
from tests.support.settings import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.sh"))

# sbatch --array=0-N script words…: each task of the array, one after another, in a copy of the script.
SBATCH = """#!/usr/bin/env bash
set -e
last=${1#--array=0-}; script=$2; shift 2
copy=$(mktemp); cp "$script" "$copy"
for i in $(seq 0 "$last"); do SLURM_SUBMIT_DIR=$PWD SLURM_ARRAY_TASK_ID=$i bash "$copy" "$@"; done
"""
SSH = """#!/usr/bin/env bash
echo "$1" >> "$HOSTS"; exec sh -c "$2"
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_bash(script):
    """Also where no test runs it to its end."""
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


@pytest.fixture
def lab(tmp_path, monkeypatch) -> FleetLab:
    """A lab with its origin, and the scheduler's programs."""
    made = FleetLab.make(tmp_path, a=1, b=2)
    made.run("git", "remote", "add", "origin", str(made.root))
    for name, text in {"sbatch": SBATCH, "ssh": SSH}.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (made.root / "examples").symlink_to(EXAMPLES)
    monkeypatch.setenv(
        "PATH", f"{tmp_path / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.setenv("HOSTS", str(tmp_path / "hosts"))
    monkeypatch.chdir(made.root)
    return made


def ran(lab: FleetLab) -> list[str]:
    told = lab.root.parent / "told"
    names = sorted(line.split()[0] for line in told.read_text().splitlines())
    told.unlink()
    return names


def heavy(*models: str) -> list[str]:
    return sorted(f"{stage}@{model}" for stage in HEAVY for model in models)


def test_skypilot_runs_the_chain_of_its_model(lab, tmp_path):
    """Its `run`, by bash, where `setup` would have put the lab; the head then restores, and runs light stages only."""
    job = YAML(typ="safe").load(EXAMPLES / "skypilot.yaml")
    assert job["setup"].startswith('git clone --quiet "$URL" lab')
    (tmp_path / "lab").symlink_to(lab.root)
    given = {"URL": str(lab.root), "COMMIT": lab.run("git", "rev-parse", "HEAD").strip(), "MODEL": "a"}
    assert set(given) == set(job["envs"])
    subprocess.run(["bash", "-euc", job["run"]], cwd=tmp_path, env=os.environ | given, check=True)

    assert ran(lab) == heavy("a")
    assert lab.restored("a") == []


def test_the_workflow_posts_what_a_commit_changes(tmp_path):
    """Its own command, on a lab that has metrics and settings in git and no outputs."""
    for name in (".dvc", "metrics"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("cache", "tmp"))
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    lab = Lab(tmp_path)
    lab.run("git", "init", "--quiet")
    lab.commit("base")
    metrics = json.loads((tmp_path / "metrics/atlas.json").read_text())
    artifacts.write_json(tmp_path / "metrics/atlas.json", metrics | {"kl50": 0.125})
    lab.edit("models.atlas.fit.weight_decay", 3)
    lab.commit("a pull request")
    steps = YAML(typ="safe").load(EXAMPLES / "metrics.yaml")["jobs"]["compare"]["steps"]
    (command,) = (step["run"] for step in steps if step.get("name") == "compare")
    lab.run("bash", "-euc", command)
    rows = [[cell.strip() for cell in line.split("|")] for line in (tmp_path / "changes.md").read_text().splitlines()]

    assert ["metrics/atlas.json", "kl50", f"{metrics['kl50']}", "0.125"] in [row[1:5] for row in rows]
    assert ["params.yaml", "models.atlas.fit.weight_decay", "-", "3"] in [row[1:5] for row in rows]


@pytest.mark.long
def test_a_slurm_array_and_an_ssh_loop_run_every_model(lab, tmp_path):
    """A task a model; machines in turn. What is done already is not run again."""
    subprocess.run(["sbatch", "--array=0-1", "examples/slurm.sh", "a", "b"], check=True)
    assert ran(lab) == heavy("a", "b")
    assert lab.restored("a", "b") == []
    ran(lab)

    lab.seed(a=1, b=3)
    lab.commit()
    subprocess.run(["bash", "examples/ssh.sh", "gpu1 gpu2", "a", "b"], check=True)
    assert ran(lab) == heavy("b")
    assert sorted((tmp_path / "hosts").read_text().split()) == ["gpu1", "gpu2"]
    failing = subprocess.run(
        ["bash", "examples/ssh.sh", "gpu1", "none", "b"], capture_output=True, text=True, check=False
    )
    assert failing.returncode == 1 and "none failed on gpu1" in failing.stderr and "b failed" not in failing.stderr
