"""Text that a model writes: drawn from its own distribution, the same whatever is asked for, packed as documents."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from lensmith.files import artifacts
from lensmith.process import environment
from lensmith.process.draws import Stream
from lensmith.process.errors import InputError
from lensmith.settings import fingerprint
from lensmith.settings.sections import ModelParams
from lensmith.source import corpus, prefetch, sampling
from lensmith.source.backbone import Backbone
from lensmith.source.key_values import growing_cache
from lensmith.source.sampling import Prompt, Writer
from tests.support.settings import REPOSITORY, atlas
from tests.support.tiny import save_tiny, tiny_model, tiny_tokenizer

SEQ_LEN = 24
END = 0  # of the tiny tokenizer, which begins texts with it too
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<s>{% endfor %}{% if add_generation_prompt %}bot: {% endif %}"
)


def settings(folder: Path, **changes: Any) -> ModelParams:
    text = {"kind": "sampled", "seq_len": SEQ_LEN, "train_tokens": 50 * SEQ_LEN, "heldout_tokens": 20 * SEQ_LEN}
    return atlas(
        source={"path": str(folder)},
        corpus=text | changes,
        fit={"positions_per_seq": 4, "validation_seqs": 2},
        sweep={"heldout_seqs": 2, "positions_per_seq": 8},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save_tiny(tmp_path_factory.mktemp("model"))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture
def writer(folder: Path) -> Writer:
    model = tiny_model("llama")
    prompts = tuple(Prompt(ids) for ids in ([0], [0, 5, 9], [0, 7, 7, 7, 7], [0, 11]))
    return Writer(Backbone.from_model(model, tiny_tokenizer()), {}, settings(folder).corpus, "train", prompts)


def written_naively(writer: Writer, document: int) -> list[int]:
    """A document drawn in fp64, one at a time, from the model's own logits of the whole text before each token."""
    prompt, model, corpus_settings = (
        writer.prompts[document % len(writer.prompts)],
        writer.backbone.model,
        writer.corpus,
    )
    ids = list(prompt.ids)
    words = Stream(corpus_settings.seed, f"sampled/{writer.side}").words(SEQ_LEN, step=document)
    while len(ids) < SEQ_LEN:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1, : len(tiny_tokenizer())].double().numpy()
        p = np.exp((logits - logits.max()) / corpus_settings.temperature)
        p /= p.sum()
        mass, nucleus = 0.0, set()
        for token in np.argsort(-p):
            if mass < corpus_settings.top_p:
                nucleus.add(int(token))
            mass += p[token]
        p = np.array([share if token in nucleus else 0.0 for token, share in enumerate(p)])
        u = int(words[len(ids)]) / 2**64 * p.sum()
        token = next(token for token, total in enumerate(itertools.accumulate(p)) if total > u)
        if token in writer.ends:
            break
        ids.append(token)
    return ids


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3_next"])
def test_documents_are_those_of_a_plain_draw_from_the_model(folder, family):
    """With prompts of several lengths, a cut distribution, caches of several kinds, and rows that end early."""
    model = tiny_model(family)
    model.generation_config.eos_token_id = list(range(0, 97, 13))  # so that about a token in thirteen ends a text
    backbone = Backbone.from_model(model, tiny_tokenizer())
    chosen = settings(folder, temperature=0.7, top_p=0.8).corpus
    prompts = tuple(Prompt(ids) for ids in ([0], [0, 5, 9], [0, 7, 7, 7, 7]))
    writer = Writer(backbone, {}, chosen, "train", prompts)
    documents = [ids for ids, _, _ in itertools.islice(writer.documents(1), 2 * sampling.ROWS)]

    assert {len(ids) for ids in documents} >= {SEQ_LEN, 5}, "some texts end early, and some do not"
    for number in range(0, len(documents), 7):
        assert documents[number] == written_naively(writer, number)


def test_ids_that_the_tokenizer_does_not_know_are_never_drawn(writer, monkeypatch):
    """A model may have more embeddings than its tokenizer has tokens: those ids are no text, however likely."""
    logits_of, beyond = sampling.next_logits, torch.arange(97) >= 90
    monkeypatch.setattr(sampling, "next_logits", lambda *args: logits_of(*args) + 100 * beyond)
    monkeypatch.setattr(sampling, "ROWS", 4)
    smaller = replace(writer, backbone=Backbone.from_model(writer.backbone.model, tiny_tokenizer(90)))
    ids = [token for document in itertools.islice(smaller.documents(1), 4) for token in document.ids]

    assert max(ids) < 90 and len(ids) > 10


