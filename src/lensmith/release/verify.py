"""Verification of a packaged lens: loaded as a stranger loads it, and measured again on text that the model writes.

    files       every sha256 of INDEX.json, the form of the tensors, the head of the model that provenance.json pins
    last layer  there the lens reads what the model's head reads, and the norm lens what the model says
    gain        over all other layers, at drawn positions, the lens saves KL at the median

`judge/spot_check.py` says what is measured. Torch is imported only where something is verified.
"""

from collections.abc import Iterator
from pathlib import Path

from lensmith.hub import releases
from lensmith.process import wording
from lensmith.process.errors import NumericError


def run(release: str | Path, model: str | None = None, revision: str | None = None) -> list[str]:
    """Verify one lens of a release; what was measured, and beside it what the release records, in lines.

    Raises:
        InputError: `release` is no release, or has no such lens.
        IntegrityError: a file, or the model, is another than the one that was recorded.
        NumericError: the lens does not do what a lens must.
        RemoteError: the Hub refused, or could not be reached.
    """
    from lensmith.judge import spot_check
    from lensmith.release import pretrained

    released = pretrained.find(release, model, revision)
    lens = released.load()  # a damaged lens is refused before the model is fetched that it names
    backbone = released.load_model()
    pretrained.check_model(lens, backbone)
    measured = spot_check.measure(backbone, lens.to(backbone.device))
    if fault := measured.fault():
        raise NumericError(f"{released.model_id}: {fault}")
    recorded = ", ".join(
        f"{layer}: {saved.text(wording.signed)}" for layer, saved in sorted(released.recorded().items())
    )
    return [
        f"{released.model_id}: verified: every hash, the model, and the lens measured again",
        *(f"  {line}" for line in measured.lines()),
        f"  recorded in the release, the same on held-out text: {f'by layer {recorded}' if recorded else 'nothing'}",
    ]


def every(release: str, model: str | None, revision: str | None) -> Iterator[str]:
    """Verify one lens, or all of a release where `model` is None; its lines."""
    index, revision = releases.index_of(release, revision)
    for model_id in [model] if model else sorted(index):
        yield from run(release, model_id, revision)
