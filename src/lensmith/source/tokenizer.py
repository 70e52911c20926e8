"""A model's tokenizer: loading it, encoding documents and prompts, and a hash of its behaviour.

A tokenizer's files are pinned, but not the code that reads them: another version of a library, or the slow instead of
the fast class, may give other ids for the same files. `prefetch` records the ids of TEXTS as one hash, and a stage that
tokenizes later compares its own.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from lensmith.files import artifacts
from lensmith.hub.pins import REPACK
from lensmith.process.errors import InputError, IntegrityError, first_line, shown
from lensmith.settings.sections import BosPolicy
from lensmith.source.configuration import max_length
from lensmith.source.corpus import TokenizerFacts

# Texts on which versions of tokenizers have differed.
TEXTS = (
    "The capital of France is Paris.",
    " leading, trailing  and   inner spaces ",
    "\ttabs\n\nlines\r\nand their ends\n",
    "1 12 123 1234 12345 3.14159 1e-3 0xFF 10,000",
    "don't we'll I'M they'RE it's",
    "snake_case camelCase kebab-case SCREAMING",
    "def f(x):\n    return x**2  # square\n",
    "<s> </s> <unk> [CLS] <|endoftext|>",
    "e\u0301 \u00e9 na\u00efve stra\u00dfe \u0130stanbul",
    "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    "\U0001f469\u200d\U0001f680 \U0001f1eb\U0001f1f7 \u2764\ufe0f",
    "\ufeffbom \u200b\u200d\u202e zero width",
    "\u00a0non-breaking\u2003em\u3000wide",
    "\x00\x07\x7f",
    "a" * 300,
    "https://example.org/a?b=c&d=%20#e user@example.org",
    "",
)

NEEDED = (
    "Needed is a tokenizer.json; or a tokenizer.model, or vocab.json and merges.txt, with a tokenizer_class in "
    "tokenizer_config.json; or those of a GGUF file. Nothing was written."
)


def load_tokenizer(path: Path, name: str, *, trusted: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Args:
        path: the model's folder.
        name: the model's, in messages.
        trusted: whether Python files of the folder may run.

    Raises:
        InputError: it is missing or broken, has no tokens, or fails on some text.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, trust_remote_code=trusted, local_files_only=True
        )
        tokenizer(list(TEXTS), verbose=False)  # one that lacks its own token for unknown words reads only some texts
    except Exception as error:  # noqa: BLE001 (the tokenizers library raises bare Exception for a broken file)
        raise InputError(f"{name}: the tokenizer cannot be read ({first_line(error)}). {NEEDED}") from None
    if len(tokenizer) == 0:
        raise InputError(f"{name}: the tokenizer has no tokens. {NEEDED}")
    tokenizer.name_or_path = name
    return tokenizer


@dataclass(frozen=True)
class Encoder:
    """Text as ids of one model: documents as its tokenizer gives them, prompts without what it adds behind a text.

    A prompt is read at its last token, which must belong to the text. A tokenizer may have more tokens than the model
    has embeddings; a text with one of those is refused.
    """

    tokenizer: PreTrainedTokenizerBase
    bos: BosPolicy  # tokenizer: with the special tokens that it adds by default; never: with none
    config: PretrainedConfig  # the model's

    def documents(self, texts: list[str], *, rendered: bool = False) -> list[list[int]]:
        """The ids of each text; texts that a chat template `rendered` hold their special tokens already.

        Raises:
            InputError: an id is beyond the model's vocabulary.
        """
        return self._encode(texts, special=self.bos == "tokenizer" and not rendered)

    def __call__(self, text: str) -> list[int]:
        """The ids of a prompt. Raises as `documents`, and InputError for half of a surrogate pair."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text holds {text[error.start]!r}, half a character, which no tokenizer reads. Nothing was read."
            ) from None
        (ids,) = self.documents([text])
        return ids[: len(ids) - len(self.added[1])]

    def prompt(self, text: str, where: str) -> list[int]:
        """The ids of the prompt at `where` (file:line).

        Raises:
            InputError: an id is beyond the model's vocabulary, or there are more ids than the model reads.
        """
        ids, limit = self(text), max_length(self.config)
        if limit is not None and len(ids) > limit:
            raise InputError(
                f"{where}: the prompt has {len(ids)} tokens, the model reads at most {limit}. Nothing was written."
            )
        return ids

    @cached_property
    def added(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer adds before a text, and behind it."""
        (ids,), (plain,) = self.documents([TEXTS[0]]), self._encode([TEXTS[0]], special=False)
        starts = (i for i in range(len(ids)) if ids[i : i + len(plain)] == plain)
        return next(((ids[:start], ids[start + len(plain) :]) for start in starts), ([], []))

    def facts(self, chat_template: str | None) -> TokenizerFacts:
        """What a manifest records; `chat_template` is the one that made text of chats, None where there were none."""
        bos = self.tokenizer.bos_token_id
        return TokenizerFacts.model_validate(
            {
                "bos_policy": self.bos,
                "adds_bos": bos is not None and self.added[0][:1] == [bos],
                "class": type(self.tokenizer).__name__,
                "vocab_size": len(self.tokenizer),
                "behaviour_sha256": behaviour_sha256(self.tokenizer),
                "chat_template_sha256": None if chat_template is None else artifacts.sha256_text(chat_template),
            }
        )

    def _encode(self, texts: list[str], *, special: bool) -> list[list[int]]:
        if not texts:
            return []
        rows: list[list[int]] = self.tokenizer(
            texts,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        n_ids = self.config.get_text_config().vocab_size
        for text, ids in zip(texts, rows, strict=True):
            if ids and max(ids) >= n_ids:
                raise InputError(
                    f"{self.tokenizer.name_or_path}: the tokenizer gives id {max(ids)}, but the model has ids below "
                    f"{n_ids} (vocab_size of config.json). The text is {shown(repr(text))}. Nothing was written."
                )
        return rows


def behaviour_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """The hash of the ids of TEXTS, with the special tokens that the tokenizer adds by default."""
    ids = [tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"] for text in TEXTS]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def check_behaviour(tokenizer: PreTrainedTokenizerBase, recorded: str, corpus: str) -> None:
    """The tokenizer gives the ids that the one gave which packed a corpus; `corpus` names it in messages.

    Raises:
        IntegrityError: it gives others.
    """
    if (sha256 := behaviour_sha256(tokenizer)) != recorded:
        raise IntegrityError(
            f"{corpus}: this tokenizer gives other ids than the one that packed the corpus (hash of its ids "
            f"{sha256[:12]}, recorded {recorded[:12]}). The files are the same, so the version of a library differs. "
            f"{REPACK} Nothing was measured."
        )
