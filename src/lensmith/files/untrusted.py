"""Strict readers for untrusted JSON and safetensors headers.

The usual readers are lenient: of two equal keys the last one wins, NaN is a number, a header may take a gigabyte. These
readers refuse what two readers could read differently, and sizes that no lens needs.
"""

import json
import math
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from lensmith.process.errors import IntegrityError, shown

JSON_BYTES = 4 << 20  # an index of a thousand lenses
HEADER_BYTES = 1 << 20
# A lens of full rank at every layer of the largest open models is a few tens of gigabytes.
TENSOR_BYTES, TEXT_BYTES = 64 << 30, 64 << 20
DEPTH = 32
FLOAT = "F32"
SIZE = 4  # bytes of a FLOAT
METADATA = "__metadata__"


class Header(NamedTuple):
    """What a safetensors file says before its numbers."""

    shapes: dict[str, tuple[int, ...]]
    about: Any  # its one metadata string, as JSON data


def read_json(path: Path) -> Any:
    """JSON of at most JSON_BYTES.

    Raises:
        IntegrityError: missing, or nothing that `parse_json` reads.
    """
    check_size(path, JSON_BYTES)
    return parse_json(path.read_bytes(), str(path))


def size_limit(name: str) -> int:
    """The most bytes that a file of a lens may have: the tensors, and everything else."""
    return TENSOR_BYTES if name.endswith((".safetensors", ".pt")) else TEXT_BYTES


def check_size(path: Path, limit: int) -> None:
    """IntegrityError where a file is missing, or larger than `limit` bytes."""
    if not path.is_file():
        raise IntegrityError(f"{path}: missing")
    if (size := path.stat().st_size) > limit:
        raise IntegrityError(f"{path}: {size:,} bytes, at most {limit:,} are read")


def parse_json(data: bytes, where: str) -> Any:
    """JSON data without doubt: UTF-8, each key once, finite numbers, at most DEPTH levels.

    Raises:
        IntegrityError: anything else; `where` names it in the message.
    """
    try:
        value = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
        deep = _deeper(value, DEPTH)
        json.dumps(None if deep else value, ensure_ascii=False).encode()  # half of a surrogate pair: no file takes it
    except ValueError as error:
        raise IntegrityError(f"{where}: not JSON ({shown(error)})") from None
    except RecursionError:
        deep = True
    if deep:
        raise IntegrityError(f"{where}: JSON of more than {DEPTH} levels")
    return value


def read_header(path: Path, names: Collection[str]) -> Header:
    """The header of a safetensors file that holds exactly the tensors `names`, all FLOAT, and nothing beside them.

    Raises:
        IntegrityError: any other file.
    """
    if not path.is_file():  # a pipe would be waited for
        raise IntegrityError(f"{path}: missing")
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > HEADER_BYTES:
                raise IntegrityError(f"{path}: a header of {size:,} bytes, at most {HEADER_BYTES:,} are read")
            text = file.read(size)
    except OSError as error:
        raise IntegrityError(f"{path}: not a whole safetensors file ({error.strerror})") from None
    header = parse_json(text, f"{path}: header")
    if not isinstance(header, dict):
        raise IntegrityError(f"{path}: header: is no JSON object")
    about = header.pop(METADATA, {})
    if header.keys() != set(names):
        raise IntegrityError(f"{path}: holds {shown(sorted(header))}, must hold {sorted(names)}")
    shapes, end = {}, 0
    for name, entry in sorted(header.items(), key=_place):
        shapes[name], end = _tensor(entry, end, f"{path}: {name}")
    if path.stat().st_size != 8 + size + end:
        raise IntegrityError(f"{path}: not a whole safetensors file, or one with something behind its tensors")
    if not isinstance(about, dict) or not isinstance(text := about.get("lensmith", "{}"), str):
        raise IntegrityError(f"{path}: header: its metadata is not one string")
    return Header(shapes, parse_json(text.encode(), f"{path}: metadata"))


def _place(named: tuple[str, Any]) -> int:
    try:
        return int(named[1]["data_offsets"][0])
    except (TypeError, KeyError, IndexError, ValueError):
        return -1  # `_tensor` refuses it


def _tensor(entry: Any, begin: int, where: str) -> tuple[tuple[int, ...], int]:
    """Shape of a tensor that begins at byte `begin`, and where it ends."""
    known = isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}
    if not known or entry["dtype"] != FLOAT or not _naturals(entry["shape"]):
        raise IntegrityError(f"{where}: is {shown(entry)}, must be an array of {FLOAT}")
    end = begin + SIZE * math.prod(entry["shape"])
    if entry["data_offsets"] != [begin, end]:
        raise IntegrityError(f"{where}: lies at {shown(entry['data_offsets'])}, its place is {[begin, end]}")
    return tuple(entry["shape"]), end


def _naturals(value: object) -> bool:
    # `type() is`, not isinstance: JSON's true is a bool, and a bool is an int.
    return isinstance(value, list) and len(value) <= 4 and all(type(n) is int and 0 <= n < 2**40 for n in value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {twice!r} twice")
    return data


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large a number")
    return value


def _deeper(value: object, depth: int) -> bool:
    """Whether data has more than `depth` levels, without recursion, which deep data would exhaust."""
    level = [value]
    for _ in range(depth):
        inner = [value for value in level if isinstance(value, dict | list)]
        level = [item for value in inner for item in (value.values() if isinstance(value, dict) else value)]
        if not level:
            return False
    return True
