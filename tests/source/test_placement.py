"""Models larger than one device: the same bytes wherever blocks are; what does not fit is refused with sizes."""

import gc
import json
import subprocess
import sys
import time
import weakref
from pathlib import Path

import psutil
import pytest
import torch
from accelerate import cpu_offload

from lensmith.hub.models import pin_model
from lensmith.lens import recipe
from lensmith.process.errors import InputError, ResourceError
from lensmith.source import placement
from lensmith.source.backbone import Backbone
from lensmith.source.placement import GIB, NO_LENS, LensMemory, MemoryNeeds
from lensmith.source.skeleton import Skeleton, block_lists, meta_model
from tests.support.gguf_models import save_gguf
from tests.support.lab import REPOSITORY, Lab
from tests.support.settings import atlas, fit_params
from tests.support.tiny import save_tiny, tiny_model

CPU = torch.device("cpu")
GPU = torch.device("cuda")
TOKENS = torch.arange(40).view(2, 20) % 97
POSITIONS = torch.arange(20).expand(2, 20)


def skeleton_of(model, dtype=torch.float32, device=CPU) -> Skeleton:
    """A model of tests as `Skeleton.read` sees it."""
    return Skeleton(Path(), "org/x", device, dtype, False, meta_model(model.config, dtype))


def block_size(skeleton: Skeleton) -> int:
    return placement._size(block_lists(skeleton.model)[0][1][0])


@pytest.fixture
def little_memory(monkeypatch):
    """Room for all but two blocks of a model of four."""

    def room(skeleton: Skeleton) -> None:
        need = placement.needs(skeleton, NO_LENS).total
        monkeypatch.setattr(placement, "free_memory", lambda: {"cpu": need - 2 * block_size(skeleton)})

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
    little_memory(skeleton_of(single.model, getattr(torch, dtype)))
    spread = load(tmp_path, dtype=dtype, placement="auto")

    assert list(spread.model.hf_device_map.values()).count("disk") == 2 and not hasattr(single.model, "hf_device_map")
    assert torch.equal(spread.capture(TOKENS, POSITIONS), single.capture(TOKENS, POSITIONS))
    assert torch.equal(spread.logits(TOKENS), single.logits(TOKENS))
    assert spread.head.fingerprint() == single.head.fingerprint() and spread.device == CPU


def test_blocks_fill_the_devices_in_their_order(monkeypatch):
    """Two GPUs, memory, disk: a pass visits each once, and the rest of the model is where the lens is fit."""
    skeleton = skeleton_of(tiny_model("llama", n_layers=6), device=GPU)
    lens_memory = LensMemory(lambda *_: 500)
    size, need = block_size(skeleton), placement.needs(skeleton, lens_memory)
    monkeypatch.setattr(placement, "WORKING", 1000)
    rest = need.weights - 6 * size + need.head + 500
    memory = {0: 1000 + rest + 2 * size, 1: 1000 + int(1.9 * size), "cpu": 1000 + size}
    monkeypatch.setattr(placement, "free_memory", lambda: memory)
    devices = placement.place(skeleton, "auto", lens_memory).device_map

    assert [devices.pop(f"model.layers.{i}") for i in range(6)] == [0, 0, 1, "cpu", "disk", "disk"]
    assert set(devices.values()) == {0} and {"model.embed_tokens", "model.norm", "lm_head"} <= set(devices)


def test_a_lens_that_is_fit_after_the_release_takes_the_room_of_the_weights(monkeypatch):
    """With a bank on disk the two are never in memory at once: the larger one counts, and blocks fill all the room."""
    skeleton = skeleton_of(tiny_model("llama", n_layers=6), device=GPU)
    size, weights = block_size(skeleton), placement.needs(skeleton, NO_LENS).weights
    monkeypatch.setattr(placement, "WORKING", 1000)
    for lens, most in ((weights - 2 * size, weights), (weights + 1, weights + 1)):
        together, later = (LensMemory(lambda *_, n=lens: n, after_release) for after_release in (False, True))
        need = placement.needs(skeleton, later)
        assert placement.needs(skeleton, together).total - need.total == weights + lens - most
        monkeypatch.setattr(placement, "free_memory", lambda total=need.total: {0: total, "cpu": 0})
        assert set(placement.place(skeleton, "auto", later).device_map.values()) == {0}
        with pytest.raises(ResourceError, match=r"weights, \d"):
            placement.place(skeleton, "single", together)
        monkeypatch.setattr(placement, "free_memory", lambda total=need.total: {0: total - size, "cpu": 0})
        if lens < weights:
            assert list(placement.place(skeleton, "auto", later).device_map.values()).count("disk") == 1
        else:
            with pytest.raises(ResourceError, match="the parts outside its blocks need"):
                placement.place(skeleton, "auto", later)


