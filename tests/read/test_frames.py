"""Tables as pandas frames: every file of a folder, and tokens that pandas takes for missing values."""

import json

import pandas as pd
import pytest

import lensmith
from lensmith.lab import experiments
from lensmith.lab.experiments import Experiments, LabVariant
from lensmith.process.errors import InputError


def test_a_folder_gives_its_tables_by_name(tmp_path):
    """A token may be called null; an empty cell is missing."""
    (tmp_path / "rows.csv").write_text("top1,answer_token_rank\nnull,\nNA,3\n")
    pd.DataFrame({"text": [0, 1]}).to_parquet(tmp_path / "read.parquet")
    (tmp_path / "SHA256SUMS").write_text("")
    tables = lensmith.frames(tmp_path)

    assert list(tables) == ["read", "rows"] and len(tables["read"]) == 2
    assert tables["rows"].top1.tolist() == ["null", "NA"]
    assert tables["rows"].answer_token_rank.isna().tolist() == [True, False]
    assert lensmith.frames(tmp_path / "rows.csv")["rows"].equals(tables["rows"])


def test_a_lab_gives_metrics_and_experiments(tmp_path, monkeypatch):
    """A row for each model; of variants for each variant and model, with settings and metrics."""
    (tmp_path / "params.yaml").touch()
    (tmp_path / "metrics").mkdir()
    for model in ("a", "b"):
        (tmp_path / "metrics" / f"{model}.json").write_text(json.dumps({"kl50": 1.5}))
    variant = LabVariant("rank-8", {"a": {"fit.rank": 8}}, {"a": {"kl50": 1.25}})
    monkeypatch.setattr(experiments, "read", lambda _: Experiments([variant], {}))
    tables = lensmith.frames(tmp_path)

    assert tables["metrics"].to_dict("records") == [{"model": "a", "kl50": 1.5}, {"model": "b", "kl50": 1.5}]
    assert lensmith.frames(tmp_path / "metrics")["metrics"].equals(tables["metrics"])
    row = {"variant": "rank-8", "model": "a", "fit.rank": 8, "kl50": 1.25}
    assert tables["experiments"].to_dict("records") == [row]


def test_what_holds_no_table_is_refused(tmp_path):
    (tmp_path / "notes.md").touch()
    for place in (tmp_path, tmp_path / "notes.md", tmp_path / "absent"):
        with pytest.raises(InputError, match=r"(holds no table|no such file or folder).*Nothing was read\."):
            lensmith.frames(place)
