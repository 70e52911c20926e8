"""The packaged release: the same bytes for the same lens, true hashes, and nothing at all where an input is wrong."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from lensmith.files import artifacts
from lensmith.hub.models import pin_model
from lensmith.process import git
from lensmith.process.errors import InputError, IntegrityError
from lensmith.release import package, publish
from lensmith.settings.sections import ModelParams
from lensmith.source.backbone import Backbone
from tests.support import records
from tests.support.gguf_models import save_gguf
from tests.support.scores import passing, with_other_text
from tests.support.settings import atlas
from tests.support.tiny import save_tiny, tiny_model

L, D, RANK = 3, 8, 2
FOLDER = "tuned_lenses/local/atlas"


def write_lens(folder: Path, n_layers: int = L, d_model: int = D, **provenance: Any) -> None:
    """A lens with the identity at the last layer, and what it says about itself."""
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=(n_layers, d_model, RANK)).astype(np.float32) for name in ("U", "V")}
    tensors |= {"c": rng.normal(size=(n_layers, d_model)).astype(np.float32) / 10}
    tensors |= {"scale": np.ones((n_layers, d_model), np.float32), "log_tau": np.zeros(n_layers, np.float32)}
    for name in ("U", "V", "c"):
        tensors[name][-1] = 0
    about = artifacts.canonical_json({"kind": "low_rank", "norm": "final", "schema": 1})
    artifacts.write_tensors(folder / "weights.safetensors", tensors, metadata=about)
    sha256 = artifacts.sha256_file(folder / "weights.safetensors")
    record = records.provenance(n_layers, d_model, RANK, weights_sha256=sha256, **provenance)
    artifacts.write_json(folder / "provenance.json", record)
    artifacts.write_text(folder / "rank_curve.csv", "rank,kl_bits,closed_form_kl_bits\n1,3.0,4.0\n2,2.0,2.5\n")


class Bench:
    """The inputs of one release."""

    def __init__(self, root: Path) -> None:
        self.settings = atlas()
        self.corpus, self.lens = root / "corpus", root / "lens"
        self.judgement, self.out = root / "judgement.json", root / "release" / "atlas"
        self.licence = {"LICENSE": b"the base model's terms"}
        write_lens(self.lens)
        artifacts.write_json(self.corpus / "manifest.json", records.manifest())
        passing().write(self.judgement)

    def build(self, out: Path | None = None) -> Path:
        out = out or self.out
        page = "<html>curves</html>"
        package.build(self.settings, self.corpus, self.lens, self.judgement, out, licence=self.licence, page=page)
        return out

    def read(self, name: str) -> Any:
        return json.loads((self.out / name).read_text(encoding="utf-8"))

    def changed(self, section: str, **values: Any) -> ModelParams:
        return self.settings.model_copy(update={section: getattr(self.settings, section).model_copy(update=values)})


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path)


def test_the_same_inputs_give_the_same_bytes(bench, tmp_path):
    """A release that differs without a reason would be sent again."""
    first = artifacts.sha256_tree(bench.build())
    (tmp_path / "elsewhere").mkdir()

    assert artifacts.sha256_tree(bench.build(tmp_path / "elsewhere" / "two")) == first


def test_the_index_holds_the_hash_of_every_file_of_the_lens(bench):
    """A consumer checks what it downloaded against the index; a file that is not in it is not checked."""
    entry = (bench.build() and bench.read("INDEX.json"))["local/atlas"]

    assert entry["path"] == FOLDER
    assert entry["sha256"] == {name: artifacts.sha256_file(bench.out / FOLDER / name) for name in entry["sha256"]}
    assert set(entry["sha256"]) == {path.name for path in (bench.out / FOLDER).iterdir()}
    assert set(entry["sha256"]) == {
        "weights.safetensors", "weights.pt", "provenance.json", "README.md", "NOTICE", "report.html",
    }  # fmt: skip
    assert (entry["kind"], entry["rank"], entry["preferred"]) == ("low_rank", RANK, "tuned")


def test_the_receipt_lists_every_file_and_claims_nothing(bench):
    """Nothing was sent anywhere, and the receipt says so."""
    bench.build()
    receipt = bench.read("receipt.json")

    files = {path.relative_to(bench.out).as_posix(): path for path in bench.out.rglob("*") if path.is_file()}
    assert receipt["repo"] is receipt["commit"] is receipt["tag"] is None
    assert set(receipt["files"]) == set(files) - {"receipt.json"}
    for name, about in receipt["files"].items():
        assert about == {"sha256": artifacts.sha256_file(files[name]), "size": files[name].stat().st_size}


def test_both_forms_of_the_weights_hold_the_same_tensors(bench):
    """weights.pt is an export: plain tensors, those of the lens; the other file is a copy of what was fit."""
    folder = bench.build() / FOLDER
    tensors = load_file(folder / "weights.safetensors")
    exported = torch.load(folder / "weights.pt", weights_only=True)

    assert type(exported) is dict and set(exported) == set(tensors)
    assert all(np.array_equal(exported[name].numpy(), tensors[name]) for name in tensors)
    assert (folder / "weights.safetensors").read_bytes() == (bench.lens / "weights.safetensors").read_bytes()


def test_the_packaged_provenance_adds_kpis_and_verdicts(bench):
    """`acceptance` is true or false; a word there would be true for `fail` as well."""
    passing(verdicts={"B": "fail", "D": "inconclusive"}).write(bench.judgement)
    bench.build()
    record = bench.read(f"{FOLDER}/provenance.json")

    assert record["acceptance"] == {f"gate_{gate}": gate not in "BD" for gate in "ABCDFGHJ"}
    assert record["acceptance_verdicts"]["gate_D"] == "inconclusive"
    assert record["kpis"]["median_delta_kl_bits@{25,50,75}%"] == [3.25, 2.5, 1.125]
    assert record["corpus"] == {"content_hash": "c1", "tokens_sha256": "c2", "heldout_sha256": "c3"}
    assert record["files"]["weights.pt"] == artifacts.sha256_file(bench.out / FOLDER / "weights.pt")
    assert record["seed"] == 316


def test_the_card_says_that_a_gate_failed(bench):
    """The card is what a stranger reads first."""
    passing(verdicts={"B": "fail"}).write(bench.judgement)
    card = (bench.build() / FOLDER / "README.md").read_text(encoding="utf-8")

    assert "Not every gate passes" in card and "gate B (fail)" in card and "Every gate passes:" not in card
    row = next(line for line in card.splitlines() if line.startswith("| A Closer"))
    assert row == "| A Closer to the model | at 25 % depth, bits | ≥ +0.30 | +3.25 | +3.00 to +3.50 | ✓ pass |"
    assert "At rank 2 the lens leaves 2.00 bits and would leave 3.00 if it were cut to rank 1." in card


def test_the_card_says_of_a_transferred_lens_which_model_it_was_fit_to(bench):
    """A lens of the model itself says the opposite."""
    own = (bench.build() / FOLDER / "README.md").read_text(encoding="utf-8")
    head = records.provenance()["head"]
    origin = {"entry": "base", "kind": "low_rank", "model_id": "org/base", "weights_sha256": "4" * 64}
    origin |= {"model": records.PIN.model_dump(mode="json"), "head": head}
    write_lens(bench.lens, kind="transferred", transferred=origin)
    card = (bench.build() / FOLDER / "README.md").read_text(encoding="utf-8")

    assert "**It was fit to another model, org/base, and is used as it is:**" in card
    assert "| Fit to | org/base, local files, kind low_rank; its head is the same |" in card
    assert "It was fit to the exact\nmodel below" in own and "\n\n| | |\n" in own
    assert "exact\nmodel" not in card and "another model" not in own


def test_the_card_has_each_held_out_text_in_bits_a_byte(bench):
    with_other_text().write(bench.judgement)
    card = (bench.build() / FOLDER / "README.md").read_text(encoding="utf-8")

    said = "mean over layers and positions, bits a byte"
    assert f"| KL left on held-out text, {said} (0.25 tokens a byte) | 0.88 " in card
    assert f"| KL left on code, {said} (0.50 tokens a byte) | 1.50 " in card


def test_the_base_models_terms_are_in_the_package_as_they_are(bench):
    """A consumer must be able to read them without the base model, and the index must vouch for them."""
    entry = (bench.build() and bench.read("INDEX.json"))["local/atlas"]
    path = "LICENSES/local/atlas/LICENSE"

    assert (bench.out / path).read_bytes() == b"the base model's terms"
    assert entry["licenses"] == {p: artifacts.sha256_file(bench.out / p) for p in (path, "LICENSES/MIT.txt")}
    assert "LICENSES/local/atlas/: LICENSE" in (bench.out / FOLDER / "NOTICE").read_text()


def test_only_the_main_lens_goes_out(bench):
    """Rungs of the ladder and the prism baseline are the lab's."""
    write_lens(bench.lens / "ladder" / "bias")
    artifacts.write_tensors(bench.lens / "prism.safetensors", {"x": np.zeros(1, np.float32)})
    bench.build()

    assert not [path for path in bench.out.rglob("*") if "prism" in path.name or "ladder" in path.parts]


