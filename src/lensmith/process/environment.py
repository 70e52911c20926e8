"""Every environment variable of Lensmith, in one table. They say where and when; provenance records the rest."""

import os
from pathlib import Path

from lensmith.process.errors import InputError

HOME = "LENSMITH_HOME"  # folder of banks, checkpoints, clones, hashes; without it ~/.cache/lensmith
BANK_GIB = "LENSMITH_BANK_GIB"  # most GiB that all residual banks may take; without it what the disk holds
CHECKPOINT_SECONDS = "LENSMITH_CHECKPOINT_SECONDS"  # from one checkpoint to the next; default: `lens.checkpoint`
RANKS = "LENSMITH_RANKS"  # processes that share a model of source.placement tp; without it one for each GPU


def home() -> Path:
    """Where caches live: LENSMITH_HOME, else ~/.cache/lensmith."""
    return Path(os.environ.get(HOME) or "~/.cache/lensmith").expanduser()


def number(name: str, unit: str, default: float | None, untouched: str) -> float | None:
    """The number that a variable holds, `default` where it is not set or empty.

    Raises:
        InputError: it is not a number >= 0. `untouched` ends the message: what was not done.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise InputError(f"{name} is {text!r}, must be a number of {unit} >= 0. {untouched}")
    return value
