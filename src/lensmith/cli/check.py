"""`lensmith check`: the settings, every file that they name, and DVC's remotes."""

from pathlib import Path
from typing import Annotated

import typer

from lensmith.judge import prompts
from lensmith.lab import layout, remotes
from lensmith.lab.layout import PARAMS
from lensmith.process import amounts
from lensmith.settings import params_yaml, resolved

app = typer.Typer()


@app.command()
def check(file: Annotated[Path, typer.Argument(help="The settings to check.")] = PARAMS) -> None:
    """Check params.yaml, every file that it names, and DVC's remotes. It runs nothing and takes about a second."""
    models = params_yaml.read(file)
    resolved.with_inputs(models)
    for files in dict.fromkeys(tuple(settings.suite.files) for settings in models.values()):
        prompts.read_suite(files)
    for files in dict.fromkeys(tuple(settings.sweep.probes) for settings in models.values()):
        prompts.read_probes(files)
    if others := list(layout.untracked(models)):
        (section, path), more = others[0], f", and {len(others) - 1} more like it" if others[1:] else ""
        typer.echo(
            f"{file}: {section} names {path}, which git does not track{more}: a queued experiment and a clone have no "
            "copy. A queued experiment can read it by its absolute path."
        )
    names = remotes.check(Path.cwd())
    typer.echo(
        f"{file}: {amounts.many(len(models), 'model')}, every setting and every file is valid: {', '.join(models)}"
    )
    if names:
        typer.echo(
            f".dvc/config: {amounts.many(len(names), 'remote')}, each verifies what it downloads: {', '.join(names)}"
        )
