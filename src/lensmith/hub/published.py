"""Lenses of the package tuned-lens that others published: two files of a Hub repository, or of a folder."""

from pathlib import Path

from huggingface_hub import HfApi, is_offline_mode, snapshot_download
from huggingface_hub.hf_api import RepoFile

from lensmith.files import untrusted
from lensmith.files.artifacts import sha256_file
from lensmith.hub import pins
from lensmith.hub.errors import remote
from lensmith.hub.pins import LENS_CONFIG, LENS_PARAMS, LensPin, RepoType
from lensmith.process.errors import InputError, IntegrityError
from lensmith.settings.sections import ImportedParams

FILES = (LENS_CONFIG, LENS_PARAMS)


def list_lens_files(repo: str, kind: RepoType, revision: str, paths: list[str]) -> list[RepoFile]:
    """Files of a lens as the Hub lists them; none of them where HF_HUB_OFFLINE is set.

    Raises:
        IntegrityError: a file has more bytes than such a file of a lens can have.
    """
    if is_offline_mode():
        return []
    entries = HfApi().get_paths_info(repo, paths, revision=revision, repo_type=kind)
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    for file in files:
        if file.size > (limit := untrusted.size_limit(file.path)):
            raise IntegrityError(
                f"{repo}@{revision}: {file.path} has {file.size:,} bytes, at most {limit:,} are read. It was not "
                "downloaded."
            )
    return files


def pin_lens(imported: ImportedParams) -> LensPin | None:
    """Find out which bytes the settings stand for now, and download them; None where no lens is asked for.

    Raises:
        InputError: the folder does not hold both files.
        IntegrityError: a download is not what the Hub lists, or a file is larger than that of any lens.
        RemoteError: the Hub refused, or could not be reached.
    """
    if imported.folder is None:
        return None
    repo, kind, folder = imported.repo, imported.repo_type, imported.folder
    pin = LensPin(repo=repo, repo_type=kind, commit=None, folder=folder, files={})
    listed: dict[str, str] = {}  # sha256 of the large files as the Hub lists them
    if repo is not None:
        with remote(kind, repo, imported.revision):
            commit = HfApi().resolve_revision(repo, repo_type=kind, revision=imported.revision).resolved
            pin = pin.model_copy(update={"commit": commit})
            files = list_lens_files(repo, kind, commit, [f"{folder}/{name}" for name in FILES])
            listed = {Path(file.path).name: file.lfs.sha256 for file in files if file.lfs}
    local = _download(pin)
    missing = [name for name in FILES if not (local / name).is_file()]
    if missing:
        raise InputError(
            f"imported lens {pin.place}: no {' and no '.join(missing)}; a lens of tuned-lens is {' and '.join(FILES)}. "
            "Nothing was written."
        )
    for name in FILES:
        untrusted.check_size(local / name, untrusted.size_limit(name))
    pins.check(local, listed, f"imported lens {pin.place}", is_cached=True)
    return pin.model_copy(update={"files": {name: sha256_file(local / name) for name in FILES}})


def fetch_lens(pin: LensPin) -> Path:
    """The folder that holds both files of the pin, downloaded where they are missing, each checked.

    Raises:
        IntegrityError: a file is missing, or is not the pinned one.
        RemoteError: the Hub refused, or could not be reached.
    """
    _download(pin)
    return pins.lens_folder(pin)


def _download(pin: LensPin) -> Path:
    """The folder of the pin; of a repository its two files, where it has them, are downloaded."""
    if pin.repo is None:
        return Path(pin.folder)
    patterns = [f"{pin.folder}/{name}" for name in FILES]
    with remote(pin.repo_type, pin.repo, str(pin.commit)):
        root = snapshot_download(pin.repo, repo_type=pin.repo_type, revision=pin.commit, allow_patterns=patterns)
    return Path(root) / pin.folder
