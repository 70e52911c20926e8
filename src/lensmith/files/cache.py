"""Caches under LENSMITH_HOME: where they are, how large they may grow, and what is in them.

    <LENSMITH_HOME>/bank/<key>/      residual banks, see `source.bank`
    <LENSMITH_HOME>/fit/<key>/       checkpoints of fits, see `lens.checkpoint`
    <LENSMITH_HOME>/fleet/<key>/     a model's clone of a lab, see `fleet.work`

LENSMITH_BANK_GIB bounds all banks together; without it only the disk does. A cache is never an input: any of it may be
deleted at any time, and costs a capture or a fit. It must be on a file system whose locks hold.
"""

import fcntl
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lensmith.files.artifacts import TEMPORARY
from lensmith.process import amounts, environment
from lensmith.process.amounts import GIB
from lensmith.process.errors import ResourceError

LIMIT = "LENSMITH_BANK_GIB"
LOCK = ".lock"
KINDS = ("bank", "fit", "fleet")


def home() -> Path:
    """Where caches live: LENSMITH_HOME, else ~/.cache/lensmith."""
    return Path(os.environ.get("LENSMITH_HOME") or Path.home() / ".cache" / "lensmith")


def folder(kind: str, key: str) -> Path:
    """The folder of one entry; `kind` is one of KINDS."""
    return home() / kind / key


@dataclass(frozen=True)
class Kept:
    """A residual bank, the checkpoints of a fit, or a clone, on disk."""

    folder: Path
    size: int  # bytes
    used: float  # seconds since the epoch, when a fit last opened it

    @property
    def kind(self) -> str:
        return self.folder.parent.name

    @property
    def key(self) -> str:
        return self.folder.name

    def holds(self) -> str:
        """What is in it, in words: its key alone is a hash. One that is being written or is damaged says so."""
        return {"bank": _bank_holds, "fit": _fit_holds, "fleet": _clone_holds}[self.kind](self.folder)


def _bank_holds(folder: Path) -> str:
    shards = sorted(folder.glob("shard-*.safetensors"))
    try:
        about = json.loads((folder / "key.json").read_bytes())
        n_seqs = sum(_shape(shard)[0] for shard in shards)
        n_positions, n_layers, d_model = _shape(shards[0])[1:]
        where = f"{str(about['dtype']).removeprefix('torch.')} on {about['device']}, torch {about['torch']}"
    except (OSError, IndexError, KeyError, ValueError, SafetensorError):
        return f"{len(shards)} shards, not readable"
    read = f"{n_positions} positions of each of {n_seqs} sequences, {n_layers} layers, d_model {d_model}"
    return f"{read}; {where}, {about['capture_seqs']} sequences a pass"


def _fit_holds(folder: Path) -> str:
    newest = {path.parent.name: path.stem for path in sorted(folder.glob("*/*.safetensors"))}
    kinds = ", ".join(f"{kind} {stem}" for kind, stem in newest.items())
    try:
        model = json.loads((folder / "key.json").read_bytes())["model_key"]
    except (OSError, KeyError, ValueError):
        return f"checkpoints of an unknown model: {kinds}"
    return f"checkpoints of {model}: {kinds or 'none yet'}"


def _clone_holds(folder: Path) -> str:
    return f"a clone for {folder.name.rpartition('-')[0]}; what it finished is in the remote"


def entries(*kinds: str) -> list[Kept]:
    """Every entry of these kinds, or of all, the one that was used last first."""
    folders = [place for kind in kinds or KINDS for place in (home() / kind).glob("*") if place.is_dir()]
    found = [Kept(place, _size(place), _used(place)) for place in folders]
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def prune(keep: int, *kinds: str, spare: Path | None = None) -> list[Kept]:
    """Delete the entries that were used longest ago until at most `keep` bytes are left; returns those deleted.

    `spare` is not deleted, nor is an entry that is being written.
    """
    gone, total = [], 0
    for entry in entries(*kinds):
        total += entry.size
        if total > keep and entry.folder != spare and not _is_held(entry.folder):
            shutil.rmtree(entry.folder)
            gone.append(entry)
            total -= entry.size
    return gone


def reserve(folder: Path, need: int) -> None:
    """Make room for `need` more bytes in `folder`, by the limit and by the disk.

    Raises:
        ResourceError: they would not fit even with all other banks gone, or not on the disk.
        InputError: LENSMITH_BANK_GIB is no number.
    """
    limit = environment.number(LIMIT, "GiB", None, "Nothing was captured.")
    if limit is not None:
        if need > limit * GIB:
            raise ResourceError(
                f"{folder}: the residual bank needs {amounts.size(need)}, {LIMIT} allows {amounts.size(limit * GIB)}. "
                "Raise it, or set fit.bank to stream. Nothing was captured."
            )
        prune(int(limit * GIB) - need, "bank", spare=folder)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ResourceError(
            f"{folder}: the residual bank needs {amounts.size(need)}, {amounts.size(free)} are free. `lensmith cache "
            "prune` frees others; or set LENSMITH_HOME to a larger disk, or fit.bank to stream. Nothing was captured."
        )


@contextmanager
def held(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold an entry while it is written or checked; a second process says whom it waits for, and then finds it whole.

    What a process left half-written when it was killed is removed. `shared` lets others that say so in as well: each
    writes files of its own, and nothing is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with (folder / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            print(f"{folder}: busy, waiting for process {lock.read() or '?'} to finish", file=sys.stderr, flush=True)
            fcntl.flock(lock, kind)
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {socket.gethostname()}")
        lock.flush()
        os.utime(folder / LOCK)  # the entry is in use
        for leftover in [] if shared else folder.rglob(f"{TEMPORARY}*"):
            leftover.unlink()
        yield


def _is_held(folder: Path) -> bool:
    try:
        with (folder / LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _shape(shard: Path) -> list[int]:
    with safe_open(shard, framework="np") as file:
        shape: list[int] = file.get_slice("resid_post").get_shape()
    return shape


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _used(folder: Path) -> float:
    lock = folder / LOCK
    return (lock if lock.exists() else folder).stat().st_mtime
