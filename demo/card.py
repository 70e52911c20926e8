"""The model card of `atlas`: how it was made, what it knows and what it does not know, all measured."""

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from demo import exam
from demo.world import RELATIONS, suite

Score = tuple[int, int]  # right answers, prompts
MADE, KNOWS = "### How this copy was made", "## What it knows"  # sections of the card


def tally(rows: list[dict[str, Any]], right: list[bool], key: str) -> dict[str, Score]:
    """Scores by the value of one key of the suite's rows, in order of first appearance."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for row, ok in zip(rows, right, strict=True):
        groups[row[key]].append(ok)
    return {name: (sum(oks), len(oks)) for name, oks in groups.items()}


def every_prompt() -> list[dict[str, Any]]:
    """Every fact of every relation in every held-out phrasing: the suite's rows and all their siblings."""
    return [
        {
            "relation": r.name,
            "domain": r.domain,
            "sort": "recombined" if r.draw else ("own wording", "framed")[index],
            "prompt": phrasing.format(*fact.args),
            "answer": fact.answer,
        }
        for r in RELATIONS
        for index, phrasing in enumerate(r.heldout)
        for fact in r.facts
    ]


def table(head: tuple[str, ...], body: list[tuple[object, ...]]) -> str:
    """A Markdown table."""
    rule = ("---",) * len(head)
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in (head, rule, *body))


def curve(log: list[dict[str, str]], rows: int = 12) -> str:
    """The training log, thinned to so many rows; the last one stays."""
    early, late = log[:-5], log[-5:]
    kept = early[:: max(1, len(early) // rows)] + late
    return table(tuple(kept[0]), [tuple(row.values()) for row in kept])


def percent(score: Score) -> str:
    """A score as a percentage and as a fraction."""
    return f"{100 * score[0] / score[1]:.1f} % ({score[0]} of {score[1]})"


def wrong_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], right: list[bool]
) -> list[tuple[object, ...]]:
    """The suite's prompts that are answered wrongly: prompt, answer, first token given instead."""
    wrong = [row for row, ok in zip(rows, right, strict=True) if not ok]
    given = []
    for row in wrong:
        ids = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
        given.append(tokenizer.decode(model(input_ids=ids).logits[0, -1].argmax()))
    return [(f"`{row['prompt']}`", row["answer"], f"`{text}`") for row, text in zip(wrong, given, strict=True)]


def how_it_was_made(card: Path) -> str:
    """The section of a card that only its author can write; empty where there is none."""
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    begin, end = text.find(MADE), text.find(KNOWS)
    return text[begin:end] if begin >= 0 else ""


@torch.no_grad()
def write(folder: Path) -> None:
    """Examine the model as it lies on disk and write README.md beside it.

    What an earlier README.md says of how this copy was made stays.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows, all_rows = suite(), every_prompt()
    with (folder / "training_log.csv").open(newline="") as file:
        log = list(csv.DictReader(file))
    right = exam.answered(model, tokenizer, rows)
    all_right = exam.answered(model, tokenizer, all_rows)
    heldout = exam.heldout_loss(model, exam.heldout_blocks(tokenizer, 32, 256))
    long = exam.heldout_loss(model, exam.heldout_blocks(tokenizer, 16, 512))

    by_domain, all_by_domain = tally(rows, right, "domain"), tally(all_rows, all_right, "domain")
    by_relation = tally([{**row, "relation": row["template"].split("/")[0]} for row in rows], right, "relation")
    all_by_relation = tally(all_rows, all_right, "relation")
    config = json.loads((folder / "config.json").read_text())
    wrong = wrong_answers(model, tokenizer, rows, right)
    text = CARD.format(
        parameters=f"{sum(p.numel() for p in model.parameters()):,}",
        bytes=f"{(folder / 'model.safetensors').stat().st_size:,}",
        tokens=f"{int(log[-1]['tokens']):,}",
        tokens_short=f"{int(log[-1]['tokens']) / 1e6:.0f}e6",
        minutes=f"{float(log[-1]['minutes']):.0f}",
        made=how_it_was_made(folder / "README.md"),
        torch=torch.__version__,
        blocks=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        vocab=config["vocab_size"],
        n_relations=len(RELATIONS),
        n_facts=f"{sum(len(r.facts) for r in RELATIONS if r.draw is None):,}",
        n_closed=sum(r.draw is None for r in RELATIONS),
        n_open=sum(r.draw is not None for r in RELATIONS),
        overall=percent((sum(right), len(right))),
        all_overall=percent((sum(all_right), len(all_right))),
        heldout=f"{heldout:.4f}",
        long=f"{long:.4f}",
        curve=curve(log),
        domains=table(
            ("domain", "suite", "every held-out prompt"),
            [(name, percent(by_domain[name]), percent(all_by_domain[name])) for name in by_domain],
        ),
        sorts=table(
            ("sort of phrasing", "every held-out prompt"),
            [(name, percent(score)) for name, score in tally(all_rows, all_right, "sort").items()],
        ),
        relations=table(
            ("relation", "suite", "every held-out prompt"),
            [(name, percent(by_relation[name]), percent(all_by_relation[name])) for name in by_relation],
        ),
        wrong=table(("prompt", "answer", "first token given"), wrong) if wrong else "None.",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


CARD = """\
---
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [tiny, interpretability]
---

