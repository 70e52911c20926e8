"""The fleet without a cluster: stale stages, needs, the driver, a node's work, and the head."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from ruamel.yaml import YAML
from transformers import AutoModelForCausalLM

from lensmith.fleet import head, jobs, work
from lensmith.fleet.board import Board, ModelState
from lensmith.fleet.driver import Driver
from lensmith.fleet.jobs import Job, JobNeeds, LabCommit, Node
from lensmith.fleet.work import Outcome
from lensmith.hub import models
from lensmith.lab import one_model
from lensmith.process.amounts import GIB
from lensmith.process.errors import InputError, RemoteError
from lensmith.process.progress import Progress
from lensmith.settings import params_yaml, resolved
from tests.support.fleet_lab import FleetLab
from tests.support.settings import REPOSITORY, atlas
from tests.support.tiny import save_tiny

MODIFIED = [{"changed deps": {"resolved/models/a.json": {"fit": "modified"}}}]
GONE = [{"changed deps": {"artifacts/a/corpus": "deleted"}}, {"changed outs": {"artifacts/a/lens": "not in cache"}}]
SMALL = JobNeeds(cpus=1, gpus=0, memory=GIB)


# What is stale


def test_stages_after_a_stale_one_are_stale_and_missing_files_alone_are_not():
    """`dvc status` does not list a sweep whose lens will change; files that the remote has need no GPU."""
    status = {"fit@a": MODIFIED, "fit@b": GONE, "sweep@c": ["changed command"], "fit@d": []}

    assert jobs.stale(status, "abcd", missing_too=False) == {"a": ["fit", "sweep", "suite-eval"], "c": ["sweep"]}
    assert jobs.missing(status, "abcd") == ["fit@b"]
    assert set(jobs.stale(status, "abcd", missing_too=True)) == {"a", "b", "c"}


def test_the_run_cache_keeps_every_output_of_a_heavy_stage():
    """The head would compute anything else again."""
    stages = YAML(typ="safe").load(REPOSITORY / "dvc.yaml")["stages"]
    read = {dep for name in ("gates", "plots") for dep in stages[name]["do"]["deps"]}
    for name in jobs.HEAVY:
        assert all(isinstance(out, str) for out in stages[name]["do"]["outs"]) and "metrics" not in stages[name]["do"]
    made = {stages[name]["do"]["outs"][0] for name in jobs.LAST_HEAVY}

    assert made <= read and jobs.LAST_LIGHT in stages


def test_an_edit_of_the_fleet_section_makes_no_stage_stale(tmp_path, monkeypatch):
    """Not even the report, which reads the folder of all settings."""
    text = (REPOSITORY / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(
        text.replace("    memory_gib: auto\n    cpus: 1", "    memory_gib: 7\n    cpus: 3")
    )
    before, after = (params_yaml.read(root / "params.yaml") for root in (REPOSITORY, tmp_path))

    assert (before["atlas"].fleet.memory_gib, after["atlas"].fleet.memory_gib) == ("auto", 7)
    monkeypatch.chdir(REPOSITORY)  # which has the files that the settings name
    assert resolved.with_inputs(before) == resolved.with_inputs(after)


# What it needs


@pytest.mark.parametrize(
    ("source", "parameters", "gpus_there", "gpus", "gib"),
    [
        ({"device": "auto", "dtype": "auto"}, 8 * 10**9, 8, 1, 1.25 * 16e9 / 2**30 + 3),
        ({"device": "auto", "dtype": "auto"}, 8 * 10**9, 0, 0, 1.25 * 32e9 / 2**30 + 3),
        ({"device": "cuda", "dtype": "float32"}, 70 * 10**9, 0, 5, 1.25 * 280e9 / 2**30 + 3),
        ({"device": "cpu", "dtype": "bfloat16"}, 10**9, 8, 0, 1.25 * 2e9 / 2**30 + 3),
    ],
)
def test_needs_follow_the_size_of_the_model(source, parameters, gpus_there, gpus, gib):
    """Weights in the dtype that runs, a quarter more, and three GiB for the programs; cards of 80 GiB."""
    needs = jobs.needs(atlas(source=source), parameters, gpus_there)

    assert needs.gpus == gpus
    assert needs.memory / GIB == pytest.approx(gib)


def test_settings_override_estimated_needs():
    """A model of unknown size needs no memory of a machine."""
    settings = params_yaml.read(REPOSITORY / "params.yaml")["atlas"]
    own = settings.model_copy(
        update={"fleet": settings.fleet.model_copy(update={"gpus": 4, "memory_gib": 9, "cpus": 6})}
    )

    assert jobs.needs(own, 10**9, 8) == JobNeeds(6, 4, 9 * GIB)
    assert jobs.needs(settings, None, 8) == JobNeeds(1, 1, None)


def test_parameters_are_counted_without_loading_the_model(tmp_path):
    """As transformers counts it once it is loaded."""
    save_tiny(tmp_path / "tiny", n_layers=3)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny")
    source = atlas(source={"path": str(tmp_path / "tiny")}).source

    assert models.count_parameters(source) == model.num_parameters()


def test_needs_that_no_machine_meets_are_refused_with_what_the_machines_have():
    """Such a job would wait for ever, without a message."""
    nodes = [Node("n1", 4, 0, 8 * GIB), Node("n2", 1, 2, 4 * GIB)]
    jobs.check_fits("a", JobNeeds(1, 2, 4 * GIB), nodes)

    with pytest.raises(Exception, match=r"models\.a\.fleet: no machine has 4 CPUs, 1 GPUs, 8\.0 GiB; there is 1 CPUs"):
        jobs.check_fits("a", JobNeeds(4, 1, 8 * GIB), nodes)


# Who runs what when


class FakeCluster:
    """Runs a job when `ended` is called; `ends` gives the exit codes of a model's jobs in turn."""

    def __init__(self, **ends: list[int]) -> None:
        self.ends, self.queue, self.ran, self.cancelled = ends, list[Job](), list[str](), False

    def nodes(self) -> list[Node]:
        return [Node("n1", 4, 0, 8 * GIB)]

    def submit(self, job: Job) -> None:
        self.queue.append(job)

    def ended(self) -> Iterator[tuple[Job, Outcome]]:
        job = self.queue.pop(0)
        self.ran.append(f"{job.model} {job.name}")
        codes = self.ends.get(job.model, [])
        code = codes.pop(0) if codes else 0
        if code == 130:
            raise KeyboardInterrupt
        yield job, Outcome(code, "its line")

    def lines(self) -> Iterator[tuple[str, str]]:
        yield "a", "node: n1, chain"

    def cancel(self) -> None:
        self.cancelled = True


