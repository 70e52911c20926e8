"""Datasets of the Hub: which files, at which commit, in which order; and their bytes, streamed.

Only `prefetch` reads datasets: an edit here makes no fitted lens stale.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from huggingface_hub import HfApi, HfFileSystem, is_offline_mode
from huggingface_hub.hf_api import RepoFile
from pydantic import BaseModel, ConfigDict

from lensmith.hub.errors import remote
from lensmith.process.draws import Stream
from lensmith.process.errors import InputError, IntegrityError, RemoteError, first_line
from lensmith.settings.sections import CorpusParams


class DatasetPin(BaseModel):
    """One split of a dataset at one commit; `heldout` and `train` are indices into `files`, in reading order.

    They share no file. Only where the split has a single file do both name it, and the reader splits its documents.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    repo: str
    name: str | None
    split: str
    revision: str  # as asked for
    commit: str  # what it was
    files: tuple[str, ...]
    heldout: tuple[int, ...]
    train: tuple[int, ...]


def pin_dataset(corpus: CorpusParams) -> DatasetPin:
    """Resolve a dataset's revision and choose its files: a seeded order, the first ones for held-out text.

    Raises:
        InputError: the dataset has no such configuration or split, or is made by a script.
        RemoteError: the Hub refused, or could not be reached.
    """
    assert corpus.repo is not None, "CorpusParams: kind hf has a repo"
    with remote("dataset", corpus.repo, corpus.revision):
        commit = HfApi().resolve_revision(corpus.repo, repo_type="dataset", revision=corpus.revision).resolved
        files = _split_files(corpus, corpus.repo, commit)
    order = [int(i) for i in Stream(corpus.seed, "corpus/files").permutation(len(files), 0)]
    share = corpus.heldout_tokens / (corpus.heldout_tokens + corpus.train_tokens)
    n_heldout = min(max(1, round(len(files) * share)), len(files) - 1)
    return DatasetPin(
        repo=corpus.repo,
        name=corpus.name,
        split=corpus.split,
        revision=corpus.revision,
        commit=commit,
        files=files,
        heldout=tuple(order[:n_heldout] or order),
        train=tuple(order[n_heldout:]),
    )


@contextmanager
def open_dataset_file(pin: DatasetPin, index: int) -> Iterator[BinaryIO]:
    """One file of a dataset, read over the network as it is asked for; failed reads are tried again a few times."""
    path = f"datasets/{pin.repo}@{pin.commit}/{pin.files[index]}"
    with remote("dataset", pin.repo, pin.commit), HfFileSystem().open(path, "rb") as file:
        yield file


def describe_dataset_files(pin: DatasetPin, indices: Iterable[int]) -> dict[int, tuple[str, int]]:
    """sha256 and size in bytes of files by index, as the Hub records them at the pinned commit."""
    wanted = {pin.files[index]: index for index in indices}
    facts: dict[int, tuple[str, int]] = {}
    with remote("dataset", pin.repo, pin.commit):
        for entry in HfApi().get_paths_info(pin.repo, list(wanted), revision=pin.commit, repo_type="dataset"):
            if isinstance(entry, RepoFile):
                facts[wanted[entry.path]] = (entry.lfs.sha256 if entry.lfs else "", entry.size)
    for index in wanted.values():
        if index not in facts:
            raise IntegrityError(f"dataset {pin.repo}@{pin.commit}: {pin.files[index]} is missing")
        if not facts[index][0]:  # a small file outside LFS: git's own id is no sha256, so read it
            with open_dataset_file(pin, index) as file:
                facts[index] = (hashlib.sha256(file.read()).hexdigest(), facts[index][1])
    return facts


def _split_files(corpus: CorpusParams, repo: str, commit: str) -> tuple[str, ...]:
    """Paths of a split's files at `commit`, in the dataset's own order."""
    from datasets import load_dataset_builder
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError

    place = f"dataset {repo}@{commit}"
    if is_offline_mode():
        raise RemoteError(f"{place}: kind hf reads over the network, but HF_HUB_OFFLINE is set")
    try:
        builder = load_dataset_builder(repo, name=corpus.name, revision=commit)
    except DatasetNotFoundError as error:
        HfApi().auth_check(repo, repo_type="dataset")  # `datasets` does not hand on what the Hub answered
        raise RemoteError(f"{place}: {first_line(error)}") from None
    except (DataFilesNotFoundError, ValueError, RuntimeError) as error:
        raise InputError(f"{place}, name {corpus.name}: {first_line(error)}. Nothing was changed.") from None
    splits: dict[str, Any] = {str(split): files for split, files in (builder.config.data_files or {}).items()}
    if corpus.split not in splits:
        raise InputError(f"{place}: corpus.split is {corpus.split!r}, allowed: {', '.join(splits) or 'none'}")
    prefix = f"hf://datasets/{repo}@{commit}/"
    urls = [str(url) for url in splits[corpus.split]]
    if not urls or not all(url.startswith(prefix) for url in urls):
        # A local folder of that name is preferred by `datasets`, and is no pinned text.
        raise InputError(f"{place}: has files elsewhere ({urls[:1]}); local ones are kind files")
    return tuple(url.removeprefix(prefix) for url in urls)
