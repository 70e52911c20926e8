"""Lenses of tuned-lens: their files, their formula in fp64, and their own package where it is installed."""

import hashlib
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lensmith.files import artifacts
from lensmith.hub import published as hub_published
from lensmith.judge.bench import Bench
from lensmith.lens import fitted, published, stage, tuned_lens
from lensmith.lens.divergence import kl_bits
from lensmith.lens.lens import Lens
from lensmith.process.errors import InputError, IntegrityError, NumericError
from lensmith.release.pretrained import StreamedLens
from lensmith.settings.sections import ImportedParams
from lensmith.source import prefetch
from lensmith.source.backbone import Backbone
from tests.support.held_rows import HeldRows
from tests.support.settings import atlas, fit_params
from tests.support.tiny import save_tiny, tiny_model

L, D = 3, 32


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.from_model(tiny_model("gpt_neox"))


def drawn() -> dict[str, Tensor]:
    """A state dictionary as tuned-lens saves it, in half precision as its published ones are."""
    generator = torch.Generator().manual_seed(3)
    shapes = {f"{i}.weight": (D, D) for i in range(L)} | {f"{i}.bias": (D,) for i in range(L)}
    return {name: (0.2 * torch.randn(shape, generator=generator)).half() for name, shape in shapes.items()}


def publish(folder: Path, backbone: Backbone, *, tensors: object = None, **config: object) -> Path:
    """A folder as TunedLens.save writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"base_model_name_or_path": "tiny", "d_model": D, "num_hidden_layers": L, "bias": True,
             "base_model_revision": None, "lens_type": "linear_tuned_lens",
             "unembed_hash": tuned_lens.unembed_hash(backbone.head.W_U)}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(facts | config))
    torch.save(drawn() if tensors is None else tensors, folder / "params.pt")
    return folder


def read(folder: Path, backbone: Backbone, form: str = "tuned-lens") -> tuple[Lens, dict]:
    settings = ImportedParams(format=form, repo=None, repo_type="space", revision="main", folder=str(folder))
    return published.load(hub_published.pin_lens(settings), backbone)


def residuals(backbone: Backbone) -> Tensor:
    """(pos, L + 1, d_model)."""
    tokens = torch.arange(1, 13)[None]
    return backbone.capture(tokens, torch.arange(12)[None])[0]


def test_logits_are_their_formula_in_fp64(tmp_path, backbone):
    """h + A_i h + b_i, LayerNorm, W_U: translator i reads the input of block i, and the last layer is the model."""
    lens, about = read(publish(tmp_path, backbone), backbone)
    resid, state = residuals(backbone), drawn()
    norm = backbone.model.gpt_neox.final_layer_norm

    for layer in range(1, L + 1):
        h = resid[:, layer].double()
        if layer < L:
            h = h + h @ state[f"{layer}.weight"].double().T + state[f"{layer}.bias"].double()
        centred = h - h.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        y = normed * norm.weight.double() + norm.bias.double()
        expected = y @ backbone.model.get_output_embeddings().weight.double().T
        torch.testing.assert_close(
            lens.logits(backbone.head, resid[:, layer], layer).double(), expected, rtol=1e-4, atol=1e-5
        )
    assert "translator 0" in about["left_out"] and about["unembed_hash_checked"]


def test_their_own_package_reads_the_same(tmp_path, backbone):
    """TunedLens.forward on the hidden states that transformers returns."""
    theirs = pytest.importorskip("tuned_lens.nn.lenses")
    lens, _ = read(publish(tmp_path, backbone), backbone)
    tokens = torch.arange(1, 13)[None]
    with torch.no_grad():
        hidden = backbone.model(tokens, output_hidden_states=True).hidden_states
        tuned = theirs.TunedLens.from_model_and_pretrained(backbone.model, str(tmp_path)).float()
        for i in range(1, L):
            ours = lens.logits(backbone.head, hidden[i][0], i)
            torch.testing.assert_close(ours, tuned(hidden[i], i)[0], rtol=1e-4, atol=1e-5)


def test_a_lens_without_biases_has_none(tmp_path, backbone):
    """Where `bias` of the configuration is false, the file has no biases."""
    weights = {name: tensor for name, tensor in drawn().items() if name.endswith("weight")}
    lens, _ = read(publish(tmp_path, backbone, tensors=weights, bias=False), backbone)

    assert not lens.c.any() and lens.U[0].any()


def test_the_unembed_hash_is_theirs():
    """Their definition is the sha256 of NumPy's printed W_U with one digit."""
    W_U = torch.tensor([[0.14, -2.0], [3.26, 0.0]])

    assert tuned_lens.unembed_hash(W_U) == hashlib.sha256(b"[[ 0.1 -2. ]\n [ 3.3  0. ]]").hexdigest()


class Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("canary"),))


@pytest.mark.parametrize(
    ("config", "tensors", "error", "message"),
    [
        ({"num_hidden_layers": 4}, None, IntegrityError, r"made for a model of .* \(4, 32\), this one has \(3, 32\)"),
        ({"d_model": 64}, None, IntegrityError, r"\(3, 64\)"),
        ({"unembed_hash": "0" * 64}, None, IntegrityError, "unembed_hash 0000"),
        ({"lens_type": "lora"}, None, InputError, "lens_type is 'lora', only linear_tuned_lens"),
        ({}, {"0.down.weight": torch.zeros(4, D)}, InputError, "no low-rank or MLP"),
        ({}, drawn() | {"1.weight": torch.zeros(D, 4)}, InputError, r"1.weight is \(32, 4\), must be \(32, 32\)"),
        ({}, {k: v for k, v in drawn().items() if k != "2.bias"}, InputError, "2.bias is missing"),
        ({}, drawn() | {"1.bias": torch.full((D,), torch.nan)}, NumericError, "1.bias holds a number that is not"),
        ({}, [1, 2], IntegrityError, "params.pt is not tensors alone .*EMPTY_LIST"),
        ({}, Evil(), IntegrityError, "params.pt is not tensors alone"),
    ],
)  # fmt: skip
def test_every_other_lens_is_refused(tmp_path, backbone, monkeypatch, config, tensors, error, message):
    """Another model's lens, another kind, a broken one and a program each give one line; no code of the file runs."""
    monkeypatch.chdir(tmp_path)
    publish(tmp_path / "lens", backbone, tensors=tensors, **config)

    with pytest.raises(error, match=message) as caught:
        read(tmp_path / "lens", backbone)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("damage", ["truncate", "pickle", "empty"])
def test_a_broken_file_is_refused(tmp_path, backbone, damage):
    """Half a file, a plain pickle, an empty file."""
    path = publish(tmp_path, backbone) / "params.pt"
    whole = path.read_bytes()
    path.write_bytes({"truncate": whole[:-200], "pickle": pickle.dumps(np.float64), "empty": b""}[damage])

    with pytest.raises(IntegrityError, match=r"params\.pt is not tensors alone"):
        read(tmp_path, backbone)


def test_files_that_are_missing_or_changed_after_the_pin_are_refused(tmp_path, backbone):
    """A missing file is an InputError at prefetch; later it is an IntegrityError of the pin."""
    settings = ImportedParams(format="tuned-lens", repo=None, repo_type="space", revision="main", folder=str(tmp_path))
    with pytest.raises(InputError, match=r"no config\.json and no params\.pt"):
        hub_published.pin_lens(settings)
    pin = hub_published.pin_lens(settings.model_copy(update={"folder": str(publish(tmp_path / "lens", backbone))}))
    publish(tmp_path / "lens", backbone, base_model_revision="another")

    with pytest.raises(IntegrityError, match=r"config\.json has sha256"):
        published.load(pin, backbone)
    with pytest.raises(IntegrityError, match="Run prefetch again"):
        published.load(None, backbone)


