"""A model whose files name code from elsewhere is refused; its own code runs only where the settings trust it."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lensmith.files import artifacts, seals
from lensmith.process.errors import InputError
from lensmith.source import configuration, prefetch, remote_code
from tests.support.lab import SENTENCES
from tests.support.loopback_hub import Client, LoopbackHub
from tests.support.settings import atlas
from tests.support.tiny import save_tiny

REPOSITORY = Path(__file__).parents[2]
CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path(__MARK__).touch()

class Config(LlamaConfig):
    model_type = "canary"

class Model(LlamaForCausalLM):
    config_class = Config
"""
CONFIG = {"model_type": "llama"}
BAD: dict[str, tuple[str, Any, str]] = {
    "kernels of the Hub": ("config.json", {"_attn_implementation": "org/kernels"}, "_attn_implementation is"),
    "the field of CVE-2026-4372": (
        "config.json",
        {"_attn_implementation_internal": "org/kernels@main:flash"},
        "_attn_implementation_internal is",
    ),
    "kernels of a part": (
        "config.json",
        {"text_config": {"attn_implementation": {"": "sdpa", "vision": "org/k"}}},
        r"text_config\.attn_implementation is",
    ),
    "experts of the Hub": ("config.json", {"experts_implementation": "org/k"}, "experts_implementation is"),
    "a switch inside": ("config.json", {"sub": [{"trust_remote_code": True}]}, r"sub\[0\]\.trust_remote_code is true"),
    "kernels by switch": ("config.json", {"use_kernels": True}, "use_kernels is true"),
    "a backbone of elsewhere": ("config.json", {"use_pretrained_backbone": True}, "use_pretrained_backbone is true"),
    "code of another repository": (
        "config.json",
        {"auto_map": {"AutoConfig": "org/other--canary.Config"}},
        "auto_map names code of another repository",
    ),
    "a tokenizer's code of elsewhere": (
        "tokenizer_config.json",
        {"auto_map": {"AutoTokenizer": [None, "org/other--canary.Fast"]}},
        "auto_map names code of another repository",
    ),
    "a generation that calls": ("generation_config.json", {"trust_remote_code": True}, "trust_remote_code is true"),
    "an adapter": ("adapter_config.json", {"base_model_name_or_path": "org/other"}, "names a base model elsewhere"),
    "no object": ("config.json", [1], "it is not a JSON object"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with code that leaves a mark when it runs."""
    (tmp_path / "model").mkdir()
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_text(json.dumps(CONFIG))
    (tmp_path / "model" / "canary.py").write_text(CODE.replace("__MARK__", repr(str(tmp_path / "ran"))))
    return tmp_path / "model"


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_names_code_from_elsewhere_is_refused_before_it_is_read(folder, case):
    """By `prefetch` and by the stages after it. The message names the file and the field."""
    name, content, message = BAD[case]
    (folder / name).write_text(json.dumps(CONFIG | content if isinstance(content, dict) else content))

    for read in (remote_code.check, configuration.read_config):
        with pytest.raises(InputError, match=message) as caught:
            read(folder, "org/x")
        assert f"org/x: {name}" in str(caught.value) and "Nothing of the model was read." in str(caught.value)
    assert not (folder.parent / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff",
        b"[" * 100_000,
        json.dumps({"a": "x"}).encode().ljust(remote_code.MAX_BYTES + 1),
    ],
    ids=["cut", "no UTF-8", "deep", "huge"],
)
def test_a_file_that_is_not_json_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)

    with pytest.raises(InputError, match=r"org/x: config\.json"):
        remote_code.check(folder, "org/x")


@pytest.mark.parametrize(
    "content",
    [
        {"_attn_implementation": "sdpa", "_attn_implementation_autoset": True, "trust_remote_code": False},
        {"attn_implementation": {"": "eager", "text_config": "flash_attention_2"}, "experts_implementation": None},
        {"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "_name_or_path": "org/other--x"},
    ],
)
def test_fields_of_ordinary_models_are_accepted(folder, content):
    """Many models that transformers knows still hold code of their own, which is not run."""
    (folder / "config.json").write_text(json.dumps(CONFIG | content))

    remote_code.check(folder, "org/x")
    assert configuration.read_config(folder, "org/x").model_type == "llama"
    assert not (folder.parent / "ran").exists()


def test_prefetch_refuses_such_a_file_too(folder, tmp_path):
    """It has a network, where the code would be downloaded."""
    (folder / "config.json").write_text(json.dumps(CONFIG | {"use_kernels": True}))
    (folder / "model.safetensors").write_bytes(b"")

    with pytest.raises(InputError, match="use_kernels is true"):
        prefetch.build(atlas(source={"path": str(folder)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A Hub with a model that only its own code can load."""
    root = tmp_path_factory.mktemp("hub")
    model = save_tiny(root / "model", n_layers=3)
    config = json.loads((model / "config.json").read_text()) | {"model_type": "canary"}
    config["auto_map"] = {"AutoConfig": "canary.Config", "AutoModelForCausalLM": "canary.Model"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "canary.py").write_text(CODE.replace("__MARK__", repr(str(root / "ran"))))
    text = io.StringIO()
    text.writelines(json.dumps({"text": f"{SENTENCES[i % 3]} It was day {i}."}) + "\n" for i in range(200))
    (root / "text.jsonl").write_text(text.getvalue())
    with LoopbackHub() as server:
        commit = server.commit("models", "lab/own", {path.name: path.read_bytes() for path in model.iterdir()})
        yield server, commit, root


@pytest.mark.long
def test_a_models_own_code_runs_at_a_named_commit_only_and_without_a_network(hub, tmp_path, record_property):
    """By default the model is refused and its code not downloaded. With source.trust_remote_code the code is pinned by
    its hash, run by a stage that makes no request, and recorded in the provenance.
    """
    server, commit, root = hub
    client = Client(server.url, tmp_path / "home")
    corpus = {"kind": "files", "repo": None, "files": [str(root / "text.jsonl")], "seq_len": 32}
    settings = atlas(
        source={"repo": "lab/own", "path": None, "revision": commit},
        corpus=corpus | {"train_tokens": 512, "heldout_tokens": 512},
        fit={"rank": 4, "positions_per_seq": 8, "epochs": 1, "batch_seqs": 8, "validation_seqs": 4, "ladder": []},
        sweep={"heldout_seqs": 8, "positions_per_seq": 8},
    ).model_dump(mode="json")
    wanted = {"source": settings["source"], "corpus": settings["corpus"], "out": str(tmp_path / "corpus")}
    try:
        with pytest.raises(InputError, match=r"config\.json cannot be used"):
            client.call("build", **wanted)
        assert "canary.py" not in server.downloads() and not (root / "ran").exists()

        settings["source"]["trust_remote_code"] = True
        client.call("build", **wanted)
    finally:
        client.close()
    manifest = artifacts.read_json(tmp_path / "corpus" / "manifest.json")
    assert "canary.py" in manifest["model"]["files"] and "model.safetensors" in server.downloads()
    (root / "ran").unlink(missing_ok=True)
    seals.seal(tmp_path / "corpus")  # as the stage does

    artifacts.write_json(tmp_path / "settings.json", settings)
    artifacts.write_json(tmp_path / "code.json", {})
    paths = {"settings": "settings.json", "code": "code.json", "corpus": "corpus", "lens": "lens"}
    words = [word for name, path in paths.items() for word in (f"--{name}", str(tmp_path / path))]

    def run(*command: str, home: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
        environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / home)}
        command = (sys.executable, *command)
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)

    elsewhere = run("-m", "stages.fit", *words, home="other", cwd=REPOSITORY)
    assert elsewhere.returncode == 5 and "`lensmith fetch` downloads what they need" in elsewhere.stderr
    done = run("-m", "stages.fit", *words, home="home", cwd=REPOSITORY)

    assert done.returncode == 0, done.stderr
    assert server.requests == []
    assert (root / "ran").exists(), "its code ran"
    assert artifacts.read_json(tmp_path / "lens" / "provenance.json")["trust_remote_code"] is True
    record_property("requests of a fit whose model is of the Hub", len(server.requests))

    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    (tmp_path / "artifacts" / "atlas").mkdir(parents=True)
    (tmp_path / "corpus").rename(tmp_path / "artifacts" / "atlas" / "corpus")
    fetched = run("-c", "from lensmith.cli import app; app.run()", "fetch", "atlas", home="other", cwd=tmp_path)
    folder = Path(fetched.stdout.removeprefix("atlas: ").strip())
    assert fetched.returncode == 0 and folder.is_relative_to(tmp_path / "other"), fetched.stderr
    assert set(manifest["model"]["files"]) == {path.name for path in folder.iterdir()}
