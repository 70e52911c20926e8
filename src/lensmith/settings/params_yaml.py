"""params.yaml: read it as DVC does, merge, validate, explain errors, add a model.

The file has two top-level keys. `defaults` holds every section with every value, or names another lab's file that does;
`models` maps a key to the values in which that model differs. A model's settings are `defaults` with its own entry laid
over them.

DVC reads YAML 1.2 (ruamel): `1e-3` is a number and `on` is a word. PyYAML would disagree on both.
"""

import difflib
import re
import textwrap
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, NodeEvent, ScalarEvent

from lensmith.files import artifacts
from lensmith.process.errors import InputError, shown
from lensmith.settings.sections import ModelParams, Section

MODEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
MAX_BYTES = 2**20  # thousands of models; nobody writes a longer file by hand
MAX_DEPTH = 8
WIDTH = 120  # columns of a comment that `add` writes
UNCHANGED = "Nothing was changed."
SECTIONS = tuple(name for name in ModelParams.model_fields if name != "key")


class _SettingsError(Exception):
    """What is wrong with a file of settings, as a sentence; `_named` puts the file's name before it."""


def read(path: Path) -> dict[str, ModelParams]:
    """Every model of a params.yaml, by key, in the file's order.

    Raises:
        InputError: the first mistake in the file, with its dotted key.
    """
    return parse(path, _text(path))


def parse(path: Path, text: str) -> dict[str, ModelParams]:
    """As `read`, of a text; `path` names it in messages, and its folder is where another file of defaults is found."""
    with _named(path):
        data = _load(text)
        _refuse_unknown(data, ("defaults", "models"), "")
        defaults = data.get("defaults")
        if isinstance(defaults, str):
            with _named(path.parent / defaults) as other:
                defaults = _load(_text(other)).get("defaults")
        defaults = _mapping(defaults, "defaults")
        _refuse_unknown(defaults, SECTIONS, "defaults.")
        entries = _mapping(data.get("models"), "models")
        models = {key: _merged(key, defaults, entry) for key, entry in entries.items()}
        check_order(models)
        return models


@contextmanager
def _named(path: Path) -> Iterator[Path]:
    """Around what is read of a file: errors become InputError, with its name."""
    try:
        yield path
    except _SettingsError as error:
        raise InputError(f"{path}: {error}") from None


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1).decode("utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). {UNCHANGED}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8. {UNCHANGED}") from None


def _load(text: str) -> Mapping[str, Any]:
    """The file as plain data: nothing is built before every YAML event of it is known to be plain."""
    if len(text.encode()) > MAX_BYTES:
        raise _SettingsError(f"is longer than {MAX_BYTES} bytes, the limit of a file of settings. {UNCHANGED}")
    try:
        depth = 0
        for event in YAML(typ="safe", pure=True).parse(text):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if (problem := _problem(event, depth)) is not None:
                raise _SettingsError(f"line {event.start_mark.line + 1} {problem}. {UNCHANGED}")
        return _mapping(YAML(typ="safe", pure=True).load(text), "the file")
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise _SettingsError(f"line {line}: {' '.join(str(error.problem).split())}. {UNCHANGED}") from None
    except RecursionError:
        raise _SettingsError(f"nested too deeply to be settings. {UNCHANGED}") from None
    except (YAMLError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        # ruamel does not check everything: a control character, an impossible date, a malformed tag.
        raise _SettingsError(f"not YAML that can be read ({shown(error)}). {UNCHANGED}") from None


def _problem(event: Event, depth: int) -> str | None:
    """Why a file of settings may not hold this YAML event; None where it may.

    Aliases of aliases take gigabytes, and a tag names an object to build.
    """
    if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor):
        return "uses a YAML anchor or alias, which `dvc exp run -S` breaks silently; write the value out"
    if isinstance(event, NodeEvent) and (tag := getattr(event, "tag", None)) is not None:
        return f"uses the YAML tag {tag}; every value is plain"
    if depth > MAX_DEPTH:
        return f"nests deeper than {MAX_DEPTH} levels"
    if isinstance(event, ScalarEvent):
        hidden = next((c for c in event.value if unicodedata.category(c) in {"Cc", "Cf", "Cs"}), None)
        if hidden is not None:
            return f"holds the invisible character U+{ord(hidden):04X} in a name or value"
    return None


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _SettingsError(f"{where} is {shown(repr(value))}, must be a mapping. {UNCHANGED}")
    return value


def _refuse_unknown(data: Mapping[str, Any], allowed: tuple[str, ...], prefix: str) -> None:
    for key in data:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(allowed)}."
            raise _SettingsError(f"{prefix}{key} is not a setting; {hint} {UNCHANGED}")


