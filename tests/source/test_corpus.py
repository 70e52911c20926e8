"""Packed corpora: documents come out in order, once, on one side only; anything else is an error."""

import contextlib
import csv
import gzip
import io
import itertools
import json
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from lensmith.files import artifacts
from lensmith.hub import models as hub_models
from lensmith.process.errors import InputError, IntegrityError, LensmithError, RemoteError
from lensmith.settings.sections import ModelParams
from lensmith.source import corpus, documents, packing, prefetch
from lensmith.source.configuration import read_config
from lensmith.source.tokenizer import Encoder, check_behaviour, load_tokenizer
from tests.support.loopback_hub import CUT, SHORT, Client, Fault, LoopbackHub, settings_of

BOS = 256  # the tokenizer below: a token for each byte, and one more
SEQ_LEN = 16


def tokenizer_json() -> bytes:
    """Byte level without merges: text is its UTF-8 bytes, a document begins with BOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return tokenizer.to_str().encode()


def model_files(**config: Any) -> dict[str, bytes]:
    settings = {"model_type": "gpt_neox", "vocab_size": 257, "max_position_embeddings": 64} | config
    settings = {name: value for name, value in settings.items() if value is not None}
    weights = io.BytesIO()
    weights.write((2).to_bytes(8, "little") + b"{}")
    return {
        "config.json": json.dumps(settings).encode(),
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}',
        "model.safetensors": weights.getvalue(),
    }


def write_model(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in model_files(**config).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def source(model: Path | None, repo: str | None = None) -> dict[str, Any]:
    path = None if model is None else str(model)
    return {
        "repo": repo,
        "file": None,
        "path": path,
        "revision": "main",
        "dtype": "auto",
        "device": "auto",
        "placement": "single",
        "trust_remote_code": False,
    }


def section(**changes: Any) -> dict[str, Any]:
    base = {
        "kind": "files",
        "repo": None,
        "name": None,
        "split": "train",
        "revision": "main",
        "text_column": "text",
        "files": [],
        "seed": 316,
        "seq_len": SEQ_LEN,
        "train_tokens": 3210,
        "heldout_tokens": 330,
        "bos": "tokenizer",
        "also_heldout": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "sample_by": "paragraph",
        "max_document_chars": 1000,
    }
    return base | changes


def settings(model: Path, **changes: Any) -> ModelParams:
    result: ModelParams = settings_of(source(model), section(**changes))
    return result


def texts(n: int, seed: int = 0) -> list[str]:
    """Different documents of 5 to 60 characters, not all of them ASCII."""
    rng = random.Random(seed)
    return [f"{seed}.{i} " + "".join(rng.choices("abcdef ghé→\n", k=rng.randrange(2, 50))) + "." for i in range(n)]


def write_jsonl(path: Path, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps({"id": i, "text": value}) + "\n" for i, value in enumerate(values)))
    return path


def parquet(values: list[Any], column: str = "text") -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": list(range(len(values))), column: values}), sink, row_group_size=20)
    return sink.getvalue()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def as_csv(column: str, values: list[str]) -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.writer(sink)
    writer.writerows([["id", column], *enumerate(values)])
    return sink.getvalue().encode()


def nested(column: str, value: object) -> dict[str, Any]:
    """A row whose column `meta.text` is the key text of the object meta."""
    for key in reversed(column.split(".")):
        value = {"id": 0, key: value}
    return value  # type: ignore[return-value]


def unpacked(tokens: np.ndarray) -> list[str]:
    """The documents of packed tokens; the last one may be cut."""
    flat = tokens.reshape(-1)
    table = {i: c for c, i in Tokenizer.from_str(tokenizer_json().decode()).get_vocab().items()}
    decode = decoders.ByteLevel().decode
    starts = [*np.flatnonzero(flat == BOS), len(flat)]
    return [decode([table[int(i)] for i in flat[a + 1 : b]]) for a, b in itertools.pairwise(starts)]


# --- packing


@pytest.mark.parametrize("bos", ["tokenizer", "never"])
def test_tokens_are_the_ids_of_the_documents_end_to_end(model, bos):
    """No id is lost, added or reordered; only the remainder is dropped."""
    encoder = Encoder(load_tokenizer(model, "model"), bos, read_config(model, "model"))
    stream = list(documents.clean((documents.SourceRow(0, i, t) for i, t in enumerate(texts(600))), 1000))
    all_ids = [i for text in texts(600) for i in encoder.documents([text])[0]]
    n_tokens = len(all_ids) // 2

    packed = packing.pack(iter(stream), encoder, n_tokens)

    assert packed.ids.tolist() == all_ids[:n_tokens]
    assert (all_ids[0] == BOS) == (bos == "tokenizer")
    assert packed.rows == {0: packed.documents}


def test_the_same_settings_give_the_same_bytes(model, tmp_path, monkeypatch):
    """Whatever the size of the tokenizer's batches."""
    for number in range(3):
        write_jsonl(tmp_path / f"{number}.jsonl", texts(200, number))
    params = settings(model, files=[str(tmp_path / "*.jsonl")])
    prefetch.build(params, tmp_path / "a")
    monkeypatch.setattr(packing, "BATCH", 7)
    prefetch.build(params, tmp_path / "b")

    names = sorted(path.name for path in (tmp_path / "a").iterdir())

    assert names == ["heldout.safetensors", "manifest.json", "tokens.safetensors"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_seed_chooses_the_order_of_files(model, tmp_path):
    for number in range(5):
        write_jsonl(tmp_path / f"{number}.jsonl", texts(200, number))
    pattern = [str(tmp_path / "*.jsonl")]
    for seed in (1, 2):
        prefetch.build(settings(model, files=pattern, seed=seed), tmp_path / str(seed))

    assert corpus.Manifest.read(tmp_path / "1").content_hash != corpus.Manifest.read(tmp_path / "2").content_hash
    assert not np.array_equal(corpus.read_tokens(tmp_path / "1"), corpus.read_tokens(tmp_path / "2"))


def test_the_budget_is_met_exactly_and_the_sides_are_disjoint(model, tmp_path):
    """Every document stands twice in the source; still each is on one side only, whole and unchanged."""
    source_texts = texts(300)
    write_jsonl(tmp_path / "all.jsonl", source_texts + source_texts)
    prefetch.build(settings(model, files=[str(tmp_path / "all.jsonl")], train_tokens=12000), tmp_path / "out")

    tokens, heldout = corpus.read_tokens(tmp_path / "out"), corpus.read_heldout(tmp_path / "out")

    assert tokens.shape == (12000 // SEQ_LEN, SEQ_LEN) and heldout.shape == (330 // SEQ_LEN, SEQ_LEN)
    assert tokens.dtype == heldout.dtype == np.uint32
    train_texts, heldout_texts = unpacked(tokens), unpacked(heldout)
    assert set(train_texts[:-1]) <= set(source_texts) and set(heldout_texts[:-1]) <= set(source_texts)
    assert set(train_texts).isdisjoint(heldout_texts)
    assert len(train_texts) > len(set(train_texts)), "the planted duplicates must have been read"
    order = [text for text in source_texts + source_texts if text in set(train_texts)]
    assert train_texts[:-1] == order[: len(train_texts) - 1]


def test_the_manifest_accounts_for_every_row(model, tmp_path):
    """Pins, hashes and counts are those of what was read."""
    file = write_jsonl(tmp_path / "text.jsonl", texts(400))
    prefetch.build(settings(model, files=[str(file)]), tmp_path / "out")

    manifest = corpus.Manifest.read(tmp_path / "out")
    raw = json.loads((tmp_path / "out" / "manifest.json").read_text())

    train_texts = unpacked(corpus.read_tokens(tmp_path / "out"))
    last = texts(400).index(train_texts[-2]) + 1
    assert manifest.train.documents == len(train_texts)
    (read,) = manifest.train.files
    assert read.path == str(file) and read.size == file.stat().st_size and len(read.sha256) == 64
    assert read.rows[0] == 0 and last < read.rows[1] <= last + 20
    assert manifest.train.tokens == 3200 and manifest.train.sequences == 200
    assert manifest.tokenizer.adds_bos and manifest.tokenizer.vocab_size == 257
    assert manifest.model.path == str(model) and set(manifest.model.files) == set(model_files())
    assert raw["schema"] == 1 and raw["tokenizer"]["class"] == manifest.tokenizer.class_name
    assert raw["repo"] is None and raw["skipped"] == {} and raw["cut_documents"] == 0


def test_a_tokenizer_with_the_same_files_and_other_ids_is_refused(model, tmp_path):
    """A library of another version, or the slow instead of the fast class: here, one that has lost its BOS."""
    file = write_jsonl(tmp_path / "text.jsonl", texts(400))
    prefetch.build(settings(model, files=[str(file)]), tmp_path / "out")
    recorded = corpus.Manifest.read(tmp_path / "out").tokenizer.behaviour_sha256
    tokenizer = load_tokenizer(model, "here")

    check_behaviour(tokenizer, recorded, "corpus")
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    with pytest.raises(IntegrityError, match=r"^corpus: this tokenizer gives other ids .* Run prefetch again"):
        check_behaviour(tokenizer, recorded, "corpus")


def test_without_bos_no_document_begins_with_it(model, tmp_path):
    file = write_jsonl(tmp_path / "text.jsonl", texts(400))
    prefetch.build(settings(model, files=[str(file)], bos="never"), tmp_path / "out")

    assert BOS not in corpus.read_tokens(tmp_path / "out")
    assert not corpus.Manifest.read(tmp_path / "out").tokenizer.adds_bos


# --- documents, kinds


PLAIN = [".txt", ".jsonl", ".parquet", ".csv", ".json", ".ndjson", ".TXT"]
SUFFIXES = [*PLAIN, ".jsonl.gz", ".txt.gz", ".jsonl.zst", ".csv.zst", ".Jsonl.GZ"]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("column", ["text", "meta.text"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_file_format_gives_the_same_documents(tmp_path, suffix, column, mark):
    """Lines of a paragraph stay together; BOM, zero-width and right-to-left characters survive, but for a first BOM."""
    values = ["one line", "  two\n  lines ", "\ufeffbom \u200d \u202e rtl \x00 e\u0301", "last"]
    as_text = {
        "txt": "\n\n \n".join(values).encode() + b"\n\n",
        "json": b"\n".join(json.dumps(nested(column, value)).encode() for value in values) + b"\n\n",
        "parquet": as_parquet([nested(column, value) for value in values]),
        "csv": as_csv(column, values),
    }
    _, form, *packed = suffix.lower().split(".")
    content = as_text["json" if "json" in form else form]
    content = content if suffix == ".parquet" else mark + content
    path = tmp_path / f"text{suffix}"
    pack = {"gz": gzip.compress, "zst": partial(pa.compress, codec="zstd", asbytes=True)}.get("".join(packed))
    path.write_bytes(pack(content) if pack else content)

    opened = documents.open_text(settings(tmp_path, files=[str(path)], text_column=column).corpus)

    assert [document.text for document in documents.clean(opened.train, 1000)] == values


@pytest.mark.parametrize(
    ("sample_by", "documents_of"),
    [
        ("line", ["one", "  two", "three", "four"]),
        ("paragraph", ["one\n  two", "three\nfour"]),
        ("document", ["one\n  two\n\n \nthree\nfour"]),
    ],
)
def test_a_document_of_a_plain_text_is_what_the_setting_says(tmp_path, sample_by, documents_of):
    """A line, a paragraph, or the whole file, by the names of the text loader of `datasets`. None is empty."""
    (tmp_path / "a.txt").write_text("one\n  two\n\n \nthree\nfour\n\n")
    (tmp_path / "empty.txt").write_text("")
    params = settings(tmp_path, files=[str(tmp_path / "*.txt")], sample_by=sample_by).corpus

    read = documents.clean(documents.open_text(params).train, 1000)
    assert sorted(document.text for document in read if not document.skipped) == sorted(documents_of)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_the_line_ends_of_every_system_are_read(tmp_path, suffix, end):
    """Those inside a document stay as they are."""
    rows = {
        ".txt": "one\ntwo\n\nthree\n",
        ".jsonl": '{"text": "one"}\n{"text": "three"}\n',
        ".csv": "text\none\nthree\n",
    }
    path = tmp_path / f"text{suffix}"
    path.write_text(rows[suffix], newline=end)

    opened = documents.open_text(settings(tmp_path, files=[str(path)]).corpus)

    first = f"one{end}two" if suffix == ".txt" else "one"
    assert [document.text for document in documents.clean(opened.train, 1000)] == [first, "three"]


def test_a_few_rows_without_text_are_no_share(model, tmp_path):
    """One of the first 32 rows is more than a hundredth, and says nothing about the column."""
    values: list[Any] = [None, *texts(200), None, {}]
    prefetch.build(settings(model, files=[str(write_jsonl(tmp_path / "text.jsonl", values))]), tmp_path / "out")

    assert corpus.Manifest.read(tmp_path / "out").skipped["none"] == 1


TEMPLATE = (
    "{{ bos_token }}{{ strftime_now('%d %b %Y') }}\n{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ message.role }}: {{ message.content }}\n{% endfor %}"
)


@pytest.mark.parametrize(
    ("suffix", "keys"),
    [(".jsonl", ("role", "content")), (".parquet", ("role", "content")), (".jsonl", ("from", "value"))],
)
def test_chats_are_rendered_by_the_chat_template_and_the_manifest_says_so(tmp_path, suffix, keys):
    """With its special tokens once, the same text on every day; a chat that it refuses is skipped and counted.

    ShareGPT calls the roles human and gpt.
    """
    folder = write_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    user, assistant = ("user", "assistant") if keys == ("role", "content") else ("human", "gpt")
    pairs = [[(user, text), (assistant, "Yes.")] for text in texts(200)]
    bad = [[("tool", "x")], [(user, None)]]
    rows = [{"messages": [dict(zip(keys, pair, strict=True)) for pair in chat]} for chat in bad + pairs]
    content = as_parquet(rows) if suffix == ".parquet" else b"\n".join(json.dumps(row).encode() for row in rows)
    (tmp_path / f"chats{suffix}").write_bytes(content)
    params = settings(folder, files=[str(tmp_path / f"chats{suffix}")], text_column="messages")
    prefetch.build(params, tmp_path / "out")

    manifest = corpus.Manifest.read(tmp_path / "out")
    packed = unpacked(corpus.read_tokens(tmp_path / "out"))
    rendered = [f"01 Jan 2026\nuser: {text}\nassistant: Yes.\n" for text in texts(200)]
    assert set(packed[:-1]) <= set(rendered) and len(packed) > 40
    assert manifest.skipped == {"not_rendered": 2}
    assert manifest.tokenizer.chat_template_sha256 == artifacts.sha256_text(TEMPLATE)
    assert "chat_template.jinja" in manifest.model.files


def test_rows_that_are_not_text_are_skipped_and_counted_and_long_ones_cut(model, tmp_path):
    """Three bad rows in a thousand are allowed: more would mean a wrong column."""
    values: list[Any] = [*texts(1000), "x" * 5000]
    values[0], values[1], values[2], values[3] = None, 7, "\ud800 half a pair", ""
    values[4], values[5] = "long " * 100, "y" * 50_000_000
    file = write_jsonl(tmp_path / "text.jsonl", values)
    prefetch.build(settings(model, files=[str(file)], max_document_chars=100, train_tokens=16000), tmp_path / "out")

    manifest = corpus.Manifest.read(tmp_path / "out")

    assert manifest.skipped == {"empty": 1, "none": 1, "not_text": 1, "surrogate": 1}
    assert manifest.cut_documents == 2
    assert "long " * 20 in unpacked(corpus.read_tokens(tmp_path / "out"))


def world(monkeypatch: pytest.MonkeyPatch, stream: Any) -> None:
    """Another `demo.world`."""
    stand_in = SimpleNamespace(documents=stream)
    monkeypatch.setitem(sys.modules, "demo", SimpleNamespace(world=stand_in))
    monkeypatch.setitem(sys.modules, "demo.world", stand_in)


def test_a_document_of_the_heldout_text_is_left_out_of_training(model, tmp_path, monkeypatch):
    """The training stream holds the first held-out documents again."""
    seeds: list[int] = []

    def stream(seed: int) -> Iterator[str]:
        seeds.append(seed)
        of_seed = texts(500, seed)
        return iter(
            of_seed if seed % 2 else [of_seed[0], *texts(500, seed + 1)[:2], texts(1, seed + 1)[0], *of_seed[1:]]
        )

    world(monkeypatch, stream)
    prefetch.build(settings(model, kind="atlas", seed=5), tmp_path / "out")

    manifest = corpus.Manifest.read(tmp_path / "out")
    train_texts = set(unpacked(corpus.read_tokens(tmp_path / "out")))
    heldout_texts = set(unpacked(corpus.read_heldout(tmp_path / "out")))
    assert sorted(seeds) == [10, 11]
    assert manifest.skipped == {"duplicate_of_heldout": 3}
    assert train_texts.isdisjoint(heldout_texts) and texts(1, 10)[0] in train_texts
    assert manifest.train.files == () and manifest.kind == "atlas"


def test_texts_of_other_kinds_are_packed_beside_without_documents_of_the_training_text(model, tmp_path):
    """Whole sequences of each, at most heldout_tokens. A byte is a token here, and each document has one more."""
    common, own = texts(300), [f"def f{number}(x): return x\n" for number in range(20)]
    write_jsonl(tmp_path / "text.jsonl", common)
    write_jsonl(tmp_path / "code.jsonl", own + common)
    write_jsonl(tmp_path / "many.jsonl", texts(200, 7))
    names = {name: [str(tmp_path / f"{name}.jsonl")] for name in ("code", "many")}
    params = settings(model, files=[str(tmp_path / "text.jsonl")], also_heldout=names, train_tokens=8000)
    prefetch.build(params, tmp_path / "out")
    manifest = corpus.Manifest.read(tmp_path / "out")
    code, many = (corpus.read_other(tmp_path / "out", name) for name in ("code", "many"))
    train = set(unpacked(corpus.read_tokens(tmp_path / "out")))

    assert many.shape == (20, SEQ_LEN) and code.shape[1] == SEQ_LEN
    assert unpacked(code)[:10] == own[:10] and train.isdisjoint(unpacked(code))
    assert [file.path for file in manifest.also_heldout["code"].side.files] == [str(tmp_path / "code.jsonl")]
    ids = corpus.read_heldout(tmp_path / "out").ravel()
    assert manifest.tokens_per_byte == pytest.approx(len(ids) / (ids != BOS).sum(), rel=0.02)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (['"Hi."'], r"gives 4 tokens, must give at least corpus\.seq_len \(16\)"),
        (["1"] * 50, r"50 of 50 held-out rows .* are not text"),
    ],
)
def test_a_text_of_another_kind_that_cannot_be_used_is_refused(model, tmp_path, content, message):
    write_jsonl(tmp_path / "text.jsonl", texts(300))
    (tmp_path / "code.jsonl").write_text("".join(f'{{"text": {value}}}\n' for value in content))
    names = {"code": [str(tmp_path / "code.jsonl")]}
    with pytest.raises(InputError, match=message):
        prefetch.build(settings(model, files=[str(tmp_path / "text.jsonl")], also_heldout=names), tmp_path / "out")


def test_a_source_that_only_repeats_itself_ends_in_an_error(model, tmp_path, monkeypatch):
    world(monkeypatch, lambda _: itertools.cycle(texts(5)))
    monkeypatch.setattr(packing, "MAX_IDLE", 1000)

    with pytest.raises(InputError, match=r"got 0 of 3200 train tokens .*duplicate_of_heldout"):
        prefetch.build(settings(model, kind="atlas"), tmp_path / "out")


def test_kind_atlas_is_refused_outside_a_checkout(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "demo", None)

    with pytest.raises(InputError, match="works only in the top folder of a checkout"):
        prefetch.build(settings(model, kind="atlas"), tmp_path / "out")


def test_the_demo_generator_gives_a_corpus(model, tmp_path):
    """demo/world.py, as params.yaml uses it."""
    pytest.importorskip("demo.world")
    prefetch.build(settings(model, kind="atlas", train_tokens=50_000, heldout_tokens=5_000), tmp_path / "out")

    assert corpus.read_tokens(tmp_path / "out").shape == (3125, SEQ_LEN)
    assert set(unpacked(corpus.read_tokens(tmp_path / "out"))).isdisjoint(
        unpacked(corpus.read_heldout(tmp_path / "out"))
    )


# --- errors


def bad_text(folder: Path, case: str) -> dict[str, Any]:
    """A corpus section with one thing wrong."""
    good = "".join(json.dumps({"text": text}) + "\n" for text in texts(50)).encode()
    content: dict[str, bytes] = {
        "short.jsonl": good,
        "syntax.jsonl": good + b'{"text": \n',
        "array.jsonl": good + b"[1]\n",
        "latin.txt": "caf\xe9".encode("latin-1"),
        "column.jsonl": good.replace(b'"text"', b'"body"'),
        "column.parquet": parquet(texts(50), "body"),
        "holes.parquet": parquet([None if i % 20 == 0 else text for i, text in enumerate(texts(400))]),
        "number.parquet": parquet(list(range(50))),
        "cut.parquet": parquet(texts(50))[:-20],
        "cut.jsonl.gz": gzip.compress(good)[:-20],
        "cut.jsonl.zst": pa.compress(good, codec="zstd", asbytes=True)[:-20],
        "column.csv": b"body;title\nhello\n",
        "quote.csv": b'text\n"hello\n',
        "table.xlsx": b"text\nhello\n",
        "lines.txt": b"".join(b"line %d\n" % i for i in range(500)),
        "one-line.txt": b"hello " * 1000,
        "chats.jsonl": b'{"text": [{"role": "user", "content": "Hi"}]}\n',
    }
    for name, value in content.items():
        (folder / name).write_bytes(value)
    return {"files": [str(folder / case)]}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("short.jsonl", ["of 320 heldout tokens", "documents used", "corpus.heldout_tokens"]),
        ("syntax.jsonl", ["syntax.jsonl:51", "not JSON"]),
        ("array.jsonl", ["array.jsonl:51", "is a list", "JSON object"]),
        ("latin.txt", ["latin.txt", "not UTF-8"]),
        ("column.jsonl", ["50 of 50", "'none': 50", "corpus.text_column 'text'"]),
        ("column.parquet", ["column.parquet", "no column 'text'", "id, body"]),
        ("number.parquet", ["50 of 50", "'not_text': 50"]),
        ("holes.parquet", ["are not text", "at most 1% may be"]),
        ("cut.parquet", ["cut.parquet", "not a whole parquet file"]),
        ("cut.jsonl.gz", ["cut.jsonl.gz", "not a whole gzip file"]),
        ("cut.jsonl.zst", ["cut.jsonl.zst", "not a whole zstd file"]),
        ("column.csv", ["column.csv", "no column 'text'", "it has: body;title"]),
        ("quote.csv", ["quote.csv:2", "not CSV", "unexpected end of data"]),
        ("table.xlsx", ["table.xlsx cannot be read", "allowed: .parquet"]),
        ("lines.txt", ["of 1 documents used", "of a .txt each paragraph is a document (corpus.sample_by)"]),
        ("one-line.txt", ["of 1 documents used", "cut: ", "of a .txt each paragraph is a document"]),
        ("chats.jsonl", ["the tokenizer has no chat template, so texts must be strings, not lists of messages"]),
        ("nothing-*.txt", ["corpus.files names", "nothing-*.txt, which matches no file"]),
    ],
)
def test_unusable_text_is_refused_by_name_and_nothing_is_written(model, tmp_path, case, words):
    """Exit code 2, and no short corpus."""
    with pytest.raises(LensmithError) as caught:
        prefetch.build(settings(model, **bad_text(tmp_path, case)), tmp_path / "out")

    assert isinstance(caught.value, InputError) and caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)
    assert "Nothing was" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_too_little_training_text_is_refused_with_its_size(model, tmp_path):
    file = write_jsonl(tmp_path / "text.jsonl", texts(600))
    params = settings(model, files=[str(file)], train_tokens=29_999, heldout_tokens=1500)

    with pytest.raises(InputError, match=r"corpus: got \d{5} of 29984 train tokens from .*text\.jsonl.*train_tokens"):
        prefetch.build(params, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 200}, ["gives id 256", "ids below 200"]),
        ({"vocab_size": 256}, ["gives id 256", "ids below 256"]),
        ({"model_type": "gemma3", "text_config": {"vocab_size": 100}}, ["gives id 256", "ids below 100"]),
        ({"max_position_embeddings": 8}, ["corpus.seq_len is 16", "at most 8 tokens"]),
        *(
            (change | {"max_position_embeddings": None}, ["corpus.seq_len is 16", "at most 8 tokens"])
            for change in (
                {"model_type": "mpt", "max_seq_len": 8},
                {"model_type": "dbrx", "max_seq_len": 8},
                {"model_type": "gpt2", "n_positions": 8},
                {"model_type": "rwkv", "context_length": 8},
                {"model_type": "bloom", "seq_length": 8},
                {"model_type": "bloom", "n_ctx": 8},
            )
        ),
        ({"model_type": "no_such_model"}, ["config.json cannot be used"]),
        ({"tokenizer.json": None}, ["tokenizer"]),
        ({"tokenizer.json": b"{}"}, ["tokenizer cannot be read"]),
    ],
)
def test_a_model_that_does_not_fit_the_text_is_refused(tmp_path, change, words):
    """By `prefetch`, before any fit."""
    folder = write_model(tmp_path / "model", **{k: v for k, v in change.items() if "." not in k})
    for name, content in ((k, v) for k, v in change.items() if "." in k):
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    file = write_jsonl(tmp_path / "text.jsonl", texts(400))

    with pytest.raises(InputError) as caught:
        prefetch.build(settings(folder, files=[str(file)]), tmp_path / "out")

    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_prompt_longer_than_the_model_reads_is_refused_before_text_is_packed(model, tmp_path):
    """Suite and sweep would find it, after the fit."""
    params = settings(model, files=[str(write_jsonl(tmp_path / "text.jsonl", texts(400)))])
    prefetch.build(params, tmp_path / "out", [("suite.jsonl:6", "a" * 63)])

    with pytest.raises(InputError, match=r"suite\.jsonl:7: the prompt has 65 tokens, the model reads at most 64\."):
        prefetch.build(params, tmp_path / "again", [("suite.jsonl:6", "a" * 63), ("suite.jsonl:7", "a" * 64)])
    assert not (tmp_path / "again").exists()


