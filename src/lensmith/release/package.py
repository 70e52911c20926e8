"""The folder that is published: the lens, what it says about itself, and a hash of every file.

    <out>/tuned_lenses/<org>/<name>/   weights.safetensors  weights.pt  provenance.json  README.md  NOTICE
    <out>/LICENSES/                    text of the lens's licence
    <out>/INDEX.json                   what there is and its sha256, by model id
    <out>/receipt.json                 where it was sent to, and every file that was

Nothing here sends anything. The same inputs give the same bytes, whenever and wherever they are packaged.
"""

import math
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lensmith.edge import artifacts
from lensmith.edge.params import ModelParams
from lensmith.errors import InputError, IntegrityError
from lensmith.lens.form import TENSORS, WEIGHTS
from lensmith.release import scorecard, wording

SCHEMA = 1
EXPORT = "weights.pt"
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
    card: scorecard.Scorecard
    shapes: dict[str, tuple[int, ...]]  # of the lens's tensors, by name
    folder: str  # of the lens, relative to the release

    @property
    def rank(self) -> int:
        return self.shapes["U"][-1]


def build(settings: ModelParams, corpus: Path, lens: Path, metrics: Path, out: Path) -> None:
    """Write the release of one model's lens to `out`, in place of an earlier one.

    Raises:
        IntegrityError: an input is missing, damaged, or belongs to another model.
        InputError: a name or licence that cannot stand in a path, or `out` is a folder that is no release.
    """
    inputs = _read(settings, corpus, lens, metrics)
    if out.exists() and any(out.iterdir()) and not (out / "receipt.json").is_file():
        raise InputError(f"{out}: holds files but no receipt.json, so it is no earlier release. Nothing was changed.")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Built beside it and moved there: a release is whole or not there at all.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        new = Path(temporary) / "release"
        _write(inputs, new)
        if out.exists():
            shutil.rmtree(out)
        new.rename(out)


def _read(settings: ModelParams, corpus: Path, lens: Path, metrics: Path) -> Inputs:
    provenance = _record(lens / "provenance.json")
    manifest = _record(corpus / "manifest.json")
    folder = f"tuned_lenses/{_safe_id(settings.model_id)}"
    card, shapes = scorecard.read(metrics, settings), _shapes(lens / WEIGHTS)
    inputs = Inputs(settings, lens, provenance, manifest, card, shapes, folder)
    _check_same_model(inputs, corpus)
    recorded, found = provenance["weights_sha256"], artifacts.sha256_file(lens / WEIGHTS)
    if recorded != found:
        raise IntegrityError(
            f"{lens / WEIGHTS}: sha256 is {found}, provenance.json records {recorded}. Nothing was packaged."
        )
    return inputs


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape by name of a lens's tensors, from the file's header."""
    try:
        with safe_open(path, framework="np") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118, no dict
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{path}: not a whole lens file ({error}). Nothing was packaged.") from None
    if tuple(sorted(found)) != TENSORS:
        raise IntegrityError(f"{path}: holds {sorted(found)}, must hold {list(TENSORS)}. Nothing was packaged.")
    return found


def _record(path: Path) -> dict[str, Any]:
    record = artifacts.read_json(path)
    if not isinstance(record, dict):
        raise IntegrityError(f"{path}: is no JSON object. Nothing was packaged.")
    if missing := [key for key in REQUIRED[path.name] if key not in record]:
        raise IntegrityError(f"{path}: lacks {', '.join(missing)}. Nothing was packaged.")
    return record


def _safe_id(model_id: str) -> str:
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model_id, flags=re.ASCII):
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
    weights = {name: artifacts.sha256_file(lens / name) for name in (WEIGHTS, EXPORT)}
    artifacts.write_json(lens / "provenance.json", _packaged_provenance(inputs, weights))
    artifacts.write_text(lens / "README.md", _render("card.md.j2", inputs, **_of_file(lens / WEIGHTS)))
    artifacts.write_text(lens / "NOTICE", _render("notice.j2", inputs))
    _write_licence(inputs, out)
    artifacts.write_json(out / "INDEX.json", {inputs.settings.model_id: _index_entry(inputs, lens)})
    artifacts.write_json(out / "receipt.json", _receipt(inputs, out))


def _export(weights: Path, export: Path) -> None:
    """The same tensors as a plain dict, in the form that the written plan names."""
    # Imported here alone: everything else about a release is done without torch.
    import torch
    from safetensors.torch import load_file

    with artifacts.replacing(export) as temporary, temporary.open("wb") as file:
        # Into an open file: given a path, torch writes that name into the bytes, and here it is a temporary one.
        torch.save(dict(sorted(load_file(weights).items())), file)


def _packaged_provenance(inputs: Inputs, weights: dict[str, str]) -> dict[str, Any]:
    card, manifest = inputs.card, inputs.manifest
    return {
        **inputs.provenance,
        "files": weights,
        "kpis": card.plan_kpis(),
        "metrics": card.metrics,
        # Words in a field of their own: a reader who tests `acceptance.gate_A` for truth must not take "fail" for it.
        "acceptance": {f"gate_{gate.letter}": gate.verdict == "pass" for gate in card.gates},
        "acceptance_verdicts": {f"gate_{gate.letter}": gate.verdict for gate in card.gates},
        "corpus": {key: manifest[key] for key in ("content_hash", "tokens_sha256", "heldout_sha256")},
    }


def _render(template: str, inputs: Inputs, **more: object) -> str:
    n_layers, d_model, rank = inputs.shapes["U"]
    text = [inputs.manifest.get(key) for key in ("kind", "repo", "name", "split", "revision", "commit")]
    return wording.render(
        template,
        settings=inputs.settings,
        provenance=inputs.provenance,
        card=inputs.card,
        folder=inputs.folder,
        dataset=", ".join(str(value) for value in text if value),
        n_layers=n_layers,
        d_model=d_model,
        rank=rank,
        parameters=sum(math.prod(shape) for shape in inputs.shapes.values()),
        **more,
    )


def _of_file(weights: Path) -> dict[str, object]:
    return {"size": weights.stat().st_size, "weights_sha256": artifacts.sha256_file(weights)}


def _write_licence(inputs: Inputs, out: Path) -> None:
    licence = inputs.settings.publish.license
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", licence):
        raise InputError(f"params.yaml: publish.license is {licence!r}, must be an SPDX id. Nothing was packaged.")
    template = f"{licence}.txt.j2" if licence in LICENCE_TEXTS else "licence-elsewhere.txt.j2"
    artifacts.write_text(out / "LICENSES" / f"{licence}.txt", _render(template, inputs))


def _index_entry(inputs: Inputs, lens: Path) -> dict[str, Any]:
    commit = inputs.provenance["model"].get("commit")
    return {
        "path": inputs.folder,
        "sha256": artifacts.sha256_tree(lens),
        "kind": inputs.provenance["kind"],
        "norm": inputs.provenance["norm"],
        "rank": inputs.rank,
        "model_commit": commit,
        "tokenizer_commit": commit,
        "verdicts": {f"gate_{gate.letter}": gate.verdict for gate in inputs.card.gates},
        "preferred": inputs.card.preferred,
    }


def _receipt(inputs: Inputs, out: Path) -> dict[str, Any]:
    """What was packaged. `repo` is null: this version sends nothing anywhere."""
    hashes = artifacts.sha256_tree(out)
    files = {name: {"sha256": digest, "size": (out / name).stat().st_size} for name, digest in hashes.items()}
    return {"schema": SCHEMA, "model_id": inputs.settings.model_id, "repo": None, "files": files}
