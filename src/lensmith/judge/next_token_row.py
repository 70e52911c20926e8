"""One row of the pure-next-token CSV: the last position of a probe under one lens at one layer. See `probes.py`."""

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lensmith.judge.bench import Bench
from lensmith.judge.tables import NORMS
from lensmith.lens import divergence

Row = dict[str, Any]

# Thresholds of the reference recipe.
STRICT, SOFT = (0.95, 0.7, 0.8, 0.9), 0.5
WINDOWS = (1, 2, 3)
COLLAPSED_BITS = 1.0
SEMANTIC_MARGIN = 0.002
GEOMETRY_MARGIN = 0.02
WIDE = 50

COPY_COLUMNS = (*(f"copy_strict@{tau}" for tau in STRICT), *(f"copy_soft_k{k}@{SOFT}" for k in WINDOWS))
COLUMNS = (
    "copy_collapse", *COPY_COLUMNS, "entropy_collapse", "is_answer", "p_top1", "p_top5", "p_answer",
    "answer_minus_uniform", "semantic_margin_ok", "teacher_entropy_bits", "kl_to_final_bits",
    "kl_to_final_bits_norm_temp", "answer_rank", "topk_jaccard_raw_norm@50", "topk_jaccard_consecutive@50",
    "cos_to_final", "cos_to_answer", "cos_to_prompt_max", "geom_crossover", "echo_mass_prompt", "answer_mass",
    "answer_minus_echo_mass", "mass_ratio_ans_over_prompt", "topk_prompt_mass@50", "control_margin",
    "resid_norm_ratio", "delta_resid_cos", "answer_logit_gap", "answer_vs_top1_gap",
    "kl_final_lens_bits",
)  # fmt: skip


@dataclass(frozen=True)
class LastPosition:
    """What the rows of one text share."""

    ids: list[int]
    answer: str
    gold: int | None
    other: int | None
    words: Tensor  # distinct ids of the prompt that are more than space and punctuation
    final: Tensor  # the model's logits, (d_vocab,)

    @classmethod
    def of(
        cls, bench: Bench, ids: list[int], *, answer: str, gold: int | None, other: int | None, final: Tensor
    ) -> "LastPosition":
        words = [token for token in dict.fromkeys(ids) if not trivial(bench.text(token))]
        return cls(ids, answer, gold, other, torch.tensor(words, dtype=torch.long, device=final.device), final)

    def answer_facts(self, z: Tensor, p: Tensor, lens: str) -> "Row":
        """Where a lens has the answer: logits z and probabilities p, (d_vocab,). Empty without a first token."""
        gold, rank = self.gold, _rank(z, self.gold)
        if gold is None or rank is None:
            return {}
        above = float(p[gold]) - 1 / len(p)
        two = z.topk(2).values
        return {
            "is_answer": rank == 1,
            "p_answer": float(p[gold]),
            "answer_mass": float(p[gold]),
            "answer_minus_uniform": above,
            "semantic_margin_ok": rank == 1 and above >= SEMANTIC_MARGIN if lens in NORMS else None,
            "answer_rank": rank,
            "answer_logit_gap": float(z[gold] - two[1]) if rank == 1 else None,
            "answer_vs_top1_gap": float(z[gold] - two[0]) if rank > 1 else None,
            "control_margin": None if self.other is None else float(p[gold] - p[self.other]),
        }

    def echo_facts(self, p: Tensor) -> "Row":
        """How much of the probabilities p (d_vocab,) is on words of the prompt, and how much on the answer."""
        echo = float(p[self.words].sum())
        wide = p.topk(min(WIDE, len(p)))
        facts: Row = {
            "echo_mass_prompt": echo,
            "topk_prompt_mass@50": float(wide.values[torch.isin(wide.indices, self.words)].sum()),
        }
        if self.gold is not None:
            answer = float(p[self.gold])
            facts |= {"answer_minus_echo_mass": answer - echo, "mass_ratio_ans_over_prompt": answer / (echo + 1e-9)}
        return facts

    def geometry(self, W_U: Tensor, read: "LastLogits") -> "Row":
        """Cosines of what W_U (d_vocab, d_model) reads with the rows of words, and of the residual with its norm."""
        y, resid, normed = read.y, read.resid, read.normed
        facts: Row = {
            "cos_to_final": float(divergence.cosine(read.products, self.final)),
            "resid_norm_ratio": float(normed.norm() / resid.norm()),
            "delta_resid_cos": float(divergence.cosine(resid, normed)),
        }
        if len(self.words):
            words = W_U[self.words]
            facts["cos_to_prompt_max"] = float(divergence.cosine(y.expand_as(words), words).max())
        if self.gold is not None:
            facts["cos_to_answer"] = float(divergence.cosine(y, W_U[self.gold]))
            if len(self.words):
                facts["geom_crossover"] = facts["cos_to_answer"] >= facts["cos_to_prompt_max"] + GEOMETRY_MARGIN
        return facts


