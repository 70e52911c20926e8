"""Send lenses to the Hub: one commit and one tag for each release.

A release is whole or absent, and a second run finishes what a first one began:

    read head, tags and INDEX.json     a release of the same bytes is there already: nothing to do but its tag
    choose the version                 no tag has it, nor any entry of INDEX.json; a tag is never moved
    one commit onto that head          files, merged INDEX.json, card; if the head moved (412), begin again
    one tag on that commit
    read back                          every sha256 as the Hub has it now
"""

import datetime as dt
import difflib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from lensmith.files import untrusted
from lensmith.hub import index as release_index
from lensmith.hub.errors import remote
from lensmith.hub.index import INDEX, IndexEntry
from lensmith.process.errors import InputError, IntegrityError

KIND: Literal["dataset"] = "dataset"
CARD = "README.md"
ATTEMPTS = 20  # commits onto a head that others move
UNSURE = (409, 412, 500, 502, 503, 504)  # answers to a commit after which only reading again tells what happened

Index = dict[str, Any]


@dataclass(frozen=True)
class Parcel:
    """One lens as it is sent: files in a folder, and its entry of the index, which has no version yet."""

    model_id: str
    folder: Path
    entry: Index
    card: Callable[[Index], str]  # the repository's README, from its whole index
    tag: str | None = None  # the version that is asked for; None for today's

    @property
    def hashes(self) -> dict[str, str]:
        """sha256 of each file by its path in the repository."""
        return dict(IndexEntry.model_validate(self.entry).files())

    def operations(self, now: "RepoState", version: str) -> list[CommitOperationAdd | CommitOperationDelete]:
        """What a commit of this release does; made anew for every attempt, since a commit changes these objects."""
        index = _merged_index(now, self, version)
        contents: dict[str, str | bytes] = {path: str(self.folder / path) for path in self.hashes}
        contents |= {INDEX: _index_text(index).encode(), CARD: self.card(index).encode()}
        listed = {path for entry in index.values() for path, _ in IndexEntry.model_validate(entry).files()}
        old = now.index.get(self.model_id)
        stale = {path for path, _ in IndexEntry.model_validate(old).files()} - listed if old else set()
        return [
            *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in contents.items()),
            *(CommitOperationDelete(path_in_repo=path) for path in sorted(stale)),
        ]


@dataclass(frozen=True)
class Release:
    """A lens as it is on the Hub."""

    repo: str
    commit: str
    tag: str


@dataclass(frozen=True)
class RepoState:
    """A repository as it is now; nothing is set where it does not exist."""

    head: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)  # commit by tag
    index: Index = field(default_factory=dict)

    @property
    def taken(self) -> set[str]:
        """Versions that a new release may not take.

        Those of the index too: between a commit and its tag nobody else may take that tag.
        """
        return {*self.tags, *(entry["tl_version"] for entry in self.index.values() if entry.get("tl_version"))}


def push(parcel: Parcel, repo: str, today: dt.date) -> Release:
    """Release a parcel in a dataset repository, which is created where it is missing.

    Raises:
        InputError: the version is taken by other bytes; the message names the next free one.
        IntegrityError: what the Hub holds afterwards is not what was sent.
        RemoteError: the Hub refused, or could not be reached. The release is absent or complete.
    """
    api = HfApi()
    with remote(KIND, repo, parcel.tag or "main", action="send"):
        version, commit = _commit(api, repo, parcel, today)
        try:
            api.create_tag(repo, tag=version, revision=commit, repo_type=KIND)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:  # 409: the tag exists
                raise
            if (tagged := _state(api, repo).tags.get(version)) != commit:
                raise IntegrityError(f"{repo}: tag {version} is on {tagged}, the release is commit {commit}") from None
    with remote(KIND, repo, commit, action="send"):  # does the Hub hold each file as it was sent?
        infos = api.get_paths_info(repo, list(parcel.hashes), revision=commit, repo_type=KIND)
        files = {info.path: info for info in infos if isinstance(info, RepoFile)}
        for path, sent in parcel.hashes.items():
            held = None
            if path in files and (lfs := files[path].lfs):
                held = lfs.sha256
            elif path in files:  # of a small file the Hub records no sha256: read it
                content = HfFileSystem().read_bytes(f"datasets/{repo}@{commit}/{path}")
                held = hashlib.sha256(content).hexdigest()
            if held != sent:
                raise IntegrityError(f"{repo}@{commit}: {path} has sha256 {held} on the Hub, sent was {sent}")
    return Release(repo, commit, version)


