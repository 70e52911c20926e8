"""Which prompts of a suite stand in the training text, word for word.

A prompt with its answer's first token counts as present where a run of GRAM of its tokens, or all of them where it
is shorter, occurs in the packed text. Runs are found by a rolling hash and compared token by token.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GRAM = 13  # as usual for the overlap of evaluation sets with training text
_BASE = np.uint64(0x9E3779B97F4A7C15)


def in_text(sequences: Sequence[list[int]], text: NDArray[np.uint32]) -> list[bool]:
    """For each sequence of token ids, whether the text (any shape, read in order) holds one of its runs."""
    stream = text.ravel()
    runs: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    for place, ids in enumerate(sequences):
        size = min(GRAM, len(ids))
        for start in range(len(ids) - size + 1 if size else 0):
            runs.setdefault(size, []).append((place, tuple(ids[start : start + size])))
    present = [False] * len(sequences)
    for size, grams in runs.items():
        if len(stream) < size:
            continue
        wanted = np.array([_hashes(np.array(gram, dtype=np.uint32), size)[0] for _, gram in grams])
        hits = np.flatnonzero(np.isin(_hashes(stream, size), wanted))
        in_stream = {tuple(stream[start : start + size].tolist()) for start in hits}
        for place, gram in grams:
            present[place] |= gram in in_stream
    return present


def _hashes(stream: NDArray[np.uint32], size: int) -> NDArray[np.uint64]:
    count = len(stream) - size + 1
    hashed = np.zeros(count, dtype=np.uint64)
    for offset in range(size):  # wraps around 2**64, as a hash may
        hashed = hashed * _BASE + stream[offset : offset + count] + np.uint64(1)
    return hashed
