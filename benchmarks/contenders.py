"""Our side of `quality_per_second`: a recipe of params.yaml at several budgets, through the code that stage `fit` runs.

The capture is paid once for the largest budget, and every budget is charged its share: a bank is filled sequence by
sequence, each at the same cost. The rows that early stopping needs, and the validations on them, are part of the time.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks import common, held_out
from lensmith.edge import hub, params_file
from lensmith.edge.params import ModelParams
from lensmith.lens import training
from lensmith.lens.translators import Lens
from lensmith.source import bank
from lensmith.source.backbone import Backbone


def curve(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """A fit for each start and budget of the spec, measured on the held-out positions."""
    work = Path(spec["work"])
    os.environ["LENSMITH_HOME"] = str(work / "home")
    settings = settings_of(spec)
    pin = hub.pin_model(settings.source)
    backbone = Backbone.load(settings.source, pin)
    plain = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32).eval()
    text = {k: v.astype(np.uint32) for k, v in load_file(work / f"seed-{spec['seed']}.safetensors").items()}
    seq_len = text["train"].shape[1]
    largest = text["train"][: max(spec["budgets"]) // seq_len]
    began = common.clock()
    validation = bank.rows(backbone, pin.files, text["validation"], settings.fit)
    validation_s = common.clock() - began
    train = bank.rows(backbone, pin.files, largest, settings.fit)
    forward_s = common.clock() - began - validation_s
    points = []
    for budget in spec["budgets"]:
        rows = dataclasses.replace(train, n_seqs=budget // seq_len, tokens_forwarded=budget)
        for start in spec["starts"]:
            began = common.clock()
            lens = training.fit(backbone.head, rows, validation, settings.fit, _start(start, settings, backbone)).lens
            share = validation_s + forward_s * budget / largest.size
            points.append(
                {
                    "start": start,
                    "tokens": budget,
                    "cpu_s": common.clock() - began + share,
                    "forward_s": share,
                    "kl_bits": measure(plain, work, backbone, lens),
                }
            )
    return points


def settings_of(spec: dict[str, Any]) -> ModelParams:
    """An entry of params.yaml with the spec's model, seed and other values of section `fit`."""
    data = params_file.read(common.REPOSITORY / "params.yaml")[spec["entry"]].model_dump()
    data["source"] |= {"repo": None, "path": spec["model"]}
    data["fit"] |= {"seed": spec["seed"], "bank": "disk", **spec.get("fit", {})}
    return ModelParams.model_validate(data)


def measure(plain: PreTrainedModel, work: Path, backbone: Backbone, lens: Lens) -> list[float]:
    """Held-out KL by layer, on the model's own float32 forward pass and not on ours."""
    files = load_file(work / "heldout.safetensors")
    tokens, positions = (torch.from_numpy(files[name].astype(np.int64)) for name in ("tokens", "positions"))
    return held_out.kl_bits(plain, tokens, positions, lambda h, row: lens.logits(backbone.head, h, row))


def _start(name: str, settings: ModelParams, backbone: Backbone) -> Lens:
    start = Lens.start(settings.fit, backbone.n_layers, backbone.d_model)
    if name == "saddle":  # as in the plan's project: neither product ever has a gradient
        start = dataclasses.replace(start, U=torch.zeros_like(start.U), V=torch.zeros_like(start.V))
    return start

