"""INDEX.json of a release: which lenses it holds, where, and the sha256 of every file.

A release is a folder, local or on the Hub. Others may have made it, so its index may not lead out of that folder, and
its files may not be larger than those of any lens.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lensmith.files import artifacts, untrusted
from lensmith.files.records import explain
from lensmith.process.errors import InputError, IntegrityError, shown

INDEX = "INDEX.json"
LENSES = "tuned_lenses"  # the folder of all lenses of a release, of any kind
PROVENANCE = "provenance.json"
READ = {"weights.safetensors", PROVENANCE}  # files of a lens that are read; an index must list their sha256
MODEL_ID = re.compile(r"[A-Za-z0-9_-][\w.-]*/[A-Za-z0-9_-][\w.-]*", re.ASCII)
FILE = re.compile(r"[A-Za-z0-9_-][\w.-]*", re.ASCII)
LICENCE = re.compile(r"LICENSES(/[A-Za-z0-9_-][\w.+-]*)+", re.ASCII)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class IndexEntry(BaseModel):
    """What an index says about one lens. Readers ignore other keys."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    path: str  # of the lens's folder
    sha256: dict[str, Sha256]  # by file name in that folder
    licenses: dict[str, Sha256] = {}  # of its licence texts, by path
    tl_version: str | None = None  # the tag it was released under; None in a folder that was not sent anywhere
    kind: str | None = None
    rank: int | None = None
    kpis: dict[str, list[float | None] | float | None] = {}
    verdicts: dict[str, str] = {}  # by gate_A, …
    preferred: str | None = None

    @model_validator(mode="after")
    def _check_paths(self) -> "IndexEntry":
        folder, _, model_id = self.path.partition("/")
        names = all(FILE.fullmatch(name) for name in self.sha256)
        if folder != LENSES or not MODEL_ID.fullmatch(model_id) or not names:
            raise ValueError(f"path must be {LENSES}/org/name and sha256 must name plain files")
        if not self.sha256.keys() >= READ:
            raise ValueError(f"sha256 must have {' and '.join(sorted(READ))}")
        if not all(LICENCE.fullmatch(path) for path in self.licenses):
            raise ValueError("licenses must be files below LICENSES")
        return self

    def files(self) -> Iterator[tuple[str, str]]:
        """(path in the release, sha256) of every file of this lens."""
        yield from ((f"{self.path}/{name}", digest) for name, digest in sorted(self.sha256.items()))
        yield from sorted(self.licenses.items())


def read(folder: Path) -> dict[str, IndexEntry]:
    """The index of a release by model id.

    Raises:
        InputError: the folder holds no INDEX.json.
        IntegrityError: it cannot be read, or names files outside the release.
    """
    path = folder / INDEX
    if not path.is_file():
        raise InputError(f"{folder}: no {INDEX}, so this is no release of lenses")
    return parse(untrusted.read_json(path), str(path))


def parse(data: object, where: str) -> dict[str, IndexEntry]:
    """An index from its JSON data; `where` names it in messages."""
    if not isinstance(data, dict):
        raise IntegrityError(f"{where}: is no JSON object")
    try:
        index = {model_id: IndexEntry.model_validate(entry) for model_id, entry in data.items()}
    except ValidationError as error:
        raise IntegrityError(f"{where}: {explain(error)}") from None
    # Each lens has one path, or an entry could list the files of another.
    for model_id, entry in index.items():
        if entry.path != f"{LENSES}/{model_id}":
            raise IntegrityError(f"{where}: the lens of {shown(model_id)} is at {entry.path}")
    return index


def pick(index: Mapping[str, IndexEntry], model: str | None, place: str) -> str:
    """The id of the lens that is meant: the one asked for, or the only one.

    Raises:
        InputError: there is no such lens, or several and no choice; the message says what there is.
    """
    if model is None and len(index) == 1:
        return next(iter(index))
    if model is not None and model in index:
        return model
    available = ", ".join(sorted(index)) or "nothing"
    problem = "say which model's lens" if model is None else f"no lens for {model}"
    raise InputError(
        f"{place}: {problem}; there is {available}. `lensmith add` and `dvc repro` fit one for another model."
    )


def wrong_file(folder: Path, entry: IndexEntry) -> tuple[str, str] | None:
    """(path, what is wrong) of the first file that is not the one of the index; None where all are."""
    for path, recorded in entry.files():
        if not (folder / path).is_file():
            return path, f"is missing, {INDEX} lists it"
        if (size := (folder / path).stat().st_size) > (limit := untrusted.size_limit(path)):
            return path, f"has {size:,} bytes, at most {limit:,} are read"
        if (actual := artifacts.sha256_file(folder / path)) != recorded:
            return path, f"has sha256 {actual}, {INDEX} records {recorded}"
    return None


def refuse_links(folder: Path, entry: IndexEntry) -> None:
    """InputError where a file of a lens is not, or would not come to be, in the folder: a link leads out of it."""
    root = folder.resolve()
    # In the Hub's cache a snapshot is a folder of links to the repository's blobs.
    blobs = root.parents[1] / "blobs" if root.parent.name == "snapshots" else root
    for path, _ in entry.files():
        real = (folder / path).resolve()
        if not real.is_relative_to(root) and not real.is_relative_to(blobs):
            raise InputError(f"{folder / path}: a link leads out of {folder}. Nothing was read or written there.")


def check(folder: Path, entry: IndexEntry) -> None:
    """As `refuse_links`; and IntegrityError for the first file of a lens that is not the one of the index."""
    refuse_links(folder, entry)
    if wrong := wrong_file(folder, entry):
        raise IntegrityError(f"{folder / wrong[0]}: {wrong[1]}. Nothing was read from it.")
