"""Keys and values of a text that grows by a token at a time, in tensors with room for more.

`DynamicCache` concatenates: each token copies those of all tokens before it.
"""

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer


def growing_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty cache for a model. Layers that keep a window of the text are transformers' own."""
    cache = DynamicCache(config=config.get_text_config())
    layers = (GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers)  # type: ignore[no-untyped-call]
    cache.layers = list(layers)
    return cache


class GrowingLayer(DynamicLayer):
    """`keys` and `values` (batch, heads, pos, d_head) are the first positions of tensors with room for more."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Begin without positions."""
        super().lazy_initialization(key_states, value_states)
        self._rooms: list[Tensor | None] = [None, None]

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """All keys and values, with those of new positions (batch, heads, new, d_head)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self._append(0, self.keys, key_states), self._append(1, self.values, value_states)
        return self.keys, self.values

    def _append(self, nth: int, held: Tensor, new: Tensor) -> Tensor:
        n = held.shape[-2] if held.numel() else 0
        stop, room = n + new.shape[-2], self._rooms[nth]
        # A reordered cache holds tensors of its own.
        if room is None or stop > room.shape[-2] or (n and held.data_ptr() != room.data_ptr()):
            room = new.new_empty(*new.shape[:-2], 2 * stop, new.shape[-1])
            if n:
                room[..., :n, :] = held
            self._rooms[nth] = room
        room[..., n:stop, :] = new
        return room[..., :stop, :]
