"""`lensmith compare-lenses`: norm, tuned, Jacobian and imported lenses side by side."""

import json
from typing import Annotated

import typer

from lensmith.judge import side_by_side
from lensmith.judge.judgement import Judgement
from lensmith.lab import layout
from lensmith.report import terminal

app = typer.Typer()


@app.command()
def compare_lenses(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Entries of params.yaml.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print every number with its interval as JSON.")] = False,
) -> None:
    """Print the lenses of entries side by side: the KL that each leaves, and what it holds of intermediates."""
    layout.models(keys, "Nothing was compared.")
    rows = list(side_by_side.rows((key, Judgement.read(layout.JUDGEMENTS / f"{key}.json")) for key in keys))
    if as_json:
        data = [
            {**row._asdict(), "numbers": {name: number.data() for name, number in row.numbers.items()}} for row in rows
        ]
        typer.echo(json.dumps(data, indent=1))
    else:
        terminal.console().print(terminal.side_by_side(rows))
