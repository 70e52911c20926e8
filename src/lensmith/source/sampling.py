"""Text that a model writes itself, for a corpus of kind `sampled`.

Document n of a side begins with a prompt, or with the tokenizer's first token where there are no prompts. The model
writes on until a token that ends a text, or until seq_len ids were read and written:

    p = softmax(logits / temperature), and 0 outside the likeliest tokens that have the share top_p
    token = the first one whose cumulative p exceeds u(seed, side, n, position) · Σ p

The last bits of a matrix product depend on its shape, and they can turn a draw. So documents are written in tiles:
document n is row n % ROWS of tile n // ROWS, and nothing that a tile computes depends on how many are asked for. All
rows of a tile are at the same position: where a prompt is longer, its row reads on while others write, and nothing is
padded. The same ids are written wherever everything of `Writer.key` is the same. Elsewhere, as with other threads or
another torch, a text may part from the first one somewhere; the corpus then has another hash.

A finished tile lies in <LENSMITH_HOME>/text/<key>/tile-00000.safetensors, and a killed run goes on there.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from lensmith.files import artifacts, cache
from lensmith.hub.pins import ModelPin
from lensmith.process.draws import Stream
from lensmith.process.errors import InputError, IntegrityError
from lensmith.process.progress import Progress
from lensmith.settings.sections import CorpusParams, ModelParams
from lensmith.source import tensor_file
from lensmith.source.backbone import Backbone
from lensmith.source.chats import ChatRenderer
from lensmith.source.configuration import UNWRITTEN
from lensmith.source.documents import DUPLICATE, NO_FILE, Document, SourceText, clean
from lensmith.source.key_values import growing_cache
from lensmith.source.packing import Packed
from lensmith.source.proof import proof_tokens
from lensmith.source.tokenizer import Encoder
from lensmith.source.watching import hidden_out

Side = Literal["heldout", "train"]
SIDES: tuple[Side, ...] = ("heldout", "train")
MIN_VARIETY = 64  # texts after which half of them must be new: a low temperature repeats itself forever
MOST_DISTANCE = 0.05  # bfloat16 rounds a share of a percent; without its cache a model reads a single token
ROWS = 32  # with more, weights are read less often, and more is lost where a run is killed


class Prompt(NamedTuple):
    """What a document begins with."""

    ids: list[int]
    unrecorded: int = 0  # the first ids, which the model reads and the document does not hold
    is_chat: bool = False  # the token that ends the answer belongs to the document
    file: int = NO_FILE  # that the prompt stands in, by index


class Written(NamedTuple):
    """A document that a model wrote."""

    ids: list[int]
    cut: bool  # the text had not ended
    is_chat: bool


@dataclass(frozen=True)
class Writer:
    """A model that writes the documents of one side of a corpus, from prompts that it takes in turn."""

    backbone: Backbone
    model_files: dict[str, str]  # sha256 by name
    corpus: CorpusParams
    side: Side
    prompts: tuple[Prompt, ...]

    @property
    def ends(self) -> list[int]:
        """Tokens that end a text."""
        generation, tokenizer = self.backbone.model.generation_config, self.backbone.tokenizer
        eos = None if generation is None else generation.eos_token_id
        ends = {*(eos if isinstance(eos, list) else [eos]), None if tokenizer is None else tokenizer.eos_token_id}
        return sorted(ends - {None})

    @property
    def key(self) -> dict[str, object]:
        """Everything that decides what is written."""
        return {
            "schema": 1,
            "model_files": self.model_files,
            "prompts_sha256": artifacts.sha256_text(artifacts.canonical_json([prompt.ids for prompt in self.prompts])),
            "ends": self.ends,
            **{name: getattr(self.corpus, name) for name in ("seed", "seq_len", "temperature", "top_p")},
            "side": self.side,
            "rows": ROWS,
            **self.backbone.arithmetic,
        }

    def documents(self, n_tokens: int) -> Iterator[Written]:
        """Documents without end; progress is shown towards `n_tokens` ids."""
        folder = cache.folder("text", hashlib.sha256(artifacts.canonical_json(self.key).encode()).hexdigest()[:32])
        left = n_tokens
        with Progress(f"sample {self.side} text", n_tokens, "token") as progress:

            def advance(n: int) -> None:  # a tile is written to its end, whatever is asked for
                nonlocal left
                progress.advance(min(n, left), tokens=n)
                left -= min(n, left)

            for number in itertools.count():
                path = folder / f"tile-{number:05d}.safetensors"
                with cache.held(folder):
                    try:
                        tile, _ = tensor_file.read(path)
                    except IntegrityError:  # missing, or damaged
                        tile = self._write(number, advance)
                        artifacts.write_json(folder / "key.json", self.key)
                        tensor_file.write(path, tile, {})
                rows = zip(tile["tokens"].tolist(), tile["lengths"].tolist(), strict=True)
                for document, (ids, length) in enumerate(rows, number * ROWS):
                    prompt, is_cut = self._prompt(document), length == self.corpus.seq_len
                    yield Written(ids[prompt.unrecorded : length + prompt.is_chat], is_cut, prompt.is_chat)

    @property
    def n_ids(self) -> int:
        """Ids that the tokenizer knows; a model may have more, which are no text."""
        assert self.backbone.tokenizer is not None  # a loaded model has one
        return len(self.backbone.tokenizer)

    def _prompt(self, document: int) -> Prompt:
        return self.prompts[document % len(self.prompts)]

    @torch.inference_mode()
    def _write(self, number: int, advance: Callable[[int], None]) -> dict[str, Tensor]:
        """One tile: `tokens` (ROWS, seq_len), and how many of them stand before the end of each text, `lengths`."""
        numbers, seq_len = range(number * ROWS, (number + 1) * ROWS), self.corpus.seq_len
        prompts = [self._prompt(document).ids for document in numbers]
        first = torch.tensor([len(ids) for ids in prompts])  # position that is written
        tokens = torch.tensor([[*ids, *[0] * (seq_len - len(ids))] for ids in prompts])
        lengths, ends = torch.full((ROWS,), seq_len), torch.tensor(self.ends, dtype=torch.int64)
        uniform, past = self._uniform(numbers), growing_cache(self.backbone.model.config)
        rows, start = torch.arange(ROWS), 0
        for position in range(int(first.min()), seq_len):
            logits = next_logits(self.backbone, tokens[rows, start:position], past)
            drawn = draw(logits[:, : self.n_ids], uniform[rows, position], self.corpus.temperature, self.corpus.top_p)
            writes = first[rows] <= position
            tokens[rows, position] = torch.where(writes, drawn, tokens[rows, position])
            ended = writes & torch.isin(drawn, ends) & (lengths[rows] == seq_len)
            lengths[rows[ended]] = position
            advance(len(rows))
            going = torch.nonzero(lengths[rows] == seq_len).flatten()
            if len(going) == 0:
                break
            if 2 * len(going) <= len(rows):  # the others only cost
                past.reorder_cache(going.to(self.backbone.device))  # type: ignore[arg-type]
                rows = rows[going]
            start = position
        return {"tokens": tokens.int(), "lengths": lengths.int()}

    def _uniform(self, documents: range) -> Tensor:
        """u of these documents at each position, (documents, seq_len)."""
        draws = Stream(self.corpus.seed, f"sampled/{self.side}")
        words = np.stack([draws.words(self.corpus.seq_len, step=document) for document in documents])
        # 52 bits: u · Σ p stays below Σ p when it is rounded.
        return torch.from_numpy((words >> np.uint64(12)).astype(np.float64) * 2.0**-52)


def sides(settings: ModelParams, pin: ModelPin, text: SourceText, encoder: Encoder) -> tuple[Packed, Packed]:
    """The held-out and the training side of a corpus that the model of `pin` writes, from the prompts of `text`.

    Raises:
        InputError: the model only repeats itself, or as `writers`.
        IntegrityError, NumericError, ResourceError: as `writers`.
    """
    of_side, corpus = writers(settings, pin, text, encoder), settings.corpus
    heldout = _pack(of_side["heldout"], corpus.heldout_tokens)
    return heldout, _pack(of_side["train"], corpus.train_tokens, heldout)


def _pack(writer: Writer, budget: int, heldout: Packed | None = None) -> Packed:
    """Lay documents that a model wrote end to end; those of the packed held-out side are left out."""
    seq_len = writer.corpus.seq_len
    packed = Packed(np.empty(budget // seq_len * seq_len, np.uint32))
    packed.rows = Counter(prompt.file for prompt in writer.prompts if prompt.file != NO_FILE)
    for number, (ids, cut, is_chat) in enumerate(writer.documents(len(packed.ids))):
        sha256 = hashlib.sha256(json.dumps(ids).encode()).digest()
        is_known = heldout is not None and sha256 in heldout.seen
        document = Document(NO_FILE, number, "", sha256, cut, DUPLICATE if is_known else "", is_chat)
        packed.add(document, None if is_known else ids)
        if packed.is_full:
            break
        if packed.read >= MIN_VARIETY and len(packed.seen) < packed.read / 2:
            raise InputError(
                f"corpus: of {packed.read} {writer.side} texts that the model wrote, {len(packed.seen)} are new; raise "
                f"corpus.temperature or corpus.top_p, or name prompts (corpus.files). {UNWRITTEN}"
            )
    return packed


def writers(settings: ModelParams, pin: ModelPin, text: SourceText, encoder: Encoder) -> dict[Side, Writer]:
    """The proven model of `pin` as a writer of each side, from the prompts of `text` where it has some.

    Raises:
        InputError: a row is no prompt or fills a sequence, there is but one, or the tokenizer has no first token; or
            the model cannot go on from what it has read.
        IntegrityError, NumericError, ResourceError: the model cannot be loaded, as `Backbone.load`.
    """
    prompts = _prompts(text, settings.corpus, encoder)
    backbone = Backbone.load(settings.source, pin)
    _prove(backbone, pin.place)
    return {side: Writer(backbone, pin.files, settings.corpus, side, prompts[side]) for side in SIDES}


def _prove(backbone: Backbone, name: str) -> None:
    """Check that a token after those in a cache is read as one after a text."""
    tokens = proof_tokens(backbone.model, backbone.tokenizer)[:1]
    past = growing_cache(backbone.model.config)
    with torch.inference_mode():
        next_logits(backbone, tokens[:, :-1], past)
        cached, whole = (next_logits(backbone, *read) for read in ((tokens[:, -1:], past), (tokens, None)))
    distance = 0.5 * float((cached.softmax(-1) - whole.softmax(-1)).abs().sum())
    if not distance <= MOST_DISTANCE:  # `not <=`: NaN fails
        raise InputError(
            f"{name}: {type(backbone.model).__name__} does not go on from a cache as it reads a whole text (total "
            f"variation {distance:.2g}, at most {MOST_DISTANCE}), so its corpus.kind cannot be sampled. {UNWRITTEN}"
        )


def _prompts(text: SourceText, corpus: CorpusParams, encoder: Encoder) -> dict[Side, tuple[Prompt, ...]]:
    """What the documents of each side begin with: the two share out the prompts of `text`, in a drawn order."""
    if not text.files:
        first = _first_token(encoder)
        return {"heldout": (first,), "train": (first,)}
    render = partial(ChatRenderer(encoder.tokenizer), opens_answer=True)
    read = [
        _prompt(document, f"{text.files[document.file]}, row {document.row + 1}", corpus.seq_len, encoder)
        for document in clean(text.train, corpus.max_document_chars, render)
    ]
    if len(read) < 2:
        raise InputError(
            f"corpus.files: {text.name} holds {len(read)} prompts, must hold at least 2, for held-out text and for the "
            f"rest. {UNWRITTEN}"
        )
    order = Stream(corpus.seed, "corpus/prompts").permutation(len(read), 0).tolist()
    share = corpus.heldout_tokens / (corpus.heldout_tokens + corpus.train_tokens)
    n_heldout = min(max(1, round(len(read) * share)), len(read) - 1)
    shuffled = tuple(read[index] for index in order)
    return {"heldout": shuffled[:n_heldout], "train": shuffled[n_heldout:]}


def _first_token(encoder: Encoder) -> Prompt:
    """What begins a text without a prompt; in a document only where the tokenizer adds it to every text."""
    if added := encoder.added[0]:
        return Prompt(added)
    tokenizer = encoder.tokenizer
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if first is None:
        raise InputError(
            f"{tokenizer.name_or_path}: the tokenizer has no token that begins or ends a text, so corpus.kind sampled "
            f"needs prompts (corpus.files). {UNWRITTEN}"
        )
    return Prompt([first], unrecorded=1)


def _prompt(document: Document, where: str, seq_len: int, encoder: Encoder) -> Prompt:
    if document.skipped:
        raise InputError(f"{where}: is no prompt ({document.skipped}). {UNWRITTEN}")
    ids = encoder.documents([document.text], rendered=True)[0] if document.is_chat else encoder(document.text)
    if not 0 < len(ids) < seq_len:
        raise InputError(
            f"{where}: has {len(ids)} tokens, must have 1 to {seq_len - 1} (corpus.seq_len - 1). {UNWRITTEN}"
        )
    return Prompt(ids, is_chat=document.is_chat, file=document.file)


def next_logits(backbone: Backbone, tokens: Tensor, past: DynamicCache | None) -> Tensor:
    """The logits after the last of `tokens` (batch, pos), which follow those in `past` and are added to it.

    By the head that is proven, (batch, d_vocab) in fp32.
    """
    last: list[Tensor] = []

    def store(_module: nn.Module, _args: object, output: object) -> None:
        resid = hidden_out(output)
        assert resid is not None  # `dissect` saw it
        last.append(resid[:, -1])

    anatomy, head = backbone.anatomy, backbone.head
    hook = anatomy.blocks[-1].register_forward_hook(store)
    try:
        anatomy.body(input_ids=tokens.to(anatomy.device), past_key_values=past, use_cache=past is not None)
    finally:
        hook.remove()
    return head.logits(head.norm(last[0].to(anatomy.device), backbone.n_layers)).cpu()


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """A token of each row of `logits` (n, d_vocab) by numbers in [0, 1), (n,)."""
    p = (logits / temperature).softmax(-1)
    if top_p < 1:
        ordered = torch.from_numpy(-np.sort(-p.numpy(), axis=-1))  # with vector instructions, unlike torch
        inside = ordered.cumsum(-1) - ordered < top_p  # the likeliest token always is
        p = p.where(p >= ordered.where(inside, torch.inf).amin(-1, keepdim=True), 0)
    # In fp64: the sums of 50,000 tokens in fp32 would round the rare ones away.
    cumulative = p.double().cumsum(-1)
    return torch.searchsorted(cumulative, uniform.unsqueeze(-1) * cumulative[:, -1:], right=True).squeeze(-1)
