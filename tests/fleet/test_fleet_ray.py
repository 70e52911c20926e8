"""The fleet on a real Ray cluster of two nodes: `lensmith fleet run` as a user runs it, and a node that is lost."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lensmith.files import artifacts
from tests.support.lab import REPOSITORY, Lab

pytestmark = pytest.mark.long

# Without the first, Ray takes this machine's own address instead of the loopback one; the last lets a kill hit a fit.
ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "LENSMITH_CHECKPOINT_SECONDS": "0",
}
MODELS = ("a", "b", "c", "d", "e", "f")
# Some seconds of training.
FIT = {"rank": 4, "epochs": 60, "patience": 1000, "validate_every": 60}


@dataclass
class Nodes:
    address: str
    raylets: list[int]
    process: "subprocess.Popen[str]"

    def kill(self, number: int) -> None:
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "killed\n"


@contextmanager
def cluster(root: Path, environment: dict[str, str]) -> Iterator[Nodes]:
    """Its nodes have the same environment: one LENSMITH_HOME, as on shared storage."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, str(REPOSITORY / "tests/support/ray_nodes.py")]
    with subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.DEVNULL, **pipes) as process:
        said = json.loads(process.stdout.readline())
        yield Nodes(said["address"], said["nodes"], process)
        process.stdin.close()
        process.wait(timeout=60)


def make(root: Path, models: dict[str, Any]) -> Lab:
    lab = Lab.make(root / "head", models)
    lab.run("dvc", "remote", "add", "--default", "store", str(root / "store"))
    lab.run("dvc", "remote", "modify", "store", "verify", "true")
    lab.commit("a remote")
    return lab


def begin(lab: Lab, *words: str) -> "subprocess.Popen[str]":
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = ["lensmith", "fleet", "run", *words]
    return subprocess.Popen(command, cwd=lab.root, env=lab.environment() | ENVIRONMENT, **pipes)


def node_of_a_fit(nodes: Nodes, lab: Lab, process: "subprocess.Popen[str]") -> tuple[int, str]:
    """The number of a node on which a fit has taken some steps, and the model."""
    end = time.monotonic() + 400
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[0]
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode().split("\0")
                fit = re.search(r"artifacts/(\w)/lens", " ".join(words)) if "stages.fit" in words else None
                if fit and _steps(lab, fit[1]) >= 3 and (lineage := set(_ancestors(int(path.parent.name)))):
                    for number, raylet in enumerate(nodes.raylets):
                        if raylet in lineage:
                            return number, fit[1]
            except OSError:  # it ended meanwhile
                continue
        time.sleep(0.05)
    raise AssertionError("no fit was seen at work")


def _steps(lab: Lab, model: str) -> int:
    for key in lab.root.glob(".lensmith/fit/*/key.json"):
        if json.loads(key.read_text())["model_key"] == model:
            return max([int(path.stem[5:]) for path in key.parent.glob("low_rank/step-*")], default=0)
    return 0


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        yield pid
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


WHOLE = """
import sys
from pathlib import Path
from lensmith.files import seals
from lensmith.lens import stage
from lensmith.settings import sections
from lensmith.source import prefetch
for key in sys.argv[1:]:
    settings = sections.read_resolved(Path(f"resolved/models/{key}.json"))
    corpus, lens = Path(f"whole/{key}/corpus"), Path(f"whole/{key}/lens")
    prefetch.build(settings, corpus)
    stage.run(settings, Path("resolved/code/fit.json"), corpus, lens)
    seals.seal(corpus)
    seals.seal(lens)
"""


def fit_here(lab: Lab, models: tuple[str, ...]) -> None:
    """The same lenses by one process on one machine, in a cache of its own."""
    environment = lab.environment() | {"LENSMITH_HOME": str(lab.root / "whole-home")}
    subprocess.run([sys.executable, "-c", WHOLE, *models], cwd=lab.root, env=environment, check=True)


