"""What a model's own JSON may not ask for: code from elsewhere, and whatever would bring it.

transformers reads these files and does much of what they say. Its own switch for code of strangers has been got around
by fields of a configuration before; so such fields are refused, wherever in a file they stand, before it reads any.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from lensmith.process.errors import InputError

READ = ("config.json", "tokenizer_config.json", "generation_config.json")
MAX_BYTES = 64 * 2**20  # a tokenizer_config.json lists every added token
NOT_READ = "Nothing of the model was read."

# "sdpa" is a way of the library; "org/kernels" or "org/kernels@main:flash" is compiled code from the Hub.
_IMPLEMENTATION = re.compile(r"_*(?:attn|experts)_implementation(?:_internal)?")
_OWN_WAY = re.compile(r"[a-z0-9_]+(?:\|[a-z0-9_]+)?")
_SWITCHES = ("trust_remote_code", "use_kernels", "kernel_config", "use_pretrained_backbone")


def check(folder: Path, place: str) -> None:
    """Refuse a model folder whose files would have code fetched from elsewhere; `place` names it in messages.

    Code of the folder itself is another matter: it runs only with source.trust_remote_code.

    Raises:
        InputError: the first such field, or a file that is no JSON object.
    """
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{place}: adapter_config.json: an adapter names a base model elsewhere; merge it. {NOT_READ}")
    for name in READ:
        if (folder / name).exists():
            for dotted, problem in _problems(_object(folder / name, place), ""):
                raise InputError(f"{place}: {name}: {dotted} {problem}. {NOT_READ}")


def _object(path: Path, place: str) -> dict[str, object]:
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{place}: {path.name} has more than {MAX_BYTES} bytes. {NOT_READ}")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        problem = "nests too deep" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{place}: {path.name} cannot be used, it is not JSON ({problem}). {NOT_READ}") from None
    if not isinstance(value, dict):
        raise InputError(f"{place}: {path.name} cannot be used, it is no JSON object. {NOT_READ}")
    return value


def _problems(value: object, dotted: str) -> Iterator[tuple[str, str]]:
    """(dotted key, what is wrong) of each forbidden field at any depth."""
    if isinstance(value, list):
        for number, below in enumerate(value):
            yield from _problems(below, f"{dotted}[{number}]")
    if not isinstance(value, dict):
        return
    for key, below in value.items():
        where = f"{dotted}.{key}" if dotted else key
        if key in _SWITCHES and below:
            yield where, f"is {json.dumps(below)[:80]}, which lets code in that nobody here asked for"
        elif key == "auto_map" and (foreign := next((name for name in _strings(below) if "--" in name), None)):
            yield where, f"names code of another repository ({foreign!r})"
        elif _IMPLEMENTATION.fullmatch(key) and not all(map(_OWN_WAY.fullmatch, _strings(below))):
            yield where, f"is {json.dumps(below)[:80]}, must be a way of the library's own, such as sdpa"
        else:
            yield from _problems(below, where)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for below in value.values() if isinstance(value, dict) else value:
            yield from _strings(below)
