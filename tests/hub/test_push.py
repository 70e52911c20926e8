"""Releases with the real client and a Hub on the loopback interface are whole or absent, and no entry is lost."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lensmith.process.errors import InputError, IntegrityError, LensmithError, RemoteError
from tests.support.loopback_hub import Client, Fault, LoopbackHub, Repo
from tests.support.loopback_writes import READER, WRITER

DAY, NEXT_DAY = "2026-11-24", "2026-11-25"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Shelf:
    """Releases in folders, and the Hub that gets them."""

    def __init__(self, hub: LoopbackHub, client: Client, root: Path) -> None:
        self.hub, self.client, self.root = hub, client, root

    def release(self, model_id: str, content: bytes = b"one", **files: bytes) -> dict[str, str]:
        """Make a small folder as `package` writes it; returns the arguments of `push`."""
        folder = self.root / f"{model_id.replace('/', '-')}-{sha256(content)[:8]}"
        inside = {"weights.safetensors": content, "provenance.json": b"{}", "README.md": b"# card", **files}
        paths = {f"tuned_lenses/{model_id}/{name}": text for name, text in inside.items()}
        paths["LICENSES/MIT.txt"] = b"MIT License"
        for path, text in paths.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(text)
        entry = {
            "path": f"tuned_lenses/{model_id}",
            "sha256": {name: sha256(text) for name, text in inside.items()},
            "licenses": {"LICENSES/MIT.txt": sha256(b"MIT License")},
        }
        (folder / "INDEX.json").write_text(json.dumps({model_id: entry}))
        return {"folder": str(folder), "model_id": model_id}

    def push(self, repo: str, what: dict[str, str], day: str = DAY, client: Client | None = None, **more: str) -> Any:
        """Push a release; its repository, commit and tag."""
        return (client or self.client).call("push", repo=repo, day=day, **what, **more)

    def repo(self, name: str) -> Repo:
        return self.hub.repos["datasets", name]

    def index(self, name: str, ref: str = "main") -> dict[str, Any]:
        repo = self.repo(name)
        index: dict[str, Any] = json.loads(repo.commits[repo.refs[ref]]["INDEX.json"])
        return index

    def is_whole(self, name: str, what: dict[str, str], tag: str) -> bool:
        """Whether the tagged commit has every file of a release, byte for byte, and its entry."""
        repo, folder = self.repo(name), Path(what["folder"])
        files = repo.commits[repo.refs[tag]]
        own = {path: content for path, content in files.items() if path.startswith(f"tuned_lenses/{what['model_id']}/")}
        sent = {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("tuned_lenses/**/*") if p.is_file()}
        return own == sent and self.index(name, tag)[what["model_id"]]["tl_version"] == tag


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        yield server


@pytest.fixture(scope="module")
def client(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    child = Client(hub.url, tmp_path_factory.mktemp("home"), HF_TOKEN=WRITER)
    yield child
    child.close()


@pytest.fixture
def shelf(hub: LoopbackHub, client: Client, tmp_path: Path) -> Shelf:
    hub.faults.clear()
    hub.flipped.clear()
    hub.requests.clear()
    return Shelf(hub, client, tmp_path)


@pytest.fixture
def another(hub: LoopbackHub, tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """Clients with an environment of their own."""
    children: list[Client] = []

    def start(**environment: str) -> Client:
        children.append(Client(hub.url, tmp_path / f"home{len(children)}", **environment))
        return children[-1]

    yield start
    for child in children:
        child.close()


def test_a_release_is_one_commit_and_one_tag_on_it(shelf):
    """A reader sees all of a release or nothing of it."""
    what = shelf.release("org/a")
    done = shelf.push("lab/one", what)

    repo = shelf.repo("lab/one")
    assert done == {"repo": "lab/one", "commit": repo.refs["v2026.11.24"], "tag": "v2026.11.24"}
    assert repo.refs["main"] == done["commit"]
    assert len(repo.commits) == 2, "the empty repository, and the release"
    assert shelf.is_whole("lab/one", what, "v2026.11.24")
    assert b"org/a" in repo.commits[done["commit"]]["README.md"]


def test_the_same_bytes_make_no_new_release(shelf):
    """A second push, a week later, gives the same receipt and sends nothing."""
    what = shelf.release("org/a")
    first = shelf.push("lab/same", what)
    shelf.hub.requests.clear()

    assert shelf.push("lab/same", what, "2026-12-01") == first
    assert not any("/commit/" in line or "/lfs/" in line for line in shelf.hub.requests)


def test_other_bytes_on_the_same_day_are_refused_with_the_next_free_tag(shelf):
    """A tag never moves: others have pinned it."""
    shelf.push("lab/day", shelf.release("org/a", b"one"))
    before = dict(shelf.repo("lab/day").refs)
    other = shelf.release("org/a", b"two")

    with pytest.raises(InputError, match=r"v2026\.11\.24 is taken by other bytes.*publish\.tag.*v2026\.11\.24\.2"):
        shelf.push("lab/day", other)
    with pytest.raises(InputError, match=r"v2026\.11\.24 is taken"):
        shelf.push("lab/day", other, tag="v2026.11.24")
    assert shelf.repo("lab/day").refs == before

    assert shelf.push("lab/day", other, tag="v2026.11.24.2")["tag"] == "v2026.11.24.2"
    assert shelf.is_whole("lab/day", other, "v2026.11.24.2")


def test_an_old_tag_with_its_own_bytes_is_released_already(shelf):
    """The model has a newer release; the old one stays as it was."""
    old, new = shelf.release("org/a", b"one"), shelf.release("org/a", b"two")
    first = shelf.push("lab/again", old, tag="v2026.11.24")
    shelf.push("lab/again", new, NEXT_DAY)

    assert shelf.push("lab/again", old, NEXT_DAY, tag="v2026.11.24") == first


def test_two_models_of_one_day_have_two_versions(shelf):
    """Each model has a commit and a tag of its own; the second gets the next free tag."""
    one, two = shelf.release("org/a"), shelf.release("org/b")

    assert [shelf.push("lab/two", what)["tag"] for what in (one, two)] == ["v2026.11.24", "v2026.11.24.2"]
    assert set(shelf.index("lab/two")) == {"org/a", "org/b"}
    assert set(shelf.index("lab/two", "v2026.11.24")) == {"org/a"}


def test_a_file_that_a_newer_release_lacks_stays_in_the_older_only(shelf):
    """The commit deletes it; a licence that both releases name stays."""
    shelf.push("lab/stale", shelf.release("org/a", b"one", **{"precond.safetensors": b"old"}))
    new = shelf.release("org/a", b"two")
    shelf.push("lab/stale", new, NEXT_DAY)

    repo = shelf.repo("lab/stale")
    assert shelf.is_whole("lab/stale", new, "v2026.11.25")
    assert "tuned_lenses/org/a/precond.safetensors" in repo.commits[repo.refs["v2026.11.24"]]
    assert "LICENSES/MIT.txt" in repo.commits[repo.refs["main"]]


def test_after_a_fault_at_any_request_a_release_is_whole_or_absent_and_a_second_run_completes_it(shelf):
    """Each request of a release fails once."""
    what = shelf.release("org/a", b"fault")
    shelf.push("lab/clean", what)
    n_requests = len(shelf.hub.requests)
    failed = 0
    for place in range(n_requests):
        name = f"lab/fault{place}"
        shelf.hub.faults[:] = [Fault(name, 400, 1, skip=place)]
        try:
            shelf.push(name, what)
        except RemoteError:
            failed += 1
        repo = shelf.hub.repos.get(("datasets", name), Repo())
        assert "v2026.11.24" not in repo.refs or shelf.is_whole(name, what, "v2026.11.24")
        shelf.hub.faults.clear()
        done = shelf.push(name, what, NEXT_DAY)
        assert done["tag"] in ("v2026.11.24", "v2026.11.25")
        assert shelf.is_whole(name, what, done["tag"])
        assert len([ref for ref in shelf.repo(name).refs if ref != "main"]) == 1
    assert failed >= 10


@pytest.mark.parametrize("status", [500, 412])
def test_a_commit_that_the_hub_made_and_answered_with_an_error_is_not_made_twice(shelf, status):
    """The repository is read again before the next try."""
    what = shelf.release("org/a", b"after")
    name = f"lab/after{status}"
    shelf.hub.faults[:] = [Fault(f"{name}/commit/", status, 1, after=True)]
    shelf.push(name, what)

    assert shelf.is_whole(name, what, "v2026.11.24")
    assert len(shelf.repo(name).commits) == 2


def test_a_tag_that_the_hub_made_and_answered_with_an_error_is_accepted(shelf):
    """409 says that the tag exists; it is on the right commit."""
    what = shelf.release("org/a")
    shelf.hub.faults[:] = [Fault("lab/tagged/tag/", 409, 1, after=True)]

    assert shelf.push("lab/tagged", what)["tag"] == "v2026.11.24"


def test_a_tag_on_another_commit_is_an_error(shelf):
    """Somebody made that tag between the commit and its tag."""
    what = shelf.release("org/a")
    shelf.hub.faults[:] = [Fault("lab/other/tag/", 409, 1)]

    with pytest.raises(IntegrityError, match=r"tag v2026\.11\.24 is on None, the release is commit"):
        shelf.push("lab/other", what)


def test_other_bytes_on_the_hub_than_were_sent_are_an_error(shelf):
    """The Hub checks sizes, not hashes."""
    shelf.hub.flipped.add("tuned_lenses/org/a/README.md")

    with pytest.raises(IntegrityError, match=r"README\.md has sha256 .* on the Hub, sent was"):
        shelf.push("lab/flipped", shelf.release("org/a"))


def test_two_publishers_at_once_lose_no_release(shelf, another):
    """Each sends twenty: every release is whole and has its own tag, and the last index has both models."""
    shelf.push("lab/race", shelf.release("org/start"), "2026-01-01")
    rivals = {"org/a": another(HF_TOKEN=WRITER), "org/b": another(HF_TOKEN=WRITER)}
    releases = {m: [shelf.release(m, f"{m} {i}".encode()) for i in range(20)] for m in rivals}
    tags: dict[str, list[str]] = {model: [] for model in rivals}

    def publish(model: str) -> None:
        for i, what in enumerate(releases[model]):
            tags[model].append(shelf.push("lab/race", what, f"2026-02-{i + 1:02}", rivals[model])["tag"])

    threads = [threading.Thread(target=publish, args=(model,)) for model in rivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({tag for of in tags.values() for tag in of}) == 40
    for model, of in tags.items():
        assert all(shelf.is_whole("lab/race", what, tag) for what, tag in zip(releases[model], of, strict=True))
    index = shelf.index("lab/race")
    assert set(index) == {"org/start", "org/a", "org/b"}
    assert {index[model]["tl_version"] for model in rivals} == {of[-1] for of in tags.values()}


UNKNOWN = pytest.param("hf_unknown", 401, marks=pytest.mark.long)  # a client of its own costs seconds


@pytest.mark.parametrize(("token", "status"), [(READER, 403), UNKNOWN, (None, 401)])
def test_without_permission_the_error_names_the_scope_and_not_the_token(shelf, another, token, status):
    """A reader's token, an unknown one, and none; no repository is made."""
    stranger = another(**({"HF_TOKEN": token} if token else {}))

    with pytest.raises(
        RemoteError, match=rf"HTTP {status}.*token present: {'yes' if token else 'no'}.*`write`"
    ) as caught:
        shelf.push("lab/closed", shelf.release("org/a"), client=stranger)
    assert "hf_" not in str(caught.value) and "\n" not in str(caught.value)
    assert ("datasets", "lab/closed") not in shelf.hub.repos


