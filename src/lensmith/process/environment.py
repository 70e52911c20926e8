"""Numbers that environment variables set."""

import os

from lensmith.process.errors import InputError


def number(name: str, unit: str, otherwise: float | None, nothing: str) -> float | None:
    """The variable's value, `otherwise` where it is not set or empty.

    Raises:
        InputError: it is not a number from 0 on. `nothing` is the end of that line: what was not done.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return otherwise
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise InputError(f"{name} is {text!r}, must be a number of {unit} >= 0. {nothing}")
    return found
