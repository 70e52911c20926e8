"""The walls of the house: rooms depend one way, nothing goes round in a circle, and light rooms stay light."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.support.settings import REPOSITORY

SRC = REPOSITORY / "src"
# From low to high: a room may import those before it.
ROOMS = (
    "process",
    "files",
    "settings",
    "hub",
    "source",
    "lens",
    "judge",
    "report",
    "release",
    "lab",
    "read",
    "fleet",
    "cli",
)
STRANGERS = {"report", "release"}  # neither knows the other: a stage puts the report's page into a release
# Started for every edit, every wrong input and every page, also where no torch is.
LIGHT = ("settings", "files", "report", "judge.gates", "release.package", "release.verify")

FILES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path for path in SRC.rglob("*.py")
}
TREES = {name: ast.parse(path.read_bytes()) for name, path in FILES.items()}


def imported(tree: ast.Module) -> set[str]:
    """Every module of ours that a module names, wherever the import stands: in a function, below TYPE_CHECKING."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names if alias.name.split(".")[0] == "lensmith"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lensmith":
            paths = (f"{node.module}.{alias.name}" for alias in node.names)
            modules |= {path if path in FILES else str(node.module) for path in paths}
    return modules


GRAPH = {name: imported(tree) for name, tree in TREES.items()}


def room(module: str) -> str:
    """The room of a module, empty for the API."""
    return module.partition(".")[2].partition(".")[0]


def test_every_room_has_its_place():
    assert {room(module) for module in FILES} == {"", *ROOMS}


def test_no_module_imports_itself_by_way_of_others():
    """A circle can only be read, tested and fingerprinted as one piece."""
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_room_imports_a_higher_one():
    """The API is above all rooms but the command line, which prints its version."""
    order = {name: place for place, name in enumerate((*ROOMS[:-1], "", ROOMS[-1]))}
    up = [
        f"{module} -> {other}"
        for module, others in GRAPH.items()
        for other in others
        if order[room(other)] > order[room(module)]
    ]

    assert up == []


def test_report_and_release_do_not_know_each_other():
    both = [
        (module, other)
        for module, others in GRAPH.items()
        for other in others
        if {room(module), room(other)} == STRANGERS
    ]

    assert both == []


def test_no_import_is_hidden():
    """By a string it would be missing from the graph above, and from the fingerprints of the stages."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: a relative import"
                assert node.module != "importlib" or not {"import_module"} & {a.name for a in node.names}, name
            assert not (isinstance(node, ast.Attribute) and node.attr == "import_module"), name


def python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_light_rooms_start_without_torch():
    """A wrong setting, a report and a verdict are told in a moment, on machines without a GPU library too."""
    modules = sorted(name for name in FILES if name.startswith(tuple(f"lensmith.{light}" for light in LIGHT)))
    checks = "".join(f"import {name}; 'torch' in sys.modules and sys.exit('{name}')\n" for name in modules)

    assert python(f"import sys\n{checks}").stderr == ""


def test_gates_start_without_pandas():
    """The stage runs for every edit of a limit."""
    assert python("import sys, lensmith.judge.gates; 'pandas' in sys.modules and sys.exit('pandas')").stderr == ""


def test_a_fit_starts_in_silence_and_without_pictures():
    """It must not depend on the code that draws, which would also cost plotly's second. transformers imports torchao,
    in every stage and in README's lines, whatever the model, and torchao logs what this machine lacks.
    """
    code = "import sys, lensmith, transformers.modeling_utils, lensmith.lens.stage"
    drawing = "[name for name in sys.modules if name.startswith(('plotly', 'pandas'))]"

    assert python(f"{code}; {drawing} and sys.exit(str({drawing}))").stderr == ""
