"""The command `lensmith`: what DVC's own commands do not do."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lensmith import command
from lensmith.edge import params, params_file, resolved
from lensmith.errors import InputError, IntegrityError
from lensmith.judge import prompts
from lensmith.release import scorecard, terminal

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)

PARAMS = Path("params.yaml")
METRICS = Path("metrics")
ARTIFACTS = Path("artifacts")
RESOLVED = Path("resolved")
PAGE = Path("plots/report.html")
RELEASES = Path("release")

Place = Annotated[str, typer.Argument(help="A dataset repository on the Hub, org/name, or a folder with INDEX.json.")]
Revision = Annotated[str | None, typer.Option(help="A version such as v2026.01.31; the newest one where left out.")]


@app.callback()
def main() -> None:
    """Declarative tuned lenses. `dvc repro` builds them; these commands look at them."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The settings to check.")] = PARAMS,
    *,
    provenance: Annotated[bool, typer.Option(help="Also compute again what each lens says about itself.")] = False,
) -> None:
    """Check params.yaml and every file that it names, without running anything."""
    models = params_file.read(file)
    for settings in models.values():
        resolved.with_inputs(settings, Path.cwd())
        prompts.read_suite(settings.suite.files)
        prompts.read_probes(settings.sweep.probes)
    typer.echo(f"{file}: {len(models)} models, every setting and every file is valid: {', '.join(models)}")
    if provenance:
        _check_provenance(list(models))


def _check_provenance(keys: list[str]) -> None:
    from lensmith.lens import audit  # here, so that every other command starts without torch

    fitted = [key for key in keys if (ARTIFACTS / key / "lens" / "provenance.json").exists()]
    if not fitted:
        raise InputError(f"{ARTIFACTS}: holds no lens yet. `dvc repro` fits them, `dvc pull` fetches them.")
    n_wrong = 0
    for key in fitted:
        settings, code = params.read_resolved(RESOLVED / "models" / f"{key}.json"), RESOLVED / "code" / "fit.json"
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
    models = params_file.read(PARAMS)
    judged = [key for key in models if (METRICS / f"{key}.json").exists()]
    if not judged:
        raise InputError(f"{METRICS}: holds no metrics yet. `dvc repro` writes them.")
    Console().print(terminal.verdicts((key, scorecard.read(METRICS / f"{key}.json", models[key])) for key in judged))
    typer.echo(f"Report: {PAGE.resolve()}")


@app.command()
def add(
    repo: Annotated[str, typer.Argument(help="A model's Hub id, org/name.")],
    key: Annotated[str | None, typer.Option(help="Its name in this lab; made from the id where left out.")] = None,
) -> None:
    """Append a model to params.yaml: its key, its commit as it is now, its licence."""
    from lensmith.edge import catalogue, params_edit

    typer.echo(params_edit.add(PARAMS, catalogue.propose(repo, key)), nl=False)
    typer.echo(f"{PARAMS}: entry added. `dvc repro` fits its lens.")


@app.command()
def publish(
    key: Annotated[str, typer.Argument(help="A model of params.yaml.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent.")] = False,
) -> None:
    """Show what the stage `publish` would send: files, sizes, tag, and the change to INDEX.json."""
    models = params_file.read(PARAMS)
    if key not in models:
        raise InputError(f"{PARAMS}: no model {key}; there is {', '.join(models)}")
    if not dry_run:
        raise InputError(f"`dvc repro publish@{key}` publishes; --dry-run shows what it would send. Nothing was sent.")
    from lensmith.release import publishing

    for line in publishing.preview(models[key], RELEASES / key):
        typer.echo(line)


@app.command("verify")
def verify_(place: Place, model: Annotated[str | None, typer.Argument()] = None, revision: Revision = None) -> None:
    """Check a release's hashes, and measure its lenses again with the models that they belong to."""
    from lensmith.release import verify

    for line in verify.every(place, model, revision):
        typer.echo(line)


@app.command("list")
def list_(place: Place, revision: Revision = None) -> None:
    """The lenses of a release."""
    from lensmith.edge import hub_lenses

    index, found = hub_lenses.index_of(place, revision)
    Console().print(terminal.lenses(index, f"{place}@{found}" if found else place))


@app.command()
def download(
    place: Annotated[str, typer.Argument(help="A dataset repository on the Hub, org/name.")],
    model: Annotated[str | None, typer.Argument(help="One model's lens; all where left out.")] = None,
    revision: Revision = None,
    to: Annotated[Path | None, typer.Option(help="A folder; the Hub's cache where left out.")] = None,
) -> None:
    """Download lenses, check every byte against INDEX.json, and print the folder."""
    from lensmith.edge import hub_lenses

    typer.echo(hub_lenses.download(place, model, revision, to))


def run() -> None:
    """The entry point of the command line."""
    command.run(app)
