"""params.yaml: what is accepted, and the one-line error for a mistake."""

import difflib
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from lensmith.process.errors import InputError
from lensmith.settings import params_yaml, sections

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "params.yaml").read_text()


def read(tmp_path: Path, text: str) -> dict[str, sections.ModelParams]:
    file = tmp_path / "params.yaml"
    file.write_text(text)
    return params_yaml.read(file)


def with_atlas(lines: str) -> str:
    """The shipped file, whose model `atlas` has `lines` beside its source and corpus."""
    head = TEXT[: TEXT.index("models:")]
    return f"{head}models:\n  atlas:\n    source:\n      path: demo/atlas\n    corpus:\n      kind: atlas\n{lines}"


def test_the_shipped_file_is_valid_and_an_entry_overrides_only_what_it_names(tmp_path):
    """A model's settings are the defaults with its entry laid over them, value by value."""
    models = read(tmp_path, TEXT)

    assert list(models) == ["atlas", "atlas-reference", "atlas-jacobian"]
    reference, ours = models["atlas-reference"].fit, models["atlas"].fit
    assert (reference.norm, reference.positions_per_seq, reference.lr) == ("next_input", 8, 1e-3)
    assert reference.patience == ours.patience


@pytest.mark.parametrize("setting", ["++models.atlas.fit.rank=8", "models.atlas.fit.epochs=2", "defaults.gates.seed=1"])
def test_an_override_by_dvc_changes_one_line_of_the_shipped_file(tmp_path, setting):
    """The file has the form that DVC writes, so `dvc exp run -S` changes only the line that it sets."""
    file = tmp_path / "params.yaml"
    file.write_text(TEXT)

    apply_overrides(file, [setting])

    changes = [line for line in difflib.ndiff(TEXT.splitlines(), file.read_text().splitlines()) if line[0] in "+-"]
    assert [line[0] for line in changes] in (["+"], ["-", "+"]), changes


def test_a_lab_may_have_the_defaults_of_another(tmp_path):
    """Named from its own folder. A mistake there is found in that file, and a file that is not there is named."""
    top, lab = tmp_path / "params.yaml", tmp_path / "second" / "params.yaml"
    top.write_text(TEXT)
    lab.parent.mkdir()
    lab.write_text("defaults: ../params.yaml\n" + TEXT[TEXT.index("models:") :])
    assert params_yaml.read(lab) == params_yaml.read(top)

    top.write_text(TEXT.replace("    lr: 4e-4", "    lr: ["))
    with pytest.raises(InputError, match=r"second/\.\./params\.yaml: line \d+: "):
        params_yaml.read(lab)
    top.unlink()
    with pytest.raises(InputError, match=r"second/\.\./params\.yaml: cannot be read \(No such file"):
        params_yaml.read(lab)


def test_a_hub_model_needs_three_lines(tmp_path):
    """README promises an entry of at most five."""
    text = TEXT + "  qwen3-8b:\n    source:\n      repo: Qwen/Qwen3-8B\n"

    assert read(tmp_path, text)["qwen3-8b"].model_id == "Qwen/Qwen3-8B"


