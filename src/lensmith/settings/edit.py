"""A new entry in params.yaml. Every other byte of the file stays: comments, order and style are its author's."""

import textwrap
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from lensmith.files import artifacts
from lensmith.lab.catalogue import Proposal
from lensmith.process.errors import InputError
from lensmith.settings import params_yaml

WIDTH = 120


def add(path: Path, proposal: Proposal) -> str:
    """Append an entry to `models`, and return its text.

    Raises:
        InputError: the file is not valid as it is, has that key or model already, or would not be valid then.
    """
    before = params_yaml.read(path)
    for key, settings in before.items():
        if key == proposal.key:
            raise InputError(f"{path}: models.{key} exists; choose another key with --key. {params_yaml.UNCHANGED}")
        if settings.source.repo == proposal.settings["source"]["repo"]:
            raise InputError(f"{path}: models.{key} is {settings.source.repo} already. {params_yaml.UNCHANGED}")
    text = path.read_text(encoding="utf-8")
    line, indent = _end_of_models(path, text)
    entry = _entry(proposal, indent)
    lines = text.splitlines(keepends=True)
    head = "".join(lines[:line])
    new = head + ("" if head.endswith("\n") else "\n") + entry + "".join(lines[line:])
    after = params_yaml.parse(path, new)
    assert {key: after[key] for key in before} == before, "an entry was added"
    artifacts.write_text(path, new)
    return entry


def _end_of_models(path: Path, text: str) -> tuple[int, int]:
    """The line after the last one of `models`, and the column of its keys."""
    data = YAML().load(text)
    models = data["models"]
    if not isinstance(models, CommentedMap) or not models or models.fa.flow_style():
        raise InputError(f"{path}: models must hold an entry in block style. {params_yaml.UNCHANGED}")
    start = data.lc.key("models")[0]
    lines = text.splitlines()
    end = min((row for key in data if (row := data.lc.key(key)[0]) > start), default=len(lines))
    # Empty lines, and comments at the margin, belong to what follows.
    while end > start and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
        end -= 1
    return end, models.lc.key(next(iter(models)))[1]


def _entry(proposal: Proposal, indent: int) -> str:
    space = " " * indent
    comments = [line for note in proposal.notes for line in textwrap.wrap(note, WIDTH - indent - 2)]
    out = [f"{space}# {line}" for line in comments]
    out.append(f"{space}{proposal.key}:")
    for section, values in proposal.settings.items():
        if values:
            out.append(f"{space}  {section}:")
            out += [f"{space}    {name}: {_scalar(value)}" for name, value in values.items()]
    return "\n".join(out) + "\n"


def _scalar(value: Any) -> str:
    # A commit of digits alone would be read as a number, and `no` or `1e5` as another value.
    plain = isinstance(YAML(typ="safe", pure=True).load(value), str) and ": " not in value and "#" not in value
    return value if plain else artifacts.canonical_json(value)
