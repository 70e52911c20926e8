"""Lenses from strangers: each of a corpus of hostile files is refused, by every way in, and nothing else happens."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lensmith
from lensmith.files import untrusted
from lensmith.hub import published as hub_published
from lensmith.lens import published, torch_file
from lensmith.process import command
from lensmith.process.errors import LINE, IntegrityError, LensmithError, shown
from lensmith.settings.sections import ImportedParams
from lensmith.source.backbone import Backbone
from tests.support.bundles import BUNDLES, DEEP, LENS, Bundle, Canary
from tests.support.loopback_hub import Client, LoopbackHub
from tests.support.published import PUBLISHED, L, config, params, saved, tensors
from tests.support.released import TINY, save_release
from tests.support.settings import REPOSITORY
from tests.support.tiny import tiny_model

SECONDS, BYTES = 2.0, 512 << 20  # of the processor and of memory, that one refusal may take
# Which ways in can know that a bundle is not what it should be.
REFUSE = {
    "all": {"load", "streamed", "streamed alone", "Lens.load", "lensmith verify"},
    "index": {"load", "streamed", "lensmith verify"},
    "provenance": {"load", "streamed", "lensmith verify"},
    "model": {"load", "lensmith verify"},
}


def tree(root: Path) -> dict[str, str]:
    """Every file, folder and link below a folder, with a digest of what it holds."""

    def about(path: Path) -> str:
        if path.is_symlink() or not path.is_file():
            return "" if not path.is_symlink() else str(path.readlink())
        size = path.stat().st_size
        return hashlib.sha256(path.read_bytes()).hexdigest() if size < 1 << 30 else str(size)

    return {str(path.relative_to(root)): about(path) for path in sorted(root.rglob("*"))}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """model/ and good/ (its release)."""
    root = tmp_path_factory.mktemp("hostile")
    save_release(root)
    (root / "release").rename(root / "good")
    return root


@pytest.fixture(scope="module")
def read(good) -> tuple[dict[Any, Any], int, set[str]]:
    """What each way in said of each bundle; bytes that the process grew by; files that came, went or changed."""
    every = (*BUNDLES, *PUBLISHED)
    for number, one in enumerate(every):
        folder = good / "bundles" / f"{number:03}"
        if isinstance(one, Bundle):
            one.make(good / "good", folder / "lenses")
        else:
            one.write(folder / "published")
    before = tree(good)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"LENSMITH_HOME": str(good.parent / "home")}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.hostile_child", good],
        cwd=good,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    said = {every[int(number)]: outcomes for number, outcomes in answer["results"].items()}
    after = tree(good)
    return said, answer["grown"], {name for name in before | after if before.get(name) != after.get(name)}


def test_every_hostile_lens_is_refused_by_every_way_in(read, record_property):
    """As lensmith.load, load_streamed, Lens.load and `lensmith verify` read it; with one clean line."""
    wrong, slowest = [], 0.0
    for bundle in BUNDLES:
        for way, outcome in read[0][bundle].items():
            slowest = max(slowest, outcome["seconds"])
            if way in REFUSE[bundle.reads]:
                wrong += [f"{bundle.name}, {way}: {outcome}" for fault in faults(outcome, bundle.words) if fault]
            elif outcome["error"] not in (None, "IntegrityError", "InputError", "exit"):
                wrong.append(f"{bundle.name}, {way}: {outcome}")
    assert not wrong, "\n".join(wrong)
    assert slowest <= SECONDS
    record_property("hostile lens bundles, each refused by every way in", len(BUNDLES))
    record_property("slowest refusal of a bundle, seconds of a processor", round(slowest, 2))


def test_every_hostile_lens_of_tuned_lens_is_refused(read, record_property):
    """Its files are pickles, of which none is unpickled that says more than tensors."""
    slowest = max(read[0][one]["imported"]["seconds"] for one in PUBLISHED)
    wrong = [
        f"{one.name}: {read[0][one]['imported']}"
        for one in PUBLISHED
        if any(faults(read[0][one]["imported"], one.words))
    ]
    assert not wrong, "\n".join(wrong)
    assert slowest <= SECONDS
    record_property("hostile lenses of tuned-lens, each refused", len(PUBLISHED))
    record_property("slowest refusal of one, seconds of a processor", round(slowest, 2))


def faults(outcome: dict[str, Any], words: str) -> list[bool]:
    """What is wrong with a refusal: its class, its words, more than one line, something in it that a terminal obeys."""
    said = outcome["said"].removesuffix("\n") if outcome["error"] == "exit" else shown(outcome["said"], LINE)
    return [
        outcome["code"] not in (2, 3, 4),
        outcome["error"] not in ("IntegrityError", "InputError", "NumericError", "exit"),
        re.search(words, said) is None,
        said != shown(said, LINE),
        len(said) > 2010,
    ]


def test_nothing_runs_and_nothing_is_written(read, record_property):
    """No canary, no file come, gone or changed: in the bundles, beside them, in the working directory."""
    assert read[2] == set()
    record_property("files that reading hostile lenses made, changed or removed", len(read[2]))


def test_refusing_takes_little_memory(read, record_property):
    """Held to it by the kernel as well: the child has a limit on its address space."""
    assert read[1] <= BYTES
    record_property("memory that refusing all hostile lenses took at most, MiB", read[1] >> 20)


def test_the_canary_sings(tmp_path, monkeypatch):
    """Unpickled, it would be seen: the corpus is not tame."""
    monkeypatch.chdir(tmp_path)
    torch.load(io.BytesIO(saved(Canary())), weights_only=False)

    assert (tmp_path / "canary").is_dir()


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        yield server


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """What a program may write to: its home, and the folders that it is told."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def client(hub, work) -> Iterator[Client]:
    child = Client(hub.url, work / "home", cwd=work)
    yield child
    child.close()


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.long), 8])
def test_a_hostile_release_is_downloaded_to_its_place_or_not_at_all(
    good, hub, client, work, tmp_path, every, record_property
):
    """By the real client: what the index says wrongly is refused, and no byte lands beside the folder asked for."""
    served = 0
    hub.repos.clear()
    for number, bundle in list(enumerate(BUNDLES))[::every]:
        folder = bundle.make(good / "good", tmp_path / "made" / f"{number}")
        paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        whole = not any(path.is_symlink() or path.is_fifo() for path in folder.rglob("*"))
        if not whole or any(path.stat().st_size > 1 << 30 for path in paths):
            continue  # no repository can hold it
        files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
        hub.tag("datasets", f"lab/r{number}", "v2026.01.01", hub.commit("datasets", f"lab/r{number}", files))
        served += 1
    for number, bundle in enumerate(BUNDLES):
        if ("datasets", f"lab/r{number}") in hub.repos:
            to = work / "to" / f"{number}"
            try:
                client.call("download", repo=f"lab/r{number}", to=str(to))
            except LensmithError:
                assert bundle.reads == "index", bundle.name
            else:
                assert bundle.reads != "index", bundle.name
    assert {path.split("/")[0] for path in tree(work)} <= {"home", "to"}
    record_property("hostile releases downloaded from a Hub, none with a file outside its folder", served)


