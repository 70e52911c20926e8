"""Files as the lab writes them: whole or not at all, the same bytes for the same content, checked on reading."""

import csv
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lensmith.process.errors import InputError, IntegrityError, ResourceError

# Prefix of temporary files, which a killed process leaves behind. git and DVC ignore it (.gitignore, .dvcignore).
TEMPORARY = ".tmp-"
# Significant digits of numbers in files that git tracks: another kind of CPU then changes few lines.
TRACKED_DIGITS = 5


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; on success it is synced and renamed over `path`, else removed.

    Raises:
        ResourceError: the disk is full. `path` keeps what it held.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, suffix=path.name, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:  # safetensors says of a full disk that it cannot serialize
        reason = error.strerror if isinstance(error, OSError) else error
        raise ResourceError(f"{path}: cannot be written ({reason}). The old file is as it was.") from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # renamed, or on a disk that fails: then it is another's to remove
                temporary.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """UTF-8 with line feeds, whole or not at all. Raises as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: object) -> None:
    """Indented, keys sorted. NaN and infinity are refused: JSON has no word for them."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def canonical_json(value: object) -> str:
    """One byte form per value, for hashing and for files that are compared."""
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"), ensure_ascii=False)


def parse_json(text: str | bytes) -> Any:
    """JSON data. ValueError where it is none, or none that can be read: brackets in brackets exhaust Python."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def read_json(path: Path) -> Any:
    """JSON data. IntegrityError where the file is missing or not JSON."""
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        raise IntegrityError(f"{path}: missing") from None
    except ValueError as error:
        raise IntegrityError(f"{path}: not JSON ({error})") from None


def rounded(value: Any, digits: int) -> Any:
    """The same data with every float rounded to so many significant digits."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def write_csv(
    path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], *, digits: int | None = None
) -> None:
    """Comma-separated with a header.

    Floats are in their shortest exact form, so that equal rows give equal bytes, or rounded to `digits` significant
    digits.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(_LineFeeds(file))
        writer.writerow(columns)
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"{path}: a row of {len(row)} values under {len(columns)} columns")
            cells = row if digits is None else rounded(row, digits)
            writer.writerow(["" if value is None else value for value in cells])


class _LineFeeds:
    """A file for csv.writer, whose CR LF become LF. The writer must believe in CR LF, or it would not quote a CR."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, row: str) -> int:
        return self.file.write(row.removesuffix("\r\n") + "\n")


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: str | None = None) -> None:
    """A safetensors file. All metadata is one string: with two keys the bytes would not be reproducible."""
    with replacing(path) as temporary:
        save_file(dict(tensors), temporary, metadata=None if metadata is None else {"lensmith": metadata})


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file. IntegrityError where it is missing or not whole."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise IntegrityError(f"{path}: missing") from None
    except SafetensorError as error:
        raise IntegrityError(f"{path}: not a whole safetensors file ({error})") from None


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """sha256 of a text as UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_tree(folder: Path) -> dict[str, str]:
    """sha256 by relative path of every file below a folder, hidden ones left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    relative = [path.relative_to(folder) for path in files]
    return {str(rel): sha256_file(folder / rel) for rel in relative if not any(p.startswith(".") for p in rel.parts)}


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each non-empty line.

    Raises:
        InputError: the file is missing, or a line is not a JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # a byte order mark, as some editors write, is no text
    except FileNotFoundError:
        raise InputError(f"{path}: missing") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8") from None
    yield from parse_jsonl(text.split("\n"), str(path))


def parse_jsonl(lines: Iterable[str], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each non-empty line of a file called `name`. Raises InputError for any other."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError as error:
            raise InputError(f"{name}:{number}: not JSON ({error}). Nothing was changed.") from None
        if not isinstance(value, dict):
            raise InputError(
                f"{name}:{number}: is a {type(value).__name__}, must be a JSON object. Nothing was changed."
            )
        yield number, value
