"""A colour stands in one place: what is drawn by Plotly, Vega, CSS and the terminal takes it from the palette."""

import importlib.util
import json
import re

import pytest

from lensmith.judge import plots
from lensmith.judge.tables import LENSES, RANKS
from lensmith.process import wording
from lensmith.report import dvc_plots, palette
from tests.support.settings import REPOSITORY

COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b|rgba?\(")


@pytest.mark.parametrize("name", list(dvc_plots.SCALES))
def test_templates_of_dvc_have_the_colours_of_the_palette(name):
    """DVC reads static JSON. `python -m lensmith.report.dvc_plots` writes it anew."""
    folder = REPOSITORY / ".dvc/plots"
    origin = (folder / f"{dvc_plots.COPIES.get(name, name)}.json").read_text(encoding="utf-8")

    assert (folder / f"{name}.json").read_text(encoding="utf-8") == dvc_plots.text(name, json.loads(origin))


def test_a_colour_that_changed_makes_a_template_stale(monkeypatch):
    """The test above would pass for ever if no colour came from the palette."""
    before = (REPOSITORY / ".dvc/plots/depth.json").read_text(encoding="utf-8")
    monkeypatch.setitem(dvc_plots.SCALES, "depth", (["norm"], ["#123456"]))
    monkeypatch.setattr(palette, "GUIDE", "#654321")
    after = dvc_plots.text("depth", json.loads(before))

    assert after != before and "#123456" in after and after.count("#654321") == 2


def test_the_page_of_dvc_plots_is_the_one_that_its_script_builds():
    """Building it needs npm packages, so an edit of the palette is checked against the built page."""
    folder = REPOSITORY / ".dvc/plots"
    spec = importlib.util.spec_from_file_location("build_offline", folder / "build_offline.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (folder / "offline.html").read_text(encoding="utf-8")

    assert script.HEAD.split("<html", 1)[1] in page and page.endswith(script.SETUP + script.BODY)


def test_no_colour_is_written_beside_the_palette():
    """A second place for a colour is one that an edit forgets."""
    files = [*(REPOSITORY / "src/lensmith").rglob("*.py"), *(REPOSITORY / "src/lensmith").rglob("*.j2")]
    files += [REPOSITORY / "benchmarks/common.py", REPOSITORY / ".dvc/plots/build_offline.py"]
    found = [str(file) for file in files if file.name != "palette.py" and COLOUR.search(file.read_text("utf-8"))]

    assert found == []


def test_everything_that_is_drawn_has_a_colour():
    """A lens without a colour would stop the page; a curve without one would be drawn as a guide."""
    assert set(palette.LENSES) == set(LENSES) == set(wording.LENSES)
    assert tuple(palette.ANSWER_RANKS) == RANKS
    assert tuple(palette.PERCENTILES) == plots.PERCENTILES
    assert set(palette.TRAINING) == set(plots.CURVES)
    assert set(palette.RANK_CURVES) == set(plots.RANK_CURVES)
    assert set(palette.VERDICTS_IN_A_TERMINAL) == set(wording.SYMBOLS)
    assert set(palette.LIGHT) == set(palette.DARK)
