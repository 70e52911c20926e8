"""Caches under LENSMITH_HOME: where they are, how large they may grow, and what is in them.

    <LENSMITH_HOME>/bank/<key>/      residual banks, see `source.bank`

LENSMITH_BANK_GIB bounds all banks together; without it only the disk does. A cache is never an input: any of it may be
deleted at any time, and costs a capture.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lensmith.errors import InputError, ResourceError

GIB = 2**30
LIMIT = "LENSMITH_BANK_GIB"
LOCK = ".lock"


def home() -> Path:
    """Where caches live: LENSMITH_HOME, else ~/.cache/lensmith."""
    return Path(os.environ.get("LENSMITH_HOME") or Path.home() / ".cache" / "lensmith")


@dataclass(frozen=True)
class Bank:
    """A residual bank on disk."""

    folder: Path
    size: int  # bytes
    used: float  # seconds since the epoch, when a fit last opened it

    @property
    def key(self) -> str:
        return self.folder.name


def banks() -> list[Bank]:
    """Every bank, the one that was used last first."""
    folders = [folder for folder in (home() / "bank").glob("*") if folder.is_dir()]
    found = [Bank(folder, _size(folder), _used(folder)) for folder in folders]
    return sorted(found, key=lambda bank: bank.used, reverse=True)


def prune(keep: int, *, spare: Path | None = None) -> list[Bank]:
    """Delete the banks that were used longest ago until at most `keep` bytes are left; returns those deleted.

    `spare` is not deleted, nor is a bank that is being written.
    """
    gone, total = [], 0
    for bank in banks():
        total += bank.size
        if total > keep and bank.folder != spare and not _is_held(bank.folder):
            shutil.rmtree(bank.folder)
            gone.append(bank)
            total -= bank.size
    return gone


def reserve(folder: Path, need: int) -> None:
    """Make room for `need` more bytes in `folder`, by the limit and by the disk.

    Raises:
        ResourceError: they would not fit even with all other banks gone, or not on the disk.
        InputError: LENSMITH_BANK_GIB is no number.
    """
    limit = _limit()
    if limit is not None:
        if need > limit:
            raise ResourceError(
                f"{folder}: the residual bank needs {need / GIB:.1f} GiB, {LIMIT} allows {limit / GIB:.1f}. "
                "Raise it, or set fit.bank to stream. Nothing was captured."
            )
        prune(limit - need, spare=folder)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ResourceError(
            f"{folder}: the residual bank needs {need / GIB:.1f} GiB, {free / GIB:.1f} GiB are free. `lensmith cache "
            "prune` frees others; or set LENSMITH_HOME to a larger disk, or fit.bank to stream. Nothing was captured."
        )


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a bank while it is written or checked; a second process waits and then finds it whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:  # opening it for writing is also what marks the bank as used
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(folder / LOCK)
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


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _used(folder: Path) -> float:
    lock = folder / LOCK
    return (lock if lock.exists() else folder).stat().st_mtime


def _limit() -> int | None:
    text = os.environ.get(LIMIT, "").strip()
    if not text:
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise InputError(f"{LIMIT} is {text!r}, must be a number of GiB >= 0. Nothing was captured.")
    return int(limit * GIB)