def test_a_download_follows_no_link_out_of_its_folder(good, hub, client, tmp_path):
    """The folder asked for was there before, and somebody put a link into it."""
    files = {str(p.relative_to(good / "good")): p.read_bytes() for p in (good / "good").rglob("*") if p.is_file()}
    hub.tag("datasets", "lab/good", "v2026.01.01", hub.commit("datasets", "lab/good", files))
    (tmp_path / "to").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "to" / "tuned_lenses").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LensmithError, match="a link leads out of"):
        client.call("download", repo="lab/good", to=str(tmp_path / "to"))
    place = client.call("download", repo="lab/good")

    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert lensmith.load(place, model=TINY).n_layers == 4  # the Hub's cache is of links: they stay inside


def test_a_pickle_beside_the_weights_is_never_opened(good, tmp_path, monkeypatch):
    """weights.pt is an export: a release may hold it, and nobody here reads it."""
    monkeypatch.chdir(tmp_path)
    harmed = Bundle("", lambda release: (release / LENS / "weights.pt").write_bytes(saved(Canary())), "", "")
    folder = harmed.make(good / "good", tmp_path / "release")
    index = json.loads((folder / "INDEX.json").read_text())
    index[TINY]["sha256"]["weights.pt"] = hashlib.sha256((folder / LENS / "weights.pt").read_bytes()).hexdigest()
    (folder / "INDEX.json").write_text(json.dumps(index))

    assert lensmith.load(folder).n_layers == 4
    assert not (tmp_path / "canary").exists()


