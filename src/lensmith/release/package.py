"""The folder that is published: the lens, what it says about itself, and a hash of every file.

    <out>/tuned_lenses/<org>/<name>/   weights.safetensors  weights.pt  precond.safetensors (where the lens needs one)
                                       provenance.json  README.md  NOTICE  report.html
    <out>/LICENSES/                    texts of the lens's licence, and below <org>/<name>/ of the base model's
    <out>/INDEX.json                   what there is and its sha256, by model id
    <out>/README.md                    the card of the whole repository
    <out>/receipt.json                 every file, and where it was sent to

Only the main lens goes out: the lenses that it is compared with stay in the lab. Nothing here sends anything. The same
inputs give the same bytes, whenever and wherever they are packaged.
"""

import math
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensmith.files import artifacts
from lensmith.hub.index import INDEX, MODEL_ID
from lensmith.judge.gates import LETTERS
from lensmith.judge.judgement import Judgement
from lensmith.lens import lens_file
from lensmith.lens.lens_file import WEIGHTS
from lensmith.process import wording
from lensmith.process.errors import InputError, IntegrityError
from lensmith.settings.sections import ModelParams

SCHEMA = 2
EXPORT = "weights.pt"
PRECOND = "precond.safetensors"
RECEIPT = "receipt.json"
PAGE = "report.html"
LICENCE_TEXTS = ("MIT",)

# Without one of these nobody could say what a lens belongs to or how to fit it again.
REQUIRED = {
    "provenance.json": (
        "schema", "model_id", "model_key", "model", "head", "proof", "seed", "dataset", "budget", "batching",
        "capacity", "optim", "regularizers", "preconditioner", "val_kl_bits@{25,50,75}%", "measured", "norm", "kind",
        "versions", "code", "weights_sha256",
    ),
    "manifest.json": ("kind", "model", "tokenizer", "content_hash", "tokens_sha256", "heldout_sha256"),
}  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """What a release is made of, read and checked."""

    settings: ModelParams
    lens: Path
    provenance: dict[str, Any]
    manifest: dict[str, Any]
    judgement: Judgement
    shapes: lens_file.Shapes  # of the lens's tensors, by name
    folder: str  # of the lens, relative to the release
    licence: Mapping[str, bytes]  # the base model's licence and notices, by file name
    page: str  # the report of this model

    @property
    def rank(self) -> int:
        return self.shapes["U"][-1]


def build(
    settings: ModelParams,
    corpus: Path,
    lens: Path,
    judgement: Path,
    out: Path,
    *,
    licence: Mapping[str, bytes],
    page: str,
) -> None:
    """Write the release of one model's lens to `out`, in place of an earlier one.

    Args:
        licence: the base model's licence and notices, by file name; empty where they are not known.
        page: the model's report, HTML.

    Raises:
        IntegrityError: an input is missing, damaged, or belongs to another model.
        InputError: a name or licence that cannot stand in a path, or `out` is a folder that is no release.
    """
    inputs = _read(settings, corpus, lens, judgement, licence, page)
    if out.exists() and any(out.iterdir()) and not (out / RECEIPT).is_file():
        raise InputError(f"{out}: holds files but no receipt.json, so it is no earlier release. Nothing was changed.")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Built beside it and moved there: a release is whole or not there at all.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        new = Path(temporary) / "release"
        _write(inputs, new)
        if out.exists():
            shutil.rmtree(out)
        new.rename(out)


def _read(  # noqa: PLR0917
    settings: ModelParams, corpus: Path, lens: Path, judgement: Path, licence: Mapping[str, bytes], page: str
) -> Inputs:
    provenance = _record(lens / "provenance.json")
    manifest = _record(corpus / "manifest.json")
    folder = f"tuned_lenses/{_safe_id(settings.model_id)}"
    judged, shapes = Judgement.read(judgement), lens_file.read_header(lens / WEIGHTS)[0]
    inputs = Inputs(settings, lens, provenance, manifest, judged, shapes, folder, licence, page)
    _check_same_model(inputs, corpus)
    recorded, found = provenance["weights_sha256"], artifacts.sha256_file(lens / WEIGHTS)
    if recorded != found:
        raise IntegrityError(
            f"{lens / WEIGHTS}: sha256 is {found}, provenance.json records {recorded}. Nothing was packaged."
        )
    return inputs


def _record(path: Path) -> dict[str, Any]:
    record = artifacts.read_json(path)
    if not isinstance(record, dict):
        raise IntegrityError(f"{path}: is no JSON object. Nothing was packaged.")
    if missing := [key for key in REQUIRED[path.name] if key not in record]:
        raise IntegrityError(f"{path}: lacks {', '.join(missing)}. Nothing was packaged.")
    return record


def _safe_id(model_id: str) -> str:
    if not MODEL_ID.fullmatch(model_id):
        raise InputError(f"model id {model_id!r} must be org/name, neither starting with a dot. Nothing was packaged.")
    return model_id


def _check_same_model(inputs: Inputs, corpus: Path) -> None:
    found, wanted = inputs.provenance["model_id"], inputs.settings.model_id
    if found != wanted:
        raise IntegrityError(
            f"{inputs.lens / 'provenance.json'}: the lens was fit for {found}, the settings name {wanted}. "
            "Nothing was packaged."
        )
    if inputs.provenance["model"] != inputs.manifest["model"]:
        raise IntegrityError(
            f"{inputs.lens / 'provenance.json'}: its model pin differs from that of {corpus / 'manifest.json'}; "
            "one of the two is stale. Nothing was packaged."
        )


