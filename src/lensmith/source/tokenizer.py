"""A probe of a tokenizer: the ids of texts on which versions of tokenizers have differed, as one hash.

A tokenizer's files are pinned, but not the code that reads them: a library of another version, or the slow in place of
the fast class, may give other ids for the same files. `prefetch` records the hash, and who tokenizes later checks it.
"""

import hashlib
import json
from typing import Any

from lensmith.process.errors import IntegrityError

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


def sha256(tokenizer: Any) -> str:
    """The hash of the ids of TEXTS, with the special tokens that the tokenizer adds by itself."""
    ids = [tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"] for text in TEXTS]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def check(tokenizer: Any, recorded: str, place: str) -> None:
    """IntegrityError where the tokenizer gives other ids than the one that packed the corpus at `place`."""
    if (found := sha256(tokenizer)) != recorded:
        raise IntegrityError(
            f"{place}: its text was tokenized otherwise than this tokenizer does (probe {found[:12]}, recorded was "
            f"{recorded[:12]}); the files are the same, so it is another version of a library. Run prefetch again. "
            "Nothing was measured."
        )
