"""What is wrong with this lab and its machine, where DVC or a stage would only say that something failed.

Each check below yields what it finds: what is so, why that matters, what to do. A finding that can be mended without
losing anything has a `mend`; everything else is left to a person.
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

from lensmith.files import cache
from lensmith.lab import remotes, store
from lensmith.process.errors import LensmithError
from lensmith.settings import params_yaml

OLD = 24 * 3600  # seconds; a temporary file of that age belongs to nobody
LOW = 5 * 2**30  # bytes free
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "9p", "afs", "fuse.sshfs")
OUTPUTS = ("artifacts", "metrics", "plots", "release", "resolved")
# As DVC names them, and as artifacts.replacing does: eight drawn characters, not a word such as `.x.settings`.
LEFTOVER = re.compile(r"(.*\.[\w-]{20,}\.tmp|\..+\.(?=[a-z]*[0-9_])[a-z0-9_]{8})")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    what: str
    why: str
    do: str
    mend: Callable[[], None] | None = None  # safe: nothing is lost by it

    def __str__(self) -> str:
        return f"{self.what}: {self.why}. {self.do}"


def examine(root: Path) -> Iterator[Finding]:
    """Everything that is wrong with the lab in `root` and with this machine."""
    for check in (remote_options, rwlock, dvc_lock, queue, leftovers, devices, path, packages, home, disk):
        yield from check(root)


def rwlock(root: Path) -> Iterator[Finding]:
    """DVC's table of who reads and writes what. It is not written atomically: a kill can leave half of it."""
    file = root / ".dvc" / "tmp" / "rwlock"
    if not file.exists() or _dvc_processes(root):
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
    # A number that lives on as another program's blocks DVC; a dead one it clears by itself.
    if any(psutil.pid_exists(pid) for pid in pids):
        why = "it names processes that are dvc no more, so dvc says that files are busy"
        yield Finding(str(file), why, f"`rm {file}`", file.unlink)


def dvc_lock(root: Path) -> Iterator[Finding]:
    file = root / "dvc.lock"
    if not file.exists():
        return
    text = file.read_text(encoding="utf-8", errors="replace")
    if marker := re.search(r"^(<<<<<<<|=======|>>>>>>>)", text, re.MULTILINE):
        line = text[: marker.start()].count("\n") + 1
        do = "`git checkout --ours dvc.lock` takes one side whole, `dvc repro` the rest from the cache"
        yield Finding(f"{file}:{line}", "holds the marks of a merge that was not finished", do)
        return
    try:
        lock = YAML(typ="safe", pure=True).load(text)
        is_whole = isinstance(lock, dict) and isinstance(lock.get("stages"), dict)
    except YAMLError as error:
        is_whole = False
        mark = getattr(error, "problem_mark", None)
        file = Path(f"{file}:{mark.line + 1}") if mark else file
    if not is_whole:
        do = "`git checkout -- dvc.lock`, then `dvc repro`: what was made since is in the cache and is not made again"
        yield Finding(str(file), "is cut short or no lock file", do)


def queue(root: Path) -> Iterator[Finding]:
    """A killed worker of `dvc queue` leaves its experiment as running for ever."""
    if not (root / ".dvc/tmp/exps/celery").is_dir() or any("queue-worker" in words for words in _dvc_processes(root)):
        return
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        names = [entry.name or entry.stash_rev[:7] for entry in repo.experiments.celery_queue.iter_active()]
    for name in names:
        do = f"`dvc queue kill -f {name}` clears it, then queue it again: a fit goes on from a checkpoint"
        yield Finding(f"dvc queue: {name}", "is said to run, but no worker is alive", do)


