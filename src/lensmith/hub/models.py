"""Models of the Hub: a name becomes a pin, and a pin becomes files that are checked.

Of a model only safetensors, or the GGUF file that is named, the files of tokenizer and configuration, and licence texts
are ever fetched: no pickles; and its Python files only where source.trust_remote_code is set.

HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean to huggingface_hub.
"""

import glob
import hashlib
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import HfApi, is_offline_mode, snapshot_download
from huggingface_hub.hf_api import RepoFile
from safetensors import SafetensorError, safe_open

from lensmith.files import gguf_file, names
from lensmith.files.artifacts import parse_json, sha256_file
from lensmith.files.names import GGUF
from lensmith.hub import pins
from lensmith.hub.errors import remote
from lensmith.hub.pins import PLAIN, ModelPin
from lensmith.process.errors import InputError, IntegrityError
from lensmith.settings.sections import SourceParams

WEIGHTS = "model.safetensors"
SHARDS = "model.safetensors.index.json"
# What a tokenizer and a configuration consist of. Everything else in a repository stays there.
SMALL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
)
CODE = "*.py"
LICENCE_FILES = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY)[\w. -]*", re.IGNORECASE | re.ASCII)


def pin_model(source: SourceParams) -> ModelPin:
    """Find out which bytes a model's name stands for now. Weights of a Hub model are not downloaded for this.

    Raises:
        InputError: the folder or repository holds no model that can be read.
        RemoteError: the Hub refused, or could not be reached.
    """
    if source.path is not None:
        path = names.model(source.path, "source.path")
        folder, gguf = (path.parent, path.name) if path.is_file() else (path, None)
        files = _hash_folder(folder, source.path, SMALL, gguf)
        return ModelPin(repo=None, path=str(folder), commit=None, files=files)
    assert source.repo is not None, "SourceParams has either repo or path"
    with remote("model", source.repo, source.revision):
        commit = HfApi().resolve_revision(source.repo, revision=source.revision).resolved
        small = (*SMALL, CODE) if source.trust_remote_code else SMALL
        if is_offline_mode():  # no list of files to ask for: what the cache holds must be the whole model
            files_there = [*small, SHARDS, "model*.safetensors"] if source.file is None else [glob.escape(source.file)]
            folder = snapshot(source.repo, commit, files_there)
            files = _hash_folder(folder, f"{source.repo}@{commit}", small, source.file)
        else:
            files = _hash_remote(source.repo, commit, small, source.file)
    return ModelPin(repo=source.repo, path=None, commit=commit, files=files)


def download(pin: ModelPin, wanted: Collection[str] | None = None) -> None:
    """Download the files of a pin (those of `wanted`, else all) that the cache lacks; `model_path` checks their bytes.

    Raises:
        RemoteError: the Hub refused, or could not be reached.
    """
    if pin.repo is not None and pin.commit is not None:
        with remote("model", pin.repo, pin.commit):
            snapshot(pin.repo, pin.commit, [glob.escape(name) for name in (pin.files if wanted is None else wanted)])


def fetch_model(pin: ModelPin) -> Path:
    """The folder that holds every file of the pin, or its GGUF file, downloaded where it is missing, each checked.

    Raises:
        IntegrityError: a file is not the pinned one. A wrong file of the cache is removed.
        RemoteError: the Hub refused, or could not be reached.
    """
    download(pin)
    return pins.model_path(pin)


def fetch_tokenizer(pin: ModelPin) -> Path:
    """As `fetch_model`, without safetensors: enough for the tokenizer and the configuration."""
    needed = [name for name in pin.files if name == pin.gguf or _is_small(name, (*SMALL, CODE))]
    download(pin, needed)
    return pins.model_path(pin, needed)


