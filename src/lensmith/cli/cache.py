"""`lensmith cache`: what is under LENSMITH_HOME."""

from typing import Annotated

import typer
from rich.console import Console

from lensmith.files import cache
from lensmith.process import amounts, environment
from lensmith.report import terminal

app = typer.Typer(no_args_is_help=True)


@app.callback()
def main() -> None:
    """Residual banks, checkpoints of fits, and clones of the fleet. Delete any: the next fit makes what it needs."""


@app.command("ls")
def list_() -> None:
    """List the entries, most recently used first."""
    entries = cache.entries()
    if entries:
        Console().print(terminal.cache_entries(entries))
    _print_sum(entries, "")


@app.command()
def prune(
    keep: Annotated[float, typer.Option(min=0, help="GiB that may stay; 0 deletes all.")],
) -> None:
    """Keep the most recently used entries that fit into --keep GiB, delete the older ones. An entry in use stays."""
    for entry in cache.prune(int(keep * amounts.GIB)):
        typer.echo(f"deleted {entry.kind} {entry.key}, {amounts.size(entry.size)}")
    _print_sum(cache.entries(), " left")


def _print_sum(entries: list[cache.CacheEntry], left: str) -> None:
    number, size = amounts.many(len(entries), "entry", "entries"), amounts.size(sum(entry.size for entry in entries))
    typer.echo(f"{environment.home()}: {number}{left}, {size}")
