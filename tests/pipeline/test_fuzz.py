"""Readers of what others made, fed with damaged files: each reads one or says what is wrong with it.

The inputs are good files with a few things done to them, drawn from fixed seeds: the same ones each time.
"""

import gzip
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from lensmith.hub import index as release_index
from lensmith.hub import models
from lensmith.judge import prompts
from lensmith.lens import torch_file, tuned_lens
from lensmith.lens.lens import Lens
from lensmith.process.errors import LensmithError
from lensmith.release.pretrained import ReleasedLens, StreamedLens
from lensmith.settings import params_yaml
from lensmith.source import documents
from lensmith.source.corpus import Manifest
from tests.support.bundles import LENS
from tests.support.published import config, saved, tensors
from tests.support.released import save_release
from tests.support.settings import REPOSITORY, atlas

SHORT, LONG = 500, 7_000  # inputs for each reader
# What a damaged file may hold in place of what it should: numbers at the edges, words that mean something, odd letters.
WORDS = (
    b"\0", b"\xff\xff\xff\xff", b"\x80", b"NaN", b"-1", b"1e999", b"9" * 400, b"null", b"true", b"{", b"}", b"[", b"]",
    b'"', b"\\ud800", "\u202e\U0001f642\u0130".encode(), b"\xed\xa0\x80", b"../", b"*a", b"&a ",
    b"!!python/object:os.x",
    b": ", b"- ", b"\n", b"\r", b"\t", b"#", b"? ", b"|", b"%YAML 9.9\n", b"---\n", b"<<: ", b"[" * 600, b"{" * 600,
    b'{"a":' * 600, b"- " * 300, b"!!int x", b"!!timestamp x", b"2001-99-99", b"0x", b"1__", b".inf", b"~", b"'",
    b"PK\5\6", b"PK\1\2", b"c__main__\nx\n", b"(", b"R", b"\x8a\xff", b"h\xff", b"t", b"\x85", b"Q", b"PAR1",
)  # fmt: skip


def damaged(good: bytes, random_: random.Random) -> bytes:
    """A few cuts, copies, changed bytes and foreign words."""
    data = bytearray(good)
    for _ in range(random_.choice((1, 1, 2, 4, 8))):
        at = random_.randrange(len(data) + 1)
        span = slice(at, at + random_.choice((1, 1, 2, 8, 40)))
        match random_.randrange(6):
            case 0:
                data[span] = bytes(random_.randrange(256) for _ in data[span])
            case 1:
                del data[span]
            case 2:
                data[at:at] = data[span]
            case 3:
                data[at:at] = random_.choice(WORDS)
            case 4:
                data[span] = random_.choice(WORDS)
            case 5 if random_.random() < 0.2:
                del data[at:]
    return bytes(data)


class Reader(NamedTuple):
    """Where a file of these bytes has to lie, and who reads it there."""

    good: list[bytes]
    path: str
    read: Callable[[Path], object]


@pytest.fixture(scope="module")
def readers(tmp_path_factory) -> dict[str, Reader]:
    release, backbone, _ = save_release(tmp_path_factory.mktemp("release"), n_layers=2, d_model=8)
    weights = (release / LENS / "weights.safetensors").read_bytes()
    index = (release / "INDEX.json").read_bytes()
    provenance = (release / LENS / "provenance.json").read_bytes()
    small = {f"{i}.weight": tensor[:4, :4].clone() for i, tensor in enumerate(tensors().values())}
    return {
        "lens header": Reader([weights], "weights.safetensors", lambda path: Lens.load(path.parent)),
        "streamed lens": Reader([weights], "weights.safetensors", lambda path: stream(path.parent)),
        "INDEX.json": Reader([index], "INDEX.json", lambda path: release_index.read(path.parent)),
        "provenance": Reader(
            [provenance], "provenance.json", lambda path: ReleasedLens.read(path.parent, "local/atlas")
        ),
        "suite": Reader([suite()], "suite.jsonl", lambda path: prompts.read_suite([str(path)])),
        "probes": Reader([probes()], "probes.jsonl", lambda path: prompts.read_probes([str(path)])),
        "params.yaml": Reader(settings(), "params.yaml", params_yaml.read),
        "params.pt": Reader([saved(small)], "params.pt", lambda path: torch_file.read_tensors(path, 1 << 20)),
        "config of a lens": Reader(
            [config(unembed_hash="0").encode()],
            "config.json",
            lambda path: tuned_lens.read_config(path, backbone),
        ),
        "corpus manifest": Reader([manifest()], "manifest.json", lambda path: Manifest.read(path.parent)),
        "index of shards": Reader([shards()], models.SHARDS, read_shards),
        **{
            f"documents, {suffix}": Reader([content], f"text{suffix}", read_documents)
            for suffix, content in texts().items()
        },
    }  # fmt: skip


def read_shards(path: Path) -> None:
    models.weight_files([models.SHARDS, "a"], lambda _: path.read_bytes(), "x")


