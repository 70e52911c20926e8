"""`lensmith add`, `fetch`, `publish`, `verify`, `list`, `download`: what comes into the lab, and what leaves it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lensmith.process.errors import LINE, InputError, shown
from lensmith.report import terminal
from lensmith.settings import params_yaml, sections

app = typer.Typer()

PARAMS = Path("params.yaml")
RELEASES = Path("release")
ARTIFACTS = Path("artifacts")

Place = Annotated[str, typer.Argument(help="A dataset repository on the Hub, org/name, or a folder with INDEX.json.")]
Revision = Annotated[str | None, typer.Option(help="A version such as v2026.01.31; the newest one where left out.")]


@app.command()
def add(
    repo: Annotated[str, typer.Argument(help="A model's Hub id, org/name.")],
    key: Annotated[str | None, typer.Option(help="Its name in this lab; made from the id where left out.")] = None,
) -> None:
    """Append a model to params.yaml: its key, its commit as it is now, its licence."""
    from lensmith.lab import catalogue
    from lensmith.settings import params_yaml

    typer.echo(params_yaml.add(PARAMS, catalogue.propose(repo, key)), nl=False)
    typer.echo(f"{PARAMS}: entry added. `dvc repro` fits its lens.")


@app.command()
def fetch(
    keys: Annotated[
        list[str] | None, typer.Argument(help="Models of params.yaml; all with a corpus by default.")
    ] = None,
) -> None:
    """Download the models that packed corpora belong to: the stages after prefetch run without a network.

    prefetch does it too; where DVC brought the corpus from another machine, prefetch did not run here.
    """
    from lensmith.hub import models as hub
    from lensmith.hub import published
    from lensmith.source.corpus import Manifest

    models = _models(keys or [])
    for key in keys or [key for key in models if (ARTIFACTS / key / "corpus").exists()]:
        manifest = Manifest.read(ARTIFACTS / key / "corpus")
        typer.echo(f"{key}: {hub.fetch_model(manifest.model)}")
        if manifest.lens is not None:
            typer.echo(f"{key}: {published.fetch_lens(manifest.lens)}")


@app.command()
def publish(
    key: Annotated[str, typer.Argument(help="A model of params.yaml.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent.")] = False,
) -> None:
    """Show what the stage `publish` would send: files, sizes, tag, and the change to INDEX.json."""
    models = _models([key])
    if not dry_run:
        raise InputError(f"`dvc repro publish@{key}` publishes; --dry-run shows what it would send. Nothing was sent.")
    from lensmith.release import publish as publishing

    for line in publishing.preview(models[key], RELEASES / key):
        typer.echo(shown(line, LINE))  # the index on the Hub may be others' too


def _models(keys: list[str]) -> dict[str, sections.ModelParams]:
    """Every model of the lab; InputError where one of `keys` is none."""
    models = params_yaml.read(PARAMS)
    for key in keys:
        if key not in models:
            raise InputError(f"{PARAMS}: no model {key}; there is {', '.join(models)}")
    return models


@app.command("verify")
def verify_(place: Place, model: Annotated[str | None, typer.Argument()] = None, revision: Revision = None) -> None:
    """Check a release's hashes, and measure its lenses again with the models that they belong to."""
    from lensmith.release import verify

    for line in verify.every(place, model, revision):
        typer.echo(shown(line, LINE))


@app.command("list")
def list_(place: Place, revision: Revision = None) -> None:
    """The lenses of a release."""
    from lensmith.hub import releases

    index, found = releases.index_of(place, revision)
    Console().print(terminal.lenses(index, f"{place}@{found}" if found else place))


@app.command()
def download(
    place: Annotated[str, typer.Argument(help="A dataset repository on the Hub, org/name.")],
    model: Annotated[str | None, typer.Argument(help="One model's lens; all where left out.")] = None,
    revision: Revision = None,
    to: Annotated[Path | None, typer.Option(help="A folder; the Hub's cache where left out.")] = None,
) -> None:
    """Download lenses, check every byte against INDEX.json, and print the folder."""
    from lensmith.hub import releases

    typer.echo(releases.download(place, model, revision, to))
