"""The model of a GGUF file as a folder, which every loader reads: converted once, into the cache.

    <LENSMITH_HOME>/gguf/<key>/model/    configuration, tokenizer, and weights as float32 safetensors, sealed

transformers takes seconds to read a GGUF file where the vocabulary is large, and reads it for the configuration, for
the tokenizer and for the weights. Every stage wants all three.
"""

import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from functools import cache as once
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
from transformers.utils.quantization_config import GgufConfig

from lensmith.files import artifacts, cache, gguf_file, hashes, seals
from lensmith.process import amounts
from lensmith.process.errors import InputError, IntegrityError, ResourceError, first_line
from lensmith.source.configuration import NOT_LOADED
from lensmith.source.weight_names import check_names

READERS = ("gguf", "transformers")  # packages that decide what is read


def plain_folder(path: Path, name: str) -> Path:
    """The folder of a model: `path` itself, or for a GGUF file the one that it is converted to.

    Args:
        name: the model's, in messages.

    Raises:
        InputError: the package gguf is missing, or transformers cannot read this file.
        IntegrityError: the file is not whole, or a weight is not in it.
        ResourceError: the disk has no room for the weights.
    """
    if path.is_dir():
        return path
    gguf_file.check_package(path)
    key = {"schema": 1, "sha256": hashes.sha256_files([path])[path]} | {name: version(name) for name in READERS}
    return _converted(path, name, cache.folder("gguf", artifacts.sha256_text(artifacts.canonical_json(key))[:32]))


@once
def _converted(path: Path, name: str, entry: Path) -> Path:
    folder = entry / "model"
    with cache.held(entry):
        try:
            seals.check(folder)
        except IntegrityError as error:
            if folder.exists():
                print(f"{error.args[0].partition(' Nothing')[0]} It is converted again.", file=sys.stderr)
                shutil.rmtree(folder)
            _convert(path, name, folder)
            seals.seal(folder)
    return folder


def _convert(path: Path, name: str, folder: Path) -> None:
    need, free = 4 * gguf_file.read_facts(path).n_parameters, shutil.disk_usage(folder.parent).free
    if need > free:
        raise ResourceError(
            f"{folder}: the weights of {name} need {amounts.size(need)} as float32, {amounts.size(free)} are free. "
            f"`lensmith cache prune --keep 0` frees others; or set LENSMITH_HOME to a larger disk. {NOT_LOADED}"
        )
    is_log = not sys.stderr.isatty()
    if is_log:
        logging.disable_progress_bar()  # in a log file every redraw of a bar is a line
    # transformers prefers files that lie beside a GGUF file to what is in it, a tokenizer.json for example. Nobody
    # pinned those, so it sees the file in a folder of its own.
    with tempfile.TemporaryDirectory(prefix="lensmith-gguf-") as alone:
        (Path(alone) / path.name).symlink_to(path.resolve())
        arguments: dict[str, Any] = {
            "pretrained_model_name_or_path": alone,
            "gguf_file": path.name,
            "local_files_only": True,
        }
        # The bar of the GGUF reader heeds no setting of transformers.
        with redirect_stderr(io.StringIO()) if is_log else nullcontext(), _read_once():
            try:
                tokenizer = AutoTokenizer.from_pretrained(**arguments)
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    **arguments,
                    dtype="float32",
                    output_loading_info=True,
                    quantization_config=GgufConfig(dequantize=True),
                )
            except Exception as error:
                raise InputError(f"{name}: cannot be used ({first_line(error)}). {NOT_LOADED}") from error
    model, info = loaded
    check_names(name, info)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _read_once() -> Iterator[None]:
    """Within it transformers reads a file once, instead of for each part, and makes its table of names once."""
    import gguf

    slow = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, made in slow.items():
            setattr(gguf, name, once(made))
        yield
    finally:
        for name, made in slow.items():
            setattr(gguf, name, made)
