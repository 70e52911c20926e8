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
LEFT_OUT = {"src/lensmith/__init__.py", "src/lensmith/plots.py", "src/lensmith/settings/sections.py"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def of_fit(root: Path) -> dict[str, str]:
    return fingerprint(root / "stages/fit.py", root)


def test_a_fingerprint_covers_the_script_and_its_imports_also_inside_functions(root):
    """An import in a function counts; lensmith/__init__.py, which only re-exports, does not."""
    assert set(of_fit(root)) == FILES.keys() - LEFT_OUT


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
def test_a_fingerprint_changes_with_code_that_runs_and_with_nothing_else(root, name, text, changes):
    """Comments, docstrings and files that are not imported do not make a stage stale."""
    before = of_fit(root)
    (root / name).write_text(text)

    assert (of_fit(root) != before) is changes


def test_the_error_for_a_syntax_error_has_file_and_line(root):
    """`dvc repro` may run in the middle of an edit."""
    (root / "demo/world.py").write_text("def (\n")

    with pytest.raises(InputError, match=r"demo/world\.py:1: "):
        of_fit(root)


def test_a_relative_import_is_refused(root):
    """The fingerprint could not follow it, so a change behind it would make nothing stale."""
    (root / "src/lensmith/lens/stage.py").write_text("from . import other\n")

    with pytest.raises(InputError, match="relative import"):
        of_fit(root)


def test_every_file_left_out_of_fingerprints_exists():
    """A file that was renamed would count again."""
    assert not [name for name in RESULT_FREE if not (REPOSITORY / name).is_file()]


def test_a_fit_imports_only_lower_rooms_and_no_network_code():
    """An edit of a download message, a page or a command refits no lens; of hub a fit reads only the pins."""
    files = fingerprint(REPOSITORY / "stages/fit.py", REPOSITORY)
    rooms = {name.split("/")[2] for name in files if name.startswith("src/lensmith/")}

    assert rooms == {"files", "hub", "lens", "process", "settings", "source"}
    assert {name for name in files if "/hub/" in name} == {"src/lensmith/hub/__init__.py", "src/lensmith/hub/pins.py"}
