"""The backbone reads a model of every family as the model reads itself, or refuses it."""

import copy
import dataclasses
import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig

from lensmith.hub.models import pin_model
from lensmith.process.errors import InputError, IntegrityError, LensmithError, NumericError
from lensmith.settings.sections import SourceParams
from lensmith.source import discovery, logit_transform, skeleton
from lensmith.source.backbone import Backbone
from lensmith.source.discovery import is_norm_like
from lensmith.source.proof import prove
from lensmith.source.tokenizer import Encoder
from tests.support import families
from tests.support.settings import atlas
from tests.support.tiny import BOS, FAMILIES, save_tiny, tiny_model, tiny_tokenizer

torch.set_num_threads(1)

# Each family's name for the norm that reads the block's input; None where it has none.
INPUT_NORMS = {
    **dict.fromkeys(FAMILIES, "input_layernorm"),
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "gpt_bigcode", "codegen"), "ln_1"),
    **dict.fromkeys(("opt", "xglm", "biogpt"), "self_attn_layer_norm"),
    **dict.fromkeys(("olmo2", "olmo3", "exaone4"), None),
    "apertus": "attention_layernorm",
    "falcon_new": "ln_attn",
    "lfm2": "operator_norm",
    "mamba": "norm",
    "mpt": "norm_1",
    "recurrent_gemma": "temporal_pre_norm",
}

# Families whose logits are not those of W_U alone.
TRANSFORMED = ("gemma2", "nanochat", "recurrent_gemma", "cohere", "granite", "hyperclovax", "falcon_h1")


def ids(n_seqs: int = 2, pos: int = 20, vocab: int = 97) -> torch.Tensor:
    return torch.randint(0, vocab, (n_seqs, pos), generator=torch.Generator().manual_seed(1))


def all_positions(tokens: torch.Tensor) -> torch.Tensor:
    return torch.arange(tokens.shape[1]).expand_as(tokens)


def source(path: Path, **changes) -> SourceParams:
    return atlas(source={"path": str(path), "device": "cpu"} | changes).source


def load(path: Path, **changes) -> Backbone:
    settings = source(path, **changes)
    return Backbone.load(settings, pin_model(settings))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_capture_gives_the_models_residuals_and_the_head_its_logits(family):
    """Against what transformers returns: hidden_states[i] is the input of block i, the last one is already normed, and
    the logits are the model's.
    """
    backbone = Backbone.from_model(tiny_model(family))
    tokens = ids()
    resid = backbone.capture(tokens, all_positions(tokens))
    with torch.no_grad():
        out = backbone.model(input_ids=tokens, output_hidden_states=True, use_cache=False)

    # Mamba lists the outputs of its blocks without the last one; all others list the inputs.
    for layer, hidden in enumerate(out.hidden_states[:3], 1 if family == "mamba" else 0):
        torch.testing.assert_close(resid[:, :, layer], hidden)
    normed = backbone.head.norm(resid[:, :, -1], 3)
    torch.testing.assert_close(normed, out.hidden_states[-1])
    torch.testing.assert_close(backbone.head.logits(normed), out.logits)
    torch.testing.assert_close(backbone.logits(tokens), out.logits)
    assert (backbone.n_layers, backbone.d_model, backbone.d_vocab) == (3, 32, 97)
    assert backbone.proof.n_positions >= 64
    assert backbone.proof.max_kl_bits <= 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_a_middle_layer_is_normed_by_the_block_that_reads_it(family):
    """`next_input` is the norm of the block's own input, found without its name; the head reads the last layer."""
    backbone = Backbone.from_model(tiny_model(family))
    head, name = backbone.head, INPUT_NORMS[family]
    resid = torch.randn(5, 32)

    for layer, block in enumerate(backbone.anatomy.blocks):
        # OLMo-hybrid's attention blocks norm their output, its linear ones their input.
        input_norm = None if name is None or not hasattr(block, name) else getattr(block, name)
        expected = head.final_norm(resid) if input_norm is None else input_norm(resid)
        torch.testing.assert_close(head.norm(resid, layer, "next_input"), expected)
    assert torch.equal(head.norm(resid, 3, "next_input"), head.norm(resid, 3, "final"))
    assert (name or "final norm stands in") in head.norm_note


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_bfloat16_passes_the_same_proof(family):
    """Its tail runs in fp32: bf16 logits are too coarse for the limit. Residuals keep the model's dtype."""
    backbone = Backbone.from_model(tiny_model(family), dtype=torch.bfloat16)
    resid = backbone.capture(ids(), torch.tensor([[0, 5], [1, 19]]))

    assert backbone.proof.max_kl_bits <= 1e-6
    assert resid.dtype == torch.bfloat16
    assert backbone.head.norm(resid[:, :, 1], 1, "next_input").dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", TRANSFORMED)
