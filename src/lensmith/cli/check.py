"""`lensmith check`: the settings, every file that they name, and DVC's remotes."""

from pathlib import Path
from typing import Annotated

import typer

from lensmith.judge import prompts
from lensmith.lab import layout, remotes
from lensmith.lab.layout import PARAMS
from lensmith.process import amounts
from lensmith.settings import params_yaml, resolved
from lensmith.source import text_files

app = typer.Typer()

ENOUGH = 10_000  # documents that are counted of one text, so that large ones take no longer


@app.command()
def check(file: Annotated[Path, typer.Argument(help="The settings to check.")] = PARAMS) -> None:
    """Check params.yaml, every file that it names, and DVC's remotes. It runs nothing and takes about a second."""
    models = params_yaml.read(file)
    resolved.with_inputs(models, layout.RESOLVED / "models")
    present = {key: settings for key, settings in models.items() if resolved.has_files(settings)}
    for files in dict.fromkeys(tuple(settings.suite.files) for settings in present.values()):
        prompts.read_suite(files)
    for files in dict.fromkeys(tuple(settings.sweep.probes) for settings in present.values()):
        prompts.read_probes(files)
    texts = dict.fromkeys(text for settings in present.values() for text in text_files.counts(settings.corpus, ENOUGH))
    for where, n in texts:
        typer.echo(f"{file}: {where}: {'at least ' if n == ENOUGH else ''}{amounts.many(n, 'document')}")
    if others := list(layout.untracked(present)):
        (section, path), more = others[0], f", and {len(others) - 1} more like it" if others[1:] else ""
        typer.echo(
            f"{file}: {section} names {path}, which git does not track{more}: a queued experiment and a clone have no "
            "copy. A queued experiment can read it by its absolute path."
        )
    names = remotes.check(Path.cwd())
    typer.echo(
        f"{file}: {amounts.many(len(present), 'model')}, every setting and every file is valid: {', '.join(present)}"
    )
    if names:
        typer.echo(
            f".dvc/config: {amounts.many(len(names), 'remote')}, each verifies what it downloads: {', '.join(names)}"
        )