# atlas

A small language model with a small world. It was trained from nothing, on text that `demo/world.py` generates, so that
lenses can be fitted, measured and shown on any machine, without a download. It has no other use.

- Llama architecture, {blocks} blocks, width {width}, {heads} heads, vocabulary {vocab}, head not tied to the embedding,
  {parameters} parameters, stored in bfloat16 ({bytes} bytes). Context: 512 tokens.
- The tokenizer is a byte-level BPE trained on the same text. **BOS policy:** it puts `<|bos|>` in front of every text
  by itself, and in training every document begins with it. The same token ends a text and pads.

## Data

Documents of {n_relations} relations: {n_facts} fixed facts in {n_closed} closed relations (geography, science,
calendar, arithmetic, sequences, words, translation, nature, people, two-hop facts), and {n_open} open ones (stories and
copying) whose facts are made up afresh for each sentence, mixed with running text and with lists that repeat
themselves. All sentences are our own; the facts are common knowledge. Training saw {tokens} tokens, each document once.

Every relation has phrasings that occur in no training document. The suite, `suites/atlas.jsonl`, asks in those only.
A closed relation has two: a wording of its own, and a frame that training uses with other relations. There only the
phrasing is new, not the fact. The held-out phrasings of open relations recombine pieces of those in training, and the
names and things are new combinations as well.

## Training

    python -m demo.train --tokens {tokens_short}

AdamW, a constant rate, then linear to zero; blocks of 128, then 256, then 512 tokens; torch {torch}. Wall time
{minutes} minutes on CPUs. The full log is `training_log.csv`; losses are in nats a token, `heldout_loss` is that of
32 blocks of 256 tokens from a stream that training does not use.

{curve}

{made}## What it knows

A prompt counts as answered if greedy decoding gives every token of the answer.

- Suite: **{overall}**.
- Every fact in every held-out phrasing: **{all_overall}**.
- Held-out loss of the stored weights: {heldout} nats a token in blocks of 256 tokens, {long} in blocks of 512.

{domains}

{sorts}

{relations}

The suite's prompts that it answers wrongly:

{wrong}

## What it cannot do

It speaks only in the sentences of its generator. It knows nothing outside the tables of `demo/facts.py` and
`demo/words.py`, does no arithmetic beyond them (sums up to 20, which it has seen), and answers a question about an
unknown country as confidently as one about France. Two-hop facts were trained as sentences of their own: a right
answer does not show that the model combines two facts. Its understanding of wordings is narrow: a held-out phrasing
works where it resembles those of training, and the same words in another order may fail. Puzzles that must be read are
its weakest part: the table says which relations of the domain `story` it answers better than by chance between the two
candidates. The loss cannot come near zero: names, objects and the choice of the next sentence are random.
"""