def test_a_missed_scale_or_softcap_is_refused(family, dtype, monkeypatch):
    """A family whose setting is not in SCALES or SOFTCAPS is not read with plain W_U."""
    monkeypatch.setattr(logit_transform, "SCALES", ())
    monkeypatch.setattr(logit_transform, "SOFTCAPS", ())

    with pytest.raises(NumericError, match=r"KL over 64 positions.*limit 0.0001 bits.*tried: none.*No lens was made"):
        Backbone.from_model(tiny_model(family), dtype=dtype)


def test_the_models_logits_decide_what_a_setting_means():
    """`logits_scaling` divides in Granite and multiplies in HyperCLOVA X."""
    granite, clova = (
        Backbone.from_model(tiny_model("granite")).head,
        Backbone.from_model(tiny_model("hyperclovax")).head,
    )

    assert (granite.scale, granite.transform.source) == (1 / 4.0, "divided by logits_scaling")
    assert (clova.scale, clova.transform.source) == (0.25, "times logits_scaling")
    assert Backbone.from_model(tiny_model("gemma2")).head.softcap == 5.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_that_is_not_the_models_is_refused(dtype):
    """Each part of the head counts: gain of the final norm, bias, one row of W_U, which norm it is."""
    backbone = Backbone.from_model(tiny_model("phi"), dtype=dtype)
    head = backbone.head
    gain, W_U = head.final_norm.weight.clone(), head.W_U.clone()
    gain[3] *= 1.1
    W_U[5] += 0.2
    norm = discovery.fp32_copy(head.final_norm)
    norm.weight.data.copy_(gain)

    broken = {"final_norm": norm, "bias": None, "W_U": W_U}
    for wrong in [{name: value} for name, value in broken.items()] + [{"final_norm": head.input_norms[2]}]:
        with pytest.raises(NumericError, match="No lens was made"):
            dataclasses.replace(backbone, head=dataclasses.replace(head, **wrong)).prove()
    again = backbone.prove()
    assert again.max_kl_bits == backbone.proof.max_kl_bits and torch.equal(again.resid, backbone.proof.resid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_changed_after_loading_is_refused(dtype):
    """The head is a copy: with other weights the model is another one."""
    backbone = Backbone.from_model(tiny_model("llama"), dtype=dtype)
    backbone.model.model.norm.weight.data[0] += 0.3

    with pytest.raises(NumericError, match="bits from the model's own logits"):
        backbone.prove()


def test_residuals_of_the_wrong_block_are_refused():
    """A right head on wrong residuals is a wrong lens."""
    backbone = Backbone.from_model(tiny_model("llama"))
    shallow = dataclasses.replace(backbone.anatomy, blocks=backbone.anatomy.blocks[:-1])

    with pytest.raises(NumericError, match="No lens was made"):
        dataclasses.replace(backbone, anatomy=shallow).prove()


@pytest.mark.parametrize(("dtype", "wrong"), [(torch.float32, 1), (torch.bfloat16, 64)])
def test_residuals_that_were_captured_wrong_are_refused(dtype, wrong):
    """The head may be right and the hooks wrong. In fp32 one wrong position fails; bf16 kernels may differ in some."""
    backbone = Backbone.from_model(tiny_model("llama"), dtype=dtype)
    tokens = ids(1, 64)
    last = backbone.capture(tokens, all_positions(tokens))[:, :, -1]
    parts = (backbone.model, backbone.anatomy, backbone.head, tokens)
    assert prove(*parts, last).n_positions == 64

    last[0, :wrong] *= torch.linspace(0.8, 1.2, 32)
    with pytest.raises(NumericError, match="No lens was made"):
        prove(*parts, last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_does_not_pass_the_proof(dtype):
    """NaN compares as false with any limit."""
    backbone = Backbone.from_model(tiny_model("llama"), dtype=dtype)
    backbone.model.model.layers[1].mlp.down_proj.weight.data[0, 0] = math.nan

    with pytest.raises(NumericError):
        backbone.prove()


def test_some_families_return_tuples_from_their_blocks():
    """Only then does the first test show that tuples are read."""
    seen = {}
    for family in ("bloom", "falcon", "gpt_neo", "gptj", "llama"):
        backbone = Backbone.from_model(tiny_model(family))
        handle = backbone.anatomy.blocks[1].register_forward_hook(
            lambda module, args, output, family=family: seen.update({family: type(output)})
        )
        backbone.logits(ids())
        handle.remove()

    assert seen["llama"] is torch.Tensor
    assert tuple in seen.values()


@pytest.mark.parametrize("family", ["llama", "gpt_neo"])
def test_positions_come_in_the_order_of_the_argument(family):
    """Each sequence has its own positions, in any order, also twice."""
    backbone = Backbone.from_model(tiny_model(family))
    tokens = ids(3)
    positions = torch.tensor([[19, 0, 7, 7], [3, 2, 1, 0], [10, 19, 0, 11]])
    all_resid = backbone.capture(tokens, all_positions(tokens))
    some_resid = backbone.capture(tokens, positions)

    assert some_resid.shape == (3, 4, 4, 32)
    for b, n in [(0, 0), (0, 2), (0, 3), (1, 1), (2, 3)]:
        assert torch.equal(some_resid[b, n], all_resid[b, positions[b, n]])


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom", "gemma2", "qwen3_next", "falcon"])
def test_padding_on_the_right_changes_nothing(family):
    """A prompt's residuals do not depend on the longer prompts of its batch."""
    backbone = Backbone.from_model(tiny_model(family))
    tokens, length = ids(2, 20), 12
    mask = torch.ones_like(tokens)
    mask[1, length:] = 0
    padded = backbone.capture(tokens, all_positions(tokens), attention_mask=mask)
    alone = backbone.capture(tokens[1:, :length], all_positions(tokens[1:, :length]))

    torch.testing.assert_close(padded[1:, :length], alone, atol=1e-5, rtol=1e-4)


def test_the_mask_reaches_the_model():
    """A causal model does not need it on the right, but a family that mixes tokens otherwise would."""
    backbone = Backbone.from_model(tiny_model("llama"))
    mask, seen = torch.ones_like(ids()), []
    backbone.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    backbone.capture(ids(), all_positions(ids()), attention_mask=mask)

    assert torch.equal(seen[0], mask)


def test_capture_leaves_the_head_out():
    """(batch, pos, d_vocab) is most of a forward pass's memory."""
    backbone = Backbone.from_model(tiny_model("llama"))
    backbone.model.lm_head.register_forward_hook(lambda *_: pytest.fail("the head ran"))

    assert backbone.capture(ids(), all_positions(ids())).shape == (2, 20, 4, 32)


def test_no_hook_stays_even_after_an_error(monkeypatch):
    """A hook that stays would slow down and falsify later passes."""
    backbone = Backbone.from_model(tiny_model("llama"))
    assert hooks(backbone.model) == 0

    def fail(*_args, **_kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(backbone.model.model.layers[1].mlp, "forward", fail)
    for run in (
        lambda: backbone.capture(ids(), all_positions(ids())),
        backbone.prove,
        lambda: Backbone.from_model(backbone.model),
    ):
        with pytest.raises(RuntimeError, match="out of memory"):
            run()
    assert hooks(backbone.model) == 0


def test_captured_residuals_can_be_trained_on():
    """Autograd refuses tensors made in inference mode."""
    backbone = Backbone.from_model(tiny_model("gemma2"))
    bias = torch.zeros(32, requires_grad=True)
    x = backbone.head.norm(backbone.capture(ids(), all_positions(ids()))[:, :, 1], 1)
    backbone.head.logits(x * bias.exp()).logsumexp(-1).sum().backward()

    assert bias.grad is not None and bias.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in backbone.head.final_norm.parameters())
    assert not backbone.head.W_U.requires_grad


@pytest.mark.parametrize(
    ("tokens", "positions", "mask", "message"),
    [
        ([[1, 97]], [[0]], None, "token id 97 is out of range, allowed are 0..96"),
        ([[1, -1]], [[0]], None, "token id -1 is out of range"),
        ([[1, 2]], [[2]], None, "position 2 is out of range, allowed are 0..1"),
        ([[1, 2]], [[-1]], None, "position -1 is out of range"),
        ([[1, 2]], [[0], [1]], None, r"tokens are \(1, 2\) and positions \(2, 1\)"),
        ([[1] * 257], [[0]], None, "257 tokens, but the model reads at most 256"),
        ([[1, 2]], [[0]], [[0, 1]], "padded on the right"),
        ([[1, 2]], [[0]], [[1]], r"attention_mask is \(1, 1\), must be \(1, 2\)"),
    ],
)
def test_an_invalid_batch_is_refused(tokens, positions, mask, message):
    """An id beyond the embedding is a crash on a CPU and garbage on a GPU; position -1 would be the last one."""
    backbone = Backbone.from_model(tiny_model("llama"))

    with pytest.raises(InputError, match=message):
        backbone.capture(
            torch.tensor(tokens),
            torch.tensor(positions),
            attention_mask=None if mask is None else torch.tensor(mask),
        )


def test_a_model_like_opt_350m_is_refused():
    """It projects to another width and has no final norm: there is no N to decode a middle layer with."""
    with pytest.raises(InputError, match=r"no norm stands between.*\(1, 64, 32\) to \(1, 64, 16\).*No lens was made"):
        Backbone.from_model(tiny_model("opt_350m"))


def test_a_model_without_a_final_norm_is_refused():
    """OPT-350m without its projection: the head reads the last block itself."""
    with pytest.raises(InputError, match="there is no final norm"):
        Backbone.from_model(tiny_model("opt_350m", word_embed_proj_dim=32))


@pytest.mark.parametrize("stand_in", [nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 32), nn.GELU())])
def test_a_layer_in_the_place_of_the_final_norm_is_refused(stand_in):
    """It stands where the norm should be, but would not norm the residual of a middle layer."""
    model = tiny_model("llama")
    model.model.norm = stand_in

    with pytest.raises(InputError, match="no norm stands between"):
        Backbone.from_model(model)


