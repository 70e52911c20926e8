"""The public API: quick to import, complete, and the only thing that pages, cards and examples use."""

import re
import subprocess
import sys

import pytest
import torch

import lensmith
from lensmith.process import errors
from tests.support.pages import blocks
from tests.support.released import TINY, save_release
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
        code = "\n".join(blocks(page, "python"))
        used = set(re.findall(r"\blensmith\.(\w+)", code)) | set(re.findall(r"`lensmith\.(\w+)", text))
        assert used <= set(lensmith.__all__), page


HUB = '"org/lenses", model="org/name", revision="v2026.11.29"'  # the round trip in tests/release reads from a Hub


@pytest.mark.filterwarnings("ignore:fit on float32 weights, used with bfloat16")  # strict=False asks for it
@pytest.mark.parametrize("page", ["README.md", "docs/use.md"])
def test_the_lines_of_a_page_run_as_printed(page, tmp_path, monkeypatch):
    """One block after another, as a reader tries them; with a tiny model in the place of the bundled one."""
    save_release(tmp_path / "made", n_layers=8)
    for name, place in (("model", "demo/atlas"), ("release", "release/atlas")):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).symlink_to(tmp_path / "made" / name)
    (tmp_path / "metrics").symlink_to(REPOSITORY / "metrics")
    monkeypatch.chdir(tmp_path)
    printed = blocks(REPOSITORY / page, "python")

    names: dict[str, object] = {}
    for block in printed:
        local = block.replace(HUB, f'"release/atlas", model="{TINY}"')
        exec(local.replace('" Berlin"', '"B"').replace('" Paris"', '"P"'), names)  # tokens of the tiny model

    assert names["reader"].lens.w_u_sha256 is not None
    if page == "README.md":
        assert len([line for line in printed[0].splitlines() if line]) <= 6
        assert "plotly" in (tmp_path / "trajectory.html").read_text()
    else:
        assert names["reading"].top_ids.shape == (1, len(names["trajectory"].readings.ids), 10)
        models = {each.backbone.dtype for each in (names["difference"].a, names["difference"].b)}
        assert models == {torch.bfloat16, torch.float32} and names["difference"].frame().entropy_bits.abs().max() > 0
        assert names["rising"].top_ids.shape == (100, 10) and set(names["followed"].target) == {"B", "P"}
        assert {"atlas", "atlas-reference"} <= set(names["metrics"].model)


def test_the_version_is_that_of_the_installed_command():
    done = subprocess.run(
        [sys.executable, "-c", "from lensmith.cli import app; app.run()", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == f"lensmith {lensmith.__version__}\n"
