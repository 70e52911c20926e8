"""`lensmith add`: one entry more in params.yaml, and every other byte as its author wrote it."""

import pytest

from lensmith.lab import catalogue
from lensmith.process.errors import InputError
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


def test_nothing_else_in_the_file_changes(file):
    """Comments, blank lines, notation: a round trip through a YAML library would lose some of them."""
    before = file.read_text()
    entry = params_yaml.add(file, NEW)

    assert file.read_text() == before + entry
    assert entry.startswith("  # A note.\n  new:\n    source:\n      repo: org/new\n      revision: ")
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
    assert list(params_yaml.read(file)) == ["atlas", "atlas-reference", "new"]


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
def test_a_key_that_cannot_be_changes_nothing(file, proposal, words):
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


def test_a_broken_file_is_told_and_left(file):
    file.write_text(file.read_text().replace("lr: 2e-3", "lr: fast"))
    before = file.read_text()
    with pytest.raises(InputError, match=r"defaults\.fit\.lr is 'fast'"):
        params_yaml.add(file, NEW)

    assert file.read_text() == before


def test_models_in_braces_are_refused(file):
    text = file.read_text()
    file.write_text(text[: text.index("\nmodels:")] + "\nmodels: {a: {source: {path: demo/atlas}}}\n")

    with pytest.raises(InputError, match="block style"):
        params_yaml.add(file, NEW)


PLAN = (
    "meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-70B", "mistralai/Mistral-7B-v0.1", "google/gemma-2-9b",
    "mistralai/Mistral-Small-24B-Base-2501", "google/gemma-2-27b", "01-ai/Yi-34B", "Qwen/Qwen3-8B", "Qwen/Qwen3-14B",
    "Qwen/Qwen2.5-72B",
)  # fmt: skip
FAMILIES = (
    "Qwen3",
    "gemma-3",
    "Llama-3.",
    "OLMo-2",
    "Olmo-3",
    "Mistral",
    "phi-4",
    "SmolLM3",
    "pythia",
    "gpt2",
    "gpt-oss",
)


def test_the_catalogue_has_the_plans_models_and_every_common_family():
    known = catalogue.catalogue()

    assert set(PLAN) <= set(known)
    assert all(any(family in repo for repo in known) for family in FAMILIES)
    keys = [catalogue.key_of(repo) for repo in known]
    assert len(set(keys)) == len(keys)


def test_every_model_of_the_catalogue_makes_a_valid_file(file, monkeypatch):
    """All at once, without a network."""
    monkeypatch.setattr(catalogue, "is_offline_mode", lambda: True)
    entries = [params_yaml._entry(catalogue.propose(repo, None), "  ") for repo in catalogue.catalogue()]
    file.write_text(file.read_text() + "".join(entries))
    models = params_yaml.read(file)

    assert {m.source.repo for m in models.values()} >= set(catalogue.catalogue())
    assert models["gemma-2-9b"].publish.base_license == "gemma"
    assert "# Gated: accept its licence at https://huggingface.co/google/gemma-2-9b" in file.read_text()


def test_without_a_network_an_unknown_model_is_answered_with_near_ones(monkeypatch):
    monkeypatch.setattr(catalogue, "is_offline_mode", lambda: True)

    with pytest.raises(InputError, match=r"google/gemma-2-10b is not in the catalogue.*near: google/gemma-2-"):
        catalogue.propose("google/gemma-2-10b", None)
    with pytest.raises(InputError, match="must be org/name"):
        catalogue.propose("gemma", None)
