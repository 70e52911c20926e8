"""What `dvc repro` writes may differ from the commit; what decides it may not, in whatever lab one stands."""

import subprocess

import pytest

from lensmith.process import git

WRITTEN = (
    "dvc.lock",
    "metrics/a.json",
    "plots/.gitignore",
    "plots/overview.csv",
    "plots/kl/a.csv",
    "resolved/models/a.json",
)
DECIDING = ("params.yaml", "src/fit.py", "suites/a.jsonl", ".dvc/plots/depth.json", "stages/resolved.py")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A lab in the top folder, and one in real/."""
    (tmp_path / "real").mkdir()
    for words in (
        ("init", "--quiet"),
        ("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x", "--allow-empty"),
    ):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("new")


@pytest.mark.parametrize("lab", ["", "real"])
@pytest.mark.parametrize("working_directory", ["", "real"])
def test_what_stages_write_is_never_missed(repository, monkeypatch, working_directory, lab):
    for name in WRITTEN:
        write(repository / lab / name)
    monkeypatch.chdir(repository / working_directory)

    assert git.uncommitted(untracked=True) == ""


@pytest.mark.parametrize("name", DECIDING)
@pytest.mark.parametrize("working_directory", ["", "real"])
def test_what_decides_a_result_is_missed(repository, monkeypatch, working_directory, name):
    write(repository / name)
    monkeypatch.chdir(repository / working_directory)

    assert git.uncommitted(untracked=True) == name
    assert git.uncommitted(untracked=False) == ""
    subprocess.run(["git", "add", "--all", ":/"], check=True)
    assert git.uncommitted(untracked=False) == name


def test_outside_git_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert git.uncommitted(untracked=True) is None
