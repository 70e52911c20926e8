"""`lensmith read`: texts through a lens, into one parquet file."""

from pathlib import Path
from typing import Annotated

import typer

from lensmith.cli.releases import Revision

app = typer.Typer()


@app.command()
def read(
    model: Annotated[str, typer.Argument(help="A model of params.yaml, a folder with INDEX.json, or org/name.")],
    *,
    texts: Annotated[list[str], typer.Option("--texts", help="A file of texts, or a pattern; again for more.")],
    out: Annotated[Path, typer.Option(help="The parquet file.")],
    column: Annotated[str, typer.Option(help="The column or key that holds text, or chats.")] = "text",
    lens: Annotated[str, typer.Option(help="norm, tuned, or both.")] = "norm,tuned",
    positions: Annotated[str, typer.Option(help="all, or last: the last one of each text.")] = "all",
    top_k: Annotated[int, typer.Option(help="How many of the likeliest tokens are written.")] = 5,
    revision: Revision = None,
) -> None:
    """Read texts through a lens: entropy, KL, ranks, top tokens and depths at every layer.

    Texts are .jsonl, .csv, .parquet or .txt, as those of a corpus. A run that was stopped goes on with the same
    command.
    """
    from lensmith.read import dataset

    # The command is checked before the model is loaded.
    request = dataset.Request(tuple(texts), column, tuple(lens.split(",")), positions, top_k)
    counts = dataset.write(out, dataset.Subject.load(model, revision), request)
    skipped = ", ".join(f"{n} {reason}" for reason, n in counts.items() if reason != "read")
    typer.echo(f"{out}: {counts['read']} texts{f'; left out: {skipped}' if skipped else ''}")
