"""`lensmith watch`: the curves of a model's fit while it runs."""

import time
from collections import Counter
from contextlib import suppress
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from lensmith.files import cache
from lensmith.lab import fits
from lensmith.process.stopping import Interrupted
from lensmith.report import terminal

app = typer.Typer()

EVERY = 1.0  # seconds


@app.command()
def watch(
    model: Annotated[str, typer.Argument(help="A model of params.yaml that is fit on this machine.")],
) -> None:
    """Draw the curves of a fit, KL in training and on held-out text, until it ends or Ctrl-C.

    Without a terminal each validation is a line. Where no fit of the model runs, the last one is shown.
    """
    folder, console = fits.newest(model), Console()
    printed = Counter[str]()
    # Ctrl-C is how one stops to watch; the fit knows nothing of it.
    with suppress(Interrupted), Live(console=console, auto_refresh=False) as live:
        while True:
            is_running = cache.is_held(folder)  # asked first, so that the last lines are read
            logs = fits.logs(folder)
            if console.is_terminal:
                live.update(terminal.fits(logs), refresh=True)
            else:
                for kind, rows in logs.items():
                    for row in rows[printed[kind] :]:
                        trained = f"training {float(row['train_kl_bits']):.3f}, " if row["train_kl_bits"] else ""
                        held_out = f"held out {float(row['val_kl_bits_mean']):.3f} bits"
                        typer.echo(f"{kind} step {row['step']}: {trained}{held_out}")
                    printed[kind] = len(rows)
            if not is_running:
                break
            time.sleep(EVERY)
