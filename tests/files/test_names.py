"""What a name or pattern stands for: the same for `check`, `resolve` and every reader."""

from pathlib import Path

import pytest

from lensmith.files import names
from lensmith.process.errors import InputError

FILES = ("a.txt", "b.txt", "sub/c.txt", "runs/tiny[step=100]/d.txt", "runs/tiny[step=100]/e*.txt", "x[1]/y?/f.txt")


@pytest.fixture(autouse=True)
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", ["a.txt"]),
        ("./sub/c.txt", ["sub/c.txt"]),
        ("*.txt", ["a.txt", "b.txt"]),
        ("[bc]*", ["b.txt"]),
        ("*", ["a.txt", "b.txt"]),  # and not the folders beside them
        ("**/c.txt", ["sub/c.txt"]),
        ("s**/*.txt", ["sub/c.txt"]),
        ("runs/tiny[step=100]/d.txt", ["runs/tiny[step=100]/d.txt"]),
        ("runs/tiny[step=100]/?.txt", ["runs/tiny[step=100]/d.txt"]),
        ("runs/tiny[step=100]/e*.txt", ["runs/tiny[step=100]/e*.txt"]),
        ("x[1]/y?/*", ["x[1]/y?/f.txt"]),
    ],
)
@pytest.mark.parametrize("is_absolute", [False, True])
def test_a_name_is_what_exists_and_else_a_pattern(lab, name, expected, is_absolute):
    """Relative paths stay relative: a queued experiment runs in another folder, with the same settings."""
    root = lab if is_absolute else Path()

    assert names.files([str(root / name)], "files") == [root / path for path in expected]


def test_names_keep_their_order_and_each_file_counts_once():
    assert names.files(["b.txt", "*.txt"], "files") == [Path("b.txt"), Path("a.txt")]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.txt", "none.txt, which does not exist."),
        ("none/*.txt", "none/*.txt, which matches no file."),
        ("sub", "sub, a folder; it takes files."),
        ("sub*", "sub*, which matches no file."),
        ("~/a.txt", "~/a.txt, which does not exist; write out the folder that ~ is meant for."),
        ("x" * 400, ": File name too long."),
    ],
)
def test_what_stands_for_no_file_is_refused(name, words):
    with pytest.raises(InputError) as error:
        names.files(["a.txt", name], "suite.files")

    assert str(error.value).startswith("suite.files names ")
    assert f"{words} Nothing was changed." in str(error.value)


def test_a_folder_is_no_pattern_and_no_file():
    assert names.folder("runs/tiny[step=100]", "source.path") == Path("runs/tiny[step=100]")
    for name, words in (("runs/*", "does not exist"), ("a.txt", "is a file; it takes a folder"), ("~/x", "write out")):
        with pytest.raises(InputError, match=words):
            names.folder(name, "source.path")
