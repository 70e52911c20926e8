"""Strict readers for untrusted JSON and safetensors headers.

The usual readers are lenient: of two equal keys the last one wins, NaN is a number, a header may take a gigabyte. These
readers refuse what two readers could read differently, and sizes that no lens needs.
"""

import json
import math
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lensmith.process.errors import IntegrityError, shown

JSON_BYTES = 4 << 20  # an index of a thousand lenses
HEADER_BYTES = 1 << 20
# A lens of full rank at every layer of the largest open models is a few tens of gigabytes.
TENSOR_BYTES, TEXT_BYTES = 64 << 30, 64 << 20
DEPTH = 32
SIZES = {"F32": 4, "F16": 2}  # bytes of a number


class TensorEntry(BaseModel):
    """What a safetensors header says of one tensor."""

    model_config = ConfigDict(extra="forbid", strict=True)

    dtype: Literal["F32", "F16"]
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**40)]], Field(max_length=4)]
    data_offsets: list[int]  # its first byte, and the first one behind it


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
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
        deep = _deeper(value, DEPTH)
        json.dumps(None if deep else value, ensure_ascii=False).encode()  # half of a surrogate pair: no file takes it
    except ValueError as error:
        raise IntegrityError(f"{where}: not JSON ({shown(error)})") from None
    except RecursionError:
        deep = True
    if deep:
        raise IntegrityError(f"{where}: JSON of more than {DEPTH} levels")
    return value


def read_header(
    path: Path, names: Collection[str], *, optional: Collection[str] = (), halves: Collection[str] = ()
) -> Header:
    """The header of a safetensors file that holds exactly the tensors `names`, all F32, and nothing beside them.

    Those of `optional` may be missing, and those of `halves` may be F16.

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
    about = header.pop("__metadata__", {})
    if set(names) - header.keys() - set(optional) or header.keys() - set(names):
        raise IntegrityError(f"{path}: holds {shown(sorted(header))}, must hold {sorted(names)}")
    shapes, end = _shapes(header, str(path), halves)
    if path.stat().st_size != 8 + size + end:
        raise IntegrityError(f"{path}: not a whole safetensors file, or one with something behind its tensors")
    if not isinstance(about, dict) or not isinstance(text := about.get("lensmith", "{}"), str):
        raise IntegrityError(f"{path}: header: its metadata is not one string")
    return Header(shapes, parse_json(text.encode(), f"{path}: metadata"))


def _shapes(header: dict[str, Any], where: str, halves: Collection[str]) -> tuple[dict[str, tuple[int, ...]], int]:
    """Shape by name of tensors that lie one behind the other, and the number of their bytes."""
    entries: dict[str, TensorEntry] = {}
    for name, entry in header.items():
        try:
            entries[name] = TensorEntry.model_validate(entry)
            is_allowed = entries[name].dtype == "F32" or name in halves
        except ValidationError:
            is_allowed = False
        if not is_allowed:
            allowed = "F32 or F16" if name in halves else "F32"
            raise IntegrityError(f"{where}: {name}: is {shown(entry)}, must be an array of {allowed}")
    end = 0
    for name, tensor in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, end = end, end + SIZES[tensor.dtype] * math.prod(tensor.shape)
        if tensor.data_offsets != [begin, end]:
            raise IntegrityError(f"{where}: {name}: lies at {shown(tensor.data_offsets)}, its place is {[begin, end]}")
    return {name: tuple(tensor.shape) for name, tensor in entries.items()}, end


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {twice!r} twice")
    return data


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
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
