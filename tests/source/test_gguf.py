"""GGUF files: a whole model in one file, read as plain weights, and recorded in the provenance."""

from types import SimpleNamespace

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, GgufConfig

from lensmith.files import artifacts, gguf_file
from lensmith.hub import models
from lensmith.lens import stage
from lensmith.process.errors import InputError, IntegrityError, ResourceError
from lensmith.source import gguf_model, prefetch
from lensmith.source.backbone import Backbone
from lensmith.source.tokenizer import load_tokenizer
from tests.support.gguf_models import save_gguf
from tests.support.settings import atlas
from tests.support.tiny import TEXT, tiny_tokenizer

TOKENS = torch.arange(40).view(2, 20) % 97


@pytest.fixture(autouse=True)
def _no_memory():
    """A process checks a converted model once; each test begins as a new process."""
    gguf_model._converted.cache_clear()


def load(path, **source) -> Backbone:
    settings = atlas(source={"path": str(path)} | source).source
    return Backbone.load(settings, models.pin_model(settings))


@pytest.mark.parametrize("tensor_type", ["F32", "Q8_0", "Q4_1"])
def test_the_model_of_a_gguf_file_has_the_weights_that_its_blocks_stand_for(tmp_path, tensor_type):
    """Logits of the model that has these numbers in float32, bit by bit."""
    written = save_gguf(tmp_path / "tiny.gguf", tensor_type)
    backbone = load(tmp_path, dtype="float32")

    with torch.inference_mode():
        assert torch.equal(backbone.logits(TOKENS), written(input_ids=TOKENS).logits)
    assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.float32}
    assert backbone.proof.max_kl_bits <= 1e-4


def test_the_tokenizer_is_that_of_the_file_whatever_lies_beside_it(tmp_path):
    """A tokenizer.json beside it is not pinned, and may be gone tomorrow."""
    save_gguf(tmp_path / "tiny.gguf")
    tiny_tokenizer(80).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(gguf_model.plain_folder(tmp_path / "tiny.gguf", "tiny"), "tiny")
    written = tiny_tokenizer()

    for text in (*TEXT, "two  spaces, 12 lines\n\nand 'quotes'"):
        assert tokenizer(text)["input_ids"] == written(text)["input_ids"]


def test_the_lens_of_a_gguf_file_records_its_blocks_and_fits_the_model_that_transformers_loads(tmp_path):
    """The whole stage. Whoever loads the file with transformers has the head that the lens was fit to."""
    path = tmp_path / "tiny.gguf"
    save_gguf(path, "Q8_0", n_layers=3)
    (tmp_path / "text.txt").write_text("\n\n".join(f"The king went to the market on day {i}." for i in range(200)))
    settings = atlas(
        source={"path": str(path), "dtype": "float32"},
        corpus={"kind": "files", "files": [str(tmp_path / "text.txt")], "seq_len": 16}
        | {"train_tokens": 176, "heldout_tokens": 128},
        fit={"positions_per_seq": 4, "epochs": 2, "batch_seqs": 4, "rank": 2, "validation_seqs": 2},
        sweep={"heldout_seqs": 4, "positions_per_seq": 4},
    )
    prefetch.build(settings, tmp_path / "corpus")
    artifacts.write_json(tmp_path / "code.json", {"stages/fit.py": "0" * 64})
    stage.run(settings, tmp_path / "code.json", tmp_path / "corpus", tmp_path / "lens")
    provenance = artifacts.read_json(tmp_path / "lens" / "provenance.json")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype="float32"
    )

    assert provenance["model"]["files"] == {"tiny.gguf": artifacts.sha256_file(path)}
    # Of three blocks with seven matrices and two norms each; embedding, final norm and head.
    assert provenance["quantization"] == {"quant_method": "gguf", "tensor_types": {"F32": 7, "Q8_0": 23}}
    assert Backbone.from_model(theirs).head.fingerprint() == provenance["head"]


def test_the_size_of_a_gguf_model_is_counted_from_its_header(tmp_path):
    """`lensmith fleet` asks for memory by it."""
    written = save_gguf(tmp_path / "tiny.gguf", "Q4_1")

    assert models.count_parameters(atlas(source={"path": str(tmp_path)}).source) == written.num_parameters()