def test_a_good_lens_of_tuned_lens_is_read_as_torch_saved_it(tmp_path):
    """In every precision, with shared storages, and with the module versions that state_dict() adds."""
    module = torch.nn.ModuleList([torch.nn.Linear(5, 5) for _ in range(3)])
    shared = torch.randn(4, 6)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        state = module.to(dtype).state_dict()
        for value in (state, dict(state), {"a": shared.to(dtype)[1:3], "b": torch.zeros(0, 3, dtype=dtype)}):
            (tmp_path / "params.pt").write_bytes(saved(value))
            found = torch_file.read_tensors(tmp_path / "params.pt", 1 << 20)
            assert found.keys() == value.keys()
            assert all(torch.equal(tensor, value[name]) for name, tensor in found.items())


def test_json_is_read_as_everybody_reads_it(tmp_path):
    """What is not refused is what Python's own reader gives."""
    value = {"a": [1, -2.5, True, None, "\U0001f642 \u05e9"], "b": {"c": {}}}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert untrusted.parse_json(text.encode(), "x") == value
    nested = "[" * untrusted.DEPTH + "]" * untrusted.DEPTH
    assert untrusted.parse_json(nested.encode(), "x") == json.loads(nested)
    with pytest.raises(IntegrityError, match="x: JSON of more than 32 levels"):
        untrusted.parse_json(f"[{nested}]".encode(), "x")


def test_terminals_are_shown_escapes_and_do_not_obey_them():
    """Colours, titles, line ends, directions, half letters; other writing stays as it is."""
    assert shown("\x1b[31mred\x07\r\n\t\x9b\u202e\u2028\ud800") == (r"\x1b[31mred\x07\r\n\t\x9b\u202e\u2028\ud800")
    assert shown("שלום, 日本, é 🙂 \\n") == "שלום, 日本, é 🙂 \\n"
    assert shown(shown("\x1b")) == shown("\x1b")
    long = shown("a" * DEEP + "Nothing was changed.")
    assert len(long) < 210 and long.endswith("Nothing was changed.")


def test_a_command_prints_its_error_clean(capsys):
    """Whatever an error quotes: one line on stderr, with nothing in it that a terminal obeys."""

    def main() -> None:
        raise IntegrityError("lens \x1b]0;title\x07\nerror: all is well. Nothing was changed.")

    with pytest.raises(SystemExit) as end:
        command.run(main)
    assert end.value.code == 4
    assert capsys.readouterr().err == "error: lens \\x1b]0;title\\x07\\nerror: all is well. Nothing was changed.\n"


def test_a_good_published_lens_is_the_control(good, tmp_path):
    """Its folder is refused for what was done to it alone."""
    params(lambda: saved(tensors()))(tmp_path / "lens")
    settings = ImportedParams(
        format="tuned-lens", repo=None, repo_type="space", revision="main", folder=str(tmp_path / "lens")
    )
    lens, _ = published.load(hub_published.pin_lens(settings), Backbone.from_model(tiny_model("llama", n_layers=L)))

    assert lens.n_layers == L and json.loads(config())["num_hidden_layers"] == L
