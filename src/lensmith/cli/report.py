"""`lensmith report`: the verdicts as a table, which `lensmith fleet` prints at its end as well."""

import typer
from rich.console import Console

from lensmith.judge.judgement import Judgement
from lensmith.lab.layout import JUDGEMENTS, PAGE, PARAMS
from lensmith.process.errors import InputError
from lensmith.report import terminal
from lensmith.settings import params_yaml

app = typer.Typer()


@app.command()
def report() -> None:
    """Print the verdicts of all models, and where the report page is."""
    judged = [key for key in params_yaml.read(PARAMS) if (JUDGEMENTS / f"{key}.json").exists()]
    if not judged:
        raise InputError(f"{JUDGEMENTS}: holds no judgement yet. `dvc repro` writes them.")
    Console().print(terminal.verdicts((key, Judgement.read(JUDGEMENTS / f"{key}.json")) for key in judged))
    typer.echo(f"Report: {PAGE.resolve()}")
