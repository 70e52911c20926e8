"""Stage `sweep`: every lens at every layer, on held-out text and on probe prompts.

Writes into one folder (columns: `tables.py`, `probes.py`)
    heldout.csv                                 a line for each sequence, layer and lens; means over its positions
    positions.csv                               a line for each held-out position and lens
    heldout-<name>.csv, positions-<name>.csv    the same of a text of corpus.also_heldout, of ALWAYS alone
    causal.csv                                  what each lens says that a change of a residual does, and what it does
    output-<key>-records[-<lens>].csv           each position of each probe
    output-<key>-pure-next-token[-<lens>].csv   its last position, with everything that probes.py says
    output-<key>-pure-next-token-rawlens.csv    there, the norm lens beside no norm; where sweep.raw asks
    trajectories.json                           each probe, every position and layer, for the report
    run.json                                    what was measured, last-layer consistency, medians by depth
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from lensmith.files import artifacts
from lensmith.judge import calibration, causal, heldout, probes, trajectories
from lensmith.judge.bench import Bench
from lensmith.judge.facts import (
    HeldoutFacts,
    LastLayer,
    ModelStats,
    NormTemperature,
    RunFacts,
    TemperatureShare,
    TunedLensFacts,
)
from lensmith.judge.prompts import read_probes
from lensmith.judge.tables import ALWAYS, CAUSAL_COLUMNS, HELDOUT_COLUMNS, OTHER_TEXT, POSITION_COLUMNS, TUNED
from lensmith.lens import temperature
from lensmith.lens.provenance import PROVENANCE, Provenance
from lensmith.process.errors import InputError
from lensmith.settings.sections import ModelParams
from lensmith.source import corpus as corpora
from lensmith.source.configuration import max_length
from lensmith.source.corpus import CorpusSide

# Limits of the reference recipe: a gain that a temperature explains is no gain of a lens.
ROTATION_BITS, CALIBRATION_SHARE = 0.2, 0.8


def run(settings: ModelParams, corpus: Path, lens: Path, out: Path) -> None:
    """Measure the lens of one model.

    Raises:
        InputError: a probe is wrong or longer than the context, or no held-out sequence is left to measure.
        IntegrityError: corpus or lens are damaged, or belong to another model.
    """
    lines = read_probes(settings.sweep.probes)
    bench = Bench.load(settings, corpus, lens, raw=settings.sweep.raw)
    text, last, temperatures = held_out_text(bench, settings, corpus, out)
    first = settings.fit.validation_seqs
    tokens = corpora.read_heldout(corpus)[first:][: settings.sweep.causal_positions].astype(np.int64)
    changes = causal.lines(bench, torch.from_numpy(tokens), settings.sweep.seed, first)
    artifacts.write_csv(out / "causal.csv", CAUSAL_COLUMNS, changes)
    read = probes.read(bench, lines, temperatures.by_layer, settings.sweep.top_k)
    read.write(out, f"output-{settings.key}")
    trajectories.write(out, bench, read.shown(), "sweep, trajectories")
    facts = RunFacts(
        schema=4,
        model_key=settings.key,
        model_id=settings.model_id,
        model_stats=model_stats(bench),
        lens=bench.identity,
        lenses=bench.names,
        last_layer_consistency=last,
        norm_temperature=temperatures,
        heldout=text,
        also_heldout=dict(other_texts(bench, settings, corpus, out)),
        prompts=tuple(case.text for case in read.cases),
        raw_lens_check=read.raw_lens_check(),
        tuned_lens=TunedLensFacts(
            status="loaded",
            summaries=read.summaries(),
            attribution=temperature_share(text, bench.baseline),
            provenance=Provenance.read(lens / PROVENANCE).data(),
        ),
    )
    facts.write(out / "run.json")


def held_out_text(
    bench: Bench, settings: ModelParams, corpus: Path, out: Path
) -> tuple[HeldoutFacts, LastLayer, NormTemperature]:
    """Measure held-out text, write its two tables, and fit the temperatures on its first positions.

    Raises:
        InputError: no sequence is left.
    """
    first = settings.fit.validation_seqs  # the fit was validated on those before it
    tokens = torch.from_numpy(corpora.read_heldout(corpus)[first:][: settings.sweep.heldout_seqs].astype(np.int64))
    if not len(tokens):
        raise InputError(
            f"{corpus}: no held-out sequence is left after fit.validation_seqs ({first}). Nothing was measured."
        )
    n = calibration.n_seqs(bench.backbone.d_vocab, min(settings.sweep.positions_per_seq, tokens.shape[1]))
    measured = heldout.measure(bench, tokens, settings.sweep, first, resid_seqs=n)
    artifacts.write_csv(out / "heldout.csv", HELDOUT_COLUMNS, heldout.lines(measured))
    artifacts.write_csv(out / "positions.csv", POSITION_COLUMNS, heldout.position_lines(bench, measured))
    manifest = corpora.Manifest.read(corpus)
    last = calibration.last_layer(bench, tokens[:n], torch.from_numpy(measured.positions[:n]), measured.resid)
    taus = calibration.norm_temperatures(bench, bench.baseline, measured.resid)
    temperatures = NormTemperature(
        lens=bench.baseline,
        positions=last.n_positions,
        by_layer=tuple(taus),
        at_bound=tuple(layer for layer, tau in enumerate(taus) if temperature.at_bound(tau)),
    )
    return heldout.facts(bench, measured, block_seqs(manifest.heldout), manifest.tokens_per_byte), last, temperatures


def other_texts(bench: Bench, settings: ModelParams, corpus: Path, out: Path) -> Iterator[tuple[str, HeldoutFacts]]:
    """Measure norm and tuned lenses on each text of corpus.also_heldout, and write its two tables."""
    for name, text in corpora.Manifest.read(corpus).also_heldout.items():
        tokens = torch.from_numpy(corpora.read_other(corpus, name)[: settings.sweep.heldout_seqs].astype(np.int64))
        measured = heldout.measure(bench, tokens, settings.sweep, lenses=ALWAYS, name=f"sweep, {name}")
        by_seq, by_position = (out / file.format(name) for file in OTHER_TEXT)
        artifacts.write_csv(by_seq, HELDOUT_COLUMNS, heldout.lines(measured))
        artifacts.write_csv(by_position, POSITION_COLUMNS, heldout.position_lines(bench, measured))
        yield name, heldout.facts(bench, measured, block_seqs(text.side), text.tokens_per_byte)


def block_seqs(side: CorpusSide) -> int:
    """Neighbouring sequences that a bootstrap draws together: as many as a document of the mean length fills.

    Where a document ends is not recorded, and neighbours may share one.
    """
    return max(1, -(-side.sequences // max(1, side.documents)))


def temperature_share(text: HeldoutFacts, baseline: str) -> TemperatureShare | None:
    """What a temperature alone explains, by medians over held-out positions; None where no such lens was fit."""
    # A median that is not finite is None in the facts; as NaN it makes what is computed from it NaN too.
    kl = {
        lens: {depth: math.nan if bits is None else bits for depth, bits in by_depth.items()}
        for lens, by_depth in text.median_kl_final_lens_bits.items()
    }
    if "temperature" not in kl:
        return None
    tuned = {depth: bits - kl[TUNED][depth] for depth, bits in kl[baseline].items()}
    temp = {depth: bits - kl["temperature"][depth] for depth, bits in kl[baseline].items()}
    rotation = {depth: bits - temp[depth] for depth, bits in tuned.items()}
    return TemperatureShare(
        delta_kl_tuned_bits=tuned,
        delta_kl_temperature_bits=temp,
        delta_kl_rotation_bits=rotation,
        prefer_tuned=rotation["p50"] >= ROTATION_BITS,
        tuned_is_calibration_only=rotation["p50"] < ROTATION_BITS and temp["p50"] >= CALIBRATION_SHARE * tuned["p50"],
    )


def model_stats(bench: Bench) -> ModelStats:
    """The model's shape, as its configuration and its modules say."""
    config = bench.backbone.model.config.get_text_config()
    return ModelStats(
        num_layers=bench.n_layers,
        d_model=bench.backbone.d_model,
        n_heads=getattr(config, "num_attention_heads", None),
        d_vocab=bench.backbone.d_vocab,
        n_ctx=max_length(bench.backbone.model.config),
        architecture=type(bench.backbone.model).__name__,
        dtype=str(bench.backbone.dtype).removeprefix("torch."),
        norm_note=bench.backbone.head.norm_note,
    )
