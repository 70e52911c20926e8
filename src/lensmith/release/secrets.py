"""What must not leave the lab: tokens, keys, and paths that name somebody's machine."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import get_token

from lensmith.process import credentials
from lensmith.process.errors import InputError

# Tensors hold no text; provenance and cards say where they came from.
BINARY = (".safetensors", ".pt")

PATTERNS = credentials.PATTERNS | {
    "a home path": r"(?:/home|/Users)/[A-Za-z0-9_.-]+/|/root/[A-Za-z0-9_.-]|[A-Za-z]:\\\\?Users\\\\?[A-Za-z0-9_.-]+",
}


def refuse(folder: Path) -> None:
    """InputError for the first file below `folder` that holds one. The message names the kind, never the text."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in BINARY):
        for line, kind in find(path.read_text(encoding="utf-8", errors="replace")):
            raise InputError(f"{path}:{line}: holds {kind}, which must not be published. Nothing was sent.")


def find(text: str) -> Iterator[tuple[int, str]]:
    """(line, kind) of each secret in a text: what has the form of one, and the tokens and paths of this machine."""
    home = os.path.expanduser("~")  # noqa: PTH111, as text: it may not exist
    local = {"your token": get_token() or "", "your home path": home, "the path of this lab": str(Path.cwd())}
    patterns = {kind: re.compile(pattern) for kind, pattern in PATTERNS.items()}
    patterns |= {kind: re.compile(re.escape(value)) for kind, value in local.items() if len(value) > len("/home")}
    for number, line in enumerate(text.splitlines(), 1):
        for kind, pattern in patterns.items():
            if pattern.search(line):
                yield number, kind
