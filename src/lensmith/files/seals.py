"""Seals: the sha256 of every file that a stage wrote, checked by every stage that reads them.

A seal is a file as `sha256sum` writes it, so `sha256sum --check` reads it too. Its names are relative to its folder.

    <folder>/SHA256SUMS                  every other file of a stage's folder, none missing, none more
    plots/seals/<stage>/<key>.sha256     of a stage whose outputs are single files

DVC compares sizes and times, and trusts read-only cache files without hashing them again: it misses a flipped bit. A
seal is written last and read first, so no number is ever computed from such a file.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from lensmith.files import artifacts
from lensmith.process.errors import IntegrityError

SUMS = "SHA256SUMS"
UNREAD = "Nothing was read from it. `lensmith doctor --rehash` says how to get it again."

_LINE = re.compile(r"([0-9a-f]{64})  ([^\0\n\\]+)")


def seal(folder: Path) -> None:
    """Seal a folder as it is now."""
    (folder / SUMS).unlink(missing_ok=True)
    seal_files(folder / SUMS, files(folder))


def seal_files(sums: Path, paths: Iterable[Path]) -> None:
    """Write the seal `sums` of these files."""
    named = {os.path.relpath(path, sums.parent): artifacts.sha256_file(path) for path in paths}
    artifacts.write_text(sums, "".join(f"{digest}  {name}\n" for name, digest in sorted(named.items())))


def check(*folders: Path) -> None:
    """Check every file of sealed folders.

    Raises:
        IntegrityError: a seal is missing or damaged, or a file is missing, changed, or not in the seal.
    """
    for folder in folders:
        sums = folder / SUMS
        named = [folder / name for name in read(sums)]
        check_files(sums, [*named, *(path for path in files(folder) if path != sums and path not in named)])


def check_files(sums: Path, paths: Iterable[Path]) -> None:
    """Check these files alone, each of which the seal `sums` must name. Raises as `check`."""
    sealed = read(sums)
    for path in paths:
        expected = sealed.get(os.path.relpath(path, sums.parent))
        if expected is None:
            raise IntegrityError(f"{path}: is not in {sums}, so no stage wrote it. {UNREAD}")
        try:
            actual = artifacts.sha256_file(path)
        except FileNotFoundError:
            raise IntegrityError(f"{path}: missing, but {sums} names it. {UNREAD}") from None
        if actual != expected:
            raise IntegrityError(f"{path}: sha256 is {actual}, {sums} says {expected}. {UNREAD}")


def read(sums: Path) -> dict[str, str]:
    """sha256 by file name, relative to the seal's folder.

    Raises:
        IntegrityError: it is missing, or not every line of it is a digest and a name.
    """
    try:
        return parse(sums.read_bytes(), str(sums))
    except FileNotFoundError:
        raise IntegrityError(f"{sums}: missing, so the files that it should name cannot be checked. {UNREAD}") from None


def parse(data: bytes, name: str) -> dict[str, str]:
    """As `read`, of the bytes of a seal called `name`."""
    sealed: dict[str, str] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        entry = _LINE.fullmatch(line)
        if entry is None or entry[2] in sealed:
            raise IntegrityError(f"{name}:{number}: is not a sha256 and the name of one more file. {UNREAD}")
        sealed[entry[2]] = entry[1]
    return sealed


def files(folder: Path) -> list[Path]:
    """Every file below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if not path.is_dir())
