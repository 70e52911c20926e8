"""Restore what nodes pushed: pull each model in a lab of that model alone, then move its files and merge dvc.lock.

For each stage DVC reads and writes all of dvc.lock, so that a stage costs more in a lab of more models. At the end
`dvc repro --pull` runs in the whole lab once: stages of the lab, such as the report, and whatever is not up to date.
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lensmith.files import artifacts, cache
from lensmith.fleet import jobs, work
from lensmith.fleet.jobs import LabCommit
from lensmith.lab import dvc
from lensmith.lab.layout import LOCK
from lensmith.process.errors import RemoteError
from lensmith.process.progress import track

FOLDER = Path(".lensmith/restore")  # in the lab, so that files move and are not copied

_RAN = re.compile(r"Running stage '([^']+)'")


def restore(root: Path, lab: LabCommit, models: Sequence[str], *, everything: bool) -> list[str]:
    """Check out what nodes pushed and run the light stages; the heavy stages that ran here nevertheless.

    Args:
        lab: the lab's own folder, and the commit that nodes worked on.
        everything: also run the stages that belong to no model.

    Raises:
        RemoteError: DVC failed for one of the models. The others are restored.
    """
    ran, entries, failures, small = list[str](), dict[str, Any](), list[RemoteError](), root / FOLDER / "lab"
    with cache.held(root / FOLDER):
        dvc.run("repro", "resolve", root=root)
        status = json.loads(dvc.run("status", "--json", root=root))
        changed = {stage.partition("@")[2] for stage in status}
        try:
            for model in track([model for model in models if model in changed], "restore", "model"):
                _prepare(small, root, lab, model)
                try:
                    ran += _repro(small, f"{jobs.LAST_LIGHT}@{model}")
                except RemoteError as error:
                    failures.append(error)
                entries |= _move(small, root, model)
        finally:
            _merge(root / LOCK, entries)
            shutil.rmtree(small, ignore_errors=True)
    if failures:
        raise failures[0]
    ran += _repro(root, *([] if everything else (f"{jobs.LAST_LIGHT}@{model}" for model in models)))
    return [stage for stage in ran if stage.partition("@")[0] in jobs.HEAVY]


def _prepare(small: Path, root: Path, lab: LabCommit, model: str) -> None:
    """Make `small` a lab of one model that shares DVC's cache and its private settings with the whole lab."""
    (small / LOCK).unlink(missing_ok=True)  # of the model before, where the commit has no dvc.lock to replace it
    work.checkout(small, lab)
    private = root / ".dvc" / "config.local"
    if private.exists():
        shutil.copy(private, small / ".dvc")
    dvc.run("cache", "dir", "--local", dvc.run("cache", "dir", root=root).strip(), root=small)
    _execute(jobs.keep_only(model), small)


def _repro(folder: Path, *targets: str) -> list[str]:
    """The stages that ran."""
    lines = _execute(jobs.repro(*targets), folder)
    return [match[1] for line in lines if (match := _RAN.search(line))]


def _execute(command: tuple[str, ...], folder: Path) -> list[str]:
    lines: list[str] = []
    outcome = work.execute(command, folder, None, lines.append)
    if outcome.code:
        words = " ".join(word for word in command if word != "--wait-for-lock")
        raise RemoteError(f"{words}: {outcome.line} (exit {outcome.code}). What nodes made is in the remote.")
    return lines


def _move(small: Path, root: Path, model: str) -> dict[str, Any]:
    """Move a model's outputs from the small lab into the whole one; their entries of dvc.lock."""
    stages = YAML().load(small / LOCK)["stages"] if (small / LOCK).exists() else {}
    moved: dict[str, Any] = {}
    for name, entry in stages.items():
        paths = [out["path"] for out in entry["outs"]]
        if name.partition("@")[2] != model or not all((small / path).exists() for path in paths):
            continue
        for path in paths:
            target = root / path
            if target.is_dir():
                shutil.rmtree(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(small / path, target)
        moved[name] = entry
    return moved


def _merge(lock: Path, entries: dict[str, Any]) -> None:
    """Put entries into a dvc.lock in place of those of the same names."""
    if not entries:
        return
    yaml = YAML()  # keeps order and style, as DVC does
    data = yaml.load(lock)
    data["stages"].update(entries)
    with artifacts.replacing(lock) as temporary:
        yaml.dump(data, temporary)
