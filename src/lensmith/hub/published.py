"""Lenses that others published: files of a Hub repository, or of a folder."""

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi, is_offline_mode, snapshot_download
from huggingface_hub.hf_api import RepoFile

from lensmith.files import untrusted
from lensmith.files.artifacts import sha256_file
from lensmith.hub import pins
from lensmith.hub.errors import remote
from lensmith.hub.pins import LENS_CONFIG, LENS_MAPS, LENS_PARAMS, LensPin, RepoType
from lensmith.process.errors import InputError, IntegrityError
from lensmith.settings.sections import ImportedParams

FILES = {"tuned-lens": (LENS_CONFIG, LENS_PARAMS), "jacobian": (LENS_MAPS,)}  # by the format of a lens


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
        InputError: the folder does not hold the files of a lens.
        IntegrityError: a download is not what the Hub lists, or a file is larger than that of any lens.
        RemoteError: the Hub refused, or could not be reached.
    """
    if imported.folder is None:
        return None
    repo, kind, folder, names = imported.repo, imported.repo_type, imported.folder, FILES[imported.format]
    pin = LensPin(repo=repo, repo_type=kind, commit=None, folder=folder, files={})
    listed: dict[str, str] = {}  # sha256 of the large files as the Hub lists them
    if repo is not None:
        with remote(kind, repo, imported.revision):
            commit = HfApi().resolve_revision(repo, repo_type=kind, revision=imported.revision).resolved
            pin = pin.model_copy(update={"commit": commit})
            files = list_lens_files(repo, kind, commit, [f"{folder}/{name}" for name in names])
            listed = {Path(file.path).name: file.lfs.sha256 for file in files if file.lfs}
    local = _download(pin, names)
    missing = [name for name in names if not (local / name).is_file()]
    if missing:
        raise InputError(
            f"imported lens {pin.place}: no {' and no '.join(missing)}; a lens of format {imported.format} is "
            f"{' and '.join(names)}. Nothing was written."
        )
    for name in names:
        untrusted.check_size(local / name, untrusted.size_limit(name))
    pins.check(local, listed, f"imported lens {pin.place}", is_cached=True)
    return pin.model_copy(update={"files": {name: sha256_file(local / name) for name in names}})


def fetch_lens(pin: LensPin) -> Path:
    """The folder that holds the files of the pin, downloaded where they are missing, each checked.

    Raises:
        IntegrityError: a file is missing, or is not the pinned one.
        RemoteError: the Hub refused, or could not be reached.
    """
    _download(pin, pin.files)
    return pins.lens_folder(pin)


def _download(pin: LensPin, names: Iterable[str]) -> Path:
    """The folder of the pin; of a repository these files, where it has them, are downloaded."""
    if pin.repo is None:
        return Path(pin.folder)
    patterns = [f"{pin.folder}/{name}" for name in names]
    with remote(pin.repo_type, pin.repo, str(pin.commit)):
        root = snapshot_download(pin.repo, repo_type=pin.repo_type, revision=pin.commit, allow_patterns=patterns)
    return Path(root) / pin.folder
