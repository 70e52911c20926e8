"""One page over all models: what was measured, what was asked, and the verdicts. It needs no network.

The page carries no date and no machine: the same metrics give the same bytes. A model that is not in `resolved` is
not on it, whatever files it left behind.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.offline
from markupsafe import Markup

from lensmith.files import artifacts
from lensmith.judge import judgement
from lensmith.judge.judgement import VERDICTS, Estimate, Judgement
from lensmith.lens.depth import PERCENTILES
from lensmith.process import wording
from lensmith.process.errors import InputError
from lensmith.report import charts, curves, detail, heatmap, palette
from lensmith.report.curves import Curves
from lensmith.report.detail import Detail
from lensmith.settings import sections
from lensmith.settings.sections import ModelParams

# A page of ten models stays below this, however many texts they would show.
PAGE_BYTES = 7_800_000
MODEL_BYTES = 80_000  # of a model's tables and charts, in the page's text; trajectories share what is left

COLUMNS = ("model", "layer", "depth_pct", "kl_final_lens_bits")


@dataclass(frozen=True)
class Tile:
    """One number that a reader should see first."""

    label: str
    value: str
    unit: str
    note: str


@dataclass(frozen=True)
class Model:
    """What the page shows of one model."""

    key: str
    settings: ModelParams
    judgement: Judgement
    kl: Curves
    cosine: Curves
    earliness: charts.Bars
    training: charts.Training
    detail: Detail

    def charts(self) -> dict[str, dict[str, Any] | None]:
        return {
            "kl": charts.kl(self.kl, self.judgement),
            "cosine": charts.cosine(self.cosine, self.judgement),
            "gains": charts.gains(self.judgement),
            "ladder": charts.ladder(self.judgement),
            "earliness": charts.earliness(self.earliness),
            "training": charts.training(self.training),
        }

    def tiles(self) -> Iterator[Tile]:
        judged = self.judgement
        for p in PERCENTILES:
            delta = judged.estimate(f"median_delta_kl_bits_{p}")
            yield Tile(f"KL saved at {p} % depth", wording.signed(delta.value), "bits", self._interval(delta))
        shift = judged.estimate("earliness_shift_first_rank_le_10_layers")
        layers = "layer" if shift.value in {-1, 1} else "layers"
        value, interval = (text.replace(".00", "") for text in (wording.signed(shift.value), self._interval(shift)))
        yield Tile("Answer in the top 10, earlier by", value, layers, interval)
        gain = judged.estimate("rank1_coverage_gain")
        points = gain.times(100)
        value = wording.signed(points.value)
        yield Tile("Layers with the answer on top", value, "% points", self._interval(points))

    @property
    def tone(self) -> str:
        """The worst verdict among the gates: the colour of the model's banner."""
        found = {gate.verdict for gate in self.judgement.gates}
        return next(word for word in ("fail", "invalid", "inconclusive", "pass") if word in found)

    def layers(self) -> Iterator[tuple[int, list[float | None], list[float | None]]]:
        """(layer, KL by lens, cosine by lens) for the table behind the charts."""
        for layer in range(self.kl.n_layers + 1):
            kl, cosine = ([c.value(name, layer) for name in self.kl.lenses] for c in (self.kl, self.cosine))
            yield layer, kl, cosine

    @staticmethod
    def _interval(estimate: Estimate) -> str:
        if estimate.lo is None or estimate.hi is None:
            return ""
        return f"{wording.signed(estimate.lo)} to {wording.signed(estimate.hi)}"


@dataclass(frozen=True)
class Folders:
    """Where the light stages wrote a file for each model."""

    resolved: Path  # settings; they say which models there are
    judgement: Path
    kl: Path
    cosine: Path
    earliness: Path
    training: Path
    detail: Path


def build(folders: Folders, html: Path, overview: Path) -> None:
    """Write the page and the table of all tuned curves.

    Raises:
        IntegrityError: a model's judgement or tables are missing or damaged.
        InputError: no model was resolved.
    """
    files = sorted(folders.resolved.glob("*.json"), key=lambda file: file.stem)
    if not files:
        raise InputError(
            f"{folders.resolved}: holds no model. `dvc repro resolve` writes one file for each. Nothing was changed."
        )
    models = [_read(file, folders) for file in files]
    page = _page(models)
    artifacts.write_csv(
        overview, COLUMNS, [row for model in models for row in _rows(model)], digits=artifacts.TRACKED_DIGITS
    )
    artifacts.write_text(html, page)


def page_of(file: Path, folders: Folders) -> str:
    """The same page over one model alone, whose settings `file` holds; it goes out with the model's lens."""
    return _page([_read(file, folders)])


def _read(file: Path, folders: Folders) -> Model:
    # The file's name, not the key inside: a name cannot lead out of a folder.
    key = file.stem
    settings = sections.read_resolved(file)
    return Model(
        key,
        settings,
        judgement.read(folders.judgement / f"{key}.json"),
        curves.read(folders.kl / f"{key}.csv", "kl_final_lens_bits"),
        curves.read(folders.cosine / f"{key}.csv", "cos_to_final"),
        curves.read_earliness(folders.earliness / f"{key}.csv"),
        curves.read_training(folders.training / f"{key}.csv"),
        detail.read(folders.detail / f"{key}.json"),
    )


def _rows(model: Model) -> Iterator[tuple[object, ...]]:
    for point in model.kl.at("tuned"):
        yield model.key, point.layer, 100 * point.layer / model.kl.n_layers, point.value


def _page(models: list[Model]) -> str:
    verdicts = Counter(gate.verdict for model in models for gate in model.judgement.gates)
    script = plotly.offline.get_plotlyjs()
    room = (PAGE_BYTES - len(script.encode())) // len(models) - MODEL_BYTES
    return wording.render(
        __package__,
        "report.html.j2",
        models=models,
        details={model.key: model.detail.page(room) for model in models},
        colours=list(heatmap.choices().items()),  # a list: JSON in a page has its keys sorted
        light=palette.css_variables(palette.LIGHT),
        dark=palette.css_variables(palette.DARK),
        percentiles=PERCENTILES,
        verdicts=[(word, verdicts[word]) for word in VERDICTS if verdicts[word]],
        overview=charts.overview({model.key: model.kl for model in models}),
        # Plotly's script and our own, in which no value stands.
        scripts=[Markup(text) for text in (script, wording.render(__package__, "scripts.js.j2"))],  # noqa: S704
    )
