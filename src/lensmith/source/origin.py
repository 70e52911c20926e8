"""What the loaders of transformers are told: where a model is, that nothing is fetched, and whether its code may run.

A model is a folder, or one GGUF file that holds configuration, tokenizer and weights.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lensmith.files import gguf_file


@contextmanager
def arguments(path: Path, *, trusted: bool) -> Iterator[dict[str, Any]]:
    """The arguments of `from_pretrained` for the model at `path`, for the time of a block.

    transformers prefers files that lie beside a GGUF file to what is in it, a tokenizer.json for example. Nobody pinned
    those, so it sees the file in a folder of its own.

    Raises:
        InputError: the model is a GGUF file, and the package gguf is missing.
    """
    options = {"trust_remote_code": trusted, "local_files_only": True}
    if path.is_dir():
        yield {"pretrained_model_name_or_path": path, **options}
        return
    gguf_file.check_package(path)
    with tempfile.TemporaryDirectory(prefix="lensmith-gguf-") as folder:
        (Path(folder) / path.name).symlink_to(path.resolve())
        yield {"pretrained_model_name_or_path": folder, "gguf_file": path.name, **options}
