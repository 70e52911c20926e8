"""`lensmith diff`: two models on the same texts, each read by its own lens."""

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from lensmith.process.errors import LINE, shown

app = typer.Typer()


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help="A model of params.yaml, a folder with INDEX.json, or org/name.")],
    b: Annotated[str, typer.Argument(help="Another, with as many layers and the same tokens.")],
    *,
    texts: Annotated[list[str], typer.Option("--texts", help="A file of texts, or a pattern; again for more.")],
    out: Annotated[
        Path | None, typer.Option(help="A folder for page and tables; without it they are not kept.")
    ] = None,
    column: Annotated[str, typer.Option(help="The column or key that holds text, or chats.")] = "text",
    top_k: Annotated[int, typer.Option(help="How many of the likeliest tokens are written.")] = 5,
) -> None:
    """Compare two models layer by layer on the same texts: KL, depths, and the positions where they differ most.

    Texts are .jsonl, .csv, .parquet or .txt, as those of a corpus. A run that was stopped goes on with the same
    command.
    """
    from lensmith.read import diff as comparing
    from lensmith.read.dataset import Subject
    from lensmith.report import difference, terminal

    pair = comparing.Pair((a, b), (Subject.load(a), Subject.load(b)))
    with nullcontext(out) if out else tempfile.TemporaryDirectory() as folder:
        found = comparing.write(Path(folder), pair, texts, column, top_k)
    for table in difference.terminal_tables(found):
        terminal.console().print(table)
    left_out = f"; left out: {found.skipped}" if found.skipped else ""
    typer.echo(shown(f"{found.n_positions} positions of {found.counts['read']} texts{left_out}", LINE))
    if out is not None:
        typer.echo(f"Page: {(out / comparing.PAGE).resolve()}")
