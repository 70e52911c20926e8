"""The lens of another entry of the lab, for a model that it was not fit to: its translators are taken as they are.

    artifacts/<entry>/lens    what stage `fit` wrote for that entry, sealed

Everything is checked but the head, which is another one.
"""

from dataclasses import replace
from pathlib import Path

from lensmith.files import seals
from lensmith.lens.lens import Lens
from lensmith.lens.provenance import PROVENANCE, Provenance, TransferRecord
from lensmith.process.errors import InputError
from lensmith.settings.sections import ModelParams
from lensmith.source.backbone import Backbone
from lensmith.source.corpus import Manifest

UNFIT = "Nothing was fit."


def load(
    settings: ModelParams, manifest: Manifest, backbone: Backbone, code: dict[str, str], lens_dir: Path
) -> tuple[Lens, TransferRecord]:
    """The lens of `settings.transferred`, and where it comes from, for its provenance.

    Args:
        manifest, backbone: of the model that the lens is to be judged on.
        code: fingerprint of stage `fit`.
        lens_dir: folder for this model's lens; that of the other entry lies beside it.

    Raises:
        InputError: the other entry has no lens, one of other settings or code, or one of a model of another form.
        IntegrityError: a file of it is missing, damaged or changed.
    """
    entry = settings.transferred.entry
    assert entry is not None  # by the kind
    folder = lens_dir.parents[1] / entry / lens_dir.name
    again = f"Run `dvc repro fit@{entry}` first. {UNFIT}"
    if not (folder / seals.SUMS).exists():
        raise InputError(f"{folder}: holds no lens of models.{entry}. {again}")
    seals.check(folder)
    record, lens = Provenance.read(folder / PROVENANCE), Lens.load(folder)
    if record.settings_sha256 != settings.transferred.inputs.get(entry):
        raise InputError(f"{folder}: was fit with other settings than models.{entry} has now. {again}")
    if record.code != code:
        raise InputError(f"{folder}: was fit by other code than there is now. {again}")
    forms = {
        "n_layers": (lens.n_layers, backbone.n_layers),
        "d_model": (lens.d_model, backbone.d_model),
        "tokens of the tokenizer": (record.dataset.bos.vocab_size, manifest.tokenizer.vocab_size),
        "norm": (lens.norm, settings.fit.norm),
    }
    for name, (theirs, ours) in forms.items():
        if theirs != ours:
            raise InputError(
                f"models.{settings.key}.transferred.from is {entry}, whose {name} is {theirs}; must be that of "
                f"models.{settings.key}, {ours}. {UNFIT}"
            )
    origin = TransferRecord(
        entry=entry,
        kind=record.kind,
        model_id=record.model_id,
        model=record.model,
        head=record.head,
        weights_sha256=record.weights_sha256,
    )
    return replace(lens, kind="transferred"), origin
