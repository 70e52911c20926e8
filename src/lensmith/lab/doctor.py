"""Finds faults of a lab and its machine that DVC or a stage reports only as "failed".

Each check yields its findings: what is wrong, why that matters, what to do. A finding has a `mend` where nothing can be
lost by it; the rest is left to a person.
"""

import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lensmith.lab import dvc, layout, registry, remotes
from lensmith.process import amounts, environment
from lensmith.process.errors import LensmithError
from lensmith.settings import params_yaml

OLD = 24 * 3600  # seconds; no process still writes a temporary file of that age
LOW = 5 * amounts.GIB  # bytes free
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "9p", "afs", "fuse.sshfs")
# Names that DVC draws, and those of artifacts.replacing: eight drawn characters, not a word such as `.x.settings`.
LEFTOVER = re.compile(r"(.*\.[\w-]{20,}\.tmp|\..+\.(?=[a-z]*[0-9_])[a-z0-9_]{8})")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    what: str
    why: str
    do: str
    mend: Callable[[], None] | None = None  # loses nothing

    def __str__(self) -> str:
        return f"{self.what}: {self.why}. {self.do}"


def examine(root: Path) -> Iterator[Finding]:
    """Everything that is wrong with the lab in `root` and with this machine."""
    for check in (remote_options, rwlock, dvc_lock, queue, leftovers, devices, lenses, programs, packages, home, disk):
        yield from check(root)


def rwlock(root: Path) -> Iterator[Finding]:
    """DVC's table of the files that its processes read and write; a kill can leave half of it."""
    file = root / ".dvc" / "tmp" / "rwlock"
    if not file.exists() or dvc.processes(root):
        return
    try:
        held = json.loads(file.read_bytes())
        pids = [held["write"][path]["pid"] for path in held.get("write", {})]
        pids += [reader["pid"] for readers in held.get("read", {}).values() for reader in readers]
    except (ValueError, TypeError, KeyError, AttributeError):
        yield Finding(
            str(file), "a killed dvc left it unreadable, so every dvc command fails", f"`rm {file}`", file.unlink
        )
        return
    # DVC clears the entry of a dead process; a live one blocks it, also where another program now has that pid.
    if any(psutil.pid_exists(pid) for pid in pids):
        why = "it names processes that are not dvc any more, so dvc says that files are busy"
        yield Finding(str(file), why, f"`rm {file}`", file.unlink)


def dvc_lock(root: Path) -> Iterator[Finding]:
    """dvc.lock: marks of an unfinished merge, or half a file."""
    file = root / layout.LOCK
    if not file.exists():
        return
    text = file.read_text(encoding="utf-8", errors="replace")
    if marker := re.search(r"^(<<<<<<<|=======|>>>>>>>)", text, re.MULTILINE):
        line = text[: marker.start()].count("\n") + 1
        do = "`git checkout --ours dvc.lock` takes one side whole, `dvc repro` the rest from the cache"
        yield Finding(f"{file}:{line}", "holds the marks of an unfinished merge", do)
        return
    try:
        lock = YAML(typ="safe", pure=True).load(text)
        is_whole = isinstance(lock, dict) and isinstance(lock.get("stages"), dict)
    except YAMLError as error:
        is_whole = False
        mark = getattr(error, "problem_mark", None)
        file = Path(f"{file}:{mark.line + 1}") if mark else file
    if not is_whole:
        do = "`git checkout -- dvc.lock`, then `dvc repro`: what was made since then comes from the cache"
        yield Finding(str(file), "is cut short, or is no lock file", do)


def queue(root: Path) -> Iterator[Finding]:
    """Killed experiments, of `dvc queue` and of `dvc exp run --temp`, which DVC takes for running for ever."""
    if not (root / ".dvc/tmp/exps").is_dir():
        return
    again, alive = "a fit resumes from its checkpoint", dvc.processes(root)
    queued, copies = dvc.running_experiments(root)
    if not any("queue-worker" in words for words in alive):
        for name in queued:
            do = f"`dvc queue kill -f {name}` clears it, then queue it again: {again}"
            yield Finding(f"dvc queue: {name}", "is marked as running, but no worker is alive", do)
    if not alive:
        for name, copy in copies.items():
            do = f"`lensmith doctor --fix` deletes its copy of the tree, then run it again: {again}"
            yield Finding(
                f"dvc exp run: {name}", "is marked as running, but no dvc is", do, partial(shutil.rmtree, copy)
            )


