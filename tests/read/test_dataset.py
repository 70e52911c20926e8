"""`lensmith read`: rows against trajectories of the same texts, and a run that was stopped against one that was not."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import lensmith
from lensmith.cli.app import app
from lensmith.files import artifacts, seals
from lensmith.lens.lens import Lens
from lensmith.process import stopping
from lensmith.process.errors import InputError, IntegrityError
from lensmith.read import dataset, parts
from lensmith.read.dataset import Request, Subject, settled
from lensmith.source.backbone import Backbone
from lensmith.source.residuals import CAPTURE_TOKENS
from lensmith.source.tokenizer import Encoder
from tests.support.bench import random_lens, write_stages
from tests.support.released import save_release
from tests.support.settings import atlas
from tests.support.tiny import tiny_model, tiny_tokenizer

TEXTS = ["The capital of Ostra is Lume.", "", "He said 7.", "In the town of Merrow, the king went to the market.", "a"]
N_LAYERS = 3


@pytest.fixture(scope="module")
def subject() -> Subject:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    reader = lensmith.bind(random_lens(N_LAYERS, model.config.hidden_size), model, tokenizer)
    return Subject(reader.backbone, reader.lens, Encoder(tokenizer, "tokenizer", model.config), "sha256")


@pytest.fixture
def request_(tmp_path) -> Request:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "texts.jsonl").write_text(lines)
    return Request((str(tmp_path / "texts.jsonl"),), "text", ("norm", "tuned"), "all", 5)


def rows(frame: pd.DataFrame, **where: object) -> pd.DataFrame:
    for name, value in where.items():
        frame = frame[frame[name] == value]
    return frame


def test_rows_are_the_trajectories_of_their_texts(subject, request_, tmp_path, monkeypatch):
    """Position by position and layer by layer, though texts of other lengths shared the forward pass."""
    monkeypatch.setattr(parts, "CAPTURE_TOKENS", CAPTURE_TOKENS._replace(cpu=64))
    monkeypatch.setattr(parts, "PART_TEXTS", 2)
    counts = dataset.write(tmp_path / "rows.parquet", subject, request_)
    written = pd.read_parquet(tmp_path / "rows.parquet")
    reader = lensmith.Reader(subject.lens, subject.backbone, "")

    assert counts == {"read": 4, "empty": 1} and not (tmp_path / "rows.parquet.parts").exists()
    assert pq.ParquetFile(tmp_path / "rows.parquet").num_row_groups == 3
    for number in (0, 2, 3, 4):
        wanted = reader.trajectory(TEXTS[number]).frame()
        for (lens, pos), cells in wanted.groupby(["lens", "pos"]):
            row = rows(written, text=number, lens=lens, pos=pos)
            assert len(row) == 1
            row, first = row.iloc[0], int(lens == "tuned")
            assert (row.row, row.token, row.final_token) == (number, cells.token.iloc[0], cells.final_token.iloc[0])
            for name in ("entropy_bits", "kl_final_lens_bits", "kl_lens_final_bits"):
                np.testing.assert_allclose(row[name][first:], cells[name], rtol=1e-4, atol=1e-4)
            ranks = row.next_token_rank[first:]
            np.testing.assert_array_equal(np.array(ranks, dtype=float), cells.next_token_rank)
            np.testing.assert_allclose([top[0] for top in row.top_p[first:]], cells.prob1, rtol=1e-4)
            assert first == 0 or np.isnan(row.entropy_bits[0])
            assert row.prediction_depth == first_from(cells.final_token_rank == 0, first)
            assert row["commitment_depth_0.5_bits"] == first_from(cells.kl_final_lens_bits <= 0.5, first)


def first_from(holds: pd.Series, first: int) -> int:
    """By definition: the first layer such that all from it on hold."""
    values = holds.tolist()
    return next(first + i for i in range(len(values)) if all(values[i:]))


def test_depths_settle_where_all_later_layers_agree():
    """An early layer that agrees by chance does not count."""
    holds = np.array([[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 0]], dtype=bool)

    assert settled(holds).tolist() == [2, 0, 3, 4]


def test_the_last_position_alone_has_the_same_numbers(subject, request_, tmp_path):
    """One row for each text and lens, whatever the texts beside it."""
    for name, positions in (("all", "all"), ("last", "last")):
        dataset.write(tmp_path / f"{name}.parquet", subject, replace(request_, positions=positions, lenses=("tuned",)))
    whole, last = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("all", "last"))
    ends = whole[whole.pos == whole.n_tokens - 1]

    assert last.text.tolist() == ends.text.tolist() == [0, 2, 3, 4] and set(last.lens) == {"tuned"}
    assert last.next_token_id.isna().all() and last.final_token_id.tolist() == ends.final_token_id.tolist()
    for name in ("entropy_bits", "kl_final_lens_bits"):
        np.testing.assert_allclose(np.stack(last[name]), np.stack(ends[name]), rtol=1e-4, atol=1e-4)


def test_a_run_that_was_stopped_goes_on(subject, request_, tmp_path, monkeypatch):
    """The file is the same, byte for byte, and no text is read twice."""
    monkeypatch.setattr(parts, "PART_TEXTS", 2)
    dataset.write(tmp_path / "whole.parquet", subject, request_)
    out, table, made = tmp_path / "rows.parquet", Subject.table, []

    def stopped(*arguments):
        made.append(arguments)
        stopping._deferring[-1].signal = 15
        return table(*arguments)

    monkeypatch.setattr(Subject, "table", stopped)
    for kept in (2, 4):
        with pytest.raises(stopping.Interrupted, match=f"{kept} of 5 texts are kept in .*; the same command goes on"):
            dataset.write(out, subject, request_)
    with pytest.raises(InputError, match="holds parts of another request"):
        dataset.write(out, subject, replace(request_, top_k=2))
    monkeypatch.setattr(Subject, "table", lambda *arguments: made.append(arguments) or table(*arguments))
    dataset.write(out, subject, request_)

    assert len(made) == 3 and out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    with pytest.raises(InputError, match=r"exists\. Nothing was written"):
        dataset.write(out, subject, request_)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lenses": ("norm", "other")}, "--lens is 'norm,other', must be norm, tuned or both"),
        ({"positions": "first"}, "--positions is 'first', must be all or last"),
        ({"top_k": 0}, "--top-k is 0"),
        ({"texts": ("no.jsonl",)}, "--texts names no.jsonl, which does not exist"),
        ({"column": "body"}, "no text can be read of 5"),
    ],
)
def test_what_cannot_be_read_is_refused(subject, request_, tmp_path, change, says):
    with pytest.raises(InputError, match=says):
        dataset.write(tmp_path / "rows.parquet", subject, replace(request_, **change))


FAMILIES = ("llama", "gpt2", "opt", "bloom", "falcon", "gemma2", "mamba")


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_right_changes_nothing(family):
    """No mask is passed: a causal model sees nothing to the right, whatever its positions are made of."""
    backbone = Backbone.from_model(tiny_model(family), tiny_tokenizer())
    ids = [[0, 5, 9, 30, 31, 32, 7], [0, 40, 41]]
    together, places = parts.capture(backbone, ids, [0, 1], "all")
    alone = torch.cat([parts.capture(backbone, ids, [text], "all")[0] for text in (0, 1)])

    assert [tuple(place) for place in places] == [(text, pos) for text in (0, 1) for pos in range(len(ids[text]))]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_a_model_of_the_lab_is_named_by_its_key(request_, tmp_path, monkeypatch):
    """Its lens, model and tokenizer are those of its artifacts; a file that changed is refused."""
    monkeypatch.chdir(tmp_path)
    settings = atlas(source={"path": str(tmp_path / "model")})
    folders = write_stages(tmp_path / "artifacts" / "atlas", settings)
    for folder in folders:
        seals.seal(folder)
    artifacts.write_json(tmp_path / "resolved" / "models" / "atlas.json", settings.model_dump(mode="json"))
    subject = Subject.load("atlas")
    dataset.write(tmp_path / "rows.parquet", subject, replace(request_, lenses=("tuned",)))
    rows = pd.read_parquet(tmp_path / "rows.parquet")
    wanted = lensmith.Reader(Lens.load(folders[1]), subject.backbone, "").trajectory(TEXTS[0]).frame()

    first = rows[rows.text == 0]
    kl = wanted[wanted["lens"] == "tuned"].pivot_table("kl_final_lens_bits", "pos", "layer")
    np.testing.assert_allclose(np.stack(first.kl_final_lens_bits)[:, 1:].astype(float), kl, rtol=1e-4, atol=1e-4)
    (folders[1] / "weights.safetensors").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"weights\.safetensors: sha256"):
        Subject.load("atlas")


def test_the_command_reads_with_a_released_lens(request_, tmp_path):
    """Its model is the one that the release pins."""
    release, _, _ = save_release(tmp_path / "made")
    out = tmp_path / "rows.parquet"
    words = ["read", str(release), "--texts", request_.texts[0], "--out", str(out), "--positions", "last"]
    done = CliRunner().invoke(app, [*words, "--lens", "tuned"])

    assert done.exit_code == 0 and "4 texts; left out: 1 empty" in done.output
    assert len(pd.read_parquet(out)) == 4
