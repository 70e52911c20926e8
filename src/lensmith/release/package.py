"""The folder that is published: the lens, what it says about itself, and a hash of every file.

    <out>/tuned_lenses/<org>/<name>/   weights.safetensors  weights.pt  provenance.json  README.md  NOTICE  report.html
    <out>/LICENSES/                    texts of the lens's licence, and below <org>/<name>/ of the base model's
    <out>/INDEX.json                   which lenses there are and the sha256 of their files, by model id
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

import yaml  # noqa: TID251 (front matter of a card: its only reader, the Hub, reads it with PyYAML)

from lensmith.files import artifacts
from lensmith.hub.index import INDEX, LENSES, MODEL_ID
from lensmith.judge import gates, rank_cost
from lensmith.judge.judgement import Judgement
from lensmith.lens import lens_file
from lensmith.lens.lens_file import RANK_CURVE, WEIGHTS
from lensmith.lens.provenance import PROVENANCE, Provenance
from lensmith.process import wording
from lensmith.process.errors import InputError, IntegrityError
from lensmith.settings.sections import ModelParams
from lensmith.source.corpus import MANIFEST, Manifest

SCHEMA = 2
EXPORT = "weights.pt"
RECEIPT = "receipt.json"
PAGE = "report.html"
LICENCE_TEXTS = ("MIT",)  # bundled here; of other licences the release holds the address
# Front matter of the repository's card, which the Hub reads.
CARD_METADATA = {
    "license": "other",
    "license_name": "per-model-upstream-terms",
    "license_link": "LICENSES/",
    "pretty_name": "Tuned lenses",
    "tags": ["tuned-lens", "logit-lens", "interpretability", "mechanistic-interpretability"],
    "viewer": False,
}


@dataclass(frozen=True)
class Contents:
    """What a release is made of, read and checked."""

    settings: ModelParams
    lens: Path  # the folder of stage `fit`
    provenance: Provenance
    manifest: Manifest
    judgement: Judgement
    shapes: lens_file.Shapes  # of the lens's tensors, by name
    rank_cost: str  # in words
    licence: Mapping[str, bytes]  # the base model's licence and notices, by file name
    page: str  # the model's report, HTML

    @property
    def folder(self) -> str:
        """Of the lens, relative to the release."""
        return f"{LENSES}/{self.settings.model_id}"

    @property
    def verdicts(self) -> dict[str, str]:
        """Of each gate, as provenance and the index name it."""
        return {f"gate_{letter}": verdict for letter, verdict in self.judgement.verdicts.items()}

    def check(self, corpus: Path) -> None:
        """Refuse what does not belong together, and names that cannot stand in a path.

        Raises:
            IntegrityError: lens, corpus and settings are not of one model, or the weights are not those recorded.
            InputError: the model's id or the lens's licence.
        """
        model_id, licence, path = self.settings.model_id, self.settings.publish.license, self.lens / PROVENANCE
        if not MODEL_ID.fullmatch(model_id):
            raise InputError(
                f"model id {model_id!r} must be org/name, neither starting with a dot. Nothing was packaged."
            )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", licence):
            raise InputError(f"params.yaml: publish.license is {licence!r}, must be an SPDX id. Nothing was packaged.")
        if self.provenance.model_id != model_id:
            raise IntegrityError(
                f"{path}: the lens was fit for {self.provenance.model_id}, the settings name {model_id}. "
                "Nothing was packaged."
            )
        if self.provenance.model != self.manifest.model:
            raise IntegrityError(
                f"{path}: its model pin differs from that of {corpus / MANIFEST}; one of the two is stale. "
                "Nothing was packaged."
            )
        sha256 = artifacts.sha256_file(self.lens / WEIGHTS)
        if self.provenance.weights_sha256 != sha256:
            raise IntegrityError(
                f"{self.lens / WEIGHTS}: sha256 is {sha256}, {PROVENANCE} records {self.provenance.weights_sha256}. "
                "Nothing was packaged."
            )

    def render(self, template: str) -> str:
        """One of the templates beside this file."""
        n_layers, d_model, rank = self.shapes["U"]
        manifest = self.manifest
        text = (manifest.kind, manifest.repo, manifest.name, manifest.split, manifest.revision, manifest.commit)
        return wording.render(
            __package__,
            template,
            settings=self.settings,
            provenance=self.provenance,
            judgement=self.judgement,
            rank_cost=self.rank_cost,
            folder=self.folder,
            text=", ".join(value for value in text if value),
            n_layers=n_layers,
            d_model=d_model,
            rank=rank,
            release=self.settings.publish.repo or ".",
            base_texts=[name.replace(" ", "_") for name in self.licence],
            parameters=sum(math.prod(shape) for shape in self.shapes.values()),
            size=(self.lens / WEIGHTS).stat().st_size,
        )

    def packaged_provenance(self, weights: Mapping[str, str]) -> dict[str, Any]:
        """What stage `fit` wrote, and how the lens was judged. `weights`: sha256 by file name."""
        manifest = self.manifest
        return {
            **self.provenance.data(),
            "files": weights,
            "kpis": self.judgement.reference_kpis(),
            "judgement": self.judgement.data(),
            # Words have a field of their own: a reader who tests `acceptance.gate_A` for truth must not meet "fail".
            "acceptance": {gate: verdict == "pass" for gate, verdict in self.verdicts.items()},
            "acceptance_verdicts": self.verdicts,
            "corpus": {
                "content_hash": manifest.content_hash,
                "tokens_sha256": manifest.tokens_sha256,
                "heldout_sha256": manifest.heldout_sha256,
            },
        }

    def index_entry(self, sha256: dict[str, str], licences: dict[str, str]) -> dict[str, Any]:
        """The lens in INDEX.json, from the sha256 of its files and of its licence texts."""
        commit, publish = self.provenance.model.commit, self.settings.publish
        return {
            "path": self.folder,
            "sha256": sha256,
            "licenses": licences,
            "base_license": publish.base_license,
            "kind": self.provenance.kind,
            "norm": self.provenance.norm,
            "rank": self.shapes["U"][-1],
            "model_commit": commit,
            "tokenizer_commit": commit,
            "kpis": self.judgement.reference_kpis(),
            "verdicts": self.verdicts,
            "allow_failed_gates": publish.allow_failed_gates,
            "preferred": self.judgement.preferred,
        }

    def write(self, out: Path) -> None:
        """Write the files of the release."""
        # Imported here alone: a wrong input is refused without waiting for torch.
        import torch
        from safetensors.torch import load_file

        lens = out / self.folder
        with artifacts.replacing(lens / WEIGHTS) as temporary:
            shutil.copyfile(self.lens / WEIGHTS, temporary)
        with artifacts.replacing(lens / EXPORT) as temporary, temporary.open("wb") as file:
            # Into an open file: given a path, torch writes that name into the bytes, and here it is a temporary one.
            torch.save(dict(sorted(load_file(lens / WEIGHTS).items())), file)
        weights = {name: artifacts.sha256_file(lens / name) for name in (WEIGHTS, EXPORT)}
        artifacts.write_json(lens / PROVENANCE, self.packaged_provenance(weights))
        artifacts.write_text(lens / "README.md", self.render("card.md.j2"))
        artifacts.write_text(lens / "NOTICE", self.render("notice.j2"))
        artifacts.write_text(lens / PAGE, self.page)

        model_id, licence = self.settings.model_id, self.settings.publish.license
        template = f"{licence}.txt.j2" if licence in LICENCE_TEXTS else "licence-elsewhere.txt.j2"
        texts = {f"LICENSES/{licence}.txt": self.render(template).encode()}
        texts |= {f"LICENSES/{model_id}/{name.replace(' ', '_')}": text for name, text in self.licence.items()}
        for path, text in texts.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_bytes(text)
        licences = {path: artifacts.sha256_file(out / path) for path in texts}

        index = {model_id: self.index_entry(artifacts.sha256_tree(lens), licences)}
        artifacts.write_json(out / INDEX, index)
        artifacts.write_text(out / "README.md", dataset_card(index))
        artifacts.write_json(out / RECEIPT, receipt(model_id, out))


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
    judged = Judgement.read(judgement)
    contents = Contents(
        settings,
        lens,
        Provenance.read(lens / PROVENANCE),
        Manifest.read(corpus),
        judged,
        lens_file.read_header(lens / WEIGHTS)[0],
        rank_cost.in_words(rank_cost.read(lens / RANK_CURVE), judged),
        licence,
        page,
    )
    contents.check(corpus)
    if out.exists() and any(out.iterdir()) and not (out / RECEIPT).is_file():
        raise InputError(f"{out}: holds files but no {RECEIPT}, so it is no earlier release. Nothing was changed.")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Built beside it and moved there: a release is whole or not there at all.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        new = Path(temporary) / "release"
        contents.write(new)
        if out.exists():
            shutil.rmtree(out)
        new.rename(out)


def dataset_card(index: Mapping[str, Mapping[str, Any]]) -> str:
    """The README of a repository of lenses, from its index alone: whoever adds a lens writes it for all."""
    metadata = yaml.safe_dump(CARD_METADATA, sort_keys=False)
    present = {name.removeprefix("gate_") for entry in index.values() for name in entry.get("verdicts", {})}
    table = {"index": dict(sorted(index.items())), "gates": gates.of_table(present)}
    card = wording.render(__package__, "dataset.md.j2", **table)
    return f"---\n{metadata}---\n{card}"


def receipt(model_id: str, out: Path, sent: Mapping[str, str | None] | None = None) -> dict[str, Any]:
    """What was packaged, and where it was sent to: repo, commit and tag, all None where it was not."""
    hashes = {name: digest for name, digest in artifacts.sha256_tree(out).items() if name != RECEIPT}
    files = {name: {"sha256": digest, "size": (out / name).stat().st_size} for name, digest in hashes.items()}
    destination = {"repo": None, "commit": None, "tag": None, **(sent or {})}
    return {"schema": SCHEMA, "model_id": model_id, **destination, "files": files}