def preview(parcel: Parcel, repo: str, today: dt.date) -> Iterator[str]:
    """What `push` would do to the repository, in lines: the tag, and the change to INDEX.json."""
    with remote(KIND, repo, parcel.tag or "main", action="preview"):
        now = _state(HfApi(), repo)
        if version := _released(repo, now, parcel):
            yield f"{repo}: {parcel.model_id} is released as {version} with the same bytes; nothing would be sent"
            return
    version = _choose_version(now, parcel, today)
    yield f"{repo}: {'a new commit' if now.head else 'a new repository'}, tag {version}; {INDEX} and {CARD} are merged"
    before, after = (_index_text(index).splitlines() for index in (now.index, _merged_index(now, parcel, version)))
    yield from difflib.unified_diff(before, after, f"{INDEX} now", f"{INDEX} then", lineterm="", n=1)


def _state(api: HfApi, repo: str) -> RepoState:
    try:
        refs = api.list_repo_refs(repo, repo_type=KIND)
    except RepositoryNotFoundError:
        return RepoState()
    head = next((branch.target_commit for branch in refs.branches if branch.name == "main"), None)
    return RepoState(head, {tag.name: tag.target_commit for tag in refs.tags}, _index_at(repo, head) if head else {})


def _index_at(repo: str, commit: str) -> Index:
    try:
        path = Path(hf_hub_download(repo, INDEX, repo_type=KIND, revision=commit))
    except EntryNotFoundError:
        return {}
    index: Index = untrusted.read_json(path)
    release_index.parse(index, f"{repo}@{commit}: {INDEX}")
    return index


def _commit(api: HfApi, repo: str, parcel: Parcel, today: dt.date) -> tuple[str, str]:
    """Commit a parcel, again where others moved the head; its version, and the commit for its tag."""
    for attempt in itertools.count(1):
        now = _state(api, repo)
        if now.head is None:
            api.create_repo(repo, repo_type=KIND, exist_ok=True)
            now = _state(api, repo)
        if version := _released(repo, now, parcel):
            return version, now.tags.get(version) or str(now.head)
        version = _choose_version(now, parcel, today)
        title = f"{version}: {parcel.model_id}"
        try:
            done = api.create_commit(
                repo, parcel.operations(now, version), commit_message=title, repo_type=KIND, parent_commit=now.head
            )
        except (HfHubHTTPError, httpx2.TransportError) as error:
            unsure = not isinstance(error, HfHubHTTPError) or error.response.status_code in UNSURE
            if not unsure or attempt == ATTEMPTS:
                raise
        else:
            return version, done.oid
    raise AssertionError("the loop ends by returning or raising")


def _released(repo: str, now: RepoState, parcel: Parcel) -> str | None:
    """The version under which the repository holds the same bytes, tagged or about to be."""
    index = _index_at(repo, now.tags[str(parcel.tag)]) if parcel.tag in now.tags else now.index
    entry = dict(index.get(parcel.model_id) or {})
    version: str | None = entry.pop("tl_version", None)
    return version if entry == parcel.entry and parcel.tag in (None, version) else None


def _choose_version(now: RepoState, parcel: Parcel, today: dt.date) -> str:
    """The version of a release: the one of its settings, else today's, else the next that is free."""
    day = f"v{today:%Y.%m.%d}"
    current = str((now.index.get(parcel.model_id) or {}).get("tl_version"))
    is_of_today = current == day or current.startswith(f"{day}.")
    wanted = parcel.tag or (current if is_of_today else None)
    if wanted is None:
        return _next_free(day, now.taken)
    if wanted not in now.taken:
        return wanted
    free = _next_free(".".join(wanted.split(".")[:3]), now.taken)
    raise InputError(
        f"{wanted} is taken by other bytes, and a tag is never moved. Set publish.tag of {parcel.model_id} to {free} "
        "to release these. Nothing was sent."
    )


def _next_free(day: str, taken: set[str]) -> str:
    numbered = (f"{day}.{number}" for number in itertools.count(2))
    return next(version for version in itertools.chain([day], numbered) if version not in taken)


def _merged_index(now: RepoState, parcel: Parcel, version: str) -> Index:
    return {**now.index, parcel.model_id: {**parcel.entry, "tl_version": version}}


def _index_text(index: Index) -> str:
    return json.dumps(index, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