def test_the_card_of_the_repository_has_metadata_and_a_line_for_each_lens(bench):
    """Written from the index alone, also from entries of another program that say less."""
    bench.build()
    index = bench.read("INDEX.json")
    less = {"path": "tuned_lenses/org/other", "sha256": {}}
    card = package.dataset_card({**index, "org/other": less})

    front = YAML(typ="safe").load(card.split("---\n")[1])
    assert front["viewer"] is False and front["license"] == "other"
    line = next(line for line in card.splitlines() if line.startswith("| [local/atlas](tuned_lenses/local/atlas) |"))
    assert "| not sent | low_rank, rank 2 | +3.25, +2.50, +1.12 | ✓ ✓ ✓ ✓ ✓ ✓ ✓ ✓ |" in line
    assert "| [org/other](tuned_lenses/org/other) | not sent | ?, rank ? |" in card
    assert (bench.out / "README.md").read_text(encoding="utf-8") == package.dataset_card(index)


def test_an_unknown_base_licence_is_said_to_be_unknown(bench):
    """Silence would read as permission."""
    bench.licence = {}
    bench.settings = bench.changed("publish", base_license=None, license="Apache-2.0")
    notice = (bench.build() / FOLDER / "NOTICE").read_text(encoding="utf-8")

    assert "not recorded" in notice and "find out its terms" in notice
    assert "https://spdx.org/licenses/Apache-2.0.html" in (bench.out / "LICENSES" / "Apache-2.0.txt").read_text()