def test_blocks_that_run_twice_are_refused():
    """`resid_post[l]` would have two meanings."""
    model = tiny_model("llama")
    model.model.layers[1] = model.model.layers[0]

    with pytest.raises(InputError, match=r"no ModuleList of num_hidden_layers \(3\) modules"):
        Backbone.from_model(model)


def test_blocks_that_call_each_other_are_refused():
    """The output of the second block would be captured twice."""
    model = tiny_model("llama")
    first, second = model.model.layers[:2]
    forward = first.forward
    first.forward = lambda resid, **rest: second(forward(resid, **rest), **rest)

    with pytest.raises(InputError, match=r"the modules of model.layers are not called once each, in order"):
        Backbone.from_model(model)


def test_the_text_blocks_of_a_multimodal_model_are_found():
    """The vision tower has as many blocks; only those that the text passes count."""
    backbone = Backbone.from_model(tiny_model("gemma3"))

    assert type(backbone.model).__name__ == "Gemma3ForConditionalGeneration"
    assert list(backbone.anatomy.blocks) == list(backbone.model.model.language_model.layers)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.LayerNorm(32), True),
        (nn.RMSNorm(32), True),
        (nn.LayerNorm(32, elementwise_affine=False), True),
        (nn.Linear(32, 32), False),
        (nn.Identity(), False),
        (nn.Dropout(0.1), False),
        (nn.GELU(), False),
        (nn.Tanh(), False),
        (nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)), False),
        (nn.Bilinear(32, 32, 32), False),
        (nn.Softmax(dim=-1), False),
    ],
)
def test_a_norm_is_recognised_by_its_behaviour(module, expected):
    """Ten times the vector gives the same result; the class is irrelevant."""
    assert is_norm_like(module, 32) is expected


