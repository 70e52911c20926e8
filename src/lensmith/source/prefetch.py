"""Stage `prefetch`: source text becomes packed token ids, with a manifest of where every one of them comes from.

Documents are tokenized one by one and laid end to end, left to right:

    ids(document 0) ++ ids(document 1) ++ …   cut into rows of seq_len, the remainder dropped

Nothing is put between documents but what the tokenizer itself adds to each, and with bos `never` not even that. The
number of sequences is exactly the budget's; text that does not suffice is an error, never a short corpus. The same
settings and the same pins give the same bytes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lensmith.files import artifacts
from lensmith.hub import models, published
from lensmith.process.errors import InputError
from lensmith.settings.sections import CorpusParams, ModelParams
from lensmith.source import documents, remote_code
from lensmith.source import tokenizer as probe
from lensmith.source.corpus import HELDOUT, MANIFEST, TOKENS, Manifest, Part, SourceFile, TokenizerFacts, sha256_tokens
from lensmith.source.documents import Document, Text

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

# Documents tokenized in one call: enough for the tokenizer's threads, few enough for memory.
BATCH = 256
MAX_FAULTS = 0.01  # of all rows read
# An endless source that only repeats itself must end in an error.
MAX_IDLE = 100_000
UNWRITTEN = "Nothing was written."

Pins = dict[str, models.ModelPin | published.LensPin | None]
Encode = Callable[[list[str]], list[list[int]]]


@dataclass(slots=True)
class Packed:
    """Token ids of one side, and the account of the documents that they were made from."""

    ids: NDArray[np.uint32]  # (n_tokens)
    filled: int = 0
    documents: int = 0
    read: int = 0  # rows looked at
    idle: int = 0  # rows since the last one that could be used
    cut: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    rows: dict[int, int] = field(default_factory=dict)  # file index: rows read
    seen: set[bytes] = field(default_factory=set)  # sha256 of each document

    @property
    def full(self) -> bool:
        return self.filled == len(self.ids)

    @property
    def faults(self) -> int:
        return sum(self.skipped[reason] for reason in documents.FAULTS)

    def add(self, document: Document, ids: list[int] | None) -> None:
        """Account for one row; `ids` are its tokens, None where it is skipped."""
        self.read += 1
        if document.file != documents.NO_FILE:
            self.rows[document.file] = document.row + 1
        if ids is None:
            self.skipped[document.skipped] += 1
            self.idle += document.skipped != documents.OTHER_SIDE
            return
        kept = ids[: len(self.ids) - self.filled]
        self.ids[self.filled : self.filled + len(kept)] = kept
        self.filled += len(kept)
        self.documents += 1
        self.idle = 0
        self.cut += document.cut
        self.seen.add(document.sha256)


def build(settings: ModelParams, out: Path) -> None:
    """Pin the model and the text, pack the text, download the weights, write `out` (the manifest last).

    Raises:
        InputError: the text does not suffice, is not text, or does not fit the model.
        RemoteError: the Hub refused, or could not be reached.
    """
    corpus = settings.corpus
    pin, lens = models.pin_model(settings.source), published.pin_lens(settings.imported)
    folder = models.fetch_tokenizer(pin)
    remote_code.check(folder, pin.place)
    vocab_size = _check_model(folder, pin.place, settings)
    tokenizer = load_tokenizer(folder, pin.place, trusted=settings.source.trust_remote_code)
    encode = encoder(tokenizer, corpus.bos)
    text = documents.open_text(corpus)
    with closing(text.heldout):
        heldout = pack(_side(text, corpus, None), encode, _budget(corpus, corpus.heldout_tokens))
    _check(heldout, "heldout", text, corpus)
    with closing(text.train):
        train = pack(_side(text, corpus, heldout), encode, _budget(corpus, corpus.train_tokens))
    _check(train, "train", text, corpus)
    _check_ids(max(int(train.ids.max()), int(heldout.ids.max())), vocab_size, pin.place)

    if pin.repo is not None:
        models.fetch_model(pin)  # the stages that read its weights have no network

    facts = _tokenizer_facts(tokenizer, encode, corpus)
    manifest = _manifest(corpus, text, {"model": pin, "lens": lens}, facts, {"heldout": heldout, "train": train})
    for name, packed in ((TOKENS, train), (HELDOUT, heldout)):
        artifacts.write_tensors(out / name, {"tokens": packed.ids.reshape(-1, corpus.seq_len)})
    artifacts.write_json(out / MANIFEST, manifest.model_dump(mode="json"))


def pack(stream: Iterable[Document], encode: Encode, n_tokens: int) -> Packed:
    """Lay documents end to end until `n_tokens` ids are there, or the stream ends or stops giving any.

    Raises:
        InputError: too many rows are not text.
    """
    packed = Packed(np.empty(n_tokens, np.uint32))
    for batch in _batched(stream, BATCH):
        ids = iter(encode([document.text for document in batch if not document.skipped]))
        for document in batch:
            packed.add(document, None if document.skipped else next(ids))
            if packed.full or packed.idle >= MAX_IDLE:
                return packed
        # Not only at the end: a wrong column of a large data set would be read to its last row.
        if packed.read >= 4 * BATCH and packed.faults > MAX_FAULTS * packed.read:
            return packed
    return packed


def load_tokenizer(folder: Path, place: str, *, trusted: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder; code that it brings along is run only where it is `trusted`.

    Raises:
        InputError: there is none that can be read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted, local_files_only=True)
    except Exception as error:  # noqa: BLE001 (the tokenizers library raises bare Exception for a broken file)
        raise InputError(f"{place}: no tokenizer that can be read ({_first_line(error)}). {UNWRITTEN}") from None
    if len(tokenizer) == 0:
        raise InputError(f"{place}: its tokenizer has no vocabulary; a tokenizer.json or tokenizer.model is needed")
    return tokenizer


def encoder(tokenizer: PreTrainedTokenizerBase, bos: str) -> Encode:
    """Texts to token ids, with the special tokens of the tokenizer's own default or with none."""

    def encode(texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = tokenizer(
            texts,
            add_special_tokens=bos == "tokenizer",
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return ids

    return encode


def _batched(stream: Iterable[Document], size: int) -> Iterator[list[Document]]:
    iterator = iter(stream)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _side(text: Text, corpus: CorpusParams, heldout: Packed | None) -> Iterator[Document]:
    """Documents of the held-out side, or of the training side where the packed held-out side is given."""
    stream = documents.clean(text.heldout if heldout is None else text.train, corpus.max_document_chars)
    if text.shared:
        return documents.side(stream, _share(corpus), heldout=heldout is None)
    return stream if heldout is None else documents.without(stream, heldout.seen)


def _share(corpus: CorpusParams) -> float:
    """Share of the documents of a shared text that are held out: a bit more than its share of the tokens.

    The smaller side is the one that a few short documents can starve.
    """
    return min(0.5, 1.25 * corpus.heldout_tokens / (corpus.heldout_tokens + corpus.train_tokens))


def _budget(corpus: CorpusParams, n_tokens: int) -> int:
    return n_tokens // corpus.seq_len * corpus.seq_len


def _check(packed: Packed, side: str, text: Text, corpus: CorpusParams) -> None:
    skipped = {reason: n for reason, n in sorted(packed.skipped.items()) if reason != documents.OTHER_SIDE}
    if packed.faults > MAX_FAULTS * packed.read:
        raise InputError(
            f"corpus: {packed.faults} of {packed.read} {side} rows from {text.name} are not text ({skipped}), at most "
            f"{MAX_FAULTS:.0%} may be; is corpus.text_column {corpus.text_column!r} right? {UNWRITTEN}"
        )
    if not packed.full:
        split = f" ({_share(corpus):.1%} of them are held out)" if text.shared else ""
        raise InputError(
            f"corpus: got {packed.filled} of {len(packed.ids)} {side} tokens from {text.name}, {packed.documents} of "
            f"{packed.read} documents used{split}, skipped: {skipped or 'none'}. "
            f"Add text or lower corpus.{side}_tokens. {UNWRITTEN}"
        )


def _check_model(folder: Path, place: str, settings: ModelParams) -> int:
    """The model's vocabulary size; checks that the model reads sequences as long as the corpus packs.

    Also that the lens is no wider than the model: `fit` would find out only after the capture.
    """
    from transformers import AutoConfig

    try:
        trusted = settings.source.trust_remote_code
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted, local_files_only=True).get_text_config()
        vocab_size = int(config.vocab_size)
    except Exception as error:  # noqa: BLE001 (a configuration's own checks raise what they like)
        raise InputError(f"{place}: config.json cannot be used ({_first_line(error)}). {UNWRITTEN}") from None
    seq_len, rank = settings.corpus.seq_len, settings.fit.rank
    window, d_model = (getattr(config, name, None) for name in ("max_position_embeddings", "hidden_size"))
    if settings.fit.kind == "low_rank" and isinstance(rank, int) and isinstance(d_model, int) and rank > d_model:
        raise InputError(f"fit.rank is {rank}, but {place} has d_model {d_model}, the most it may be. {UNWRITTEN}")
    if isinstance(window, int) and 0 < window < seq_len:
        raise InputError(f"corpus.seq_len is {seq_len}, but {place} reads at most {window} tokens. {UNWRITTEN}")
    return vocab_size


def _check_ids(largest: int, vocab_size: int, place: str) -> None:
    if largest >= vocab_size:
        raise InputError(
            f"{place}: its tokenizer gives id {largest}, but the model has ids below {vocab_size} (vocab_size of "
            f"config.json); tokenizer and model do not belong together. {UNWRITTEN}"
        )


def _tokenizer_facts(tokenizer: PreTrainedTokenizerBase, encode: Encode, corpus: CorpusParams) -> TokenizerFacts:
    return TokenizerFacts.model_validate(
        {
            "bos_policy": corpus.bos,
            "adds_bos": tokenizer.bos_token_id is not None and encode(["a"])[0][:1] == [tokenizer.bos_token_id],
            "class": type(tokenizer).__name__,
            "vocab_size": len(tokenizer),
            "probe_sha256": probe.sha256(tokenizer),
        }
    )


def _manifest(
    corpus: CorpusParams, text: Text, pins: Pins, facts: TokenizerFacts, sides: dict[str, Packed]
) -> Manifest:
    dataset = text.dataset
    counted = [sides["train"]] if text.shared else list(sides.values())
    skipped = sum((packed.skipped for packed in counted), Counter[str]())
    source = {
        "kind": corpus.kind,
        "seed": corpus.seed,
        "repo": dataset.repo if dataset else None,
        "name": dataset.name if dataset else None,
        "split": dataset.split if dataset else None,
        "commit": dataset.commit if dataset else None,
    }
    parts = {side: _part(packed, text, corpus.seq_len) for side, packed in sides.items()}
    # The revision's name is left out: a tag and a branch on the same commit are the same text.
    identity = source | {side: [file.model_dump(mode="json") for file in part.files] for side, part in parts.items()}
    identity |= {"text_column": corpus.text_column, "max_document_chars": corpus.max_document_chars}
    return Manifest.model_validate(
        source
        | parts
        | {
            "schema": 1,
            "revision": dataset.revision if dataset else None,
            "seq_len": corpus.seq_len,
            **pins,
            "tokenizer": facts,
            "skipped": {reason: n for reason, n in sorted(skipped.items()) if reason != documents.OTHER_SIDE},
            "cut_documents": sum(packed.cut for packed in sides.values()),
            "content_hash": artifacts.sha256_text(artifacts.canonical_json(identity)),
            "tokens_sha256": sha256_tokens(sides["train"].ids),
            "heldout_sha256": sha256_tokens(sides["heldout"].ids),
        }
    )


def _part(packed: Packed, text: Text, seq_len: int) -> Part:
    facts = text.describe(packed.rows)
    files = tuple(
        SourceFile(index=i, path=text.files[i], sha256=facts[i][0], size=facts[i][1], rows=(0, n_rows))
        for i, n_rows in packed.rows.items()
    )
    n = len(packed.ids)
    return Part(documents=packed.documents, tokens=n, sequences=n // seq_len, files=files)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
