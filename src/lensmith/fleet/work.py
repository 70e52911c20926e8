"""Run a job on a node: clone the lab at one commit, and run the job's commands in the clone. It does not need Ray.

    <LENSMITH_HOME>/fleet/<model>-<hash of the lab's URL>/clone

The clone stays for the next job. A process holds its lock while it works in it. When the process dies, its commands die
too; the next one continues from DVC's cache, the residual bank and the checkpoints of the fit.
"""

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lensmith.files import cache
from lensmith.fleet.jobs import Job, LabCommit
from lensmith.process.errors import InputError, LensmithError, RemoteError

Print = Callable[[str], None]  # takes one line

KILLED = 137  # a shell's exit code for a killed process
DVC_REFUSED = 255  # DVC's own exit code, where no stage failed
_EXITED = re.compile(r"failed to reproduce .*exited with (-?\d+)")
_OF_CALLERS = ("DVC_STAGE", "DVC_ROOT", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    code: int  # the exit code, as of every command of the lab
    line: str = ""  # why it failed

    @property
    def exit_code(self) -> int:
        """The code that a command of ours ends with for it."""
        return InputError.exit_code if self.code == DVC_REFUSED else self.code


def run(job: Job, lab: LabCommit, say: Print) -> Outcome:
    """Do a job on this machine; `say` gets every line of its commands."""
    say(f"node: {socket.gethostname()}, {job.name}")
    folder = clone_folder(job.model, lab)
    try:
        with cache.held(folder.parent, shared=job.shared):
            if not job.shared:
                checkout(folder, lab)
            elif not folder.exists() or _git(folder, "rev-parse", "HEAD") != lab.commit:
                raise InputError(
                    f"{folder}: no clone at {lab.commit[:12]} on {socket.gethostname()}. --capture-workers needs one "
                    "LENSMITH_HOME that all nodes share. Nothing was captured."
                )
            for command in job.commands:
                outcome = execute(command, folder, job.needs.cpus, say)
                if outcome.code:
                    return outcome
    except LensmithError as error:
        say(f"error: {error}")
        return Outcome(error.exit_code, str(error))
    return Outcome(0)


def clone_folder(model: str, lab: LabCommit) -> Path:
    """Where this node's clone for a model is."""
    return cache.folder("fleet", f"{model}-{hashlib.sha256(lab.url.encode()).hexdigest()[:12]}") / "clone"


def checkout(clone: Path, lab: LabCommit) -> None:
    """Make `clone` the lab at the commit, whatever state an earlier process left it in.

    Raises:
        RemoteError: the URL cannot be read.
        InputError: the repository there does not have the commit.
    """
    if not (clone / ".git" / "HEAD").exists() or _git(clone, "rev-parse", "HEAD") is None:
        shutil.rmtree(clone, ignore_errors=True)
        if _git(clone.parent, "clone", "--quiet", "--no-checkout", lab.url, clone.name) is None:
            raise RemoteError(f"{lab.url}: cannot be cloned on {socket.gethostname()}. Try it there with git clone.")
    has = ("cat-file", "-e", f"{lab.commit}^{{commit}}")
    if _git(clone, *has) is None and _git(clone, "fetch", "--quiet", "origin") is None:
        raise RemoteError(f"{lab.url}: cannot be fetched on {socket.gethostname()}. Try it there with git fetch.")
    if _git(clone, *has) is None and _git(clone, "fetch", "--quiet", "origin", lab.commit) is None:
        raise InputError(f"{lab.url}: has no commit {lab.commit}. `git push` it, then start again.")
    (clone / ".git" / "index.lock").unlink(missing_ok=True)  # of a killed git: we hold the lock on the folder
    if _git(clone, "checkout", "--quiet", "--force", "--detach", lab.commit) is None:
        raise RemoteError(f"{clone}: cannot be checked out at {lab.commit}. Delete the folder, then start again.")
    # It names processes by pid, which mean nothing on another node.
    (clone / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)


def _git(folder: Path, *words: str) -> str | None:
    done = subprocess.run(["git", *words], cwd=folder, env=environment(), capture_output=True, text=True, check=False)  # noqa: S603, S607
    return done.stdout.strip() if done.returncode == 0 else None


def execute(command: tuple[str, ...], folder: Path, cpus: int | None, say: Print) -> Outcome:
    """Run a command in a folder to its end, on `cpus` cores where it is given. It dies with this process.

    The code of a failed `dvc repro` is that of the stage that failed, not DVC's own.
    """
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "lensmith.fleet.child", str(os.getpid()), *command],
        cwd=folder,
        env=environment() | ({} if cpus is None else {"OMP_NUM_THREADS": str(cpus)}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a terminal's Ctrl-C goes to the head alone, which decides what stops
    )
    last, code = "", None
    with process:
        assert process.stdout is not None
        for line in map(str.rstrip, process.stdout):
            if not line:
                continue
            say(line)
            if match := _EXITED.search(line):  # DVC itself ends with 255, whatever the stage ended with
                code = int(match[1])
            elif not last.startswith("error: "):
                last = line
    if process.returncode == 0:
        return Outcome(0)
    is_push = command[:2] == ("dvc", "push")
    return Outcome(RemoteError.exit_code if is_push else code or process.returncode, last)


def environment() -> dict[str, str]:
    """This process's environment, its own programs first, without variables of a DVC or git that it may run under."""
    variables = {name: value for name, value in os.environ.items() if name not in _OF_CALLERS}
    return variables | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