def test_temperature_acts_before_the_softcap():
    """g((y W_Uᵀ + b) / τ): at τ = 1 the lens is the model, at any τ it stays under the cap."""
    head = Backbone.from_model(tiny_model("gemma2")).head
    y = 3 * torch.randn(2, 4, 32)
    log_tau = torch.tensor([[0.0, 0.5, -0.5, 1.0]])

    z = y @ head.W_U.T
    torch.testing.assert_close(head.logits(y), 5.0 * torch.tanh(z / 5.0))
    torch.testing.assert_close(head.logits(y, log_tau), 5.0 * torch.tanh(z / log_tau.exp().unsqueeze(-1) / 5.0))
    assert torch.equal(head.logits(y, torch.zeros(2, 4)), head.logits(y))


def test_a_layer_that_does_not_exist_is_a_bug_of_the_caller():
    """Layer -1 would silently be the last one."""
    head = Backbone.from_model(tiny_model("llama")).head

    for layer in (-1, 4):
        with pytest.raises(ValueError, match=r"must be in 0..3"):
            head.norm(torch.randn(1, 32), layer)


def test_the_fingerprint_is_of_the_fp32_bytes():
    """Anyone with the weights can recompute it, and one changed number changes it."""
    model = tiny_model("gpt2")
    bias, weight = model.transformer.ln_f.bias, model.transformer.ln_f.weight
    expected = {
        "w_u_sha256": hashlib.sha256(model.lm_head.weight.detach().numpy().tobytes()).hexdigest(),
        "final_norm_sha256": hashlib.sha256(
            bias.detach().numpy().tobytes() + weight.detach().numpy().tobytes()
        ).hexdigest(),
    }
    assert Backbone.from_model(model).head.fingerprint() == expected

    weight.data[7] += 1e-6
    changed = Backbone.from_model(model).head.fingerprint()
    assert changed["w_u_sha256"] == expected["w_u_sha256"]
    assert changed["final_norm_sha256"] != expected["final_norm_sha256"]


