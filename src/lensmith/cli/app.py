"""The command `lensmith`: what DVC's own commands do not do.

Here is what looks at this lab; `releases`, `upkeep`, `caches` and `fleet` hold the other commands. What is slow to
import waits in a function: a command answers at once.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import lensmith
from lensmith.cli import cache, doctor, fleet, releases
from lensmith.cli import report as verdicts
from lensmith.cli.releases import ARTIFACTS, PARAMS
from lensmith.files import seals
from lensmith.judge import prompts
from lensmith.lab import remotes
from lensmith.process import command
from lensmith.process.errors import InputError, IntegrityError
from lensmith.settings import params_yaml, resolved, sections

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
app.add_typer(releases.app)
app.add_typer(doctor.app)
app.add_typer(cache.app, name="cache")
app.add_typer(fleet.app, name="fleet")

RESOLVED = Path("resolved")
COMPARISON = Path("plots/compare.html")
PIPED = 140  # columns of a table that goes into a file


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lensmith {lensmith.__version__}")
        raise typer.Exit


@app.callback()
def main(
    *,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Declarative tuned lenses. `dvc repro` builds them; these commands look at them."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The settings to check.")] = PARAMS,
    *,
    provenance: Annotated[bool, typer.Option(help="Also compute again what each lens says about itself.")] = False,
) -> None:
    """Check params.yaml, every file that it names, and DVC's remotes, without running anything."""
    models = params_yaml.read(file)
    resolved.with_inputs(models, Path.cwd())
    for files in dict.fromkeys(tuple(settings.suite.files) for settings in models.values()):
        prompts.read_suite(files)
    for files in dict.fromkeys(tuple(settings.sweep.probes) for settings in models.values()):
        prompts.read_probes(files)
    places = remotes.check(Path.cwd())
    typer.echo(f"{file}: {len(models)} models, every setting and every file is valid: {', '.join(models)}")
    if places:
        typer.echo(f".dvc/config: {len(places)} remotes, each verifies what it downloads: {', '.join(places)}")
    if provenance:
        _check_provenance(list(models))


def _check_provenance(keys: list[str]) -> None:
    from lensmith.lens import audit  # here, so that every other command starts without torch

    fitted = [key for key in keys if (ARTIFACTS / key / "lens" / "provenance.json").exists()]
    if not fitted:
        raise InputError(f"{ARTIFACTS}: holds no lens yet. `dvc repro` fits them, `dvc pull` fetches them.")
    n_wrong = 0
    for key in fitted:
        seals.check(ARTIFACTS / key / "corpus", ARTIFACTS / key / "lens")
        settings, code = sections.read_resolved(RESOLVED / "models" / f"{key}.json"), RESOLVED / "code" / "fit.json"
        found = audit.audit(settings, code, ARTIFACTS / key / "corpus", ARTIFACTS / key / "lens")
        for line in found.wrong:
            typer.echo(f"error: {line}", err=True)
        n_wrong += len(found.wrong)
        typer.echo(f"{key}: {found.right} facts are right, {len(found.wrong)} wrong")
        typer.echo(f"{key}: no artifact holds these, they were not checked: {', '.join(found.not_checked)}")
    if n_wrong:
        raise IntegrityError(f"{ARTIFACTS}: {n_wrong} recorded facts are wrong. Nothing was changed.")


@app.command()
def report() -> None:
    """Print the verdicts of all models, and where the report page is."""
    verdicts.show()


@app.command()
def compare(
    model: Annotated[list[str] | None, typer.Option("--model", help="A model; again for more. All by default.")] = None,
    kpi: Annotated[list[str] | None, typer.Option("--kpi", help="A metric to compare; again for more.")] = None,
    plot: Annotated[str | None, typer.Option(help="Draw the KPIs over this setting, such as rank.")] = None,
    rev: Annotated[str, typer.Option(help="The commit that the experiments began from.")] = "HEAD",
    out: Annotated[Path, typer.Option(help="The page that --plot writes; <model> is put in its name.")] = COMPARISON,
) -> None:
    """Print the variants of `dvc exp run`: the settings and KPIs that differ. With --plot, draw one curve."""
    from lensmith.lab import experiments
    from lensmith.report import compare as comparing

    found = experiments.read(Path.cwd(), rev)
    models = model or sorted({name for one in found.variants for name in one.metrics})
    console = Console() if sys.stdout.isatty() else Console(width=PIPED)
    for comparison in [comparing.compare(found.variants, name, kpi or ()) for name in models]:
        if plot is None and (comparison.settings or comparison.kpis):
            console.print(comparing.table(comparison))
        # Variants of one model say nothing about the others: those are left out unless they were asked for.
        elif plot is not None and (model or comparing.settings_named(comparison, plot)):
            page = out.with_stem(f"{out.stem}-{comparison.model}")
            comparing.curve(comparison, plot, kpi or ()).write_html(page, include_plotlyjs=True)
            typer.echo(f"{comparison.model}: {page.resolve()}")
    if found.unfinished:
        typer.echo(f"{found.unfinished} more: queued, running or failed. `dvc queue status` lists them.")


def run() -> None:
    """The entry point of the command line."""
    command.run(_answer)


def _answer() -> None:
    """The app, whose complaints about arguments are errors like all others: one line."""
    try:
        app(standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except typer.TyperException as error:
        message, context = error.format_message(), getattr(error, "ctx", None)
        if not message:  # no arguments at all: the help was printed
            sys.exit(InputError.exit_code)
        name = context.command_path if context else "lensmith"
        raise InputError(f"{name}: {message.rstrip('.')}. `{name} --help` lists what there is.") from None
