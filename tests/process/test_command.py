"""Every command and stage on a machine that fails it: one line on stderr, the right exit code, never a traceback."""

import ctypes
import importlib
import itertools
import json
import os
import re
import resource
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from ruamel.yaml import YAML

from lensmith.cli import app
from lensmith.process import command
from lensmith.process.environment import HOME
from lensmith.process.errors import ResourceError, explained
from tests.support.lab import Lab, _probe, _prompt
from tests.support.settings import REPOSITORY
from tests.support.tiny import save_tiny

STAGES = tuple(
    f"stages.{name}"
    for name in ("resolve", "prefetch", "fit", "sweep", "suite_eval", "gates", "plots", "publish", "report")
)
COMMANDS = (
    "--help", "check", "report", "cache ls", "cache prune --keep 0", "add demo --key new", "fetch one", "doctor",
    "verify one", "verify release/one", "list release/one", "publish one --dry-run", "compare",
)  # fmt: skip
DEEP = '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A lab of one model whose stages have all run, here and not by DVC."""
    root = tmp_path_factory.mktemp("finished")
    for name in ("src", "stages"):
        (root / name).symlink_to(REPOSITORY / name)
    save_tiny(root / "demo" / "tiny", n_layers=2)
    documents = [{"text": f"He said that the answer is {i}. It was day {i} → the river."} for i in range(200)]
    for name, lines in {
        "demo/text.jsonl": documents,
        "suites/suite.jsonl": [_prompt(i) for i in range(24)],
        "suites/probes.jsonl": [_probe()],
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "demo" / "config.json").write_text("{}")  # something to add
    Lab(root).write_params({"one": {"source": {"path": "demo/tiny"}}})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv(HOME, str(root / "home"))
        for stage in STAGES:
            patch.setattr(sys, "argv", words_of(stage))
            importlib.import_module(stage).main()
    return root


@pytest.fixture
def lab(finished, tmp_path, monkeypatch) -> Path:
    root = tmp_path / "lab"
    shutil.copytree(finished, root, symlinks=True, ignore=shutil.ignore_patterns("home"))
    monkeypatch.chdir(root)
    monkeypatch.setenv(HOME, str(tmp_path / "home"))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    return root


def words_of(stage: str) -> list[str]:
    """The arguments of a stage of model `one`, as dvc.yaml writes them."""
    stages = YAML(typ="safe").load(REPOSITORY / "dvc.yaml")["stages"]
    entry = stages[stage.removeprefix("stages.").replace("_", "-")]
    words = shlex.split(entry.get("do", entry)["cmd"].replace("${key}", "one"))
    return words[words.index("-m") + 1 :]


def forked(words: str, before: Callable[[], None] = lambda: None) -> tuple[int, str, str]:
    """Run a stage or a command in a fork of this process, after `before`: its exit code, stdout and stderr."""
    pipes = [os.pipe(), os.pipe()]
    if pid := os.fork():
        said = []
        for reading, writing in pipes:
            os.close(writing)
            with os.fdopen(reading, "rb") as pipe:
                said.append(pipe.read().decode())
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said[0], said[1]
    code = 99
    try:
        for target, (_, writing) in enumerate(pipes, 1):
            os.dup2(writing, target)
        sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
        main = importlib.import_module(words).main if words.startswith("stages.") else None
        sys.argv = words_of(words) if main else ["lensmith", *words.split()]
        before()
        command.run(main) if main else app.run()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 98
    finally:
        os._exit(code)


def read_only_home() -> None:
    """Whoever may do everything loses that first."""
    home = Path(os.environ[HOME])
    home.mkdir()
    home.chmod(0o555)
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, nothing) == 0


def home_is_a_file() -> None:
    Path(os.environ[HOME]).write_text("")


def full_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))


def ascii_stdout() -> None:
    sys.stdout.reconfigure(encoding="ascii", errors="strict")


def closed_pipe() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)


def full_device() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def closed_stdout() -> None:
    os.close(1)
    sys.stdout = None


def no_network() -> None:
    """Nobody listens at the discard port."""
    constants.HF_HUB_OFFLINE = False
    constants.ENDPOINT = "http://127.0.0.1:9"