def test_the_hash_of_w_u_does_not_depend_on_its_pieces(monkeypatch):
    """W_U is hashed a piece at a time to save memory."""
    head = Backbone.from_model(tiny_model("llama")).head
    whole = head.fingerprint()
    monkeypatch.setattr("lensmith.source.head._HASH_ROWS", 5)

    assert head.fingerprint() == whole


# Loading


def test_a_released_model_leaves_its_head():
    """Tied to the embedding or not; no weight stays in memory during the fit."""
    for family in ("llama", "gemma2"):
        backbone = Backbone.from_model(tiny_model(family))
        before, shape = backbone.head.fingerprint(), (backbone.dtype, backbone.device, backbone.n_layers)
        backbone.release()

        assert sum(parameter.numel() for parameter in backbone.model.parameters()) == 0
        assert backbone.head.fingerprint() == before
        assert (backbone.dtype, backbone.device, backbone.n_layers) == shape


def test_a_saved_folder_loads_as_the_same_model(tmp_path):
    """Weights, tokenizer with BOS and proof, from files alone; a small model on a CPU is fp32."""
    backbone = load(save_tiny(tmp_path, "gemma2"))
    tokens = backbone.tokenizer("The capital of Ostra is", return_tensors="pt")["input_ids"]

    assert backbone.tokenizer.convert_ids_to_tokens(int(tokens[0, 0])) == BOS
    torch.testing.assert_close(backbone.logits(tokens), Backbone.from_model(tiny_model("gemma2")).logits(tokens))
    assert (backbone.dtype, backbone.device.type) == (torch.float32, "cpu")
    assert backbone.proof.n_positions >= 64
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_a_named_dtype_is_the_one_loaded(tmp_path):
    """Only `auto` chooses by the size of the model."""
    assert load(save_tiny(tmp_path), dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("layers", "device", "has_bf16", "expected"),
    [
        (2, "cpu", True, torch.float32),
        (32, "cpu", True, torch.bfloat16),
        (2, "cuda", True, torch.bfloat16),
        (32, "cpu", False, torch.float32),
        (2, "cuda", False, torch.float32),
    ],
)
def test_auto_is_bf16_where_it_is_fast_and_the_model_not_small(layers, device, has_bf16, expected, monkeypatch):
    """Emulated bf16 is far slower than fp32. Counted without allocating: 32 layers of Llama would be 27 GB."""
    monkeypatch.setattr(skeleton, "has_fast_bf16", lambda _: has_bf16)
    small = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 97} if layers == 2 else {}
    config = LlamaConfig(num_hidden_layers=layers, **small)

    assert skeleton.pick_dtype("auto", config, torch.device(device)) == expected


