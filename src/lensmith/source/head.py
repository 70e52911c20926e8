"""The head of a frozen model in fp32: its norms, its unembedding, and what it does to its logits.

    logits = g( N(resid) W_Uᵀ + b )         resid (..., d_model), W_U (d_vocab, d_model), logits (..., d_vocab)
    g(z)   = cap · tanh(scale · z / cap)    where the model has a softcap, else scale · z

N is a copy of the model's own norm module. Norms differ: Gemma multiplies by 1 + w, OLMo has no parameters, Cohere
centres.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

NormKind = Literal["final", "next_input"]

# Rows of W_U that are hashed at a time: a whole fp32 copy on the host would be gigabytes.
_HASH_ROWS = 4096


class ByDevice(NamedTuple):
    """A size that suits a CPU, and one that suits anything else."""

    cpu: int
    accelerator: int

    def of(self, device: torch.device) -> int:
        return self.cpu if device.type == "cpu" else self.accelerator


# Logits held at a time: on a CPU several passes over them should stay in cache; on a GPU products should fill it.
CHUNK_BYTES = ByDevice(cpu=2**23, accelerator=2**30)
MIN_POSITIONS = 256  # with fewer, reading W_U would bound a product


@dataclass(frozen=True)
class Transform:
    """g: what a model does to its logits after W_U."""

    scale: float = 1.0
    softcap: float | None = None
    source: str = "none"  # the settings of the configuration that it comes from

    def __call__(self, z: Tensor) -> Tensor:
        """(..., d_vocab), same out."""
        scaled = z if self.scale == 1.0 else z * self.scale
        return scaled if self.softcap is None else torch.tanh(scaled / self.softcap) * self.softcap

    def cap_(self, z: Tensor) -> Tensor:
        """The softcap of scaled logits, in place; without one, z as it is."""
        return z if self.softcap is None else z.div_(self.softcap).tanh_().mul_(self.softcap)

    def slope(self, z: Tensor, out: Tensor | None = None) -> Tensor | float:
        """Derivative of the softcap at capped logits z, in `out` where it is given; 1 without a softcap."""
        return 1.0 if self.softcap is None else torch.div(z, self.softcap, out=out).square_().neg_().add_(1)


class HeadInput(NamedTuple):
    """What a head reads at n positions under one lens at one layer: the arguments of `Head.logits`."""

    y: Tensor  # (n, d_model), fp32
    log_tau: Tensor | None = None  # scalar


@dataclass(frozen=True)
class Head:
    """Frozen fp32 copies of a model's norms and unembedding; gradients pass through to `resid`."""

    W_U: Tensor  # (d_vocab, d_model)
    bias: Tensor | None  # (d_vocab,)
    transform: Transform
    final_norm: nn.Module
    input_norms: tuple[nn.Module | None, ...]  # of each block, the first norm that reads its input, if any
    norm_note: str  # what `next_input` means in this model, in words

    @property
    def scale(self) -> float:
        return self.transform.scale

    @property
    def softcap(self) -> float | None:
        return self.transform.softcap

    def norm(self, resid: Tensor, layer: int, kind: NormKind = "final") -> Tensor:
        """N(resid) of one layer.

        Args:
            resid: (..., d_model), any float dtype.
            layer: 0 for the embedding, i for the residual after block i - 1.
            kind: `next_input` takes the input norm of the block that reads this residual, block `layer`; the last
                layer, and a block without an input norm, take the final norm.

        Returns:
            (..., d_model) in fp32.
        """
        n_layers = len(self.input_norms)
        if not 0 <= layer <= n_layers:
            raise ValueError(f"Head.norm: layer is {layer}, must be in 0..{n_layers}")
        input_norm = self.input_norms[layer] if kind == "next_input" and layer < n_layers else None
        normed: Tensor = (input_norm or self.final_norm)(resid.float())
        return normed

    def logits(self, y: Tensor, log_tau: Tensor | None = None) -> Tensor:
        """g((y W_Uᵀ + b) / exp(log_tau)).

        Args:
            y: (..., d_model), fp32.
            log_tau: broadcastable to y.shape[:-1]. It acts before g, so that 0 gives the model.

        Returns:
            (..., d_vocab), fp32.
        """
        z = nn.functional.linear(y, self.W_U, self.bias)
        return self.transform(z if log_tau is None else z * torch.exp(-log_tau).unsqueeze(-1))

    def positions_at_once(self, budget: int | None = None) -> int:
        """Positions whose logits take `budget` bytes, by default as many as suit the device."""
        bytes_per_position = len(self.W_U) * self.W_U.itemsize
        return max(MIN_POSITIONS, (budget or CHUNK_BYTES.of(self.W_U.device)) // bytes_per_position)

    def fingerprint(self) -> dict[str, str]:
        """sha256 of the fp32 little-endian bytes of W_U, and of the final norm's tensors in order of their names."""
        norm = [tensor for _, tensor in sorted(self.final_norm.state_dict().items()) if tensor.is_floating_point()]
        return {"w_u_sha256": _sha256([self.W_U]), "final_norm_sha256": _sha256(norm)}


def _sha256(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        for rows in torch.split(tensor, _HASH_ROWS) if tensor.dim() else (tensor,):
            digest.update(rows.detach().float().cpu().contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()
