"""`resolve` writes settings in full, the hashes of the files that they name, and fingerprints."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from lensmith.files import artifacts
from lensmith.process.errors import InputError
from lensmith.settings import resolved
from tests.support.settings import atlas

OUTSIDE = {
    "source": ("source", {"path": "models/tiny[step=100]"}, "models/tiny[step=100]/model.safetensors"),
    "a GGUF file": ("source", {"path": "models/tiny.gguf"}, "models/tiny.gguf"),
    "a GGUF file by its folder": ("source", {"path": "models/blocks"}, "models/blocks/tiny.gguf"),
    "a corpus": ("corpus", {"kind": "files", "files": ["data/text.txt"]}, "data/text.txt"),
    "a corpus by pattern": ("corpus", {"kind": "files", "files": ["data/**/*.jsonl"]}, "data/deep/text.jsonl"),
    "prompts of a corpus": ("corpus", {"kind": "sampled", "files": ["prompts/chat.jsonl"]}, "prompts/chat.jsonl"),
    "another text": ("corpus", {"also_heldout": {"code": ["data/code.jsonl"]}}, "data/code.jsonl"),
    "a suite": ("suite", {"files": ["prompts/*.jsonl"]}, "prompts/mine.jsonl"),
    "probes": ("sweep", {"probes": ["prompts/probes.json"]}, "prompts/probes.json"),
    "a licence": ("publish", {"base_license_file": "TERMS"}, "TERMS"),
    "an imported lens": ("imported", {"repo": None, "folder": "lenses/theirs"}, "lenses/theirs/params.pt"),
    "a Jacobian lens": ("imported", {"format": "jacobian", "folder": "lenses/maps"}, "lenses/maps/lens.pt"),
}
FOLDERS = ("demo/atlas", "models/tiny[step=100]", "lenses/theirs")
OTHERS = ("models/tiny[step=100]/README.md", "data/other.csv", "demo/atlas/README.md")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shipped = ("demo/atlas/LICENSE", "suites/atlas.jsonl", "suites/atlas-probes.jsonl")
    configs = (f"{folder}/config.json" for folder in FOLDERS)
    for name in (*shipped, *configs, *OTHERS, *(file for _, _, file in OUTSIDE.values())):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    return tmp_path


def absolute(lab: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Values of a section with every name of a file made absolute."""

    def made(value: Any) -> Any:
        if isinstance(value, dict):
            return absolute(lab, value)
        return str(lab / value) if isinstance(value, str) and value not in ("files", "sampled", "jacobian") else value

    return {key: [made(v) for v in value] if isinstance(value, list) else made(value) for key, value in values.items()}


@pytest.mark.parametrize("is_absolute", [False, True])
@pytest.mark.parametrize("case", OUTSIDE)
def test_an_edit_of_a_file_changes_the_section_that_names_it(lab, case, is_absolute):
    """Wherever the file lies. A section changes with nothing else, or a plot would refit a lens."""
    section, values, file = OUTSIDE[case]
    sections = {section: absolute(lab, values) if is_absolute else values}
    if section == "imported":
        sections["fit"] = {"kind": "imported", "prism": "off"}
    settings = atlas(**sections)
    before = resolved.with_inputs({"atlas": settings})["atlas"]
    Path(file).write_text("edited")
    for name in OTHERS:
        Path(name).write_text("edited too")
    after = resolved.with_inputs({"atlas": settings})["atlas"]

    assert (str(lab / file) if is_absolute else file) in before[section]["inputs"]
    assert {name for name in before if before[name] != after[name]} == {section}


@pytest.mark.parametrize(("kind", "changes"), [("sampled", True), ("atlas", False)])
def test_an_edit_of_the_code_that_samples_changes_only_text_that_it_writes(lab, monkeypatch, kind, changes):
    """No fingerprint of a stage has this code: it loads the model, and a text of the Hub does not depend on that."""
    code, settings = lab / "sampling.py", atlas(corpus={"kind": kind, "files": []})
    monkeypatch.setattr(resolved, "SAMPLING", code)
    code.write_text("ROWS = 32\n")
    before = resolved.with_inputs({"atlas": settings})["atlas"]
    code.write_text("# more at a time\nROWS = 32\n")
    assert resolved.with_inputs({"atlas": settings})["atlas"] == before
    code.write_text("ROWS = 64\n")
    after = resolved.with_inputs({"atlas": settings})["atlas"]

    assert {name for name in before if before[name] != after[name]} == ({"corpus"} if changes else set())