def test_a_lens_wider_than_the_model_is_refused_before_anything_is_captured(tmp_path):
    """`fit` would notice only after the forward passes."""
    folder = write_model(tmp_path / "model", hidden_size=32, num_attention_heads=4)
    file = write_jsonl(tmp_path / "text.jsonl", texts(400))
    params = settings(folder, files=[str(file)])
    too_wide = params.model_copy(update={"fit": params.fit.model_copy(update={"rank": 33, "kind": "low_rank"})})

    with pytest.raises(InputError, match=r"fit\.rank is 33, but .* has d_model 32, the most it may be"):
        prefetch.build(too_wide, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_single_id_that_is_too_large_is_refused(tmp_path):
    """A few arrows among ASCII texts. On a GPU such an id fails far from its cause, or reads garbage."""
    folder = write_model(tmp_path / "model", vocab_size=225)
    plain = [f"{i} of four hundred plain texts" for i in range(400)]
    file = write_jsonl(tmp_path / "plain.jsonl", plain)
    prefetch.build(settings(folder, files=[str(file)], bos="never"), tmp_path / "out")
    write_jsonl(file, [text + "→" * (i % 20 == 19) for i, text in enumerate(plain)])

    with pytest.raises(InputError, match="gives id 240, but the model has ids below 225"):
        prefetch.build(settings(folder, files=[str(file)], bos="never"), tmp_path / "again")


@pytest.mark.parametrize("model_type", ["gpt_neox", "canary"])
def test_python_files_of_a_model_are_not_run(tmp_path, model_type):
    """A known family is read with the library's own code, an unknown one is refused without a prompt."""
    maps = {"AutoConfig": "canary.Config", "AutoTokenizer": ["canary.Tokenizer", None]}
    folder = write_model(tmp_path / "model", model_type=model_type, auto_map=maps)
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": maps}))
    (folder / "canary.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    file = write_jsonl(tmp_path / "text.jsonl", texts(400))

    with contextlib.nullcontext() if model_type == "gpt_neox" else pytest.raises(InputError, match=r"config\.json"):
        prefetch.build(settings(folder, files=[str(file)]), tmp_path / "out")

    assert not (tmp_path / "ran").exists()
    assert "canary.py" not in hub_models.pin_model(settings(folder, kind="atlas").source).files


# --- reading


@pytest.fixture(scope="module")
def packed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    file = write_jsonl(folder / "text.jsonl", texts(400))
    prefetch.build(settings(model, files=[str(file)]), folder / "corpus")
    return folder / "corpus"


def tamper(folder: Path, what: str) -> None:
    tokens = corpus.read_tokens(folder).copy()
    manifest = json.loads((folder / "manifest.json").read_text())
    if what == "one id":
        tokens[3, 4] ^= 1
        save_file({"tokens": tokens}, folder / "tokens.safetensors")
    elif what == "shape":
        save_file({"tokens": tokens.reshape(-1)}, folder / "tokens.safetensors")
    elif what == "cut":
        whole = (folder / "tokens.safetensors").read_bytes()
        (folder / "tokens.safetensors").write_bytes(whole[:-9])
    elif what == "file":
        (folder / "tokens.safetensors").unlink()
    elif what == "manifest":
        (folder / "manifest.json").unlink()
    else:
        manifest |= {"schema": 2} if what == "schema" else {"surprise": 1}
        (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("what", ["one id", "shape", "cut", "file", "manifest", "schema", "key"])
def test_a_changed_corpus_is_never_read(packed, tmp_path, what):
    """DVC trusts a cached file without hashing it; `read_tokens` hashes it."""
    folder = shutil.copytree(packed, tmp_path / "corpus")
    tamper(folder, what)

    with pytest.raises(IntegrityError, match=r"tokens\.safetensors|manifest\.json"):
        corpus.read_tokens(folder)


def test_the_manifest_round_trips(packed):
    raw = json.loads((packed / "manifest.json").read_text())

    assert corpus.Manifest.read(packed).model_dump(mode="json") == raw


# --- kind hf


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackHub]:
    with LoopbackHub() as started:
        yield started


@pytest.fixture(scope="module")
def client(server: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    child = Client(server.url, tmp_path_factory.mktemp("home"))
    yield child
    child.close()


def test_a_dataset_of_the_hub_is_packed_at_the_commit_its_branch_had(server, client, tmp_path):
    """Two parquet files with the same documents, one for each side: training leaves out the held-out documents. Then
    the branch moves: the recorded commit still gives the same tokens, the branch others.
    """
    model_commit = server.commit("models", "lab/model", model_files())
    mixed = texts(600)
    files = {"data/train-0.parquet": parquet(mixed), "data/train-1.parquet": parquet(["more", *mixed])}
    commit = server.commit("datasets", "lab/text", files)
    request = {"source": source(None, "lab/model"), "corpus": section(kind="hf", repo="lab/text", train_tokens=19_000)}

    client.call("build", **request, out=str(tmp_path / "now"))
    moved = {name: parquet(texts(600, 10 + i)) for i, name in enumerate(files)}
    server.commit("datasets", "lab/text", moved)
    client.call("build", **request, out=str(tmp_path / "moved"))
    pinned = request | {"corpus": request["corpus"] | {"revision": commit}}
    client.call("build", **pinned, out=str(tmp_path / "pinned"))

    manifest = corpus.Manifest.read(tmp_path / "now")
    assert (manifest.repo, manifest.split, manifest.revision, manifest.commit) == ("lab/text", "train", "main", commit)
    assert manifest.model.commit == model_commit
    (train_file,), (heldout_file,) = manifest.train.files, manifest.heldout.files
    assert {train_file.path, heldout_file.path} == set(files)
    assert train_file.size == len(files[train_file.path])
    tokens, heldout = corpus.read_tokens(tmp_path / "now"), corpus.read_heldout(tmp_path / "now")
    assert set(unpacked(tokens)).isdisjoint(unpacked(heldout)) and set(unpacked(tokens)[:-1]) <= {*mixed, "more"}
    assert manifest.skipped == {"duplicate_of_heldout": manifest.heldout.documents}
    again = corpus.Manifest.read(tmp_path / "pinned")
    assert again.content_hash == manifest.content_hash and again.tokens_sha256 == manifest.tokens_sha256
    assert corpus.Manifest.read(tmp_path / "moved").tokens_sha256 != manifest.tokens_sha256


def test_a_failed_read_of_a_dataset_is_tried_again_or_is_a_remote_error(server, client, tmp_path):
    """One 503 changes nothing; a server that keeps refusing ends the stage with code 5, and nothing is written."""
    server.commit("models", "lab/model", model_files())
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts(600)).encode()
    server.commit("datasets", "lab/lines", {"train.jsonl": lines})
    request = {"source": source(None, "lab/model"), "corpus": section(kind="hf", repo="lab/lines")}
    client.call("build", **request, out=str(tmp_path / "whole"))

    server.faults.append(Fault(r"GET .*resolve/.*train\.jsonl", 503, 1))
    client.call("build", **request, out=str(tmp_path / "retried"))
    server.faults.append(Fault(r"GET .*resolve/.*train\.jsonl", 403, 99))
    with pytest.raises(RemoteError, match=r"dataset lab/lines@.*HTTP 403"):
        client.call("build", **request, out=str(tmp_path / "refused"))
    server.faults.clear()

    whole = (tmp_path / "whole" / "tokens.safetensors").read_bytes()
    assert (tmp_path / "retried" / "tokens.safetensors").read_bytes() == whole
    assert not (tmp_path / "refused").exists()


READS = r"GET .*resolve/.*/read-\d\.(parquet|jsonl)"


def lines(values: list[str]) -> bytes:
    return "".join(json.dumps({"text": value}) + "\n" for value in values).encode()


def six_files_on_the_hub(
    server: LoopbackHub, client: Client, out: Path, suffix: str = ".parquet"
) -> tuple[dict[str, Any], int]:
    """A request for a corpus of six files, and the number of reads that it takes."""
    server.commit("models", "lab/model", model_files())
    files = {f"read-{i}.jsonl": lines(texts(150, 40 + i)) for i in range(6)}
    if suffix == ".parquet":
        files = {f"read-{i}.parquet": parquet(texts(150, 40 + i)) for i in range(6)}
    server.commit("datasets", "lab/reads", files)
    sides = {"train_tokens": 12_000, "heldout_tokens": 3_000}
    request = {"source": source(None, "lab/model"), "corpus": section(kind="hf", repo="lab/reads", **sides)}
    server.requests.clear()
    client.call("build", **request, out=str(out))
    return request, sum(bool(re.match(READS, line)) for line in server.requests)


def outcome_of_build(server: LoopbackHub, client: Client, request: dict[str, Any], fault: Fault, out: Path) -> str:
    """The outcome of a build with a fault: `the same bytes`, or an error and no file. The next build works."""
    whole = (out.parent / "whole" / "tokens.safetensors").read_bytes()
    server.faults.append(fault)
    try:
        client.call("build", **request, out=str(out))
        word = "the same bytes"
    except (RemoteError, InputError, IntegrityError) as error:
        word = type(error).__name__
    assert out.exists() == (word == "the same bytes")
    server.faults.clear()
    if not out.exists():
        client.call("build", **request, out=str(out))
    assert (out / "tokens.safetensors").read_bytes() == whole
    return word


def test_a_stream_that_is_refused_at_any_read_leaves_nothing_and_can_be_read_again(
    server, client, tmp_path, record_property
):
    """Code 5, no short corpus, and the next run gives the bytes of a run without a fault."""
    request, n_reads = six_files_on_the_hub(server, client, tmp_path / "whole")
    ends = [
        outcome_of_build(server, client, request, Fault(READS, 403, 99, skip=n), tmp_path / str(n))
        for n in range(n_reads)
    ]

    assert n_reads >= 5 and ends == ["RemoteError"] * n_reads
    record_property("reads of a data set refused, one after the other: code 5, and the same bytes again", n_reads)


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("status", [503, CUT, SHORT])
def test_a_stream_that_fails_once_at_any_read_is_read_again(server, client, tmp_path, status, suffix, record_property):
    """HTTP 503, a connection cut within a body, or half a body that looks whole."""
    request, n_reads = six_files_on_the_hub(server, client, tmp_path / "whole", suffix)
    ends = Counter(
        outcome_of_build(server, client, request, Fault(READS, status, 1, skip=n), tmp_path / str(n))
        for n in range(n_reads)
    )

    assert sum(ends.values()) == n_reads >= 5
    assert status != 503 or ends == {"the same bytes": n_reads}
    name = {503: "HTTP 503", CUT: "a connection cut", SHORT: "half a body"}[status]
    record_property(f"{name} at every single read of a data set of {suffix} ends in", dict(ends))
