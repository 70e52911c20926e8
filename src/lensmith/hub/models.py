"""The only network code, with hub_data.py and hub_imported.py: a name becomes a pin, and a pin files that are checked.

A branch or tag can move, so nothing after `prefetch` knows one. A ModelPin says which model was meant: the commit, and
the sha256 of every file that is read. Of a model only safetensors and the files of tokenizer and configuration are ever
fetched: no pickles; and its Python files only where source.trust_remote_code is set.

HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean to huggingface_hub.
"""

import glob
import hashlib
import json
import re
import sys
from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import HfApi, is_offline_mode, snapshot_download
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import disable_progress_bars
from pydantic import BaseModel, ConfigDict, model_validator

from lensmith.files import untrusted
from lensmith.files.artifacts import sha256_file
from lensmith.hub.errors import FETCH, remote
from lensmith.process.errors import InputError, IntegrityError
from lensmith.settings.sections import SourceParams

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PLAIN = re.compile(r"[A-Za-z0-9_-][\w.+-]*", re.ASCII)  # a file's name that leads nowhere else
# What a tokenizer and a configuration consist of. Everything else in a repository stays there.
SMALL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
)
CODE = "*.py"


class ModelPin(BaseModel):
    """One model, byte for byte: a commit of a Hub repository, or a folder; and the sha256 of each file that is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repo: str | None
    path: str | None
    commit: str | None  # 40 hex digits; None for a folder
    files: dict[str, str]  # file name: sha256

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelPin":
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
        return str(self.path) if self.repo is None else f"{self.repo}@{self.commit}"


def pin_model(source: SourceParams) -> ModelPin:
    """Find out which bytes a model's name stands for now. Weights of a Hub model are not downloaded for this.

    Raises:
        InputError: the folder or repository holds no model that can be read.
        RemoteError: the Hub refused, or could not be reached.
    """
    if source.path is not None:
        return ModelPin(
            repo=None, path=source.path, commit=None, files=_hash_folder(Path(source.path), source.path, SMALL)
        )
    if source.repo is None:
        raise InputError("source: needs repo or path")
    with remote("model", source.repo, source.revision):
        commit = HfApi().resolve_revision(source.repo, revision=source.revision).resolved
        small = (*SMALL, CODE) if source.trust_remote_code else SMALL
        files = (_hash_cached if is_offline_mode() else _hash_remote)(source.repo, commit, small)
    return ModelPin(repo=source.repo, path=None, commit=commit, files=files)


def fetch_model(pin: ModelPin) -> Path:
    """The folder that holds every file of the pin, each with the sha256 that was recorded.

    Raises:
        IntegrityError: a file is another than the pinned one. A wrong file of the cache is removed.
        RemoteError: the Hub refused, or could not be reached.
    """
    return _fetch(pin, list(pin.files))


def fetch_tokenizer(pin: ModelPin) -> Path:
    """As `fetch_model`, without the weights: enough for the tokenizer and the configuration."""
    return _fetch(pin, [name for name in pin.files if _is_small(name, (*SMALL, CODE))])


def _is_small(name: str, small: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in small)


def _wanted(names: Collection[str], read: Callable[[str], bytes], place: str, small: Sequence[str]) -> list[str]:
    """Names of the files of a model that are read, out of the names in its top folder."""
    if "config.json" not in names:
        raise InputError(f"{place}: no config.json; it must hold a transformers model")
    return sorted({*(name for name in names if _is_small(name, small)), *_weights(names, read, place)})


def _weights(names: Collection[str], read: Callable[[str], bytes], place: str) -> list[str]:
    if WEIGHTS in names:
        return [WEIGHTS]
    if INDEX not in names:
        others = sorted(n for n in names if n.endswith((".bin", ".pt", ".pth", ".h5", ".gguf", ".safetensors")))
        raise InputError(
            f"no safetensors in {place}; found {', '.join(others) or 'no weights'}. Only {WEIGHTS} or the shards of "
            f"{INDEX} are read, pickles never: choose a revision that has them, or convert with save_pretrained."
        )
    try:
        shards = sorted(set(json.loads(read(INDEX))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise IntegrityError(f"{place}: {INDEX} has no weight_map that can be read") from None
    for shard in shards:
        if shard not in names:
            raise IntegrityError(f"{place}: {INDEX} names {shard}, which is missing")
    return [INDEX, *shards]


def _hash_folder(folder: Path, place: str, small: Sequence[str]) -> dict[str, str]:
    if not folder.is_dir():
        raise InputError(f"source.path is {place}, which is not a folder. Nothing was changed.")
    names = {path.name for path in folder.iterdir() if path.is_file()}
    wanted = _wanted(names, lambda name: (folder / name).read_bytes(), place, small)
    return {name: sha256_file(folder / name) for name in wanted}


def _hash_cached(repo: str, commit: str, small: Sequence[str]) -> dict[str, str]:
    """Offline there is no list of files to ask for: what the cache holds must be the whole model."""
    folder = snapshot(repo, commit, [*small, INDEX, "model*.safetensors"])
    return _hash_folder(folder, f"{repo}@{commit}", small)


def _hash_remote(repo: str, commit: str, small: Sequence[str]) -> dict[str, str]:
    """sha256 of a model's files: the Hub's record for large ones, the bytes themselves for small ones."""
    place = f"{repo}@{commit}"
    entries = {e.path: e for e in HfApi().list_repo_tree(repo, revision=commit) if isinstance(e, RepoFile)}

    def read(name: str) -> bytes:
        content = (snapshot(repo, commit, [glob.escape(name)]) / name).read_bytes()
        # Git's blob id is all that the Hub records of a small file. It is no defence against malice, but against rot.
        git_id = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        if entries[name].lfs is None and git_id != entries[name].blob_id:
            discard(snapshot(repo, commit, [glob.escape(name)]) / name)
            raise IntegrityError(f"{place}: {name} is not the file that the Hub lists. It was removed from the cache.")
        return content

    files: dict[str, str] = {}
    for name in _wanted(entries, read, place, small):
        lfs = entries[name].lfs
        files[name] = lfs.sha256 if lfs else hashlib.sha256(read(name)).hexdigest()
    return files


def snapshot(repo: str, commit: str, patterns: list[str]) -> Path:
    """The cache's folder of a model repository at a commit, with the files that match."""
    if not sys.stderr.isatty():
        disable_progress_bars()  # in a log file every redraw of a bar is a line
    return Path(snapshot_download(repo, revision=commit, allow_patterns=patterns))