def leftovers(root: Path) -> Iterator[Finding]:
    """Temporary files that a killed process left in DVC's cache, among the outputs, or under LENSMITH_HOME."""
    dvc_cache = Path(dvc.config(root)["cache"].get("dir", root / ".dvc/cache"))  # also where dvc.lock cannot be read
    folders = [dvc_cache, *(root / name for name in layout.OUTPUTS), environment.home()]
    before = time.time() - OLD
    for folder in folders:
        old = [
            file
            for file in folder.rglob("*")
            if LEFTOVER.fullmatch(file.name) and file.is_file() and file.lstat().st_mtime < before
        ]
        if old:
            size = sum(file.lstat().st_size for file in old)
            why = f"a killed process left them, {amounts.size(size)}, the first is {old[0].relative_to(folder)}"
            do = "`lensmith doctor --fix` deletes them"
            yield Finding(f"{folder}: {len(old)} temporary files", why, do, partial(_delete, old))


def remote_options(root: Path) -> Iterator[Finding]:
    """DVC's remotes: what `lensmith check` refuses."""
    for line in remotes.faults(root):
        where, _, text = line.partition(": ")
        why, _, do = text.partition(". ")
        yield Finding(where, why, do)


def devices(root: Path) -> Iterator[Finding]:
    """params.yaml: it cannot be read, or it names a GPU that this machine does not have."""
    try:
        models = params_yaml.read(root / layout.PARAMS)
    except LensmithError as error:
        why = str(error).removeprefix(f"{root / layout.PARAMS}: ").rstrip(".")
        yield Finding(str(layout.PARAMS), why, "`lensmith check` reads it again")
        return
    on_gpu = [key for key, model in models.items() if model.source.device == "cuda"]
    if on_gpu:
        import torch

        if not torch.cuda.is_available():
            why = "source.device is cuda, but torch sees no CUDA device here"
            do = "Fit it where there is one (`nvidia-smi` shows it), or set source.device to auto"
            yield Finding(f"{layout.PARAMS}: {', '.join(on_gpu)}", why, do)


def lenses(root: Path) -> Iterator[Finding]:
    """lenses/: a model without a file there, or a file without a model."""
    try:
        keys = set(params_yaml.read(root / layout.PARAMS))
    except LensmithError:
        return  # `devices` names it
    for key in sorted(keys):
        file = registry.entry(root, key)
        if not file.exists():
            why = f"is missing, so `dvc artifacts get` and the model registry do not find the lens of {key}"
            do = "`lensmith doctor --fix` writes it"
            yield Finding(str(file.relative_to(root)), why, do, partial(registry.write, root, key))
    for folder in sorted((root / registry.LENSES).glob("*/")):
        if folder.name not in keys:
            why = f"is left over: {layout.PARAMS} has no model {folder.name}"
            yield Finding(str(folder.relative_to(root)), why, f"`git rm -r {folder.relative_to(root)}`")


def programs(_root: Path) -> Iterator[Finding]:
    """PATH: stages run another python or dvc than the one that lensmith is installed with."""
    installed = Path(sys.executable).parent
    for name in ("python", "dvc"):
        program = shutil.which(name)
        if program is None or Path(program).parent != installed:
            why = f"is {program}, but lensmith is installed in {installed}, and stages run what PATH names"
            yield Finding(f"PATH: {name}", why, f'`export PATH="{installed}:$PATH"`')
            return


def packages(_root: Path) -> Iterator[Finding]:
    """Packages that are missing, or outside the versions that pyproject.toml allows."""
    for text in metadata.requires("lensmith") or ():
        required = Requirement(text)
        if required.marker and not required.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(required.name)
        except metadata.PackageNotFoundError:
            version = "missing"
        # The stamp of the last install is newer than pyproject.toml, so `make install` alone would do nothing.
        do = "`rm -f .venv/.installed && make install`"
        if version == "missing" or not required.specifier.contains(version, prereleases=True):
            yield Finding(f"package {required.name}", f"is {version}, must be {required.specifier}", do)


def home(_root: Path) -> Iterator[Finding]:
    """LENSMITH_HOME: it cannot be written, or locks may not hold there."""
    folder = environment.home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        do = "Set LENSMITH_HOME to a folder that can be written"
        yield Finding(f"LENSMITH_HOME {folder}", f"cannot be written ({error.strerror})", do)
        return
    inside = [part for part in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(part.mountpoint)]
    kind = max(inside, key=lambda part: len(part.mountpoint)).fstype if inside else ""
    if kind in NETWORK:
        why = f"is on {kind}, where a lock may not hold, so two fits could write one checkpoint"
        yield Finding(f"LENSMITH_HOME {folder}", why, "Set LENSMITH_HOME to a disk of this machine")


def disk(root: Path) -> Iterator[Finding]:
    """Disks of the lab and of LENSMITH_HOME that are almost full, each once."""
    for folder in {path.stat().st_dev: path for path in (environment.home(), root) if path.exists()}.values():
        if (free := shutil.disk_usage(folder).free) < LOW:
            why = f"{amounts.size(free)} are free, and a fit that cannot write stops"
            do = "`lensmith cache prune --keep 0` makes room; `dvc gc -w` too, but it deletes every other variant"
            yield Finding(f"disk of {folder}", why, do)


def _delete(files: list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