@pytest.mark.parametrize("name", ["lens/provenance.json", "corpus/manifest.json"])
def test_a_record_that_lacks_a_key_is_refused_by_name(bench, name):
    """A lens that does not say what it was fit on cannot be fit again."""
    path = bench.corpus.parent / name
    record = artifacts.read_json(path)
    for key in ("seed", "model"):
        artifacts.write_json(path, {k: v for k, v in record.items() if k != key})
        with pytest.raises(IntegrityError, match=rf"{name}: {key}"):
            bench.build()
    assert not bench.out.exists()


@pytest.mark.parametrize("repo", ["../..", "org/..", "./name", "org/.hidden", "org/na\nme", "a/b/c"])
def test_a_model_id_cannot_lead_out_of_the_release(bench, repo):
    """The id becomes a path, here and at whoever downloads it."""
    bench.settings = bench.changed("source", repo=repo, path=None)

    with pytest.raises(InputError, match="must be org/name"):
        bench.build()
    assert not bench.out.exists()


def test_a_licence_cannot_lead_out_of_the_release(bench):
    bench.settings = bench.changed("publish", license="../../MIT")

    with pytest.raises(InputError, match="SPDX"):
        bench.build()
    assert not bench.out.exists()


def damage_weights(bench: Bench) -> None:
    data = (bench.lens / "weights.safetensors").read_bytes()
    (bench.lens / "weights.safetensors").write_bytes(data[:-4])


def flip_recorded_weights(bench: Bench) -> None:
    artifacts.write_json(bench.lens / "provenance.json", records.provenance(weights_sha256="0" * 64))


def other_model(bench: Bench) -> None:
    write_lens(bench.lens, model_id="org/other")


def other_pin(bench: Bench) -> None:
    write_lens(bench.lens, model=records.PIN.model_dump(mode="json") | {"files": {}})


def other_tensors(bench: Bench) -> None:
    artifacts.write_tensors(bench.lens / "weights.safetensors", {"U": np.zeros((1, 2, 3), np.float32)})


def no_verdict(bench: Bench) -> None:
    data = artifacts.read_json(bench.judgement)
    del data["gates"][0]["verdict"]
    artifacts.write_json(bench.judgement, data)


def no_judgement(bench: Bench) -> None:
    bench.judgement.unlink()


def no_lens(bench: Bench) -> None:
    shutil.rmtree(bench.lens)


def no_object(bench: Bench) -> None:
    artifacts.write_json(bench.corpus / "manifest.json", ["model"])


@pytest.mark.parametrize(
    "harm",
    [
        damage_weights,
        flip_recorded_weights,
        other_model,
        other_pin,
        other_tensors,
        no_verdict,
        no_judgement,
        no_lens,
        no_object,
    ],
)
def test_a_wrong_input_leaves_the_old_release_as_it_was(bench, harm):
    """Half a release, or one of two lenses, is worse than an old one."""
    before = artifacts.sha256_tree(bench.build())
    harm(bench)

    with pytest.raises(IntegrityError):
        bench.build()
    assert artifacts.sha256_tree(bench.out) == before
    assert [path.name for path in bench.out.parent.iterdir()] == [bench.out.name]


def test_a_release_replaces_an_older_one_whole(bench):
    """A file of the older release that stayed would be published under the new one's name."""
    bench.build()
    (bench.out / FOLDER / "old.pt").write_bytes(b"old")

    assert not (bench.build() / FOLDER / "old.pt").exists()


def test_a_folder_that_is_no_release_is_left_alone(bench):
    """A mistyped path must not cost anyone a folder."""
    bench.out.mkdir(parents=True)
    (bench.out / "thesis.tex").write_text("years")

    with pytest.raises(InputError, match=r"no receipt\.json"):
        bench.build()
    assert [path.name for path in bench.out.iterdir()] == ["thesis.tex"]


