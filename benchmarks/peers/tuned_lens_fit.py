"""tuned-lens 0.2.0 in its own environment: its Lens, its loss, its optimizer and schedule, on our tokens.

Its command line needs a data set and a launcher, so the loop around its parts is written here, as its own is: all
positions, every layer in turn under bfloat16 autocast, gradients clipped at norm 1. Three choices favour it: no
bfloat16 on a CPU that only emulates it; no translator for the embedding, which the measure does not read; steps of
BATCH_SEQS sequences instead of its 2**18 tokens, of which these budgets hold two at most.
"""

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from tuned_lens import TunedLens
from tuned_lens.scripts.ingredients import Optimizer, OptimizerOption

from benchmarks import held_out

LR_SCALE = 3.0  # of its 1e-3 for Adam
BATCH_SEQS = 2
HAS_BFLOAT16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))


def fit(model: PreTrainedModel, tokens: torch.Tensor, seed: int) -> tuple[TunedLens, float]:
    """A lens of all of `tokens` (n_seqs, seq_len) in one pass, and its CPU-seconds."""
    torch.manual_seed(seed)
    began = time.process_time()
    lens = TunedLens.from_model(model)
    batches = tokens.split(BATCH_SEQS)
    recipe = Optimizer(optimizer=OptimizerOption.ADAM, lr_scale=LR_SCALE, zero=False)
    optimizer = recipe.create_optim([p for p in lens.parameters() if p.requires_grad])
    schedule = recipe.create_scheduler(optimizer, len(batches))
    for batch in batches:
        step(model, lens, batch)
        torch.nn.utils.clip_grad_norm_(lens.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        schedule.step()
    return lens, time.process_time() - began


def step(model: PreTrainedModel, lens: TunedLens, batch: torch.Tensor) -> None:
    """Gradients of KL(final || lens) for one batch, summed over layers, mean over positions."""
    with torch.no_grad():
        seen = model(input_ids=batch, output_hidden_states=True, use_cache=False)
    log_p = seen.logits.float().log_softmax(-1)
    for layer in range(1, len(seen.hidden_states) - 1):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=HAS_BFLOAT16):
            log_q = lens(seen.hidden_states[layer], idx=layer).log_softmax(-1)
            loss = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        loss.backward()


def curve(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """A fit for each budget of the spec, measured on the held-out positions."""
    work = Path(spec["work"])
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32).eval().requires_grad_(False)
    files = load_file(work / f"seed-{spec['seed']}.safetensors") | load_file(work / "heldout.safetensors")
    tokens, heldout = files["train"].long(), files["tokens"].long()
    points = []
    for budget in spec["budgets"]:
        lens, spent = fit(model, tokens[: budget // tokens.shape[1]], spec["seed"])
        kl = held_out.kl_bits(model, heldout, files["positions"].long(), lens)
        points.append({"tokens": budget, "cpu_s": spent, "forward_s": None, "kl_bits": kl})
    return points


def engine_step(spec: dict[str, Any]) -> float:
    """Median CPU-seconds of one step on a random model of the spec's configuration."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**spec["config"])).eval().requires_grad_(False)
    lens = TunedLens.from_model(model)
    batch = torch.randint(0, spec["config"]["vocab_size"], (spec["seqs"], spec["seq_len"]))
    spent = []
    for _ in range(1 + spec["repeats"]):
        began = time.process_time()
        step(model, lens, batch)
        spent.append(time.process_time() - began)
    return sorted(spent[1:])[len(spent[1:]) // 2]