def test_a_node_is_killed_mid_fit_and_every_lens_is_right(tmp_path, record_property):
    """Its model goes on elsewhere from a checkpoint; no fit comes to its end twice; the head runs nothing heavy."""
    lab = make(tmp_path, {model: {"fit": FIT | {"seed": seed}} for seed, model in enumerate(MODELS)})
    with cluster(lab.root, lab.environment() | ENVIRONMENT) as nodes:
        process = begin(lab, "--address", nodes.address)
        number, struck = node_of_a_fit(nodes, lab, process)
        nodes.kill(number)
        output, _ = process.communicate(timeout=1500)
    logs = {model: (lab.root / f".lensmith/fleet/{model}.log").read_text() for model in MODELS}

    assert process.returncode == 0, output
    assert "Placed again, 1 of 2" in logs[struck] and "goes on from its checkpoint of step" in logs[struck]
    assert "warning" not in output and "Report: " in output
    ended = {model: len(re.findall(r"Running stage '(?:sweep|suite-eval)@", log)) for model, log in logs.items()}
    fits = {model: log.count(f"Running stage 'fit@{model}'") for model, log in logs.items()}
    assert fits == {model: 1 + (model == struck) for model in MODELS}
    assert set(ended.values()) == {2}
    fit_here(lab, MODELS)
    wrong = [model for model in MODELS if _bytes(lab, "artifacts", model) != _bytes(lab, "whole", model)]
    assert wrong == []
    assert lab.repro() == (set(), set())
    record_property(
        "a node is killed mid-fit: lenses of six whose bytes differ from one machine's", f"{len(wrong)} of 6"
    )
    record_property("a node is killed mid-fit: fits that came to their end twice", "0 of 6")


MAILBOX = """
import sys, time
import ray
from lensmith.fleet import cluster, jobs
here = cluster.RayCluster(sys.argv[1], jobs.LabCommit("", ""))

@ray.remote(num_cpus=1)
def say_many(model, mailbox):
    outbox = cluster.Outbox(jobs.Job(model, "chain", jobs.JobNeeds(1, 0, None), ()), mailbox)
    begin = time.time()
    for number in range(200):
        outbox.send(str(number))
        time.sleep(0.01)
    return begin, time.time()

tasks = [say_many.remote(model, here._mailbox) for model in "abcd"]
heard, killed = [], 0
while len(ray.wait(tasks, num_returns=4, timeout=0.1)[0]) < 4:
    heard += here.lines()
    if killed < 3 and len(heard) > 60 * (killed + 1):
        ray.kill(here._mailbox, no_restart=False)
        killed += 1
spans = ray.get(tasks)
heard += here.lines()
whole = [[line for model, line in heard if model == own] == [str(number) for number in range(200)] for own in "abcd"]
print("killed", killed, "whole", sum(whole), "at once", max(sum(b <= t < e for b, e in spans) for t, _ in spans))
here.close()
"""


def test_lines_outlive_the_mailbox(tmp_path):
    """It is killed three times while tasks talk: the head reads every line once, in order; no task waits for that in a
    way that gives its CPU to another one.
    """
    command, environment = [sys.executable, "-c", MAILBOX], os.environ | ENVIRONMENT
    with cluster(tmp_path, environment) as nodes:
        done = subprocess.run([*command, nodes.address], env=environment, capture_output=True, text=True, check=True)
    assert "killed 3 whole 4 at once 2" in done.stdout.splitlines(), (
        done.stdout
    )  # Ray says there too that it tries again


def printed(words: str) -> list[str]:
    """The command of docs/many-machines.md that contains these words, as printed."""
    text = (REPOSITORY / "docs" / "many-machines.md").read_text().partition("## A fleet")[2]
    [line] = [line for line in text.splitlines() if line.startswith("lensmith ") and words in line]
    return line.partition("#")[0].split()


