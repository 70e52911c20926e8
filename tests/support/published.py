"""Lenses of tuned-lens as somebody with bad intentions would publish them: config.json and params.pt."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from tests.support.bundles import DEEP, Canary, D

L = 4


class Published(NamedTuple):
    name: str
    write: Callable[[Path], None]
    words: str  # of the refusal


def config(**changed: object) -> str:
    return json.dumps({"d_model": D, "num_hidden_layers": L, "bias": False, "lens_type": "linear_tuned_lens"} | changed)


def tensors() -> dict[str, torch.Tensor]:
    return {f"{i}.weight": torch.zeros(D, D) for i in range(L)}


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def rewritten(change: Callable[[str, bytes], bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    """A good archive with other contents of its entries."""
    old, new = zipfile.ZipFile(io.BytesIO(saved(tensors()))), io.BytesIO()
    with zipfile.ZipFile(new, "w", kind) as archive:
        for name in old.namelist():
            archive.writestr(name, change(name, old.read(name)))
    return new.getvalue()


def program(code: bytes) -> bytes:
    """A good archive with another pickle."""
    return rewritten(lambda name, content: code if name.endswith("data.pkl") else content)


def replaced(old: bytes, new: bytes) -> bytes:
    """A good archive whose pickle says something else once."""

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return content
        assert old in content, old
        return content.replace(old, new, 1)

    return rewritten(change)


def params(content: Callable[[], bytes]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(config())
        (folder / "params.pt").write_bytes(content())

    return write


def configured(text: str | bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        params(lambda: saved(tensors()))(folder)
        (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    return write


def overlapping() -> bytes:
    """Ten thousand names for the same stretch of a file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"}.")
        archive.writestr("archive/data/0", b"\0" * 90_000)
        archive.filelist += [archive.filelist[-1]] * 5_000
    return file.getvalue()


