"""The table that `lensmith report` prints, and a run of the fleet at its end."""

from pathlib import Path

import typer
from rich.console import Console

from lensmith.cli.releases import PARAMS
from lensmith.judge.judgement import Judgement
from lensmith.process.errors import InputError
from lensmith.report import terminal
from lensmith.settings import params_yaml

JUDGEMENTS = Path("plots/judgement")
PAGE = Path("plots/report.html")


def show() -> None:
    """Print the verdicts of all models, and where the report page is."""
    models = params_yaml.read(PARAMS)
    judged = [key for key in models if (JUDGEMENTS / f"{key}.json").exists()]
    if not judged:
        raise InputError(f"{JUDGEMENTS}: holds no judgement yet. `dvc repro` writes them.")
    Console().print(terminal.verdicts((key, Judgement.read(JUDGEMENTS / f"{key}.json")) for key in judged))
    typer.echo(f"Report: {PAGE.resolve()}")
