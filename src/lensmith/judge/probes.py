"""Probe prompts in the CSVs of the reference recipe's project: the same columns, ours only at the end.

Its definitions, with y the vector that W_U reads: `kl_to_final_bits` = KL(lens || final); `answer_rank` counts from 1;
`copy_*` say that the top token repeats the prompt; `cos_to_final` = cos(y W_U^T, final logits); `cos_to_answer`,
`cos_to_prompt_max` = cos(y, rows of W_U); `resid_norm_ratio`, `delta_resid_cos` compare the residual before and after
its norm; `control_margin` = p(control's answer) - p(answer).

Empty cells, by these definitions: what asks for the answer, where it has no first token; `control_margin` but for a
control prompt; `answer_logit_gap` unless the answer is on top, `answer_vs_top1_gap` if it is; `semantic_margin_ok`,
`kl_to_final_bits_norm_temp` and `topk_jaccard_raw_norm@50` but for the norm lens, of which they speak;
`topk_jaccard_consecutive@50` at a lens's first layer; `topN`, `probN` beyond sweep.top_k.

The table `rawlens`, where the raw lens is asked for, sets the norm lens beside the residual decoded without a norm;
`entropy_gap_bits` is the raw lens's entropy minus the norm lens's.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lensmith.files import artifacts
from lensmith.judge import next_token_row
from lensmith.judge.bench import Bench
from lensmith.judge.facts import TIERS, Contrast, ProbeSummary, ProbeText, RawLensCheck
from lensmith.judge.heldout import milestones
from lensmith.judge.prompts import Probe, Variant, gold_token
from lensmith.judge.tables import PRISM, RANKS, RAW, TUNED
from lensmith.judge.trajectories import Shown
from lensmith.judge.walk import MEASURED, Reading
from lensmith.lens.depth import PERCENTILES, depth_layer
from lensmith.process.progress import Progress

TOPS = 20  # pairs of topN, probN columns, however many are filled
WHERE = ("fact_key", "fact_index", "prompt_id", "prompt_variant", "layer", "pos", "token", "entropy", "entropy_bits")
TOP_COLUMNS = tuple(name for i in range(1, TOPS + 1) for name in (f"top{i}", f"prob{i}"))
RECORD_COLUMNS = (*WHERE, *TOP_COLUMNS, "rest_mass")
PURE_COLUMNS = (*RECORD_COLUMNS, *next_token_row.COLUMNS)
RAW_COLUMNS = (
    *WHERE[: WHERE.index("pos")],
    *(f"{name}_{lens}" for lens in ("raw", "norm") for name in
      ("p_top1", "top1_token_id", "top1_token_str", "p_answer", "answer_rank")),
    "kl_norm_vs_raw_bits", "kl_raw_to_norm_bits", "js_divergence", "entropy_bits_norm", "entropy_bits_raw",
    "entropy_gap_bits", "l1_prob_diff", "topk_jaccard_raw_norm@50", "topk_jaccard_consecutive@50",
    "norm_only_semantics",
)  # fmt: skip
NEXT = "⟨NEXT⟩"

Line = list[object]


@dataclass(frozen=True)
class Case:
    """One text of a probe, in tokens."""

    text: ProbeText
    ids: list[int]
    gold: int | None  # the first token of the answer
    other: int | None  # for a control: the first token of the probe's own answer

    @property
    def where(self) -> tuple[str, int, str, str]:
        """The first four cells of its lines."""
        return self.text.fact_key, self.text.fact_index, self.text.prompt_id, self.text.variant

    def records(self, bench: Bench, layer: int, reading: Reading) -> list[Line]:
        """A line for each position: its token, the entropy, the top tokens of the lens and their probability."""
        entropies = reading.measured[:, MEASURED.index("entropy_bits")].tolist()
        p, ids = reading.top_log_q.exp().tolist(), reading.top_ids.tolist()
        lines: list[Line] = []
        for pos, (entropy, chances, tokens) in enumerate(zip(entropies, p, ids, strict=True)):
            pairs = [
                cell for token, chance in zip(tokens, chances, strict=True) for cell in (bench.text(token), chance)
            ]
            padding = [None] * (2 * TOPS - len(pairs))
            where = [*self.where, layer, pos, bench.text(self.ids[pos])]
            lines.append([*where, entropy, entropy, *pairs, *padding, max(0.0, 1.0 - sum(chances))])
        return lines

    def beside_raw(self, bench: Bench, layer: int, facts: next_token_row.Row) -> Line:
        """A line of the table rawlens."""
        tops = (facts["top1_raw"], facts["top1"])
        raw = (facts["p_top1_raw"], tops[0], bench.text(tops[0]), facts["p_answer_raw"], facts["answer_rank_raw"])
        norm = (facts["p_top1"], tops[1], bench.text(tops[1]), facts["p_answer"], facts["answer_rank"])
        gap = facts["entropy_bits_raw"] - facts["entropy_bits"]
        distances = (
            facts["kl_lens_raw_bits"],
            facts["kl_raw_lens_bits"],
            facts["js_divergence"],
            facts["entropy_bits"],
        )
        overlap = (facts["topk_jaccard_raw_norm@50"], facts["topk_jaccard_consecutive@50"])
        alone = None if self.gold is None else facts["answer_rank"] == 1 and facts["answer_rank_raw"] != 1
        return [
            *self.where,
            layer,
            *raw,
            *norm,
            *distances,
            facts["entropy_bits_raw"],
            gap,
            facts["l1_prob_diff"],
            *overlap,
            alone,
        ]


class _Milestones(NamedTuple):
    """One text under one lens."""

    cosine: dict[str, int | None]  # the first layers where it is high
    rank: dict[str, int | None]  # the first layers where the answer is within a rank
    kl_bits: dict[str, float | None]  # by depth


@dataclass
class Probes:
    """The lines of the CSVs, and the facts of each row of the pure CSV."""

    n_layers: int
    baseline: str
    lenses: tuple[str, ...]  # that were read: the baseline, the tuned lens, and Prism and the raw one where they are
    cases: list[Case]
    records: dict[str, list[Line]] = field(default_factory=dict)  # by lens
    nexts: dict[str, list[Line]] = field(default_factory=dict)
    raws: list[Line] = field(default_factory=list)  # of the table rawlens
    facts: dict[tuple[int, str, int], next_token_row.Row] = field(default_factory=dict)  # (case, lens, layer)

    def add_last_position(self, bench: Bench, index: int, stream: Tensor, temperatures: Sequence[float | None]) -> None:
        """The rows of the last position of a case, whose residual stream is (1, L + 1, d_model).

        The records of the case must have been added; that of the last position is the last of each layer's.
        """
        case = self.cases[index]
        final = bench.final(stream)[0]
        prompt = next_token_row.LastPosition.of(
            bench, case.ids, answer=case.text.answer, gold=case.gold, other=case.other, final=final
        )
        token = WHERE.index("token")
        for lens in self.lenses:
            seen, at = next_token_row.Seen(), bench.layers(lens)
            records = self.records[lens][-len(at) * len(case.ids) :][len(case.ids) - 1 :: len(case.ids)]
            read = next_token_row.LastLogits.of(bench, lens, stream)
            for layer, record, logits in zip(at, records, read, strict=True):
                tau = temperatures[layer] if lens == self.baseline else None
                facts = next_token_row.row(bench, prompt, seen, lens=lens, read=logits, tau=tau)
                self.facts[index, lens, layer] = facts
                line = [*record[:token], NEXT, *record[token + 1 :]]
                self.nexts.setdefault(lens, []).append([*line, *(facts[name] for name in next_token_row.COLUMNS)])
                if lens == self.baseline:
                    self.raws.append(case.beside_raw(bench, layer, facts))

    def write(self, out: Path, stem: str) -> None:
        """The CSVs, those of the baseline without an ending, the others' with -<lens>."""
        for lens in self.lenses:
            end = "" if lens == self.baseline else f"-{lens}"
            artifacts.write_csv(out / f"{stem}-records{end}.csv", RECORD_COLUMNS, self.records.get(lens, []))
            artifacts.write_csv(out / f"{stem}-pure-next-token{end}.csv", PURE_COLUMNS, self.nexts.get(lens, []))
        if RAW in self.lenses:
            artifacts.write_csv(out / f"{stem}-pure-next-token-rawlens.csv", RAW_COLUMNS, self.raws)

    def shown(self) -> list[Shown]:
        """Every text with all of its words, as the report shows it."""
        return [
            Shown(f"{text.fact_key}{', control' * (text.prompt_id == 'ctl')}", text.prompt, text.answer, case.ids)
            for case in self.cases
            if (text := case.text).variant == "orig"
        ]

    def summaries(self) -> tuple[ProbeSummary, ...]:
        """Of each text: where the answer first ranks 10, 5, 1, where the cosine first is high, and KL by depth."""
        summaries = []
        for number, case in enumerate(self.cases):
            baseline, tuned = self._milestones(number, self.baseline), self._milestones(number, TUNED)
            summaries.append(
                ProbeSummary(
                    fact_key=case.text.fact_key,
                    prompt_id=case.text.prompt_id,
                    variant=case.text.variant,
                    cosine_milestones=_contrast(baseline.cosine, tuned.cosine, sign=1),
                    rank_milestones=_contrast(baseline.rank, tuned.rank, sign=1),
                    kl_bits_at_percentiles=_contrast(baseline.kl_bits, tuned.kl_bits, sign=-1),
                )
            )
        return tuple(summaries)

    def _milestones(self, case: int, lens: str) -> "_Milestones":
        by_layer = self._by_layer(case, lens)
        ranks = {layer: facts["answer_rank"] for layer, facts in by_layer.items() if facts["answer_rank"] is not None}
        at = {f"p{percent}": depth_layer(self.n_layers, percent) for percent in PERCENTILES}
        return _Milestones(
            milestones({layer: facts["cos_to_final"] for layer, facts in by_layer.items()}),
            {f"le_{k}": next((layer for layer, rank in ranks.items() if rank <= k), None) for k in RANKS},
            {name: by_layer[layer]["kl_to_final_bits"] if layer in by_layer else None for name, layer in at.items()},
        )

    def _by_layer(self, case: int, lens: str) -> dict[int, next_token_row.Row]:
        """The facts of one text under a lens at each layer that it reads."""
        layers = range(self.n_layers + 1)
        return {layer: self.facts[case, lens, layer] for layer in layers if (case, lens, layer) in self.facts}

    def raw_lens_check(self) -> dict[str, RawLensCheck]:
        """How far each lens departs from decoding the residual without a norm, by the reference recipe's score.

        score = 0.6 share(layers with KL(lens || raw) >= 1 bit) + 0.3 [the lens alone has the answer on top somewhere]
        + 0.1 min(1, max KL / 5). Below 0.2 low, up to 0.5 medium, else high. `v2` adds 0.1 min(1, median JS / 0.1) and
        0.05 min(1, median L1 / 0.5), and ends at 1.
        """
        checks = {}
        for lens in self.lenses:
            if lens == RAW or not self.cases:
                continue
            by_case = [
                [facts for layer, facts in self._by_layer(case, lens).items() if layer]
                for case in range(len(self.cases))
            ]
            together = [facts for by_layer in by_case for facts in by_layer]
            js, l1 = (median(facts[name] for facts in together) for name in ("js_divergence", "l1_prob_diff"))
            score, share, largest, alone = artifact_score(together)
            wider = score + 0.1 * min(1.0, js / 0.1) + 0.05 * min(1.0, l1 / 0.5)
            checks[lens] = RawLensCheck(
                kl_ge_1_bit_share=share,
                max_kl_lens_raw_bits=largest,
                js_p50=js,
                l1_p50=l1,
                lens_only_semantics=alone,
                lens_artifact_score=score,
                lens_artifact_score_v2=min(1.0, wider),
                risk_tier=TIERS[(score >= 0.2) + (score > 0.5)],
                score_by_prompt=tuple(artifact_score(by_layer)[0] for by_layer in by_case),
            )
        return checks


