"""How many layers an answer can move: where the model itself has it at the last position of a prompt.

    python -m benchmarks.arrival demo/atlas suites/atlas.jsonl artifacts/atlas/suite

From layer l on, the remaining blocks see only the first token, where attention rests, and the last position. If the
answer is among the first k tokens in the end, it has arrived at the last position by layer l. Printed beside the layers
where norm lens and tuned lens first have it. For models whose blocks are `model.model.layers`.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lensmith.judge import rows
from lensmith.judge.facts import SuiteFacts
from lensmith.judge.kpis import first_layers
from lensmith.judge.prompts import Prompt, read_suite
from lensmith.judge.tables import DISTANCES, NORMS, TUNED, Floats
from lensmith.lens import depth


def arrival_ranks(folder: str, prompts: list[Prompt]) -> Floats:
    """(prompts, L + 1): the answer's token rank when blocks from each layer on see two positions. NaN at layer 0."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, inner = AutoTokenizer.from_pretrained(folder), model.model
    states, positions, answers = [], [], []
    resid_post: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda *call: resid_post.append(call[2])) for block in inner.layers]
    for prompt in prompts:
        ids = tokenizer(prompt.prompt).input_ids
        resid_post.clear()
        inner(torch.tensor([ids]))
        positions.append([0, len(ids) - 1])
        states.append(torch.stack([resid[0, positions[-1]] for resid in resid_post], 1))
        answers.append(tokenizer(f"{prompt.prompt} {prompt.answer}").input_ids[len(ids)])
    for hook in hooks:
        hook.remove()
    resid, position_ids, answer = torch.stack(states), torch.tensor(positions), torch.tensor(answers)[:, None]
    # The first token does not see the last: the model is causal.
    mask = torch.tensor([[0.0, torch.finfo(torch.float32).min], [0.0, 0.0]]).expand(len(resid), 1, 2, 2)
    ranks = np.full((len(resid), len(inner.layers) + 1), np.nan)
    for layer in range(1, len(inner.layers) + 1):
        x = resid[:, :, layer - 1]
        rotary = inner.rotary_emb(x, position_ids)
        for block in inner.layers[layer:]:
            x = block(x, attention_mask=mask, position_ids=position_ids, position_embeddings=rotary)
        logits = model.lm_head(inner.norm(x[:, -1]))
        ranks[:, layer] = (logits > logits.gather(1, answer)).sum(1)
    return ranks


@torch.inference_mode()
def main() -> None:
    folder, suite_file, measured = sys.argv[1:]
    facts = SuiteFacts.read(Path(measured) / "suite.json")
    quantities = (*DISTANCES, "answer_token_rank")
    curves = rows.curves(
        Path(measured) / "rows.csv", "id", quantities, facts.n_layers, facts.lenses, absent=facts.lens.absent
    )
    prompts = [line for _, line in read_suite([suite_file]).lines]
    if tuple(prompt.id for prompt in prompts) != curves.units:
        raise SystemExit(f"{measured}: was not measured on the prompts of {suite_file}. Nothing was computed.")
    arrived, layers = arrival_ranks(folder, prompts), depth.layers(facts.n_layers, facts.lens.absent)
    for k in (10, 5):
        first = {lens: first_layers(curves.at(lens, "answer_token_rank"), k, layers) for lens in (*NORMS, TUNED)}
        norm = min((first[lens] for lens in NORMS), key=lambda reached: float(reached.mean()))
        arrival, reached = first_layers(arrived, k, layers), np.minimum(norm, first[TUNED]) <= facts.n_layers
        print(f"rank <= {k}, {reached.sum()} prompts")
        for name, by_prompt in (("arrived", arrival), ("norm lens", norm), ("tuned lens", first[TUNED])):
            shares = ", ".join(f"{100 * np.mean((norm - by_prompt)[reached] >= n):.1f} %" for n in (1, 2, 3))
            print(f"  {name:10s} median layer {np.median(by_prompt[reached]):g}; 1, 2, 3 layers earlier: {shares}")


if __name__ == "__main__":
    main()
