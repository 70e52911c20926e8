"""Pins and downloads with the real client and a Hub on the loopback interface."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lensmith.process.errors import InputError, IntegrityError, LensmithError, RemoteError
from tests.support.loopback_hub import Client, Fault, Files, LoopbackHub

SOURCE = {
    "repo": "lab/tiny",
    "file": None,
    "path": None,
    "revision": "main",
    "dtype": "auto",
    "device": "auto",
    "placement": "single",
    "trust_remote_code": False,
}
CONFIG = b'{"model_type": "llama"}'
MODEL: Files = {
    "config.json": CONFIG,
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors": b"weights of the first commit",
    "consolidated.safetensors": b"the same weights for another program",
    "pytorch_model.bin": b"a pickle",
    "modeling_tiny.py": b"raise SystemExit",
    "onnx/model.safetensors": b"elsewhere",
    "README.md": b"# tiny",
}
SHARDS: Files = {
    "config.json": CONFIG,
    "model.safetensors.index.json": b"""
        {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}""",
    "model-1-of-2.safetensors": b"first half",
    "model-2-of-2.safetensors": b"second half",
    "model-old.safetensors": b"not in the index",
}
PINNED = {"config.json", "tokenizer.json", "model.safetensors"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_faults(hub: LoopbackHub) -> None:
    hub.faults.clear()
    hub.flipped.clear()
    hub.requests.clear()


@pytest.fixture(scope="module")
def client(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    child = Client(hub.url, tmp_path_factory.mktemp("home"))
    yield child
    child.close()


@pytest.fixture
def another(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """Clients with an environment of their own."""
    children: list[Client] = []

    def start(url: str, **environment: str) -> Client:
        children.append(Client(url, tmp_path / f"home{len(children)}", **environment))
        return children[-1]

    yield start
    for child in children:
        child.close()


def pin(client: Client, repo: str = "lab/tiny", **source: str) -> dict[str, Any]:
    result: dict[str, Any] = client.call("pin_model", **{**SOURCE, "repo": repo, **source})
    return result


def test_a_pin_is_a_commit_and_the_sha256_of_every_file_that_is_read(hub, client):
    """The repository also has pickles, code and copies, which are not read."""
    commit = hub.commit("models", "lab/tiny", MODEL)

    assert pin(client) == {
        "repo": "lab/tiny",
        "path": None,
        "commit": commit,
        "files": {name: sha256(MODEL[name]) for name in sorted(PINNED)},
    }


def test_of_a_gguf_model_one_file_is_pinned_and_downloaded(hub, client):
    """Tokenizer and configuration are in it; other files of the repository, GGUF or not, stay there."""
    hub.commit("models", "lab/gguf", MODEL | {"a.Q4_K_M.gguf": b"four bits", "a.Q8_0.gguf": b"eight bits"})

    recorded = pin(client, "lab/gguf", file="a.Q8_0.gguf")
    path = Path(client.call("fetch_tokenizer", pin=recorded))

    assert recorded["files"] == {"a.Q8_0.gguf": sha256(b"eight bits")}
    assert path.read_bytes() == b"eight bits"
    assert set(hub.downloads()) == {"a.Q8_0.gguf"}
    with pytest.raises(InputError, match=r"no a\.Q2_K\.gguf; it has a\.Q4_K_M\.gguf, a\.Q8_0\.gguf\."):
        pin(client, "lab/gguf", file="a.Q2_K.gguf")


def test_a_pin_and_the_tokenizer_download_no_weights(hub, client):
    """A corpus is packed without the weights of its model."""
    hub.commit("models", "lab/light", MODEL)

    folder = Path(client.call("fetch_tokenizer", pin=pin(client, "lab/light")))

    assert {path.name for path in folder.iterdir()} == PINNED - {"model.safetensors"}
    assert set(hub.downloads()) == PINNED - {"model.safetensors"}


def test_a_pin_keeps_its_commit_when_the_branch_moves(hub, client):
    """The branch is read once; `fetch_model` gets the recorded commit."""
    hub.commit("models", "lab/moving", MODEL)
    recorded = pin(client, "lab/moving")
    hub.commit("models", "lab/moving", MODEL | {"model.safetensors": b"weights of the second commit"})

    folder = Path(client.call("fetch_model", pin=recorded))

    assert (folder / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert pin(client, "lab/moving")["commit"] != recorded["commit"]
    assert pin(client, "lab/moving", revision=recorded["commit"]) == recorded


def test_a_tag_is_resolved_to_its_commit(hub, client):
    """The branch is further than the tag."""
    commit = hub.commit("models", "lab/tagged", MODEL)
    hub.tag("models", "lab/tagged", "v1", commit)
    hub.commit("models", "lab/tagged", MODEL | {"config.json": b"{}"})

    assert pin(client, "lab/tagged", revision="v1")["commit"] == commit


def test_the_pin_of_a_sharded_model_has_the_shards_of_its_index(hub, client):
    """The repository has other safetensors too; the loader reads the shards of the index."""
    hub.commit("models", "lab/shards", SHARDS)

    recorded = pin(client, "lab/shards")
    folder = Path(client.call("fetch_model", pin=recorded))

    assert set(recorded["files"]) == set(SHARDS) - {"model-old.safetensors"}
    assert {path.name for path in folder.iterdir()} == set(recorded["files"])


def test_the_pin_of_a_folder_has_its_files_and_no_commit(tmp_path, client):
    """As for a repository, pickles and code are left out."""
    for name, content in MODEL.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)

    recorded = client.call("pin_model", **{**SOURCE, "repo": None, "path": str(tmp_path)})

    assert recorded["commit"] is None and recorded["path"] == str(tmp_path)
    assert recorded["files"] == {name: sha256(MODEL[name]) for name in PINNED}
    assert client.call("fetch_model", pin=recorded) == str(tmp_path)


@pytest.mark.parametrize("change", ["flip", "remove"])
def test_a_folder_that_changed_after_its_pin_is_refused(tmp_path, client, change):
    """Else the lens would be fit on another model than the manifest records."""
    (tmp_path / "config.json").write_bytes(CONFIG)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    recorded = client.call("pin_model", **{**SOURCE, "repo": None, "path": str(tmp_path)})
    weights.write_bytes(b"wEights") if change == "flip" else weights.unlink()

    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        client.call("fetch_model", pin=recorded)
    assert weights.exists() == (change == "flip")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_download_of_the_right_size_and_wrong_bytes_is_named_and_removed(hub, client, name):
    """huggingface_hub checks sizes only, and would serve a wrong file of the cache again without a request."""
    repo = f"lab/rotten-{name[:5]}"
    hub.commit("models", repo, MODEL)
    hub.flipped.add(name)

    with pytest.raises(IntegrityError, match=f"{name}.*removed"):
        client.call("fetch_model", pin=pin(client, repo))

    hub.flipped.clear()
    recorded = pin(client, repo)
    assert (Path(client.call("fetch_model", pin=recorded)) / name).read_bytes() == MODEL[name]


def test_an_interrupted_download_leaves_no_file_that_counts(hub, client):
    """The server fails in the middle; the next run downloads the whole file."""
    hub.commit("models", "lab/cut", MODEL)
    recorded = pin(client, "lab/cut")
    hub.faults.append(Fault(r"GET .*lab/cut/resolve/.*model\.safetensors", 400, 99))

    with pytest.raises(RemoteError, match="HTTP 400"):
        client.call("fetch_model", pin=recorded)
    hub.faults.clear()

    assert client.call("fetch_model", pin=recorded)


def failing(hub: LoopbackHub, case: str) -> dict[str, str]:
    """Prepare a repository that cannot be pinned; the arguments of its pin."""
    bare = {"config.json": CONFIG}
    repos: dict[str, Files] = {
        "pickles": bare | {"pytorch_model.bin": b"a pickle"},
        "no-config": {"model.safetensors": b"weights"},
        "no-shard": {name: SHARDS[name] for name in SHARDS if name != "model-2-of-2.safetensors"},
        "bad-index": bare | {"model.safetensors.index.json": b"[]"},
        "gated": MODEL,
        "unknown-revision": MODEL,
        "forbidden": MODEL,
        "broken": MODEL,
    }
    if case in repos:
        hub.commit("models", f"lab/{case}", repos[case])
    if case == "gated":
        hub.repos["models", "lab/gated"].gated = True
    if case in ("forbidden", "broken"):
        hub.faults.append(Fault(f"lab/{case}", 403 if case == "forbidden" else 503, 99))
    return {"repo": f"lab/{case}"} | ({"revision": "nowhere"} if case == "unknown-revision" else {})


@pytest.mark.parametrize(
    ("case", "error", "code", "words"),
    [
        ("pickles", InputError, 2, ["no safetensors in lab/pickles@", "pytorch_model.bin"]),
        ("no-config", InputError, 2, ["config.json"]),
        ("no-shard", IntegrityError, 4, ["model-2-of-2.safetensors", "missing"]),
        ("bad-index", IntegrityError, 4, ["model.safetensors.index.json", "weight_map"]),
        ("gated", RemoteError, 5, ["licence acceptance", "/lab/gated", "token present: no"]),
        ("unknown-revision", RemoteError, 5, ["lab/unknown-revision@nowhere", "no such revision"]),
        ("missing", RemoteError, 5, ["lab/missing@main", "does not exist, or is private", "token present: no"]),
        ("forbidden", RemoteError, 5, ["HTTP 403"]),
        ("broken", RemoteError, 5, ["HTTP 503", "trying again"]),
    ],
)
def test_a_model_that_cannot_be_pinned_gets_one_line_and_its_exit_code(hub, client, case, error, code, words):
    """The line says why, and what to do."""
    with pytest.raises(LensmithError) as caught:
        pin(client, **failing(hub, case))

    assert type(caught.value) is error and caught.value.exit_code == code
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_token_is_used_and_is_in_no_message(hub, another):
    """A canary in HF_TOKEN opens a gated repository; then the Hub refuses."""
    hub.commit("models", "lab/closed", MODEL)
    hub.repos["models", "lab/closed"].gated = True
    holder = another(hub.url, HF_TOKEN="hf_canary")

    assert set(pin(holder, "lab/closed")["files"]) == PINNED
    hub.faults.append(Fault("lab/closed", 403, 99))
    with pytest.raises(RemoteError, match="token present: yes") as caught:
        pin(holder, "lab/closed")
    assert "canary" not in str(caught.value)


def test_an_address_without_a_server_is_a_remote_error(another):
    """Nothing listens at port 9."""
    with pytest.raises(RemoteError, match="cannot be reached"):
        pin(another("http://127.0.0.1:9"))


def test_offline_a_cached_model_is_pinned_and_another_is_refused(hub, another, tmp_path):
    """With HF_HUB_OFFLINE the cache must hold the whole model; no request is made."""
    hub.commit("models", "lab/cached", MODEL)
    hub.commit("models", "lab/half", MODEL)
    online = another(hub.url, HF_HOME=str(tmp_path))
    recorded = pin(online, "lab/cached")
    folder = online.call("fetch_model", pin=recorded)
    pin(online, "lab/half")
    hub.requests.clear()
    offline = another(hub.url, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")

    assert pin(offline, "lab/cached") == recorded
    assert offline.call("fetch_model", pin=recorded) == folder
    for repo in ("lab/half", "lab/never"):
        with pytest.raises(RemoteError, match="HF_HUB_OFFLINE is set"):
            pin(offline, repo)
    assert hub.requests == []


def corpus(**changes: Any) -> dict[str, Any]:
    """Section `corpus` for a dataset whose tenth token is held out."""
    base = {
        "kind": "hf",
        "repo": "lab/text",
        "name": None,
        "split": "train",
        "revision": "main",
        "text_column": "text",
        "files": [],
        "seed": 316,
        "seq_len": 8,
        "train_tokens": 900,
        "heldout_tokens": 100,
        "bos": "never",
        "also_heldout": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "sample_by": "paragraph",
        "max_document_chars": 1000,
    }
    return base | changes


def jsonl(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def test_a_dataset_pin_has_a_tenth_of_the_files_for_heldout_text(hub, client):
    """As many as of the tokens; every file is for one of the two."""
    commit = hub.commit("datasets", "lab/text", {f"data/train-{i:02}.jsonl": jsonl("a") for i in range(30)})

    found = client.call("pin_dataset", corpus=corpus())

    assert found["commit"] == commit and found["revision"] == "main"
    assert found["files"] == [f"data/train-{i:02}.jsonl" for i in range(30)]
    assert len(found["heldout"]) == 3
    assert sorted(found["heldout"] + found["train"]) == list(range(30))


def test_the_seed_decides_the_order_of_the_files(hub, client):
    """The same seed gives the same order, another one another."""
    hub.commit("datasets", "lab/text", {f"data/train-{i:02}.jsonl": jsonl("a") for i in range(30)})

    first, again, other = (client.call("pin_dataset", corpus=corpus(seed=seed)) for seed in (1, 1, 2))

    assert first == again
    assert first["train"] != other["train"] != sorted(other["train"])


def test_the_only_file_of_a_split_is_for_heldout_text_and_for_training(hub, client):
    """The reader splits its documents."""
    hub.commit("datasets", "lab/single", {"train.jsonl": jsonl("a")})

    found = client.call("pin_dataset", corpus=corpus(repo="lab/single"))

    assert found["heldout"] == found["train"] == [0]


@pytest.mark.parametrize(
    ("changes", "error", "code", "words"),
    [
        ({"split": "nowhere"}, InputError, 2, ["corpus.split is 'nowhere'", "allowed: train"]),
        ({"name": "nowhere"}, InputError, 2, ["nowhere", "default"]),
        ({"repo": "lab/missing"}, RemoteError, 5, ["dataset lab/missing@main", "does not exist, or is private"]),
        ({"revision": "v9"}, RemoteError, 5, ["dataset lab/plain@v9", "no such revision"]),
        ({"repo": "lab/gated-text"}, RemoteError, 5, ["licence acceptance", "/datasets/lab/gated-text", "no"]),
        ({"repo": "lab/pictures"}, InputError, 2, ["dataset lab/pictures@"]),
    ],
)
def test_a_dataset_that_cannot_be_pinned_gets_one_line_and_its_exit_code(hub, client, changes, error, code, words):
    """The line says why."""
    hub.commit("datasets", "lab/plain", {"train.jsonl": jsonl("a")})
    hub.commit("datasets", "lab/gated-text", {"train.jsonl": jsonl("a")})
    hub.repos["datasets", "lab/gated-text"].gated = True
    hub.commit("datasets", "lab/pictures", {"picture.xyz": b"nothing to read"})

    with pytest.raises(LensmithError) as caught:
        client.call("pin_dataset", corpus=corpus(repo="lab/plain") | changes)

    assert type(caught.value) is error and caught.value.exit_code == code
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


# Lenses of the package tuned-lens.
LENS = {"format": "tuned-lens", "repo": "them/lenses", "repo_type": "space", "revision": "main", "folder": "lens/tiny"}
LENS_FILES: Files = {
    "app.py": b"raise SystemExit",
    "lens/tiny/config.json": b'{"d_model": 32}',
    "lens/tiny/params.pt": b"a pickle",
    "lens/other/params.pt": b"another",
}


def test_a_published_lens_is_pinned_by_commit_and_only_its_two_files_are_fetched(hub, client):
    """A branch that moves later changes nothing; code of the space is not downloaded."""
    sha = hub.commit("spaces", "them/lenses", LENS_FILES)
    found = client.call("pin_lens", **LENS)
    hub.commit("spaces", "them/lenses", LENS_FILES | {"lens/tiny/params.pt": b"moved"})

    assert found["commit"] == sha
    assert found["files"] == {n: sha256(LENS_FILES[f"lens/tiny/{n}"]) for n in ("config.json", "params.pt")}
    assert set(hub.downloads()) == {"lens/tiny/config.json", "lens/tiny/params.pt"}
    assert (Path(client.call("fetch_lens", pin=found)) / "params.pt").read_bytes() == b"a pickle"


def test_a_published_lens_with_wrong_bytes_is_refused_and_removed(hub, client):
    """The Hub lists the sha256 of a large file; a download with other bytes is not kept."""
    hub.commit("spaces", "them/lenses", LENS_FILES | {"lens/tiny/params.pt": b"whole bytes"})
    hub.flipped.add("lens/tiny/params.pt")
    with pytest.raises(IntegrityError, match=r"params\.pt has sha256 .* removed from the cache"):
        client.call("pin_lens", **LENS)
    hub.flipped.clear()

    assert client.call("pin_lens", **LENS)["files"]["params.pt"] == sha256(b"whole bytes")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [({"repo": "them/nothing"}, RemoteError, "space them/nothing@main: does not exist"),
     ({"folder": "lens/none"}, InputError, r"no config\.json and no params\.pt")],
)  # fmt: skip
def test_the_error_for_a_missing_published_lens_says_what_is_missing(hub, client, changes, error, message):
    """The repository, or a folder of it."""
    hub.commit("spaces", "them/lenses", LENS_FILES)

    with pytest.raises(error, match=message):
        client.call("pin_lens", **LENS | changes)
