"""The table that `lensmith report` prints, and a run of the fleet at its end."""

from pathlib import Path

import typer
from rich.console import Console

from lensmith.cli.releases import PARAMS
from lensmith.judge import scorecard
from lensmith.process.errors import InputError
from lensmith.report import terminal
from lensmith.settings import params_yaml

METRICS = Path("metrics")
PAGE = Path("plots/report.html")


def show() -> None:
    """Print the verdicts of all models, and where the report page is."""
    models = params_yaml.read(PARAMS)
    judged = [key for key in models if (METRICS / f"{key}.json").exists()]
    if not judged:
        raise InputError(f"{METRICS}: holds no metrics yet. `dvc repro` writes them.")
    Console().print(terminal.verdicts((key, scorecard.read(METRICS / f"{key}.json", models[key])) for key in judged))
    typer.echo(f"Report: {PAGE.resolve()}")