# A machine, the codes that a command may end with on it besides the one that it ends with elsewhere.
MACHINES = {
    read_only_home: {7},
    home_is_a_file: {7},
    full_disk: {7},
    ascii_stdout: set(),
    closed_pipe: {command.UNREAD},
    full_device: {7},
    closed_stdout: set(),
    no_network: {5},
}
# Where it must end so, that the machine is known to be a bad one; `make test` runs these alone.
MUST = {
    **{(full_disk, stage): 7 for stage in STAGES},
    (full_disk, "add demo --key new"): 7,
    (read_only_home, "stages.fit"): 7,
    (home_is_a_file, "stages.fit"): 7,
    (ascii_stdout, "report"): 0,
    (ascii_stdout, "--help"): 0,
    (ascii_stdout, "list release/one"): 0,
    (closed_pipe, "report"): command.UNREAD,
    (closed_pipe, "--help"): command.UNREAD,
    (closed_pipe, "check"): command.UNREAD,
    (full_device, "check"): 7,
    (closed_stdout, "report"): 0,
    (no_network, "add org/name"): 5,
}
REST = [pair for pair in itertools.product(MACHINES, (*STAGES, *COMMANDS)) if pair not in MUST]


def is_one_line(said: str) -> bool:
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    return len(errors) == 1 and "Traceback" not in said and "This is a bug" not in said


@pytest.mark.parametrize(
    ("machine", "words"),
    [*MUST, *(pytest.param(*pair, marks=pytest.mark.long) for pair in REST)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_bad_machine_gets_one_line(lab, machine, words):
    """And the code of its kind; what prints nothing there may end well."""
    if words == "stages.resolve":
        shutil.rmtree("resolved")  # it writes only what has changed
    code, _, said = forked(words, machine)

    usual = {"compare": {2}, "doctor": {0, 2}}.get(words, {0})  # doctor: by what the machine that tests lacks
    assert code == MUST[machine, words] if (machine, words) in MUST else code in {*usual, *MACHINES[machine]}, said
    said = "".join(line for line in said.splitlines(keepends=True) if not line.startswith("capture: "))  # progress
    assert said == "" if code in (0, command.UNREAD) else is_one_line(said), said


@pytest.mark.parametrize(
    "file", ["suites/suite.jsonl", "suites/probes.jsonl", "demo/text.jsonl", "demo/tiny/config.json"]
)
def test_a_file_that_nests_too_deep_gets_one_line(lab, file):
    """Json's own reader runs out of Python's stack on it."""
    Path(file).write_text(DEEP)
    code, _, said = forked("stages.prefetch" if file.startswith("demo") else "check")

    assert code == 2 and is_one_line(said) and file.rpartition("/")[2] in said


def test_memory_that_runs_out_is_the_machines_fault():
    """Whether Python, NumPy or torch says so; another error of torch is a bug of ours."""
    for allocate in (np.empty, torch.empty, bytearray):
        with pytest.raises((MemoryError, RuntimeError)) as raised:
            allocate(1 << 50)
        assert isinstance(explained(raised.value), ResourceError)
    assert isinstance(explained(torch.OutOfMemoryError("CUDA out of memory.")), ResourceError)
    assert explained(RuntimeError("The size of tensor a (2) must match the size of tensor b (3)")) is None


def test_a_bug_of_ours_says_so_and_where_its_traceback_is(lab):
    """Under LENSMITH_HOME; where that cannot be written, in the folder for temporary files."""

    def broken() -> None:
        command.run = lambda _, run=command.run: run(lambda: {}["what"])

    def broken_at_home() -> None:
        broken()
        home_is_a_file()

    for before in (broken, broken_at_home):
        code, _, said = forked("check", before)
        file = re.search(r"Its traceback is in (\S+): please open an issue", said)

        assert (
            code == 1
            and said.count("\n") == 1
            and said.startswith("error: KeyError: 'what'. This is a bug of Lensmith")
        )
        assert file is not None and "Traceback" in Path(file[1]).read_text()
        shutil.rmtree(os.environ[HOME], ignore_errors=True)
