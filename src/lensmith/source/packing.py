"""Packs documents into token ids: each is tokenized by itself, and they are laid end to end.

    ids(document 0) ++ ids(document 1) ++ …   cut into sequences of seq_len ids, the remainder dropped

Between documents stands only what the tokenizer adds to each, and nothing with bos `never`. The number of sequences is
exactly that of the settings; too little text is an error.
"""

import itertools
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lensmith.process.errors import InputError
from lensmith.process.progress import Progress
from lensmith.settings.sections import CorpusParams
from lensmith.source import documents, text_files
from lensmith.source.chats import ChatRenderer
from lensmith.source.configuration import UNWRITTEN
from lensmith.source.corpus import CorpusSide, SourceFile
from lensmith.source.documents import Document, SourceText
from lensmith.source.tokenizer import Encoder

BATCH = 256  # documents tokenized in one call: enough for the tokenizer's threads, few enough for memory
MAX_FAULTS = 0.01  # of all rows read
FEW_FAULTS = 5  # rows that may always be faulty: one of a few dozen rows is already more than MAX_FAULTS
MAX_IDLE = 100_000  # rows in turn that give no document; a source that repeats itself forever then ends in an error


@dataclass(slots=True)
class Packed:
    """Token ids of one side of a corpus, and counts of the rows that they were made from."""

    ids: NDArray[np.uint32]  # (n_tokens)
    filled: int = 0  # ids so far
    documents: int = 0
    read: int = 0  # rows
    idle: int = 0  # rows since the last one that gave a document
    cut: int = 0  # documents that were too long
    chats: int = 0  # documents that a chat template rendered
    skipped: Counter[str] = field(default_factory=Counter)  # rows, by reason
    rows: dict[int, int] = field(default_factory=dict)  # rows read, by file index
    seen: set[bytes] = field(default_factory=set)  # sha256 of each document

    @property
    def is_full(self) -> bool:
        return self.filled == len(self.ids)

    @property
    def faults(self) -> int:
        """Rows that were not text."""
        return sum(self.skipped[reason] for reason in documents.FAULTS)

    @property
    def is_faulty(self) -> bool:
        """Whether too many rows were not text: the column is wrong, or the text broken."""
        return self.faults > max(FEW_FAULTS, MAX_FAULTS * self.read)

    @property
    def is_over(self) -> bool:
        """Whether reading on is of no use. A large data set with a wrong column would be read to its last row."""
        return self.is_full or self.idle >= MAX_IDLE or (self.read >= 4 * BATCH and self.is_faulty)

    def add(self, document: Document, ids: list[int] | None) -> None:
        """Account for one row; `ids` are its tokens, None where it is skipped."""
        self.read += 1
        if document.file != documents.NO_FILE:
            self.rows[document.file] = document.row + 1
        if ids is None:
            self.skipped[document.skipped] += 1
            self.idle += document.skipped != documents.OTHER_SIDE
            return
        ids = ids[: len(self.ids) - self.filled]
        self.ids[self.filled : self.filled + len(ids)] = ids
        self.filled += len(ids)
        self.documents += 1
        self.idle = 0
        self.cut += document.cut
        self.chats += document.is_chat
        self.seen.add(document.sha256)

    def side(self, text: SourceText, seq_len: int) -> CorpusSide:
        """What the manifest records of this side, which was read from `text`."""
        described = text.describe(self.rows)
        files = tuple(
            SourceFile(index=i, path=text.files[i], sha256=described[i][0], size=described[i][1], rows=(0, n_rows))
            for i, n_rows in self.rows.items()
        )
        n_tokens = len(self.ids)
        return CorpusSide(documents=self.documents, tokens=n_tokens, sequences=n_tokens // seq_len, files=files)


def pack(stream: Iterable[Document], encoder: Encoder, n_tokens: int, name: str = "pack") -> Packed:
    """Lay documents end to end until there are `n_tokens` ids, or the stream ends, gives none or is not text.

    Args:
        name: of its progress.
    """
    packed, iterator = Packed(np.empty(n_tokens, np.uint32)), iter(stream)
    with Progress(name, n_tokens, "token") as progress:
        while not packed.is_over and (batch := list(itertools.islice(iterator, BATCH))):
            before = packed.filled
            usable = [document for document in batch if not document.skipped]
            texts = iter(encoder.documents([document.text for document in usable if not document.is_chat]))
            chats = iter(encoder.documents([document.text for document in usable if document.is_chat], rendered=True))
            for document in batch:
                packed.add(document, None if document.skipped else next(chats if document.is_chat else texts))
                if packed.is_full or packed.idle >= MAX_IDLE:
                    break
            progress.advance(packed.filled - before)
    return packed


def pack_side(
    text: SourceText, corpus: CorpusParams, encoder: Encoder, render: ChatRenderer, heldout: Packed | None = None
) -> Packed:
    """The held-out side, or the training side where the packed held-out side is given.

    Raises:
        InputError: there is too little text, or it is not text.
    """
    side, rows, budget = "train", text.train, corpus.train_tokens
    if heldout is None:
        side, rows, budget = "heldout", text.heldout, corpus.heldout_tokens
    # A bit more than the share of tokens: a few short documents could leave the held-out side without enough.
    heldout_share = min(0.5, 1.25 * corpus.heldout_tokens / (corpus.heldout_tokens + corpus.train_tokens))
    stream = documents.clean(rows, corpus.max_document_chars, render)
    if text.shared:
        stream = documents.only_side(stream, heldout_share, heldout=heldout is None)
    elif heldout is not None:
        stream = documents.without(stream, heldout.seen)
    with closing(rows):
        packed = pack(stream, encoder, budget // corpus.seq_len * corpus.seq_len, f"pack {side} text")
    _check_text(packed, side, text, corpus.text_column)
    if not packed.is_full:
        split = f" ({heldout_share:.1%} of them are held out)" if text.shared else ""
        is_plain = ".txt" in map(text_files.form, text.files)
        separator = f"; of a .txt each {corpus.sample_by} is a document (corpus.sample_by)" if is_plain else ""
        raise InputError(
            f"corpus: got {packed.filled} of {len(packed.ids)} {side} tokens from {text.name}, {packed.documents} of "
            f"{packed.read} documents used{split}, cut: {packed.cut}, skipped: "
            f"{without_other_side(packed.skipped) or 'none'}{separator}. "
            f"Add text or lower corpus.{side}_tokens. {UNWRITTEN}"
        )
    return packed


def _check_text(packed: Packed, side: str, text: SourceText, column: str) -> None:
    if packed.is_faulty:
        skipped = without_other_side(packed.skipped)
        raise InputError(
            f"corpus: {packed.faults} of {packed.read} {side} rows from {text.name} are not text ({skipped}), at most "
            f"{MAX_FAULTS:.0%} may be; is corpus.text_column {column!r} right? {UNWRITTEN}"
        )


def pack_other(text: SourceText, corpus: CorpusParams, encoder: Encoder, render: ChatRenderer, train: Packed) -> Packed:
    """Whole sequences of a text of `corpus.also_heldout`, without documents of the training text.

    Raises:
        InputError: it is not text, or does not fill a sequence.
    """
    stream = documents.without(documents.clean(text.heldout, corpus.max_document_chars, render), train.seen)
    with closing(text.heldout):
        packed = pack(stream, encoder, corpus.heldout_tokens // corpus.seq_len * corpus.seq_len)
    _check_text(packed, "held-out", text, corpus.text_column)
    packed.ids = packed.ids[: packed.filled // corpus.seq_len * corpus.seq_len]
    if not len(packed.ids):
        raise InputError(
            f"corpus.also_heldout: {text.name} gives {packed.filled} tokens, must give at least corpus.seq_len "
            f"({corpus.seq_len}). {UNWRITTEN}"
        )
    return packed


def without_other_side(skipped: Counter[str]) -> dict[str, int]:
    return {reason: n for reason, n in sorted(skipped.items()) if reason != documents.OTHER_SIDE}