@pytest.mark.parametrize(
    "length", [0, 10, 1000, -100], ids=["at 0", "in the first bytes", "in the header", "at the end"]
)
def test_a_file_that_is_not_whole_is_refused(tmp_path, length):
    """In one line, wherever it was cut."""
    save_gguf(tmp_path / "whole.gguf", "Q8_0")
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "whole.gguf").read_bytes()[:length])

    with pytest.raises(IntegrityError, match=r"^\S+cut\.gguf: no GGUF file, or not a whole one\. Nothing was w"):
        load(tmp_path / "cut.gguf")


def test_an_architecture_that_transformers_cannot_read_is_named(tmp_path):
    save_gguf(tmp_path / "tiny.gguf", architecture="clip")

    with pytest.raises(InputError, match=r"^\S+tiny\.gguf: cannot be used \(.*architecture clip .*\)\. The model"):
        load(tmp_path / "tiny.gguf")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    """In one line, with the command that installs it."""
    save_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf_file, "find_spec", lambda _name: None)

    with pytest.raises(InputError, match=r"needs the package gguf: pip install --editable '\.\[gguf\]'\."):
        gguf_model.plain_folder(tmp_path / "tiny.gguf", "tiny")


def test_a_name_that_no_pin_may_have_is_refused(tmp_path):
    save_gguf(tmp_path / "my tiny.gguf")

    with pytest.raises(InputError, match=r"'my tiny\.gguf' has other characters than letters, digits and _ \. \+ -"):
        load(tmp_path)


def test_a_file_is_converted_once(tmp_path, monkeypatch):
    """The next process reads the folder in the cache, and notices a bit that changed in it."""
    written, path = save_gguf(tmp_path / "tiny.gguf", "Q8_0"), tmp_path / "tiny.gguf"
    folder, conversions = gguf_model.plain_folder(path, "tiny"), []
    convert = gguf_model._convert
    monkeypatch.setattr(gguf_model, "_convert", lambda *to: (conversions.append(to), convert(*to)))
    gguf_model._converted.cache_clear()
    load(path)
    assert conversions == []

    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    gguf_model._converted.cache_clear()
    backbone = load(path)
    assert len(conversions) == 1
    with torch.inference_mode():
        assert torch.equal(backbone.logits(TOKENS), written(input_ids=TOKENS).logits)


def test_a_conversion_reads_the_file_for_its_facts_and_once_for_the_rest(tmp_path, monkeypatch):
    """Each reading takes seconds where a vocabulary is large. Afterwards the package is as it was."""
    save_gguf(tmp_path / "tiny.gguf")
    read, reader = [], gguf.GGUFReader
    counted = lambda path: (read.append(path), reader(path))[1]  # noqa: E731
    monkeypatch.setattr(gguf, "GGUFReader", counted)
    gguf_model.plain_folder(tmp_path / "tiny.gguf", "tiny")

    assert len(read) == 2 and gguf.GGUFReader is counted


def test_another_file_of_the_same_name_is_another_model(tmp_path):
    """The cache knows a file by its bytes."""
    save_gguf(tmp_path / "tiny.gguf")
    first = gguf_model.plain_folder(tmp_path / "tiny.gguf", "tiny")
    save_gguf(tmp_path / "tiny.gguf", seed=1)

    assert gguf_model.plain_folder(tmp_path / "tiny.gguf", "tiny") != first


def test_weights_for_which_the_disk_has_no_room_are_refused(tmp_path, monkeypatch):
    """Before they are read."""
    save_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf_model.shutil, "disk_usage", lambda _folder: SimpleNamespace(free=999))

    with pytest.raises(
        ResourceError, match=r"model: the weights of tiny need .* as float32, 999 Bytes are free\. `lens"
    ):
        gguf_model.plain_folder(tmp_path / "tiny.gguf", "tiny")


def test_a_log_gets_no_bar_of_the_gguf_reader(tmp_path, capfd):
    """In a log file every redraw of a bar is a line."""
    save_gguf(tmp_path / "tiny.gguf", "Q8_0")
    load(tmp_path)

    assert "GGUF tensors" not in capfd.readouterr().err
