"""Code fingerprints: what makes a stage stale, and what does not."""

from pathlib import Path

import pytest

from lensmith.process.errors import InputError
from lensmith.settings.fingerprint import RESULT_FREE, fingerprint

REPOSITORY = Path(__file__).parents[2]

FILES = {
    "stages/fit.py": "from lensmith.settings import sections\nfrom lensmith.lens import stage\nstage.run(sections)\n",
    "src/lensmith/__init__.py": "from lensmith import plots\n",
    "src/lensmith/lens/__init__.py": "",
    "src/lensmith/lens/stage.py": "def run():\n    from demo import world\n    return world\n",
    "src/lensmith/plots.py": "COLOUR = 1\n",
    "src/lensmith/settings/__init__.py": "",
    "src/lensmith/settings/sections.py": "class FitParams: ...\n",
    "src/lensmith/lens/templates/card.j2": "A card.\n",
    "demo/world.py": "import json\n",
}
NOT_IN_IT = {"src/lensmith/__init__.py", "src/lensmith/plots.py", "src/lensmith/settings/sections.py"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def of_fit(root: Path) -> dict[str, str]:
    return fingerprint(root / "stages/fit.py", root)


def test_it_covers_the_script_and_all_it_imports_also_inside_functions(root):
    """A heavy import waits in a function; its code decides the result all the same. The API re-exports, and is none."""
    assert set(of_fit(root)) == FILES.keys() - NOT_IN_IT


@pytest.mark.parametrize(
    ("name", "text", "changes"),
    [
        (
            "src/lensmith/lens/stage.py",
            "# a comment\ndef run():\n    from demo import world\n    return world\n",
            False,
        ),
        (
            "src/lensmith/lens/stage.py",
            'def run():\n    """Doc."""\n    from demo import world\n    return world\n',
            False,
        ),
        ("src/lensmith/lens/stage.py", "def run():\n    from demo import world\n    return [world]\n", True),
        ("src/lensmith/plots.py", "COLOUR = 2\n", False),
        ("src/lensmith/settings/sections.py", "class FitParams: ...\nclass GatesParams: ...\n", False),
        ("demo/world.py", "import csv\n", True),
        ("src/lensmith/lens/templates/card.j2", "Another card.\n", True),
    ],
)
def test_it_changes_with_code_that_runs_and_with_nothing_else(root, name, text, changes):
    """Comments, docstrings and files that are not imported must not cost a GPU day."""
    before = of_fit(root)
    (root / name).write_text(text)

    assert (of_fit(root) != before) is changes


def test_a_syntax_error_is_named_by_file_and_line(root):
    """`dvc repro` in the middle of an edit should say where."""
    (root / "demo/world.py").write_text("def (\n")

    with pytest.raises(InputError, match=r"demo/world\.py:1: "):
        of_fit(root)


def test_a_relative_import_is_refused(root):
    """It would be missed silently, and a change behind it would make nothing stale."""
    (root / "src/lensmith/lens/stage.py").write_text("from . import other\n")

    with pytest.raises(InputError, match="relative import"):
        of_fit(root)


def test_a_file_that_is_left_out_is_there():
    """A renamed file would count again, unseen."""
    assert not [name for name in RESULT_FREE if not (REPOSITORY / name).is_file()]


def test_a_fit_does_not_depend_on_the_network_nor_on_what_is_above_it():
    """A download message, a page or a command line must not refit a lens; hub holds the pins that a fit reads."""
    files = fingerprint(REPOSITORY / "stages/fit.py", REPOSITORY)
    rooms = {name.split("/")[2] for name in files if name.startswith("src/lensmith/")}

    assert rooms == {"files", "hub", "lens", "process", "settings", "source"}
    assert {name for name in files if "/hub/" in name} == {"src/lensmith/hub/__init__.py", "src/lensmith/hub/pins.py"}
