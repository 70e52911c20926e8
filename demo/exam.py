"""How well a model knows the small world: its answers to the suite, and its loss on held-out documents."""

import itertools
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from demo.world import documents

HELDOUT_SEED = 1_000_003  # no training run uses this stream
IGNORED = -100


def packed(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    """The tokens of the texts, one after the other; each begins with BOS."""
    return list(itertools.chain.from_iterable(tokenizer(texts)["input_ids"]))


def heldout_blocks(tokenizer: PreTrainedTokenizerBase, n_blocks: int, length: int) -> Tensor:
    """Tokens (n_blocks, length) of the held-out stream of documents."""
    texts = documents(HELDOUT_SEED)
    tokens: list[int] = []
    while len(tokens) < n_blocks * length:
        tokens += packed(tokenizer, list(itertools.islice(texts, 100)))
    return torch.tensor(tokens[: n_blocks * length]).view(n_blocks, length)


@torch.no_grad()
def heldout_loss(model: PreTrainedModel, blocks: Tensor) -> float:
    """Mean loss in nats a token over blocks (n_blocks, length)."""
    losses = [model(input_ids=part, labels=part).loss.float() for part in blocks.split(8)]
    sizes = torch.tensor([len(part) for part in blocks.split(8)])
    return float((torch.stack(losses) * sizes).sum() / sizes.sum())


@torch.no_grad()
def answered(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], batch: int = 128
) -> list[bool]:
    """For each prompt of a suite, whether greedy decoding continues it with its answer, token by token.

    Greedy decoding yields the answer exactly if each of its tokens is the most likely one after the
    prompt and the answer's earlier tokens, so one forward pass a prompt decides.
    """
    parts = [rows[first : first + batch] for first in range(0, len(rows), batch)]
    return [ok for part in parts for ok in _answered_batch(model, tokenizer, part)]


def _answered_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]
) -> list[bool]:
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    whole = [tokenizer(f"{row['prompt']} {row['answer']}")["input_ids"] for row in rows]
    width = max(len(ids) for ids in whole)
    # Padding stands on the right of a causal model: it changes nothing before it.
    inputs = torch.zeros(len(rows), width, dtype=torch.long)
    wanted = torch.full((len(rows), width), IGNORED)
    for i, (prompt, ids) in enumerate(zip(prompts, whole, strict=True)):
        inputs[i, : len(ids)] = torch.tensor(ids)
        wanted[i, len(prompt) - 1 : len(ids) - 1] = torch.tensor(ids[len(prompt) :])
    best = model(input_ids=inputs).logits.argmax(-1)  # (batch, width)
    return ((best == wanted) | (wanted == IGNORED)).all(-1).tolist()
