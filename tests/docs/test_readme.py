"""README and docs/ against the tree: what they name is there, and what is there they name."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
from ruamel.yaml import YAML

from docs import write_lenses, write_results
from lensmith.cli.app import app
from tests.support import pages, tree
from tests.support.pages import PAGES
from tests.support.settings import REPOSITORY
from tests.test_layout import ROOMS

README = pages.README.read_text(encoding="utf-8")
MADE = {"artifacts/", "release/"}  # by `dvc repro`; not in git
# Files that every project has, and what goes by itself with a file that is named.
USUAL = {"LICENSE", "Makefile", "README.md", "SECURITY.md", "constraints.txt", "dvc.lock", "pyproject.toml"}


def entries() -> dict[int, list[str]]:
    """The tree in README: names at the margin (0) and below a folder (4)."""
    block = README.partition("## The tree\n\n```\n")[2].partition("\n```")[0]
    names: dict[int, list[str]] = {0: [], 4: []}
    for line in block.splitlines():
        indent = len(line) - len(line.lstrip())
        names[indent] += re.split(r"\s{2,}", line.strip())[0].split()
    return names


def test_the_readme_is_one_page():
    """Whatever needs more words has a page of its own in docs/."""
    assert len(README.splitlines()) <= 150


def test_the_tree_names_every_entry_of_the_repository():
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    paths = [path.partition("/") for path in listed.splitlines() if not path.startswith(".")]
    there = {head + slash for head, slash, _ in paths} - USUAL

    assert {name.partition("/")[0] + "/" if "/" in name else name for name in entries()[0]} == there | MADE


def test_the_tree_names_every_stage_and_every_room():
    """Rooms stand in the order of their dependencies."""
    stages = {path.name for path in (REPOSITORY / "stages").glob("*.py")} - {"__init__.py"}
    names = entries()[4]

    assert {name for name in names if name.endswith(".py")} == stages
    assert [name for name in names if name.endswith("/")] == [f"{room}/" for room in ROOMS]


def test_every_file_of_the_library_is_listed():
    """By the script that writes the list, from the files' own docstrings."""
    text = tree.PAGE.read_text(encoding="utf-8")

    assert tree.with_tree(text) == text, "docs/how-it-works.md: run `python -m tests.support.tree`"


def test_every_page_is_one_click_away():
    linked = set(re.findall(r"\]\(([^)#]+)\)", README))

    assert {f"docs/{page.name}" for page in PAGES if page.parent == REPOSITORY / "docs"} <= linked


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


LINES = [line for page in PAGES for line in pages.commands(page) if line.startswith("lensmith ")]


@pytest.mark.parametrize("line", dict.fromkeys(LINES))
def test_every_command_exists_with_its_options(line):
    command = typer.main.get_command(app)
    words = shlex.split(line, comments=True)[1:]
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    options = {name for parameter in command.params for name in parameter.opts}

    assert {word for word in words if word.startswith("--")} <= options


def test_every_setting_is_explained_with_its_default():
    """docs/settings.md has a row for each value of `defaults`, in the file's order."""
    yaml = YAML(typ="safe", pure=True)
    page = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    explained = {}
    for section in page.split("\n## ")[1:]:
        rows = re.findall(r"^\| `([a-z]\w*)` \|(.*?)\| \S", section, re.MULTILINE)
        values = {setting: [yaml.load(text) for text in re.findall("`(.*?)`", cell)] for setting, cell in rows}
        explained[section.partition(":")[0]] = values
    defaults = yaml.load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))["defaults"]

    for name, section in defaults.items():
        assert list(explained[name]) == list(section)
        for setting, value in section.items():
            expected = [] if value is None else value if isinstance(value, list) and value else [value]
            assert explained[name][setting] == expected, f"{name}.{setting}"


def test_every_environment_variable_is_explained():
    """docs/settings.md has a row for each variable that the code names, and for no other."""
    sources = [*(REPOSITORY / "src").rglob("*.py"), *(REPOSITORY / "stages").glob("*.py")]
    named = {name for file in sources for name in re.findall(r"\bLENSMITH_[A-Z_]+", file.read_text(encoding="utf-8"))}
    page = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")

    assert set(re.findall(r"^\| `(LENSMITH_\w+)`", page, re.MULTILINE)) == named


def test_results_are_those_of_the_files_in_git():
    """docs/results.md and README's table, by the script that writes them."""
    again = "run `python -m docs.write_results`"

    assert write_results.page() == write_results.PAGE.read_text(encoding="utf-8"), again
    assert write_results.readme(README) == README, again


def test_the_page_of_lenses_is_that_of_the_files_in_git():
    """docs/lenses.md, by the script that writes it."""
    again = "run `python -m docs.write_lenses`"

    assert write_lenses.page() == write_lenses.PAGE.read_text(encoding="utf-8"), again
