"""Files that torch saved, read without trust.

Such a file is a zip archive of plain numbers and one pickle. A pickle is a program: its size and each of its
instructions are checked (`torch_pickle`) before `torch.load` reads it; with `weights_only` it can only make tensors.
"""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensmith.lens import torch_pickle
from lensmith.lens.torch_pickle import INSTRUCTIONS, OF_FACTS
from lensmith.process.errors import IntegrityError, first_line, shown

LARGEST_NUMBER = 8  # bytes
SLACK = 2 << 20  # bytes of an archive besides its numbers
PICKLE_BYTES = 1 << 18
ENTRIES = 10_000
ENTRY = b"PK\x01\x02"  # begins each entry of an archive's list
CHUNK = 1 << 20


def read_tensors(path: Path, limit: int) -> dict[str, Tensor]:
    """All tensors of a file that torch saved, of at most `limit` bytes.

    Raises:
        IntegrityError: the file is larger, not whole, compressed, or holds anything but floating-point tensors by name.
    """
    return _read(path, limit, INSTRUCTIONS, lambda stored: stored)


def read_beside_facts(path: Path, limit: int, name: str) -> tuple[dict[int, Tensor], dict[str, Any]]:
    """The tensors by number that a file of at most `limit` bytes holds under `name`, and the JSON data beside them.

    Raises:
        IntegrityError: the file is larger, not whole, compressed, or has another form.
    """
    facts: dict[str, Any] = {}

    def under_name(stored: dict[Any, Any]) -> object:
        facts.update((key, value) for key, value in stored.items() if key != name)
        json.dumps(facts, allow_nan=False)  # fails for tensors
        return stored[name]

    return _read(path, limit, INSTRUCTIONS | OF_FACTS, under_name, key=int), facts


def _read(
    path: Path,
    limit: int,
    instructions: frozenset[str],
    tensors_of: Callable[[dict[Any, Any]], object],
    key: type = str,
) -> dict[Any, Tensor]:
    """The tensors that `tensors_of` takes from the dictionary in a file, each by a `key`."""
    try:
        entry_sizes = _check_archive(path, limit, instructions)
        # The file is mapped; only the pickle is read, and its instructions can only make tensors.
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # noqa: TID251, see above
        return _checked(tensors_of(stored) if isinstance(stored, dict) else stored, key, entry_sizes)
    except Exception as error:  # noqa: BLE001, zipfile, pickletools and torch raise many kinds, all mean one thing
        raise IntegrityError(f"{path.name} is not tensors alone ({shown(first_line(error))})") from None


def _checked(tensors: object, key: type, entry_sizes: set[int]) -> dict[Any, Tensor]:
    """The same tensors, each by a `key` and no longer than its entry of the archive."""
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise TypeError("not a dictionary of tensors")
    if not all(type(name) is key for name in tensors):
        raise TypeError(f"not tensors by {'name' if key is str else 'number'}")
    if not all(tensor.is_contiguous() for tensor in tensors.values()):
        raise ValueError("a tensor is not stored row by row")
    # A storage longer than its entry would read the bytes of the next one.
    if {tensor.untyped_storage().nbytes() for tensor in tensors.values()} - {0} - entry_sizes:
        raise ValueError("a storage holds more or fewer numbers than it says")
    return tensors


def _check_archive(path: Path, limit: int, instructions: frozenset[str]) -> set[int]:
    """The sizes of the entries of an archive whose reading is bounded by `limit`; ValueError for any other file."""
    if (size := path.stat().st_size) > limit:
        raise ValueError(f"{size:,} bytes, the tensors take at most {limit:,}")
    with path.open("rb") as file:
        entries = sum(chunk.count(ENTRY) for chunk in iter(lambda: file.read(CHUNK), b""))
    if entries > ENTRIES:
        raise ValueError(f"{entries:,} entries, at most {ENTRIES:,} are read")
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size for info in infos):
            raise ValueError("an entry is compressed")
        if sum(info.file_size for info in infos) > limit:
            raise ValueError("its entries overlap")
        pickles = [info for info in infos if info.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > PICKLE_BYTES:
            raise ValueError(f"not one data.pkl of at most {PICKLE_BYTES:,} bytes")
        orders = [archive.read(info) for info in infos if info.filename.endswith("/byteorder")]
        if any(order != b"little" for order in orders):
            raise ValueError("its numbers are not little-endian")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"CRC of {damaged} is wrong")
        torch_pickle.check(archive.read(pickles[0]), instructions)
    return {info.file_size for info in infos}
