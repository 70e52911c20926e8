"""`lensmith add`, `fetch`: models into the lab, and their weights onto this machine."""

from typing import Annotated

import typer

from lensmith.lab import layout
from lensmith.lab.layout import ARTIFACTS, PARAMS

app = typer.Typer()


@app.command()
def add(
    model: Annotated[str, typer.Argument(help="A model of the Hub, org/name, or a folder, or a GGUF file.")],
    key: Annotated[str | None, typer.Option(help="Its name in this lab; made from the model's where left out.")] = None,
    file: Annotated[str | None, typer.Option(help="The GGUF file of the repository that is the model.")] = None,
) -> None:
    """Append a model to params.yaml, and make its lens an artifact of DVC in lenses/.

    The Hub is asked for its commit and licence.
    """
    from lensmith.lab import add as adding

    typer.echo(adding.add(PARAMS, model, key, file), nl=False)
    typer.echo(f"{PARAMS}: entry added. `dvc repro` fits its lens.")


@app.command()
def fetch(
    keys: Annotated[
        list[str] | None, typer.Argument(help="Models of params.yaml; all with a corpus by default.")
    ] = None,
) -> None:
    """Download the weights for corpora that are here. Later stages have no network.

    Stage prefetch does it too. Run this where DVC brought the corpus from another machine.
    """
    from lensmith.hub import models as hub
    from lensmith.hub import published
    from lensmith.source.corpus import Manifest

    for key in [key for key in layout.models(keys or []) if keys or (ARTIFACTS / key / "corpus").exists()]:
        manifest = Manifest.read(ARTIFACTS / key / "corpus")
        typer.echo(f"{key}: {hub.fetch_model(manifest.model)}")
        if manifest.lens is not None:
            typer.echo(f"{key}: {published.fetch_lens(manifest.lens)}")
