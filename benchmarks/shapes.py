"""Models with random weights in the exact shapes of published ones, and what their arithmetic costs at least."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """A decoder; `config` has the names of transformers."""

    name: str
    model_type: str
    n_layers: int
    d_model: int
    d_mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    d_vocab: int
    tied: bool = False

    def model(self, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        """Made on the device, so that the host holds no copy, with small weights, so that bfloat16 stays finite."""
        config = AutoConfig.for_model(**self.config())
        with torch.device(device):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
        generator = torch.Generator(device).manual_seed(0)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.02, generator=generator)
        return model

    def config(self) -> dict[str, Any]:
        return {
            "model_type": self.model_type,
            "num_hidden_layers": self.n_layers,
            "hidden_size": self.d_model,
            "intermediate_size": self.d_mlp,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.d_vocab,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 4096,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": None,
        }

    def block_parameters(self) -> int:
        """Weights of all blocks: attention's four projections and the three of the gated MLP."""
        attention = self.d_model * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.n_layers * (attention + 3 * self.d_model * self.d_mlp)

    def parameters(self) -> int:
        """All weights, both embeddings included; norms are left out."""
        return self.block_parameters() + self.d_vocab * self.d_model * (1 if self.tied else 2)

    def forward_flop(self, seq_len: int) -> float:
        """FLOP per token of the forward pass without the head: the products of the blocks, and causal attention."""
        attention = 2 * self.n_layers * self.heads * self.head_dim * seq_len  # two products, half of them masked
        return 2 * self.block_parameters() + attention

    def forward_bytes(self, batch_tokens: int, itemsize: int) -> float:
        """Bytes per token of the forward pass: the weights once for each batch, and what a block writes and reads.

        A block's own minimum with nothing fused but attention: its input and two norms, four projections, the residual
        sum, the MLP's two inputs, their product and its output.
        """
        attention = (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        block = 2 * (8 * self.d_model + attention + 4 * self.d_mlp)
        return itemsize * (self.block_parameters() / batch_tokens + self.n_layers * block)

    def lens_flop(self) -> float:
        """FLOP per position, layer and epoch of the fit: to logits and back."""
        return 4.0 * self.d_model * self.d_vocab

    def teacher_flop(self) -> float:
        """FLOP per position, once: the final logits, and back to e_p."""
        return 4.0 * self.d_model * self.d_vocab


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("mistral-7b", "mistral", 32, 4096, 14336, 32, 8, 128, 32_000),
        Shape("llama-3-8b", "llama", 32, 4096, 14336, 32, 8, 128, 128_256),
        Shape("qwen3-8b", "qwen3", 36, 4096, 12288, 32, 8, 128, 151_936),
        Shape("gemma-2-9b", "gemma2", 42, 3584, 14336, 16, 8, 256, 256_000, tied=True),
        Shape("gemma-2-27b", "gemma2", 46, 4608, 36864, 32, 16, 128, 256_000, tied=True),
        Shape("llama-3-70b", "llama", 80, 8192, 28672, 64, 8, 128, 128_256),
    )
}
TINY = {
    shape.name: shape
    for shape in (
        Shape("tiny-llama", "llama", 3, 32, 64, 4, 2, 8, 97),
        Shape("tiny-gemma-2", "gemma2", 3, 32, 64, 4, 2, 8, 97, tied=True),
    )
}
