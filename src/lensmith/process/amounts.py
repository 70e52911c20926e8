"""How messages name amounts: bytes, and how many of a thing."""

import humanize

GIB = 2**30  # bytes


def size(n_bytes: float) -> str:
    """Bytes in binary units: 512 Bytes, 120.6 KiB, 2.3 GiB."""
    return humanize.naturalsize(n_bytes, binary=True)


def many(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: 1 model, 2 models. `plural` is given where it is not the noun with an s."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"
