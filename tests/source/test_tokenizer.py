"""Tokenizers as models have them: a document is what the tokenizer gives, a prompt the same without what follows it."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GPTNeoXConfig, PreTrainedTokenizerFast

from lensmith.hub import models as hub_models
from lensmith.process.errors import InputError
from lensmith.source.tokenizer import TEXTS, Encoder, load_tokenizer
from tests.support.tiny import TEXT, tiny_tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "[gMASK]", "<sop>"]
# Added tokens, special ones too, stand in texts as well.
PROMPTS = (*TEXTS, "The river", " the sea", "<s> an </s>", "[gMASK] <sop> <tool> x</s>", "é 世界 \U0001f642")
CONFIG = GPTNeoXConfig(vocab_size=2000)


def byte_level(template: str) -> Tokenizer:
    """A token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(SPECIAL + alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return with_template(tokenizer, template)


def byte_fallback(template: str) -> Tokenizer:
    """As SentencePiece: a space is put before the text, and a character that it does not know is its bytes."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *"abcdefghijklmnopqrstuvwxyzTR"]
    vocab = {piece: i for i, piece in enumerate(SPECIAL + pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    return with_template(tokenizer, template)


def with_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    if template != "$A":
        pairs = [(token, tokenizer.token_to_id(token)) for token in template.split() if token != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=pairs)
    return tokenizer


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@pytest.mark.parametrize(
    "template", ["$A", "<s> $A", "$A </s>", "<s> $A </s>", "[gMASK] <sop> $A", "<s> <s> $A </s> <sop>"]
)
def test_a_prompt_is_what_its_tokenizer_gives_without_what_follows_the_text(make, template, side):
    """Every prefix is there, whatever the tokenizer calls it, and padding by default never is."""
    backend = make(template)
    backend.enable_padding(length=50, pad_id=2, pad_token="</s>", direction=side)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="</s>", padding_side=side)
    before, behind = ([backend.token_to_id(token) for token in part.split()] for part in template.split("$A"))
    encoder = Encoder(tokenizer, "tokenizer", CONFIG)

    whole = [tokenizer(text)["input_ids"] for text in PROMPTS]

    assert encoder.added == (before, behind)
    assert encoder.documents(list(PROMPTS)) == whole
    assert [encoder(text) + behind for text in PROMPTS] == whole
    assert all(encoder(text)[: len(before)] == before for text in PROMPTS)
    plain = Encoder(tokenizer, "never", CONFIG)
    assert plain.added == ([], [])
    assert [before + plain(text) + behind for text in PROMPTS] == whole


def sentencepiece_model(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """tokenizer.model alone, as Llama was first published."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 30),
        model_writer=model,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def test_a_sentencepiece_model_without_tokenizer_json_gives_its_own_ids(tmp_path):
    """Against the library that trained it."""
    original = sentencepiece_model(tmp_path)
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    encoder = Encoder(load_tokenizer(tmp_path, "here"), "tokenizer", CONFIG)

    for text in (*TEXT, "The river", "caf\u00e9 \u4e16\u754c", "one\ttab\n"):
        assert encoder(text) == [original.bos_id(), *original.encode(text)]
    assert encoder.added == ([original.bos_id()], [original.eos_id()])


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("gpt2", {}),
        ("gpt_neox", {}),
        ("opt", None),
        ("llama", {"tokenizer_class": "GPT2Tokenizer"}),
        ("qwen2", {"tokenizer_class": "Qwen2Tokenizer"}),
    ],
)
def test_vocabulary_and_merges_without_tokenizer_json_are_enough(tmp_path, model_type, settings):
    """The files of GPT-2's day give the ids that the model's tokenizer.json gives."""
    whole = tiny_tokenizer()
    whole.backend_tokenizer.model.save(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"unk_token": "<unk>"}))
    encoder = Encoder(load_tokenizer(tmp_path, "here"), "never", CONFIG)

    assert {path.name for path in tmp_path.glob("*.*")} <= {*hub_models.SMALL}
    assert [encoder(text) for text in TEXT] == [whole(text, add_special_tokens=False)["input_ids"] for text in TEXT]


def test_a_tokenizer_that_fails_on_some_text_is_refused_when_it_is_read(tmp_path):
    """Not in the middle of a corpus: its vocabulary lacks the token that it gives for unknown words."""
    words = Tokenizer(models.WordLevel({"hello": 0}, unk_token="<unk>"))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)

    with pytest.raises(InputError, match=r"cannot be read \(WordLevel error: Missing \[UNK\] .* Nothing was written"):
        load_tokenizer(tmp_path, "here")


def test_files_that_name_no_kind_of_tokenizer_are_refused_with_what_would_do(tmp_path):
    """A vocabulary and merges do not say how text is split before they are used."""
    tiny_tokenizer().backend_tokenizer.model.save(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')

    with pytest.raises(InputError, match=r"tokenizer_class in tokenizer_config\.json.* Nothing was written\."):
        load_tokenizer(tmp_path, "here")