def artifact_score(rows: Sequence[next_token_row.Row]) -> tuple[float, float, float, int]:
    """The score of some rows of one lens, the share of them at 1 bit or more, the largest KL, and where it is alone."""
    kl = [facts["kl_lens_raw_bits"] for facts in rows]
    alone = sum(facts["answer_rank"] == 1 and facts["answer_rank_raw"] != 1 for facts in rows)
    share = sum(value >= 1 for value in kl) / len(kl)
    return 0.6 * share + 0.3 * (alone > 0) + 0.1 * min(1.0, max(kl) / 5), share, max(kl), alone


def _contrast(baseline: Mapping[str, float | None], tuned: Mapping[str, float | None], *, sign: int) -> Contrast:
    pairs = {key: (value, tuned[key]) for key, value in baseline.items()}
    delta = {key: None if a is None or b is None else sign * (b - a) for key, (a, b) in pairs.items()}
    return Contrast(baseline=dict(baseline), tuned=dict(tuned), delta=delta)


@torch.inference_mode()
def read(bench: Bench, probes: Iterable[tuple[str, Probe]], temperatures: Sequence[float | None], top_k: int) -> Probes:
    """Every text of every probe at every layer and position.

    The lenses are the norm lens of the tuned lens's own norm, the tuned lens, and Prism and the raw lens where the
    bench has them.

    Args:
        temperatures: of that norm lens at layers 0..L.

    Raises:
        InputError: a text does not fit into the model's context.
    """
    lenses = tuple(lens for lens in (bench.baseline, TUNED, PRISM, RAW) if lens in bench.names)
    read = Probes(bench.n_layers, bench.baseline, lenses, list(cases(bench, probes)))
    readings = [(lens, layer) for lens in lenses for layer in bench.layers(lens)]
    total = len(readings) * sum(len(case.ids) for case in read.cases)
    with Progress("sweep, probes", total, "reading", extras=len(read.cases)) as progress:
        last: list[Tensor] = []

        def streams() -> Iterator[tuple[Tensor, None]]:
            for case in read.cases:
                resid = bench.backbone.capture(torch.tensor([case.ids]), torch.arange(len(case.ids))[None])[0]
                last.append(resid[-1:])
                yield resid, None

        each = bench.read_each(streams(), readings, top_k=top_k, advance=progress.advance)
        for index, (case, found) in enumerate(zip(read.cases, each, strict=True)):
            for (lens, layer), reading in found.items():
                read.records.setdefault(lens, []).extend(case.records(bench, layer, reading))
            with progress.extra():
                read.add_last_position(bench, index, last[index], temperatures)
    return read


def cases(bench: Bench, probes: Iterable[tuple[str, Probe]]) -> Iterator[Case]:
    for index, (where, probe) in enumerate(probes):
        main = gold_token(bench.encode, probe.prompt, probe.answer)
        texts: list[tuple[Literal["pos", "ctl"], Literal["orig", "no_filler"], Variant, str | None]]
        texts = [("pos", "orig", probe, probe.prompt), ("pos", "no_filler", probe, probe.no_filler)]
        if (control := probe.control) is not None:
            texts += [("ctl", "orig", control, control.prompt), ("ctl", "no_filler", control, control.no_filler)]
        for prompt_id, variant, form, prompt in texts:
            if prompt is None:
                continue
            ids = bench.encode.prompt(prompt, where)
            gold = gold_token(bench.encode, prompt, form.answer)
            text = ProbeText(
                fact_key=probe.id,
                fact_index=index,
                prompt_id=prompt_id,
                variant=variant,
                prompt=prompt,
                answer=form.answer,
                aligned=gold is not None,
            )
            yield Case(text, ids, gold, main if form is control else None)