def drive(tmp_path: Path, cluster: FakeCluster, retries: int = 2, workers: int = 0, needs: JobNeeds = SMALL):
    board = Board(["a", "b"], tmp_path, Console(file=io.StringIO(), force_terminal=False))
    outcomes = Driver(cluster, board, retries).run({m: jobs.phases(m, needs, workers) for m in ("a", "b")})
    return {model: outcome.code for model, outcome in outcomes.items()}


def test_lost_work_is_placed_again_and_a_result_is_not(tmp_path):
    """A killed node and a slow remote are worth another try; wrong numbers would be wrong on any node."""
    lost = FakeCluster(a=[137, 5])
    broken = FakeCluster(a=[3])

    assert drive(tmp_path, lost) == {"a": 0, "b": 0}
    assert lost.ran.count("a chain") == 3
    assert drive(tmp_path, broken) == {"a": 3, "b": 0}
    assert broken.ran.count("a chain") == 1
    assert drive(tmp_path, FakeCluster(a=[137, 137, 137])) == {"a": 137, "b": 0}
    assert "Placed again, 2 of 2" in (tmp_path / "a.log").read_text()


def test_a_phase_begins_when_the_one_before_is_complete(tmp_path):
    """A fit waits for the last shard; a failed capture stops its own model and no other."""
    whole, broken = FakeCluster(), FakeCluster(a=[0, 3])
    assert drive(tmp_path, whole, workers=2) == {"a": 0, "b": 0}
    assert drive(tmp_path, broken, workers=2) == {"a": 3, "b": 0}

    assert [name for name in whole.ran if name[0] == "a"] == ["a prefetch", "a capture 1/2", "a capture 2/2", "a chain"]
    assert "a chain" not in broken.ran and "b chain" in broken.ran


def test_a_model_too_large_for_the_cluster_fails_alone_and_at_once(tmp_path):
    """Its exit code is that of memory, 7."""
    assert drive(tmp_path, FakeCluster(), needs=JobNeeds(1, 0, 9 * GIB)) == {"a": 7, "b": 7}


