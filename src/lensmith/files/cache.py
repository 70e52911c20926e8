"""Caches under LENSMITH_HOME: where they are, how large they may grow, and what is in them.

    <LENSMITH_HOME>/bank/<key>/      residual banks, see `source.bank`
    <LENSMITH_HOME>/fit/<key>/       checkpoints of fits, see `lens.checkpoint`
    <LENSMITH_HOME>/text/<key>/      text that a model wrote, see `source.sampling`
    <LENSMITH_HOME>/gguf/<key>/      the model of a GGUF file as a folder, see `source.gguf_model`
    <LENSMITH_HOME>/fleet/<key>/     a model's clone of a lab, see `fleet.work`
    <LENSMITH_HOME>/sha256.json      hashes of large files, see `files.hashes`

LENSMITH_BANK_GIB bounds all banks together; without it only the disk does. A cache is never an input: any of it may be
deleted at any time, and costs a capture or a fit. It must be on a file system whose locks hold.

Locks are flock's own: filelock knows no shared lock that the kernel frees with its process, and empties the lock file,
which here names the holder.
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
from lensmith.process import amounts
from lensmith.process.amounts import GIB
from lensmith.process.environment import BANK_GIB, HOME, home, number
from lensmith.process.errors import ResourceError

LOCK = ".lock"
KINDS = ("bank", "fit", "text", "gguf", "fleet")


def folder(kind: str, key: str) -> Path:
    """The folder of one entry; `kind` is one of KINDS."""
    return home() / kind / key


def make(folder: Path) -> None:
    """Make a folder under LENSMITH_HOME, where there is none. ResourceError where it cannot be written."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"{folder}: cannot be written ({error.strerror}). Set {HOME} to a folder that can. Nothing was started."
        ) from None


@dataclass(frozen=True)
class CacheEntry:
    """A residual bank, the checkpoints of a fit, text of a model, a converted model, or a clone, on disk."""

    folder: Path
    size: int  # bytes
    used: float  # seconds since the epoch, when it was last opened

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return self.folder.parent.name

    @property
    def key(self) -> str:
        """The name of its folder, a hash."""
        return self.folder.name

    def contents(self) -> str:
        """What it holds, in words; one that is being written, or is damaged, says so."""
        in_words = {
            "fleet": f"a clone for {self.key.rpartition('-')[0]}; what it finished is in the remote",
            "text": f"text that a model wrote: {len(list(self.folder.glob('tile-*.safetensors')))} tiles",
            "gguf": "the model of a GGUF file, as the folder that it is converted to",
        }
        if self.kind in in_words:
            return in_words[self.kind]
        if self.kind == "bank":
            shards = sorted(self.folder.glob("shard-*.safetensors"))
            try:
                key = json.loads((self.folder / "key.json").read_bytes())
                n_seqs = sum(_shape(shard)[0] for shard in shards)
                n_positions, n_layers, d_model = _shape(shards[0])[1:]
                machine = f"{str(key['dtype']).removeprefix('torch.')} on {key['device']}, torch {key['torch']}"
                captured = f"{machine}, {key['capture_seqs']} sequences a pass"
            except (OSError, IndexError, KeyError, ValueError, SafetensorError):
                return f"{len(shards)} shards, not readable"
            residuals = f"{n_positions} positions of each of {n_seqs} sequences, {n_layers} layers, d_model {d_model}"
            return f"{residuals}; {captured}"
        newest = {path.parent.name: path.stem for path in sorted(self.folder.glob("*/*.safetensors"))}
        kinds = ", ".join(f"{kind} {stem}" for kind, stem in newest.items())
        try:
            model = json.loads((self.folder / "key.json").read_bytes()).get("model_key")
        except (OSError, AttributeError, ValueError):
            return f"checkpoints of an unknown model: {kinds}"
        return f"checkpoints of {model or 'a rung that fits share'}: {kinds or 'none yet'}"


def _shape(shard: Path) -> list[int]:
    with safe_open(shard, framework="np") as file:
        shape: list[int] = file.get_slice("resid_post").get_shape()
    return shape


def entries(*kinds: str) -> list[CacheEntry]:
    """Every entry of these kinds, or of all, the most recently used first."""
    listed = []
    for path in (path for kind in kinds or KINDS for path in (home() / kind).glob("*") if path.is_dir()):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        opened = path / LOCK if (path / LOCK).exists() else path
        listed.append(CacheEntry(path, size, opened.stat().st_mtime))
    return sorted(listed, key=lambda entry: entry.used, reverse=True)


def prune(keep: int, *kinds: str, spare: Path | None = None) -> list[CacheEntry]:
    """Keep the most recently used entries that fit into `keep` bytes together, and delete the older ones.

    Returns those deleted. `spare` is not deleted, nor is an entry that is being written.
    """
    deleted, total = [], 0
    for entry in entries(*kinds):
        total += entry.size  # of deleted ones too: no entry outlives a newer one that did not fit
        if total > keep and entry.folder != spare and not is_held(entry.folder):
            shutil.rmtree(entry.folder)
            deleted.append(entry)
    return deleted


def reserve(folder: Path, need: int) -> None:
    """Make room for `need` more bytes in `folder`, by the limit and by the disk.

    Raises:
        ResourceError: they exceed the limit alone, or the free disk.
        InputError: LENSMITH_BANK_GIB is not a number.
    """
    limit = number(BANK_GIB, "GiB", None, "Nothing was captured.")
    if limit is not None:
        if need > limit * GIB:
            raise ResourceError(
                f"{folder}: the residual bank needs {amounts.size(need)}, {BANK_GIB} allows "
                f"{amounts.size(limit * GIB)}. Raise it, or set fit.bank to stream. Nothing was captured."
            )
        prune(int(limit * GIB) - need, "bank", spare=folder)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ResourceError(
            f"{folder}: the residual bank needs {amounts.size(need)}, {amounts.size(free)} are free. "
            "`lensmith cache prune --keep 0` frees others; or set LENSMITH_HOME to a larger disk, or fit.bank to "
            "stream. Nothing was captured."
        )


@contextmanager
def held(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold an entry while it is written or checked; a second process says whom it waits for.

    What a killed process left half-written is removed. Several may hold an entry `shared`: each writes files of its
    own, and nothing is removed.
    """
    make(folder)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with _writing(folder):
        file = (folder / LOCK).open("a+")
    with file as lock:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            print(f"{folder}: busy, waiting for process {lock.read() or '?'} to finish", file=sys.stderr, flush=True)
            fcntl.flock(lock, kind)
        with _writing(folder):
            lock.truncate(0)
            lock.write(f"{os.getpid()} on {socket.gethostname()}")
            lock.flush()
            os.utime(folder / LOCK)  # the entry is in use
            for leftover in [] if shared else folder.rglob(f"{TEMPORARY}*"):
                leftover.unlink()
        yield


def is_held(folder: Path) -> bool:
    """Whether a process holds an entry, shared or alone."""
    try:
        with (folder / LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
