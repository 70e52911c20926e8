"""Random draws as a pure function of (seed, stream, step): no state to save, none to lose.

Philox is counter-based: the key is a hash of seed and stream, the counter holds the step. Only its raw 64-bit words
are used, since they are the part of NumPy's generators that never changes between releases.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray


class Stream:
    """One named stream of draws of one seed."""

    def __init__(self, seed: int, name: str) -> None:
        digest = hashlib.sha256(f"lensmith/1/{seed}/{name}".encode()).digest()
        self._key = np.frombuffer(digest[:16], dtype="<u8")

    def words(self, n: int, step: int) -> NDArray[np.uint64]:
        """n raw words of this step."""
        return np.random.Philox(key=self._key, counter=[0, 0, 0, step]).random_raw(n)

    def permutation(self, n: int, step: int) -> NDArray[np.int64]:
        """0..n-1 in the order of this step."""
        return np.argsort(self.words(n, step), kind="stable")

    def subset(self, n: int, size: int, step: int) -> NDArray[np.int64]:
        """`size` distinct numbers out of 0..n-1, ascending."""
        chosen: NDArray[np.int64] = np.sort(self.permutation(n, step)[:size])
        return chosen

    def normal(self, shape: tuple[int, ...], step: int) -> NDArray[np.float32]:
        """Standard normal draws, by Box and Muller."""
        size = int(np.prod(shape))
        # 53 bits and a half: strictly inside (0, 1), so that the logarithm is finite.
        u = ((self.words(2 * size, step) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        radius = np.sqrt(-2 * np.log(u[:size]))
        drawn: NDArray[np.float32] = (radius * np.cos(2 * np.pi * u[size:])).astype(np.float32)
        return drawn.reshape(shape)
