"""A release of a tiny model in a folder, packaged by the real code; without a fit, which most tests do not need."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lensmith.files import artifacts
from lensmith.hub import models
from lensmith.lens import precision
from lensmith.lens.lens import Lens
from lensmith.release import package
from lensmith.settings.sections import SourceParams
from lensmith.source.backbone import Backbone
from tests.support import records
from tests.support.scores import passing
from tests.support.settings import atlas
from tests.support.tiny import save_tiny

TINY = "local/atlas"  # the id of a model from a folder


def save_release(root: Path, *, n_layers: int = 4, better: bool = True, **tiny: Any) -> tuple[Path, Backbone, Lens]:
    """A model in root/model, its release in root/release. The lens is a bias that helps or, not `better`, noise."""
    model = save_tiny(root / "model", n_layers=n_layers, **tiny)
    source = SourceParams(
        repo=None,
        file=None,
        path=str(model),
        revision="main",
        dtype="float32",
        device="cpu",
        placement="single",
        trust_remote_code=False,
    )
    pin = models.pin_model(source)
    backbone = Backbone.load(source, pin)
    settings = atlas(source={"path": str(model)}, fit={"rank": 2})
    lens = _lens(Lens.start(settings.fit, n_layers, backbone.d_model), backbone, better=better)
    lens.save(root / "lens")
    record = records.provenance(
        n_layers,
        backbone.d_model,
        lens.rank,
        weights_sha256=artifacts.sha256_file(root / "lens" / "weights.safetensors"),
        model_id=TINY,
        model=pin.model_dump(mode="json"),
        head=backbone.head.fingerprint(),
        rounded_heads={dtype: head.data() for dtype, head in precision.rounded_heads(backbone).items()},
    )
    artifacts.write_json(root / "lens" / "provenance.json", record)
    artifacts.write_text(root / "lens" / "rank_curve.csv", "rank,kl_bits,closed_form_kl_bits\n1,3.0,4.0\n2,2.0,2.5\n")
    artifacts.write_json(root / "corpus" / "manifest.json", records.manifest(pin))
    passing().write(root / "judgement.json")
    places = (root / name for name in ("corpus", "lens", "judgement.json", "release"))
    package.build(settings, *places, licence={}, page="")
    return root / "release", backbone, lens


def _lens(start: Lens, backbone: Backbone, *, better: bool) -> Lens:
    """Of the middle layers, `c` moves the mean input of the head to where the model has it in the end."""
    tokens = torch.randint(backbone.d_vocab, (8, 16), generator=torch.Generator().manual_seed(0))
    resid = backbone.capture(tokens, torch.arange(16).expand_as(tokens)).flatten(0, 1)
    final = backbone.head.norm(resid[:, -1], start.n_layers)
    c, log_tau = start.c.clone(), start.log_tau.clone()
    for layer in range(1, start.n_layers):
        y = backbone.head.norm(resid[:, layer], layer, start.norm)
        noise = 9 * torch.randn(y.shape[1], generator=torch.manual_seed(layer))
        c[layer - 1] = (final - y).mean(0) if better else noise
    return replace(start, c=c, log_tau=log_tau, center=resid[:, 1:].mean(0))