def leftovers(root: Path) -> Iterator[Finding]:
    """Temporary files that a killed process left in the cache, among the outputs, or among the banks."""
    folders = [store.cache_dir(root), *(root / name for name in OUTPUTS), cache.home()]
    before = time.time() - OLD
    for folder in folders:
        old = [
            file
            for file in folder.rglob("*")
            if LEFTOVER.fullmatch(file.name) and file.is_file() and file.lstat().st_mtime < before
        ]
        if old:
            size = sum(file.lstat().st_size for file in old)
            why = f"a killed process left them, {size / 2**20:.1f} MiB, the first is {old[0].relative_to(folder)}"
            yield Finding(
                f"{folder}: {len(old)} temporary files", why, "`lensmith doctor --fix`", partial(_remove, old)
            )


def remote_options(root: Path) -> Iterator[Finding]:
    for line in remotes.faults(root):
        where, _, text = line.partition(": ")
        why, _, do = text.partition(". ")
        yield Finding(where, why, do)


def devices(root: Path) -> Iterator[Finding]:
    try:
        models = params_yaml.read(root / "params.yaml")
    except LensmithError as error:
        yield Finding(
            "params.yaml", str(error).removeprefix("params.yaml: ").rstrip("."), "`lensmith check` reads it again"
        )
        return
    asking = [key for key, model in models.items() if model.source.device == "cuda"]
    if not asking:
        return
    import torch  # here: it takes a second

    if not torch.cuda.is_available():
        do = "Fit it where there is one (`nvidia-smi` shows it), or set source.device to auto"
        yield Finding(
            f"params.yaml: {', '.join(asking)}", "source.device is cuda, but torch sees no CUDA device here", do
        )


def path(_root: Path) -> Iterator[Finding]:
    own = Path(sys.executable).parent
    for program in ("python", "dvc"):
        found = shutil.which(program)
        if found is None or Path(found).parent != own:
            why = f"is {found}, but lensmith is installed in {own}, and stages run what PATH says"
            yield Finding(f"PATH: {program}", why, f'`export PATH="{own}:$PATH"`')
            return


def packages(_root: Path) -> Iterator[Finding]:
    for text in metadata.requires("lensmith") or ():
        asked = Requirement(text)
        if asked.marker and not asked.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(asked.name)
        except metadata.PackageNotFoundError:
            found = "missing"
        if found == "missing" or not asked.specifier.contains(found, prereleases=True):
            yield Finding(f"package {asked.name}", f"is {found}, must be {asked.specifier}", "`make install`")


def home(_root: Path) -> Iterator[Finding]:
    """LENSMITH_HOME: banks and checkpoints, each held by flock."""
    folder = cache.home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        do = "Set LENSMITH_HOME to a folder that can be written"
        yield Finding(f"LENSMITH_HOME {folder}", f"cannot be written ({error.strerror})", do)
        return
    if (kind := _file_system(folder)) in NETWORK:
        why = f"is on {kind}, where a lock may not hold, so two fits could write one checkpoint"
        yield Finding(f"LENSMITH_HOME {folder}", why, "Set LENSMITH_HOME to a disk of this machine")


def disk(root: Path) -> Iterator[Finding]:
    for folder in {place.stat().st_dev: place for place in (cache.home(), root) if place.exists()}.values():
        if (free := shutil.disk_usage(folder).free) < LOW:
            why = f"{free / 2**30:.1f} GiB are free, and a fit that cannot write stops"
            yield Finding(f"disk of {folder}", why, "`lensmith cache prune --keep 0` and `dvc gc -w` make room")


def _dvc_processes(root: Path) -> list[list[str]]:
    """The command lines of live dvc processes in this lab; one whose folder cannot be seen counts."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        cwd = process.info["cwd"]
        if any(Path(word).name == "dvc" for word in words[:3]) and (
            cwd is None or Path(cwd).is_relative_to(root.resolve())
        ):
            found.append(words)
    return found


def _file_system(folder: Path) -> str:
    """The kind of the file system that a folder is on."""
    inside = [part for part in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(part.mountpoint)]
    return max(inside, key=lambda part: len(part.mountpoint)).fstype if inside else ""


def _remove(paths: list[Path]) -> None:
    for file in paths:
        file.unlink(missing_ok=True)
