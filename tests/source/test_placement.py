"""Models larger than one device: the same bytes wherever the blocks are, and a refusal with numbers before anything."""

import gc
import json
import subprocess
import sys
import time
import weakref

import psutil
import pytest
import torch
from accelerate import cpu_offload

from lensmith.hub.models import pin_model
from lensmith.lens import training
from lensmith.process.errors import InputError, ResourceError
from lensmith.source import placement
from lensmith.source.backbone import Backbone
from lensmith.source.placement import GIB, LensMemory, Needs
from tests.support.lab import REPOSITORY, Lab
from tests.support.settings import atlas, fit_params
from tests.support.tiny import save_tiny, tiny_model

CPU = torch.device("cpu")
TOKENS = torch.arange(40).view(2, 20) % 97
POSITIONS = torch.arange(20).expand(2, 20)


@pytest.fixture
def little_memory(monkeypatch):
    """Room for all but two blocks of a model of four."""

    def room(frame) -> None:
        blocks = placement.block_lists(frame)[0][1]
        need = placement.needs(frame, placement.NO_LENS).total
        monkeypatch.setattr(placement, "free_memory", lambda: {"cpu": need - 2 * placement._size(blocks[0])})

    monkeypatch.setattr(placement, "WORKING", 1000)
    return room


def load(folder, **source) -> Backbone:
    settings = atlas(source={"path": str(folder)} | source).source
    return Backbone.load(settings, pin_model(settings))


@pytest.mark.parametrize(
    ("family", "dtype"), [("llama", "float32"), ("llama", "bfloat16"), ("gemma2", "float32"), ("gpt_neox", "float32")]
)
def test_blocks_on_the_disk_give_the_same_bytes(tmp_path, little_memory, family, dtype):
    """Residuals of every layer, logits and the head: accelerate brings blocks to the device where they run."""
    save_tiny(tmp_path, family, n_layers=4)
    single = load(tmp_path, dtype=dtype)
    little_memory(placement.skeleton(single.model.config, getattr(torch, dtype)))
    spread = load(tmp_path, dtype=dtype, placement="auto")

    assert list(spread.model.hf_device_map.values()).count("disk") == 2 and not hasattr(single.model, "hf_device_map")
    assert torch.equal(spread.capture(TOKENS, POSITIONS), single.capture(TOKENS, POSITIONS))
    assert torch.equal(spread.logits(TOKENS), single.logits(TOKENS))
    assert spread.head.fingerprint() == single.head.fingerprint() and spread.device == CPU


def test_blocks_fill_the_devices_in_their_order(monkeypatch):
    """Two GPUs, memory, disk: a pass goes through each once, and what is no block is where the lens is fit."""
    frame = placement.skeleton(tiny_model("llama", n_layers=6).config, torch.float32)
    blocks = placement.block_lists(frame)[0][1]
    beside = LensMemory(lambda *_: 500)
    size, need = placement._size(blocks[0]), placement.needs(frame, beside)
    monkeypatch.setattr(placement, "WORKING", 1000)
    rest = need.weights - 6 * size + need.head + 500
    memory = {0: 1000 + rest + 2 * size, 1: 1000 + int(1.9 * size), "cpu": 1000 + size}
    monkeypatch.setattr(placement, "free_memory", lambda: memory)
    found = placement.device_map(frame, "auto", torch.device("cuda"), "org/x", beside)

    assert [found.pop(f"model.layers.{i}") for i in range(6)] == [0, 0, 1, "cpu", "disk", "disk"]
    assert set(found.values()) == {0} and {"model.embed_tokens", "model.norm", "lm_head"} <= set(found)