def test_a_preview_shows_tag_and_index_and_sends_nothing(shelf):
    """No request writes. The files are known without the Hub."""
    shelf.push("lab/dry", shelf.release("org/a"))
    what = shelf.release("org/b", b"12345")
    before = dict(shelf.repo("lab/dry").refs)
    shelf.hub.requests.clear()

    lines = "\n".join(shelf.client.call("preview", repo="lab/dry", day=DAY, **what))

    assert "a new commit, tag v2026.11.24.2; INDEX.json and README.md are merged" in lines
    assert '+ "org/b": {' in lines and '- "org/a"' not in lines
    assert not any(line.startswith(("POST", "PUT")) for line in shelf.hub.requests)
    assert shelf.repo("lab/dry").refs == before


def test_a_download_is_checked_against_the_index(shelf, another):
    """huggingface_hub checks sizes only."""
    shelf.push("lab/down", shelf.release("org/a"))
    shelf.push("lab/down", shelf.release("org/b", b"two"))  # other bytes: the Hub's cache keeps one copy of equal ones
    reader = another()

    folder = Path(reader.call("download", repo="lab/down", model="org/a", revision="v2026.11.24.2"))
    assert (folder / "tuned_lenses/org/a/weights.safetensors").read_bytes() == b"one"
    assert not (folder / "tuned_lenses/org/b").exists()
    assert reader.call("newest", repo="lab/down") == "v2026.11.24.2"
    shelf.hub.flipped.add("tuned_lenses/org/b/weights.safetensors")
    with pytest.raises(IntegrityError, match=r"org/b/weights\.safetensors has sha256.*removed"):
        reader.call("download", repo="lab/down")
    shelf.hub.flipped.clear()
    assert reader.call("download", repo="lab/down")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"model": "org/z"}, InputError, ["no lens for org/z; there is org/a", "lensmith add"]),
        ({"revision": "v1999.01.01"}, RemoteError, ["no such revision"]),
        ({"repo": "lab/nowhere", "revision": "v1"}, RemoteError, ["does not exist, or is private"]),
        ({"repo": "lab/text"}, InputError, ["has no version"]),
        ({"repo": "lab/text", "revision": "main"}, InputError, ["no INDEX.json"]),
    ],
)
def test_the_error_for_a_missing_lens_says_what_there_is(shelf, arguments, error, words):
    """Model, version, repository or index is missing."""
    if ("datasets", "lab/miss") not in shelf.hub.repos:
        shelf.push("lab/miss", shelf.release("org/a"))
        shelf.hub.commit("datasets", "lab/text", {"train.jsonl": b"{}"})

    with pytest.raises(LensmithError) as caught:
        shelf.client.call("download", **{"repo": "lab/miss", **arguments})
    assert type(caught.value) is error and "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("path", ["tuned_lenses/../../etc", "elsewhere/org/a", "tuned_lenses/org/a/b"])
