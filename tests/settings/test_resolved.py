"""`resolve` writes settings in full, the hashes of the files that they name, and fingerprints."""

import json
from pathlib import Path

import pytest

from lensmith.process.errors import InputError
from lensmith.settings import resolved
from tests.support.settings import atlas


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "demo/tiny").mkdir(parents=True)
    for folder in ("suites", "demo/atlas"):
        (tmp_path / folder).mkdir()
    for name in (
        "demo/atlas/LICENSE",
        "demo/tiny/config.json",
        "demo/tiny/model.safetensors",
        "demo/tiny/README.md",
        "suites/a.jsonl",
    ):
        (tmp_path / name).write_text(name)
    return tmp_path


def settings(path: str = "demo/tiny"):
    return atlas(source={"path": path}, suite={"files": ["suites/*.jsonl"]}, sweep={"probes": ["suites/a.jsonl"]})


def test_a_section_holds_the_hashes_of_the_files_it_names(root):
    """An edit of a suite makes `suite-eval` stale; an edit of a model's README makes nothing stale."""
    before = resolved.with_inputs({"atlas": settings()}, root)["atlas"]
    (root / "suites/a.jsonl").write_text("edited")
    (root / "demo/tiny/README.md").write_text("edited")
    (root / "demo/atlas/LICENSE").write_text("other terms")
    after = resolved.with_inputs({"atlas": settings()}, root)["atlas"]

    assert set(before["suite"]["inputs"]) == {"suites/a.jsonl"}
    assert before["suite"] != after["suite"]
    assert before["publish"] != after["publish"], "the licence text is part of what is published"
    assert set(before["source"]["inputs"]) == {"demo/tiny/config.json", "demo/tiny/model.safetensors"}
    assert (before["source"], before["fit"]) == (after["source"], after["fit"])


def test_the_error_for_a_missing_file_has_its_key(root):
    """`resolve` finds it, before a later stage needs it."""
    with pytest.raises(InputError, match=r"models\.atlas\.source names demo/none, which does not exist"):
        resolved.with_inputs({"atlas": settings("demo/none")}, root)


def test_a_removed_model_leaves_no_settings_behind(tmp_path, monkeypatch):
    """The report lists the models of this folder, so `resolve` empties it."""
    out = tmp_path / "out"
    (out / "models").mkdir(parents=True)
    (out / "models/gone.json").write_text("{}")
    repository = Path(__file__).parents[2]
    monkeypatch.chdir(repository)

    resolved.write(repository / "params.yaml", repository, out)
    assert {path.stem for path in (out / "models").iterdir()} == {"atlas", "atlas-reference"}
    stages = {path.stem for path in (repository / "stages").glob("*.py")} - {"__init__", "resolve"}
    assert {path.stem for path in (out / "code").iterdir()} == stages
    assert json.loads((out / "models/atlas.json").read_text())["fit"]["lr"] > 0
