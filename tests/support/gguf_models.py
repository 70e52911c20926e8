"""Tiny models as GGUF files, written with the package gguf as llama.cpp's converter lays them out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import dequantize, quantize
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.tiny import tiny_model, tiny_tokenizer

# GGUF's names for the parts of a Llama block.
BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}


def save_gguf(
    path: Path, tensor_type: str = "F32", *, architecture: str = "llama", vocab: int = 97, **tiny: Any
) -> PreTrainedModel:
    """Write a tiny Llama with its tokenizer, matrices as `tensor_type`; the model that a reader gets."""
    model = tiny_model("llama", vocab=vocab, **tiny)
    writer = GGUFWriter(path, architecture)
    _write_settings(writer, model)
    _write_tokenizer(writer, vocab)
    kind = GGMLQuantizationType[tensor_type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
            stored = parameter.numpy() if heads is None else _interleaved(parameter, heads).numpy()
            if stored.ndim == 1 or kind == GGMLQuantizationType.F32:
                writer.add_tensor(_gguf_name(name), stored)
                continue
            blocks = quantize(stored, kind)
            writer.add_tensor(_gguf_name(name), blocks, raw_dtype=kind)
            read = torch.from_numpy(np.array(dequantize(blocks, kind)))
            parameter.copy_(read if heads is None else _halves(read, heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _write_settings(writer: GGUFWriter, model: PreTrainedModel) -> None:
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: GGUFWriter, vocab: int) -> None:
    tokenizer = tiny_tokenizer(vocab)
    tokens = tokenizer.convert_ids_to_tokens(range(vocab))
    state = tokenizer.backend_tokenizer.to_str()
    merges = json.loads(state)["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 2 + [TokenType.NORMAL] * (vocab - 2))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_add_bos_token(value=True)


def _gguf_name(name: str) -> str:
    parts = name.removeprefix("model.").removesuffix(".weight").split(".")
    if parts[0] == "layers":
        return f"blk.{parts[1]}.{BLOCK['.'.join(parts[2:])]}.weight"
    return f"{OUTSIDE[parts[0]]}.weight"


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """A projection's rows as GGUF keeps them: the two halves that rotary embeddings pair, side by side."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _halves(weight: Tensor, heads: int) -> Tensor:
    """The inverse of `_interleaved`."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
