"""The public API: quick to import, complete, and the only thing that pages, cards and examples use."""

import re
import subprocess
import sys

import pytest

import lensmith
from lensmith.process import errors
from tests.support.released import save_release
from tests.support.settings import REPOSITORY

HEAVY = ("torch", "transformers", "plotly", "pandas", "pydantic", "numpy", "huggingface_hub")
PAGES = (
    "README.md",
    "SECURITY.md",
    "docs/*.md",
    "examples/*",
    "src/lensmith/release/templates/*",
    "src/lensmith/report/templates/*",
)


def test_importing_it_imports_nothing_heavy():
    """A module, not a second: what `import lensmith` costs is what it imports."""
    code = f"import sys, lensmith; dir(lensmith); print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


def test_every_name_is_there_and_listed():
    """`__all__` is the API: what it lists can be had and is described, and `dir` shows it and nothing else."""
    assert dir(lensmith) == sorted(lensmith.__all__)
    for name in lensmith.__all__:
        value = getattr(lensmith, name)
        assert value.__doc__, name
    with pytest.raises(AttributeError, match=r"'lode'; it has .*load"):
        lensmith.lode  # noqa: B018


def test_every_error_can_be_caught_by_its_name():
    """The whole tree is public: a caller tells a wrong argument from a server that is down."""
    tree = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}

    assert tree == {getattr(lensmith, name) for name in lensmith.__all__ if name.endswith("Error")}
    assert all(issubclass(error, lensmith.LensmithError) for error in tree)


@pytest.mark.parametrize("pattern", PAGES)
def test_pages_cards_and_examples_use_the_api_alone(pattern):
    """A name that is printed is a name that somebody depends on; releases keep theirs for ever."""
    pages = [path for path in REPOSITORY.glob(pattern) if path.is_file() and path.suffix != ".png"]
    assert pages
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"from lensmith[.\w]* import|import lensmith\.\w+", text), page
        code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
        used = set(re.findall(r"\blensmith\.(\w+)", code)) | set(re.findall(r"`lensmith\.(\w+)", text))
        assert used <= set(lensmith.__all__), page


def test_the_readmes_lines_run_as_printed(tmp_path, monkeypatch):
    """They are the first thing that a reader tries; here with a tiny model in the place of the bundled one."""
    save_release(tmp_path / "made")
    for name, place in (("model", "demo/atlas"), ("release", "release/atlas")):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).symlink_to(tmp_path / "made" / name)
    monkeypatch.chdir(tmp_path)
    code = (REPOSITORY / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line]) <= 6

    names: dict[str, object] = {}
    exec(code, names)

    assert names["lens"].w_u_sha256 is not None
    assert "plotly" in (tmp_path / "trajectory.html").read_text()


def test_the_version_is_that_of_the_installed_command():
    done = subprocess.run(
        [sys.executable, "-c", "from lensmith.cli import app; app.run()", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == f"lensmith {lensmith.__version__}\n"
