"""Pins: the bytes that a name stood for, and the folder of this machine that holds them. Nothing here uses the network.

A branch or tag can move, so nothing after `prefetch` knows one. A pin says which model or lens was meant: the commit,
and the sha256 of every file that is read. `models` and `published` make pins and download what they name.
"""

import glob
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from lensmith.files.artifacts import sha256_file
from lensmith.files.names import GGUF
from lensmith.process.errors import InputError, IntegrityError, RemoteError, first_line

RepoType = Literal["model", "dataset", "space"]

PLAIN = re.compile(r"[A-Za-z0-9_-][\w.+-]*", re.ASCII)  # the name of a file, which leads to no other folder
LENS_CONFIG, LENS_PARAMS = "config.json", "params.pt"  # the files of a lens of the package tuned-lens
LENS_MAPS = "lens.pt"  # the file of a Jacobian lens
REPACK = "Run prefetch again: `dvc repro --force --single-item prefetch@MODEL`, since DVC may see nothing new."
FETCH = "Stages after prefetch have no network: `lensmith fetch` downloads what they need."


class ModelPin(BaseModel):
    """One model, byte for byte: a commit of a Hub repository, or a folder; and the sha256 of each file that is read.

    The only file of a GGUF model is its GGUF file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    repo: str | None
    path: str | None
    commit: str | None  # 40 hex digits; None for a folder
    files: dict[str, str]  # file name: sha256

    @model_validator(mode="after")
    def _check(self) -> "ModelPin":
        if (self.repo is None) == (self.path is None) or (self.repo is None) != (self.commit is None):
            raise ValueError("needs either repo and commit, or path")
        if self.commit is not None and not re.fullmatch(r"[0-9a-f]{40}", self.commit):
            raise ValueError(f"commit is {self.commit!r}, must be 40 hex digits")
        if wrong := next((name for name in self.files if not PLAIN.fullmatch(name)), None):
            raise ValueError(f"files has {wrong!r}, must be names of files without a folder")
        return self

    @property
    def place(self) -> str:
        """The model's name in messages."""
        name = str(self.path) if self.repo is None else f"{self.repo}@{self.commit}"
        return name if self.gguf is None else f"{name}/{self.gguf}"

    @property
    def gguf(self) -> str | None:
        """The name of the GGUF file; None for a model in safetensors."""
        return next((name for name in self.files if name.endswith(GGUF)), None)


class LensPin(BaseModel):
    """A lens that others published, byte for byte: a folder at a commit of a Hub repository, or a local folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repo: str | None
    repo_type: RepoType
    commit: str | None  # 40 hex digits; None for a local folder
    folder: str
    files: dict[str, str]  # file name: sha256

    @property
    def place(self) -> str:
        """The lens's name in messages."""
        return self.folder if self.repo is None else f"{self.repo_type} {self.repo}@{self.commit}/{self.folder}"


def model_path(pin: ModelPin, names: Collection[str] | None = None) -> Path:
    """The folder of a pinned model, or its GGUF file; files (those of `names`, else all) have the recorded sha256.

    Raises:
        IntegrityError: a file is missing, or is not the pinned one. A wrong file of the cache is removed.
        RemoteError: the cache has no file of this commit.
    """
    files = {name: pin.files[name] for name in (pin.files if names is None else names)}
    folder = Path(str(pin.path)) if pin.repo is None else _cached(pin.repo, "model", pin.commit, files, pin.place)
    check(folder, files, pin.place, is_cached=pin.repo is not None)
    return folder if pin.gguf is None else folder / pin.gguf


def lens_folder(pin: LensPin) -> Path:
    """The folder of a pinned lens, whose files have the sha256 that was recorded. Raises as `model_path`."""
    paths = [f"{pin.folder}/{name}" for name in pin.files]
    root = Path() if pin.repo is None else _cached(pin.repo, pin.repo_type, pin.commit, paths, pin.place)
    folder = root / pin.folder
    check(folder, pin.files, f"imported lens {pin.place}", is_cached=pin.repo is not None)
    return folder


def _cached(repo: str, repo_type: RepoType, commit: str | None, paths: Iterable[str], where: str) -> Path:
    """The folder of a repository at a commit in the Hub's cache, where it holds these files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        patterns = [glob.escape(path) for path in paths]
        folder = snapshot_download(
            repo, repo_type=repo_type, revision=commit, allow_patterns=patterns, local_files_only=True
        )
    except LocalEntryNotFoundError:
        raise RemoteError(f"{where}: not, or not wholly, in the local cache. {FETCH} Nothing was changed.") from None
    except HFValidationError as error:
        raise InputError(f"{where}: {first_line(error)}. Nothing was changed.") from None
    return Path(folder)


def check(folder: Path, files: dict[str, str], where: str, *, is_cached: bool) -> None:
    """Compare files with their sha256; `where` names them in messages, `is_cached` says that the Hub has them too.

    Raises:
        IntegrityError: a file is missing or differs. A wrong file of the cache is removed.
    """
    for name, recorded in files.items():
        if not (folder / name).is_file():
            remedy = f". {FETCH}" if is_cached else ""
            raise IntegrityError(f"{where}: {name} is missing, but was there when prefetch recorded it{remedy}")
        actual = sha256_file(folder / name)
        if actual == recorded:
            continue
        remedy = f"It changed after prefetch. Put the old one back, or take the one that is here. {REPACK}"
        if is_cached:
            discard(folder / name)
            remedy = "It was removed from the cache; `lensmith fetch` downloads it again."
        raise IntegrityError(f"{where}: {name} has sha256 {actual}, recorded was {recorded}. {remedy}")


def discard(path: Path) -> None:
    """Remove a wrong file from the Hub's cache, or it would be served again. Its snapshots are folders of links."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
