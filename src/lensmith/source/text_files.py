"""Files of text: the values of one column, row by row.

    .txt               a row is a line, a paragraph (between blank lines) or the whole document, as the caller says
    .jsonl, .ndjson, .json      an object a line
    .csv               with a header
    .parquet

All but parquet also with .gz or .zst, in UTF-8 with or without a byte order mark, with the line ends of any system. The
case of an ending does not matter.
"""

import csv
import gzip
import io
import sys
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import groupby, islice
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import pyarrow as pa
import pyarrow.parquet as pq

from lensmith.files import names
from lensmith.files.artifacts import parse_jsonl
from lensmith.process.errors import InputError
from lensmith.settings.sections import CorpusParams, SampleBy

UNCHANGED = "Nothing was changed."
FORMS = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".parquet")
PACKED = (".gz", ".zst")


def check_readable(name: str, place: str) -> None:
    """Check the form of a file by its name; `place` is the setting or data set that names it.

    Raises:
        InputError: the form cannot be read.
    """
    if form(name) not in FORMS or (form(name) == ".parquet" and packing(name)):
        raise InputError(
            f"{place}: {name} cannot be read; allowed: .parquet, and .jsonl, .ndjson, .json (an object a line), .csv, "
            f".txt, also with .gz or .zst. {UNCHANGED}"
        )


def counts(corpus: CorpusParams, limit: int) -> Iterator[tuple[str, int]]:
    """Each text of a corpus's files, by its setting and patterns, and how many documents it holds, up to `limit`.

    Raises:
        InputError: a file cannot be read, or a text holds no document.
    """
    texts = {f"corpus.also_heldout.{name}": files for name, files in corpus.also_heldout.items()}
    if corpus.kind in ("files", "sampled"):
        texts["corpus.files"] = corpus.files

    def documents(paths: Iterable[Path], where: str) -> Iterator[object]:
        for path in paths:
            check_readable(path.as_posix(), where)
            with path.open("rb") as file:
                rows = values(file, path.as_posix(), corpus.text_column, corpus.sample_by)
                yield from (row for row in rows if row and (isinstance(row, str) or is_chat(row)))

    for setting, patterns in texts.items():
        if paths := names.files(patterns, setting):
            where = f"{setting} ({', '.join(patterns)})"
            n = sum(1 for _ in islice(documents(paths, setting), limit))
            if n == 0:
                raise InputError(f"{where}: no document; is corpus.text_column {corpus.text_column!r} right?")
            yield where, n


def is_chat(value: object) -> TypeGuard[list[dict[str, Any]]]:
    """Whether a value is a list of messages."""
    return isinstance(value, list) and all(isinstance(message, dict) for message in value)


def form(name: str) -> str:
    """The suffix that tells how a file is read: that of a.jsonl.gz is .jsonl."""
    return Path(name.lower().removesuffix(packing(name))).suffix


def packing(name: str) -> str:
    """The suffix that tells how a file is compressed, in lower case; "" for none."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix in PACKED else ""


def values(file: BinaryIO, name: str, column: str, sample_by: SampleBy = "paragraph") -> Iterator[object]:
    """The value of a column in each row. None where a JSON object lacks the key.

    `meta.text` is the key `text` of the object `meta`, unless a column has that whole name. A .txt has no column, and
    `sample_by` says what a row of it is.

    Raises:
        InputError: the file is damaged, not UTF-8, or has no such column.
    """
    match form(name):
        case ".txt":
            lines = groupby(_lines(file, name), key=lambda line: sample_by == "document" or bool(line.strip()))
            for has_text, block in lines:
                if has_text:
                    texts = block if sample_by == "line" else ["".join(block)]
                    yield from (text.rstrip("\r\n") for text in texts)
        case ".csv":
            csv.field_size_limit(sys.maxsize)  # a cell holds a document
            rows = csv.DictReader(_lines(file, name), strict=True)
            try:
                _check_column(column, rows.fieldnames or (), name)
                for row in rows:
                    yield row[column]
            except csv.Error as error:
                raise InputError(f"{name}:{rows.reader.line_num}: not CSV ({error}). {UNCHANGED}") from None
        case ".parquet":
            yield from _parquet(file, name, column)
        case _:
            for _, row in parse_jsonl(_lines(file, name), name):
                yield _value(row, column)


def _value(row: Mapping[str, Any], column: str) -> object:
    if column in row:
        return row[column]
    value: Any = row
    for key in column.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _lines(file: BinaryIO, name: str) -> Iterator[str]:
    """Lines of a text file, with their line ends."""
    number = 0
    plain: Any = file
    if packing(name) == ".gz":
        plain = gzip.GzipFile(fileobj=file)
    elif packing(name) == ".zst":
        plain = pa.CompressedInputStream(file, "zstd")
    try:
        with io.TextIOWrapper(plain, encoding="utf-8-sig", newline="") as lines:
            for line in lines:
                yield line
                number += 1
    except UnicodeDecodeError:
        raise InputError(f"{name}: is not UTF-8, somewhere after line {number}. {UNCHANGED}") from None
    except (OSError, EOFError, zlib.error) as error:
        if plain is file or not _is_damage(error):
            raise
        kind = "gzip" if packing(name) == ".gz" else "zstd"
        raise InputError(f"{name}: not a whole {kind} file ({error}). {UNCHANGED}") from None


def _parquet(file: BinaryIO, name: str, column: str) -> Iterator[object]:
    try:
        table = pq.ParquetFile(file)
        leaves = [table.schema.column(number).path for number in range(len(table.schema))]
        if not any(f"{leaf}.".startswith(f"{column}.") for leaf in leaves):
            _check_column(column, leaves, name)
        for batch in table.iter_batches(batch_size=256, columns=[column]):
            yield from (_value(row, column) for row in batch.to_pylist())
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if not _is_damage(error):
            raise
        raise InputError(f"{name}: not a whole parquet file of text ({error}). {UNCHANGED}") from None


def _check_column(column: str, columns: Collection[str], name: str) -> None:
    if column not in columns:
        names = ", ".join(columns) or "none"
        raise InputError(f"{name}: has no column {column!r} (corpus.text_column), it has: {names}. {UNCHANGED}")


def _is_damage(error: Exception) -> bool:
    """Whether the file is damaged. A disk's error is not that, and has a number; the Hub's has a class of its own."""
    if not isinstance(error, OSError) or isinstance(error, gzip.BadGzipFile):
        return True
    return type(error) is OSError and error.errno is None  # as Arrow raises it
