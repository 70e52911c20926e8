"""`lensmith check`: the settings, every file that they name, and DVC's remotes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from lensmith.files import names
from lensmith.judge import prompts
from lensmith.lab import layout, remotes
from lensmith.lab.layout import PARAMS
from lensmith.process import amounts
from lensmith.process.errors import InputError
from lensmith.settings import params_yaml, resolved
from lensmith.settings.sections import CorpusParams
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
    for line in dict.fromkeys(line for settings in present.values() for line in _counts(settings.corpus)):
        typer.echo(f"{file}: {line}")
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


def _counts(corpus: CorpusParams) -> Iterator[str]:
    """How many documents the files of a corpus hold, a line for each text. InputError where there are none."""
    texts = {f"corpus.also_heldout.{name}": files for name, files in corpus.also_heldout.items()}
    if corpus.kind in ("files", "sampled"):
        texts["corpus.files"] = corpus.files
    for where, patterns in texts.items():
        if files := names.files(patterns, where):
            n = text_files.count(files, where, corpus.text_column, corpus.sample_by, ENOUGH)
            if n == 0:
                raise InputError(
                    f"{where} ({', '.join(patterns)}): no document; is corpus.text_column {corpus.text_column!r} right?"
                )
            more = "at least " if n == ENOUGH else ""
            yield f"{where} ({', '.join(patterns)}): {more}{amounts.many(n, 'document')}"
