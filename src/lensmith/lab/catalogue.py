"""What is known of a model before it is in params.yaml: from the Hub, and without a network from catalogue.yaml."""

import difflib
import re
from functools import cache
from pathlib import Path

from huggingface_hub import is_offline_mode
from pydantic import BaseModel, ConfigDict
from ruamel.yaml import YAML

from lensmith.hub import releases
from lensmith.process.errors import InputError
from lensmith.settings.params_yaml import MODEL_KEY, Proposal

# The Hub's words for licences, where SPDX has its own.
SPDX = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "cc-by-4.0": "CC-BY-4.0"}


class Known(BaseModel):
    """A line of catalogue.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    license: str
    gated: bool = False
    note: str | None = None


def propose(repo: str, key: str | None) -> Proposal:
    """The entry of a model: its commit, where the Hub can be asked, and its licence.

    Raises:
        InputError: `repo` or `key` cannot be a name, or there is no network and the catalogue has no such model.
        RemoteError: the Hub refused, or could not be reached.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        raise InputError(f"{repo!r} is no Hub id, must be org/name. Nothing was changed.")
    known, source, notes = catalogue().get(repo), {"repo": repo}, list[str]()
    licence: str | None
    if is_offline_mode():
        if known is None:
            near = difflib.get_close_matches(repo, catalogue(), n=3, cutoff=0.5)
            raise InputError(
                f"{repo} is not in the catalogue, and HF_HUB_OFFLINE is set; near: {', '.join(near) or 'nothing'}. "
                "Nothing was changed."
            )
        licence, gated = known.license, known.gated
        notes.append("No commit is pinned here, since there was no network; prefetch pins what `main` is then.")
    else:
        found = releases.describe_model(repo)
        source["revision"] = found.commit
        licence = SPDX.get(found.licence or "", found.licence)
        if licence in (None, "other") and known is not None:
            licence = known.license
        gated = found.gated
    if gated:
        notes.append(f"Gated: accept its licence at https://huggingface.co/{repo}, then `hf auth login`.")
    if known is not None and known.note:
        notes.append(known.note)
    publish = {"base_license": licence} if licence else {}
    if not licence:
        notes.append("Its licence is not known: find it out before you publish the lens.")
    return Proposal(key or key_of(repo), {"source": source, "publish": publish}, tuple(notes))


def key_of(repo: str) -> str:
    """A model's key: its name in lower case, other characters as dashes. InputError where that is none."""
    key = re.sub(r"[^a-z0-9_-]+", "-", repo.split("/")[1].lower()).strip("-")[:63]
    if not MODEL_KEY.fullmatch(key):
        raise InputError(f"{repo}: give it a key with --key, {MODEL_KEY.pattern}. Nothing was changed.")
    return key


@cache
def catalogue() -> dict[str, Known]:
    """Every model of catalogue.yaml by Hub id."""
    text = Path(__file__).with_name("catalogue.yaml").read_text(encoding="utf-8")
    return {repo: Known.model_validate(about) for repo, about in YAML(typ="safe", pure=True).load(text).items()}
