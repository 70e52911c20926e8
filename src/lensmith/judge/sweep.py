"""Stage `sweep`: every lens at every layer, on held-out text and on probe prompts.

Writes into one folder (columns: `tables.py`, `probes.py`)
    heldout.csv                                 a line for each sequence, layer and lens; means over its positions
    positions.csv                               a line for each held-out position and lens
    output-<key>-records[-<lens>].csv           each position of each probe
    output-<key>-pure-next-token[-<lens>].csv   its last position, with everything the plan asks about it
    output-<key>-pure-next-token-rawlens.csv    there, the norm lens beside no norm; where sweep.raw asks
    trajectories.json                           each probe, every position and layer, for the report
    run.json                                    what was measured, last-layer consistency, medians by depth
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lensmith.files import artifacts
from lensmith.judge import calibration, heldout, probes, temperature, trajectories
from lensmith.judge.bench import Bench
from lensmith.judge.prompts import read_probes
from lensmith.judge.tables import HELDOUT_COLUMNS, POSITION_COLUMNS, TUNED
from lensmith.lens.depth import PERCENTILES
from lensmith.process.errors import InputError
from lensmith.settings.sections import ModelParams
from lensmith.source import corpus as corpora
from lensmith.source.discovery import max_length

NO_BLOCK = "Nothing was measured."
# The plan's project: a gain that a temperature explains is no gain of a lens.
ROTATION_BITS, CALIBRATION_SHARE = 0.2, 0.8


def run(settings: ModelParams, corpus: Path, lens: Path, out: Path) -> None:
    """Measure the lens of one model.

    Raises:
        InputError: a probe is wrong or longer than the context, or no held-out sequence is left to measure.
        IntegrityError: corpus or lens are damaged, or belong to another model.
    """
    lines = read_probes(settings.sweep.probes)
    bench = Bench.load(settings, corpus, lens, raw=settings.sweep.raw)
    first = settings.fit.validation_seqs  # those before it chose the lens's best step
    tokens = torch.from_numpy(corpora.read_heldout(corpus)[first:][: settings.sweep.heldout_seqs].astype(np.int64))
    if not len(tokens):
        raise InputError(f"{corpus}: no held-out sequence is left after fit.validation_seqs ({first}). {NO_BLOCK}")
    measured = heldout.measure(bench, tokens, settings.sweep, first)
    artifacts.write_csv(out / "heldout.csv", HELDOUT_COLUMNS, heldout.lines(measured))
    artifacts.write_csv(out / "positions.csv", POSITION_COLUMNS, heldout.position_lines(bench, measured))
    enough = slice(-(-calibration.ENOUGH // measured.positions.shape[1]))
    places = torch.from_numpy(measured.positions[enough])
    kept = calibration.capture(bench, tokens[enough], places)
    last = calibration.last_layer(bench, tokens[enough], places, kept)
    temperatures = calibration.norm_temperatures(bench, bench.baseline, kept)
    read = probes.read(bench, lines, temperatures, settings.sweep.top_k)
    read.write(out, f"output-{settings.key}")
    trajectories.write(out, bench, read.shown())
    text = heldout.block(bench, measured, _block_seqs(corpus))
    about = {
        "schema": 2,
        "model_key": settings.key,
        "model_id": settings.model_id,
        "model_stats": model_stats(bench),
        "lens": bench.about,
        "lenses": bench.names,
        "last_layer_consistency": calibration.last_layer_block(bench, last),
        "norm_temperature": {
            "lens": bench.baseline,
            "positions": last.positions,
            "by_layer": temperatures,
            "at_bound": [row for row, tau in enumerate(temperatures) if temperature.at_bound(tau)],
        },
        "heldout": text,
        "prompts": read.prompts(),
        "raw_lens_check": read.raw_lens_check(),
        "tuned_lens": {
            "status": "loaded",
            "summaries": read.summaries(),
            "attribution": attribution(text, bench.baseline),
            "provenance": artifacts.read_json(lens / "provenance.json"),
        },
    }
    artifacts.write_json(out / "run.json", finite(about))


def _block_seqs(corpus: Path) -> int:
    """How many neighbouring sequences a document of the mean length is long: what a bootstrap draws together.

    Where a document ends is not recorded; neighbours in the packed text are what may share one.
    """
    manifest = corpora.Manifest.read(corpus)
    return max(1, -(-manifest.heldout.tokens // (max(1, manifest.heldout.documents) * manifest.seq_len)))


def attribution(text: dict[str, Any], baseline: str) -> dict[str, Any] | None:
    """The plan's block of that name, by medians over held-out positions: what a temperature alone explains.

    None where no lens of temperatures was fit.
    """
    kl = text["median_kl_final_lens_bits"]
    if "temperature" not in kl:
        return None
    depths = [f"p{percent}" for percent in PERCENTILES]
    tuned = {p: kl[baseline][p] - kl[TUNED][p] for p in depths}
    temp = {p: kl[baseline][p] - kl["temperature"][p] for p in depths}
    rotation = {p: tuned[p] - temp[p] for p in depths}
    calibration_only = rotation["p50"] < ROTATION_BITS and temp["p50"] >= CALIBRATION_SHARE * tuned["p50"]
    return {
        "delta_kl_tuned_bits": tuned,
        "delta_kl_temperature_bits": temp,
        "delta_kl_rotation_bits": rotation,
        "prefer_tuned": rotation["p50"] >= ROTATION_BITS,
        "tuned_is_calibration_only": calibration_only,
    }


def model_stats(bench: Bench) -> dict[str, Any]:
    """The plan's block of that name."""
    config = bench.backbone.model.config.get_text_config()
    return {
        "num_layers": bench.n_layers,
        "d_model": bench.backbone.d_model,
        "n_heads": getattr(config, "num_attention_heads", None),
        "d_vocab": bench.backbone.d_vocab,
        "n_ctx": max_length(bench.backbone.model),
        "architecture": type(bench.backbone.model).__name__,
        "dtype": str(bench.backbone.dtype).removeprefix("torch."),
        "proof": asdict(bench.backbone.proof),
        "norm_note": bench.backbone.head.norm_note,
    }


def finite(value: Any) -> Any:
    """The same data with null for every number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
