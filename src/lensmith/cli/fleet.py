"""`lensmith fleet`: the lab's heavy stages on many machines."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lensmith.cli import report
from lensmith.cli.releases import PARAMS
from lensmith.process import stopping
from lensmith.process.errors import InputError, RemoteError
from lensmith.settings import params_yaml
from lensmith.settings.sections import ModelParams

if TYPE_CHECKING:
    from lensmith.fleet.driver import Cluster
    from lensmith.fleet.jobs import Phases

app = typer.Typer(no_args_is_help=True)

LOGS = Path(".lensmith/fleet")


@app.callback()
def main() -> None:
    """Fit lenses on the machines of a Ray cluster. Nodes clone this lab, and push what they made to DVC's remote."""


@app.command()
def run(
    *,
    models: Annotated[list[str] | None, typer.Option(help="A model; again for more. All by default.")] = None,
    address: Annotated[
        str, typer.Option(help="ray://HOST:10001; auto: one that runs here; local: start one.")
    ] = "auto",
    url: Annotated[str | None, typer.Option("--from", help="What nodes clone; by default what `origin` is.")] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often lost work is placed again.")] = 2,
    capture_workers: Annotated[int, typer.Option(min=0, help="Tasks that capture a model's residuals at once.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run where.")] = False,
) -> None:
    """Run what is stale on the cluster, restore it here, and print the verdicts."""
    from lensmith.fleet import board, head, jobs

    root, settings = Path.cwd(), _chosen(models)
    tree = head.tree(url)
    head.check_remote(root)
    stale, failed = head.stale(root, list(settings), fetching=not dry_run), list[str]()
    if stale:
        from lensmith.fleet import cluster

        with closing(cluster.RayCluster(address, tree)) as ray:
            needs = head.needs({model: settings[model] for model in stale}, ray.machines())
            if dry_run:
                Console().print(board.placement(stale, needs, ray.machines()))
                return
            captures = {m: capture_workers if jobs.captures(stale[m], settings[m]) else 0 for m in stale}
            failed = _drive({m: jobs.phases(m, needs[m], captures[m]) for m in stale}, ray, retries)
    elif dry_run:
        typer.echo("Nothing is stale.")
        return
    _restore(root, tree.commit, [m for m in settings if m not in failed], everything=not models and not failed)
    if failed:
        logs = ", ".join(f"{model} (log: {LOGS / model}.log)" for model in failed)
        raise RemoteError(f"{len(failed)} models failed: {logs}. What the others made is here.")


@app.command()
def restore(
    models: Annotated[list[str] | None, typer.Option(help="A model; again for more. All by default.")] = None,
) -> None:
    """Have here what nodes pushed, run the light stages, and print the verdicts: what `fleet run` ends with."""
    from lensmith.fleet import head

    root, settings = Path.cwd(), _chosen(models)
    _restore(root, head.tree(str(root)).commit, list(settings), everything=not models)


@app.command()
def only(model: Annotated[str, typer.Argument(help="The model to keep.")]) -> None:
    """Make this clone a lab of one model, as nodes do with theirs: DVC's own time grows with the models of a lab."""
    from lensmith.lab import one_model

    one_model.narrow(model)


def _chosen(models: list[str] | None) -> dict[str, ModelParams]:
    settings = params_yaml.read(PARAMS)
    for model in models or ():
        if model not in settings:
            raise InputError(f"{PARAMS}: no model {model}; there is {', '.join(settings)}. Nothing was started.")
    return {model: settings[model] for model in models or settings}


def _drive(phases: "dict[str, Phases]", cluster: "Cluster", retries: int) -> list[str]:
    """Run the work of every model; those that failed."""
    from lensmith.fleet.board import Board
    from lensmith.fleet.driver import Driver

    board = Board(phases, LOGS)
    try:
        with board:
            outcomes = Driver(cluster, board, retries).run(phases)
    except stopping.Interrupted as stopped:
        raise stopping.Interrupted(stopped.exit_code - 128, board.kept()) from None
    return [model for model, outcome in outcomes.items() if outcome.code]


def _restore(root: Path, commit: str, models: list[str], *, everything: bool) -> None:
    from lensmith.fleet import restore
    from lensmith.fleet.jobs import Tree

    if not models:
        return
    typer.echo("Restoring here with `dvc repro --pull`")
    for stage in restore.restore(root, Tree(str(root), commit), models, everything=everything):
        typer.echo(f"warning: {stage} ran on this machine: what a node made of it is not in the remote", err=True)
    report.show()
