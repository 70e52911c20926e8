"""Our side of `quality_per_second`: a recipe of params.yaml at several budgets, through the code that stage `fit` runs.

The largest budget is captured once, and every budget is charged its share, since a bank is filled sequence by sequence
at one cost each. A recipe without a bank reads its text in several passes at other positions each, and each pass is
charged a capture. Time includes early stopping: the capture of its rows, and the validations.
"""

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ruamel.yaml import YAML
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks import common, held_out
from lensmith.hub import models
from lensmith.lens import rungs, training
from lensmith.lens.lens import Lens
from lensmith.lens.vocabulary import SampledVocabulary
from lensmith.lens.work import Work
from lensmith.process.draws import Stream
from lensmith.settings import params_yaml
from lensmith.settings.sections import FitParams, ModelParams
from lensmith.source import bank
from lensmith.source.backbone import Backbone
from lensmith.source.residuals import Batch, Residuals

RATE_SEQS = 32  # sequences that the rate of a forward pass is measured on


def curve(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """A fit for each pair of start and budget of the spec, measured on the held-out positions."""
    work = Path(spec["work"])
    os.environ["LENSMITH_HOME"] = str(work / "home")
    settings = settings_of(spec)
    pin = models.pin_model(settings.source)
    backbone = Backbone.load(settings.source, pin)
    plain = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32).eval()
    text = {k: v.astype(np.uint32) for k, v in load_file(work / f"seed-{spec['seed']}.safetensors").items()}
    seq_len = text["train"].shape[1]
    largest = text["train"][: spec["text"] // seq_len]
    began = common.clock()
    validation = bank.residuals(backbone, pin.files, text["validation"], settings.fit)
    validation_s = common.clock() - began
    train: Any = bank.residuals(backbone, pin.files, largest, settings.fit)
    forward_s = common.clock() - began - validation_s
    points, rate = [], 0.0
    if "positions_a_pass" in spec:  # once: a second capture would find the bank
        rate = _forward_rate(backbone, pin.files, largest, settings.fit, spec["positions_a_pass"])
    for start, budget in spec["fits"]:
        n_seqs = min(budget // seq_len, len(largest))
        share = validation_s + forward_s * budget / largest.size
        rows: Residuals = dataclasses.replace(train, n_seqs=n_seqs)
        fit = settings.fit
        if "positions_a_pass" in spec:
            passes = budget / (n_seqs * seq_len)
            share = validation_s + budget * rate
            fit = fit.model_copy(update={"epochs": passes, "positions_per_seq": spec["positions_a_pass"]})
            rows = Resampled(rows, fit.positions_per_seq, fit.seed)
        began = common.clock()
        lens = _lens(start, fit, backbone, rows, validation, largest[:n_seqs])
        spent = common.clock() - began + share
        kl = measure(plain, work, backbone, lens)
        points.append({"start": start, "tokens": budget, "cpu_s": spent, "forward_s": share, "kl_bits": kl})
    return points


def _forward_rate(
    backbone: Backbone, files: dict[str, str], tokens: NDArray[np.uint32], fit: FitParams, positions: int
) -> float:
    """CPU-seconds per token of a capture of `positions` positions a sequence, on some of the text."""
    text = tokens[:RATE_SEQS]
    fewer = fit.model_copy(update={"positions_per_seq": positions, "seed": fit.seed + 1})
    return common.seconds(lambda: bank.residuals(backbone, files, text, fewer)) / text.size


@dataclasses.dataclass
class Resampled:
    """Residuals of which every reading takes other positions, as a recipe does that forwards its text again."""

    rows: Residuals
    positions_per_seq: int
    seed: int
    tokens_forwarded: int = 0
    readings: int = 0
    reads_ahead = False

    @property
    def n_seqs(self) -> int:
        return self.rows.n_seqs

    def read(self, seqs: NDArray[np.int64]) -> Batch:
        stored, stream = self.rows.positions_per_seq, Stream(self.seed, "resampled-positions")
        self.readings += 1
        first = self.readings * self.n_seqs
        picked = [i * stored + stream.subset(stored, self.positions_per_seq, first + i) for i in range(len(seqs))]
        return self.rows.read(seqs).at(torch.from_numpy(np.concatenate(picked)))


def settings_of(spec: dict[str, Any]) -> ModelParams:
    """An entry of params.yaml, or its defaults alone, with the spec's model, seed and other values of section `fit`."""
    path = common.REPOSITORY / "params.yaml"
    if spec["entry"] is None:
        data = {"key": "measured", **YAML(typ="safe").load(path)["defaults"]}
    else:
        data = params_yaml.read(path)[spec["entry"]].model_dump()
    data["source"] |= {"repo": None, "path": spec["model"]}
    data["fit"] |= {"seed": spec["seed"], "bank": "disk", **spec.get("fit", {})}
    return ModelParams.model_validate(data)


def measure(plain: PreTrainedModel, work: Path, backbone: Backbone, lens: Lens) -> list[float]:
    """Held-out KL by layer, on the model's own float32 forward pass."""
    files = load_file(work / "heldout.safetensors")
    tokens, positions = (torch.from_numpy(files[name].astype(np.int64)) for name in ("tokens", "positions"))
    return held_out.kl_bits(plain, tokens, positions, lambda resid, layer: lens.logits(backbone.head, resid, layer))


def _lens(
    start: str, fit: FitParams, backbone: Backbone, rows: Residuals, validation: Residuals, tokens: NDArray[np.uint32]
) -> Lens:
    """The lens of stage `fit`, without a ladder; for "saddle", one whose U and V start at 0."""
    if start == "saddle":  # as in the code of the reference recipe: neither product ever has a gradient
        zero = Lens.start(fit, backbone.n_layers, backbone.d_model)
        zero = dataclasses.replace(zero, U=torch.zeros_like(zero.U), V=torch.zeros_like(zero.U))
        return training.fit(backbone.head, rows, validation, fit, zero).lens
    alone = fit.model_copy(update={"ladder": ()})
    vocabulary = SampledVocabulary.of(alone, backbone.head, tokens)
    with tempfile.TemporaryDirectory() as folder:  # an earlier run must leave no checkpoint to go on from
        fits = rungs.fit_all(
            backbone, rows, validation, alone, vocabulary=vocabulary, prism=None, work=Work(Path(folder), {})
        )
    return fits[fit.kind].lens
