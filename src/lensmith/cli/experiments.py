"""`lensmith compare`: the variants that `dvc exp run` made, side by side."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

COMPARISON = Path("plots/compare.html")


@app.command()
def compare(
    model: Annotated[list[str] | None, typer.Option("--model", help="A model; again for more. All by default.")] = None,
    kpi: Annotated[
        list[str] | None, typer.Option("--kpi", help="A key of metrics/ or of a judgement's kpis; again for more.")
    ] = None,
    plot: Annotated[str | None, typer.Option(help="Draw the KPIs over this setting, such as rank.")] = None,
    rev: Annotated[str, typer.Option(help="The commit that the experiments began from.")] = "HEAD",
    out: Annotated[Path, typer.Option(help="The page that --plot writes; the model is put in its name.")] = COMPARISON,
) -> None:
    """Print the variants of `dvc exp run`: the settings and KPIs that differ. With --plot, draw one curve.

    A second table compares held-out KL with that of the first variant, in pairs of the same sequences.
    """
    from lensmith.lab import compare as comparing
    from lensmith.lab import experiments
    from lensmith.report import terminal

    lab = experiments.read(Path.cwd(), rev)
    models = model or sorted({name for variant in lab.variants for name in variant.metrics})
    console = terminal.console()
    n_shown = 0
    for comparison in [comparing.compare(lab.variants, name, kpi or ()) for name in models]:
        # Variants of one model say nothing about the others: those are left out unless they were asked for.
        named = model or (plot is not None and comparing.settings_named(comparison, plot))
        if not (comparison.settings or comparison.kpis if plot is None else named):
            continue
        n_shown += 1
        if plot is None:
            console.print(comparing.table(comparison))
            if (differences := comparing.differences(comparison, kpi or ())) is not None:
                console.print(differences)
        else:
            page = out.with_stem(f"{out.stem}-{comparison.model}")
            comparing.curve(comparison, plot, kpi or ()).write_html(page, include_plotlyjs=True)
            typer.echo(f"{comparison.model}: {page.resolve()}")
    if not n_shown:
        names = ", ".join(variant.name for variant in lab.variants) or "none"
        typer.echo(f"Nothing differs between the finished variants ({names}). `dvc exp run -S ...` makes another.")
    if lab.unfinished:
        states = ", ".join(f"{count} {state}" for state, count in lab.unfinished.items())
        typer.echo(f"Not finished: {states}. `dvc queue status` lists them, `lensmith doctor` clears what was killed.")