def _write(inputs: Inputs, out: Path) -> None:
    lens = out / inputs.folder
    with artifacts.replacing(lens / WEIGHTS) as temporary:
        shutil.copyfile(inputs.lens / WEIGHTS, temporary)
    _export(lens / WEIGHTS, lens / EXPORT)
    tensors = [WEIGHTS, EXPORT]
    if (inputs.lens / PRECOND).is_file():
        shutil.copyfile(inputs.lens / PRECOND, lens / PRECOND)
        tensors.append(PRECOND)
    weights = {name: artifacts.sha256_file(lens / name) for name in tensors}
    artifacts.write_json(lens / "provenance.json", _packaged_provenance(inputs, weights))
    artifacts.write_text(lens / "README.md", _render("card.md.j2", inputs, **_of_file(lens / WEIGHTS)))
    artifacts.write_text(lens / "NOTICE", _render("notice.j2", inputs))
    artifacts.write_text(lens / PAGE, inputs.page)
    index = {inputs.settings.model_id: _index_entry(inputs, lens, _write_licences(inputs, out))}
    artifacts.write_json(out / INDEX, index)
    artifacts.write_text(out / "README.md", dataset_card(index))
    artifacts.write_json(out / RECEIPT, receipt(inputs.settings.model_id, out))


def _export(weights: Path, export: Path) -> None:
    """The same tensors as a plain dict, in the form that the written plan names."""
    # Imported here alone: everything else about a release is done without torch.
    import torch
    from safetensors.torch import load_file

    with artifacts.replacing(export) as temporary, temporary.open("wb") as file:
        # Into an open file: given a path, torch writes that name into the bytes, and here it is a temporary one.
        torch.save(dict(sorted(load_file(weights).items())), file)


def _packaged_provenance(inputs: Inputs, weights: dict[str, str]) -> dict[str, Any]:
    judged, manifest = inputs.judgement, inputs.manifest
    return {
        **inputs.provenance,
        "files": weights,
        "kpis": judged.reference_kpis(),
        "judgement": judged.data(),
        # Words in a field of their own: a reader who tests `acceptance.gate_A` for truth must not take "fail" for it.
        "acceptance": {f"gate_{gate.letter}": gate.verdict == "pass" for gate in judged.gates},
        "acceptance_verdicts": {f"gate_{gate.letter}": gate.verdict for gate in judged.gates},
        "corpus": {key: manifest[key] for key in ("content_hash", "tokens_sha256", "heldout_sha256")},
    }


def _render(template: str, inputs: Inputs, **more: object) -> str:
    n_layers, d_model, rank = inputs.shapes["U"]
    text = [inputs.manifest.get(key) for key in ("kind", "repo", "name", "split", "revision", "commit")]
    return wording.render(
        __package__,
        template,
        settings=inputs.settings,
        provenance=inputs.provenance,
        judgement=inputs.judgement,
        folder=inputs.folder,
        dataset=", ".join(str(value) for value in text if value),
        n_layers=n_layers,
        d_model=d_model,
        rank=rank,
        dtype=inputs.provenance.get("machine", {}).get("dtype"),  # the head's hash is of the weights in this precision
        place=inputs.settings.publish.repo or ".",
        base_texts=[name.replace(" ", "_") for name in inputs.licence],
        parameters=sum(math.prod(shape) for shape in inputs.shapes.values()),
        **more,
    )


def _of_file(weights: Path) -> dict[str, object]:
    return {"size": weights.stat().st_size, "weights_sha256": artifacts.sha256_file(weights)}


def _write_licences(inputs: Inputs, out: Path) -> dict[str, str]:
    """sha256 of the licence texts by path in the release."""
    licence = inputs.settings.publish.license
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", licence):
        raise InputError(f"params.yaml: publish.license is {licence!r}, must be an SPDX id. Nothing was packaged.")
    template = f"{licence}.txt.j2" if licence in LICENCE_TEXTS else "licence-elsewhere.txt.j2"
    texts = {f"LICENSES/{licence}.txt": _render(template, inputs).encode()}
    for name, text in inputs.licence.items():
        texts[f"LICENSES/{inputs.settings.model_id}/{name.replace(' ', '_')}"] = text
    for path, text in texts.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(text)
    return {path: artifacts.sha256_file(out / path) for path in texts}


def _index_entry(inputs: Inputs, lens: Path, licences: dict[str, str]) -> dict[str, Any]:
    commit, publish = inputs.provenance["model"].get("commit"), inputs.settings.publish
    return {
        "path": inputs.folder,
        "sha256": artifacts.sha256_tree(lens),
        "licenses": licences,
        "base_license": publish.base_license,
        "kind": inputs.provenance["kind"],
        "norm": inputs.provenance["norm"],
        "rank": inputs.rank,
        "model_commit": commit,
        "tokenizer_commit": commit,
        "kpis": inputs.judgement.reference_kpis(),
        "verdicts": {f"gate_{gate.letter}": gate.verdict for gate in inputs.judgement.gates},
        "allow_failed_gates": publish.allow_failed_gates,
        "preferred": inputs.judgement.preferred,
    }


def dataset_card(index: Mapping[str, Mapping[str, Any]]) -> str:
    """The README of a repository of lenses, from its index alone: whoever adds a lens writes it for all."""
    return wording.render(__package__, "dataset.md.j2", index=dict(sorted(index.items())), letters=LETTERS)


def receipt(model_id: str, out: Path, sent: Mapping[str, str | None] | None = None) -> dict[str, Any]:
    """What was packaged, and where it was sent to: repo, commit and tag, all None where it was not."""
    hashes = {name: digest for name, digest in artifacts.sha256_tree(out).items() if name != RECEIPT}
    files = {name: {"sha256": digest, "size": (out / name).stat().st_size} for name, digest in hashes.items()}
    place = {"repo": None, "commit": None, "tag": None, **(sent or {})}
    return {"schema": SCHEMA, "model_id": model_id, **place, "files": files}
