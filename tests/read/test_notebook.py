"""examples/lens.ipynb runs from top to bottom, each cell as its reader's kernel would run it."""

import ast
import json
import subprocess

import pandas as pd
import plotly.graph_objects as go
from typer.testing import CliRunner

from lensmith.cli.app import app
from tests.support.released import save_release
from tests.support.settings import REPOSITORY

NOTEBOOK = REPOSITORY / "examples" / "lens.ipynb"


def local(source: str) -> str:
    """A cell with tokens that the tiny model has."""
    return source.replace('" Berlin"', '"B"').replace('" Paris"', '"P"')


def shown(source: str, names: dict[str, object]) -> object:
    """Run a cell; the value of its last line, which a notebook shows, or None where that is a statement."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """With a tiny model in the place of the bundled one; every cell shows a figure, a table or the reader."""
    save_release(tmp_path / "made", n_layers=8)
    (tmp_path / "params.yaml").touch()
    for place, made in (("demo/atlas", "model"), ("release/atlas", "release"), ("release/atlas-reference", "release")):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).symlink_to(tmp_path / "made" / made)
    monkeypatch.chdir(tmp_path)
    run = CliRunner()  # in this process: another one would import torch anew
    monkeypatch.setattr(subprocess, "run", lambda words, check: run.invoke(app, [*map(str, words[1:])]))
    notebook, names = json.loads(NOTEBOOK.read_text(encoding="utf-8")), {}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    values = [shown(local("".join(cell["source"])), names) for cell in cells]

    assert all(cell["outputs"] == [] for cell in cells)  # they would be megabytes of pictures
    kinds = [type(value) for value in values[1:]]
    pictures = [go.Figure] * 3
    assert kinds == [go.Figure, go.Figure, pd.DataFrame, pd.DataFrame, go.Figure, pd.DataFrame, *pictures]
    last = names["layers"].query("quantity == 'kl_a_b_bits' and layer == 8")
    assert last["mean"].item() == 0 and len(values[-1].data) == 4, "one model, and a line for each KL"
    assert any(value for row in values[-2].data[1].z for value in row), "the copy reads something else"
    assert len(names["rows"]) == names["rows"].n_tokens[names["rows"].pos == 0].sum()