def test_numbers_are_read_as_dvc_reads_them(tmp_path):
    """`1e-3` is a float in YAML 1.2; PyYAML would make it a string."""
    assert read(tmp_path, with_atlas("    fit:\n      lr: 1e-3\n"))["atlas"].fit.lr == 0.001


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("    fit:\n      rnak: 8\n", "models.atlas.fit.rnak is not a setting; did you mean rank?"),
        ("    fti:\n      rank: 8\n", "models.atlas.fti is not a setting; did you mean fit?"),
        ("    fit:\n      inputs: {}\n", "models.atlas.fit.inputs is not a setting"),
        ("    fit:\n      rank: 0.5\n", "models.atlas.fit.rank is 0.5, must be an integer >= 1 or auto."),
        ("    fit:\n      rank: 0\n", "models.atlas.fit.rank is 0, must be an integer >= 1 or auto."),
        ("    fit:\n      rank: true\n", "models.atlas.fit.rank is True, must be an integer >= 1 or auto."),
        ("    fit:\n      lr: 1e-3x\n", "models.atlas.fit.lr is '1e-3x', must be a valid number."),
        ("    fit:\n      lr: .nan\n", "models.atlas.fit.lr is nan, must be a finite number."),
        ("    fit:\n      lr: -1.0\n", "models.atlas.fit.lr is -1.0, must be greater than 0."),
        ("    fit:\n      lr: true\n", "models.atlas.fit.lr is True, must be a valid number."),
        ("    fit:\n      batch_seqs: 2.0\n", "models.atlas.fit.batch_seqs is 2.0, must be a valid integer."),
        ("    fit:\n      kind: lowrank\n", "models.atlas.fit.kind is 'lowrank', must be 'identity', 'temperature', "),
        ("    fit: 3\n", "models.atlas.fit is 3, must be a mapping."),
        ("    fit:\n      position_min: 0.9\n      position_max: 0.5\n", "models.atlas.fit: position_min is 0.9, must"),
        ("    fit:\n      positions_per_seq: 600\n", "models.atlas: fit.positions_per_seq is 600, but"),
        ("    fit:\n      validation_seqs: 9999\n", "models.atlas: fit.validation_seqs (9999) and sweep.heldout_seqs"),
        ("    fit:\n      lr: 1.0\n      lr: 2.0\n", 'found duplicate key "lr"'),
        ("    fit: &f\n      lr: 1.0\n", "uses a YAML anchor or alias"),
        ("    fit: *f\n", "uses a YAML anchor or alias"),
        ("    fit: [\n", "expected the node content"),
        (
            "    fit: !!python/name:os.system\n",
            "uses the YAML tag",
        ),
        ("  Qwen.2:\n    fit:\n      rank: 8\n", "models.Qwen.2 is not a model key, must match"),
        ("  7:\n    fit:\n      rank: 8\n", "models.7 is not a model key, must match"),
        ("  x:\n    source:\n      repo: gpt2\n", "models.x.source.repo is 'gpt2', must be org/name."),
        ("  x:\n    fit:\n      rank: 8\n", "source: needs exactly one of repo (a Hub id) and path (a folder or a"),
        (
            "  x:\n    source:\n      repo: a/b\n    corpus:\n      kind: files\n",
            "models.x.corpus: kind files needs files",
        ),
    ],
)
def test_the_error_for_a_mistake_is_one_line_with_key_value_and_rule(tmp_path, lines, message):
    """It ends with what was not changed."""
    with pytest.raises(InputError) as caught:
        read(tmp_path, with_atlas(lines))

    text = str(caught.value)
    assert message in text
    assert "params.yaml: " in text and params_yaml.UNCHANGED in text and "\n" not in text


def test_the_error_for_a_bad_default_names_the_default(tmp_path):
    """The dotted key is where the value is written, not the model that it was merged into."""
    with pytest.raises(InputError, match=r"defaults\.fit\.patience is 0, must be greater than or equal to 1\."):
        read(tmp_path, TEXT.replace("patience: 3", "patience: 0"))


def test_the_error_for_a_missing_default_names_it(tmp_path):
    """Every value is written in params.yaml; the code has no defaults of its own."""
    with pytest.raises(InputError, match=r"defaults\.fit\.patience is missing"):
        read(tmp_path, TEXT.replace("    patience: 3\n", ""))


def test_bad_input_ends_with_exit_code_2_and_writes_nothing(tmp_path):
    """The stage prints the one line; its output folder is not made."""
    (tmp_path / "params.yaml").write_text(with_atlas("    fit:\n      rank: no\n"))
    command = [sys.executable, "-m", "stages.resolve", "--params", tmp_path / "params.yaml", "--out", tmp_path / "out"]

    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "models.atlas.fit.rank is 'no'" in done.stderr
    assert not (tmp_path / "out").exists()
