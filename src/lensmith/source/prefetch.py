"""Stage `prefetch`: text as packed token ids, and a manifest of their origin.

Documents are packed by `packing`. Those of kind `sampled` the model itself writes, see `sampling`, and their ids are
packed as it wrote them. The same settings and pins give the same bytes, of kind `sampled` on the same kind of machine.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lensmith.files import artifacts
from lensmith.hub import models, published
from lensmith.hub.pins import LensPin, ModelPin
from lensmith.settings.sections import CorpusParams, ModelParams
from lensmith.source import configuration, documents, gguf_model, packing
from lensmith.source.chats import ChatRenderer
from lensmith.source.corpus import (
    HELDOUT,
    MANIFEST,
    TOKENS,
    Manifest,
    OtherText,
    Sampled,
    TokenizerFacts,
    other_heldout,
    sha256_tokens,
)
from lensmith.source.documents import SourceText
from lensmith.source.packing import Packed
from lensmith.source.tokenizer import Encoder, load_tokenizer

Pins = dict[str, ModelPin | LensPin | None]


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
    folder = gguf_model.plain_folder(models.fetch_tokenizer(pin), pin.place)
    trusted = settings.source.trust_remote_code
    config = configuration.read_config(folder, pin.place, trusted=trusted)
    configuration.check_sizes(config, pin.place, settings)
    tokenizer = load_tokenizer(folder, pin.place, trusted=trusted)
    encoder = Encoder(tokenizer, corpus.bos, config)
    for where, prompt in prompts:
        encoder.prompt(prompt, where)
    text, render = documents.open_text(corpus), ChatRenderer(tokenizer)
    others = {
        name: SourceText.from_files(corpus, files, f"corpus.also_heldout.{name}")
        for name, files in corpus.also_heldout.items()
    }
    heldout, train = _sides(settings, pin, text, encoder, render)
    other_sides = {name: packing.pack_other(other, corpus, encoder, render, train) for name, other in others.items()}
    has_chats = any(packed.chats for packed in (heldout, train, *other_sides.values()))
    facts = encoder.facts(render.template if has_chats else None)
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


def _sides(
    settings: ModelParams, pin: ModelPin, text: SourceText, encoder: Encoder, render: ChatRenderer
) -> tuple[Packed, Packed]:
    """The held-out and the training side. The weights are downloaded too: stages that read them have no network."""
    if settings.corpus.kind == "sampled":
        from lensmith.source import sampling  # imports what runs a model; text alone is packed without it

        models.fetch_model(pin)
        return sampling.sides(settings, pin, text, encoder)
    heldout = packing.pack_side(text, settings.corpus, encoder, render)
    train = packing.pack_side(text, settings.corpus, encoder, render, heldout)
    models.fetch_model(pin)  # too little text was an error before gigabytes came
    return heldout, train


def _tokens_per_byte(ids: NDArray[np.uint32], tokenizer: PreTrainedTokenizerBase) -> float:
    """Tokens, special ones included, over the bytes of their text in UTF-8."""
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return len(ids) / max(1, len(str(text).encode()))


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
    identity |= {key: getattr(corpus, key) for key in ("text_column", "sample_by", "max_document_chars")}
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
            "skipped": packing.without_other_side(sum((side.skipped for side in counted), Counter[str]())),
            "cut_documents": sum(side.cut for side in packed.values()),
            "content_hash": artifacts.sha256_text(artifacts.canonical_json(identity)),
            "tokens_sha256": sha256_tokens(packed["train"].ids),
            "heldout_sha256": sha256_tokens(packed["heldout"].ids),
        }
    )
