"""Quantised checkpoints of bitsandbytes and torchao: used without conversion, and recorded in the provenance."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, TorchAoConfig
from transformers.quantizers import quantizer_bnb_4bit

from lensmith.files import artifacts
from lensmith.hub.models import pin_model
from lensmith.lens import stage
from lensmith.process.errors import InputError, NumericError
from lensmith.source import placement, prefetch
from lensmith.source.backbone import Backbone
from tests.support.settings import atlas
from tests.support.tiny import save_tiny

METHODS = {
    "nf4": lambda **kw: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **kw),
    "int8": lambda **kw: BitsAndBytesConfig(load_in_8bit=True, **kw),
    "torchao int8": lambda **kw: TorchAoConfig(Int8WeightOnlyConfig(), **kw),
    "torchao float8": lambda **kw: TorchAoConfig(Float8WeightOnlyConfig(), **kw),
}
FIT = {"positions_per_seq": 4, "epochs": 2, "batch_seqs": 4, "rank": 2, "validation_seqs": 2}
TOKENS = torch.arange(40).view(2, 20) % 97
POSITIONS = torch.arange(20).expand(2, 20)


def save(root: Path, method: str, **settings: Any) -> tuple[Path, PreTrainedModel]:
    """A folder with a quantised model, and the model itself."""
    (root / "plain").mkdir()
    save_tiny(root / "plain", n_layers=3, d_model=64)
    quantised = AutoModelForCausalLM.from_pretrained(
        root / "plain", dtype=torch.bfloat16, quantization_config=METHODS[method](**settings), device_map="cpu"
    )
    quantised.save_pretrained(root / "quantised")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (root / "plain" / name).rename(root / "quantised" / name)
    return root / "quantised", quantised.eval()


def load(folder: Path) -> Backbone:
    source = atlas(source={"path": str(folder)}).source
    return Backbone.load(source, pin_model(source))


@pytest.mark.parametrize("method", METHODS)
def test_a_quantised_model_is_captured_without_conversion(tmp_path, method):
    """Residuals and logits are those of the quantised model, not of the one that it was made from."""
    folder, quantised = save(tmp_path, method)
    backbone = load(folder)
    with torch.inference_mode():
        expected = quantised(input_ids=TOKENS, output_hidden_states=True)
    resid = backbone.capture(TOKENS, POSITIONS)

    assert backbone.dtype == torch.bfloat16
    assert all(torch.equal(resid[:, :, layer], expected.hidden_states[layer]) for layer in range(3))
    assert torch.equal(backbone.logits(TOKENS), expected.logits.float())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.bfloat16)
    assert not torch.equal(plain(input_ids=TOKENS).logits.float(), expected.logits.float())


@pytest.mark.parametrize("method", METHODS)
def test_the_estimated_size_of_a_quantised_model_is_that_of_its_files(tmp_path, method, monkeypatch):
    """In bfloat16 it would be up to four times as large, and refused although it fits."""
    folder, _ = save(tmp_path, method)
    estimates = []
    monkeypatch.setattr(
        placement, "needs", lambda *a, needs=placement.needs: estimates.append(needs(*a)) or estimates[0]
    )
    load(folder)
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))

    assert estimates[0].weights == pytest.approx(stored, rel=0.01)
    assert stored < 0.7 * 2 * AutoModelForCausalLM.from_pretrained(tmp_path / "plain").num_parameters()


@pytest.mark.parametrize("method", ["nf4", "torchao int8"])
def test_the_provenance_of_a_lens_records_the_quantisation_of_its_model(tmp_path, method):
    """The whole stage: packing, bank, release, fit."""
    folder, _ = save(tmp_path, method)
    (tmp_path / "text.txt").write_text("\n\n".join(f"The king went to the market on day {i}." for i in range(200)))
    text = {"kind": "files", "files": [str(tmp_path / "text.txt")], "seq_len": 16}
    budget = {"train_tokens": 176, "heldout_tokens": 128}
    sweep = {"heldout_seqs": 4, "positions_per_seq": 4}
    settings = atlas(source={"path": str(folder)}, corpus=text | budget, fit=FIT, sweep=sweep)
    prefetch.build(settings, tmp_path / "corpus")
    artifacts.write_json(tmp_path / "code.json", {"stages/fit.py": "0" * 64})
    stage.run(settings, tmp_path / "code.json", tmp_path / "corpus", tmp_path / "lens")
    provenance = artifacts.read_json(tmp_path / "lens" / "provenance.json")

    assert provenance["quantization"]["quant_method"] == ("bitsandbytes" if method == "nf4" else "torchao")
    assert provenance["machine"]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("method", "settings", "kind"),
    [
        ("nf4", {"llm_int8_skip_modules": ["none"]}, "Params4bit"),
        ("torchao int8", {"modules_to_not_convert": ["none"], "include_input_output_embeddings": True}, "Int8Tensor"),
    ],
)
def test_a_quantised_head_is_refused(tmp_path, method, settings, kind):
    """A lens is fit through the head in fp32."""
    folder, _ = save(tmp_path, method, **settings)
    refusal = rf"output embeddings are quantised \({kind}\).*checkpoint whose output embeddings are not quantised"
    with pytest.raises(InputError, match=refusal):
        load(folder)


def test_a_scale_that_is_not_finite_is_refused(tmp_path):
    """A torchao weight consists of codes and scales; only scales can hold NaN."""
    folder, _ = save(tmp_path, "torchao int8")
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    scale = next(name for name in tensors if "up_proj" in name and name.endswith("scale"))
    tensors[scale][3] = float("nan")
    save_file(tensors, path, metadata)

    with pytest.raises(NumericError, match=r"up_proj\.weight holds 1 values of \d+ that are NaN"):
        load(folder)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    """In one line, with the command that installs it."""
    folder, _ = save(tmp_path, "nf4")
    monkeypatch.setattr(quantizer_bnb_4bit, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(InputError, match=r"requires bitsandbytes: .*pip install .*The model was not loaded"):
        load(folder)
