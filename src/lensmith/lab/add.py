"""Add a model to a lab: one of the Hub with its commit and licence, or a folder or GGUF file of this machine."""

import re
from pathlib import Path

from huggingface_hub import is_offline_mode

from lensmith.files import names
from lensmith.hub import models
from lensmith.lab import registry
from lensmith.process.errors import InputError, RemoteError
from lensmith.settings import params_yaml
from lensmith.settings.params_yaml import MODEL_KEY, UNCHANGED, Proposal

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
# The Hub's words for licences, where SPDX has its own.
SPDX = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "cc-by-4.0": "CC-BY-4.0"}


def add(params: Path, model: str, key: str | None = None, file: str | None = None) -> str:
    """Append a model to params.yaml and make its lens an artifact of DVC; the text of its entry in params.yaml.

    Args:
        model: a folder or a GGUF file, relative to the lab or absolute; else a Hub id, org/name.
        key: its name in the lab; by default made from the model's name.
        file: the GGUF file of the folder or repository that is the model.

    Raises:
        InputError: there is no such folder or model, or the entry would not be valid.
        RemoteError: the Hub refused, or cannot be asked. Nothing is added then.
    """
    params_yaml.read(params)  # a folder that is no lab asks nothing of the Hub
    if Path(model).exists():
        proposal = of_path(model if file is None else f"{model}/{file}", key)
    elif HUB_ID.fullmatch(model):
        proposal = of_repo(model, key, file)
    else:
        raise InputError(f"{model}: no such folder or GGUF file, and no Hub id, which is org/name. {UNCHANGED}")
    entry = params_yaml.add(params, proposal)
    registry.write(params.parent, proposal.key)
    return entry


def of_path(name: str, key: str | None = None) -> Proposal:
    """The entry of a local model."""
    model = names.model(name, "lensmith add")
    note = "A local model: set publish.base_license to its licence before you publish the lens."
    key = key or key_of(model.resolve().name.removesuffix(names.GGUF))
    return Proposal(key, {"source": {"path": Path(name).as_posix()}}, (note,))


def of_repo(repo: str, key: str | None = None, file: str | None = None) -> Proposal:
    """The entry of a model of the Hub: its commit now, and its licence."""
    key = key or key_of(repo.partition("/")[2] if file is None else file.removesuffix(names.GGUF))
    if is_offline_mode():
        raise RemoteError(
            f"{repo}: no such folder or file, and HF_HUB_OFFLINE is set, so the Hub cannot be asked for its commit and "
            f"licence. By hand, set models.{key}.source.repo, source.revision and publish.base_license. {UNCHANGED}"
        )
    try:
        model = models.describe_model(repo)
    except RemoteError as error:
        raise RemoteError(f"{repo}: no such folder or file; and as a model of the Hub: {error}") from None
    licence = SPDX.get(model.licence or "", model.licence)
    notes = []
    if model.gated:
        notes.append(f"Gated: accept its licence at https://huggingface.co/{repo}, then `hf auth login`.")
    if not licence:
        notes.append("Its model card names no licence: set publish.base_license before you publish the lens.")
    publish = {"base_license": licence} if licence else {}
    source = {"repo": repo, "revision": model.commit} | ({} if file is None else {"file": file})
    return Proposal(key, {"source": source, "publish": publish}, tuple(notes))


def key_of(name: str) -> str:
    """A model's key: its name in lower case, other characters as dashes. InputError where that is no key."""
    key = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")[:63]
    if not MODEL_KEY.fullmatch(key):
        raise InputError(f"{name}: give it a key with --key, {MODEL_KEY.pattern}. {UNCHANGED}")
    return key