def test_a_model_is_captured_by_two_tasks_and_fit_once(tmp_path, record_property):
    """Commands as printed. The fit finds the bank of its training text whole; its lens is that of one process."""
    lab = larger(make(tmp_path, {"atlas": {}}))
    with cluster(lab.root, lab.environment() | ENVIRONMENT) as nodes:
        environment = lab.environment() | ENVIRONMENT | {"RAY_ADDRESS": nodes.address}
        run = partial(subprocess.run, cwd=lab.root, env=environment, capture_output=True, text=True, check=False)
        plan = run(printed("--dry-run"))
        captured = run(printed("--capture-workers"))
        log = (lab.root / ".lensmith/fleet/atlas.log").read_text()
        everything = run(["lensmith", "fleet", "run"])
        after = (lab.root / ".lensmith/fleet/atlas.log").read_text()
    for folder in ("artifacts", "release", ".dvc/cache"):
        shutil.rmtree(lab.root / folder)
    (lab.root / "dvc.lock").unlink()
    restored = run(["lensmith", "fleet", "restore"])

    assert plan.returncode == 0 and "prefetch, fit, sweep" in plan.stdout and "127.0.0.1" in plan.stdout, plan.stderr
    assert captured.returncode == 0 and "warning" not in captured.stderr, captured.stdout + captured.stderr
    begun = [line.partition(", ")[2] for line in log.splitlines() if line.startswith("node: ")]
    assert [begun[0], *sorted(begun[1:3]), *begun[3:]] == ["prefetch", "capture 1/2", "capture 2/2", "chain"]
    assert sorted(re.findall(r"capture: part . of 2, (\d+) shards", log)) == ["1", "2"]
    assert log.partition("Running stage 'fit@atlas'")[2].count("residuals into") == 1, "the held-out bank alone"
    fit_here(lab, ("atlas",))  # beside what was restored
    assert _bytes(lab, "artifacts", "atlas") == _bytes(lab, "whole", "atlas")
    assert everything.returncode == 0 and "atlas" in everything.stdout
    assert after == log, "nothing was stale any more"
    assert restored.returncode == 0 and "warning" not in restored.stderr and "atlas" in restored.stdout
    record_property("a bank captured by two Ray tasks: files of the lens that differ from one process's", "0")


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_processes_that_capture_at_once_make_the_bank_of_one(tmp_path, captured_by_one, record_property, workers):
    """Real processes, beside each other, in one home."""
    lab, whole = captured_by_one
    made = banks(lab, tmp_path / "home", workers)

    assert made == whole and len(whole) == 3
    record_property(f"bank captured by {workers} processes at once: shards of 3 whose bytes differ from one's", "0")


@pytest.fixture(scope="module")
def captured_by_one(tmp_path_factory) -> tuple[Lab, dict[str, str]]:
    """A lab with a corpus of three shards, and the bank that the fit itself captures."""
    lab = larger(make(tmp_path_factory.mktemp("captured"), {"atlas": {}}))
    lab.run("dvc", "repro", "fit@atlas")
    banks_there = [sha for sha in map(_shards, lab.root.glob(".lensmith/bank/*")) if len(sha) == 3]
    assert len(banks_there) == 1
    return lab, banks_there[0]


def larger(lab: Lab) -> Lab:
    """With text for three shards of 64 sequences, the last one not full."""
    documents = [{"text": f"The river of the north runs to the sea. It was day {i} of the king."} for i in range(3000)]
    (lab.root / "demo/text.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    lab.edit("models.atlas.corpus.train_tokens", 32 * 150)
    lab.commit("more text")
    return lab


def banks(lab: Lab, home: Path, workers: int) -> dict[str, str]:
    paths = ["--settings", "resolved/models/atlas.json", "--corpus", "artifacts/atlas/corpus"]
    command = [sys.executable, "-m", "lensmith.fleet.capture", *paths]
    environment = lab.environment() | {"LENSMITH_HOME": str(home)}
    running = [
        subprocess.Popen([*command, "--part", f"{part}/{workers}"], cwd=lab.root, env=environment)
        for part in range(1, workers + 1)
    ]
    assert [process.wait() for process in running] == [0] * workers
    [folder] = home.glob("bank/*")
    return _shards(folder)


def _shards(folder: Path) -> dict[str, str]:
    return {path.name: artifacts.sha256_file(path) for path in folder.glob("shard-*")}


def _bytes(lab: Lab, folder: str, model: str) -> dict[str, str]:
    """Of the corpus and the lens; provenance also holds the commit and the time."""
    place = lab.root / folder / model
    hashes = {name: artifacts.sha256_tree(place / name) for name in ("corpus", "lens")}
    return {f"{a}/{b}": sha for a, tree in hashes.items() for b, sha in tree.items() if "provenance" not in b}
