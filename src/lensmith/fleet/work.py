"""What a node does with a job: a clone of the lab at one commit, and the job's commands in it. Ray is not needed here.

    <LENSMITH_HOME>/fleet/<model>-<hash of the lab's URL>/clone

A clone is kept for the next time. Whoever works in it holds its lock; a process that dies takes its commands with it,
and the next one goes on from what DVC's cache, the residual bank and the checkpoints of the fit hold.
"""

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lensmith.files import cache
from lensmith.fleet.jobs import Job, Tree
from lensmith.process.errors import InputError, LensmithError, RemoteError

Say = Callable[[str], None]

_EXITED = re.compile(r"failed to reproduce .*exited with (-?\d+)")
_OUTER = ("DVC_STAGE", "DVC_ROOT", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
_LOST = 137  # as a shell says of a process that was killed


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    code: int  # an exit code, as every command of the lab has
    line: str = ""  # what was wrong


def run(job: Job, tree: Tree, say: Say) -> Outcome:
    """Do a job on this machine; `say` gets every line of its commands."""
    say(f"node: {socket.gethostname()}, {job.name}")
    try:
        with cache.held(home(job.model, tree), shared=job.shared):
            clone = home(job.model, tree) / "clone"
            if job.shared:
                _check_ready(clone, tree)
            else:
                checkout(clone, tree)
            for command in job.commands:
                outcome = execute(command, clone, job.needs.cpus, say)
                if outcome.code:
                    return outcome
    except LensmithError as error:
        say(f"error: {error}")
        return Outcome(error.exit_code, str(error))
    return Outcome(0)


def home(model: str, tree: Tree) -> Path:
    return cache.folder("fleet", f"{model}-{hashlib.sha256(tree.url.encode()).hexdigest()[:12]}")


def checkout(clone: Path, tree: Tree) -> None:
    """Make `clone` the lab at the commit, whatever state an earlier process left it in.

    Raises:
        RemoteError: the URL cannot be read.
        InputError: it does not have the commit.
    """
    if not (clone / ".git" / "HEAD").exists() or _git(clone, "rev-parse", "HEAD") is None:
        shutil.rmtree(clone, ignore_errors=True)
        if _git(clone.parent, "clone", "--quiet", "--no-checkout", tree.url, clone.name) is None:
            raise RemoteError(f"{tree.url}: cannot be cloned on {socket.gethostname()}. Try it there with git clone.")
    has = ("cat-file", "-e", f"{tree.commit}^{{commit}}")
    if _git(clone, *has) is None and _git(clone, "fetch", "--quiet", "origin") is None:
        raise RemoteError(f"{tree.url}: cannot be fetched on {socket.gethostname()}. Try it there with git fetch.")
    if _git(clone, *has) is None and _git(clone, "fetch", "--quiet", "origin", tree.commit) is None:
        raise InputError(f"{tree.url}: has no commit {tree.commit}. `git push` it, then start again.")
    (clone / ".git" / "index.lock").unlink(missing_ok=True)  # of a git that was killed: the lock on the folder is ours
    if _git(clone, "checkout", "--quiet", "--force", "--detach", tree.commit) is None:
        raise RemoteError(f"{clone}: cannot be checked out at {tree.commit}. Delete the folder, then start again.")
    # DVC asks whether a process with such a number is alive, which says nothing of one on another machine.
    (clone / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)


def _check_ready(clone: Path, tree: Tree) -> None:
    if not clone.exists() or _git(clone, "rev-parse", "HEAD") != tree.commit:
        raise InputError(
            f"{clone}: no clone at {tree.commit[:12]} on {socket.gethostname()}. --capture-workers needs one "
            "LENSMITH_HOME that all nodes share. Nothing was captured."
        )


def _git(folder: Path, *words: str) -> str | None:
    done = subprocess.run(["git", *words], cwd=folder, env=environment(), capture_output=True, text=True, check=False)  # noqa: S603, S607
    return done.stdout.strip() if done.returncode == 0 else None


def execute(command: tuple[str, ...], folder: Path, cpus: int | None, say: Say) -> Outcome:
    """Run a command to its end, on so many cores where that is said; it dies with this process."""
    last, code = "", None
    with _started(command, folder, cpus) as process:
        for line in _lines(process):
            say(line)
            if found := _EXITED.search(line):  # DVC itself ends with 255, whatever the stage ended with
                code = int(found[1])
            elif not last.startswith("error: "):
                last = line
    if process.returncode == 0:
        return Outcome(0)
    is_push = command[:2] == ("dvc", "push")
    return Outcome(RemoteError.exit_code if is_push else code or process.returncode, last)


def _started(command: tuple[str, ...], folder: Path, cpus: int | None) -> "subprocess.Popen[str]":
    watched = [sys.executable, "-m", "lensmith.fleet.child", str(os.getpid()), *command]
    return subprocess.Popen(  # noqa: S603
        watched,
        cwd=folder,
        env=environment() | ({} if cpus is None else {"OMP_NUM_THREADS": str(cpus)}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a terminal's Ctrl-C is for the head, which says what is to be stopped
    )


def _lines(process: "subprocess.Popen[str]") -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip():
            yield line.rstrip()


def environment() -> dict[str, str]:
    """This process's, with its own programs first, and nothing of a DVC or git that it may run under."""
    kept = {name: value for name, value in os.environ.items() if name not in _OUTER}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def lost(reason: str) -> Outcome:
    """A job whose machine or process is gone."""
    return Outcome(_LOST, reason)