@pytest.mark.usefixtures("hardware")
def test_validation_is_of_the_lens_as_it_stands(tmp_path, backbone):
    """Validation is the KL of every block's logits; no step is taken and no training token is counted."""
    lens, _ = read(publish(tmp_path, backbone), backbone)
    resid = residuals(backbone)[:, 1:]
    result = fitted.measured(backbone.head, lens, HeldRows(resid, 12, 12), fit_params(kind="imported"))

    final = backbone.head.logits(backbone.head.norm(resid[:, -1], L))
    expected = [float(kl_bits(final, lens.logits(backbone.head, resid[:, b], b + 1)).mean()) for b in range(L)]
    assert result.best.kl_bits == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert (result.steps, result.tokens_forwarded) == (0, 0)
    assert all(torch.equal(tensor, result.lens.tensors()[name]) for name, tensor in lens.tensors().items())


def test_kind_imported_and_its_folder_go_together():
    """Settings with one and not the other are refused; so is a Prism beside an imported lens."""
    for fit, place in (({"kind": "imported"}, {}), ({}, {"folder": "lens/gpt2"})):
        with pytest.raises(ValueError, match=r"kind imported needs one, and no other kind may have one"):
            atlas(fit=fit, imported=place)
    with pytest.raises(ValueError, match=r"fit\.prism is lens, must be off"):
        atlas(fit={"kind": "imported", "prism": "lens"}, imported={"folder": "lens/gpt2"})
    with pytest.raises(ValueError, match="repo needs folder"):
        atlas(imported={"repo": "AlignmentResearch/tuned-lens"})


def maps(**facts: object) -> dict[str, object]:
    """A Jacobian lens as its package saves it."""
    J = {i: torch.from_numpy(np.random.default_rng(i).normal(size=(D, D))).half() for i in range(L - 1)}
    return {"J": J, "n_prompts": 100, "source_layers": list(J), "d_model": D, "target_layer": None} | facts


def test_a_jacobian_lens_reads_the_mapped_residual(tmp_path, backbone):
    """unembed(J h) in fp64 to 1e-5: map i reads the residual after block i, and none is added to what it gives."""
    torch.save(maps(), tmp_path / "lens.pt")
    lens, about = read(tmp_path, backbone, "jacobian")
    resid, norm = residuals(backbone), backbone.model.gpt_neox.final_layer_norm
    W_U = backbone.model.get_output_embeddings().weight.double()

    for layer in range(1, L + 1):
        h = resid[:, layer].double()
        h = h @ maps()["J"][layer - 1].double().T if layer < L else h
        normed = torch.nn.functional.layer_norm(h, (D,), norm.weight.double(), norm.bias.double(), norm.eps)
        logits = lens.logits(backbone.head, resid[:, layer], layer).double()
        torch.testing.assert_close(logits, normed @ W_U.T, rtol=1e-5, atol=1e-5)
    assert about["config"] == {"n_prompts": 100, "source_layers": [0, 1], "d_model": D, "target_layer": None}
    assert (lens.kind, lens.U.dtype, list(about["files"])) == ("imported", torch.float16, ["lens.pt"])


def test_layers_that_a_jacobian_lens_lacks_are_absent(tmp_path, backbone):
    """They are recorded, kept on disk, refused when they are read, and validated nowhere."""
    torch.save(maps(J={1: maps()["J"][1]}, source_layers=[1]), tmp_path / "lens.pt")
    lens, about = read(tmp_path, backbone, "jacobian")
    lens.save(tmp_path / "saved")
    validated = fitted.measured(backbone.head, lens, HeldRows(residuals(backbone)[:, 1:], 12, 12), fit_params())

    assert (lens.absent, lens.layers, about["absent_layers"]) == ((1,), (2, 3), [1])
    for stored in (Lens.load(tmp_path / "saved"), StreamedLens.open(tmp_path / "saved")):
        assert stored.layers == (2, 3)
        with pytest.raises(InputError, match="layer is 1, must be one that the lens has: 2, 3"):
            stored.logits(backbone.head, torch.ones(1, D), 1)
    assert [math.isnan(bits) for bits in validated.best.kl_bits] == [True, False, False]
    assert validated.best.mean == validated.best.kl_bits[1] and validated.log[0].val_kl_bits_25 is None


