"""The audit of a real fit's provenance reports every fact that was edited."""

import copy
import subprocess
from contextlib import suppress
from dataclasses import replace

import pytest

from lensmith.cli import app
from lensmith.files import artifacts, seals
from lensmith.lens import recording, remade, stage
from lensmith.lens.audit import NOT_CHECKED, audit
from lensmith.lens.lens import Lens
from lensmith.lens.prism import Prism
from lensmith.lens.provenance import Provenance
from lensmith.lens.recording import commit_faults
from lensmith.process.errors import IntegrityError
from lensmith.settings import fingerprint
from lensmith.source import prefetch
from tests.support.settings import REPOSITORY, atlas
from tests.support.tiny import save_tiny

FIT = {"positions_per_seq": 4, "epochs": 2, "batch_seqs": 4, "rank": 2, "validation_seqs": 2, "prism": "lens"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A lens with a Prism, in folders as the stages leave them; its code is that of this checkout."""
    root = tmp_path_factory.mktemp("audit")
    (root / "text.txt").write_text("\n\n".join(f"The king went to the market on day {i}." for i in range(200)))
    settings = atlas(
        source={"path": str(save_tiny(root / "model"))},
        corpus={"kind": "files", "files": [str(root / "text.txt")], "seq_len": 16, "train_tokens": 176,
                "heldout_tokens": 128},
        fit=FIT, sweep={"heldout_seqs": 4, "positions_per_seq": 4},
    )  # fmt: skip
    artifacts.write_json(root / "resolved/models/atlas.json", settings.model_dump(mode="json"))
    code = root / "resolved/code/fit.json"
    artifacts.write_json(code, fingerprint.fingerprint(REPOSITORY / "stages/fit.py", REPOSITORY))
    prefetch.build(settings, root / "artifacts/atlas/corpus")
    stage.run(settings, code, root / "artifacts/atlas/corpus", root / "artifacts/atlas/lens")
    return settings, root


def examine(lab) -> object:
    settings, root = lab
    code = root / "resolved/code/fit.json"
    return audit(settings, code, root / "artifacts/atlas/corpus", root / "artifacts/atlas/lens")


@pytest.fixture
def record(lab):
    """provenance.json, put back afterwards."""
    path = lab[1] / "artifacts/atlas/lens/provenance.json"
    whole = path.read_bytes()
    yield path, artifacts.read_json(path)
    path.write_bytes(whole)


def leaves(value: object, path: tuple = ()) -> list[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [leaf for name, below in items for leaf in leaves(below, (*path, name))] or [path]


def edited(value: object) -> object:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "0" * 40 if value is None or isinstance(value, str) else [1]


def test_a_true_record_has_no_wrong_fact(lab):
    """Facts that no artifact holds are listed as not checked."""
    result = examine(lab)

    assert result.wrong == () and result.right > 50
    assert {"versions.torch", "machine.threads"} <= set(result.not_checked)
    assert not any(key.startswith(("measured", "model", "head", "settings", "code")) for key in result.not_checked)


def test_every_recorded_fact_is_reported_when_it_is_edited(lab, record, monkeypatch):
    """Counters, steps, hashes and settings, one by one. The model is loaded once, to save time."""
    path, recorded = record
    loaded = remade.Backbone.load(lab[0].source, remade.corpus.Manifest.read(lab[1] / "artifacts/atlas/corpus").model)
    monkeypatch.setattr(remade.Backbone, "load", lambda *_: loaded)
    monkeypatch.setattr(recording.git, "run", lambda *_: None)  # commits have a test of their own
    unseen = []
    for leaf in leaves(recorded):
        if leaf[0] in NOT_CHECKED and leaf[0] != "val_kl_bits_by_layer":
            continue
        changed = copy.deepcopy(recorded)
        parent = changed
        for name in leaf[:-1]:
            parent = parent[name]
        parent[leaf[-1]] = edited(parent[leaf[-1]])
        artifacts.write_json(path, changed)
        with suppress(IntegrityError):  # an edit that breaks the form is refused when the record is read
            if not examine(lab).wrong:
                unseen.append(leaf)

    assert unseen == []


@pytest.mark.parametrize("file", ["weights.safetensors", "prism.safetensors", "fit_log.csv"])
def test_a_changed_artifact_is_reported(lab, record, file):
    """The record stays and the file changes."""
    path = record[0].parent / file
    whole = path.read_bytes()
    if file == "weights.safetensors":
        lens = Lens.load(path.parent)
        lens.c[0] += 1
        lens.save(path.parent)
    elif file == "prism.safetensors":
        prism = Prism.load(path)
        replace(prism, mean=prism.mean + 1).save(path)
    else:
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    wrong = examine(lab).wrong
    path.write_bytes(whole)

    assert wrong


def test_the_commit_must_hold_the_recorded_code(tmp_path, monkeypatch):
    """An unknown commit, a commit with other code, and a clean tree recorded as dirty are reported."""
    monkeypatch.chdir(tmp_path)

    def faults(**facts: object) -> tuple[list[str], bool]:
        return commit_faults(Provenance.model_construct(**facts))

    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert faults(git_commit="0" * 40, git_dirty=False, code={}) == ([], False)  # no repository
    git("init", "--quiet")
    (tmp_path / "fit.py").write_text("a = 1\n")
    git("add", "fit.py")
    git("commit", "--quiet", "--message", "one")
    code = {"fit.py": fingerprint.of_source("a = 1  # the same code\n")}
    right = {"git_commit": git("rev-parse", "HEAD"), "git_dirty": False, "code": code}

    assert faults(**right) == ([], True)
    assert "does not have" in faults(**right | {"git_commit": "0" * 40})[0][0]
    assert "all code is as recorded" in faults(**right | {"git_dirty": True})[0][0]
    assert "is other code" in faults(**right | {"code": {"fit.py": "0" * 64}})[0][0]


def test_the_command_prints_a_line_for_each_wrong_fact_and_exits_with_4(lab, record, monkeypatch, capsys):
    """`lensmith verify`, in a lab of its own."""
    path, recorded = record
    recorded["measured"]["tokens_forwarded"] += 1
    recorded["seed"] = 17
    artifacts.write_json(path, recorded)
    root = lab[1]
    for folder in ("corpus", "lens"):  # sealed after the edit, so that `doctor --rehash` cannot see it
        seals.seal(root / "artifacts/atlas" / folder)
    (root / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    (root / "demo").mkdir()
    for folder in ("demo/atlas", "suites"):
        (root / folder).symlink_to(REPOSITORY / folder)
    monkeypatch.chdir(root)
    monkeypatch.setattr("sys.argv", ["lensmith", "verify", "atlas"])

    with pytest.raises(SystemExit) as exited:
        app.run()
    said = capsys.readouterr().err
    assert exited.value.code == 4
    assert "measured.tokens_forwarded is 177, but the artifacts say 176" in said
    assert "seed is 17, but the artifacts say 316" in said and "2 recorded facts are wrong" in said