def _edit(folder: Path, change) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), IntegrityError, "model.norm.weight is not in the weight files"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(31)}),
            IntegrityError,
            r"model.norm.weight is \(31,\) in the file, but \(32,\) by config.json",
        ),
        (
            lambda t: t.update({"model.layers.3.mlp.up_proj.weight": torch.ones(64, 32)}),
            IntegrityError,
            "model.layers.3.mlp.up_proj.weight is in the weight files, but the model",
        ),
        (
            lambda t: t["model.layers.1.mlp.up_proj.weight"].view(-1)[5:7].fill_(math.nan),
            NumericError,
            "model.layers.1.mlp.up_proj.weight holds 2 values of 2048 that are NaN or infinite",
        ),
        (
            lambda t: t["lm_head.weight"].view(-1)[:1].fill_(math.inf),
            NumericError,
            "lm_head.weight holds 1 values of 3104",
        ),
    ],
)
def test_wrong_weights_are_refused_by_name(tmp_path, change, error, message):
    """transformers would fill in the missing ones at random."""
    with pytest.raises(error, match=message):
        load(_edit(save_tiny(tmp_path), change))


def test_old_buffers_in_a_checkpoint_are_ignored(tmp_path):
    """Checkpoints of older versions hold masks and frequencies that today's model computes."""
    folder = save_tiny(tmp_path)
    _edit(folder, lambda t: t.update({"model.layers.0.self_attn.masked_bias": torch.tensor(-1e9)}))

    assert load(folder).n_layers == 3


@pytest.mark.parametrize(("layer", "part"), [(1, "mlp.down_proj"), (2, "mlp.down_proj"), (3, "self_attn.o_proj")])
def test_a_residual_beyond_float16_is_named_with_its_layer_and_what_would_do(layer, part):
    """When the model is taken apart, and when text alone overflows later; bfloat16 reads the same weights."""
    model, backbone = tiny_model("llama"), Backbone.from_model(tiny_model("llama"), dtype=torch.float16)
    for changed in (model, backbone.model):
        changed.get_submodule(f"model.layers.{layer - 1}.{part}").weight.data.fill_(60_000.0)
    words = rf"layer {layer} is not finite in float16\..*source\.dtype to bfloat16 or float32"

    with pytest.raises(NumericError, match=words):
        Backbone.from_model(copy.deepcopy(model), dtype=torch.float16)
    with pytest.raises(NumericError, match=words):
        backbone.capture(torch.arange(8)[None], torch.arange(8)[None])
    assert Backbone.from_model(model, dtype=torch.bfloat16).proof.max_kl_bits < 1e-4


