"""The verification of a packaged lens: loaded as a stranger loads it, and measured anew on text of the model's own.

    files      every sha256 of INDEX.json, the form of the tensors, the head of the model that provenance.json pins
    identity   after the last block the lens reads what the model says
    gate C     after the last block the norm lens, with one temperature, does too
    gain       over drawn layers and positions, the lens saves KL at the median

`judge/spot_check.py` says what exactly is measured. Torch is imported only where something is verified.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lensmith.hub import releases
from lensmith.process.errors import NumericError
from lensmith.settings.sections import SourceParams

if TYPE_CHECKING:
    from lensmith.judge.spot_check import SpotCheck

IDENTITY_BITS, GATE_C_BITS = 1e-4, 0.05  # at most; the plan's limits


def run(place: str | Path, model: str | None = None, revision: str | None = None) -> str:
    """Verify one lens of a release; what was measured, in a line.

    Raises:
        InputError: `place` is no release, or has no such lens.
        IntegrityError: a file, or the model, is another than the one that was recorded.
        NumericError: the lens does not do what a lens must.
        RemoteError: the Hub refused, or could not be reached.
    """
    from lensmith.judge import spot_check
    from lensmith.release import pretrained
    from lensmith.source.backbone import Backbone

    released = pretrained.find(place, model, revision)
    lens = released.load()  # refused, where it is no lens, before a model is fetched that it names
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
    backbone = Backbone.load(source, pin)
    released.check(lens, backbone)
    result = spot_check.measure(backbone, lens.to(backbone.device))
    judge(released.model_id, result)
    return _line(released.model_id, result)


def every(place: str, model: str | None, revision: str | None) -> Iterator[str]:
    """Verify one lens, or all of a release where `model` is None; a line for each."""
    index, revision = releases.index_of(place, revision)
    for model_id in [model] if model else sorted(index):
        yield run(place, model_id, revision)


def judge(model_id: str, result: "SpotCheck") -> None:
    """NumericError where a number is outside its limit, or none."""
    for name, bits, limit in (
        ("the largest KL after the last block (identity)", result.identity, IDENTITY_BITS),
        ("KL of the norm lens after the last block (gate C)", result.gate_c, GATE_C_BITS),
    ):
        if not bits <= limit:  # so that NaN fails
            raise NumericError(f"{model_id}: {name} is {bits:.3g} bits, must be at most {limit:g}")
    if not (math.isfinite(result.median_gain) and result.median_gain > 0):
        raise NumericError(
            f"{model_id}: the median KL that the lens saves is {result.median_gain:+.3g} bits, must be above 0"
        )


def _line(model_id: str, result: "SpotCheck") -> str:
    rows = ", ".join(f"{row}: {gain:+.2f}" for row, gain in result.gain.items())
    return (
        f"{model_id}: verified. KL saved at the median {result.median_gain:+.2f} bits (by layer {rows}); after the "
        f"last block identity {result.identity:.1e}, gate C {result.gate_c:.1e} bits"
    )