def test_released_weights_leave_memory():
    """In the model, and where accelerate keeps those that are off the device."""
    model = tiny_model("llama")
    seen = []
    for block in model.model.layers:
        weights = {name: tensor.clone() for name, tensor in block.state_dict().items()}
        seen += map(weakref.ref, weights.values())
        cpu_offload(block, execution_device=CPU, state_dict=weights)
    del weights
    backbone = Backbone.from_model(model)
    before = backbone.head.fingerprint()
    assert seen and all(ref() is not None for ref in seen)
    backbone.release()
    gc.collect()

    assert [ref for ref in seen if ref() is not None] == []
    assert backbone.head.fingerprint() == before


@pytest.mark.parametrize(
    ("where", "free", "message"),
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
            r"It needs a machine with more memory; `source\.dtype: bfloat16` halves float32\. The model was not",
        ),
        (
            "auto",
            3 * GIB,
            r"the parts outside its blocks need 7\.0 GiB on cpu, which has 3\.0 GiB free\. The model was not loaded",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_sizes(monkeypatch, where, free, message):
    """Before a weight is read, with the setting that would help."""
    skeleton = skeleton_of(tiny_model("llama"))
    monkeypatch.setattr(placement, "needs", lambda *_: MemoryNeeds(7 * GIB, 4 * GIB, GIB))
    monkeypatch.setattr(placement, "_size", lambda _: 7 * GIB // 3)
    monkeypatch.setattr(placement, "free_memory", lambda: {"cpu": free})

    with pytest.raises(ResourceError, match=message):
        placement.place(skeleton, where, NO_LENS)


def test_needs_are_those_of_the_loaded_model():
    """Weights once where they are tied, W_U in fp32, against the tensors themselves."""
    for family in ("llama", "llama_tied"):
        model = tiny_model(family)
        need = placement.needs(skeleton_of(model, torch.bfloat16), NO_LENS)
        assert need.weights == sum(2 * parameter.numel() for parameter in model.parameters())
        assert need.head == 4 * model.lm_head.weight.numel()


def test_the_memory_of_a_fit_is_that_of_its_tensors():
    """Six copies of a lens and the whitening, as `training` holds them: 31 blocks of 4096 at rank 128."""
    lens = 31 * (2 * 4096 * 128 + 2 * 4096)
    assert recipe.memory(fit_params(coordinates="plain", rank=128), 32, 4096) == 4 * 6 * lens
    assert recipe.memory(fit_params(rank=128), 32, 4096) == 4 * (6 * lens + 32 * 4096**2)


@pytest.mark.parametrize(
    "family",
    ["llama", *(pytest.param(name, marks=pytest.mark.long) for name in ("gemma2", "qwen3", "mixtral", "gguf"))],
)
def test_two_processes_give_the_same_residuals_up_to_rounding(tmp_path, family):
    """On gloo: every layer, the model's own logits, and the very same head."""
    if family == "gguf":
        save_gguf(tmp_path / "tiny.gguf", "Q8_0")
    else:
        save_tiny(tmp_path, family, n_layers=3)
    program = [sys.executable, "-m", "tests.support.ranks_program", str(tmp_path)]
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout)

    assert 0 < differences["resid"] <= 1e-5 and differences["logits"] <= 1e-5 and differences["head"]


@pytest.mark.long
def test_a_model_of_two_processes_is_released_by_both(tmp_path):
    """A part of 38 MiB each; the processes wait for the end of the stage without it."""
    save_tiny(tmp_path, "llama", n_layers=3, intermediate_size=2**16)
    program = [sys.executable, "-m", "tests.support.ranks_program", str(tmp_path), "release"]
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    freed = json.loads(done.stdout)

    assert len(freed) == 2 and min(freed) > 20 * 2**20


@pytest.mark.parametrize(
    ("family", "n", "message"),
    [
        ("llama", "3", "3 processes cannot share 4 attention heads and 2 key-value heads"),
        ("gpt2", "2", "no tensor-parallel plan"),
    ],
)
def test_a_model_that_processes_cannot_share_is_refused_before_any_starts(tmp_path, monkeypatch, family, n, message):
    save_tiny(tmp_path, family)
    monkeypatch.setenv("LENSMITH_RANKS", n)

    with pytest.raises(InputError, match=message):
        load(tmp_path, placement="tp")
    monkeypatch.delenv("LENSMITH_RANKS")
    with pytest.raises(InputError, match="on a CPU LENSMITH_RANKS must say how many"):
        load(tmp_path, placement="tp")


@pytest.mark.long
def test_a_stage_over_two_processes_ends_with_them(tmp_path):
    """Through `dvc repro`: a whole fit, and one whose other process is killed at once; no process is left behind."""
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
    ranks = [p for p in psutil.process_iter(["cmdline"]) if "lensmith.source.ranks" in (p.info["cmdline"] or [])]
    return [p for p in ranks if p.status() != psutil.STATUS_ZOMBIE and p.cwd() == home]
