"""Files of prompts, one JSON object a line: suites (a lens is judged on them) and probes (they are shown by layer).

The form of both is described in suites/README.md. Every line is checked before a model is loaded.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from lensmith.files import artifacts, names
from lensmith.files.records import explain
from lensmith.process.errors import InputError, shown
from lensmith.settings.sections import ModelParams

UNSEEN = "\u200b\u2060\ufeff"  # spaces of no width, which tokenizers read and `str.strip` leaves


def _check_text(text: str) -> str:
    if not text.strip().strip(UNSEEN):
        raise ValueError("is empty, must hold text")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(f"is {text!r}, must hold no lone surrogate: no tokenizer reads one")
    if text != text.strip().strip(UNSEEN):
        raise ValueError(f"is {shown(repr(text))}, must have no white space at its ends: a space is put between texts")
    return text


Text = Annotated[str, AfterValidator(_check_text)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Prompt(_Form):
    """A line of a suite."""

    id: Text
    domain: Text
    template: Text  # prompts made from one pattern share it, and are resampled together
    prompt: Text  # the answer follows after one space
    answer: Text
    aliases: list[Text] = []  # other right answers
    control: Text | None = None  # a wrong answer of the same kind, whose probability is recorded too
    intermediate: Text | None = None  # what leads to the answer and is said nowhere
    intermediate_aliases: list[Text] = []  # other spellings of it

    @model_validator(mode="after")
    def _check_control(self) -> "Prompt":
        if self.control in (self.answer, *self.aliases):
            raise ValueError(f"control is {self.control!r}, must be a wrong answer")
        return self

    @model_validator(mode="after")
    def _check_intermediate(self) -> "Prompt":
        if self.intermediate is None and self.intermediate_aliases:
            raise ValueError("intermediate is missing, must be given where there are intermediate_aliases")
        for name in self.intermediates:
            if name in (self.answer, *self.aliases):
                raise ValueError(f"intermediate is {name!r}, must not be the answer")
            if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", self.prompt, re.IGNORECASE):
                raise ValueError(f"intermediate is {name!r}, must not stand in the prompt")
        return self

    @property
    def intermediates(self) -> list[str]:
        """The intermediate and its aliases; empty where the prompt has none."""
        return [] if self.intermediate is None else [self.intermediate, *self.intermediate_aliases]


class Variant(_Form):
    """A prompt of a probe, as it is and without its filler words."""

    prompt: Text
    answer: Text
    no_filler: Text | None = None


class Probe(Variant):
    """A line of a probes file: a prompt, and a control prompt of the same form with another answer."""

    id: Text
    control: Variant | None = None


Line = TypeVar("Line", Prompt, Probe)


class SuiteFiles(NamedTuple):
    """Checked lines, where each stands (file:line), and the sha256 of each file."""

    lines: list[tuple[str, Prompt]]
    files: dict[str, str]


def read_suite(patterns: Sequence[str]) -> SuiteFiles:
    """Every prompt of a suite's files.

    Raises:
        InputError: the first bad line, as file:line with what is wrong; also an id that occurs twice.
    """
    paths = names.files(patterns, "suite.files")
    return SuiteFiles(list(_lines(paths, Prompt)), {path.as_posix(): artifacts.sha256_file(path) for path in paths})


def read_probes(patterns: Sequence[str]) -> list[tuple[str, Probe]]:
    """Every probe of some files, with its file:line. Raises InputError as `read_suite` does."""
    return list(_lines(names.files(patterns, "sweep.probes"), Probe))


def texts(settings: ModelParams) -> Iterator[tuple[str, str]]:
    """Every prompt of a model's suite and probes, with its file:line. Raises InputError as `read_suite` does."""
    for where, line in read_suite(settings.suite.files).lines:
        yield where, line.prompt
    for where, probe in read_probes(settings.sweep.probes):
        forms = [probe] if probe.control is None else [probe, probe.control]
        yield from ((where, text) for form in forms for text in (form.prompt, form.no_filler) if text is not None)


def _lines(paths: Sequence[Path], kind: type[Line]) -> Iterator[tuple[str, Line]]:
    seen: dict[str, str] = {}
    for path in paths:
        where = ""
        for number, data in artifacts.read_jsonl(path):
            where = f"{path.as_posix()}:{number}"
            try:
                line = kind.model_validate(data)
            except ValidationError as error:
                raise InputError(f"{where}: {explain(error)}. Nothing was measured.") from None
            if line.id in seen:
                raise InputError(f"{where}: id {line.id!r} was used at {seen[line.id]}. Nothing was measured.")
            seen[line.id] = where
            yield where, line
        if not where:
            raise InputError(f"{path.as_posix()}: holds no line, must have one prompt a line. Nothing was measured.")


def first_tokens(encode: Callable[[str], list[int]], prompt: str, texts: Sequence[str]) -> list[int]:
    """The first tokens of some texts of one meaning, each once, that of the first text first.

    Empty where the first text has none, whatever the others give: they are spellings of it.
    """
    tokens = [gold_token(encode, prompt, text) for text in texts]
    if not tokens or tokens[0] is None:
        return []
    return list(dict.fromkeys(token for token in tokens if token is not None))


def gold_token(encode: Callable[[str], list[int]], prompt: str, answer: str) -> int | None:
    """The first token of the answer when it follows the prompt; None where the tokenizer merges the two.

    The ids of "prompt answer" must begin with those of the prompt and go on; else those of "promptanswer" must. Where
    neither does, the tokenizer merged across the border and no single token means the answer.
    """
    ids = encode(prompt)
    for joined in (f"{prompt} {answer}", f"{prompt}{answer}"):
        whole = encode(joined)
        if len(whole) > len(ids) and whole[: len(ids)] == ids:
            return whole[len(ids)]
    return None
