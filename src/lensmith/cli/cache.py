"""`lensmith cache`: what is under LENSMITH_HOME."""

from typing import Annotated

import typer
from rich.console import Console

from lensmith.files import cache
from lensmith.process import amounts
from lensmith.report import terminal

app = typer.Typer(no_args_is_help=True)


@app.callback()
def main() -> None:
    """Residual banks and checkpoints of fits. Any of them may go: the next fit captures, or begins, anew."""


@app.command("ls")
def ls() -> None:
    """List what is there, the entry that was used last first."""
    found = cache.entries()
    if found:
        Console().print(terminal.kept(found))
    _say(found, "entries")


@app.command()
def prune(
    keep: Annotated[float, typer.Option(min=0, help="GiB that may stay; 0 deletes all.")],
) -> None:
    """Delete what was used longest ago, until no more than --keep GiB are left. What is in use stays."""
    for entry in cache.prune(int(keep * amounts.GIB)):
        typer.echo(f"deleted {entry.kind} {entry.key}, {amounts.size(entry.size)}")
    _say(cache.entries(), "entries left")


def _say(found: list[cache.Kept], what: str) -> None:
    typer.echo(f"{cache.home()}: {len(found)} {what}, {amounts.size(sum(entry.size for entry in found))}")