HUB = {  # where the Hub is not asked or does not answer -> what a dry run says of it
    "no repo": "params.yaml: models.atlas.publish.repo is not set",
    "offline": "dataset org/lenses@main: is not asked, since HF_HUB_OFFLINE is set. Nothing was sent.",
    "no network": "dataset org/lenses@main: cannot be reached (ConnectionRefusedError). Nothing was sent.",
}


@pytest.mark.parametrize("hub", HUB)
def test_a_preview_without_the_hub_shows_the_package_and_what_it_did_not_look_at(bench, monkeypatch, hub):
    """Files, sizes, tag and what would be refused are known here; the Hub is asked only about what it holds."""
    bench.build()
    if hub != "no repo":
        bench.settings = bench.changed("publish", repo="org/lenses")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", hub == "offline")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens at the discard port
    head, *lines = publish.preview(bench.settings, bench.out)

    assert re.search(r"tag v\d{4}\.\d\d\.\d\d", head)
    sizes = {path: int(size) for size, path in (line.split(" bytes  ") for line in lines if " bytes  " in line)}
    assert sizes == {path: (bench.out / path).stat().st_size for path in sizes}
    assert f"{FOLDER}/weights.safetensors" in sizes and "LICENSES/local/atlas/LICENSE" in sizes
    assert lines[-1].startswith("not looked at: ") and lines[-1].endswith(HUB[hub])


def indexed(**changed: Any) -> Callable[[Bench], None]:
    """Change the lens's entry of INDEX.json."""

    def change(bench: Bench) -> None:
        entry = bench.read("INDEX.json")["local/atlas"]
        artifacts.write_json(bench.out / "INDEX.json", {"local/atlas": entry | changed})

    return change


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (
            lambda bench: (bench.out / "README.md").write_text("hf_" + "a" * 34),
            "holds a Hugging Face token",
        ),
        (indexed(licenses={}), "it is asked for only with publish.repo set"),
        (indexed(verdicts={"gate_B": "fail"}), "gate B of local/atlas is fail"),
        (lambda _: Path("file").write_text("edited"), "git: file is not as committed"),
    ],
)
def test_a_preview_says_what_sending_would_refuse(bench, tmp_path, monkeypatch, harm, said):
    """The dry run is where one wants to learn of it."""
    bench.build()
    repo = tmp_path / "repo"
    repo.mkdir()
    monkeypatch.chdir(repo)
    (repo / "file").touch()
    for words in (("init", "-q"), ("add", "file"), ("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "t")):
        git.run(*words)
    assert not any("refused" in line for line in publish.preview(bench.settings, bench.out))
    harm(bench)

    (refused,) = (line for line in publish.preview(bench.settings, bench.out) if line.startswith("would be refused: "))
    assert said in refused and refused.endswith("othing was sent.")


@pytest.mark.parametrize("call", [publish.send, publish.preview])
def test_a_folder_without_this_models_release_is_not_sent(bench, call):
    """A release of another model under this one's name would be indexed as this one's."""
    bench.build()
    bench.settings = bench.changed("source", repo="org/other", path=None)

    with pytest.raises(InputError, match="has no lens for org/other"):
        list(call(bench.settings, bench.out))


def test_nothing_is_sent_without_a_repository(bench):
    bench.build()

    with pytest.raises(InputError, match=r"publish\.repo is not set, so there is nowhere to send to"):
        publish.send(bench.settings, bench.out)


@pytest.mark.parametrize("is_gguf", [False, True])
def test_the_quick_start_of_the_card_runs(bench, tmp_path, monkeypatch, capsys, is_gguf):
    """Readers try it first."""
    folder = tmp_path / "model"
    folder.mkdir()
    model = save_gguf(folder / "tiny.gguf", "Q8_0", n_layers=L) if is_gguf else tiny_model("llama", n_layers=L)
    if not is_gguf:
        save_tiny(folder, n_layers=L)
    bench.settings = bench.changed("source", path=str(folder))
    pin = pin_model(bench.settings.source)
    head = Backbone.from_model(model).head.fingerprint()
    write_lens(bench.lens, d_model=model.config.hidden_size, head=head, model=pin.model_dump(mode="json"))
    artifacts.write_json(bench.corpus / "manifest.json", records.manifest(pin))
    card = (bench.build() / FOLDER / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(bench.out)

    exec(card.split("```python\n")[1].split("```")[0], {})

    heading, *layers = capsys.readouterr().out.splitlines()
    assert heading.split() == ["layer", "top1", "prob1", "kl_final_lens_bits"]
    assert [line.split()[0] for line in layers] == ["1", "2", "3"]
    assert (bench.out / "trajectory.html").exists()