def _merged(key: object, defaults: Mapping[str, Any], entry: object) -> ModelParams:
    """One model's settings: `defaults` with its entry laid over them, value by value."""
    if not isinstance(key, str) or not MODEL_KEY.fullmatch(key):
        raise _SettingsError(
            f"models.{shown(key)} is not a model key, must match {MODEL_KEY.pattern} (the Hub id belongs in "
            f"source.repo). {UNCHANGED}"
        )
    entry = _mapping(entry, f"models.{key}")
    _refuse_unknown(entry, SECTIONS, f"models.{key}.")
    merged: dict[str, Any] = {"key": key}
    for section in SECTIONS:
        kind = ModelParams.model_fields[section].annotation
        assert isinstance(kind, type) and issubclass(kind, Section)
        allowed = tuple(field.alias or name for name, field in kind.model_fields.items() if name != "inputs")
        merged[section] = {}
        for where, data in (("defaults", defaults.get(section)), (f"models.{key}", entry.get(section, {}))):
            values = _mapping(data, f"{where}.{section}")
            _refuse_unknown(values, allowed, f"{where}.{section}.")
            merged[section] |= values
    try:
        return ModelParams.model_validate(merged)
    except ValidationError as error:
        raise _SettingsError(explanation(key, entry, error)) from None


def check_order(models: Mapping[str, ModelParams]) -> None:
    """Each model must stand below the entry whose lens it takes: DVC fits entries in the file's order."""
    above: list[str] = []
    for key, settings in models.items():
        entry = settings.transferred.entry
        if entry is not None and entry not in above:
            raise _SettingsError(
                f"models.{key}.transferred.from is {shown(entry)}, must be an entry above it whose fit.kind is not "
                f"transferred; there is {', '.join(above) or 'none'}. {UNCHANGED}"
            )
        if entry is None:
            above.append(key)


def explanation(key: str, entry: Mapping[str, Any], error: ValidationError) -> str:
    """The first mistake by the dotted key where its author must look: in the model's entry, or in the defaults."""
    first, more = error.errors()[0], error.error_count() - 1
    location = [str(part) for part in first["loc"]]
    is_own = len(location) < 2 or location[1] in entry.get(location[0], {})
    dotted = ".".join([f"models.{key}" if is_own else "defaults", *location])
    rule = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        text = f"{dotted} is missing"
    elif first["type"] == "value_error" and isinstance(first["input"], Mapping):
        text = f"{dotted}: {rule}"
    else:
        text = f"{dotted} is {shown(repr(first['input']))}, {rule.replace('Input should be', 'must be')}"
    return f"{text}. {UNCHANGED}" + (f" ({more} more)" if more else "")


@dataclass(frozen=True)
class Proposal:
    """A model to add to params.yaml, and what its author should know."""

    key: str
    settings: dict[str, Any]  # section: setting: value
    notes: tuple[str, ...]  # comments above the entry

    def to_yaml(self, indent: str) -> str:
        """The entry in block style, its notes as comments above it."""
        lines = [f"# {line}" for note in self.notes for line in textwrap.wrap(note, WIDTH - len(indent) - 2)]
        lines.append(f"{self.key}:")
        for section, values in self.settings.items():
            if values:
                lines.append(f"  {section}:")
            for name, value in values.items():
                # A commit of digits alone would be read as a number, and `no` or `1e5` as another value.
                is_plain = isinstance(YAML(typ="safe", pure=True).load(value), str) and not re.search(r": |#", value)
                lines.append(f"    {name}: {value if is_plain else artifacts.canonical_json(value)}")
        return "".join(f"{indent}{line}\n" for line in lines)


def add(path: Path, proposal: Proposal) -> str:
    """Append an entry to `models`, and return its text. Every other byte of the file stays.

    Raises:
        InputError: the file is invalid, has that key or model already, or would become invalid.
    """
    before = read(path)
    source = proposal.settings["source"]
    for key, settings in before.items():
        if key == proposal.key:
            raise InputError(f"{path}: models.{key} exists; choose another key with --key. {UNCHANGED}")
        if all(getattr(settings.source, name) == source.get(name) for name in ("repo", "file", "path")):
            raise InputError(
                f"{path}: models.{key} is {settings.source.repo or settings.source.path} already. {UNCHANGED}"
            )
    text = path.read_bytes().decode("utf-8")  # read_text would turn every line end into \n
    lines = text.splitlines(keepends=True)
    line_end = lines[0][len(lines[0].rstrip("\r\n")) :]
    line, indent = _end_of_models(path, text)
    entry = proposal.to_yaml(" " * indent).replace("\n", line_end)
    head = "".join(lines[:line])
    new = head + ("" if head.endswith(line_end) else line_end) + entry + "".join(lines[line:])
    after = parse(path, new)
    assert {key: after[key] for key in before} == before, "an entry was added"
    artifacts.write_text(path, new)
    return entry


def _end_of_models(path: Path, text: str) -> tuple[int, int]:
    """The line after the last one of `models`, and the column of its keys."""
    data = YAML().load(text)
    models = data["models"]
    if not isinstance(models, CommentedMap) or not models or models.fa.flow_style():
        raise InputError(f"{path}: models must hold an entry in block style. {UNCHANGED}")
    start = data.lc.key("models")[0]
    lines = text.splitlines()
    end = min((line for key in data if (line := data.lc.key(key)[0]) > start), default=len(lines))
    # Empty lines, and comments at the margin, belong to what follows.
    while end > start and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
        end -= 1
    return end, models.lc.key(next(iter(models)))[1]
