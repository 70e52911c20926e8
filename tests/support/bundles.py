"""Releases as somebody with bad intentions, or no care, would make them: a good one with one thing done to it."""

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lensmith.files import artifacts
from tests.support.released import TINY

LENS = f"tuned_lenses/{TINY}"
N, D, K = 4, 32, 2  # layers, d_model and rank of the good one
DEEP = 100_000


class Canary:
    """Unpickled, it leaves a file in the working directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("canary",))


class Bundle(NamedTuple):
    """`reads` says who must refuse it: all readers, those that know the index, or those that know the model."""

    name: str
    harm: Callable[[Path], None]
    reads: str
    words: str  # of the refusal

    def make(self, good: Path, folder: Path) -> Path:
        shutil.copytree(good, folder)
        self.harm(folder)
        return folder


def weights(release: Path) -> Path:
    return release / LENS / "weights.safetensors"


def reindex(release: Path) -> None:
    """Let the index vouch for every file as it is now."""
    index = json.loads((release / "INDEX.json").read_text())
    for name in index[TINY]["sha256"]:
        index[TINY]["sha256"][name] = artifacts.sha256_file(release / LENS / name)
    (release / "INDEX.json").write_text(json.dumps(index))


def bytes_of(content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """The weights file as other bytes."""

    def harm(release: Path) -> None:
        weights(release).write_bytes(content(weights(release).read_bytes()))
        reindex(release)

    return harm


def safetensors(tensors: dict[str, tuple[str, list[Any], bytes]], metadata: object) -> bytes:
    """A file by its form alone: dtype, shape and bytes by name; nothing is checked."""
    header: dict[str, Any] = {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return framed(json.dumps(header).encode(), data)


def framed(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


FORM = '{"kind": "bias", "norm": "final", "placement": "normed", "schema": 1}'


def lens(
    n: int = N, d: int = D, k: int = K, *, about: object = None, dtype: str = "F32", **changed: np.ndarray | None
) -> Callable[[Path], None]:
    """A whole file of a lens of these sizes; None leaves a tensor out."""
    arrays: dict[str, Any] = {"U": np.zeros((n, d, k)), "V": np.zeros((n, d, k)), "c": np.zeros((n, d))}
    arrays |= {"log_tau": np.zeros(n), "scale": np.ones((n, d))} | changed
    numbers = {"F32": "<f4", "F64": "<f8", "F16": "<f2"}[dtype]
    tensors = {name: (dtype, list(a.shape), a.astype(numbers).tobytes()) for name, a in arrays.items() if a is not None}
    metadata = {"lensmith": FORM} if about is None else about
    return bytes_of(lambda _: safetensors(tensors, metadata))


def with_one(shape: tuple[int, ...], place: Any, value: float, start: float = 0.0) -> np.ndarray:
    array = np.full(shape, start)
    array[place] = value
    return array


def header(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """The good file with another header."""

    def other(content: bytes) -> bytes:
        (size,) = struct.unpack("<Q", content[:8])
        found = json.loads(content[8 : 8 + size])
        change(found)
        return framed(json.dumps(found).encode(), content[8 + size :])

    return bytes_of(other)


def entry(**changed: object) -> Callable[[Path], None]:
    """The index's entry with other values."""

    def harm(release: Path) -> None:
        index = json.loads((release / "INDEX.json").read_text())
        index[TINY].update(changed)
        (release / "INDEX.json").write_text(json.dumps(index))

    return harm


def index_text(text: Callable[[str], str | bytes]) -> Callable[[Path], None]:
    def harm(release: Path) -> None:
        path = release / "INDEX.json"
        new = text(path.read_text())
        path.write_bytes(new if isinstance(new, bytes) else new.encode())

    return harm