def test_an_interrupt_cancels_the_jobs_and_names_the_finished_models(tmp_path):
    """Finished models are in the remote; the message names the others too."""
    cluster = FakeCluster(b=[130])
    board = Board(["a", "b"], tmp_path, Console(file=io.StringIO()))
    with pytest.raises(KeyboardInterrupt):
        Driver(cluster, board, 2).run({m: jobs.phases(m, SMALL) for m in ("a", "b")})

    assert cluster.cancelled
    assert "1 of 2 models are finished" in board.summary() and "lensmith fleet restore --model a" in board.summary()
    assert board.summary().endswith("continues with b.")


# What is shown


def test_the_board_reads_what_dvc_and_the_stages_print():
    """Lines as `Progress` and DVC write them."""
    clock, stream = iter([0.0, 40.0, 40.0, 40.0]), io.StringIO()
    with Progress("fit", 100, "step", stream=stream, clock=lambda: next(clock)) as progress:
        progress.advance(25, tokens=4000, kl_bits=(2.75, 1.84, 1.11))
        state = ModelState()
        for line in ("node: n1, chain", "Stage 'prefetch@a' is cached - skipping run, checking out outputs"):
            state.read(line)
        state.read("Running stage 'fit@a':")
        state.read(stream.getvalue().strip())
        assert (state.node, state.now, state.left) == ("n1", "fit 25/100 steps", "02:00")
        assert list(state.stages.values()) == ["done", "runs", "waits", "waits"]
        clock = iter([50.0, 50.0])
    state.read("Running stage 'sweep@a':")
    assert list(state.stages.values()) == ["done", "done", "runs", "waits"]
    state.end("failed", "failed with 3")
    assert list(state.stages.values()) == ["done", "done", "failed", "waits"]


def test_a_log_gets_a_line_each_half_minute_and_a_terminal_a_table(tmp_path):
    """Nobody scrolls through a redrawn table in a file."""
    now, stream = [0.0], io.StringIO()
    with Board(["a", "b"], tmp_path, Console(file=stream, width=90), clock=lambda: now[0]) as board:
        board.read("a", "node: n1, chain")
        board.read("a", "Running stage 'fit@a':")
        for now[0] in (10.0, 29.0, 31.0, 40.0):
            board.tick()
    terminal = Console(file=io.StringIO(), width=90, force_terminal=True)
    terminal.print(board.table())

    assert stream.getvalue() == "a: fit, n1\n"
    assert "suite-eval" in terminal.file.getvalue() and "▶" in terminal.file.getvalue()
    assert (tmp_path / "a.log").read_text() == "node: n1, chain\nRunning stage 'fit@a':\n"


# What a node does, and the head


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> FleetLab:
    return FleetLab.make(tmp_path_factory.mktemp("made"), a=1, b=2)


@pytest.fixture
def lab(made, tmp_path, monkeypatch) -> FleetLab:
    """A copy of a lab, with a remote of its own."""
    shutil.copytree(made.root, tmp_path / "head")
    own = FleetLab(tmp_path / "head")
    own.use_remote(str(tmp_path / "store"))
    own.commit()
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(own.root)
    return own


def told(tmp_path: Path) -> list[list[str]]:
    """What ran since the last call: [stage@model, folder]."""
    path = tmp_path / "told"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def chain(model: str, lab: LabCommit) -> tuple[Outcome, list[str]]:
    lines: list[str] = []
    [[job]] = jobs.phases(model, SMALL)
    return work.run(job, lab, lines.append), lines


def test_a_nodes_results_are_restored_and_not_computed_again(lab, tmp_path):
    """Only the remote joins them: the node's clone is another folder. The head runs light stages only."""
    commit = head.lab_commit(None)
    assert set(head.stale(lab.root, ["a", "b"], fetching=False)) == {"a", "b"}
    outcome, lines = chain("a", commit)
    on_node = told(tmp_path)
    ran = lab.restored("a")
    here = told(tmp_path)

    assert outcome.code == 0, lines
    assert "a: weights" in lines, "the model's files are seen to, wherever prefetch ran"
    assert sorted(name for name, _ in on_node) == [f"{stage}@a" for stage in sorted(jobs.HEAVY)]
    assert {Path(folder) for _, folder in on_node} == {work.clone_folder("a", commit)}
    assert ran == [] and [name for name, _ in here] == ["gates@a", "publish@a"]


