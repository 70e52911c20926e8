"""`lensmith diff`: rows against trajectories and KL written out in fp64, means against pandas, a page that draws."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import lensmith
from lensmith.cli.app import app
from lensmith.process.errors import InputError
from lensmith.read import diff, parts
from lensmith.read.dataset import Subject
from lensmith.read.diff import Pair
from lensmith.source.residuals import CAPTURE_TOKENS
from lensmith.source.tokenizer import Encoder
from tests.support.bench import random_lens
from tests.support.browser import Browser
from tests.support.released import save_release
from tests.support.tiny import tiny_model, tiny_tokenizer

TEXTS = ["The capital of Ostra is Lume.", "", "He said 7.", "In the town of Merrow, the king went to the market.", "a"]
N_LAYERS = 3


def subject(name: str, *, n_layers: int = N_LAYERS, seed: int = 0, bos: str = "tokenizer") -> Subject:
    model, tokenizer = tiny_model("llama", n_layers=n_layers, seed=seed), tiny_tokenizer()
    lens = random_lens(n_layers, model.config.hidden_size, size=0.1 + 0.1 * seed)
    reader = lensmith.bind(lens, model, tokenizer)
    return Subject(reader.backbone, reader.lens, Encoder(tokenizer, bos, model.config), name)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair(("first", "second"), (subject("first"), subject("second", seed=1)))


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return str(path)


@pytest.fixture
def compared(pair, texts, tmp_path, monkeypatch):
    """Rows and means, of texts that were read in several parts and batches."""
    monkeypatch.setattr(parts, "CAPTURE_TOKENS", CAPTURE_TOKENS._replace(cpu=64))
    monkeypatch.setattr(parts, "PART_TEXTS", 2)
    found = diff.write(tmp_path / "out", pair, [texts], "text", 5)
    return found, pd.read_parquet(tmp_path / "out" / "positions.parquet"), tmp_path / "out"


def written_out(side: Subject, text: str) -> torch.Tensor:
    """log2 of what a lens reads at layers 1..L, and the model at L, in fp64: (L, n, d_vocab)."""
    reader = lensmith.Reader(side.lens, side.backbone, "")
    ids = torch.tensor([side.encode(text)])
    resid = side.backbone.capture(ids, torch.arange(ids.shape[1])[None])[0]
    logits = [reader.read(resid[:, at], layer=at, logits=True).logits for at in range(1, N_LAYERS + 1)]
    return torch.stack(logits).double().log_softmax(-1) / np.log(2)


def test_rows_are_what_each_lens_reads_of_its_own_model(compared, pair):
    """KL to the own final answer as trajectories have it; between the models as written out in fp64."""
    _, rows, _ = compared
    assert rows.text.unique().tolist() == [0, 2, 3, 4]
    for number, group in rows.groupby("text"):
        ours, theirs = (written_out(side, TEXTS[number]) for side in pair.sides)
        for name, p, q in (("kl_a_b_bits", ours, theirs), ("kl_b_a_bits", theirs, ours)):
            wanted = (p.exp2() * (p - q)).sum(-1).T
            np.testing.assert_allclose(np.stack(group[name])[:, 1:].astype(float), wanted, rtol=1e-4, atol=1e-5)
        for letter, side in zip("ab", pair.sides, strict=True):
            read = lensmith.Reader(side.lens, side.backbone, "").trajectory(TEXTS[number])
            frame = read.frame()
            tuned = frame[frame["lens"] == "tuned"].pivot_table("kl_final_lens_bits", "pos", "layer")
            kl = np.stack(group[f"kl_final_lens_bits_{letter}"])[:, 1:].astype(float)
            np.testing.assert_allclose(kl, tuned, rtol=1e-4, atol=1e-4)
            final = frame[(frame["lens"] == "tuned") & (frame.layer == N_LAYERS)]
            assert group[f"final_token_{letter}"].tolist() == final.final_token.tolist()
            np.testing.assert_allclose([p[0] for p in group[f"top_p_{letter}"]], final.prob1, rtol=1e-4)


def test_means_are_over_positions_of_all_texts(compared):
    """By pandas, over rows of every part; the intervals hold them and are of the texts, not of the positions."""
    found, rows, _ = compared
    assert found.counts == {"read": 4, "empty": 1} and found.n_positions == len(rows)
    for name in diff.DISTANCES:
        wanted = np.stack(rows[name])[:, 1:].astype(float).mean(0)
        np.testing.assert_allclose([each.value for each in found.by_layer[name].values()], wanted, rtol=1e-6)
        assert all(each.lo <= each.value <= each.hi and each.units == 4 for each in found.by_layer[name].values())
    same = [np.mean([a[at] == b[at] for a, b in zip(rows.top_id_a, rows.top_id_b, strict=True)]) for at in (1, 2, 3)]
    np.testing.assert_allclose([each.value for each in found.by_layer["same_top"].values()], same)
    depth = found.depths["commitment_depth_0.5_bits"]
    means = [rows[f"commitment_depth_0.5_bits_{side}"].mean() for side in "ab"]
    np.testing.assert_allclose([depth[name].value for name in ("a", "b", "b_less_a")], [*means, means[1] - means[0]])


def test_many_texts_share_clusters(compared, pair, texts, monkeypatch):
    """What is held does not grow with the texts, and no mean changes."""
    found, _, out = compared
    monkeypatch.setattr(diff, "CLUSTERS", 2)
    fewer = diff.summarise(out / "positions.parquet", pair, found.counts)

    for name, curve in found.by_layer.items():
        np.testing.assert_allclose([fewer.by_layer[name][at].value for at in curve], [e.value for e in curve.values()])
    assert fewer.by_layer["same_top"][1].units == 2


def test_the_widest_positions_come_first_with_their_context(compared, monkeypatch):
    """Over parts; a context is the text before the position, and no longer than it may be."""
    found, rows, _ = compared
    final = rows.kl_a_b_bits.str[-1].sort_values(ascending=False)[: diff.N_WIDEST]
    np.testing.assert_allclose([each.kl_bits for each in found.widest], final)
    for each in found.widest:
        assert each.context == "<s>" + TEXTS[each.text][: len(each.context) - 3]
        assert (TEXTS[each.text] + " ").startswith((each.context + each.following)[3:])
        assert len(each.top_a) == len(each.top_b) == 5 and each.top_a[0][1] >= each.top_a[1][1]


def test_a_model_and_itself_do_not_differ(pair, texts, tmp_path):
    """Exactly."""
    same = Pair(("first", "first"), (pair.sides[0], pair.sides[0]))
    found = diff.write(tmp_path / "out", same, [texts], "text", 1)

    assert all(each.value == 0 for name in ("kl_a_b_bits", "kl_b_a_bits") for each in found.by_layer[name].values())
    assert all(each.value == 1 for each in found.by_layer["same_top"].values())
    assert all(by_side["b_less_a"].value == 0 for by_side in found.depths.values())


def test_layers_that_one_lens_lacks_are_left_out(pair, texts, tmp_path):
    """A published lens may have no map of some; depths are over the layers that both read."""
    a, b = pair.sides
    lacking = replace(pair, sides=(a, replace(b, lens=replace(b.lens, absent=(2,)))))
    found = diff.write(tmp_path / "out", lacking, [texts], "text", 1)
    rows = pd.read_parquet(tmp_path / "out" / "positions.parquet")

    assert all(list(curve) == [1, 3] for curve in found.by_layer.values())
    assert np.isnan(np.stack(rows.kl_a_b_bits).astype(float)[:, [0, 2]]).all()
    assert {*rows.prediction_depth_a, *rows.prediction_depth_b} <= {1, 3}


def test_models_that_cannot_be_compared_are_refused(pair, texts, tmp_path):
    """Other layers; other ids of the same text; nothing to show."""
    with pytest.raises(InputError, match="first has 3 blocks, deeper has 4"):
        Pair(("first", "deeper"), (pair.sides[0], subject("deeper", n_layers=4)))
    other = Pair(("first", "bare"), (pair.sides[0], subject("bare", bos="never")))
    with pytest.raises(InputError, match=r"row 0 \(text 0\) has other ids in first than in bare, .*the first at pos"):
        diff.write(tmp_path / "out", other, [texts], "text", 5)
    with pytest.raises(InputError, match="--top-k is 0"):
        diff.write(tmp_path / "out", pair, [texts], "text", 0)


def test_the_page_draws_and_asks_for_nothing(pair, texts, tmp_path):
    """With names and texts that are markup."""
    hostile = ("<img src=x onerror=\"document.title='gone'\">", "</script><script>document.title='gone'</script>")
    diff.write(tmp_path / "out", replace(pair, names=hostile), [texts], "text", 3)
    with Browser(tmp_path / "profile") as browser:
        browser.open(tmp_path / "out" / "diff.html")
        browser.until("document.querySelectorAll('.chart svg.main-svg').length >= 2")

        assert browser.errors == [] and [url for url in browser.requests if url.startswith("http")] == []
        assert browser.run("document.querySelector('h1').textContent") == " and ".join(hostile)
        assert browser.run("document.images.length") == 0
        assert browser.run("document.querySelectorAll('tbody tr').length") >= 4 + N_LAYERS + len(TEXTS)


def test_the_command_compares_released_lenses(texts, tmp_path):
    """Tables in the terminal; with --out the page and its numbers, which `lensmith.frames` opens."""
    for name, seed in (("a", 0), ("b", 1)):
        save_release(tmp_path / name, seed=seed)
    words = ["diff", *(str(tmp_path / name / "release") for name in "ab"), "--texts", texts]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    frames = lensmith.frames(tmp_path / "out")

    assert done.exit_code == 0 and "positions of 4 texts; left out: 1 empty" in done.output
    assert set(frames) == {"positions", "layers", "depths"} and (tmp_path / "out" / "diff.html").exists()
    assert frames["layers"].groupby("quantity").layer.apply(list).tolist() == [[1, 2, 3, 4]] * 5
    without = CliRunner().invoke(app, words)
    assert without.exit_code == 0 and without.output == done.output.rpartition("Page:")[0]
