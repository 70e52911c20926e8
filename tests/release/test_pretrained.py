"""A lens of a release as readers load it: every file is checked, and another model is refused."""

import copy
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lensmith
from lensmith.files import artifacts
from lensmith.process.errors import InputError, IntegrityError
from lensmith.source.backbone import Backbone
from lensmith.source.proof import proof_tokens
from tests.support.released import TINY, save_release
from tests.support.tiny import tiny_model, tiny_tokenizer

LENS = f"tuned_lenses/{TINY}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return save_release(tmp_path_factory.mktemp("release"))


@pytest.fixture
def release(made, tmp_path) -> Path:
    """A copy that a test may harm."""
    return Path(shutil.copytree(made[0], tmp_path / "release"))


def reindex(release: Path, name: str) -> None:
    """Let the index vouch for a file as it is now."""
    index = artifacts.read_json(release / "INDEX.json")
    index[TINY]["sha256"][name] = artifacts.sha256_file(release / LENS / name)
    artifacts.write_json(release / "INDEX.json", index)


def test_a_folder_gives_the_lens_that_was_packaged(made):
    """With and without the model's id: there is only one."""
    folder, backbone, lens = made
    for read in (lensmith.load(folder), lensmith.load(str(folder), model=TINY)):
        assert all(torch.equal(read.tensors()[name], tensor) for name, tensor in lens.tensors().items())
        read.check_head(backbone.head)


def test_a_model_is_asked_for_by_name(release):
    with pytest.raises(InputError, match="no lens for org/other; there is local/atlas"):
        lensmith.load(release, model="org/other")
    with pytest.raises(InputError, match=r"no INDEX\.json"):
        lensmith.load(release / LENS)


@pytest.mark.parametrize("place", ["./release/atlsa", "release/demo/atlas", Path("release/atlsa"), "~/atlas"])
def test_a_mistyped_folder_is_said_to_be_missing(place):
    """What cannot be the name of a repository is not looked for on the Hub."""
    with pytest.raises(InputError, match="no such folder, and no repository of the Hub, org/name"):
        lensmith.load(place)


def test_a_mistyped_folder_that_could_be_a_repository_is_said_to_be_missing_first(monkeypatch):
    """release/atlsa has the form of org/name: the Hub's answer alone would lead a reader astray."""
    monkeypatch.setattr("lensmith.hub.releases.is_offline_mode", lambda: True)
    with pytest.raises(InputError, match=r"^release/atlsa: no such folder; on the Hub: .*HF_HUB_OFFLINE"):
        lensmith.load("release/atlsa")


@pytest.mark.parametrize("name", ["weights.safetensors", "provenance.json", "README.md", "weights.pt"])
def test_a_file_that_differs_from_the_index_is_refused_by_name(release, name):
    """A flipped bit in a weight is still a weight; only the hash tells."""
    data = bytearray((release / LENS / name).read_bytes())
    data[-9] ^= 1
    (release / LENS / name).write_bytes(data)

    with pytest.raises(IntegrityError, match=rf"{name}: has sha256 .*INDEX\.json records"):
        lensmith.load(release)
    (release / LENS / name).unlink()
    with pytest.raises(IntegrityError, match=rf"{name}: is missing"):
        lensmith.load(release)


def test_pickles_are_never_read(release):
    """weights.pt is an export: whatever it holds, the lens is the safetensors."""
    (release / LENS / "weights.pt").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    reindex(release, "weights.pt")

    assert lensmith.load(release).n_layers == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("c"), "must hold"),
        (lambda t: t.update(extra=torch.zeros(1)), "must hold"),
        (lambda t: t.update(c=torch.zeros(4, 3)), r"c is \(4, 3\)"),
    ],
)
def test_a_header_of_another_form_is_refused(release, change, words):
    path = release / LENS / "weights.safetensors"
    tensors = load_file(path)
    change(tensors)
    about = artifacts.canonical_json({"kind": "low_rank", "norm": "final", "schema": 1})
    save_file(tensors, path, metadata={"lensmith": about})
    reindex(release, "weights.safetensors")

    with pytest.raises(IntegrityError, match=words):
        lensmith.load(release)


def test_another_model_is_refused(release):
    """The same shapes, other weights: every number would be plausible and wrong."""
    other = tiny_model("llama", n_layers=4, seed=1)

    for use in (lambda: lensmith.bind(lensmith.load(release), other), lambda: lensmith.load(release, base=other)):
        with pytest.raises(IntegrityError, match=r"fit on float32 weights.*W_U"):
            use()
    with pytest.raises(IntegrityError, match="W_U"):
        lensmith.load(release).check_head(Backbone.from_model(other).head)
    with pytest.raises(IntegrityError, match=r"\(layers, d_model\) \(4, 32\), this model has \(3, 32\)"):
        lensmith.bind(lensmith.load(release), tiny_model("llama", n_layers=3))


