"""`lensmith fleet`: the lab's heavy stages on many machines."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lensmith.cli.report import report
from lensmith.lab import layout
from lensmith.process import amounts, stopping
from lensmith.process.errors import LensmithError

app = typer.Typer(no_args_is_help=True)

LOGS = Path(".lensmith/fleet")
NOTHING = "Nothing was started."


@app.callback()
def main() -> None:
    """Fit lenses on the machines of a Ray cluster. Nodes clone this lab, and push their results to DVC's remote."""


@app.command()
def run(
    *,
    models: Annotated[
        list[str] | None, typer.Option("--model", help="A model; again for more. All by default.")
    ] = None,
    address: Annotated[
        str, typer.Option(help="ray://HOST:10001; auto: one that runs here; local: start one.")
    ] = "auto",
    url: Annotated[str | None, typer.Option("--from", help="What nodes clone; by default the remote `origin`.")] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often lost work is placed again.")] = 2,
    capture_workers: Annotated[int, typer.Option(min=0, help="Tasks that capture a model's residuals at once.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run where.")] = False,
) -> None:
    """Run what is stale on the cluster, restore it here, and print the verdicts.

    Where models fail, the exit code is that of the first one.
    """
    from lensmith.fleet import board, head, jobs
    from lensmith.fleet.driver import Driver
    from lensmith.fleet.work import Outcome
    from lensmith.lab import one_model

    root, settings = Path.cwd(), layout.models(models or [], NOTHING)
    lab = head.lab_commit(url)
    head.check_remote(root)
    stale, failed = head.stale(root, list(settings), fetching=not dry_run), dict[str, Outcome]()
    one_model.check_alone({model: settings[model] for model in stale}, NOTHING)
    if stale:
        from lensmith.fleet import cluster

        with closing(cluster.RayCluster(address, lab)) as ray:
            needs = head.needs({model: settings[model] for model in stale}, ray.nodes())
            if dry_run:
                Console().print(board.placement(stale, needs, ray.nodes()))
                return
            workers = {m: capture_workers if jobs.captures(stale[m], settings[m]) else 0 for m in stale}
            phases = {model: jobs.phases(model, needs[model], workers[model]) for model in stale}
            shown = board.Board(phases, LOGS)
            try:
                with shown:
                    outcomes = Driver(ray, shown, retries).run(phases)
            except stopping.Interrupted as stopped:
                raise stopping.Interrupted(stopped.exit_code - 128, shown.summary()) from None
            failed = {model: outcome for model, outcome in outcomes.items() if outcome.code}
    elif dry_run:
        typer.echo("Nothing is stale.")
        return
    _restore(root, lab.commit, [model for model in settings if model not in failed], everything=not (models or failed))
    if failed:
        logs = ", ".join(f"{model} (log: {LOGS / model}.log)" for model in failed)
        error = LensmithError(
            f"{amounts.many(len(failed), 'model')} failed: {logs}. The results of the others are here."
        )
        error.exit_code = next(iter(failed.values())).exit_code
        raise error


@app.command()
def restore(
    models: Annotated[
        list[str] | None, typer.Option("--model", help="A model; again for more. All by default.")
    ] = None,
) -> None:
    """Bring here what nodes pushed, run the light stages, and print the verdicts. `fleet run` ends with this."""
    from lensmith.fleet import head

    root, settings = Path.cwd(), layout.models(models or [], NOTHING)
    _restore(root, head.lab_commit(str(root)).commit, list(settings), everything=not models)


@app.command()
def only(model: Annotated[str, typer.Argument(help="The model to keep.")]) -> None:
    """Make this clone a lab of one model, as nodes do with theirs: DVC's own time grows with the models of a lab."""
    from lensmith.lab import one_model

    one_model.keep_only(model)


def _restore(root: Path, commit: str, models: list[str], *, everything: bool) -> None:
    from lensmith.fleet import restore
    from lensmith.fleet.jobs import LabCommit

    if not models:
        return
    typer.echo("Restoring here with `dvc repro --pull`")
    for stage in restore.restore(root, LabCommit(str(root), commit), models, everything=everything):
        typer.echo(f"warning: {stage} ran on this machine: the remote does not have a node's result of it", err=True)
    report()