def count_parameters(source: SourceParams) -> int | None:
    """Parameters of a model: by the headers of local files, else by the Hub's record.

    None where the Hub cannot be asked or has no record.

    Raises:
        InputError: there is no such folder or file, or the package gguf is missing.
        IntegrityError: a file is no safetensors file, or no GGUF file.
        RemoteError: the Hub refused, or could not be reached.
    """
    if source.path is None:
        assert source.repo is not None, "SourceParams has either repo or path"
        if is_offline_mode():
            return None
        with remote("model", source.repo, source.revision):
            info = HfApi().model_info(source.repo, revision=source.revision, expand=["safetensors", "gguf"])
        if source.file is not None:
            return None if info.gguf is None else int(info.gguf["total"])
        return None if info.safetensors is None else int(info.safetensors.total)
    model = names.model(source.path, "source.path")
    if model.is_file():
        return gguf_file.read_facts(model).n_parameters
    total = 0
    for path in sorted(model.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        except SafetensorError:
            raise IntegrityError(f"{path}: not a whole safetensors file. Nothing was changed.") from None
    return total


def licence_texts(repo: str, commit: str) -> dict[str, bytes]:
    """Licences and notices in the top folder of a model repository at a commit, by file name."""
    with remote("model", repo, commit):
        entries = HfApi().list_repo_tree(repo, revision=commit)
        names = [entry.path for entry in entries if isinstance(entry, RepoFile) and LICENCE_FILES.fullmatch(entry.path)]
        folder = snapshot(repo, commit, [glob.escape(name) for name in names]) if names else Path()
        return {name: (folder / name).read_bytes() for name in sorted(names)}


@dataclass(frozen=True)
class ModelFacts:
    """What the Hub says about a model."""

    commit: str
    licence: str | None
    gated: bool


def describe_model(repo: str) -> ModelFacts:
    """Commit, licence and gate of a model as it is now."""
    with remote("model", repo, "main"):
        info = HfApi().model_info(repo)
    licence = getattr(info.card_data, "license", None)
    return ModelFacts(str(info.sha), str(licence) if licence else None, bool(info.gated))


def snapshot(repo: str, commit: str, patterns: list[str]) -> Path:
    """The cache's folder of a model repository at a commit, with the files that match downloaded."""
    return Path(snapshot_download(repo, revision=commit, allow_patterns=patterns))


def weight_files(names: Collection[str], read: Callable[[str], bytes], place: str) -> list[str]:
    """Names of a model's weight files, out of the names in its top folder; `read` reads one of them.

    Raises:
        InputError: there are no safetensors.
        IntegrityError: the index of the shards cannot be read, or names a shard that is missing.
    """
    if WEIGHTS in names:
        return [WEIGHTS]
    if SHARDS not in names:
        others = sorted(n for n in names if n.endswith((".bin", ".pt", ".pth", ".h5", GGUF, ".safetensors")))
        raise InputError(
            f"no safetensors in {place}; it has {', '.join(others) or 'no weights'}. Only {WEIGHTS}, the shards of "
            f"{SHARDS} or a GGUF file that source.file or source.path names are read, pickles never: choose a revision "
            "that has them, or convert with save_pretrained."
        )
    try:
        shards = sorted(set(parse_json(read(SHARDS))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise IntegrityError(f"{place}: {SHARDS} has no weight_map that can be read") from None
    for shard in shards:
        if shard not in names:
            raise IntegrityError(f"{place}: {SHARDS} names {shard}, which is missing")
    return [SHARDS, *shards]


def _is_small(name: str, small: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in small)


def _model_files(
    names: Collection[str], read: Callable[[str], bytes], place: str, small: Sequence[str], gguf: str | None
) -> list[str]:
    """Names of the files of a model that are read, out of the names in its top folder; `gguf` is read alone."""
    if gguf is not None:
        if not PLAIN.fullmatch(gguf):
            raise InputError(f"{place}: {gguf!r} has other characters than letters, digits and _ . + -; rename it")
        if gguf not in names:
            others = ", ".join(sorted(name for name in names if name.endswith(GGUF)))
            raise InputError(f"{place}: no {gguf}; it has {others or 'no GGUF file'}. Nothing was changed.")
        return [gguf]
    if "config.json" not in names:
        raise InputError(f"{place}: no config.json; it must hold a transformers model")
    return sorted({*(name for name in names if _is_small(name, small)), *weight_files(names, read, place)})


def _hash_folder(folder: Path, place: str, small: Sequence[str], gguf: str | None) -> dict[str, str]:
    in_folder = {path.name for path in folder.iterdir() if path.is_file()}
    files = _model_files(in_folder, lambda name: (folder / name).read_bytes(), place, small, gguf)
    return {name: sha256_file(folder / name) for name in files}


def _hash_remote(repo: str, commit: str, small: Sequence[str], gguf: str | None) -> dict[str, str]:
    """sha256 of a model's files: the Hub's record for large ones, the bytes themselves for small ones."""
    place = f"{repo}@{commit}"
    entries = {e.path: e for e in HfApi().list_repo_tree(repo, revision=commit) if isinstance(e, RepoFile)}

    def read(name: str) -> bytes:
        path = snapshot(repo, commit, [glob.escape(name)]) / name
        content = path.read_bytes()
        # Git's blob id is all that the Hub records of a small file. It is no defence against malice, but against rot.
        git_id = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        if entries[name].lfs is None and git_id != entries[name].blob_id:
            pins.discard(path)
            raise IntegrityError(f"{place}: {name} is not the file that the Hub lists. It was removed from the cache.")
        return content

    files: dict[str, str] = {}
    for name in _model_files(entries, read, place, small, gguf):
        lfs = entries[name].lfs
        files[name] = lfs.sha256 if lfs else hashlib.sha256(read(name)).hexdigest()
    return files
