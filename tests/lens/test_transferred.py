"""The lens of one entry on another entry's model: taken as it is, measured there, and refused where it does not fit."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lensmith.files import artifacts, seals
from lensmith.judge.bench import Bench
from lensmith.lens import audit, recording, stage, transferred
from lensmith.lens.divergence import kl_bits
from lensmith.lens.lens import Lens
from lensmith.lens.provenance import Provenance
from lensmith.process.errors import InputError, IntegrityError
from lensmith.settings import resolved
from lensmith.settings.sections import ModelParams
from lensmith.source import corpus, prefetch
from tests.support.settings import atlas
from tests.support.tiny import save_tiny

L, SEQ = 3, 16


@dataclass(frozen=True)
class Lab:
    """Folders as the stages leave them: `base` has a lens, `tuned` is another model of the same form."""

    root: Path
    settings: dict[str, ModelParams]

    def folders(self, key: str) -> tuple[Path, Path]:
        return self.root / key / "corpus", self.root / key / "lens"

    def fit(self, key: str) -> None:
        stage.run(self.settings[key], self.root / "code.json", *self.folders(key))
        seals.seal(self.root / key / "lens")

    def load(self, **changed: Any) -> tuple[Lens, Any]:
        """The lens of `base` for `tuned`; `changed` are other arguments of `transferred.load`."""
        corpus_dir, lens_dir = self.folders("tuned")
        bench = Bench.load(self.settings["tuned"], corpus_dir, lens_dir)
        arguments: dict[str, Any] = {
            "settings": self.settings["tuned"],
            "manifest": corpus.Manifest.read(corpus_dir),
            "backbone": bench.backbone,
            "code": artifacts.read_json(self.root / "code.json"),
            "lens_dir": lens_dir,
        }
        return transferred.load(**(arguments | changed))


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    root = tmp_path_factory.mktemp("transferred")
    (root / "text.txt").write_text("\n\n".join(f"The king went to the market on day {i}." for i in range(200)))
    text = {"kind": "files", "files": [str(root / "text.txt")], "seq_len": SEQ, "train_tokens": 176}
    fit = {"positions_per_seq": SEQ, "validation_seqs": 2, "batch_seqs": 4, "rank": 2, "epochs": 2}
    entries = {
        "base": (0, {"fit": fit}),
        "tuned": (1, {"fit": fit | {"kind": "transferred"}, "transferred": {"from": "base"}}),
    }
    models = {}
    for key, (seed, sections) in entries.items():
        source = {"path": str(save_tiny(root / f"{key}-model", n_layers=L, seed=seed))}
        shared = {"corpus": text | {"heldout_tokens": 128}, "sweep": {"heldout_seqs": 4, "positions_per_seq": 4}}
        models[key] = atlas(source=source, **shared, **sections).model_copy(update={"key": key})
    data = resolved.with_inputs(models)
    made = Lab(root, {key: ModelParams.model_validate_json(artifacts.canonical_json(data[key])) for key in data})
    artifacts.write_json(root / "code.json", {"stages/fit.py": "0" * 64})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSMITH_HOME", str(root / "home"))
        for key, settings in made.settings.items():
            prefetch.build(settings, root / key / "corpus")
            made.fit(key)
    return made


def test_the_translators_are_those_of_the_other_entry_and_the_head_is_this_models(lab):
    """KL on held-out text is that of the same translators through the other head, computed position by position."""
    corpus_dir, lens_dir = lab.folders("tuned")
    bench, theirs = Bench.load(lab.settings["tuned"], corpus_dir, lens_dir), Lens.load(lab.root / "base/lens")
    record = Provenance.read(lens_dir / "provenance.json")
    tokens = torch.as_tensor(corpus.read_heldout(corpus_dir)[:2]).long()
    resid = bench.backbone.capture(tokens, torch.arange(SEQ).expand(2, SEQ)).flatten(0, 1)
    kl = [kl_bits(bench.final(resid), theirs.logits(bench.backbone.head, resid[:, layer], layer)) for layer in (1, 2)]

    assert bench.lens.kind == record.kind == "transferred"
    same = {name for name, tensor in theirs.tensors().items() if torch.equal(tensor, bench.lens.tensors()[name])}
    assert same == theirs.tensors().keys() - {"center"}, "the center is that of this model's text"
    assert record.val_kl_bits_by_layer[:2] == pytest.approx([float(bits.mean()) for bits in kl], rel=1e-4)
    assert record.measured.steps == record.measured.tokens_forwarded == 0
    assert {path.name for path in (lens_dir / "ladder").iterdir()} == {"temperature", "bias"}, "fit to this model"


def test_the_record_names_the_model_that_the_lens_was_fit_to(lab, monkeypatch):
    """And the audit, which reads the other entry again, finds every fact right."""
    base, tuned = (Provenance.read(lab.root / key / "lens/provenance.json") for key in ("base", "tuned"))
    origin = tuned.transferred

    assert origin is not None and base.transferred is None
    assert (origin.entry, origin.kind, origin.model) == ("base", "low_rank", base.model)
    assert origin.head == base.head != tuned.head
    assert origin.weights_sha256 == artifacts.sha256_file(lab.root / "base/lens/weights.safetensors")
    monkeypatch.setattr(recording.git, "run", lambda *_: None)  # the code is made up
    assert audit.audit(lab.settings["tuned"], lab.root / "code.json", *lab.folders("tuned")).wrong == ()


def changed(lab: Lab, key: str, section: str, **values: Any) -> ModelParams:
    settings = lab.settings[key]
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=values)})


REFUSED = {
    "other settings": (
        lambda lab: {"settings": changed(lab, "tuned", "transferred", inputs={"base": "0" * 64})},
        "base/lens: was fit with other settings than models.base has now. Run `dvc repro fit@base` first.",
    ),
    "other code": (lambda _: {"code": {}}, "was fit by other code than there is now. Run `dvc repro fit@base` first."),
    "no lens": (lambda lab: {"lens_dir": lab.root / "none/tuned/lens"}, "holds no lens of models.base. Run `dvc repro"),
    "another norm": (
        lambda lab: {"settings": changed(lab, "tuned", "fit", norm="next_input")},
        "models.tuned.transferred.from is base, whose norm is final; must be that of models.tuned, next_input.",
    ),
    "another vocabulary": (
        lambda lab: {"manifest": with_tokens(lab, 96)},
        "whose tokens of the tokenizer is 97; must be that of models.tuned, 96.",
    ),
}


def with_tokens(lab: Lab, vocab_size: int) -> corpus.Manifest:
    manifest = corpus.Manifest.read(lab.root / "tuned/corpus")
    return manifest.model_copy(update={"tokenizer": manifest.tokenizer.model_copy(update={"vocab_size": vocab_size})})


@pytest.mark.parametrize("case", REFUSED)
def test_a_lens_that_does_not_fit_is_refused_in_one_line(lab, case):
    change, message = REFUSED[case]

    with pytest.raises(InputError) as caught:
        lab.load(**change(lab))
    assert message in str(caught.value) and str(caught.value).endswith("Nothing was fit.")
    assert "\n" not in str(caught.value)


def test_a_deeper_lens_and_a_damaged_one_are_refused(lab, tmp_path):
    """A flipped bit of a translator is still a translator: its seal tells."""
    shutil.copytree(lab.root / "base/lens", tmp_path / "base/lens")
    deeper = Lens.load(lab.root / "base/lens").map_tensors(lambda tensor: torch.cat([tensor[:1], tensor]))
    deeper.save(tmp_path / "base/lens")
    with pytest.raises(IntegrityError, match=r"weights\.safetensors: sha256 is .*SHA256SUMS says"):
        lab.load(lens_dir=tmp_path / "tuned/lens")
    seals.seal(tmp_path / "base/lens")
    with pytest.raises(InputError, match=r"whose n_layers is 4; must be that of models\.tuned, 3\."):
        lab.load(lens_dir=tmp_path / "tuned/lens")
