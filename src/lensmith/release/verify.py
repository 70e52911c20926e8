"""Verification of a packaged lens: loaded as a stranger loads it, and measured again on text that the model writes.

    files       every sha256 of INDEX.json, the form of the tensors, the head of the model that provenance.json pins
    last layer  there the lens reads what the model's head reads, and the norm lens what the model says
    gain        at drawn layers and positions, the lens saves KL at the median

`judge/spot_check.py` says what is measured. Torch is imported only where something is verified.
"""

from collections.abc import Iterator
from pathlib import Path

from lensmith.hub import models, releases
from lensmith.process.errors import NumericError
from lensmith.settings.sections import SourceParams


def run(release: str | Path, model: str | None = None, revision: str | None = None) -> str:
    """Verify one lens of a release; what was measured, in a line.

    Raises:
        InputError: `release` is no release, or has no such lens.
        IntegrityError: a file, or the model, is another than the one that was recorded.
        NumericError: the lens does not do what a lens must.
        RemoteError: the Hub refused, or could not be reached.
    """
    from lensmith.judge import spot_check
    from lensmith.release import pretrained
    from lensmith.source.backbone import Backbone

    released = pretrained.find(release, model, revision)
    lens = released.load()  # a damaged lens is refused before the model is fetched that it names
    pin = released.model
    source = SourceParams(
        repo=pin.repo,
        path=pin.path,
        revision=pin.commit or "main",
        dtype=released.dtype,  # the hash of the head is of these numbers
        device="auto",
        placement="single",
        trust_remote_code=False,  # a release may name a model, but not have its code run
    )
    models.download(pin)
    backbone = Backbone.load(source, pin)
    released.check(lens, backbone)
    measured = spot_check.measure(backbone, lens.to(backbone.device))
    if fault := measured.fault():
        raise NumericError(f"{released.model_id}: {fault}")
    return f"{released.model_id}: verified. {measured}"


def every(release: str, model: str | None, revision: str | None) -> Iterator[str]:
    """Verify one lens, or all of a release where `model` is None; a line for each."""
    index, revision = releases.index_of(release, revision)
    for model_id in [model] if model else sorted(index):
        yield run(release, model_id, revision)
