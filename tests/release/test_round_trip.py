"""From the Hub and back to it: prefetch, fit, publish; then a stranger with another cache reads the same logits."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lensmith.files import artifacts
from lensmith.process.errors import InputError, IntegrityError
from tests.support.lab import SENTENCES
from tests.support.loopback_hub import Client, LoopbackHub
from tests.support.loopback_writes import WRITER
from tests.support.scores import passing, write_drawn
from tests.support.settings import atlas
from tests.support.tiny import save_tiny

MODEL, TEXT, LENSES = "lab/tiny", "lab/text", "lab/lenses"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """A Hub with a model and its licence, and a dataset of four files; both have moved on since the pinned commit."""
    folder = save_tiny(tmp_path_factory.mktemp("model"), n_layers=3)
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"LICENSE": b"terms of the tiny model"}
    with LoopbackHub() as server:
        server.tag("models", MODEL, "v1", server.commit("models", MODEL, files))
        server.commit("models", MODEL, files | {"config.json": b"{}"})
        texts = {f"data/train-{i}.jsonl": jsonl(i) for i in range(4)}
        server.tag("datasets", TEXT, "v1", server.commit("datasets", TEXT, texts))
        server.commit("datasets", TEXT, {"data/train-0.jsonl": b'{"text": "moved on"}\n'})
        yield server


def jsonl(number: int) -> bytes:
    texts = [f"{SENTENCES[i % 3]} It was day {number} of {i}." for i in range(60)]
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


class Lab:
    """A lab in a git repository of its own, and its client of the Hub."""

    def __init__(self, hub: LoopbackHub, root: Path) -> None:
        self.root = root / "lab"
        self.root.mkdir()
        self.git("init", "--quiet")
        self.git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--allow-empty", "--message", "lab")
        self.out = root / "out"
        self.client = Client(hub.url, root / "home", cwd=self.root, HF_TOKEN=WRITER)
        corpus = {"kind": "hf", "repo": TEXT, "name": None, "revision": "v1", "seq_len": 32}
        self.settings = atlas(
            source={"repo": MODEL, "path": None, "revision": "v1"},
            corpus={**corpus, "train_tokens": 1024, "heldout_tokens": 512},
            fit={"rank": 4, "positions_per_seq": 16, "epochs": 4, "batch_seqs": 8, "validation_seqs": 4},
            sweep={"heldout_seqs": 4, "positions_per_seq": 8},
            publish={"repo": LENSES, "base_license": None, "base_license_file": None},
        ).model_dump(mode="json")

    def git(self, *words: str) -> None:
        subprocess.run(["git", *words], cwd=self.root, check=True)

    def at(self, *names: str) -> dict[str, str]:
        return {name: str(self.out / name) for name in names}

    def fit(self) -> None:
        source, corpus = self.settings["source"], self.settings["corpus"]
        self.client.call("build", source=source, corpus=corpus, out=str(self.out / "corpus"))
        artifacts.write_json(self.out / "code", {})
        self.client.call("stage", name="fit", settings=self.settings, paths=self.at("code", "corpus", "lens"))
        passing().write(self.out / "judgement" / "tiny.json")
        write_drawn(self.out, "tiny")

    def publish(self, **publish: Any) -> dict[str, Any]:
        settings = {**self.settings, "publish": {**self.settings["publish"], **publish}}
        artifacts.write_json(self.out / "settings" / "tiny.json", settings)
        files = {"settings": "settings/tiny.json", "judgement": "judgement/tiny.json"}
        files |= {
            name: f"{name}/tiny.csv" for name in ("kl", "cosine", "causal", "earliness", "training", "rank_curve")
        }
        files["detail"] = "detail/tiny.json"
        paths = self.at("corpus", "lens", "release") | {name: str(self.out / file) for name, file in files.items()}
        self.client.call("stage", name="publish", settings=settings, paths=paths)
        receipt: dict[str, Any] = artifacts.read_json(self.out / "release" / "receipt.json")
        return receipt


@pytest.fixture(scope="module")
def lab(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(hub, tmp_path_factory.mktemp("round"))
    lab.fit()
    yield lab
    lab.client.close()


@pytest.fixture(scope="module")
def base(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model as a stranger has it: files of the pinned commit in a folder of their own."""
    repo = hub.repos["models", MODEL]
    folder = tmp_path_factory.mktemp("base")
    for name, content in repo.commits[repo.refs["v1"]].items():
        (folder / name).write_bytes(content)
    return str(folder)


