"""Source text as a stream of documents, each usable or with the reason why it is not.

    settings.corpus ─ open_text ─> two streams of rows, held-out and train ─ clean ─> documents

A row holds any value of a file's text column: a string, or a chat as a list of messages. A document is a string that a
tokenizer accepts. The two streams share no document. Where they share no file (kind hf) or no seed (kind atlas),
training leaves out documents of the held-out text. Where both read the same files, the sha256 of a document decides its
side.

A new kind is one case of `open_text`, its name in `CorpusParams`, and a test. Where a setting names its files,
`settings.resolved` has to hash them.
"""

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self, assert_never

from lensmith.files import names
from lensmith.files.artifacts import sha256_file
from lensmith.hub import datasets
from lensmith.hub.datasets import DatasetPin
from lensmith.process.draws import Stream
from lensmith.process.errors import InputError
from lensmith.settings.sections import CorpusParams
from lensmith.source import chats, text_files
from lensmith.source.text_files import UNCHANGED

NO_FILE = -1  # the file index of rows that a generator made
# Reasons that mean a wrong column or broken text. An empty string or a repeated document is neither.
FAULTS = ("none", "not_text", "surrogate", "not_rendered")
DUPLICATE = "duplicate_of_heldout"
OTHER_SIDE = "other_side"


class SourceRow(NamedTuple):
    """One row of the source."""

    file: int  # index in `SourceText.files`
    row: int  # from 0, in its file
    value: object


class Document(NamedTuple):
    """A row as text; `skipped` is the reason why it cannot be used, "" where it can."""

    file: int
    row: int
    text: str
    sha256: bytes
    cut: bool  # its text was too long
    skipped: str
    is_chat: bool = False  # rendered by a chat template, special tokens included


@dataclass(frozen=True, slots=True)
class SourceText:
    """The source text of a corpus, opened."""

    name: str  # in messages
    heldout: Generator[SourceRow]  # closing a stream closes its open file
    train: Generator[SourceRow]
    shared: bool  # both streams read the same files
    files: tuple[str, ...]
    describe: Callable[[Iterable[int]], dict[int, tuple[str, int]]]  # sha256 and bytes of files by index
    dataset: DatasetPin | None

    @classmethod
    def from_hub(cls, corpus: CorpusParams) -> Self:
        """A dataset of the Hub; each side has files of its own, where there is more than one."""
        pin = datasets.pin_dataset(corpus)
        for name in pin.files:
            text_files.check_readable(name, f"dataset {pin.repo}")

        def rows(indices: Iterable[int]) -> Generator[SourceRow]:
            open_file = partial(datasets.open_dataset_file, pin)
            return _rows(pin.files, indices, open_file, corpus, f"{pin.repo}/")

        return cls(
            name=f"{pin.repo}@{pin.commit}, split {pin.split}",
            heldout=rows(pin.heldout),
            train=rows(pin.train),
            shared=not set(pin.heldout).isdisjoint(pin.train),
            files=pin.files,
            describe=lambda indices: datasets.describe_dataset_files(pin, indices),
            dataset=pin,
        )

    @classmethod
    def from_files(cls, corpus: CorpusParams, patterns: Sequence[str], where: str) -> Self:
        """Local files, or none; `where` is the setting that names them.

        They are few and differ in size and kind, so each side gets documents of all.
        """
        files = tuple(sorted(path.as_posix() for path in names.files(patterns, where)))
        for name in files:
            text_files.check_readable(name, where)
        order = [int(index) for index in Stream(corpus.seed, "corpus/files").permutation(len(files), 0)]

        def rows() -> Generator[SourceRow]:
            return _rows(files, order, lambda index: Path(files[index]).open("rb"), corpus, "")

        return cls(
            name=", ".join(patterns),
            heldout=rows(),
            train=rows(),
            shared=True,
            files=files,
            describe=lambda indices: {i: (sha256_file(Path(files[i])), Path(files[i]).stat().st_size) for i in indices},
            dataset=None,
        )

    @classmethod
    def from_atlas(cls, corpus: CorpusParams) -> Self:
        """The generator of the demo model, with a seed for each side."""
        try:
            from demo import world
        except ModuleNotFoundError as error:
            if error.name not in ("demo", "demo.world"):
                raise
            raise InputError(
                "corpus.kind is atlas, whose text demo/world.py makes: it works only in the top folder of a checkout "
                f"of the repository. Elsewhere use kind hf or files. {UNCHANGED}"
            ) from None

        def rows(seed: int) -> Generator[SourceRow]:
            return (SourceRow(NO_FILE, number, text) for number, text in enumerate(world.documents(seed)))

        return cls(
            name=f"the world of demo/world.py, seed {corpus.seed}",
            heldout=rows(corpus.seed * 2 + 1),
            train=rows(corpus.seed * 2),
            shared=False,
            files=(),
            describe=lambda _: {},
            dataset=None,
        )


