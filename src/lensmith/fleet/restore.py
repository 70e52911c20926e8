"""What nodes pushed becomes the lab's: each model is restored in a small lab of that model alone, whose files and
entries of dvc.lock then move here.

For each stage DVC reads and writes all of dvc.lock, so that in the whole lab a stage costs the more the more models
there are. In the end `dvc repro --pull` sees the whole lab nevertheless, once: it runs what is the lab's, such as the
report, and whatever it does not find as it should be.
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
from lensmith.fleet.jobs import Tree
from lensmith.lab import dvc
from lensmith.process.errors import RemoteError
from lensmith.process.progress import track

FOLDER = Path(".lensmith/restore")  # in the lab, so that files move and are not copied
LOCK = "dvc.lock"

_RAN = re.compile(r"Running stage '([^']+)'")


def restore(root: Path, tree: Tree, models: Sequence[str], *, everything: bool) -> list[str]:
    """Check out what nodes pushed and run the light stages; the heavy ones that ran here nevertheless.

    Args:
        tree: the lab's own folder, and the commit that nodes worked on.
        everything: also the stages that are of no model.

    Raises:
        RemoteError: DVC did not come to its end for one of them. The others are here.
    """
    ran, entries, failed, small = list[str](), dict[str, Any](), list[RemoteError](), root / FOLDER / "lab"
    with cache.held(root / FOLDER):
        try:
            for model in track(_changed(root, models), "restore", "model"):
                _narrow(small, root, tree, model)
                try:
                    ran += _repro(small, f"{jobs.LIGHT_END}@{model}")
                except RemoteError as error:
                    failed.append(error)
                entries |= _moved(small, root, model)
        finally:
            _merge(root / LOCK, entries)
            shutil.rmtree(small, ignore_errors=True)
    if failed:
        raise failed[0]
    ran += _repro(root, *([] if everything else (f"{jobs.LIGHT_END}@{model}" for model in models)))
    return [stage for stage in ran if stage.partition("@")[0] in jobs.HEAVY]


def _changed(root: Path, models: Sequence[str]) -> list[str]:
    """The models with a stage that is not as it should be."""
    dvc.run("repro", "resolve", root=root)
    status = json.loads(dvc.run("status", "--json", root=root))
    names = {stage.partition("@")[2] for stage in status}
    return [model for model in models if model in names]


def _narrow(small: Path, root: Path, tree: Tree, model: str) -> None:
    """Make it the lab with one model, DVC's cache and its private settings being those of the whole."""
    (small / LOCK).unlink(missing_ok=True)  # of the model before, where git has none to put in its place
    work.checkout(small, tree)
    private = root / ".dvc" / "config.local"
    if private.exists():
        shutil.copy(private, small / ".dvc")
    dvc.run("cache", "dir", "--local", dvc.run("cache", "dir", root=root).strip(), root=small)
    _execute(jobs.alone(model), small)


def _repro(folder: Path, *targets: str) -> list[str]:
    """The stages that ran."""
    lines = _execute(jobs.repro(*targets), folder)
    return [found[1] for line in lines if (found := _RAN.search(line))]


def _execute(command: tuple[str, ...], folder: Path) -> list[str]:
    lines: list[str] = []
    outcome = work.execute(command, folder, None, lines.append)
    if outcome.code:
        said = " ".join(word for word in command if word != "--wait-for-lock")
        raise RemoteError(f"{said}: {outcome.line} (exit {outcome.code}). What nodes made is in the remote.")
    return lines


def _moved(small: Path, root: Path, model: str) -> dict[str, Any]:
    """The model's entries of dvc.lock whose files are there, after they moved from the small lab into the whole one."""
    stages = YAML().load(small / LOCK)["stages"] if (small / LOCK).exists() else {}
    own = {name: entry for name, entry in stages.items() if name.partition("@")[2] == model}
    made = {name: entry for name, entry in own.items() if all((small / out["path"]).exists() for out in entry["outs"])}
    for path in (out["path"] for entry in made.values() for out in entry["outs"]):
        target = root / path
        if target.is_dir():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(small / path, target)
    return made


def _merge(lock: Path, entries: dict[str, Any]) -> None:
    if not entries:
        return
    yaml = YAML()  # keeps order and style, as DVC itself does
    data = yaml.load(lock)
    data["stages"].update(entries)
    with artifacts.replacing(lock) as temporary:
        yaml.dump(data, temporary)
