"""`lensmith verify`: whether a lens is what it says it is.

A word without a slash is a model of this lab: the provenance of its lens is computed again from its artifacts. A folder
or a repository is a release: every hash is compared, and each lens is measured again with its model.
"""

from typing import Annotated

import typer

from lensmith.cli.releases import Revision
from lensmith.files import seals
from lensmith.lab import layout
from lensmith.lab.layout import ARTIFACTS, RESOLVED
from lensmith.process.errors import LINE, InputError, IntegrityError, shown
from lensmith.process.progress import track
from lensmith.settings import params_yaml, sections

app = typer.Typer()


@app.command()
def verify(
    lens: Annotated[
        str | None,
        typer.Argument(help="A model of params.yaml, a folder, or a repository org/name; this lab where left out."),
    ] = None,
    model: Annotated[str | None, typer.Argument(help="One model of a release; all where left out.")] = None,
    revision: Revision = None,
) -> None:
    """Verify lenses: of this lab, that their provenance is true; of a release, its hashes and what its lenses do.

    The provenance of a lens is computed again from its artifacts.
    A released lens is measured again with its model.
    """
    if lens is None or params_yaml.MODEL_KEY.fullmatch(lens):
        verify_provenance(lens)
        return
    from lensmith.release import verify as releases

    for line in releases.every(lens, model, revision):
        typer.echo(shown(line, LINE))


def verify_provenance(key: str | None) -> None:
    """Compute the provenance of one lens of this lab again, or of all, and print what is wrong."""
    fitted = [
        key for key in layout.models([key] if key else []) if (ARTIFACTS / key / "lens" / "provenance.json").exists()
    ]
    if not fitted:
        folder = ARTIFACTS / (key or "")
        raise InputError(f"{folder}: holds no lens yet. `dvc repro` fits it, `dvc pull` fetches it.")
    from lensmith.lens import audit  # here, so that nothing else waits for torch

    n_wrong = 0
    for name in track(fitted, "verify", "lens"):
        corpus, folder = ARTIFACTS / name / "corpus", ARTIFACTS / name / "lens"
        seals.check(corpus, folder)
        settings = sections.read_resolved(RESOLVED / "models" / f"{name}.json")
        audited = audit.audit(settings, RESOLVED / "code" / "fit.json", corpus, folder)
        for line in audited.wrong:
            typer.echo(f"error: {line}", err=True)
        n_wrong += len(audited.wrong)
        typer.echo(f"{name}: {audited.right} facts are right, {len(audited.wrong)} wrong")
        typer.echo(f"{name}: no artifact holds these, they were not checked: {', '.join(audited.not_checked)}")
    if n_wrong:
        raise IntegrityError(f"{ARTIFACTS}: {n_wrong} recorded facts are wrong. Nothing was changed.")
