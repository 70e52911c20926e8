"""How messages name amounts: bytes and seconds."""

import humanize

GIB = 2**30  # bytes


def size(n_bytes: float) -> str:
    """Bytes in binary units: 512 Bytes, 120.6 KiB, 2.3 GiB."""
    return humanize.naturalsize(n_bytes, binary=True)