def provenance(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """provenance.json with another content: `change` edits it, or returns the whole text."""

    def harm(release: Path) -> None:
        path = release / LENS / "provenance.json"
        about = json.loads(path.read_text())
        text = change(about)
        path.write_text(text if isinstance(text, str) else json.dumps(about))
        reindex(release)

    return harm


def linked(name: str) -> Callable[[Path], None]:
    """A file or folder moved out of the release, with a link to it left behind."""

    def harm(release: Path) -> None:
        outside = release.parent / f"{release.name}-outside"
        (release / name).rename(outside)
        (release / name).symlink_to(outside)

    return harm


def sparse(release: Path) -> None:
    os.truncate(weights(release), 1 << 40)


def fifo(release: Path) -> None:
    weights(release).unlink()
    os.mkfifo(weights(release))


def endless(release: Path) -> None:
    (release / "INDEX.json").unlink()
    (release / "INDEX.json").symlink_to("/dev/zero")


def archived(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return file.getvalue()


def twice(content: bytes) -> bytes:
    """Two tensors of one name: readers that keep the last and those that keep the first would differ."""
    (size,) = struct.unpack("<Q", content[:8])
    text = content[8 : 8 + size].rstrip()
    return framed(text[:-1] + b',"c":{"dtype":"F32","shape":[4,32],"data_offsets":[0,512]}}', content[8 + size :])


def many(content: bytes) -> bytes:
    del content
    part = '"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return framed(("{" + ",".join(part % i for i in range(400_000)) + "}").encode())


WEIGHTS = [
    ("a pickle", bytes_of(lambda _: pickle.dumps(Canary())), "header of"),
    ("a torch archive", bytes_of(lambda _: archived(pickle.dumps(Canary()))), "header of"),
    ("a pickle behind the tensors", bytes_of(lambda b: b + pickle.dumps(Canary())), "behind its tensors"),
    ("an archive behind the tensors", bytes_of(lambda b: b + archived(b"x")), "behind its tensors"),
    ("an empty file", bytes_of(lambda _: b""), "not JSON"),
    ("half a file", bytes_of(lambda b: b[: len(b) // 2]), "not a whole"),
    ("a header of exabytes", bytes_of(lambda b: b"\xff" * 7 + b"\x7f" + b[8:]), "at most 1,048,576"),
    ("a header of 400,000 tensors", bytes_of(many), "at most 1,048,576"),
    ("a header beyond the end", bytes_of(lambda b: struct.pack("<Q", 1_000_000) + b[8:]), "not JSON"),
    ("a header that is a list", bytes_of(lambda _: framed(b"[]")), "no JSON object"),
    ("a deep header", bytes_of(lambda _: framed(b"[" * DEEP + b"]" * DEEP)), "levels"),
    ("a header that is not text", bytes_of(lambda _: framed(b"\xff\xfe{}")), "not JSON"),
    ("a tensor twice", bytes_of(twice), "'c' twice"),
    ("a tensor less", lens(c=None), "must hold"),
    ("a tensor more", lens(extra=np.zeros(3)), "must hold"),
    ("doubles", lens(dtype="F64"), "array of F32"),
    ("halves", lens(dtype="F16"), "array of F32"),
    ("a shape of negative sizes", header(lambda h: h["c"].update(shape=[-4, -32])), "array of F32"),
    ("a shape of truth", header(lambda h: h["log_tau"].update(shape=[True])), "array of F32"),
    ("a shape of exabytes", header(lambda h: h["c"].update(shape=[1 << 39, 1 << 39])), "its place is"),
    ("a shape of ten thousand dimensions", header(lambda h: h["c"].update(shape=[1] * 10_000)), "array of F32"),
    ("tensors that overlap", header(lambda h: h["c"].update(data_offsets=[0, 512])), "its place is"),
    ("offsets that are no numbers", header(lambda h: h["c"].update(data_offsets=["0", None])), "array of F32"),
    ("an entry that is no object", header(lambda h: h.update(c=7)), "array of F32"),
    ("metadata that is a list", lens(about=["x"]), "not one string"),
    ("metadata that is no text", lens(about={"lensmith": 7}), "not one string"),
    ("metadata that is no JSON", lens(about={"lensmith": "{"}), "metadata: not JSON"),
    ("metadata without a kind", lens(about={"lensmith": "{}"}), "does not say its kind"),
    ("an unknown kind", lens(about={"lensmith": FORM.replace("bias", "\x1b[31mred")}), "not JSON"),
    ("a kind of escapes", lens(about={"lensmith": FORM.replace("bias", "\\u001b[31mred")}), "kind is"),
    ("an unknown norm", lens(about={"lensmith": FORM.replace('"final"', '["final"]')}), "norm is"),
    ("an unknown placement", lens(about={"lensmith": FORM.replace("normed", "../x")}), "placement is"),
    ("U on its side", lens(U=np.zeros((D, N, K)), V=np.zeros((D, N, K))), "rank of at most|U asks for"),
    ("a rank above d_model", lens(k=D + 1), "rank of at most d_model"),
    ("no layers", lens(n=0), "must be"),
    ("c of another width", lens(c=np.zeros((N, D - 1))), "U asks for"),
    ("not a number", lens(V=with_one((N, D, K), (1, 2, 0), np.nan)), "not finite"),
    ("infinity", lens(c=with_one((N, D), (0, 0), np.inf)), "not finite"),
    ("a number that overflows", lens(U=with_one((N, D, K), (0, 0, 0), 1e30)), "at most 1e"),
    ("a temperature of zero", lens(log_tau=with_one((N,), 1, -1000.0)), "temperature"),
    ("a temperature of infinity", lens(log_tau=with_one((N,), 1, 1000.0)), "temperature"),
    ("a bias in the last layer", lens(c=with_one((N, D), (-1, 0), 1.0)), "not the identity"),
    ("a scale in the last layer", lens(scale=with_one((N, D), (-1, 0), 2.0, 1.0)), "not the identity"),
    ("a temperature in the last layer", lens(log_tau=with_one((N,), -1, 0.5)), "not the identity"),
]  # fmt: skip

# What must not lead out of a release, as the path of a lens: those of Windows, of web addresses, and look-alikes too.
PATHS = (
    "../outside", "tuned_lenses/../../outside", "/etc/passwd", "tuned_lenses//x", "C:\\x\\y", "\\\\host\\share",
    "tuned_lenses/a/../../..", "tuned_lenses/a/.git", "tuned_lenses/a/b\0c", "tuned_lenses/%2e%2e/b",
    "tuned_lenses/\uff0e\uff0e/b", "tuned_lenses/a/b/c", "tuned_lenses/./b", "", "tuned_lenses/a/b\n",
    "tuned_lenses/\u202ea/b",
)  # fmt: skip

INDEX = [
    *((f"path {path!r}", entry(path=path), "INDEX.json: ") for path in PATHS),
    ("a file above", entry(sha256={"../../x": "0" * 64}), "plain files"),
    ("a licence above", entry(licenses={"LICENSES/../../x": "0" * 64}), "below LICENSES"),
    ("a digest of a letter", entry(sha256={"weights.safetensors": "a", "provenance.json": "b"}), "match pattern"),
    ("digests in a list", entry(sha256=["x"]), "valid dictionary"),
    ("weights that it does not vouch for", entry(sha256={"provenance.json": "0" * 64}), "sha256 must have"),
    ("a rank of words", entry(rank="<b>7</b>"), "valid integer"),
    ("verdicts of numbers", entry(verdicts={"gate_A": 1}), "valid string"),
    ("a list", index_text(lambda _: "[]"), "no JSON object"),
    ("half of it", index_text(lambda t: t[: len(t) // 2]), "not JSON"),
    ("every key twice", index_text(lambda t: t[: t.rindex("}")] + "," + t[t.index("{") + 1 :]), "twice"),
    ("NaN", index_text(lambda t: t.replace('"rank": 2', '"rank": NaN')), "NaN is no finite number"),
    ("a number of many digits", index_text(lambda t: t.replace('"rank": 2', '"rank": ' + "9" * 10_000)), "JSON"),
    ("a number beyond all", index_text(lambda t: t.replace('"rank": 2', '"rank": 1e999')), "1e999 is no finite number"),
    ("half of a surrogate pair", index_text(lambda t: t.replace('"rank": 2', '"rank": "\\ud800"')), "not JSON"),
    ("a hundred thousand levels", index_text(lambda _: "[" * DEEP + "]" * DEEP), "levels"),
    ("forty levels", index_text(lambda _: '{"a":' * 40 + "1" + "}" * 40), "levels"),
    ("a terabyte of index", lambda r: os.truncate(r / "INDEX.json", 1 << 40), "at most 4,194,304"),
    ("two bytes a letter", index_text(lambda t: t.encode("utf-16")), "not JSON"),
    ("two models in one place", index_text(lambda t: '{"a/b":' + t.strip()[:-1].split(":", 1)[1] + "}"), "is at"),
    ("a model of escapes", index_text(lambda t: t.replace(TINY, "\\u001b]0;x\\u0007", 1)), "is at"),
    ("other bytes", lambda r: os.truncate(weights(r), 100), "has sha256"),
    ("a terabyte", sparse, "at most"),
    ("no weights", lambda r: weights(r).unlink(), "is missing"),
    ("a pipe", fifo, "is missing"),
    ("an index without end", endless, "no INDEX.json"),
    ("a linked file", linked(f"{LENS}/weights.safetensors"), "leads out"),
    ("a linked folder", linked(LENS), "leads out"),
]  # fmt: skip

# The index vouches for these, so a download takes them; who reads the lens refuses them.
PROVENANCE = [
    ("a provenance of another", provenance(lambda p: p.update(model_id="org/other")), "is about org/other"),
    ("a provenance that is a list", provenance(lambda _: "[]"), "the file: "),
    ("a provenance without a head", provenance(lambda p: p.pop("head") and None), "head.w_u_sha256: Field required"),
    ("a head of lists", provenance(lambda p: p.update(head=[1])), "head.w_u_sha256: "),
    ("a deep provenance", provenance(lambda _: "[" * DEEP + "]" * DEEP), "levels"),
    ("a provenance that says a thing twice", provenance(lambda _: '{"head": 1, "head": 2}'), "twice"),
    ("a model at a branch", provenance(lambda p: p["model"].update(repo="a/b", path=None, commit="main")), "40 hex"),
    ("a model of files above", provenance(lambda p: p["model"]["files"].update({"../../x": "0" * 64})), "files has"),
    ("a precision that is an attribute", provenance(lambda p: p.update(machine={"dtype": "ops"})), "machine.dtype"),
]  # fmt: skip

MODEL = [
    ("a layer less", lens(n=N - 1), "another model"),
    ("another width", lens(d=D * 2), "another model"),
    (
        "another head",
        provenance(lambda p: p["head"].update(w_u_sha256="0" * 64)),
        "fit to a head whose W_U",
    ),
]

BUNDLES = tuple(
    Bundle(name, harm, reads, words)
    for reads, group in (("all", WEIGHTS), ("index", INDEX), ("provenance", PROVENANCE), ("model", MODEL))
    for name, harm, words in group
)