@pytest.mark.long
def test_restore_leaves_the_lab_as_dvc_repro_pull_does(lab, tmp_path):
    """The lines of dvc.lock are the same, DVC finds nothing to do, and no temporary lab is left behind."""
    for model in ("a", "b"):
        assert chain(model, head.lab_commit(None))[0].code == 0
    shutil.copytree(lab.root, tmp_path / "plain")
    plain = FleetLab(tmp_path / "plain")
    told(tmp_path)
    plain.run("dvc", "repro", "--pull", "publish@a", "publish@b")
    in_place = told(tmp_path)
    (lab.root / "artifacts" / "a" / "lens").mkdir(parents=True)
    (lab.root / "artifacts" / "a" / "lens" / "of_before").touch()
    killed = lab.root / ".lensmith" / "restore" / "lab"
    killed.mkdir(parents=True)
    (killed / "dvc.lock").write_text("half of")
    lab.restored("a", "b")

    assert sorted(name for name, _ in told(tmp_path)) == sorted(name for name, _ in in_place)
    locks = [(each.root / "dvc.lock").read_text().splitlines() for each in (lab, plain)]
    assert sorted(locks[0]) == sorted(locks[1])
    assert {Path(folder) for _, folder in in_place} == {plain.root}
    assert json.loads(lab.run("dvc", "status", "--json")) == {}
    assert not list((lab.root / ".lensmith" / "restore").glob("*/"))
    lab.restored("a", "b")
    assert told(tmp_path) == []


@pytest.mark.long
def test_a_stage_that_fails_on_the_head_takes_no_other_model_with_it(lab, tmp_path, monkeypatch):
    """The others are restored; the next time only the failed stage runs."""
    for model in ("a", "b"):
        assert chain(model, head.lab_commit(None))[0].code == 0
    monkeypatch.setenv("FAILS", "publish@a")
    monkeypatch.setenv("CODE", "5")
    with pytest.raises(
        RemoteError, match=r"dvc repro --pull publish@a: error: it is broken \(exit 5\)\. What nodes made"
    ):
        lab.restored("a", "b")
    monkeypatch.delenv("FAILS")
    assert (lab.root / "release" / "b" / "rows.txt").exists()
    told(tmp_path)
    lab.restored("a", "b")

    assert [name for name, _ in told(tmp_path)] == ["publish@a"]


def test_a_clone_of_one_model_resolves_as_the_whole_lab_does(tmp_path, monkeypatch):
    """Otherwise the head would not find a node's results. Edits that git cannot restore are kept."""
    for name in ("params.yaml", "dvc.lock"):
        shutil.copy(REPOSITORY / name, tmp_path)
    monkeypatch.chdir(tmp_path)

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *words], check=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "lab")
    whole = params_yaml.read(Path("params.yaml"))
    with pytest.raises(InputError, match="no model b; there is atlas, atlas-reference"):
        one_model.keep_only("b")
    one_model.keep_only("atlas")
    alone = params_yaml.read(Path("params.yaml"))
    stages = YAML(typ="safe").load(Path("dvc.lock"))["stages"]

    assert list(alone) == ["atlas"]
    assert set(stages) == {"resolve", "report", *jobs.stage_names("atlas", *jobs.HEAVY, "gates", "plots", "publish")}
    with monkeypatch.context() as context:
        context.chdir(REPOSITORY)  # which has the files that the settings name
        assert resolved.with_inputs(alone)["atlas"] == resolved.with_inputs(whole)["atlas"]
    lens = {"fit": {"kind": "transferred"}, "transferred": {"from": "other"}}
    with pytest.raises(
        InputError, match=r"models\.b takes the lens of models\.other, which a lab of one model does not"
    ):
        one_model.check_alone({"b": atlas(**lens)})
    one_model.keep_only("atlas")  # once more, as in a clone that an earlier job left: there is nothing to lose
    git("checkout", "--", ".")
    Path("params.yaml").write_text(Path("params.yaml").read_text() + "\n# somebody's work\n")
    with pytest.raises(InputError, match=r"params\.yaml is not as committed"):
        one_model.keep_only("atlas")
    assert (
        "somebody's work" in Path("params.yaml").read_text() and "fit@atlas-reference" in Path("dvc.lock").read_text()
    )


