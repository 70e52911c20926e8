"""Chats as text, by the chat template of a model's own tokenizer."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from lensmith.process.errors import InputError

# Some templates ask for today's date. A fixed one makes the text the same on every day.
CALENDAR = (
    '{%- macro strftime_now(format) -%}{{ format.replace("%d", "01").replace("%m", "01").replace("%B", "January")'
    '.replace("%b", "Jan").replace("%Y", "2026").replace("%y", "26") }}{%- endmacro -%}'
)
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}  # other roles have the names of chat templates


@dataclass(frozen=True)
class ChatRenderer:
    """Renders chats by the template of a tokenizer. The text holds every special token already."""

    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def template(self) -> str:
        """The tokenizer's default template.

        Raises:
            InputError: it has none.
        """
        try:
            return str(self.tokenizer.get_chat_template())
        except ValueError:
            raise InputError(
                f"{self.tokenizer.name_or_path or 'the model'}: the tokenizer has no chat template, so texts must be "
                "strings, not lists of messages. Nothing was written."
            ) from None

    def __call__(self, messages: list[dict[str, Any]], *, opens_answer: bool = False) -> str | None:
        """A chat as text; None where a message has no role and content, or the template refuses.

        Args:
            opens_answer: whether the text ends with what stands before an answer.

        Raises:
            InputError: the tokenizer has no template.
        """
        template = CALENDAR + self.template
        if not messages or any(
            type(message.get(key)) is not str for message in messages for key in ("role", "content")
        ):
            return None
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=opens_answer
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError):
            return None


def as_message(message: dict[str, Any]) -> dict[str, Any]:
    """A message as chat templates take it; ShareGPT's has the keys `from` and `value`."""
    if message.keys() & {"role", "content"} or not message.keys() >= {"from", "value"}:
        return message
    role = next((role for name, role in SHAREGPT_ROLES.items() if name == message["from"]), message["from"])
    return {"role": role, "content": message["value"]}
