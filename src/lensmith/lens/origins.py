"""Lenses that stage `fit` reads and does not fit: one that others published, or that of another entry of the lab."""

from pathlib import Path
from typing import Any

from lensmith.lens import published, transferred
from lensmith.lens.lens import Lens
from lensmith.settings.sections import ModelParams
from lensmith.source.backbone import Backbone
from lensmith.source.corpus import Manifest

KINDS = ("imported", "transferred")


def read(
    settings: ModelParams, manifest: Manifest, backbone: Backbone, code: dict[str, str], lens_dir: Path
) -> tuple[Lens | None, dict[str, Any]]:
    """The lens of an entry of KINDS, None for another kind; and where it comes from, by this fact's name in provenance.

    Raises as `published.load` and `transferred.load`.
    """
    lens: Lens | None = None
    origin: dict[str, Any] = {}
    if settings.fit.kind == "imported":
        lens, origin["imported"] = published.load(manifest.lens, backbone)
    elif settings.fit.kind == "transferred":
        lens, origin["transferred"] = transferred.load(settings, manifest, backbone, code, lens_dir)
    return lens, origin