def stream(folder: Path) -> None:
    lens = StreamedLens.open(folder)
    for row in range(1, lens.n_layers + 1):
        lens.layer(row)


def suite() -> bytes:
    line = {"id": "p-0", "domain": "days", "template": "t", "prompt": "It was", "answer": "sea", "aliases": ["x"]}
    return "".join(json.dumps(line | {"id": f"p-{i}"}) + "\n" for i in range(4)).encode()


def probes() -> bytes:
    return json.dumps({"id": "x", "prompt": "a b", "answer": "c", "control": {"prompt": "d", "answer": "e"}}).encode()


def settings() -> list[bytes]:
    """The whole of a params.yaml is slow to read: most inputs are parts of it."""
    data = YAML(typ="safe").load(REPOSITORY / "params.yaml")
    data["models"] = {"one": {"fit": {"rank": 4, "lr": 0.001}, "source": {"repo": "org/name", "path": None}}}
    whole = io.BytesIO()
    YAML(typ="safe").dump(data, whole)
    part = b"defaults:\n  fit: {rank: 4, lr: 1e-3}\nmodels:\n  one:\n    fit: {rank: 8}\n    suite: {files: [a]}\n"
    return [part] * 99 + [whole.getvalue()]


def manifest() -> bytes:
    part = {"documents": 1, "tokens": 8, "sequences": 1, "files": [
        {"index": 0, "path": "a.txt", "sha256": "0", "size": 1, "rows": [0, 1]}]}  # fmt: skip
    return json.dumps({
        "schema": 1, "kind": "files", "seq_len": 8, "seed": 1, "lens": None, "train": part, "heldout": part,
        "model": {"repo": None, "path": "m", "commit": None, "files": {"config.json": "0"}},
        "tokenizer": {"bos_policy": "never", "adds_bos": False, "class": "x", "vocab_size": 4, "behaviour_sha256": "0"},
        "repo": None, "name": None, "split": None, "revision": None, "commit": None, "skipped": {"none": 1},
        "cut_documents": 0, "content_hash": "0", "tokens_sha256": "0", "heldout_sha256": "0",
    }).encode()  # fmt: skip


def shards() -> bytes:
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": {"x": "a", "y": "a"}}).encode()


def texts() -> dict[str, bytes]:
    lines = "".join(json.dumps({"text": f"the king {i}", "n": [i]}) + "\n" for i in range(5)).encode()
    table = io.BytesIO()
    pq.write_table(pa.table({"text": ["the king", None, "the sea"]}), table)
    plain = "one\ntwo\n\nthree \U0001f642\n".encode()
    gz, zst = gzip.compress(lines, mtime=0), pa.compress(lines, codec="zstd", asbytes=True)
    csv = b'n,text\r\n1,the king\r\n2,"the ""sea"",\nand more"\r\n'
    tables = {".parquet": table.getvalue(), ".csv": csv}
    return {".jsonl": lines, ".txt": plain, ".jsonl.gz": gz, ".jsonl.zst": zst, **tables}


def read_documents(path: Path) -> None:
    corpus = atlas(corpus={"kind": "files", "files": [str(path)]}).corpus if path not in CORPORA else CORPORA[path]
    CORPORA[path] = corpus
    text = documents.open_text(corpus)
    for document in documents.clean(text.train, 1000):
        assert document.skipped or document.text.encode()
    text.train.close()
    text.heldout.close()


CORPORA: dict[Path, object] = {}


@pytest.mark.parametrize("times", [pytest.param(LONG, marks=pytest.mark.long), SHORT])
def test_no_damaged_file_makes_a_reader_fail_otherwise_than_it_says(readers, tmp_path, times, record_property):
    """Read, or refused as a LensmithError; any other exception is a bug."""
    bugs, refused, read = [], 0, 0
    for name, reader in readers.items():
        file = tmp_path / reader.path
        for number in range(times):
            file.write_bytes(damaged(reader.good[number % len(reader.good)], random.Random(f"{name}-{number}")))
            try:
                reader.read(file)
                read += 1
            except LensmithError:
                refused += 1
            except Exception as error:  # noqa: BLE001 (what the test is about)
                bugs.append(f"{name}, input {number}: {type(error).__name__}: {str(error)[:200]}")
    assert not bugs, f"{len(bugs)}:\n" + "\n".join({re.sub(r", input \d+", "", bug)[:60]: bug for bug in bugs}.values())
    assert min(refused, read) > times, "damage that is always seen, or never, tests nothing"
    record_property("damaged files read, none of which ended otherwise than as read or refused", read + refused)
    record_property("of these refused", refused)


def test_every_reader_reads_what_is_whole(readers, tmp_path):
    """Else the run above would have seen nothing but refusals."""
    for name, reader in readers.items():
        (tmp_path / reader.path).write_bytes(reader.good[-1])
        if name == "config of a lens":  # of a model of another size
            with pytest.raises(LensmithError, match="made for a model of"):
                reader.read(tmp_path / reader.path)
        else:
            reader.read(tmp_path / reader.path)