def test_an_index_cannot_lead_out_of_the_release(shelf, path):
    """Its paths are chosen by the author of the repository."""
    index = {"org/a": {"path": path, "sha256": {"weights.safetensors": "0" * 64}}}
    sha = shelf.hub.commit("datasets", "lab/evil", {"INDEX.json": json.dumps(index).encode()})

    with pytest.raises(IntegrityError, match="path must be tuned_lenses/org/name"):
        shelf.client.call("download", repo="lab/evil", revision=sha)


def test_licences_are_those_of_the_model_repository_at_the_commit(shelf):
    """Files by any name of a licence, in the top folder only; not those of a later commit."""
    texts = {"LICENSE": b"terms", "NOTICE.txt": b"notice", "USE_POLICY.md": b"policy"}
    sha = shelf.hub.commit("models", "lab/licensed", texts | {"config.json": b"{}", "docs/LICENSE": b"other"})
    shelf.hub.commit("models", "lab/licensed", {"LICENSE": b"later terms"})

    found = shelf.client.call("licences", repo="lab/licensed", commit=sha)
    assert found == {name: text.decode() for name, text in texts.items()}


def test_a_model_is_proposed_with_its_commit_and_licence(shelf):
    """The commit is that of `main` now; a gated model gets a note."""
    sha = shelf.hub.commit("models", "Qwen/Qwen3-8B", {"config.json": b"{}"})
    shelf.hub.repos["models", "Qwen/Qwen3-8B"].gated = True

    found = shelf.client.call("propose", repo="Qwen/Qwen3-8B")
    assert found["key"] == "qwen3-8b"
    assert found["settings"]["source"] == {"repo": "Qwen/Qwen3-8B", "revision": sha}
    assert found["notes"][0].startswith("Gated: accept its licence")
    with pytest.raises(RemoteError, match="does not exist"):
        shelf.client.call("propose", repo="lab/unheard-of")
