"""Stage `sweep`: every lens at every layer, on held-out text and on probe prompts.

Writes into one folder (columns: `tables.py`, `probes.py`)
    heldout.csv                                  a line for each sequence, layer and lens; means over its positions
    output-<key>-records[-tuned].csv             each position of each probe
    output-<key>-pure-next-token[-tuned].csv     its last position, with everything the plan asks about it
    trajectories.json                            each probe, every position and layer, for the report
    run.json                                     what was measured, last-layer consistency, medians by depth
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lensmith.edge import artifacts
from lensmith.edge.params import ModelParams, SweepParams
from lensmith.errors import InputError
from lensmith.judge import calibration, probes, trajectories
from lensmith.judge.measure import MEASURED, Bench, Target, compare, rows
from lensmith.judge.prompts import read_probes
from lensmith.judge.tables import HELDOUT_COLUMNS, LENSES, NORMS, TUNED
from lensmith.lens.depth import PERCENTILES, depth_row
from lensmith.progress import track
from lensmith.source import corpus as corpora
from lensmith.source.discovery import max_length

KL = MEASURED.index("kl_final_lens_bits")
NO_BLOCK = "Nothing was measured."


@dataclass(frozen=True)
class Heldout:
    """MEASURED at every measured position of held-out text."""

    first: int  # index of the first measured sequence
    positions: NDArray[np.int64]  # (p,), the same in every sequence
    values: dict[tuple[str, int], NDArray[np.float64]]  # (lens, row) -> (n_seqs, p, len(MEASURED))

    @property
    def n_seqs(self) -> int:
        return len(next(iter(self.values.values())))


def run(settings: ModelParams, corpus: Path, lens: Path, out: Path) -> None:
    """Measure the lens of one model.

    Raises:
        InputError: a probe is wrong or longer than the context, or no held-out sequence is left to measure.
        IntegrityError: corpus or lens are damaged, or belong to another model.
    """
    lines = read_probes(settings.sweep.probes)
    bench = Bench.load(settings, corpus, lens)
    first = settings.fit.validation_seqs  # those before it chose the lens's best step
    tokens = corpora.read_heldout(corpus)[first : first + settings.sweep.heldout_seqs].astype(np.int64)
    if not len(tokens):
        raise InputError(f"{corpus}: no held-out sequence is left after fit.validation_seqs ({first}). {NO_BLOCK}")
    measured = measure(bench, torch.from_numpy(tokens), settings.sweep, first)
    artifacts.write_csv(out / "heldout.csv", HELDOUT_COLUMNS, heldout_lines(measured))
    enough = torch.from_numpy(tokens[: -(-calibration.ENOUGH // len(measured.positions))])
    places = torch.from_numpy(measured.positions)
    last = calibration.last_layer(bench, enough, places)
    baseline = NORMS[0] if bench.lens.norm == "final" else NORMS[1]
    temperatures = calibration.norm_temperatures(bench, baseline, enough, places)
    read = probes.read(bench, lines, baseline, temperatures, settings.sweep.top_k)
    read.write(out, f"output-{settings.key}")
    trajectories.write(out, bench, read.shown())
    about = {
        "schema": 1,
        "model_key": settings.key,
        "model_id": settings.model_id,
        "model_stats": model_stats(bench),
        "lens": bench.about,
        "last_layer_consistency": last_layer_block(last),
        "norm_temperature": {"lens": baseline, "positions": last.positions, "by_layer": temperatures},
        "heldout": heldout_block(bench, measured),
        "prompts": read.prompts(),
        "raw_lens_check": read.raw_lens_check(),
        "tuned_lens": {
            "status": "loaded",
            "summaries": read.summaries(),
            "provenance": artifacts.read_json(lens / "provenance.json"),
        },
    }
    artifacts.write_json(out / "run.json", finite(about))


def spread(seq_len: int, count: int) -> NDArray[np.int64]:
    """`count` positions evenly spread over a sequence, the middle of each of `count` equal parts."""
    return (2 * np.arange(count) + 1) * seq_len // (2 * count)


@torch.inference_mode()
def measure(bench: Bench, tokens: Tensor, settings: SweepParams, first: int = 0) -> Heldout:
    """MEASURED of every lens and row on sequences (n, seq_len)."""
    positions = spread(tokens.shape[1], min(settings.positions_per_seq, tokens.shape[1]))
    cells: dict[tuple[str, int], list[Tensor]] = {}
    for batch in track(tokens.split(settings.batch_seqs), "sweep", "chunk", Tensor.numel):
        places = torch.from_numpy(positions).expand(len(batch), -1)
        resid = bench.backbone.capture(batch, places)
        for part in resid.flatten(0, 1).split(bench.chunk):
            for key, values in _measure_part(bench, part):
                cells.setdefault(key, []).append(values)
    shape = (len(tokens), len(positions), len(MEASURED))
    by_key = {key: torch.cat(parts).view(shape).double().numpy() for key, parts in cells.items()}
    return Heldout(first, positions, by_key)


def _measure_part(bench: Bench, resid: Tensor) -> Iterator[tuple[tuple[str, int], Tensor]]:
    target = Target.of(bench.final(resid))
    for lens in LENSES:
        for row in rows(lens, bench.n_layers):
            yield (lens, row), compare(target, bench.decode(lens, row, resid)).measured.cpu()


def heldout_lines(measured: Heldout) -> Iterator[list[object]]:
    """The lines of heldout.csv, sequence by sequence."""
    means = {key: values.mean(axis=1).tolist() for key, values in measured.values.items()}
    for place in range(measured.n_seqs):
        for (lens, row), by_seq in means.items():
            yield [measured.first + place, row, lens, len(measured.positions), *by_seq[place]]


def heldout_block(bench: Bench, measured: Heldout) -> dict[str, Any]:
    """What run.json says about held-out text: means by layer, medians over positions at 25, 50 and 75 % of depth."""
    kl = {key: values[..., KL] for key, values in measured.values.items()}
    at = {percent: depth_row(bench.n_layers, percent) for percent in PERCENTILES}
    return {
        "first_sequence": measured.first,
        "n_seqs": measured.n_seqs,
        "n_positions": measured.n_seqs * len(measured.positions),
        "positions": measured.positions.tolist(),
        "layers": {f"p{percent}": row for percent, row in at.items()},
        "kl_final_lens_bits_by_layer": {
            lens: [float(kl[lens, row].mean()) for row in rows(lens, bench.n_layers)] for lens in LENSES
        },
        "median_kl_final_lens_bits": {
            lens: {f"p{percent}": float(np.median(kl[lens, row])) for percent, row in at.items()} for lens in LENSES
        },
        "median_delta_kl_bits": {
            norm: {f"p{percent}": float(np.median(kl[norm, row] - kl[TUNED, row])) for percent, row in at.items()}
            for norm in NORMS
        },
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


def last_layer_block(last: calibration.LastLayer) -> dict[str, Any]:
    """The plan's block, whose KL is KL(lens || final), and the same as KL(final || lens), which gates judge."""
    return {
        "kl_to_final_bits": last.kl_lens_final_bits,
        "top1_agree": last.top1_agree,
        "temp_est": last.temperature,
        "kl_after_temp_bits": last.kl_lens_final_after_temp_bits,
        "kl_final_lens_bits": last.kl_final_lens_bits,
        "kl_final_lens_after_temp_bits": float(np.mean(last.kl_final_lens_after_temp_bits_by_seq)),
        "kl_final_lens_after_temp_bits_by_seq": list(last.kl_final_lens_after_temp_bits_by_seq),
        "n_positions": last.positions,
    }


def finite(value: Any) -> Any:
    """The same data with null for every number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
