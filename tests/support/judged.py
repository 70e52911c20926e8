"""The folders that gates read, written from functions: hand-made rows with known KPIs."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lensmith.files import artifacts
from lensmith.judge import judging, tables
from lensmith.judge.facts import (
    ContextPart,
    HeldoutFacts,
    LastLayer,
    LensIdentity,
    LogitTransform,
    ModelStats,
    NormTemperature,
    ProbeText,
    RawLensCheck,
    RunFacts,
    SuiteFacts,
    TunedLensFacts,
)
from lensmith.judge.judgement import Judgement
from lensmith.lens.depth import depth_layer
from lensmith.settings.sections import ModelParams
from tests.support.settings import atlas

Cell = Callable[[int, int, str], float]  # (unit, layer, lens) -> value
LIMITS: dict[str, Any] = {
    "delta_kl_bits_25": 0.2, "delta_kl_bits_50": 0.3, "delta_kl_bits_75": 0.3, "delta_kl_share": 0.1,
    "earliness_le_10_layers": 4.0,
    "earliness_le_5_layers": 2.0, "earliness_share": 0.6, "last_layer_kl_bits": 0.05, "worst_delta_kl_bits": -0.1,
    "ladder_gain_bits": 0.01, "position_delta_kl_bits": -0.1, "text_delta_kl_bits": -0.1,
    "artifact_score_increase": 0.1, "min_prompts": 3, "bootstrap_samples": 200, "confidence": 0.95, "seed": 316,
}  # fmt: skip


def settings(**limits: Any) -> ModelParams:
    return atlas(gates={**LIMITS, **limits})


LENSES = ("norm", "norm_next", "temperature", "bias", "tuned")
KL = {"tuned": 1.0, "bias": 2.0, "temperature": 2.5}  # of World.kl before the last block; 3 of the others
PLACES = 4  # positions in a sequence, two in each of two parts of the context


class World:
    """The two folders that gates read, written from functions of (unit, layer, lens)."""

    def __init__(self, folder: Path, *, n_layers: int = 4, prompts: int = 6, seqs: int = 5) -> None:
        self.sweep, self.suite = folder / "sweep", folder / "suite"
        self.n_layers, self.prompts, self.seqs = n_layers, prompts, seqs
        self.kl: Cell = lambda unit, layer, lens: 0.0 if layer == n_layers else KL.get(lens, 3.0)
        self.rank: Cell = lambda unit, layer, lens: 0 if layer >= (1 if lens == "tuned" else n_layers) else 50
        # Of what a lens says that a change does with what it does.
        self.cosine: Callable[[int, int, str, str], float] = lambda seq, layer, lens, direction: 0.5
        # Of the intermediate, and of that of another prompt; None where there is none.
        self.middle: Callable[[int, int, str], int | None] = lambda unit, layer, lens: None
        self.chance: Callable[[int, int, str], int | None] = lambda unit, layer, lens: None
        self.template: Callable[[int], str] = lambda unit: f"t{unit}"
        self.aligned: Callable[[int], bool] = lambda unit: True
        self.last_layer: list[float | None] = [0.01] * seqs
        self.lenses: tuple[str, ...] = LENSES
        self.kind, self.block_seqs = "low_rank", 1
        self.absent: tuple[int, ...] = ()  # layers that the tuned lens lacks
        self.at_position: Callable[[int, str, int], float] = lambda place, lens, percent: 0.0  # added to the KL there
        self.texts: tuple[str, ...] = ("code",)  # of corpus.also_heldout
        self.on_text: Callable[[str, int], float] = lambda lens, percent: 0.0  # added to the KL there
        self.scores: dict[str, list[float]] = {"norm": [0.5] * 4, "tuned": [0.5] * 4}  # artefact scores by prompt
        self.prompt_of: Callable[[int], int] = lambda text: text  # of a probe's text
        self.folder = folder

    def judge(self, **limits: Any) -> Judgement:
        self.write()
        judging.run(settings(**limits), self.sweep, self.suite, self.outputs)
        return Judgement.read(self.outputs.judgement)

    @property
    def outputs(self) -> judging.Outputs:
        ends = {"judgement": "json", "metrics": "json"}
        fields = dataclasses.fields(judging.Outputs)
        return judging.Outputs(*(self.folder / f"{field.name}.{ends.get(field.name, 'csv')}" for field in fields))

    def write(self) -> None:
        suite = SuiteFacts(
            schema=4,
            model_key="atlas",
            n_layers=self.n_layers,
            lens=self.identity,
            lenses=tuple(name for name in self.lenses if name != "raw"),
            files={},
            in_training_text=("p0",),
        )
        self._run_facts().write(self.sweep / "run.json")
        suite.write(self.suite / "suite.json")
        self._write_text(self.lenses, "heldout.csv", "positions.csv", self.at_position)
        changes = [
            [seq, layer, direction, name, self.cosine(seq, layer, name, direction), 1.0, 1.0]
            for layer in range(1, self.n_layers) for direction in tables.DIRECTIONS for name in self.lenses
            if layer in self.layers(name) for seq in range(self.seqs)
        ]  # fmt: skip
        artifacts.write_csv(self.sweep / "causal.csv", tables.CAUSAL_COLUMNS, changes)
        for text in self.texts:
            names = (file.format(text) for file in tables.OTHER_TEXT)
            self._write_text(tables.ALWAYS, *names, lambda place, lens, percent: self.on_text(lens, percent))
        self._write_suite()

    @property
    def identity(self) -> LensIdentity:
        return LensIdentity(weights_sha256="0" * 64, kind=self.kind, norm="final", rank=4, absent=self.absent)

    def layers(self, lens: str) -> tuple[int, ...]:
        return tables.layers(lens, self.n_layers, self.absent)

    def _run_facts(self) -> RunFacts:
        last: dict[str, Any] = dict.fromkeys(LastLayer.model_fields, 0.01) | {
            "temp_at_bound": False,
            "cfg_transform": LogitTransform(scale=1.0, softcap=None),
            "kl_final_lens_after_temp_bits_by_seq": tuple(self.last_layer),
            "n_positions": 1000,
            "warn_high_last_layer_kl": False,
        }
        check: dict[str, Any] = dict.fromkeys(RawLensCheck.model_fields, 0.5) | {
            "lens_only_semantics": 0,
            "risk_tier": "high",
        }
        parts = tuple(ContextPart(first=8 * part, last=8 * part + 7, n_positions=2 * self.seqs) for part in range(2))
        probes = tuple(
            ProbeText(
                fact_key=f"f{self.prompt_of(text)}",
                fact_index=0,
                prompt_id="pos",
                variant="orig",
                prompt="p",
                answer="a",
                aligned=True,
            )
            for text in range(4)
        )
        return RunFacts(
            schema=4,
            model_key="atlas",
            model_id="local/atlas",
            model_stats=ModelStats(
                num_layers=self.n_layers,
                d_model=4,
                n_heads=None,
                d_vocab=97,
                n_ctx=None,
                architecture="Model",
                dtype="float32",
                norm_note="",
            ),
            lens=self.identity,
            lenses=self.lenses,
            last_layer_consistency=LastLayer(**last),
            norm_temperature=NormTemperature(lens="norm", positions=1000, by_layer=(), at_bound=()),
            heldout=HeldoutFacts(
                block_seqs=self.block_seqs,
                n_positions=PLACES * self.seqs,
                parts=parts,
                median_kl_final_lens_bits={},
            ),
            also_heldout={
                name: HeldoutFacts(
                    block_seqs=1,
                    n_positions=PLACES * self.seqs,
                    parts=parts,
                    median_kl_final_lens_bits={},
                    tokens_per_byte=0.5,
                )
                for name in self.texts
            },
            prompts=probes,
            raw_lens_check={
                name: RawLensCheck(**{**check, "score_by_prompt": tuple(scores)})
                for name, scores in self.scores.items()
            },
            tuned_lens=TunedLensFacts(status="loaded", summaries=(), attribution=None, provenance={}),
        )

    def _write_text(
        self, lenses: tuple[str, ...], by_seq: str, by_position: str, added: Callable[[int, str, int], float]
    ) -> None:
        heldout = [
            [unit, layer, name, PLACES, self.kl(unit, layer, name), 0, 0, 0.5, 0]
            for unit in range(self.seqs) for name in lenses for layer in self.layers(name)
        ]  # fmt: skip
        artifacts.write_csv(self.sweep / by_seq, tables.HELDOUT_COLUMNS, heldout)
        lines = []
        for name in lenses:
            for unit, place in np.ndindex(self.seqs, PLACES):
                ranks = {layer: self.rank(unit, layer, name) for layer in self.layers("tuned")}
                first = [next((layer for layer, rank in ranks.items() if rank < k), None) for k in (10, 5, 1)]
                at = {p: depth_layer(self.n_layers, p) for p in (25, 50, 75)}
                kl = [
                    self.kl(unit, layer, name) + added(place, name, p) if layer in self.layers("tuned") else None
                    for p, layer in at.items()
                ]
                share = sum(rank < 1 for rank in ranks.values()) / len(ranks)
                lines.append([unit, 4 * place, place // 2, name, *first, None, share, *kl])
        artifacts.write_csv(self.sweep / by_position, tables.POSITION_COLUMNS, lines)

    def _write_suite(self) -> None:
        rows, prompts = [], []
        for unit in range(self.prompts):
            aligned = self.aligned(unit)
            for name in (lens for lens in self.lenses if lens != "raw"):
                for layer in self.layers(name):
                    rank = self.rank(unit, layer, name) if aligned else None
                    row = [f"p{unit}", "d", self.template(unit), layer, name, self.kl(unit, layer, name)]
                    middle, chance = (of(unit, layer, name) for of in (self.middle, self.chance))
                    rows.append([*row, 0, 0, 0.5, rank, 0.1, "x", 0, None, middle, None, chance])
            final = self.rank(unit, self.n_layers, "norm") if aligned else None
            prompts.append([f"p{unit}", "d", self.template(unit), "a", 3, "a", int(aligned), final, 0.1, None])
        artifacts.write_csv(self.suite / "rows.csv", tables.ROW_COLUMNS, rows)
        artifacts.write_csv(self.suite / "prompts.csv", tables.PROMPT_COLUMNS, prompts)
