"""INDEX.json of a release: which lenses it holds, where, and the sha256 of every file.

A release is a folder, here or on the Hub. Whoever made it, nothing in its index may lead out of that folder.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from lensmith.edge import artifacts
from lensmith.errors import InputError, IntegrityError

INDEX = "INDEX.json"
MODEL_ID = re.compile(r"[A-Za-z0-9_-][\w.-]*/[A-Za-z0-9_-][\w.-]*", re.ASCII)
FILE = re.compile(r"[A-Za-z0-9_-][\w.-]*", re.ASCII)
LICENCE = re.compile(r"LICENSES(/[A-Za-z0-9_-][\w.+-]*)+", re.ASCII)


class Entry(BaseModel):
    """What an index says about one lens. Other keys are for people."""

    model_config = ConfigDict(extra="allow", frozen=True)

    path: str  # of the lens's folder
    sha256: dict[str, str]  # by file name in that folder
    licenses: dict[str, str] = {}  # sha256 of its licence texts, by path
    tl_version: str | None = None  # the tag it was released under; None in a folder that was not sent anywhere

    @model_validator(mode="after")
    def _inside(self) -> "Entry":
        folder, _, model_id = self.path.partition("/")
        names = all(FILE.fullmatch(name) for name in self.sha256)
        if folder != "tuned_lenses" or not MODEL_ID.fullmatch(model_id) or not names:
            raise ValueError("path must be tuned_lenses/org/name and sha256 must name plain files")
        if not all(LICENCE.fullmatch(path) for path in self.licenses):
            raise ValueError("licenses must be files below LICENSES")
        return self

    def files(self) -> Iterator[tuple[str, str]]:
        """(path in the release, sha256) of every file of this lens."""
        yield from ((f"{self.path}/{name}", digest) for name, digest in sorted(self.sha256.items()))
        yield from sorted(self.licenses.items())


def read(folder: Path) -> dict[str, Entry]:
    """The index of a release by model id.

    Raises:
        InputError: the folder holds no INDEX.json.
        IntegrityError: it cannot be read, or names files outside the release.
    """
    path = folder / INDEX
    if not path.is_file():
        raise InputError(f"{folder}: no {INDEX}, so this is no release of lenses")
    return parse(artifacts.read_json(path), str(path))


def parse(data: object, where: str) -> dict[str, Entry]:
    """An index from its JSON data; `where` names it in messages."""
    if not isinstance(data, dict):
        raise IntegrityError(f"{where}: is no JSON object")
    try:
        return {str(model_id): Entry.model_validate(entry) for model_id, entry in data.items()}
    except ValidationError as error:
        first = error.errors()[0]
        raise IntegrityError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None


def pick(index: Mapping[str, Entry], model: str | None, place: str) -> str:
    """The id of the lens that is meant: the one asked for, or the only one.

    Raises:
        InputError: there is no such lens, or several and no choice; the message says what there is.
    """
    if model is None and len(index) == 1:
        return next(iter(index))
    if model is not None and model in index:
        return model
    there = ", ".join(sorted(index)) or "nothing"
    problem = "say which model's lens" if model is None else f"no lens for {model}"
    raise InputError(f"{place}: {problem}; there is {there}. `lensmith add` and `dvc repro` fit one for another model.")


def wrong_file(folder: Path, entry: Entry) -> tuple[str, str] | None:
    """(path, what is wrong) of the first file that is not the one of the index; None where all are."""
    for path, recorded in entry.files():
        if not (folder / path).is_file():
            return path, f"is missing, {INDEX} lists it"
        if (found := artifacts.sha256_file(folder / path)) != recorded:
            return path, f"has sha256 {found}, {INDEX} records {recorded}"
    return None


def check(folder: Path, entry: Entry) -> None:
    """IntegrityError for the first file of a lens that is not the one of the index."""
    if wrong := wrong_file(folder, entry):
        raise IntegrityError(f"{folder / wrong[0]}: {wrong[1]}. Nothing was read from it.")
