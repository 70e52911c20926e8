"""Lenses from the Hub: which there are, at which version, and their files, checked byte for byte.

`push` sends them, `index` reads what a release lists.
"""

import glob
import re
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import EntryNotFoundError

from lensmith.hub import index as release_index
from lensmith.hub import pins
from lensmith.hub.errors import remote
from lensmith.hub.index import INDEX, IndexEntry
from lensmith.hub.published import list_lens_files
from lensmith.process.errors import InputError, IntegrityError, RemoteError

KIND: Literal["dataset"] = "dataset"
VERSION = re.compile(r"v(\d{4})\.(\d\d)\.(\d\d)(?:\.(\d+))?")


def download(repo: str, model: str | None, revision: str | None, to: Path | None = None) -> Path:
    """A folder with the index, one lens (all of them where `model` is None) and their licences, every byte checked.

    Args:
        revision: a version or commit; None for the newest version.
        to: where to; None for the Hub's own cache.

    Raises:
        InputError: the release has no such lens, or the repository no version.
        IntegrityError: a file is not the one of the index, or larger than such a file can be. It was removed.
        RemoteError: the Hub refused, or could not be reached.
    """
    revision = revision or newest(repo)
    index = _index_on_hub(repo, revision)
    wanted = [release_index.pick(index, model, f"{repo}@{revision}")] if model else sorted(index)
    paths = [path for model_id in wanted for path, _ in index[model_id].files()]
    if to is not None:
        for model_id in wanted:
            release_index.refuse_links(to, index[model_id])
    with remote(KIND, repo, revision):
        list_lens_files(repo, KIND, revision, paths)
        patterns = [glob.escape(path) for path in (INDEX, *paths)]
        folder = Path(snapshot_download(repo, repo_type=KIND, revision=revision, allow_patterns=patterns, local_dir=to))
    for model_id in wanted:
        if wrong := release_index.wrong_file(folder, index[model_id]):
            pins.discard(folder / wrong[0])
            raise IntegrityError(f"{repo}@{revision}: {wrong[0]} {wrong[1]}. It was removed; nothing was read from it.")
    return folder


def index_of(place: str | Path, revision: str | None) -> tuple[dict[str, IndexEntry], str | None]:
    """The index of a release, and the revision that it was read at: None for a folder.

    Raises:
        InputError: `place` is no release.
        RemoteError: it is no folder, and the Hub refused or could not be reached.
    """
    if Path(place).is_dir():
        return release_index.read(Path(place)), None
    repo = str(place)
    if isinstance(place, Path) or not release_index.MODEL_ID.fullmatch(repo):
        raise InputError(f"{repo}: no such folder, and no repository of the Hub, org/name. Nothing was read.")
    try:
        revision = revision or newest(repo)
        return _index_on_hub(repo, revision), revision
    except (InputError, RemoteError) as error:  # a mistyped folder looks like the name of a repository
        raise type(error)(f"{repo}: no such folder; on the Hub: {error}") from None


def _index_on_hub(repo: str, revision: str) -> dict[str, IndexEntry]:
    with remote(KIND, repo, revision):
        try:
            list_lens_files(repo, KIND, revision, [INDEX])
            path = hf_hub_download(repo, INDEX, repo_type=KIND, revision=revision)
        except EntryNotFoundError:
            if is_offline_mode():
                raise
            raise InputError(f"{repo}@{revision}: no {INDEX}, so this is no release of lenses") from None
    return release_index.read(Path(path).parent)


def newest(repo: str) -> str:
    """The newest version of a repository of lenses."""
    with remote(KIND, repo, "main"):
        if is_offline_mode():
            raise InputError(f"{repo}: HF_HUB_OFFLINE is set, so say which version (revision) you mean")
        names = [tag.name for tag in HfApi().list_repo_refs(repo, repo_type=KIND).tags]
    versions = [match for name in names if (match := VERSION.fullmatch(name))]
    if not versions:
        raise InputError(f"{repo}: has no version (a tag like v2026.01.31), so say which revision you mean")
    return max(versions, key=lambda version: [int(part or 1) for part in version.groups()])[0]
