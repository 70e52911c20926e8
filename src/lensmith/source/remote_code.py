"""Refuses model files that would have code fetched from elsewhere.

transformers reads these JSON files and follows much of what they say. Fields of a configuration have got around its
switch against foreign code before, so such fields are refused at any depth of a file, before transformers reads it.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from lensmith.files.artifacts import parse_json
from lensmith.process.errors import InputError

FILES = ("config.json", "tokenizer_config.json", "generation_config.json")
MAX_BYTES = 64 * 2**20  # a tokenizer_config.json lists every added token
NOT_READ = "Nothing of the model was read."

# "sdpa" is code of the library; "org/kernels" or "org/kernels@main:flash" is compiled code from the Hub.
_IMPLEMENTATION_KEY = re.compile(r"_*(?:attn|experts)_implementation(?:_internal)?")
_LIBRARY_NAME = re.compile(r"[a-z0-9_]+(?:\|[a-z0-9_]+)?")
_SWITCHES = ("trust_remote_code", "use_kernels", "kernel_config", "use_pretrained_backbone")


def check(folder: Path, model_name: str) -> None:
    """Refuse a model folder whose files would have code fetched from elsewhere.

    Code of the folder itself is another matter: it runs only with source.trust_remote_code.

    Raises:
        InputError: the first such field, or a file that is not a JSON object.
    """
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{model_name}: adapter_config.json: an adapter names a base model elsewhere; merge it. {NOT_READ}"
        )
    for file_name in FILES:
        path, where = folder / file_name, f"{model_name}: {file_name}"
        if not path.exists():
            continue
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{where} has more than {MAX_BYTES} bytes. {NOT_READ}")
        try:
            value = parse_json(path.read_bytes())
        except ValueError as error:
            raise InputError(f"{where} cannot be used, it is not JSON ({error}). {NOT_READ}") from None
        if not isinstance(value, dict):
            raise InputError(f"{where} cannot be used, it is not a JSON object. {NOT_READ}")
        for dotted_key, problem in _problems(value, ""):
            raise InputError(f"{where}: {dotted_key} {problem}. {NOT_READ}")


def _problems(value: object, dotted_key: str) -> Iterator[tuple[str, str]]:
    """(dotted key, problem) of each forbidden field at any depth."""
    if isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _problems(entry, f"{dotted_key}[{index}]")
    if not isinstance(value, dict):
        return
    for key, entry in value.items():
        where = f"{dotted_key}.{key}" if dotted_key else key
        if key in _SWITCHES and entry:
            yield where, f"is {json.dumps(entry)[:80]}, which allows code from elsewhere"
        elif key == "auto_map" and (foreign := next((name for name in _strings(entry) if "--" in name), None)):
            yield where, f"names code of another repository ({foreign!r})"
        elif _IMPLEMENTATION_KEY.fullmatch(key) and not all(map(_LIBRARY_NAME.fullmatch, _strings(entry))):
            yield where, f"is {json.dumps(entry)[:80]}, must be an implementation of the library, such as sdpa"
        else:
            yield from _problems(entry, where)


def _strings(value: object) -> Iterator[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _strings(entry)