@pytest.mark.long
def test_after_a_failure_or_a_loss_only_results_that_exist_nowhere_are_computed(lab, tmp_path, monkeypatch):
    """The outcome has the failed stage's own exit code; the next run computes that stage only."""
    commit = head.lab_commit(None)
    monkeypatch.setenv("FAILS", "sweep@a")
    monkeypatch.setenv("CODE", "3")
    outcome, _ = chain("a", commit)
    monkeypatch.delenv("FAILS")
    told(tmp_path)
    again, _ = chain("a", commit)
    ran_again = {name for name, _ in told(tmp_path)}

    assert (outcome.code, outcome.line) == (3, "error: it is broken")
    assert again.code == 0 and "sweep@a" in ran_again and not ran_again & {"prefetch@a", "fit@a"}
    assert lab.restored("a") == []
    assert set(head.stale(lab.root, ["a", "b"], fetching=True)) == {"b"}
    for folder in ("artifacts", ".dvc/cache"):
        shutil.rmtree(lab.root / folder)
    assert set(head.stale(lab.root, ["a", "b"], fetching=False)) == {"b"}, "what is only missing is not stale"
    assert set(head.stale(lab.root, ["a", "b"], fetching=True)) == {"b"}, "it was had from the remote"
    assert (lab.root / "artifacts/a/lens/rows.txt").exists()
    assert sorted(lab.restored("b")) == sorted(f"{stage}@b" for stage in jobs.HEAVY)


def test_checkout_makes_a_clone_the_commit_whatever_was_left_in_it(lab, tmp_path):
    """A killed git leaves a lock, a killed DVC a pid that means nothing here; a folder may be half a clone."""
    commit = head.lab_commit(None)
    clone = work.clone_folder("a", commit)
    clone.mkdir(parents=True)
    (clone / "half").touch()
    work.checkout(clone, commit)
    (clone / ".git/index.lock").touch()
    (clone / "stage.py").write_text("edited")
    (clone / ".dvc/tmp").mkdir(exist_ok=True)
    (clone / ".dvc/tmp/rwlock").write_text("{")
    lab.seed(a=3, b=2)
    work.checkout(clone, LabCommit(commit.url, lab.commit()))

    assert (clone / "params.yaml").read_text() == (lab.root / "params.yaml").read_text()
    assert (clone / "stage.py").read_text() == (lab.root / "stage.py").read_text()
    assert not (clone / ".dvc/tmp/rwlock").exists() and not (clone / "half").exists()


def test_a_missing_commit_or_lab_is_named(lab):
    """A missing commit ends with 2; a server that does not answer ends with 5, since a retry may help."""
    url = str(lab.root)
    unknown, _ = chain("a", LabCommit(url, "0" * 40))
    nowhere, _ = chain("a", LabCommit(f"{url}-gone", "0" * 40))

    assert (unknown.code, nowhere.code) == (2, 5)
    assert unknown.line == f"{url}: has no commit {'0' * 40}. `git push` it, then start again."
    capture = jobs.phases("a", SMALL, capture_workers=1)[1][0]
    not_shared = work.run(capture, LabCommit(f"{url}-other", "0" * 40), lambda line: None)
    assert not_shared.code == 2 and "--capture-workers needs one LENSMITH_HOME" in not_shared.line


def test_the_head_refuses_a_lab_that_nodes_cannot_clone_or_return_to(lab, monkeypatch):
    """A lower folder, an edit, a commit that is not pushed, no remote, one that is another folder in each clone."""
    head.check_remote(lab.root)
    (lab.root / "lower").mkdir()
    (lab.root / "untracked").touch()
    assert head.lab_commit(None).url == str(lab.root)
    monkeypatch.chdir(lab.root / "lower")
    with pytest.raises(InputError, match="this lab is a folder of its repository"):
        head.lab_commit(None)
    monkeypatch.chdir(lab.root)
    with (lab.root / "stage.py").open("a") as file:
        file.write("# edited\n")
    with pytest.raises(InputError, match=r"git: stage.py is not as committed"):
        head.lab_commit(None)
    lab.commit()
    lab.run("git", "remote", "add", "origin", str(lab.root.parent / "origin"))
    with pytest.raises(InputError, match="`git push` first"):
        head.lab_commit(None)
    assert head.lab_commit("elsewhere").url == "elsewhere"
    lab.use_remote("../here")
    with pytest.raises(InputError, match="another folder in each clone"):
        head.check_remote(lab.root)
    (lab.root / ".dvc" / "config").write_text("")
    with pytest.raises(InputError, match="dvc remote add --default NAME s3://"):
        head.check_remote(lab.root)


def test_a_killed_worker_takes_its_commands_with_it(tmp_path):
    """Otherwise two machines would fit a model at once."""
    pids = tmp_path / "pids"
    command = ("sh", "-c", f"echo $$ >> {pids}; exec sleep 600")
    code = f"from pathlib import Path; from lensmith.fleet import work; work.execute({command!r}, Path('.'), 1, print)"
    worker = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (pids.exists() and pids.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = int(pids.read_text())
    os.kill(child, 0)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "it works on alone"
        time.sleep(0.05)
