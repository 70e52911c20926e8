"""How many parameters a model has, before anything of it is loaded: what a machine must hold follows from it."""

import json
import math
from pathlib import Path

from huggingface_hub import HfApi, is_offline_mode

from lensmith.hub.errors import remote
from lensmith.process.errors import IntegrityError
from lensmith.settings.sections import SourceParams


def parameters(source: SourceParams) -> int | None:
    """Parameters of a model: of a folder by the headers of its files, else by the Hub's record.

    None where the Hub cannot be asked or has no record.

    Raises:
        IntegrityError: a file of the folder is no safetensors file.
        RemoteError: the Hub refused, or could not be reached.
    """
    if source.path is not None:
        return sum(_in_header(file) for file in sorted(Path(source.path).glob("*.safetensors")))
    assert source.repo is not None, "SourceParams checks that there is one of both"
    if is_offline_mode():
        return None
    with remote("model", source.repo, source.revision):
        info = HfApi().model_info(source.repo, revision=source.revision, expand=["safetensors"])
    return None if info.safetensors is None else int(info.safetensors.total)


def _in_header(file: Path) -> int:
    with file.open("rb") as opened:
        try:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
            return sum(math.prod(about["shape"]) for name, about in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, OverflowError, MemoryError):
            raise IntegrityError(f"{file}: not a whole safetensors file. Nothing was changed.") from None
