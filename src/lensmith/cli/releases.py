"""`lensmith publish`, `list`, `download`: lenses to the Hub and from it."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lensmith.files import artifacts
from lensmith.lab import layout
from lensmith.lab.layout import PARAMS, RELEASES
from lensmith.process.errors import LINE, InputError, shown
from lensmith.report import terminal

app = typer.Typer()

Revision = Annotated[str | None, typer.Option(help="A version such as v2026.01.31; the newest one where left out.")]
Release = Annotated[str, typer.Argument(help="A dataset repository on the Hub, org/name, or a folder with INDEX.json.")]


@app.command()
def publish(
    key: Annotated[str, typer.Argument(help="A model of params.yaml.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be sent.")] = False,
) -> None:
    """Send a model's lens to its publish.repo, by `dvc repro publish@KEY`. What is stale runs first.

    The exit code is that of the stage that failed.

    --dry-run shows files, sizes, tag, the first reason to refuse and the change to INDEX.json, of the package as it is.
    It sends nothing, and says what it could not look at without publish.repo or a network.
    """
    settings = layout.models([key], "Nothing was sent.")[key]
    if dry_run:
        from lensmith.release import publish as publishing

        for line in publishing.preview(settings, RELEASES / key):
            typer.echo(shown(line, LINE))  # others may have written the index on the Hub
        return
    if settings.publish.repo is None:
        raise InputError(f"{PARAMS}: models.{key}.publish.repo is not set, so nothing would be sent")
    # DVC runs the stage: what it sent is then the output that DVC has recorded.
    from lensmith.fleet import work

    outcome = work.execute(("dvc", "repro", f"publish@{key}"), Path.cwd(), None, typer.echo)
    if outcome.code:
        sys.exit(outcome.exit_code)
    receipt = artifacts.read_json(RELEASES / key / "receipt.json")
    typer.echo(f"{key}: {receipt['repo']}@{receipt['tag']}, commit {receipt['commit']}")


@app.command("list")
def list_(release: Release, revision: Revision = None) -> None:
    """Print the lenses of a release."""
    from lensmith.hub import releases

    index, version = releases.index_of(release, revision)
    Console().print(terminal.lenses(index, f"{release}@{version}" if version else release))


@app.command()
def download(
    repo: Annotated[str, typer.Argument(help="A dataset repository on the Hub, org/name.")],
    model: Annotated[str | None, typer.Argument(help="One model's lens; all where left out.")] = None,
    revision: Revision = None,
    to: Annotated[Path | None, typer.Option(help="A folder; the Hub's cache where left out.")] = None,
) -> None:
    """Download lenses, check every byte against INDEX.json, and print the folder."""
    from lensmith.hub import releases

    typer.echo(releases.download(repo, model, revision, to))
