"""`lensmith add`: one entry more in params.yaml, and every other byte as its author wrote it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from ruamel.yaml import YAML

from lensmith.lab import add, doctor, registry
from lensmith.process.errors import InputError, RemoteError
from lensmith.settings import params_yaml
from lensmith.settings.params_yaml import Proposal
from tests.support.settings import REPOSITORY

NEW = Proposal(
    "new", {"source": {"repo": "org/new", "revision": "1" * 40}, "publish": {"base_license": "MIT"}}, ("A note.",)
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text((REPOSITORY / "params.yaml").read_text())
    return path


@pytest.mark.parametrize(("start", "line_end"), [("", "\n"), ("", "\r\n"), ("", "\r"), ("\ufeff", "\r\n")])
def test_nothing_else_in_the_file_changes(file, start, line_end):
    """Comments, blank lines, notation, line ends: a round trip through a YAML library would lose some of them."""
    before = (start + file.read_text().replace("\n", line_end)).encode()
    file.write_bytes(before)
    entry = params_yaml.add(file, NEW)

    assert file.read_bytes() == before + entry.encode()
    lines = ("  # A note.", "  new:", "    source:", "      repo: org/new", "      revision: ")
    assert entry.startswith(line_end.join(lines))
    assert params_yaml.read(file)["new"].source.revision == "1" * 40, "forty digits, and no number"


def test_an_entry_goes_to_the_end_of_models_wherever_that_is(file):
    """Here another section follows, with a comment of its own, and keys are indented by four."""
    text = file.read_text()
    defaults, models = text.split("\nmodels:\n")
    models = "".join("  " + line if line.strip() else line for line in models.splitlines(keepends=True))
    head, comment = "models:\n" + models, "\n# Everything else.\n"
    file.write_text(head + comment + defaults[defaults.index("defaults:") :] + "\n")
    entry = params_yaml.add(file, NEW)

    assert file.read_text().startswith(head + entry + comment)
    assert entry.splitlines()[1] == "    new:"
    assert list(params_yaml.read(file)) == ["atlas", "atlas-reference", "atlas-jacobian", "new"]


def test_a_file_without_a_last_newline_gets_one(file):
    file.write_text(file.read_text().rstrip("\n"))
    params_yaml.add(file, NEW)

    assert "new" in params_yaml.read(file)


@pytest.mark.parametrize(
    ("proposal", "words"),
    [
        (Proposal("atlas", NEW.settings, ()), "models.atlas exists; choose another key with --key"),
        (Proposal("Bad Key", NEW.settings, ()), "not a model key"),
    ],
)
def test_an_invalid_key_changes_nothing(file, proposal, words):
    before = file.read_text()
    with pytest.raises(InputError, match=words):
        params_yaml.add(file, proposal)

    assert file.read_text() == before


def test_a_model_is_added_once(file):
    params_yaml.add(file, NEW)
    before = file.read_text()

    with pytest.raises(InputError, match=r"models\.new is org/new already"):
        params_yaml.add(file, Proposal("again", NEW.settings, ()))
    assert file.read_text() == before


def test_an_invalid_file_is_refused_and_stays(file):
    file.write_text(file.read_text().replace("lr: 4e-4", "lr: fast"))
    before = file.read_text()
    with pytest.raises(InputError, match=r"defaults\.fit\.lr is 'fast'"):
        params_yaml.add(file, NEW)

    assert file.read_text() == before


def test_models_in_braces_are_refused(file):
    text = file.read_text()
    file.write_text(text[: text.index("\nmodels:")] + "\nmodels: {a: {source: {path: demo/atlas}}}\n")

    with pytest.raises(InputError, match="block style"):
        params_yaml.add(file, NEW)


def test_a_folder_is_added_as_its_path(file, tmp_path, monkeypatch):
    """Its key is the folder's name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "My Model").mkdir(parents=True)
    with pytest.raises(InputError, match=r"names models/My Model, a folder with no config\.json and no GGUF file"):
        add.add(file, "models/My Model")
    (tmp_path / "models/My Model/config.json").write_text("{}")
    entry = add.add(file, "./models/My Model")

    assert "my-model:\n    source:\n      path: models/My Model\n" in entry
    assert "# A local model: set publish.base_license" in entry
    assert params_yaml.read(file)["my-model"].source.path == "models/My Model"


