"""Stage `prefetch`: packs source text into token ids, and writes a manifest of their origin.

Documents are tokenized one by one and laid end to end:

    ids(document 0) ++ ids(document 1) ++ …   cut into sequences of seq_len ids, the remainder dropped

A corpus of kind `sampled` has documents that the model itself writes, see `sampling`; their ids are packed as it wrote
them. Between documents stands only what the tokenizer adds to each, and nothing with bos `never`. The number of
sequences is exactly that of the settings; too little text is an error. The same settings and pins give the same bytes,
of kind `sampled` on the same kind of machine.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lensmith.files import artifacts
from lensmith.hub import models, published
from lensmith.hub.pins import LensPin, ModelPin
from lensmith.process.errors import InputError
from lensmith.settings.sections import CorpusParams, ModelParams
from lensmith.source import documents, sampling, skeleton, text_files
from lensmith.source.chats import ChatRenderer
from lensmith.source.corpus import (
    HELDOUT,
    MANIFEST,
    TOKENS,
    CorpusSide,
    Manifest,
    OtherText,
    Sampled,
    SourceFile,
    TokenizerFacts,
    other_heldout,
    sha256_tokens,
)
from lensmith.source.documents import Document, SourceText
from lensmith.source.sampling import Writer
from lensmith.source.tokenizer import Encoder, behaviour_sha256, load_tokenizer

BATCH = 256  # documents tokenized in one call: enough for the tokenizer's threads, few enough for memory
MAX_FAULTS = 0.01  # of all rows read
FEW_FAULTS = 5  # rows that may always be faulty: one of a few dozen rows is already more than MAX_FAULTS
MAX_IDLE = 100_000  # rows in turn that give no document; a source that repeats itself forever then ends in an error
MIN_VARIETY = 64  # texts of a model after which half of them must be new: a low temperature repeats itself forever
UNWRITTEN = "Nothing was written."


Pins = dict[str, ModelPin | LensPin | None]


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


def build(settings: ModelParams, out: Path, prompts: Iterable[tuple[str, str]] = ()) -> None:
    """Pin the model and the text, pack the text, download the weights, write the corpus to `out`, the manifest last.

    Args:
        settings: of one model.
        out: the folder of its corpus.
        prompts: (file:line, text) of each prompt of later stages, checked here because those stages run hours later.

    Raises:
        InputError: there is too little text, it is not text, or text or prompts do not fit the model.
        RemoteError: the Hub refused, or could not be reached.
    """
    corpus = settings.corpus
    pin, lens = models.pin_model(settings.source), published.pin_lens(settings.imported)
    folder = models.fetch_tokenizer(pin)
    trusted = settings.source.trust_remote_code
    config = skeleton.read_config(folder, pin.place, trusted=trusted)
    _check_size(config, pin.place, settings)
    tokenizer = load_tokenizer(folder, pin.place, trusted=trusted)
    encoder = Encoder(tokenizer, corpus.bos, config)
    for where, prompt in prompts:
        encoder.prompt(prompt, where)
    text, render = documents.open_text(corpus), ChatRenderer(tokenizer)
    others = {
        name: SourceText.from_files(corpus, files, f"corpus.also_heldout.{name}")
        for name, files in corpus.also_heldout.items()
    }
    if corpus.kind != "sampled":
        heldout = _pack_side(text, corpus, encoder, render)
        train = _pack_side(text, corpus, encoder, render, heldout)
    if pin.repo is not None:
        models.fetch_model(pin)  # the stages that read its weights have no network
    if corpus.kind == "sampled":
        heldout, train = _write_sides(settings, pin, text, encoder)
    other_sides = {name: _pack_other(other, corpus, encoder, render, train) for name, other in others.items()}
    has_chats = any(packed.chats for packed in (heldout, train, *other_sides.values()))
    facts = TokenizerFacts.model_validate(
        {
            "bos_policy": corpus.bos,
            "adds_bos": tokenizer.bos_token_id is not None and encoder.added[0][:1] == [tokenizer.bos_token_id],
            "class": type(tokenizer).__name__,
            "vocab_size": len(tokenizer),
            "behaviour_sha256": behaviour_sha256(tokenizer),
            "chat_template_sha256": artifacts.sha256_text(render.template) if has_chats else None,
        }
    )
    manifest = _manifest(corpus, text, {"model": pin, "lens": lens}, facts, {"heldout": heldout, "train": train})
    also_heldout = {
        name: OtherText(
            side=packed.side(others[name], corpus.seq_len),
            tokens_sha256=sha256_tokens(packed.ids),
            tokens_per_byte=_tokens_per_byte(packed.ids, tokenizer),
        )
        for name, packed in other_sides.items()
    }
    ratio = _tokens_per_byte(heldout.ids, tokenizer)
    manifest = manifest.model_copy(update={"tokens_per_byte": ratio, "also_heldout": also_heldout})
    written = {TOKENS: train, HELDOUT: heldout} | {other_heldout(name): packed for name, packed in other_sides.items()}
    for name, packed in written.items():
        artifacts.write_tensors(out / name, {"tokens": packed.ids.reshape(-1, corpus.seq_len)})
    artifacts.write_json(out / MANIFEST, manifest.model_dump(mode="json"))


def pack(stream: Iterable[Document], encoder: Encoder, n_tokens: int) -> Packed:
    """Lay documents end to end until there are `n_tokens` ids, or the stream ends, gives none or is not text."""
    packed, iterator = Packed(np.empty(n_tokens, np.uint32)), iter(stream)
    while batch := list(itertools.islice(iterator, BATCH)):
        usable = [document for document in batch if not document.skipped]
        texts = iter(encoder.documents([document.text for document in usable if not document.is_chat]))
        chats = iter(encoder.documents([document.text for document in usable if document.is_chat], rendered=True))
        for document in batch:
            packed.add(document, None if document.skipped else next(chats if document.is_chat else texts))
            if packed.is_full or packed.idle >= MAX_IDLE:
                return packed
        # Checked early as well: a large data set with a wrong column would be read to its last row.
        if packed.read >= 4 * BATCH and packed.is_faulty:
            return packed
    return packed


def _check_size(config: PretrainedConfig, name: str, settings: ModelParams) -> None:
    """Check `corpus.seq_len` and `fit.rank` against the model: `fit` would find them too large after the capture.

    Raises:
        InputError: one is too large.
    """
    seq_len, rank = settings.corpus.seq_len, settings.fit.rank
    window, d_model = skeleton.max_length(config), getattr(config.get_text_config(), "hidden_size", None)
    if settings.fit.kind == "low_rank" and isinstance(rank, int) and isinstance(d_model, int) and rank > d_model:
        raise InputError(f"fit.rank is {rank}, but {name} has d_model {d_model}, the most it may be. {UNWRITTEN}")
    if window is not None and window < seq_len:
        raise InputError(f"corpus.seq_len is {seq_len}, but {name} reads at most {window} tokens. {UNWRITTEN}")


def _pack_side(
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
        packed = pack(stream, encoder, budget // corpus.seq_len * corpus.seq_len)
    _check_text(packed, side, text, corpus.text_column)
    if not packed.is_full:
        split = f" ({heldout_share:.1%} of them are held out)" if text.shared else ""
        separator = "; in a .txt blank lines separate documents" if ".txt" in map(text_files.form, text.files) else ""
        raise InputError(
            f"corpus: got {packed.filled} of {len(packed.ids)} {side} tokens from {text.name}, {packed.documents} of "
            f"{packed.read} documents used{split}, cut: {packed.cut}, skipped: "
            f"{_without_other_side(packed.skipped) or 'none'}{separator}. "
            f"Add text or lower corpus.{side}_tokens. {UNWRITTEN}"
        )
    return packed


def _check_text(packed: Packed, side: str, text: SourceText, column: str) -> None:
    if packed.is_faulty:
        skipped = _without_other_side(packed.skipped)
        raise InputError(
            f"corpus: {packed.faults} of {packed.read} {side} rows from {text.name} are not text ({skipped}), at most "
            f"{MAX_FAULTS:.0%} may be; is corpus.text_column {column!r} right? {UNWRITTEN}"
        )


def _pack_other(
    text: SourceText, corpus: CorpusParams, encoder: Encoder, render: ChatRenderer, train: Packed
) -> Packed:
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


def _tokens_per_byte(ids: NDArray[np.uint32], tokenizer: PreTrainedTokenizerBase) -> float:
    """Tokens, special ones included, over the bytes of their text in UTF-8."""
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return len(ids) / max(1, len(str(text).encode()))


def _write_sides(settings: ModelParams, pin: ModelPin, text: SourceText, encoder: Encoder) -> tuple[Packed, Packed]:
    """The held-out and the training side of a corpus that the model itself writes, from the prompts of `text`.

    Raises as `sampling.writers` and `_pack_written`.
    """
    writers = sampling.writers(settings, pin, text, encoder)
    heldout = _pack_written(writers["heldout"], settings.corpus.heldout_tokens)
    return heldout, _pack_written(writers["train"], settings.corpus.train_tokens, heldout)


def _pack_written(writer: Writer, budget: int, heldout: Packed | None = None) -> Packed:
    """Lay documents that a model wrote end to end; those of the packed held-out side are left out.

    Raises:
        InputError: the model only repeats itself.
    """
    seq_len = writer.corpus.seq_len
    packed = Packed(np.empty(budget // seq_len * seq_len, np.uint32))
    packed.rows = Counter(prompt.file for prompt in writer.prompts if prompt.file != documents.NO_FILE)
    for number, (ids, cut, is_chat) in enumerate(writer.documents(len(packed.ids))):
        sha256 = hashlib.sha256(json.dumps(ids).encode()).digest()
        is_known = heldout is not None and sha256 in heldout.seen
        skipped = documents.DUPLICATE if is_known else ""
        document = Document(documents.NO_FILE, number, "", sha256, cut, skipped, is_chat)
        packed.add(document, None if is_known else ids)
        if packed.is_full:
            break
        if packed.read >= MIN_VARIETY and len(packed.seen) < packed.read / 2:
            raise InputError(
                f"corpus: of {packed.read} {writer.side} texts that the model wrote, {len(packed.seen)} are new; raise "
                f"corpus.temperature or corpus.top_p, or name prompts (corpus.files). {UNWRITTEN}"
            )
    return packed


def _without_other_side(skipped: Counter[str]) -> dict[str, int]:
    return {reason: n for reason, n in sorted(skipped.items()) if reason != documents.OTHER_SIDE}


def _manifest(
    corpus: CorpusParams, text: SourceText, pins: Pins, facts: TokenizerFacts, packed: dict[str, Packed]
) -> Manifest:
    dataset = text.dataset
    keys = ("repo", "name", "split", "commit")
    source = {key: getattr(dataset, key) for key in keys} if dataset else dict.fromkeys(keys)
    source |= {"kind": corpus.kind, "seed": corpus.seed}
    sides = {side: tokens.side(text, corpus.seq_len) for side, tokens in packed.items()}
    # The revision's name is left out: a tag and a branch on the same commit are the same text.
    identity = source | {side: [file.model_dump(mode="json") for file in value.files] for side, value in sides.items()}
    identity |= {"text_column": corpus.text_column, "max_document_chars": corpus.max_document_chars}
    sampled, model = None, pins["model"]
    if corpus.kind == "sampled" and model is not None:
        sampled = Sampled(temperature=corpus.temperature, top_p=corpus.top_p)
        identity |= {"sampled": sampled.model_dump(), "model_files": model.files}
    # A shared text is read twice, and its rows count once.
    counted = [packed["train"]] if text.shared else packed.values()
    return Manifest.model_validate(
        source
        | sides
        | {
            "schema": 1,
            "revision": dataset.revision if dataset else None,
            "seq_len": corpus.seq_len,
            **pins,
            "sampled": sampled,
            "tokenizer": facts,
            "skipped": _without_other_side(sum((side.skipped for side in counted), Counter[str]())),
            "cut_documents": sum(side.cut for side in packed.values()),
            "content_hash": artifacts.sha256_text(artifacts.canonical_json(identity)),
            "tokens_sha256": sha256_tokens(packed["train"].ids),
            "heldout_sha256": sha256_tokens(packed["heldout"].ids),
        }
    )
