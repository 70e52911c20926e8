"""real/, the second lab of the repository: another model, the same pipeline, and nothing that stands twice."""

import subprocess

import pytest
from ruamel.yaml import YAML

from lensmith.lab import dvc
from lensmith.settings import params_yaml
from tests.support.settings import REPOSITORY

REAL = REPOSITORY / "real"
# Settings that time goes by, with the rate that suits them, and the text, which needs no data set.
BUDGET = {
    "corpus": {"kind", "seq_len", "train_tokens", "heldout_tokens", "also_heldout"},
    "fit": {"positions_per_seq", "epochs", "batch_seqs", "lr", "validation_seqs"},
    "sweep": {"heldout_seqs", "positions_per_seq"},
}


@pytest.mark.parametrize("name", ["dvc.yaml", "src", "stages", "suites", ".dvc/config", ".dvc/plots"])
def test_the_pipeline_of_the_real_lab_is_that_of_the_top_lab(name):
    """A link, in git too."""
    mode = subprocess.run(["git", "ls-files", "-s", name], cwd=REAL, capture_output=True, text=True, check=True).stdout

    assert (REAL / name).resolve() == REPOSITORY / name and mode.startswith("120000 ")


def test_the_real_model_has_the_default_recipe_but_for_its_budget():
    """Its numbers are those that the defaults give."""
    params = YAML(typ="safe").load(REAL / "params.yaml")
    models = params["models"]
    changed = {section: set(values) for section, values in models["smollm2"].items()}

    assert params["defaults"] == "../params.yaml"
    assert changed.pop("source") == {"path"} and changed.pop("publish") == {"base_license"}
    assert changed.pop("suite") == {"files"}
    assert all(names <= BUDGET[section] for section, names in changed.items())


@pytest.mark.parametrize(("lab", "model"), [(REPOSITORY, "atlas"), (REAL, "smollm2")])
def test_a_jacobian_lens_is_measured_as_the_tuned_lens_beside_it(lab, model):
    """On the same text and prompts: only what is fit differs. The two share a bank and the rungs of the ladder."""
    models = params_yaml.read(lab / "params.yaml")
    tuned, jacobian = models[model], models[f"{model}-jacobian"]

    for section in ("source", "corpus", "sweep", "suite", "gates"):
        assert getattr(jacobian, section) == getattr(tuned, section), section
    assert jacobian.fit.kind == "jacobian"
    for name in ("positions_per_seq", "batch_seqs", "validation_seqs", "ladder", "norm"):
        assert getattr(jacobian.fit, name) == getattr(tuned.fit, name), name


def test_git_ignores_in_both_labs_the_same_outputs():
    top, real = (set((folder / ".gitignore").read_text().splitlines()) for folder in (REPOSITORY, REAL))

    assert real - {"/models/"} <= top


def test_dvc_in_the_top_folder_knows_nothing_of_the_real_lab():
    """Nobody without the model sees an error: `dvc status` and `dvc push` of the top lab pass by real/."""
    with dvc.repository(REPOSITORY) as repo:
        stages = {stage.path_in_repo for stage in repo.index.stages}

    assert stages == {"dvc.yaml"}