def test_a_lens_that_is_fit_after_the_capture_takes_the_room_of_the_weights(monkeypatch):
    """With a bank on the disk they are never there at once: what is asked for is the larger, and blocks fill all."""
    frame = placement.skeleton(tiny_model("llama", n_layers=6).config, torch.float32)
    size, weights = (
        placement._size(placement.block_lists(frame)[0][1][0]),
        placement.needs(frame, placement.NO_LENS).weights,
    )
    monkeypatch.setattr(placement, "WORKING", 1000)
    for lens, most in ((weights - 2 * size, weights), (weights + 1, weights + 1)):
        together, later = (LensMemory(lambda *_, n=lens: n, after_release) for after_release in (False, True))
        need = placement.needs(frame, later)
        assert placement.needs(frame, together).total - need.total == weights + lens - most
        monkeypatch.setattr(placement, "free_memory", lambda total=need.total: {0: total, "cpu": 0})
        found = placement.device_map(frame, "auto", torch.device("cuda"), "org/x", later)
        assert set(found.values()) == {0}
        with pytest.raises(ResourceError, match="weights, 0"):
            placement.device_map(frame, "single", torch.device("cuda"), "org/x", together)
        monkeypatch.setattr(placement, "free_memory", lambda total=need.total: {0: total - size, "cpu": 0})
        if lens < weights:
            spread = placement.device_map(frame, "auto", torch.device("cuda"), "org/x", later)
            assert list(spread.values()).count("disk") == 1
        else:
            with pytest.raises(ResourceError, match="what is no block needs"):
                placement.device_map(frame, "auto", torch.device("cuda"), "org/x", later)


def test_released_weights_are_nowhere():
    """Neither in the model nor where accelerate keeps those that are off the device."""
    model = tiny_model("llama")
    seen = []
    for block in model.model.layers:
        kept = {name: tensor.clone() for name, tensor in block.state_dict().items()}
        seen += map(weakref.ref, kept.values())
        cpu_offload(block, execution_device=CPU, state_dict=kept)
    del kept
    backbone = Backbone.from_model(model)
    before = backbone.head.fingerprint()
    assert seen and all(ref() is not None for ref in seen)
    backbone.release()
    gc.collect()

    assert [ref for ref in seen if ref() is not None] == []
    assert backbone.head.fingerprint() == before


@pytest.mark.parametrize(
    ("asked", "free", "said"),
    [
        ("single", 3 * GIB, r"needs 14\.0 GiB \(7\.0 GiB weights, 1\.0 GiB lens, 4\.0 GiB head in fp32, 2\.0 GiB work"),
        (
            "single",
            8 * GIB,
            r"on cpu, which has 8\.0 GiB free\. `source\.placement: auto` has 8\.0 GiB in GPUs and memory",
        ),
        (
            "single",
            3 * GIB,
            r"A machine with more is needed; `source\.dtype: bfloat16` halves float32\. The model was not",
        ),
        (
            "auto",
            3 * GIB,
            r"what is no block needs 7\.0 GiB on cpu, which has 3\.0 GiB free\. The model was not loaded",
        ),
    ],
)
def test_what_does_not_fit_is_said_with_numbers(monkeypatch, asked, free, said):
    """Before a weight is read, with the setting that would do."""
    frame = placement.skeleton(tiny_model("llama").config, torch.float32)
    monkeypatch.setattr(placement, "needs", lambda *_: Needs(7 * GIB, 4 * GIB, GIB))
    monkeypatch.setattr(placement, "_size", lambda _: 7 * GIB // 3)
    monkeypatch.setattr(placement, "free_memory", lambda: {"cpu": free})

    with pytest.raises(ResourceError, match=said):
        placement.device_map(frame, asked, CPU, "org/x", placement.NO_LENS)


def test_needs_are_those_of_the_loaded_model():
    """Weights once where they are tied, W_U in fp32, against the tensors themselves."""
    for family in ("llama", "llama_tied"):
        model = tiny_model(family)
        frame = placement.skeleton(model.config, torch.bfloat16)
        found = placement.needs(frame, placement.NO_LENS)
        assert found.weights == sum(2 * parameter.numel() for parameter in model.parameters())
        assert found.head == 4 * model.lm_head.weight.numel()


def test_the_memory_of_a_fit_is_that_of_its_tensors():
    """Six copies of a lens and the whitening, as `training` holds them: 31 blocks of 4096 at rank 128."""
    lens = 31 * (2 * 4096 * 128 + 2 * 4096)
    assert training.memory(fit_params(coordinates="plain", rank=128), 32, 4096) == 4 * 6 * lens
    assert training.memory(fit_params(rank=128), 32, 4096) == 4 * (6 * lens + 32 * 4096**2)


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(name, marks=pytest.mark.long) for name in ("gemma2", "qwen3", "mixtral"))]
)
def test_two_processes_give_the_same_residuals_up_to_rounding(tmp_path, family):
    """On gloo: every layer, the model's own logits, and the very same head."""
    save_tiny(tmp_path, family, n_layers=3)
    program = [sys.executable, "-m", "tests.support.ranks_program", str(tmp_path)]
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    assert 0 < found["resid"] <= 1e-5 and found["logits"] <= 1e-5 and found["head"]


