"""Tensors by name as `torch.save` writes them, read without unpickling.

The file is a zip archive: <top>/data.pkl, a pickle of the dictionary, and <top>/data/<key>, the plain numbers of each
storage. A pickle is a program that may import and call anything. Here it is read as text: only the few instructions
that torch writes for a dictionary of tensors are known, and each of them makes a note of what it says, nothing else.
"""

import math
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lensmith.process.errors import IntegrityError, shown

PICKLE_BYTES = 1 << 20
ENTRIES = 10_000
ENTRY = b"PK\x01\x02"  # begins each entry of an archive's list
CHUNK = 1 << 20
LARGEST_NUMBER = 8  # bytes, for a caller who knows how many numbers there should be
SLACK = 2 << 20  # bytes of everything else
# What reading a broken archive, or a pickle that torch did not write, comes to.
BROKEN = (zipfile.BadZipFile, OSError, EOFError, ValueError, TypeError, LookupError, NotImplementedError, RuntimeError)

TENSOR, DICTIONARY = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
DTYPES = {
    "torch FloatStorage": "<f4",
    "torch HalfStorage": "<f2",
    "torch DoubleStorage": "<f8",
    "torch BFloat16Storage": "<u2",  # the upper half of an f4
}


class Name(NamedTuple):
    """What a pickle wants imported: here a word."""

    text: str


class Storage(NamedTuple):
    dtype: str
    key: str
    length: int