def open_text(corpus: CorpusParams) -> SourceText:
    """The source that `corpus.kind` names.

    Raises:
        InputError: it does not exist or cannot be read.
        RemoteError: the Hub refused, or could not be reached.
    """
    match corpus.kind:
        case "hf":
            return SourceText.from_hub(corpus)
        case "files" | "sampled":  # of prompts, which both sides share out
            return SourceText.from_files(corpus, corpus.files, "corpus.files")
        case "atlas":
            return SourceText.from_atlas(corpus)
        case kind:
            assert_never(kind)


def clean(
    rows: Iterable[SourceRow], max_chars: int, render: Callable[[list[Any]], str | None] = lambda _: None
) -> Iterator[Document]:
    """Rows as documents, long ones cut to `max_chars` characters; `render` gives a chat's text, or None."""
    for file, row, value in rows:
        whole, is_chat = value, False
        if text_files.is_chat(value):
            whole, is_chat = render([chats.as_message(message) for message in value]), True
        if not isinstance(whole, str) or not whole:
            reason = "empty" if value == "" else "none" if value is None else "not_rendered" if is_chat else "not_text"
            yield Document(file, row, "", b"", False, reason)
            continue
        text = whole[:max_chars]
        try:
            digest = hashlib.sha256(text.encode()).digest()
        except UnicodeEncodeError:  # half of a surrogate pair: no tokenizer takes it
            yield Document(file, row, "", b"", False, "surrogate")
            continue
        yield Document(file, row, text, digest, len(text) < len(whole), "", is_chat)


def only_side(documents: Iterable[Document], share: float, *, heldout: bool) -> Iterator[Document]:
    """One side of documents that both sides read: those of the other are skipped. About `share` of them is held out."""
    limit = int(share * 2**64)
    for document in documents:
        is_heldout = int.from_bytes(document.sha256[:8], "big") < limit
        if not document.skipped and is_heldout != heldout:
            yield document._replace(text="", skipped=OTHER_SIDE)
        else:
            yield document


def without(documents: Iterable[Document], seen: AbstractSet[bytes]) -> Iterator[Document]:
    """Documents, those whose sha256 is in `seen` skipped."""
    for document in documents:
        if document.sha256 in seen:
            yield document._replace(text="", skipped=DUPLICATE)
        else:
            yield document


def _rows(
    files: tuple[str, ...],
    order: Iterable[int],
    open_file: Callable[[int], AbstractContextManager[BinaryIO]],
    corpus: CorpusParams,
    prefix: str,
) -> Generator[SourceRow]:
    """Rows of the files, one file after the other; `prefix` stands before their names in messages."""
    for index in order:
        name = files[index]
        with open_file(index) as file:
            values = text_files.values(file, prefix + name, corpus.text_column, corpus.sample_by)
            for number, value in enumerate(values):
                yield SourceRow(index, number, value)