class LastLogits(NamedTuple):
    """What one lens reads at the last position at one layer; `of` stacks all layers on a leading dimension first."""

    y: Tensor  # (d_model,), what W_U reads
    products: Tensor  # (d_vocab,), W_U y
    z: Tensor  # (d_vocab,), the lens's logits
    raw: Tensor  # (d_vocab,), logits of the residual without a norm
    resid: Tensor  # (d_model,), the residual
    normed: Tensor  # (d_model,), the residual after the norm of the baseline

    @classmethod
    def of(cls, bench: Bench, lens: str, stream: Tensor) -> list["LastLogits"]:
        """For each layer that the lens reads of a residual stream (1, L + 1, d_model), by one product for all."""
        head, at = bench.backbone.head, bench.layers(lens)
        inputs = [bench.head_reads(lens, layer, stream) for layer in at]
        y = torch.cat([value.y for value in inputs])
        log_tau = y.new_tensor([float(value.log_tau or 0.0) for value in inputs])
        normed = torch.cat([bench.head_reads(bench.baseline, layer, stream).y for layer in at])
        resid = stream[0, list(at)].float()
        products, raw = torch.nn.functional.linear(y, head.W_U), head.logits(resid)
        whole = cls(y, products, head.logits(y, log_tau), raw, resid, normed)
        return [cls(*parts) for parts in zip(*whole, strict=True)]


@dataclass
class Seen:
    """What a lens showed at the layers before: the top tokens, and the WIDE likeliest ones of the last layer."""

    tops: list[int] = field(default_factory=list)
    wide: set[int] | None = None


def trivial(token: str) -> bool:
    """Whether a token is nothing but space and punctuation."""
    return all(c.isspace() or c in string.punctuation for c in token)


def row(
    bench: Bench,
    prompt: LastPosition,
    seen: Seen,
    *,
    lens: str,
    read: LastLogits,
    tau: float | None,
) -> Row:
    """COLUMNS, and what the raw lens's table and run.json need beside them.

    Args:
        seen: of this lens at the layers before; this layer is added.
        tau: the temperature of the norm lens here; None for other lenses.
    """
    z, raw = read.z, read.raw
    p = z.softmax(-1)
    top = int(z.argmax())
    seen.tops.append(top)
    wide, raw_wide = (set(logits.topk(min(WIDE, len(logits))).indices.tolist()) for logits in (z, raw))
    before, seen.wide = seen.wide, wide
    facts: Row = dict.fromkeys(COLUMNS)
    facts |= copies(bench, prompt, seen.tops, p)
    facts |= {
        "entropy_collapse": float(divergence.entropy_bits(z)) <= COLLAPSED_BITS,
        "is_answer": bench.text(top).strip() == prompt.answer,  # by its text, unless `answer_facts` knows its token
        "p_top1": float(p[top]),
        "p_top5": float(p.topk(min(5, len(p))).values.sum()),
        "teacher_entropy_bits": float(divergence.entropy_bits(prompt.final)),
        "kl_to_final_bits": float(divergence.kl_bits(z, prompt.final)),
        "kl_final_lens_bits": float(divergence.kl_bits(prompt.final, z)),
        "topk_jaccard_raw_norm@50": _jaccard(wide, raw_wide) if lens in NORMS else None,
        "topk_jaccard_consecutive@50": None if before is None else _jaccard(before, wide),
    }
    if tau is not None:
        facts["kl_to_final_bits_norm_temp"] = float(divergence.kl_bits(z / tau, prompt.final))
    facts |= beside_raw(prompt, z, raw) | prompt.answer_facts(z, p, lens) | prompt.echo_facts(p)
    return facts | prompt.geometry(bench.backbone.head.W_U, read)


def beside_raw(prompt: LastPosition, z: Tensor, raw: Tensor) -> Row:
    """A lens's logits against those of the residual without a norm, both (d_vocab,)."""
    p, q = z.softmax(-1), raw.softmax(-1)
    middle = (p + q).log() - math.log(2)
    top = int(raw.argmax())
    return {
        "kl_lens_raw_bits": float(divergence.kl_bits(z, raw)),
        "kl_raw_lens_bits": float(divergence.kl_bits(raw, z)),
        "js_divergence": float(divergence.kl_bits(z, middle) + divergence.kl_bits(raw, middle)) / 2,
        "l1_prob_diff": float((p - q).abs().sum()),
        "entropy_bits": float(divergence.entropy_bits(z)),
        "entropy_bits_raw": float(divergence.entropy_bits(raw)),
        "top1": int(z.argmax()),
        "top1_raw": top,
        "p_top1_raw": float(q[top]),
        "p_answer_raw": None if prompt.gold is None else float(q[prompt.gold]),
        "answer_rank_raw": _rank(raw, prompt.gold),
    }


def copies(bench: Bench, prompt: LastPosition, tops: list[int], p: Tensor) -> Row:
    """COPY_COLUMNS and copy_collapse: whether the last of the top tokens repeat a run of the prompt's ids.

    Args:
        tops: the top token of each layer so far. p: the lens's probabilities at the last of them, (d_vocab,).
    """
    # The reference recipe also asks for 0.10 more than the second token has: at these thresholds it always is.
    first = float(p.max())
    word = not trivial(bench.text(tops[-1])) and _within(tops[-1:], prompt.ids)
    strict = {f"copy_strict@{tau}": word and first > tau for tau in STRICT}
    soft = {
        f"copy_soft_k{k}@{SOFT}": len(tops) >= k and _within(tops[-k:], prompt.ids) and first > SOFT for k in WINDOWS
    }
    return {"copy_collapse": strict[f"copy_strict@{STRICT[0]}"]} | strict | soft


def _within(run: Sequence[int], ids: Sequence[int]) -> bool:
    return any(list(ids[i : i + len(run)]) == list(run) for i in range(len(ids) - len(run) + 1))


def _jaccard(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b)


def _rank(z: Tensor, gold: int | None) -> int | None:
    return None if gold is None else 1 + int(divergence.token_rank(z, torch.tensor(gold, device=z.device)))
