"""What `atlas` is made of: its tokenizer, its untrained weights, and the files it is stored in."""

import shutil
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.world import documents

BOS = "<|bos|>"
VOCAB = 4096
CONTEXT = 512  # tokens


def new_tokenizer(seed: int, n_documents: int = 30_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the world's documents; it puts BOS in front of every text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(islice(documents(seed), n_documents), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=BOS, pad_token=BOS, model_max_length=CONTEXT
    )


def new_model(seed: int) -> LlamaForCausalLM:
    """An untrained Llama of 12 blocks with a head of its own (not tied to the embedding)."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        attn_implementation="eager",  # in bfloat16 on a CPU, the fused kernel's backward takes half of a step
        vocab_size=VOCAB,
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=12,
        num_attention_heads=5,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    # The residual stream sums 2 * n_layers writes: smaller ones keep its variance near that of the embedding.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_((2 * config.num_hidden_layers) ** -0.5)
    return model


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in bfloat16 and its tokenizer; each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    frozen = LlamaForCausalLM(model.config)
    frozen.load_state_dict(model.state_dict())
    frozen.to(torch.bfloat16).save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    for file in sorted(staging.iterdir()):
        file.chmod(0o644)
        file.replace(folder / file.name)
    staging.rmdir()