def test_a_truncated_weight_file_is_refused(tmp_path):
    """A model with part of its weights is never used."""
    file = save_tiny(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])

    with pytest.raises(IntegrityError, match="safetensors"):
        load(tmp_path)


def test_a_tokenizer_may_be_larger_than_the_embedding(tmp_path):
    """CodeLlama-34b: one token more, which no text holds. Where text does, the encoder refuses it."""
    save_tiny(tmp_path, vocab=97)
    tokenizer = tiny_tokenizer(97)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(tmp_path)
    backbone = load(tmp_path)

    encoder = Encoder(backbone.tokenizer, "tokenizer", backbone.model.config)
    assert len(backbone.tokenizer) == 98 and encoder("The river") == tokenizer("The river")["input_ids"]
    with pytest.raises(InputError, match=r"gives id 97, but the model has ids below 97 .*'an <extra> one'"):
        encoder("an <extra> one")


def test_a_padded_vocabulary_is_read_whole(tmp_path):
    """Many models have more embeddings than their tokenizer has ids; the head has them all, as the logits do."""
    save_tiny(tmp_path, vocab=128)
    tiny_tokenizer(97).save_pretrained(tmp_path)
    backbone = load(tmp_path)
    tokens = backbone.tokenizer("The capital of Ostra is", return_tensors="pt")["input_ids"]
    last = backbone.capture(tokens, torch.arange(tokens.shape[1])[None])[:, :, -1]

    assert (len(backbone.tokenizer), backbone.d_vocab) == (97, 128)
    assert backbone.capture(torch.tensor([[127]]), torch.tensor([[0]])).isfinite().all()
    logits = backbone.head.logits(backbone.head.norm(last, backbone.n_layers))
    torch.testing.assert_close(logits, backbone.logits(tokens), rtol=1e-4, atol=1e-5)


def test_the_docs_list_the_families_that_are_tested():
    """Every family of FAMILIES, by the script that writes the table."""
    text = families.PAGE.read_text()

    assert families.with_table(text) == text, "docs/models.md: run `python -m tests.support.families`"


@pytest.mark.parametrize("model_type", ["llama", "made_up"])
def test_python_files_of_a_folder_are_not_run_by_default(tmp_path, model_type):
    """`auto_map` names a module of the repository; a known architecture loads without it, an unknown one not at all."""
    folder, canary = save_tiny(tmp_path / "model"), tmp_path / "canary"
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(canary)!r}).touch()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))

    if model_type == "llama":
        assert load(folder).n_layers == 3
    else:
        with pytest.raises(InputError, match="The model was not loaded"):
            load(folder)
    assert not canary.exists()


def test_a_file_changed_after_it_was_pinned_is_refused(tmp_path):
    """The lens would name one model and read another."""
    settings = source(save_tiny(tmp_path))
    pin = pin_model(settings)
    _edit(tmp_path, lambda t: t["lm_head.weight"].view(-1)[:1].fill_(0.5))

    with pytest.raises(LensmithError, match=r"model\.safetensors") as raised:
        Backbone.load(settings, pin)
    assert isinstance(raised.value, IntegrityError)


def test_tiny_models_are_the_same_every_time():
    """Everyone's tests build on them."""
    left, right = tiny_model("llama").state_dict(), tiny_model("llama").state_dict()

    assert all(torch.equal(left[name], right[name]) for name in left)
    assert not torch.equal(left["lm_head.weight"], tiny_model("llama", seed=1).lm_head.weight)
    assert not torch.allclose(left["model.norm.weight"], torch.ones(32))
