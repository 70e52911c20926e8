"""The head of a frozen model in fp32: its norms, its unembedding, and what it does to its logits.

    logits = g( N(resid) W_Uᵀ + b )         resid (..., d_model), W_U (d_vocab, d_model), logits (..., d_vocab)
    g(z)   = cap · tanh(scale · z / cap)    where the model has a softcap, else scale · z

N is the model's own norm module, copied: Gemma multiplies by 1 + w, OLMo has no parameters, Cohere centres. A norm
written anew would be wrong for one of them.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

NormKind = Literal["final", "next_input"]

# Rows of W_U that are hashed at a time: a whole fp32 copy on the host would be gigabytes.
_HASH_ROWS = 4096
# Logits held at a time: on a CPU a few passes over them should stay in cache; a GPU wants products that fill it.
CHUNK_BYTES = {"cpu": 2**23, "cuda": 2**30}
MIN_ROWS = 256  # fewer would leave a product bound by reading W_U


@dataclass(frozen=True)
class Transform:
    """g: what a model does to its logits after W_U."""

    scale: float = 1.0
    softcap: float | None = None
    source: str = "none"  # the settings of the model's configuration that it was read from

    def __call__(self, z: Tensor) -> Tensor:
        """(..., d_vocab), same out."""
        scaled = z if self.scale == 1.0 else z * self.scale
        return scaled if self.softcap is None else torch.tanh(scaled / self.softcap) * self.softcap


@dataclass(frozen=True)
class Head:
    """fp32 copies of a model's norms and unembedding. Nothing here is trained; gradients pass through to `resid`."""

    W_U: Tensor  # (d_vocab, d_model)
    bias: Tensor | None  # (d_vocab,)
    transform: Transform
    final_norm: nn.Module
    input_norms: tuple[nn.Module | None, ...]  # of each block, the first that reads its input; None where it has none
    norm_note: str  # which norms `next_input` means in this model

    @property
    def scale(self) -> float:
        return self.transform.scale

    @property
    def softcap(self) -> float | None:
        return self.transform.softcap

    def norm(self, resid: Tensor, row: int, kind: NormKind = "final") -> Tensor:
        """N(resid) for CSV row `row`.

        Args:
            resid: (..., d_model), any float dtype.
            row: 0 for the embedding, i for the residual after block i - 1.
            kind: `next_input` takes the input norm of block `row`, which reads that residual; the last row, and a
                block without an input norm, take the final norm.

        Returns:
            (..., d_model) in fp32.
        """
        if not 0 <= row <= len(self.input_norms):
            raise ValueError(f"Head.norm: row is {row}, must be in 0..{len(self.input_norms)}")
        own = self.input_norms[row] if kind == "next_input" and row < len(self.input_norms) else None
        normed: Tensor = (own or self.final_norm)(resid.float())
        return normed

    def logits(self, y: Tensor, log_tau: Tensor | None = None) -> Tensor:
        """g((y W_Uᵀ + b) / exp(log_tau)).

        Args:
            y: (..., d_model), fp32.
            log_tau: broadcastable to y.shape[:-1]. It acts before g, so that 0 is the model itself.

        Returns:
            (..., d_vocab), fp32.
        """
        z = nn.functional.linear(y, self.W_U, self.bias)
        return self.transform(z if log_tau is None else z * torch.exp(-log_tau).unsqueeze(-1))

    def positions_at_once(self, budget: int | None = None) -> int:
        """Of how many positions the logits are held at a time, in `budget` bytes, by default what suits the device."""
        row = len(self.W_U) * self.W_U.itemsize
        return max(MIN_ROWS, (budget or CHUNK_BYTES[self.W_U.device.type]) // row)

    def fingerprint(self) -> dict[str, str]:
        """sha256 of the fp32 little-endian bytes of W_U, and of the final norm's tensors in order of their names."""
        norm = [tensor for _, tensor in sorted(self.final_norm.state_dict().items()) if tensor.is_floating_point()]
        return {"w_u_sha256": _sha256([self.W_U]), "final_norm_sha256": _sha256(norm)}


def _sha256(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        for rows in _chunks(tensor):
            digest.update(rows.detach().float().cpu().contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    return iter(torch.split(tensor, _HASH_ROWS)) if tensor.dim() else iter([tensor])
