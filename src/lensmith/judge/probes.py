"""Probe prompts in the CSVs of the plan's project: the same columns, ours only at the end.

Its definitions, with y the vector that W_U reads: `kl_to_final_bits` = KL(lens || final); `answer_rank` counts from 1;
`copy_*` say that the top token repeats the prompt; `cos_to_final` = cos(y W_U^T, final logits); `cos_to_answer`,
`cos_to_prompt_max` = cos(y, rows of W_U); `resid_norm_ratio`, `delta_resid_cos` compare the residual before and after
its norm; `control_margin` = p(control's answer) - p(answer).

Empty cells, by these definitions: what asks for the answer, where it has no first token; `control_margin` but for a
control prompt; `answer_logit_gap` unless the answer is on top, `answer_vs_top1_gap` if it is; `semantic_margin_ok`,
`kl_to_final_bits_norm_temp` and `topk_jaccard_raw_norm@50` for the tuned lens, as they speak of the norm lens;
`topk_jaccard_consecutive@50` at a lens's first row; `topN`, `probN` beyond sweep.top_k.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensmith.edge import artifacts
from lensmith.errors import InputError
from lensmith.judge import pure
from lensmith.judge.kpis import RANKS
from lensmith.judge.measure import Bench, rows
from lensmith.judge.prompts import Probe, gold_token
from lensmith.judge.tables import TUNED
from lensmith.judge.trajectories import Shown
from lensmith.lens import divergence
from lensmith.lens.depth import PERCENTILES, depth_row
from lensmith.source.discovery import max_length

TOPS = 20  # pairs of topN, probN columns, however many are filled
WHERE = ("fact_key", "fact_index", "prompt_id", "prompt_variant", "layer", "pos", "token", "entropy", "entropy_bits")
TOP_COLUMNS = tuple(name for i in range(1, TOPS + 1) for name in (f"top{i}", f"prob{i}"))
RECORD_COLUMNS = (*WHERE, *TOP_COLUMNS, "rest_mass")
PURE_COLUMNS = (*RECORD_COLUMNS, *pure.COLUMNS)
NEXT = "⟨NEXT⟩"

Line = list[object]


@dataclass(frozen=True)
class Case:
    """One text of a probe."""

    fact_key: str
    fact_index: int
    prompt_id: str  # pos, or ctl for the control
    variant: str  # orig or no_filler
    prompt: str
    answer: str
    ids: list[int]
    gold: int | None
    other: int | None  # for a control: the first token of the probe's own answer


@dataclass
class Read:
    """The lines of the four CSVs, and the pure rows as data."""

    n_layers: int
    baseline: str
    cases: list[Case]
    records: dict[str, list[Line]] = field(default_factory=dict)  # by lens
    nexts: dict[str, list[Line]] = field(default_factory=dict)
    facts: dict[tuple[int, str, int], pure.Row] = field(default_factory=dict)  # (case, lens, row)

    def write(self, out: Path, stem: str) -> None:
        """The CSVs, the tuned lens's with the ending -tuned."""
        for lens, end in ((self.baseline, ""), (TUNED, "-tuned")):
            artifacts.write_csv(out / f"{stem}-records{end}.csv", RECORD_COLUMNS, self.records.get(lens, []))
            artifacts.write_csv(out / f"{stem}-pure-next-token{end}.csv", PURE_COLUMNS, self.nexts.get(lens, []))

    def prompts(self) -> list[dict[str, Any]]:
        """What was asked, as run.json lists it."""
        names = ("fact_key", "fact_index", "prompt_id", "variant", "prompt", "answer")
        return [{n: getattr(case, n) for n in names} | {"aligned": case.gold is not None} for case in self.cases]

    def shown(self) -> list[Shown]:
        """Every text with all of its words, as the report shows it."""
        named = [(f"{case.fact_key}{', control' * (case.prompt_id == 'ctl')}", case) for case in self.cases]
        return [Shown(name, case.prompt, case.answer, case.ids) for name, case in named if case.variant == "orig"]

    def summaries(self) -> list[dict[str, Any]]:
        """The plan's metrics of each text: where the answer first ranks 10, 5, 1, and KL by depth.

        As in the plan's project, delta of ranks is tuned - baseline, positive being later, and delta of KL is
        baseline - tuned; ours in the metrics are both positive in favour of the tuned lens.
        """
        names = ("fact_key", "prompt_id", "variant")
        return [{n: getattr(case, n) for n in names} | self._summary(i) for i, case in enumerate(self.cases)]

    def _summary(self, case: int) -> dict[str, Any]:
        first = {lens: {f"le_{k}": self._first(case, lens, k) for k in RANKS} for lens in (self.baseline, TUNED)}
        at = {f"p{percent}": depth_row(self.n_layers, percent) for percent in PERCENTILES}
        kl = {
            lens: {name: self.facts[case, lens, row]["kl_to_final_bits"] for name, row in at.items()}
            for lens in (self.baseline, TUNED)
        }
        return {
            "rank_milestones": _deltas(first[self.baseline], first[TUNED], sign=1),
            "kl_bits_at_percentiles": _deltas(kl[self.baseline], kl[TUNED], sign=-1),
        }

    def _first(self, case: int, lens: str, k: int) -> int | None:
        ranks = {row: self.facts[case, lens, row]["answer_rank"] for row in rows(lens, self.n_layers)}
        return next((row for row, rank in ranks.items() if rank is not None and rank <= k), None)

    def raw_lens_check(self) -> dict[str, Any]:
        """How far each lens departs from decoding the residual without a norm: the plan's artifact score.

        score = 0.6 share(layers with KL(lens || raw) >= 1 bit) + 0.3 [the lens alone has the answer on top somewhere]
        + 0.1 min(1, max KL / 5). Below 0.2 low, up to 0.5 medium, else high.
        """
        return {lens: self._artifact(lens) for lens in (self.baseline, TUNED) if self.cases}

    def _artifact(self, lens: str) -> dict[str, Any]:
        found = [row for (_, name, layer), row in self.facts.items() if name == lens and layer > 0]
        kl = [row["kl_lens_raw_bits"] for row in found]
        alone = sum(row["answer_rank"] == 1 and row["answer_rank_raw"] != 1 for row in found)
        share = sum(value >= 1 for value in kl) / len(kl)
        score = 0.6 * share + 0.3 * (alone > 0) + 0.1 * min(1.0, max(kl) / 5)
        tier = "low" if score < 0.2 else "medium" if score <= 0.5 else "high"
        return {
            "kl_ge_1_bit_share": share,
            "max_kl_lens_raw_bits": max(kl),
            "lens_only_semantics": alone,
            "lens_artifact_score": score,
            "risk_tier": tier,
        }