def test_what_decides_the_fit_of_an_entry_decides_that_of_its_lens_on_another_model(lab):
    """Its rank and the files of its model; not its gates, and no other section of the model that takes it."""
    lens = {"fit": {"kind": "transferred"}, "transferred": {"from": "base"}}
    taking = atlas(**lens, source={"path": "models/tiny[step=100]"}).model_copy(update={"key": "taking"})

    def data(**sections: dict[str, Any]) -> dict[str, Any]:
        base = atlas(**sections).model_copy(update={"key": "base"})
        return resolved.with_inputs({"base": base, "taking": taking})["taking"]

    before, judged = data(), data(gates={"seed": 1})
    assert judged == before
    changed = [data(fit={"rank": 3}), data(corpus={"seed": 2})]
    Path("demo/atlas/config.json").write_text("edited")
    for after in [*changed, data()]:
        assert {name for name in before if before[name] != after[name]} == {"transferred"}


def test_a_new_file_of_a_pattern_is_noticed(lab):
    settings = atlas(suite={"files": ["prompts/*.jsonl"]})
    before = resolved.with_inputs({"atlas": settings})["atlas"]
    Path("prompts/more.jsonl").write_text("more")

    assert resolved.with_inputs({"atlas": settings})["atlas"]["suite"] != before["suite"]


def test_the_error_for_a_missing_file_has_its_key(lab):
    """`resolve` finds it, before a later stage needs it."""
    with pytest.raises(InputError, match=r"^params.yaml: models\.atlas\.source names demo/none, which does not exist"):
        resolved.with_inputs({"atlas": atlas(source={"path": "demo/none"})})


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_clone_without_a_file_keeps_what_is_recorded_of_it(lab, capsys, case):
    """What it names makes nothing stale, all else is watched, and one line says so. Other settings need the file."""
    section, values, file = OUTSIDE[case]
    sections = {section: values} | ({"fit": {"kind": "imported", "prism": "off"}} if section == "imported" else {})
    models = {"atlas": atlas(**sections), "other": atlas().model_copy(update={"key": "other"})}
    for key, data in (before := resolved.with_inputs(models, lab)).items():
        artifacts.write_json(lab / f"{key}.json", data)
    top = Path(Path(file).parts[0])
    shutil.rmtree(top) if top.is_dir() else top.unlink()
    Path("demo/atlas/config.json").write_text("edited")
    Path("suites/atlas.jsonl").write_text("edited")
    after = resolved.with_inputs(models, lab)

    assert after["atlas"][section] == before["atlas"][section]
    for key, name in (("atlas", "suite"), ("other", "suite"), ("other", "source")):
        assert (after[key][name] == before[key][name]) == ((key, name) == ("atlas", section)), (key, name)
    said, absent = capsys.readouterr().err, r"which (does not exist|matches no file)\. What was made with it stays;"
    assert re.fullmatch(
        rf"params\.yaml: models\.atlas\.{section} names \S+, {absent} stages that read it fail\.\n", said
    )
    models["atlas"] = models["atlas"].model_copy(update={"gates": atlas(gates={"seed": 1}).gates})
    with pytest.raises(InputError, match=rf"models\.atlas\.{section} names"):
        resolved.with_inputs(models, lab)


def test_a_folder_without_a_model_is_refused(lab):
    with pytest.raises(InputError, match=r"models\.atlas\.source names suites, a folder with no config\.json and no"):
        resolved.with_inputs({"atlas": atlas(source={"path": "suites"})})


def test_of_two_gguf_files_in_a_folder_none_is_guessed(lab):
    """They are most often one model with blocks of different sizes."""
    Path("models/blocks/tiny.Q4_0.gguf").touch()
    with pytest.raises(InputError, match=r"a folder with tiny\.Q4_0\.gguf and tiny\.gguf; name one of them"):
        resolved.with_inputs({"atlas": atlas(source={"path": "models/blocks"})})


def test_files_of_a_corpus_that_is_not_read_are_not_asked_for(lab):
    """`defaults` may name files that a model of kind atlas or hf does not read."""
    assert resolved.with_inputs({"atlas": atlas(corpus={"files": ["none.txt"]})})["atlas"]["corpus"]["inputs"] == {}


def test_a_removed_model_leaves_no_settings_behind(tmp_path, monkeypatch):
    """The report lists the models of this folder, so `resolve` empties it."""
    out = tmp_path / "out"
    (out / "models").mkdir(parents=True)
    (out / "models/gone.json").write_text("{}")
    repository = Path(__file__).parents[2]
    monkeypatch.chdir(repository)

    resolved.write(repository / "params.yaml", repository, out)
    assert {path.stem for path in (out / "models").iterdir()} == {"atlas", "atlas-reference", "atlas-jacobian"}
    stages = {path.stem for path in (repository / "stages").glob("*.py")} - {"__init__", "resolve"}
    assert {path.stem for path in (out / "code").iterdir()} == stages
    assert json.loads((out / "models/atlas.json").read_text())["fit"]["lr"] > 0