def test_a_stranger_reads_the_same_logits(hub, lab, base, tmp_path):
    """Two machines that share nothing but the Hub."""
    receipt = lab.publish()
    stranger = Client(hub.url, tmp_path / "home")
    try:
        theirs = stranger.call("logits", place=LENSES, model=MODEL, base=base, revision=receipt["tag"])
        verified = stranger.call("verify", release=LENSES, model=MODEL)
    finally:
        stranger.close()

    assert theirs == lab.client.call("logits", place=str(lab.out / "lens"), model=MODEL, base=base)
    assert receipt["commit"] == hub.repos["datasets", LENSES].refs[receipt["tag"]]
    assert verified[0].startswith(f"{MODEL}: verified: every hash")
    files = hub.repos["datasets", LENSES].commits[receipt["commit"]]
    assert files[f"LICENSES/{MODEL}/LICENSE"] == b"terms of the tiny model"
    assert lab.publish() == receipt, "the same bytes are no new release"


@pytest.mark.parametrize("wrong", ["weights", "depth"])
def test_a_lens_of_another_model_is_refused(lab, tmp_path, wrong):
    """Its numbers would look like numbers."""
    lab.publish(repo=None)
    other = save_tiny(tmp_path, n_layers=3, seed=1) if wrong == "weights" else save_tiny(tmp_path, n_layers=2)

    with pytest.raises(IntegrityError, match=r"fit on float32 weights.*W_U" if wrong == "weights" else "another model"):
        lab.client.call("logits", place=str(lab.out / "release"), model=MODEL, base=str(other))


def test_a_gate_that_does_not_pass_is_sent_only_where_the_settings_say_so(hub, lab):
    """And then the index says it to everybody."""
    passing(verdicts={"B": "fail"}).write(lab.out / "judgement" / "tiny.json")
    with pytest.raises(InputError, match=r"gate B of lab/tiny is fail.*allow_failed_gates.*nothing was sent"):
        lab.publish(repo="lab/failed")
    assert ("datasets", "lab/failed") not in hub.repos

    lab.publish(repo="lab/failed", allow_failed_gates=True)
    repo = hub.repos["datasets", "lab/failed"]
    index = json.loads(repo.commits[repo.refs["main"]]["INDEX.json"])
    assert index[MODEL]["allow_failed_gates"] is True and index[MODEL]["verdicts"]["gate_B"] == "fail"
    passing().write(lab.out / "judgement" / "tiny.json")


def test_an_invalid_gate_is_never_sent(hub, lab):
    passing(verdicts={"D": "invalid"}).write(lab.out / "judgement" / "tiny.json")
    with pytest.raises(InputError, match="gate D of lab/tiny is invalid"):
        lab.publish(repo="lab/invalid", allow_failed_gates=True)
    passing().write(lab.out / "judgement" / "tiny.json")

    assert ("datasets", "lab/invalid") not in hub.repos


def test_sources_that_are_not_committed_are_not_published(hub, lab):
    """Nobody could fit the lens again. What `dvc repro` writes itself does not count."""
    (lab.root / "metrics").mkdir()
    (lab.root / "metrics" / "tiny.json").write_text("{}")
    assert lab.publish()["repo"] == LENSES
    (lab.root / "fit.py").write_text("x = 1")
    with pytest.raises(InputError, match=r"git: fit\.py is not as committed"):
        lab.publish(repo="lab/dirty")
    (lab.root / "fit.py").unlink()

    assert ("datasets", "lab/dirty") not in hub.repos


def test_a_secret_in_the_package_stops_it(hub, lab, tmp_path):
    """The message says where and what kind, and does not repeat it."""
    terms = tmp_path / "TERMS"
    terms.write_text("written on my laptop\nin /home/ada/models\n")
    with pytest.raises(InputError, match=r"TERMS:2: holds a home path") as caught:
        lab.publish(repo="lab/secret", base_license_file=str(terms))

    assert "ada" not in str(caught.value)
    assert ("datasets", "lab/secret") not in hub.repos


def test_without_a_licence_text_nothing_is_sent(hub, lab):
    repo = hub.repos["models", MODEL]
    text = repo.commits[repo.refs["v1"]].pop("LICENSE")
    try:
        with pytest.raises(InputError, match=r"base_license_file: .* holds no licence text of lab/tiny"):
            lab.publish(repo="lab/unlicensed")
    finally:
        repo.commits[repo.refs["v1"]]["LICENSE"] = text
    assert ("datasets", "lab/unlicensed") not in hub.repos