@pytest.mark.parametrize(
    ("saved", "error", "message"),
    [
        (maps(J={}), InputError, "has no map; it must have that of one block at least"),
        (maps(J=maps()["J"] | {2: maps()["J"][0]}), IntegrityError, "the map of block 2 .* made for another model"),
        (maps(J={0: torch.eye(4), 1: torch.eye(4)}), IntegrityError, r"map of block 0 is \(4, 4\), must be \(32, 32\)"),
        (maps(d_model=64), IntegrityError, "made for a model of d_model 64, this one has 32"),
        (maps(J={i: torch.full((D, D), torch.nan) for i in range(2)}), NumericError, "not finite"),
        (maps(J={"0": torch.eye(D)}), IntegrityError, "not tensors by number"),
        (maps(W=torch.eye(D)), IntegrityError, "lens.pt is not tensors alone"),
        (maps(when=Evil()), IntegrityError, "lens.pt is not tensors alone"),
        ({"n_prompts": 1}, IntegrityError, "lens.pt is not tensors alone"),
        (drawn(), IntegrityError, "lens.pt is not tensors alone"),
    ],
)  # fmt: skip
def test_every_other_jacobian_lens_is_refused(tmp_path, backbone, monkeypatch, saved, error, message):
    """A file of a few layers, of another model, and with a program each give one line; no code of the file runs."""
    monkeypatch.chdir(tmp_path)
    torch.save(saved, tmp_path / "lens.pt")

    with pytest.raises(error, match=message) as caught:
        read(tmp_path, backbone, "jacobian")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "canary").exists()


@pytest.fixture
def stages(tmp_path) -> tuple:
    """An imported lens through prefetch and fit, in folders as the stages leave them."""
    (tmp_path / "text.txt").write_text("\n\n".join(f"The king went to the market on day {i}." for i in range(200)))
    model = save_tiny(tmp_path / "model", "gpt_neox")
    backbone = Backbone.from_model(tiny_model("gpt_neox"))
    text = {"kind": "files", "files": [str(tmp_path / "text.txt")], "seq_len": 16}
    settings = atlas(
        source={"path": str(model)},
        corpus=text | {"train_tokens": 176, "heldout_tokens": 128},
        imported={"folder": str(publish(tmp_path / "published", backbone))},
        fit={"kind": "imported", "positions_per_seq": 4, "validation_seqs": 2},
        sweep={"heldout_seqs": 4, "positions_per_seq": 4},
    )
    prefetch.build(settings, tmp_path / "corpus")
    artifacts.write_json(tmp_path / "code.json", {"stages/fit.py": "0" * 64})
    stage.run(settings, tmp_path / "code.json", tmp_path / "corpus", tmp_path / "lens")
    return settings, tmp_path


@pytest.mark.usefixtures("hardware")
def test_an_imported_lens_goes_through_the_stages_as_ours_do(stages):
    """The bench gets the published tensors, and the provenance names the published files."""
    settings, folder = stages
    bench = Bench.load(settings, folder / "corpus", folder / "lens")
    lens, _ = read(folder / "published", bench.backbone)
    about = artifacts.read_json(folder / "lens/provenance.json")

    assert (bench.lens.kind, bench.lens.placement) == ("imported", "residual")
    assert all(torch.equal(tensor, bench.lens.tensors()[name]) for name, tensor in lens.tensors().items())
    assert (folder / "lens/rank_curve.csv").read_text() == "rank,kl_bits,closed_form_kl_bits\n"
    assert about["imported"]["files"] == artifacts.sha256_tree(folder / "published")
    assert about["measured"]["steps"] == about["measured"]["tokens_forwarded"] == 0