def _deltas(baseline: dict[str, Any], tuned: dict[str, Any], *, sign: int) -> dict[str, Any]:
    pairs = {key: (baseline[key], tuned[key]) for key in baseline}
    delta = {key: None if None in pair else sign * (pair[1] - pair[0]) for key, pair in pairs.items()}
    return {"baseline": baseline, "tuned": tuned, "delta": delta}


@torch.inference_mode()
def read(
    bench: Bench, probes: Iterable[tuple[str, Probe]], baseline: str, temperatures: Sequence[float], top_k: int
) -> Read:
    """Every text of every probe, under the norm lens `baseline` and the tuned lens, at every row and position.

    Args:
        temperatures: of the baseline at rows 0..L.

    Raises:
        InputError: a text does not fit into the model's context.
    """
    found = Read(bench.n_layers, baseline, list(_cases(bench, probes)))
    for index, case in enumerate(found.cases):
        tokens = torch.tensor([case.ids])
        resid = bench.backbone.capture(tokens, torch.arange(len(case.ids))[None])[0]
        final = bench.final(resid[-1:])[0]
        prompt = pure.Prompt.of(bench, case.ids, answer=case.answer, gold=case.gold, other=case.other, final=final)
        for lens in (baseline, TUNED):
            seen = pure.Seen()
            for row in rows(lens, bench.n_layers):
                logits = bench.decode(lens, row, resid)
                lines = _tops(bench, case, row, logits, top_k)
                found.records.setdefault(lens, []).extend(lines)
                tau = temperatures[row] if lens == baseline else None
                facts = pure.row(bench, prompt, seen, lens=lens, layer=row, resid=resid[-1], z=logits[-1], tau=tau)
                found.facts[index, lens, row] = facts
                end = [*lines[-1][: WHERE.index("token")], NEXT, *lines[-1][WHERE.index("token") + 1 :]]
                found.nexts.setdefault(lens, []).append([*end, *(facts[name] for name in pure.COLUMNS)])
    return found


def _cases(bench: Bench, probes: Iterable[tuple[str, Probe]]) -> Iterator[Case]:
    limit = max_length(bench.backbone.model)
    for index, (where, probe) in enumerate(probes):
        own = gold_token(bench.encode, probe.prompt, probe.answer)
        for prompt_id, form in (("pos", probe), ("ctl", probe.control)):
            if form is None:
                continue
            for variant, text in (("orig", form.prompt), ("no_filler", form.no_filler)):
                if text is None:
                    continue
                ids = bench.encode(text)
                if limit is not None and len(ids) > limit:
                    raise InputError(f"{where}: a prompt has {len(ids)} tokens, the model reads at most {limit}")
                gold = gold_token(bench.encode, text, form.answer)
                other = own if prompt_id == "ctl" else None
                yield Case(probe.id, index, prompt_id, variant, text, form.answer, ids, gold, other)


def _tops(bench: Bench, case: Case, row: int, logits: Tensor, top_k: int) -> list[Line]:
    """The record of each position: what stands there, the entropy, the top tokens of the lens and their probability."""
    p, ids = logits.softmax(-1).topk(min(top_k, logits.shape[-1]))
    entropies = divergence.entropy_bits(logits).tolist()
    lines: list[Line] = []
    for pos, (entropy, chances, tokens) in enumerate(zip(entropies, p.tolist(), ids.tolist(), strict=True)):
        pairs = [cell for token, chance in zip(tokens, chances, strict=True) for cell in (bench.text(token), chance)]
        padding = [None] * (2 * TOPS - len(pairs))
        where = [case.fact_key, case.fact_index, case.prompt_id, case.variant, row, pos, bench.text(case.ids[pos])]
        lines.append([*where, entropy, entropy, *pairs, *padding, max(0.0, 1.0 - sum(chances))])
    return lines
