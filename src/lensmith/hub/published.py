"""Lenses that others published: two files of a Hub repository, or of a folder, pinned as models are."""

from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, is_offline_mode, snapshot_download
from huggingface_hub.hf_api import RepoFile
from pydantic import BaseModel, ConfigDict

from lensmith.files import untrusted
from lensmith.files.artifacts import sha256_file
from lensmith.hub.errors import remote
from lensmith.hub.models import refuse_large
from lensmith.process.errors import InputError, IntegrityError
from lensmith.settings.sections import ImportedParams

CONFIG, PARAMS = "config.json", "params.pt"
FILES = (CONFIG, PARAMS)


class LensPin(BaseModel):
    """A published lens, byte for byte: a folder at a commit of a Hub repository, or a local one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repo: str | None
    repo_type: Literal["model", "dataset", "space"]
    commit: str | None  # 40 hex digits; None for a local folder
    folder: str
    files: dict[str, str]  # file name: sha256

    @property
    def place(self) -> str:
        """The lens's name in messages."""
        return self.folder if self.repo is None else f"{self.repo_type} {self.repo}@{self.commit}/{self.folder}"


def pin_lens(imported: ImportedParams) -> LensPin | None:
    """Find out which bytes the settings stand for now, and have them on this machine; None where no lens is asked for.

    Raises:
        InputError: the folder does not hold both files.
        IntegrityError: a download is not what the Hub lists, or a file is larger than that of any lens.
        RemoteError: the Hub refused, or could not be reached.
    """
    if imported.folder is None:
        return None
    pin = LensPin(repo=imported.repo, repo_type=imported.repo_type, commit=None, folder=imported.folder, files={})
    listed: dict[str, str] = {}
    if imported.repo is not None:
        with remote(imported.repo_type, imported.repo, imported.revision):
            found = HfApi().resolve_revision(imported.repo, repo_type=imported.repo_type, revision=imported.revision)
            pin = pin.model_copy(update={"commit": found.resolved})
            listed = {} if is_offline_mode() else _listed(pin)
    folder = _folder(pin)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"imported lens {pin.place}: no {' and no '.join(missing)}; a lens of tuned-lens is {' and '.join(FILES)}. "
            "Nothing was written."
        )
    for name in FILES:
        untrusted.check_size(folder / name, untrusted.size_limit(name))
    pin = pin.model_copy(update={"files": {name: sha256_file(folder / name) for name in FILES}})
    _verify(pin, folder, listed)
    return pin


def fetch_lens(pin: LensPin) -> Path:
    """The folder that holds both files of the pin, each with the sha256 that was recorded.

    Raises:
        IntegrityError: a file is missing, or another than the pinned one.
        RemoteError: the Hub refused, or could not be reached.
    """
    folder = _folder(pin)
    _verify(pin, folder, pin.files)
    return folder


def _listed(pin: LensPin) -> dict[str, str]:
    """sha256 of the large files as the Hub lists them."""
    assert pin.repo is not None
    paths = [f"{pin.folder}/{name}" for name in FILES]
    entries = HfApi().get_paths_info(pin.repo, paths, revision=pin.commit, repo_type=pin.repo_type)
    for entry in entries:
        refuse_large(entry, f"imported lens {pin.place}")
    return {Path(e.path).name: e.lfs.sha256 for e in entries if isinstance(e, RepoFile) and e.lfs}


def _folder(pin: LensPin) -> Path:
    if pin.repo is None or pin.commit is None:
        return Path(pin.folder)
    names = [f"{pin.folder}/{name}" for name in FILES]
    with remote(pin.repo_type, pin.repo, pin.commit):
        root = snapshot_download(pin.repo, repo_type=pin.repo_type, revision=pin.commit, allow_patterns=names)
    return Path(root) / pin.folder


def _verify(pin: LensPin, folder: Path, expected: dict[str, str]) -> None:
    for name, sha256 in expected.items():
        path = folder / name
        if not path.is_file():
            raise IntegrityError(f"imported lens {pin.place}: {name} is missing, but was there at prefetch")
        if (found := sha256_file(path)) == sha256:
            continue
        remedy = "Run prefetch again for the file as it is now, or put the old one back."
        if pin.repo is not None:  # or it would be served from the cache again
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            remedy = "It was removed from the cache; `lensmith fetch` downloads it again."
        raise IntegrityError(f"imported lens {pin.place}: {name} has sha256 {found}, recorded was {sha256}. {remedy}")