@pytest.mark.long
def test_a_model_of_two_processes_is_released_by_both(tmp_path):
    """A part of 38 MiB each; they wait for the end of the stage without it."""
    save_tiny(tmp_path, "llama", n_layers=3, intermediate_size=2**16)
    program = [sys.executable, "-m", "tests.support.ranks_program", str(tmp_path), "release"]
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    assert len(found) == 2 and min(found) > 20 * 2**20


@pytest.mark.parametrize(
    ("family", "n", "said"),
    [
        ("llama", "3", "3 processes cannot share 4 attention heads and 2 of keys"),
        ("gpt2", "2", "no tensor-parallel plan"),
    ],
)
def test_what_processes_cannot_share_is_said_before_any_starts(tmp_path, monkeypatch, family, n, said):
    save_tiny(tmp_path, family)
    monkeypatch.setenv("LENSMITH_RANKS", n)

    with pytest.raises(InputError, match=said):
        load(tmp_path, placement="tp")
    monkeypatch.delenv("LENSMITH_RANKS")
    with pytest.raises(InputError, match="on a CPU LENSMITH_RANKS has to say how many"):
        load(tmp_path, placement="tp")


@pytest.mark.long
def test_a_stage_over_two_processes_ends_with_them(tmp_path):
    """Through `dvc repro`: a fit as it is, and one whose other process is killed at once; nobody is left behind."""
    lab = Lab.make(tmp_path, {"one": {"source": {"placement": "tp"}}})
    lab.run("dvc", "repro", "prefetch@one")
    environment = lab.environment() | {"LENSMITH_RANKS": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    fit = ["dvc", "repro", "fit@one"]
    whole = subprocess.run(fit, cwd=lab.root, env=environment, check=False, **pipes)
    machine = json.loads((lab.root / "artifacts/one/lens/provenance.json").read_text())["machine"]

    assert whole.returncode == 0, whole.stdout
    assert machine["ranks"] == 2 and _others(lab) == []
    lab.edit("models.one.fit.seed", 5)
    with subprocess.Popen(fit, cwd=lab.root, env=environment, **pipes) as process:
        while not (others := _others(lab)):
            assert process.poll() is None
            time.sleep(0.1)
        others[0].kill()
        output, _ = process.communicate(timeout=200)
    assert "a process that shares the model ended" in output and _others(lab) == []
    assert f"exited with {ResourceError.exit_code}" in output


def _others(lab: Lab) -> list[psutil.Process]:
    """Running processes that share a model of the lab."""
    home = str(lab.root)
    found = [p for p in psutil.process_iter(["cmdline"]) if "lensmith.source.ranks" in (p.info["cmdline"] or [])]
    return [p for p in found if p.status() != psutil.STATUS_ZOMBIE and p.cwd() == home]
