"""One page over all models: what was measured, what the gates ask, and the verdicts. It needs no network.

The page carries no date and no machine: the same judgements give the same bytes. A model that is not in `resolved` is
left out, whatever files of it are still there.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lensmith.files import artifacts
from lensmith.judge import judgement, rank_cost
from lensmith.judge.judgement import VERDICTS, Estimate, Judgement
from lensmith.judge.rank_cost import RankCurves
from lensmith.lens.depth import PERCENTILES
from lensmith.process import wording
from lensmith.process.errors import InputError
from lensmith.report import charts, curves, heatmap, html
from lensmith.report.curves import LayerCurves
from lensmith.report.model_detail import ModelDetail
from lensmith.settings import sections
from lensmith.settings.sections import ModelParams

# A page of ten models stays below this, however many texts they would show.
PAGE_BYTES = 7_800_000
MODEL_BYTES = 80_000  # of a model's tables and charts; its trajectories get what is left of its share

OVERVIEW_COLUMNS = ("model", "layer", "depth_pct", "kl_final_lens_bits")


@dataclass(frozen=True)
class Tile:
    """One number at the head of a model's section."""

    label: str
    value: str
    unit: str
    note: str  # the norm lens's number and the interval, as far as there are any


@dataclass(frozen=True)
class ModelSection:
    """What the page shows of one model."""

    key: str
    settings: ModelParams
    judgement: Judgement
    kl: LayerCurves
    cosine: LayerCurves
    causal: LayerCurves
    earliness: curves.Earliness
    training: curves.Training
    rank_curve: RankCurves
    detail: ModelDetail

    def charts(self) -> dict[str, charts.PlainFigure | None]:
        """Chart by name; None where it would be empty."""
        return {
            "kl": charts.kl(self.kl, self.judgement),
            "cosine": charts.cosine(self.cosine, self.judgement),
            "causal": charts.causal(self.causal, self.judgement),
            "gains": charts.gains(self.judgement),
            "holds": charts.holds(self.judgement),
            "ladder": charts.ladder(self.judgement),
            "earliness": charts.earliness(self.earliness),
            "training": charts.training(self.training),
            "ranks": charts.ranks(self.rank_curve),
        }

    def tiles(self) -> Iterator[Tile]:
        """The numbers that a reader should see first."""
        for percent in PERCENTILES:
            norm, tuned = self.judgement.heldout_kl(percent)
            note = f"norm lens {wording.number(norm.value)}"
            if tuned.has_interval:
                note += f"; {wording.number(tuned.lo)} to {wording.number(tuned.hi)}"
            yield Tile(f"Held-out text: KL left at {percent} % depth", wording.number(tuned.value), "bits", note)
        shift = self.judgement.estimate("earliness_shift_first_rank_le_10_layers")
        yield _tile(
            "Median prompt: answer in the top 10, earlier by", shift, "layer" if shift.value in {-1, 1} else "layers"
        )
        gain = self.judgement.estimate("rank1_coverage_gain").times(100)
        yield _tile("Prompts: layers with the answer on top", gain, "% points")

    @property
    def worst_verdict(self) -> str:
        """The worst verdict among the gates, which colours the model's banner."""
        verdicts = {gate.verdict for gate in self.judgement.gates}
        return next(word for word in ("fail", "invalid", "inconclusive", "pass") if word in verdicts)

    @property
    def rank_cost(self) -> str:
        """What the rank costs, in words; empty where that is not known."""
        return rank_cost.in_words(self.rank_curve, self.judgement)

    def layers(self) -> Iterator[tuple[int, list[float | None], list[float | None]]]:
        """(layer, KL by lens, cosine by lens) for the table behind the charts."""
        for layer in range(self.kl.n_layers + 1):
            kl, cosine = ([c.value(lens, layer) for lens in self.kl.lenses] for c in (self.kl, self.cosine))
            yield layer, kl, cosine


def _tile(label: str, estimate: Estimate, unit: str) -> Tile:
    def form(value: float | None) -> str:
        return wording.signed(value).removesuffix(".00") if unit.startswith("layer") else wording.signed(value)

    known = estimate.lo is not None and estimate.hi is not None
    return Tile(label, form(estimate.value), unit, f"{form(estimate.lo)} to {form(estimate.hi)}" if known else "")


@dataclass(frozen=True)
class ReportFolders:
    """Where the light stages wrote a file for each model."""

    resolved: Path  # settings; they say which models there are
    judgement: Path
    kl: Path
    cosine: Path
    causal: Path
    earliness: Path
    training: Path
    rank_curve: Path
    detail: Path


def build(folders: ReportFolders, page: Path, overview: Path, *, unjudged: Collection[str] = ()) -> None:
    """Write the page and the table of all tuned curves.

    Args:
        unjudged: keys of resolved models without results, which the page names and does not show.

    Raises:
        IntegrityError: a model's judgement or tables are missing or damaged.
        InputError: no model was resolved, or none has results.
    """
    files = sorted(folders.resolved.glob("*.json"), key=lambda file: file.stem)
    judged = [file for file in files if file.stem not in unjudged]
    if not judged:
        problem = "none of its models is judged. `dvc repro` judges them"
        if not files:
            problem = "holds no model. `dvc repro resolve` writes one file for each"
        raise InputError(f"{folders.resolved}: {problem}. Nothing was changed.")
    models = [_read(file, folders) for file in judged]
    rows = [
        (model.key, point.layer, 100 * point.layer / model.kl.n_layers, point.value)
        for model in models
        for point in model.kl.points("tuned")
    ]
    text = _page(models, sorted(unjudged))
    artifacts.write_csv(overview, OVERVIEW_COLUMNS, rows, digits=artifacts.TRACKED_DIGITS)
    artifacts.write_text(page, text)


def page_of(settings: Path, folders: ReportFolders) -> str:
    """The same page over one model, whose resolved settings the file holds; it goes out with the model's lens."""
    return _page([_read(settings, folders)])


def _read(file: Path, folders: ReportFolders) -> ModelSection:
    # The file's name, not the key inside: a name cannot lead out of a folder.
    key = file.stem
    return ModelSection(
        key,
        sections.read_resolved(file),
        judgement.read(folders.judgement / f"{key}.json"),
        curves.read_layers(folders.kl / f"{key}.csv", "kl_final_lens_bits"),
        curves.read_layers(folders.cosine / f"{key}.csv", "cos_to_final"),
        curves.read_layers(folders.causal / f"{key}.csv", "causal_cosine"),
        curves.read_earliness(folders.earliness / f"{key}.csv"),
        curves.read_training(folders.training / f"{key}.csv"),
        curves.read_ranks(folders.rank_curve / f"{key}.csv"),
        ModelDetail.read(folders.detail / f"{key}.json"),
    )


def _page(models: list[ModelSection], unjudged: Sequence[str] = ()) -> str:
    verdicts = Counter(gate.verdict for model in models for gate in model.judgement.gates)
    budget = (PAGE_BYTES - len(html.plotly_script().encode())) // len(models) - MODEL_BYTES
    return html.page(
        "report.html.j2",
        "scripts.js.j2",
        models=models,
        unjudged=unjudged,
        details={model.key: model.detail.page_data(budget) for model in models},
        colours=heatmap.colours_as_data(),
        percentiles=PERCENTILES,
        verdicts=[(word, verdicts[word]) for word in VERDICTS if verdicts[word]],
        overview=charts.overview({model.key: model.kl for model in models}),
    )
