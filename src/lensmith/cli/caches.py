"""`lensmith cache`: the residual banks under LENSMITH_HOME."""

from typing import Annotated

import typer
from rich.console import Console

from lensmith.edge import cache
from lensmith.release import terminal, wording

app = typer.Typer(no_args_is_help=True)


@app.callback()
def main() -> None:
    """Residual banks: what a fit read from the frozen model. Any of them may go; the next fit captures it anew."""


@app.command("ls")
def ls() -> None:
    """List the banks, the one that was used last first."""
    found = cache.banks()
    if found:
        Console().print(terminal.banks(found))
    typer.echo(f"{cache.home()}: {len(found)} banks, {wording.size(sum(bank.size for bank in found))}")


@app.command()
def prune(
    keep: Annotated[float, typer.Option(min=0, help="GiB that may stay; 0 deletes every bank.")],
) -> None:
    """Delete the banks that were used longest ago, until no more than --keep GiB are left."""
    gone = cache.prune(int(keep * cache.GIB))
    for bank in gone:
        typer.echo(f"deleted {bank.key}, {wording.size(bank.size)}")
    left = cache.banks()
    typer.echo(f"{cache.home()}: {len(left)} banks left, {wording.size(sum(bank.size for bank in left))}")