class View(NamedTuple):
    """A tensor: part of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]


def read(path: Path, limit: int) -> dict[str, NDArray[np.floating[Any]]]:
    """Every tensor of a file of at most `limit` bytes; bfloat16 as float32.

    Raises:
        IntegrityError: the file is larger, not whole, compressed, or holds anything but tensors by name.
    """
    try:
        with path.open("rb") as file:
            _bound(path, limit)
            with zipfile.ZipFile(file) as archive:
                return _tensors(archive, limit)
    except BROKEN as error:
        raise IntegrityError(f"{path.name} is not tensors alone ({shown(error)})") from None


def _bound(path: Path, limit: int) -> None:
    """ValueError for a file that would take more than its due before a number of it is read."""
    if (size := path.stat().st_size) > limit:
        raise ValueError(f"{size:,} bytes, the tensors take at most {limit:,}")
    with path.open("rb") as file:
        entries = sum(chunk.count(ENTRY) for chunk in iter(lambda: file.read(CHUNK), b""))
    if entries > ENTRIES:
        raise ValueError(f"{entries:,} entries, at most {ENTRIES:,} are read")


def _tensors(archive: zipfile.ZipFile, limit: int) -> dict[str, NDArray[np.floating[Any]]]:
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries):
        raise ValueError("an entry is compressed")
    if sum(entry.file_size for entry in entries) > limit:
        raise ValueError("its entries overlap")
    pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(pickles) != 1 or pickles[0].file_size > PICKLE_BYTES:
        raise ValueError(f"not one data.pkl of at most {PICKLE_BYTES:,} bytes")
    top = pickles[0].filename.removesuffix("data.pkl")
    if f"{top}byteorder" in archive.namelist() and archive.read(f"{top}byteorder") != b"little":
        raise ValueError("its numbers are not little-endian")
    views = Notes().read(archive.read(pickles[0]))
    storages: dict[Storage, NDArray[Any]] = {}  # each read once, however many tensors share it
    for view in views.values():
        if view.storage not in storages:
            storages[view.storage] = _numbers(archive.read(f"{top}data/{view.storage.key}"), view.storage)
    return {name: _array(view, storages[view.storage]) for name, view in views.items()}


def _numbers(data: bytes, storage: Storage) -> NDArray[Any]:
    numbers = np.frombuffer(data, storage.dtype)
    if len(numbers) != storage.length:
        raise ValueError(f"storage {storage.key} holds {len(numbers)} numbers, not {storage.length}")
    return (numbers.astype("<u4") << 16).view("<f4") if storage.dtype == "<u2" else numbers


def _array(view: View, numbers: NDArray[Any]) -> NDArray[np.floating[Any]]:
    part = numbers[view.offset : view.offset + math.prod(view.shape)]
    return part.reshape(view.shape)  # a ValueError where the storage is too short


MARK = object()


@dataclass
class Notes:
    """The pickle machine with everything taken out that acts: a stack and a memo of plain data."""

    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def read(self, program: bytes) -> dict[str, View]:
        """Tensors by name. ValueError, TypeError or LookupError where the program is any other."""
        for operation, argument, _ in pickletools.genops(program):
            if operation.name == "STOP":
                break
            if operation.name not in INSTRUCTIONS:
                raise ValueError(f"its pickle has the instruction {operation.name}")
            INSTRUCTIONS[operation.name](self, argument)
        (found,) = self.stack
        if not isinstance(found, dict) or not all(isinstance(value, View) for value in found.values()):
            raise TypeError("not a dictionary of tensors")
        return found

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def keep(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def last(self, n: int) -> list[Any]:
        if len(self.stack) < n:
            raise IndexError("its pickle takes what it has not put down")
        taken = self.stack[-n:]
        del self.stack[-n:]
        return taken

    def since_mark(self) -> list[Any]:
        place = next((i for i in reversed(range(len(self.stack))) if self.stack[i] is MARK), None)
        if place is None:
            raise IndexError("its pickle ends what it has not begun")
        return self.last(len(self.stack) - place)[1:]

    def drop(self) -> None:
        self.last(1)

    def fill(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(pairs) % 2 or not all(isinstance(key, str) for key in pairs[::2]):
            raise TypeError("its pickle fills something that is not a dictionary by name")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))


INSTRUCTIONS: dict[str, Callable[[Notes, Any], None]] = {
    "PROTO": lambda _notes, _version: None,
    "GLOBAL": lambda notes, name: notes.push(Name(name)),
    **dict.fromkeys(("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"), Notes.push),
    "NEWTRUE": lambda notes, _: notes.push(True),
    "NEWFALSE": lambda notes, _: notes.push(False),
    "EMPTY_DICT": lambda notes, _: notes.push({}),
    "EMPTY_TUPLE": lambda notes, _: notes.push(()),
    "MARK": lambda notes, _: notes.push(MARK),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), Notes.keep),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda notes, place: notes.push(notes.memo[place])),
    "TUPLE": lambda notes, _: notes.push(tuple(notes.since_mark())),
    "TUPLE1": lambda notes, _: notes.push(tuple(notes.last(1))),
    "TUPLE2": lambda notes, _: notes.push(tuple(notes.last(2))),
    "TUPLE3": lambda notes, _: notes.push(tuple(notes.last(3))),
    "BINPERSID": lambda notes, _: notes.push(_storage(*notes.last(1))),
    "REDUCE": lambda notes, _: notes.push(_made(*notes.last(2))),
    "SETITEM": lambda notes, _: notes.fill(notes.last(2)),
    "SETITEMS": lambda notes, _: notes.fill(notes.since_mark()),
    "BUILD": lambda notes, _: notes.drop(),  # versions of the modules whose parameters these were
}


def _storage(words: Any) -> Storage:
    word, name, key, _, count = words
    dtype = DTYPES.get(name.text) if isinstance(name, Name) else None
    if word != "storage" or dtype is None or not isinstance(key, str) or not _natural(count):
        raise TypeError(f"its pickle names a storage that is none of {', '.join(DTYPES)}")
    return Storage(dtype, key, count)


def _made(maker: Any, arguments: Any) -> Any:
    """What the call in a pickle stands for."""
    if not isinstance(maker, Name):
        raise TypeError("its pickle calls what is no name")
    if maker.text == DICTIONARY and arguments == ():
        return {}
    if maker.text != TENSOR:
        raise TypeError(f"its pickle calls {maker.text}")
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, Storage) or not _natural(offset) or not _naturals(shape) or not _naturals(stride):
        raise TypeError("its pickle makes a tensor of something else than a storage")
    if math.prod(shape) > storage.length or stride != tuple(math.prod(shape[i + 1 :]) for i in range(len(shape))):
        raise ValueError("a tensor is not stored row by row")
    return View(storage, offset, shape)


def _naturals(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= 2 and all(_natural(n) for n in value)


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**40