def crowded() -> bytes:
    """A list of entries that is longer than anything it lists."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", b"")
        archive.filelist += [archive.filelist[-1]] * 40_000
    return file.getvalue()


def nested(instruction: bytes) -> bytes:
    return b"\x80\x02}X\x01\x00\x00\x00a" + b")" + instruction * DEEP + b"s."


def shared_tuples() -> bytes:
    """t = (t, t), sixty times: as a key of a dictionary its hash would take for ever."""
    double = b"".join(b"q%ch%ch%c\x86" % (i, i, i) for i in range(60))
    return b"\x80\x02})" + double + b"K\x01s."


def bytes_of_a_terabyte() -> bytes:
    return b"\x80\x02c__builtin__\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R."


def code(module: str, name: str) -> bytes:
    return f"\x80\x02c{module}\n{name}\nX\x06\x00\x00\x00canary\x85R.".encode("latin1")


def sparse(folder: Path, name: str = "params.pt", size: int = 1 << 40) -> None:
    params(lambda: saved(tensors()))(folder)
    os.truncate(folder / name, size)


def sparse_config(folder: Path) -> None:
    sparse(folder, "config.json")


def legacy() -> bytes:
    file = io.BytesIO()
    torch.save(tensors(), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def bomb() -> bytes:
    """Forty megabytes of zeros in forty kilobytes: torch itself would take it."""
    big = b"\0" * 40_000_000
    return rewritten(lambda name, content: big if name.endswith("data/0") else content, zipfile.ZIP_DEFLATED)


def flipped() -> bytes:
    data = bytearray(saved(tensors()))
    place = data.index(b"archive/data/1") + 200
    data[place] ^= 1
    return bytes(data)


def big_endian(name: str, content: bytes) -> bytes:
    return b"big" if name.endswith("byteorder") else content


PUBLISHED = tuple(
    Published(*one)
    for one in (
        ("a pickle that runs", params(lambda: saved(Canary())), "names posix mkdir"),
        ("a plain pickle that runs", params(lambda: pickle.dumps(Canary())), "not a zip"),
        ("an old file of torch", params(legacy), "not a zip"),
        ("a pickle of the newest form", params(lambda: program(pickle.dumps(Canary(), 5))), "the instruction FRAME"),
        ("a call of the system", params(lambda: program(code("os", "mkdir"))), "names os mkdir"),
        ("a call of a part of torch", params(lambda: program(code("torch.hub", "load"))), "names torch.hub load"),
        ("an evaluation", params(lambda: program(code("__builtin__", "eval"))), "names __builtin__ eval"),
        ("a terabyte of zeros by call", params(lambda: program(bytes_of_a_terabyte())), "names __builtin__ bytearray"),
        ("a hundred thousand levels", params(lambda: program(nested(b"\x85"))), "a tuple in a tuple"),
        ("a key that is a tower of tuples", params(lambda: program(shared_tuples())), "a tuple (twice|in a tuple)"),
        ("a dictionary that holds itself", params(lambda: program(b"\x80\x02}q\0X\1\0\0\0ah\0s.")), "not a dictionary"),
        ("nothing on the stack", params(lambda: program(b"\x80\x02R.")), "not tensors alone"),
        ("no end", params(lambda: program(b"\x80\x02}")), "not tensors alone"),
        ("a pickle of two megabytes", params(lambda: program(b"}" * (2 << 20))), "not one data.pkl|takes? at most"),
        ("a compressed bomb", params(bomb), "compressed"),
        ("entries that overlap", params(overlapping), "overlap"),
        ("forty thousand entries", params(crowded), "entries, at most"),
        ("a terabyte", sparse, "at most 68,719,476,736"),
        ("half a file", params(lambda: saved(tensors())[:-2000]), "not a zip"),
        ("a flipped bit", params(flipped), "CRC"),
        ("numbers from the other end", params(lambda: rewritten(big_endian)), "little-endian"),
        ("a storage that is not there", params(lambda: replaced(b"X\1\0\0\0000", b"X\1\0\0\0009")), "not found"),
        ("a storage above", params(lambda: replaced(b"X\1\0\0\0000", b"X\6\0\0\0../../")), "not found"),
        ("a storage that is too short", params(lambda: replaced(b"M\0\x04t", b"M\0\x08t")), "more or fewer numbers"),
        ("a tensor that is not there", params(lambda: saved({"0.weight": torch.zeros(1).expand(D, D)})), "row by row"),
        ("a tensor turned", params(lambda: saved({"1.weight": torch.ones(D, 2 * D).T})), "row by row"),
        ("a sparse tensor", params(lambda: saved({"0.weight": torch.zeros(D, D).to_sparse()})), "not tensors alone"),
        ("a tensor without numbers", params(lambda: saved({"0": torch.zeros(D, D, device="meta")})), "not tensors"),
        ("integers", params(lambda: saved({"0.weight": torch.zeros(D, D, dtype=torch.int32)})), "torch IntStorage"),
        ("a list", params(lambda: saved([torch.zeros(1)])), "EMPTY_LIST"),
        ("names of escapes", params(lambda: saved({"\x1b[31m": torch.zeros(1)})), r"must be|absent"),
        ("a translator more", params(lambda: saved(tensors() | {"4.weight": torch.zeros(D, D)})), "absent"),
        ("not a number", params(lambda: saved(tensors() | {"1.weight": torch.full((D, D), torch.nan)})), "not finite"),
        ("numbers that overflow", params(lambda: saved(tensors() | {"1.weight": torch.full((D, D), 1e30)})), "above"),
        ("a config that is a list", configured("[]"), "has no d_model"),
        ("a config of depth", configured("[" * DEEP + "]" * DEEP), "levels"),
        ("a config that says a thing twice", configured(config()[:-1] + ', "d_model": 64}'), "twice"),
        ("a config of a terabyte", sparse_config, "at most"),
        ("a width of words", configured(config(d_model="32")), "made for a model of"),
        ("a width of lists", configured(config(d_model=[[32]])), "made for a model of"),
        ("a lens of escapes", configured(config(lens_type="\x1b]0;x\x07")), "only linear_tuned_lens"),
        ("a config of another head", configured(config(unembed_hash=[1])), "unembed_hash"),
    )
)  # fmt: skip