def test_the_same_weights_in_a_finer_precision_are_a_warning_with_its_cost(made):
    """A lens that was fit to bfloat16 weights, used with the float32 ones that those were rounded from."""
    _, backbone, lens = made
    head = backbone.head
    rounded = replace(head, W_U=head.W_U.bfloat16().float()).fingerprint()["w_u_sha256"]
    fitted = replace(lens, w_u_sha256=rounded, fit_dtype="bfloat16")

    with pytest.warns(UserWarning, match=r"fit on bfloat16 weights, used with float32: .* by \S+ bits of KL") as caught:
        reader = lensmith.bind(fitted, backbone)
    bits = float(str(caught[0].message).split(" by ")[1].split()[0])
    assert 0 < bits < 1e-3
    assert reader.head_note == str(caught[0].message) and reader.head_note in repr(reader)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("load", [lensmith.load, lensmith.load_streamed])
def test_the_same_weights_in_a_coarser_precision_are_a_warning_with_its_cost(made, dtype, load):
    """The bits are those of W_U rounded, in fp64, on the model's own final states of the proof's text."""
    folder, backbone, _ = made
    model, name = backbone.model, str(dtype).removeprefix("torch.")
    with torch.no_grad():
        states = model.model(proof_tokens(model, backbone.tokenizer)).last_hidden_state.double()
    W_U = model.lm_head.weight.detach()
    log_p, log_q = ((states @ W.double().T).log_softmax(-1) for W in (W_U, W_U.to(dtype)))
    expected = float((log_p.exp() * (log_p - log_q)).sum(-1).mean() / math.log(2))

    with pytest.warns(UserWarning, match=rf"fit on float32 weights, used with {name}: .* by \S+ bits of KL") as caught:
        lensmith.bind(load(folder), copy.deepcopy(model).to(dtype))
    assert float(str(caught[0].message).split(" by ")[1].split()[0]) == pytest.approx(expected, rel=0.1, abs=2e-8)
    with pytest.raises(IntegrityError, match="W_U"):
        lensmith.bind(load(folder), tiny_model("llama", n_layers=4, seed=1).to(dtype))


def test_a_transferred_lens_is_bound_with_a_warning_to_the_model_that_it_was_judged_on_alone(made):
    _, backbone, lens = made
    transferred = replace(lens, kind="transferred", w_u_sha256=backbone.head.fingerprint()["w_u_sha256"])

    with pytest.warns(UserWarning, match="fit to another model, which its provenance.json names, and judged on this"):
        assert "another model" in repr(lensmith.bind(transferred, backbone))
    with pytest.raises(IntegrityError, match="W_U"):
        lensmith.bind(transferred, tiny_model("llama", n_layers=4, seed=1))


@pytest.mark.parametrize("load", [lensmith.load, lensmith.load_streamed])
def test_what_is_not_strict_takes_any_head_of_the_shape(release, load):
    """At one's own risk, and said so; a resized embedding has its shape in the message."""
    other, resized, smaller = (tiny_model("llama", n_layers=n, seed=1) for n in (4, 4, 3))
    resized.resize_token_embeddings(len(resized.lm_head.weight) + 1)

    with pytest.raises(IntegrityError, match=rf"of shape \({len(resized.lm_head.weight)}, 32\), .* strict=False takes"):
        lensmith.bind(load(release), resized)
    with pytest.warns(UserWarning, match="other weights, a resized embedding, or another precision"):
        assert lensmith.bind(load(release), other, strict=False).head_note
    with pytest.raises(IntegrityError, match=r"this model has \(3, 32\)"):
        lensmith.bind(load(release), smaller, strict=False)


def test_a_check_survives_a_move_to_another_device(made):
    """`to` makes a new lens; it must go on knowing whose it is."""
    assert lensmith.load(made[0]).to(torch.device("cpu")).w_u_sha256 == made[1].head.fingerprint()["w_u_sha256"]


def test_a_streamed_lens_reads_one_layer_and_the_same_numbers(made):
    """For a lens that is larger than memory: no call may hold another layer's tensors."""
    folder, backbone, lens = made
    streamed = lensmith.load_streamed(folder)
    resid = torch.randn(5, backbone.d_model, generator=torch.Generator().manual_seed(0))

    for layer in range(1, lens.n_layers + 1):
        expected = lens.logits(backbone.head, resid, layer)
        assert torch.equal(streamed.logits(backbone.head, resid, layer), expected)
        assert torch.equal(streamed.center_at(layer), lens.center[layer - 1])
    one_layer = lens.U[0].numel() * lens.U.element_size()
    assert streamed.layer(2).U.untyped_storage().nbytes() == one_layer
    with pytest.raises(InputError, match=r"layer is 0, must be in 1\.\.4"):
        streamed.layer(0)
    with pytest.raises(IntegrityError, match="W_U"):
        lensmith.bind(lensmith.load_streamed(folder), tiny_model("llama", n_layers=4, seed=1))


def test_a_streamed_lens_gives_the_same_trajectory(made):
    """The API has no other use for it: numbers must not depend on where the lens is."""
    folder, backbone, _ = made
    tokenizer = tiny_tokenizer()
    whole, streamed = (
        lensmith.trajectory(load(folder), backbone, tokenizer, "The capital of Ostra is Lume.").frame()
        for load in (lensmith.load, lensmith.load_streamed)
    )

    assert whole.equals(streamed)


def test_an_index_that_is_no_index_is_refused(release):
    for text in ("[]", "{", json.dumps({TINY: {"path": "tuned_lenses/../x", "sha256": {}}})):
        (release / "INDEX.json").write_text(text)
        with pytest.raises(IntegrityError, match=r"INDEX\.json"):
            lensmith.load(release)