def test_the_same_ids_come_out_of_tiles_of_any_height(writer, monkeypatch, tmp_path):
    """A draw depends on the seed, the side, the document and the position, and not on what is written beside it."""
    written = []
    for rows in (1, 5, 32):
        monkeypatch.setattr(sampling, "ROWS", rows)
        written.append([ids for ids, _, _ in itertools.islice(writer.documents(1), 40)])

    assert written[0] == written[1] == written[2]
    assert len({tuple(ids) for ids in written[0]}) > 35, "documents repeat each other"


def test_keys_and_values_are_those_of_transformers_cache():
    """Position by position, where the room runs out and where rows are left out; earlier answers stay as they were."""
    config, draw = tiny_model("llama").config, torch.Generator().manual_seed(0)
    ours, theirs = growing_cache(config), DynamicCache(config=config)
    kept = []
    for new in (1, 1, 3, 1, 1, 9):
        states = [torch.randn(2 if len(kept) > 3 else 4, 2, new, 8, generator=draw) for _ in range(2)]
        found, expected = ours.update(*states, 0), theirs.update(*states, 0)
        kept.append((found, [tensor.clone() for tensor in expected]))
        if len(kept) == 4:
            for cache in (ours, theirs):
                cache.reorder_cache(torch.tensor([3, 1]))

    for found, expected in kept:
        assert all(map(torch.equal, found, expected))
    assert ours.get_seq_length() == theirs.get_seq_length() == 16


def test_a_killed_run_goes_on_at_the_tile_that_it_had_not_finished(writer, monkeypatch):
    """Finished tiles are read, a damaged one is written anew, and the text is the same."""
    whole = list(itertools.islice(writer.documents(1), 3 * sampling.ROWS))
    tiles = sorted((environment.home() / "text").glob("*/tile-*.safetensors"))
    tiles[1].write_bytes(tiles[1].read_bytes()[:-1])
    tiles[2].unlink()
    numbers: list[int] = []
    write = Writer._write
    monkeypatch.setattr(Writer, "_write", lambda *args: numbers.append(args[1]) or write(*args))

    assert list(itertools.islice(writer.documents(1), 3 * sampling.ROWS)) == whole
    assert numbers == [1, 2]


@pytest.mark.parametrize("change", [{"seed": 1}, {"temperature": 0.5}, {"top_p": 0.9}, {"seq_len": 16}])
def test_other_settings_are_other_tiles(writer, folder, change):
    other = Writer(writer.backbone, {}, settings(folder, **change).corpus, writer.side, writer.prompts)

    assert other.key != writer.key


def test_a_draw_takes_each_token_with_its_probability():
    """Over 10,000 evenly spaced numbers the counts are p to within one; outside the nucleus they are 0."""
    p = torch.tensor([0.05, 0.4, 0.0, 0.3, 0.2, 0.05], dtype=torch.float64)
    n = 10_000
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n

    def counts(temperature: float, top_p: float) -> list[float]:
        drawn = sampling.draw(p.log().float().expand(n, -1), uniform, temperature, top_p)
        return (torch.bincount(drawn, minlength=6) / n).tolist()

    assert counts(1.0, 1.0) == pytest.approx(p.tolist(), abs=2e-4)
    assert counts(1.0, 0.6) == pytest.approx([0, 4 / 7, 0, 3 / 7, 0, 0], abs=2e-4)  # 0.4 + 0.3 reach 0.6
    squared = p**2 / (p**2).sum()
    assert counts(0.5, 1.0) == pytest.approx(squared.tolist(), abs=2e-4)


