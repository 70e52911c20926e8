"""What DVC knows of a lab: from its command line, and where no command says it, from its Python code.

Its public `dvc.api` lacks the same, and everything else of it may change, so this file alone imports from it:

    Config   the options of each remote by the file that holds them, and the cache's folder when dvc.lock is damaged
    Repo     every recorded output with its hash and stage, and the experiments that DVC takes for running

pyproject.toml bounds the version. The imports take a second, so they are inside the functions.
"""

import configparser
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from lensmith.process.errors import InputError


def run(*words: str, root: Path) -> str:
    """The output of a DVC command in the repository at `root`.

    Raises:
        InputError: DVC refuses, and says why; or there is no DVC.
    """
    try:
        done = subprocess.run(["dvc", *words], cwd=root, capture_output=True, text=True, check=True)  # noqa: S603, S607
    except FileNotFoundError:
        raise InputError("dvc: not found. `source .venv/bin/activate` puts it on the path.") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[0].removeprefix("ERROR: ")
        raise InputError(f"{root}: dvc {' '.join(w for w in words if w[0] != '-')}: {reason}") from None
    return done.stdout


def config(root: Path) -> Any:
    """The configuration of the repository at `root`: a mapping of all levels together, with `load_one` for one level.

    Raises:
        InputError: DVC cannot read it.
    """
    from dvc.config import Config, ConfigError

    try:
        return Config(str(root / ".dvc"), validate=False)
    except ConfigError as error:
        raise InputError(f".dvc/config: DVC cannot read it ({error}). Nothing was changed.") from None


@contextmanager
def repository(root: Path) -> Iterator[Any]:
    """The repository that `root` is in, open; dvc.yaml and dvc.lock are read when something of them is asked.

    Raises:
        InputError: there is none, or its dvc.yaml or dvc.lock cannot be read.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            yield repo
    except DvcException as error:
        raise InputError(f"{root}: DVC cannot read it ({error}). `lensmith doctor` may know why.") from None


def default_remote(root: Path) -> tuple[str, str] | None:
    """Name and URL of the default remote in .dvc/config, which git holds; None where that names none.

    The file is read here, since DVC adds what config.local says and makes a relative folder absolute.
    """
    committed = configparser.ConfigParser(interpolation=None)
    committed.read(root / ".dvc" / "config", encoding="utf-8")
    name = committed.get("core", "remote", fallback=None)
    return None if name is None else (name, committed.get(f"'remote \"{name}\"'", "url", fallback=""))


def running_experiments(root: Path) -> tuple[list[str], dict[str, Path]]:
    """The experiments that DVC takes for running: names in the queue; of a `--temp` run, its tree's copy by name."""
    from dvc.repo.experiments.executor.base import ExecutorInfo

    with repository(root) as repo:
        queue, temporary = repo.experiments.celery_queue, repo.experiments.tempdir_queue
        copies = {
            entry.name or entry.stash_rev[:7]: Path(
                ExecutorInfo.load_json(temporary.get_infofile_path(entry.stash_rev)).root_dir
            )
            for entry in temporary.iter_active()
        }
        return [entry.name or entry.stash_rev[:7] for entry in queue.iter_active()], copies


def processes(root: Path) -> list[list[str]]:
    """The command lines of live dvc processes in the lab at `root`; one whose folder is hidden from us counts."""
    commands = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words, cwd = process.info["cmdline"] or [], process.info["cwd"]
        is_dvc = any(Path(word).name == "dvc" for word in words[:3])
        if is_dvc and (cwd is None or Path(cwd).is_relative_to(root.resolve())):
            commands.append(words)
    return commands