@pytest.mark.parametrize("name", ["models/Tiny.Q8_0.gguf", "models"])
def test_a_gguf_file_is_added_by_its_name_or_by_the_folder_that_it_is_alone_in(file, tmp_path, monkeypatch, name):
    """Its key is the file's name in both cases, without the ending."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/Tiny.Q8_0.gguf").touch()

    assert f"tiny-q8_0:\n    source:\n      path: {name}\n" in add.add(file, name)


def test_a_gguf_file_is_chosen_of_a_repository_or_of_a_folder(file, tmp_path, monkeypatch):
    """Both hold one model with blocks of several sizes."""
    monkeypatch.chdir(tmp_path)
    hub = SimpleNamespace(commit="1" * 40, licence="apache-2.0", gated=False)
    monkeypatch.setattr(add, "is_offline_mode", lambda: False)
    monkeypatch.setattr(add.models, "describe_model", lambda repo: hub)
    add.add(file, "org/Tiny-GGUF", file="Tiny.Q4_K_M.gguf")
    Path("models").mkdir()
    for name in ("Tiny.Q4_0.gguf", "Tiny.Q8_0.gguf"):
        Path("models", name).touch()
    add.add(file, "models", file="Tiny.Q8_0.gguf")
    lab = params_yaml.read(file)

    source, publish = lab["tiny-q4_k_m"].source, lab["tiny-q4_k_m"].publish
    assert (source.repo, source.file, source.revision) == ("org/Tiny-GGUF", "Tiny.Q4_K_M.gguf", "1" * 40)
    assert publish.base_license == "Apache-2.0"
    assert lab["tiny-q8_0"].source.path == "models/Tiny.Q8_0.gguf"
    with pytest.raises(InputError, match=r"names models/Tiny\.Q2_K\.gguf, which does not exist"):
        add.add(file, "models", file="Tiny.Q2_K.gguf")


@pytest.mark.parametrize("word", ["./atlsa", "atlsa", "/nowhere/atlas", "a/b/c"])
def test_a_mistyped_folder_is_named_as_missing(file, word):
    """The Hub is not asked about a word that cannot be a Hub id."""
    with pytest.raises(InputError, match=f"^{word}: no such folder or GGUF file, and no Hub id"):
        add.add(file, word)


def test_without_a_network_a_model_of_the_hub_is_not_added(file, monkeypatch):
    """Retrying helps, so it is a failure of the remote; the message names the lines to write by hand."""
    monkeypatch.setattr(add, "is_offline_mode", lambda: True)
    before = file.read_text()
    with pytest.raises(RemoteError) as error:
        add.add(file, "org/New-Model")

    assert str(error.value).startswith("org/New-Model: no such folder or file, and HF_HUB_OFFLINE is set")
    assert "models.new-model.source.repo, source.revision and publish.base_license" in str(error.value)
    assert file.read_text() == before


def test_the_lens_of_an_added_model_becomes_an_artifact_of_dvc(file, tmp_path, monkeypatch):
    """Where the path leads from the entry's own folder. Who has edited its labels keeps them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.gguf").touch()
    add.add(file, "tiny.gguf", "one_")
    written = tmp_path / "lenses/one_/dvc.yaml"
    lens = YAML(typ="safe").load(written)["artifacts"]["lens"]
    written.write_text("edited")
    registry.write(tmp_path, "one_")

    assert (written.parent / lens["path"]).resolve() == tmp_path / "release/one_"
    assert written.read_text() == "edited"


@pytest.mark.parametrize("lab", [REPOSITORY, REPOSITORY / "real"], ids=lambda lab: lab.name)
def test_each_model_of_this_lab_has_its_entry(lab):
    assert list(doctor.lenses(lab)) == []


def test_a_name_that_makes_no_key_asks_for_one(file):
    with pytest.raises(InputError, match="give it a key with --key"):
        add.of_repo("org/123-model")