def test_a_model_writes_a_corpus_like_any_other(folder, tmp_path):
    """Texts begin with what the tokenizer adds; sides share none; a second run gives the same bytes."""
    manifests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        prefetch.build(settings(folder), tmp_path / name)
        manifests.append(corpus.Manifest.read(tmp_path / name))
    train, heldout = (read(tmp_path / "a").ravel().tolist() for read in (corpus.read_tokens, corpus.read_heldout))
    manifest = manifests[0]

    assert manifests[0] == manifests[1]
    assert (manifest.kind, manifest.train.sequences, manifest.heldout.sequences) == ("sampled", 50, 20)
    assert manifest.sampled is not None and manifest.sampled.temperature == 1.0
    assert train[0] == heldout[0] == END and train.count(END) == manifest.train.documents
    assert not set(documents_of(train)) & set(documents_of(heldout))


def documents_of(ids: list[int]) -> list[tuple[int, ...]]:
    """Texts between two beginnings; very short ones occur on both sides by chance."""
    starts = [place for place, token in enumerate(ids) if token == END]
    return [tuple(ids[a:b]) for a, b in itertools.pairwise(starts) if b - a > 4]


def test_without_a_token_that_begins_texts_none_is_in_them(folder, tmp_path):
    """As in other corpora of bos `never`: the model reads it, the corpus does not hold it."""
    prefetch.build(settings(folder, bos="never"), tmp_path)

    assert END not in corpus.read_tokens(tmp_path)


def test_chats_are_answered_and_end_as_the_template_ends_them(folder, tmp_path):
    """Prompts of the two sides differ; the manifest names file and template."""
    names = "abcdefghij"
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"text": [{"role": "me", "content": name * 3}]}) + "\n" for name in names))
    prefetch.build(settings(folder, files=[str(file)], temperature=1.3), tmp_path)
    manifest = corpus.Manifest.read(tmp_path)
    tokenizer = tiny_tokenizer()
    sides = [tokenizer.decode(read(tmp_path).ravel()) for read in (corpus.read_tokens, corpus.read_heldout)]
    train, heldout = ({name for name in names if f"me: {name * 3}<s>bot: " in text} for text in sides)

    assert train | heldout == set(names) and not train & heldout and heldout
    ended = manifest.train.documents + manifest.heldout.documents - manifest.cut_documents
    closed = sum(text.count("<s>") for text in sides) - sum(text.count("me: ") for text in sides)
    assert math.isclose(closed, ended, abs_tol=2)  # the last text of each side may be cut by the end of the corpus
    assert [source.rows for source in manifest.train.files] == [(0, len(train))]
    assert manifest.tokenizer.chat_template_sha256 == artifacts.sha256_text(TEMPLATE)


@pytest.mark.parametrize(
    ("lines", "changes", "message"),
    [
        (['"Once"'], {}, "holds 1 prompts, must hold at least 2"),
        (['"Once"', "null"], {}, r"row 2: is no prompt \(none\)"),
        (['"Once"', json.dumps("word " * 40)], {}, rf"row 2: has \d+ tokens, must have 1 to {SEQ_LEN - 1}"),
        ([], {"temperature": 1e-3}, "of 64 heldout texts that the model wrote, 1 are new; raise corpus.temperature"),
    ],
)
def test_wrong_prompts_and_a_model_that_repeats_itself_are_refused(folder, tmp_path, lines, changes, message):
    """In one line, before anything is written."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f'{{"text": {line}}}\n' for line in lines))
    names = [str(file)] if lines else []

    with pytest.raises(InputError, match=message):
        prefetch.build(settings(folder, files=names, heldout_tokens=200 * SEQ_LEN, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensor_parallel_models_do_not_write():
    """The other processes repeat passes of rank 0, and have no cache of what was read."""
    with pytest.raises(ValueError, match=r"source\.placement is tp, must be single or auto for corpus\.kind sampled"):
        atlas(source={"placement": "tp"}, corpus={"kind": "sampled"})


def test_a_model_that_does_not_read_the_cache_is_refused(tmp_path):
    """Mamba takes its cache under another name, and each token would be drawn as if it were the first."""
    with pytest.raises(InputError, match="MambaForCausalLM does not go on from a cache as it reads a whole text"):
        prefetch.build(settings(save_tiny(tmp_path / "model", "mamba")), tmp_path / "out")


def test_a_text_of_the_hub_does_not_depend_on_what_loads_a_model():
    """Else an edit of the backbone would read every data set again, over the network."""
    files = fingerprint.fingerprint(REPOSITORY / "stages/prefetch.py", REPOSITORY)

    assert not [name for name in files if Path(name).stem in ("sampling", "backbone", "loading")]
