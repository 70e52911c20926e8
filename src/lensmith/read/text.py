"""One text as a reader gives it, as the ids that a model reads: a string, ids, or a chat."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lensmith.process.errors import InputError
from lensmith.source.backbone import Backbone
from lensmith.source.chats import ChatRenderer
from lensmith.source.tokenizer import Encoder

NOTHING = "Nothing was read."


@dataclass(frozen=True)
class Text:
    """The ids of one text; of a chat, the role of the message that each token belongs to, "" in the template."""

    ids: tuple[int, ...]
    roles: tuple[str, ...] | None
    special: frozenset[int]  # ids of special tokens

    @classmethod
    def of(cls, text: object, backbone: Backbone) -> Self:
        """Raises InputError where `text` is empty, none of the three, or not readable without a tokenizer."""
        tokenizer = backbone.tokenizer
        special = frozenset(() if tokenizer is None else tokenizer.all_special_ids)
        if isinstance(text, Tensor) and not text.is_floating_point() and text.dim() == 1:
            text = text.tolist()
        if not isinstance(text, str | list | tuple) or not text:
            kind = "empty" if isinstance(text, str | list | tuple) else f"a {type(text).__name__}"
            raise InputError(
                f"trajectory: the text is {kind}, must be one text, the ids of one, or a list of messages. {NOTHING}"
            )
        if isinstance(text, list | tuple) and all(type(token) is int for token in text):
            return cls(tuple(text), None, special)
        if tokenizer is None:
            raise InputError(f"trajectory: bind was given no tokenizer, so the text must be ids. {NOTHING}")
        if isinstance(text, str):
            return cls(tuple(Encoder(tokenizer, "tokenizer", backbone.model.config)(text)), None, special)
        if all(isinstance(message, dict) for message in text):
            return cls.of_chat(list(text), tokenizer)
        raise InputError(
            f"trajectory: the text is a list of {type(text[0]).__name__}, must be ids or messages. Call it once for "
            f"each text. {NOTHING}"
        )

    @classmethod
    def of_chat(cls, messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Self:
        """A chat by the tokenizer's own template. InputError where the template or the tokenizer cannot."""
        rendered = ChatRenderer(tokenizer)(messages, opens_answer=messages[-1].get("role") != "assistant")
        if rendered is None:
            raise InputError(
                "trajectory: the chat template does not take these messages; each must be a dict with the strings role "
                f"and content. {NOTHING}"
            )
        if not tokenizer.is_fast:
            raise InputError(
                f"trajectory: {type(tokenizer).__name__} does not say which token is which part of a text, so messages "
                f"must be given as ids. {NOTHING}"
            )
        encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        owners, end = [""] * len(rendered), 0
        for message in messages:
            content = message["content"].strip()  # templates strip it too
            if (start := rendered.find(content, end)) >= 0:
                end = start + len(content)
                owners[start:end] = [message["role"]] * len(content)
        # A token that begins with the space before a message belongs to the message.
        roles = tuple(owners[stop - 1] if stop > start else "" for start, stop in encoded["offset_mapping"])
        return cls(tuple(encoded["input_ids"]), roles, frozenset(tokenizer.all_special_ids))

    def positions(self, wanted: slice | Iterable[int] | None, *, skip_special: bool) -> list[int]:
        """Those that are wanted, ascending, negative ones counted from the end.

        Raises:
            InputError: one does not exist, or none is left.
        """
        n = len(self.ids)
        at = range(n)[wanted] if isinstance(wanted, slice) else range(n) if wanted is None else list(wanted)
        if outside := [position for position in at if not -n <= position < n]:
            raise InputError(f"trajectory: position {outside[0]} does not exist, the text has {n} tokens. {NOTHING}")
        left = sorted({position % n for position in at})
        if skip_special:
            left = [position for position in left if self.ids[position] not in self.special]
        if not left:
            raise InputError(f"trajectory: no position is left of {n} tokens. {NOTHING}")
        return left


def word(backbone: Backbone, token: int) -> str:
    """A token as text; its number where there is no tokenizer."""
    return f"#{token}" if backbone.tokenizer is None else str(backbone.tokenizer.decode([token]))
