"""Tiny random causal LMs of many families, and a tokenizer with BOS: the fixtures of all tests.

Every weight is drawn anew, norm gains and biases included: at initialisation gains are 1 and biases 0, and a test
could not tell the right norm from a wrong one.
"""

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

logging.disable_progress_bar()

BOS, UNK = "<s>", "<unk>"
ALPHABET = string.ascii_letters + string.digits + " \n.,;:!?'\"()-"
TEXT = [
    "The capital of Ostra is Lume. The river of the north runs to the sea.",
    "He said that the answer is the number 7, and she said that it was 12.",
    "In the town of Merrow, the people and the king went to the market there.",
]

# What differs from the common Llama-like configuration below. `model_type` defaults to the family's name.
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 4]], "intermediate_size": 64},
    "gptj": {"rotary_dim": 4, "n_inner": 64},
    "gpt_neox": {},
    "gpt_neox_sequential": {"model_type": "gpt_neox", "use_parallel_residual": False},
    "gpt_bigcode": {"n_inner": 64},
    "codegen": {"rotary_dim": 4, "n_inner": 64},
    "bloom": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": "d_model"},
    "llama": {},
    "llama_tied": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": {},
    "mixtral": {"num_local_experts": 4},
    "qwen2": {},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "qwen3": {},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2},
    "qwen3_next": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "gemma": {},
    "gemma2": {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window": 16},
    "gemma3": {"text": True, "model_type": "gemma3"},
    "phi": {},
    "phi3": {},
    "phimoe": {"num_local_experts": 4},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 16},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "exaone4": {"sliding_window": 16},
    "falcon": {"multi_query": True, "parallel_attn": True, "bias": False},
    "falcon_new": {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2, "bias": False},
    "falcon_h1": {
        "lm_head_multiplier": 0.5,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
    },
    "stablelm": {},
    "starcoder2": {},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 16},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "granitemoe": {"logits_scaling": 4.0, "num_local_experts": 4, "num_experts_per_tok": 2},
    "glm4": {},
    "nemotron": {},
    "smollm3": {},
    "seed_oss": {},
    "apertus": {},
    "arcee": {},
    "ernie4_5": {},
    "persimmon": {},
    "nanochat": {"final_logit_softcapping": 5.0},
    "hyperclovax": {"logits_scaling": 0.25},
    "recurrent_gemma": {"logits_soft_cap": 5.0},
    "olmo_hybrid": {},
    "mamba": {},
    "jamba": {},
    "lfm2": {},
    "mpt": {},
    "xglm": {},
    "biogpt": {},
    "helium": {},
    "glm": {},
    "vaultgemma": {"final_logit_softcapping": 5.0},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "head_dim": 4,
        "num_key_value_heads": 4,
    },
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
}

# Built like OPT-350m: norms after the residual sum, a projection before the head, no final norm.
OPT_350M = {
    "model_type": "opt",
    "ffn_dim": 64,
    "word_embed_proj_dim": 16,
    "do_layer_norm_before": False,
    "_remove_final_layer_norm": True,
}


def tiny_model(
    family: str, *, n_layers: int = 3, d_model: int = 32, vocab: int = 97, seed: int = 0, **config: Any
) -> PreTrainedModel:
    """A random fp32 model on the CPU, in eval mode; the same weights for the same arguments.

    `family` is a key of FAMILIES, or `opt_350m`; `config` holds settings of its configuration that a test wants
    otherwise.
    """
    changes = {**(OPT_350M if family == "opt_350m" else FAMILIES[family]), **config}
    model_type = changes.pop("model_type", family)
    common = {**_common(n_layers, d_model, vocab), **_own_names(model_type, n_layers)}
    settings: dict[str, Any] = {**common, **changes}
    settings = {name: value for name, value in settings.items() if (name, value) != ("head_dim", None)}
    if settings.get("word_embed_proj_dim") == "d_model":
        settings["word_embed_proj_dim"] = d_model
    if "attention_types" in settings:
        settings["attention_types"] = [[["global"], n_layers]]
    if "layer_types" in settings:
        kinds = settings["layer_types"]
        settings["layer_types"] = [kinds[i % len(kinds)] for i in range(n_layers)]
    if settings.pop("text", False):
        settings = {"text_config": settings, "vision_config": _vision(d_model), "mm_tokens_per_image": 4}
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # some families draw vectors from the global generator
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings), dtype=torch.float32)
    randomise(model, seed)
    return model.eval()


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Draw every parameter anew: matrices so that blocks matter, vectors around what they were."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.3 * noise if parameter.dim() == 1 else 0.15 * noise)


def _common(n_layers: int, d_model: int, vocab: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": d_model,
        "intermediate_size": 2 * d_model,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": d_model // 4,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }


def _own_names(model_type: str, n_layers: int) -> dict[str, Any]:
    """Settings of families that reject or rename the common ones."""
    if model_type in ("phi", "gpt_neox", "persimmon", "codegen", "gptj"):
        return {"num_key_value_heads": 4}
    if model_type == "gpt_neo":
        return {"num_heads": 4, "num_layers": n_layers}
    if model_type == "falcon":
        return {"head_dim": None}
    if model_type == "bloom":
        return {"n_head": 4, "n_layer": n_layers}
    return {}


def _vision(d_model: int) -> dict[str, Any]:
    # As many vision layers as text layers: discovery must not take them for the blocks.
    return {
        "hidden_size": d_model,
        "intermediate_size": d_model,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 4,
    }


def tiny_tokenizer(vocab: int = 97) -> PreTrainedTokenizerFast:
    """Byte-level BPE over ASCII text, at most `vocab` tokens; BOS (id 0) before every text; other bytes are <unk>."""
    if vocab < len(ALPHABET) + 2:
        raise ValueError(f"tiny_tokenizer: vocab is {vocab}, must be at least {len(ALPHABET) + 2}")
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    shown = sorted({c for c in tokenizer.pre_tokenizer.pre_tokenize_str(ALPHABET) for c in c[0]})
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[BOS, UNK], initial_alphabet=shown, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, unk_token=UNK, eos_token=BOS)


def save_tiny(folder: Path, family: str = "llama", **kw: Any) -> Path:
    """Write a tiny model (safetensors) and its tokenizer as a folder for `from_pretrained`; returns the folder."""
    model = tiny_model(family, **kw)
    model.save_pretrained(folder)
    tiny_tokenizer(kw.get("vocab", 97)).save_pretrained(folder)
    return folder
