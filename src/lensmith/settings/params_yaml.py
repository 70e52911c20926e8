"""params.yaml: read as DVC reads it, merged, checked, and what is said where it is wrong.

The file has two top-level keys. `defaults` holds every section with every value; `models` maps a key to the values in
which that model differs. A model's settings are `defaults` with its own entry laid over them.

DVC reads YAML 1.2 (ruamel): `1e-3` is a number and `on` is a word. PyYAML would disagree on both.
"""

import difflib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, NodeEvent, ScalarEvent

from lensmith.process.errors import InputError, shown
from lensmith.settings.sections import ModelParams, Section

MODEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
MAX_BYTES = 2**20  # thousands of models; a longer file is none that somebody wrote
MAX_DEPTH = 8
UNCHANGED = "Nothing was changed."
SECTIONS = tuple(name for name in ModelParams.model_fields if name != "key")


def read(path: Path) -> dict[str, ModelParams]:
    """Every model of a params.yaml, by key, in the file's order.

    Raises:
        InputError: the first thing that is wrong with the file, with its dotted key.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8")
    except OSError as error:
        problem = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise InputError(f"{path}: {problem}. {UNCHANGED}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8. {UNCHANGED}") from None
    return parse(path, text)


def parse(path: Path, text: str) -> dict[str, ModelParams]:
    """As `read`, of a text; `path` names it in messages."""
    if len(text.encode()) > MAX_BYTES:
        raise InputError(
            f"{path}: is longer than {MAX_BYTES} bytes, the most that a file of settings may be. {UNCHANGED}"
        )
    raw = _load(path, text)
    _known(path, raw, ("defaults", "models"), "")
    defaults = _mapping(path, raw.get("defaults"), "defaults")
    models = _mapping(path, raw.get("models"), "models")
    _known(path, defaults, SECTIONS, "defaults")
    return {key: _model(path, key, defaults, entry) for key, entry in _keyed(path, models)}


def _load(path: Path, text: str) -> Mapping[str, Any]:
    try:
        # Before anything is built: aliases of aliases take gigabytes, and tags name what is to be made.
        depth = 0
        for event in YAML(typ="safe", pure=True).parse(text):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if (problem := _forbidden(event, depth)) is not None:
                raise InputError(f"{path}: line {event.start_mark.line + 1} {problem}. {UNCHANGED}")
        return _mapping(path, YAML(typ="safe", pure=True).load(text), "")
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        problem = " ".join(str(error.problem).split())
        raise InputError(f"{path}: line {line}: {problem}. {UNCHANGED}") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply to be settings. {UNCHANGED}") from None
    except (YAMLError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        # ruamel's own checks do not reach everything: a control character, a date that is none, a tag of odd form.
        raise InputError(f"{path}: not YAML that can be read ({shown(error)}). {UNCHANGED}") from None


def _forbidden(event: Event, depth: int) -> str | None:
    """What YAML knows and a file of settings may not have, in words; None where the event is plain."""
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


def _mapping(path: Path, value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{path}: {where or 'the file'} is {_shown(value)}, must be a mapping. {UNCHANGED}")
    return value


def _shown(value: object) -> str:
    """A value in a message: one line has no room for a whole list of models."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _known(path: Path, found: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    for key in found:
        if key not in allowed:
            dotted = f"{where}.{key}" if where else str(key)
            raise InputError(f"{path}: {dotted} is not a setting{_suggest(str(key), allowed)} {UNCHANGED}")


def _suggest(word: str, allowed: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; allowed: {', '.join(allowed)}."


def _keyed(path: Path, models: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, entry in models.items():
        if not isinstance(key, str) or not MODEL_KEY.fullmatch(key):
            raise InputError(
                f"{path}: models.{_shown(key).strip(chr(39))} is not a model key, must match {MODEL_KEY.pattern} "
                f"(the Hub id belongs in source.repo). {UNCHANGED}"
            )
        yield key, _mapping(path, entry, f"models.{key}")


def _model(path: Path, key: str, defaults: Mapping[str, Any], entry: Mapping[str, Any]) -> ModelParams:
    _known(path, entry, SECTIONS, f"models.{key}")
    merged: dict[str, Any] = {"key": key}
    for section in SECTIONS:
        base = _mapping(path, defaults.get(section), f"defaults.{section}")
        own = _mapping(path, entry.get(section, {}), f"models.{key}.{section}")
        _known(path, base, _settings(section), f"defaults.{section}")
        _known(path, own, _settings(section), f"models.{key}.{section}")
        merged[section] = {**base, **own}
    try:
        return ModelParams.model_validate(merged)
    except ValidationError as error:
        raise InputError(_explain(path, key, entry, error)) from None


def _settings(section: str) -> tuple[str, ...]:
    kind = ModelParams.model_fields[section].annotation
    assert isinstance(kind, type) and issubclass(kind, Section)
    return tuple(name for name in kind.model_fields if name != "inputs")


def _explain(path: Path, key: str, entry: Mapping[str, Any], error: ValidationError) -> str:
    first, more = error.errors()[0], error.error_count() - 1
    location = [str(part) for part in first["loc"]]
    own = len(location) > 1 and location[1] in entry.get(location[0], {})
    parts = [f"models.{key}" if own or len(location) < 2 else "defaults", *location]
    dotted = ".".join(parts)
    rule = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        text = f"{dotted} is missing"
    elif first["type"] == "value_error" and isinstance(first["input"], Mapping):
        text = f"{dotted}: {rule}"
    else:
        text = f"{dotted} is {_shown(first['input'])}, {rule.replace('Input should be', 'must be')}"
    return f"{path}: {text}. {UNCHANGED}" + (f" ({more} more)" if more else "")