def _fetch(pin: ModelPin, names: list[str]) -> Path:
    if pin.repo is None or pin.commit is None:
        folder = Path(str(pin.path))
    else:
        with remote("model", pin.repo, pin.commit):
            folder = snapshot(pin.repo, pin.commit, [glob.escape(name) for name in names])
    for name in names:
        _verify(folder / name, pin, name)
    return folder


def _verify(path: Path, pin: ModelPin, name: str) -> None:
    if not path.is_file():
        remedy = "" if pin.repo is None else f". {FETCH}"
        raise IntegrityError(f"{pin.place}: {name} is missing, but was there when prefetch recorded the model{remedy}")
    found = sha256_file(path)
    if found == pin.files[name]:
        return
    remedy = "It changed after prefetch: run prefetch again for the model as it is now, or put the old file back."
    if pin.repo is not None:
        discard(path)
        remedy = "It was removed from the cache; `lensmith fetch` downloads it again."
    raise IntegrityError(f"{pin.place}: {name} has sha256 {found}, recorded was {pin.files[name]}. {remedy}")


def refuse_large(entry: object, place: str) -> None:
    """IntegrityError for a file of a lens that the Hub lists with more bytes than such a file can have."""
    if isinstance(entry, RepoFile) and entry.size > (limit := untrusted.size_limit(entry.path)):
        raise IntegrityError(
            f"{place}: {entry.path} has {entry.size:,} bytes, at most {limit:,} are read. It was not downloaded."
        )


def discard(path: Path) -> None:
    """Remove a wrong file from the Hub's cache, or it would be served again. Its snapshots are folders of links."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
