"""Every number of the tables again, in fp64 and straight from transformers' own outputs: no code of ours.

A lens is an input here: its tensors are read by attribute, what is done with them is written out below. Where a norm
stands in a model is a row of PARTS; nothing is searched for.
"""

import copy
import math
import string
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

# (list of blocks, final norm, the norm in a block that reads its input)
PARTS = {
    "llama": ("model.layers", "model.norm", "input_layernorm"),
    "gpt2": ("transformer.h", "transformer.ln_f", "ln_1"),
    "gemma2": ("model.layers", "model.norm", "input_layernorm"),  # softcap
    "cohere": ("model.layers", "model.norm", "input_layernorm"),  # scale
    "phi": ("model.layers", "model.final_layernorm", "input_layernorm"),  # head with a bias
}
NORM_LENSES = ("norm", "norm_next")
FITTED = ("temperature", "bias", "full", "tuned")
RANKS = (10, 5, 1)


class Oracle:
    """All lenses on one text, (pos, d_vocab) logits in fp64.

    `lenses` holds what was fit, by name: objects with U, V, c, scale, log_tau and norm, or mean, inv_scale, rotation.
    """

    def __init__(self, family: str, model: PreTrainedModel, lenses: dict[str, Any], ids: list[int]) -> None:
        self.model, self.lenses, self.ids = copy.deepcopy(model).double(), lenses, ids
        blocks, norm, self.own_norm = PARTS[family]
        self.blocks, self.norm = self.model.get_submodule(blocks), self.model.get_submodule(norm)
        last: list[Tensor] = []
        hook = self.blocks[-1].register_forward_hook(  # type: ignore[index]
            lambda _module, _args, out: last.append(out if isinstance(out, Tensor) else out[0])
        )
        with torch.no_grad():
            output = self.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        hook.remove()
        self.own = output.logits[0]
        # transformers gives the last residual already normed, so it comes from the block itself.
        self.resid = [h[0] for h in output.hidden_states[:-1]] + [last[0][0]]
        self.n_layers = len(self.resid) - 1
        self.W_U = self.model.lm_head.weight.detach()
        self.bias = self.model.lm_head.bias

    @property
    def start(self) -> str:
        """The norm lens that the tuned lens starts from."""
        return "norm" if self.lenses["tuned"].norm == "final" else "norm_next"

    def rows(self, name: str) -> range:
        return range(name in FITTED, self.n_layers + 1)

    def normed(self, name: str, row: int) -> Tensor:
        own = getattr(self.blocks[row], self.own_norm) if row < self.n_layers else self.norm  # type: ignore[index]
        with torch.no_grad():
            return (own if name == "norm_next" else self.norm)(self.resid[row])

    def y(self, name: str, row: int) -> Tensor:
        """What W_U reads, (pos, d_model)."""
        if name == "raw":
            return self.resid[row]
        if name in NORM_LENSES:
            return self.normed(name, row)
        lens = self.lenses[name]
        if name == "prism":
            x = self.normed("norm", row)
            return ((x - lens.mean.double()) * lens.inv_scale.double()) @ lens.rotation.double()
        x = self.normed("norm" if lens.norm == "final" else "norm_next", row)
        U, V, c, scale = (getattr(lens, part)[row - 1].double() for part in ("U", "V", "c", "scale"))
        return scale * x + x @ (U @ V.T) + c

    def logits(self, name: str, row: int) -> Tensor:
        """What the lens reads; at the last row, where most lenses are the model, what the model says."""
        if row == self.n_layers and name not in ("raw", "prism"):
            return self.own
        tau = math.exp(float(self.lenses[name].log_tau[row - 1])) if name in FITTED else 1.0
        z = self.y(name, row) @ self.W_U.T
        config = self.model.config
        z = (z if self.bias is None else z + self.bias.detach()) / tau * getattr(config, "logit_scale", 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        return z if cap is None else cap * torch.tanh(z / cap)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in bits over the last dimension, of logits."""
    p, q = p.softmax(-1), q.softmax(-1)
    return (p * (p / q).log2()).sum(-1)


def entropy(p: Tensor) -> Tensor:
    p = p.softmax(-1)
    return -(p * p.log2()).sum(-1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def rank(z: Tensor, token: Tensor | int) -> Tensor:
    """How many tokens stand above one, by logits (..., d_vocab)."""
    return (z > torch.gather(z, -1, torch.as_tensor(token).expand(z.shape[:-1])[..., None])).sum(-1)


def distances(final: Tensor, z: Tensor) -> dict[str, Tensor]:
    return {
        "kl_final_lens_bits": kl(final, z),
        "kl_lens_final_bits": kl(z, final),
        "entropy_bits": entropy(z),
        "cos_to_final": cosine(z, final),
        "top1_agree": (z.argmax(-1) == final.argmax(-1)).double(),
    }


def heldout_row(oracle: Oracle, name: str, row: int, positions: list[int]) -> dict[str, float]:
    """The numbers of a line of heldout.csv."""
    found = distances(oracle.own[positions], oracle.logits(name, row)[positions])
    return {"n_positions": len(positions)} | {column: float(values.mean()) for column, values in found.items()}


def position_row(oracle: Oracle, name: str, position: int) -> dict[str, float | None]:
    """The numbers of a line of positions.csv."""
    final = oracle.own[position]
    readings = [oracle.logits(name, row)[position] for row in range(1, oracle.n_layers + 1)]
    ranks = [int(rank(z, int(final.argmax()))) for z in readings]
    bits = [float(kl(final, z)) for z in readings]
    at = {p: max(1, round(oracle.n_layers * p / 100)) for p in (25, 50, 75)}
    return {
        **{f"first_rank_le_{k}": _first([r + 1 <= k for r in ranks]) for k in RANKS},
        "first_kl_le_1_bit": _first([b <= 1 for b in bits]),
        "rank1_share": ranks.count(0) / len(ranks),
        **{f"kl_final_lens_bits_{p}": bits[row - 1] for p, row in at.items()},
    }


def _first(reached: list[bool]) -> int | None:
    return reached.index(True) + 1 if True in reached else None


def suite_row(oracle: Oracle, name: str, row: int, targets: Sequence[list[int]]) -> dict[str, float | None]:
    """The numbers of a line of the suite's rows.csv; the text ends in the prompt's last token.

    Args:
        targets: first tokens of answer, control, intermediate, and of another prompt's intermediate.
    """
    z = oracle.logits(name, row)[-1]
    p = z.softmax(-1)
    gold, control, intermediate, chance = targets

    def best(tokens: list[int]) -> int | None:
        return min((int(rank(z, token)) for token in tokens), default=None)

    return {column: float(value) for column, value in distances(oracle.own[-1], z).items()} | {
        "answer_token_rank": best(gold),
        "p_answer": float(p[gold].sum()),
        "p_control": float(p[control].sum()) if control else None,
        "intermediate_token_rank": best(intermediate),
        "p_intermediate": float(p[intermediate].sum()) if intermediate else None,
        "chance_token_rank": best(chance),
    }


def record_row(oracle: Oracle, name: str, row: int, position: int, top_k: int) -> dict[str, Any]:
    """The numbers of a line of the records, and `ids` of its top tokens."""
    z = oracle.logits(name, row)[position]
    top = z.softmax(-1).sort(descending=True)
    numbers = {f"prob{i + 1}": float(top.values[i]) for i in range(top_k)}
    bits = float(entropy(z))
    rest = 1 - sum(numbers.values())
    return {"entropy": bits, "entropy_bits": bits, "rest_mass": rest, **numbers, "ids": top.indices[:top_k].tolist()}


class Pure:
    """The rows of a text under one lens in the pure-next-token table, one after another."""

    def __init__(self, oracle: Oracle, name: str, decode: Any, gold: int, other: int | None) -> None:
        self.oracle, self.name, self.decode, self.gold, self.other = oracle, name, decode, gold, other
        self.words = sorted({i for i in oracle.ids if not self._trivial(i)})
        self.tops: list[int] = []
        self.wide: set[int] | None = None

    def _trivial(self, token: int) -> bool:
        return not self.decode(token).strip(string.punctuation + string.whitespace)

    def row(self, row: int, tau: float | None) -> dict[str, float | bool | None]:
        """What follows `rest_mass` in the table. `tau`: the temperature of the norm lens at this row."""
        z, final = self.oracle.logits(self.name, row)[-1], self.oracle.own[-1]
        p = z.softmax(-1)
        self.tops.append(int(z.argmax()))
        gold = 1 + int(rank(z, self.gold))
        return {
            **self._copies(float(p.max())),
            **self._answer(z, p, gold),
            **self._overlap(z, row),
            **self._geometry(row),
            "entropy_collapse": bool(entropy(z) <= 1),
            "p_top1": float(p.max()),
            "p_top5": float(p.topk(5).values.sum()),
            "teacher_entropy_bits": float(entropy(final)),
            "kl_to_final_bits": float(kl(z, final)),
            "kl_final_lens_bits": float(kl(final, z)),
            "kl_to_final_bits_norm_temp": None if tau is None else float(kl(z / tau, final)),
        }

    def _copies(self, first: float) -> dict[str, bool]:
        def ends_in_prompt(k: int) -> bool:
            run, ids = self.tops[-k:], self.oracle.ids
            return len(run) == k and any(ids[i : i + k] == run for i in range(len(ids)))

        word = ends_in_prompt(1) and not self._trivial(self.tops[-1])
        strict = {f"copy_strict@{tau}": word and first > tau for tau in (0.95, 0.7, 0.8, 0.9)}
        soft = {f"copy_soft_k{k}@0.5": ends_in_prompt(k) and first > 0.5 for k in (1, 2, 3)}
        return {"copy_collapse": word and first > 0.95} | strict | soft

    def _answer(self, z: Tensor, p: Tensor, gold: int) -> dict[str, float | bool | None]:
        top = z.sort(descending=True).values
        answer, echo = float(p[self.gold]), float(p[self.words].sum())
        above = answer - 1 / len(p)
        gap = float(z[self.gold])
        return {
            "is_answer": gold == 1,
            "p_answer": answer,
            "answer_mass": answer,
            "answer_minus_uniform": above,
            "semantic_margin_ok": gold == 1 and above >= 0.002 if self.name in NORM_LENSES else None,
            "answer_rank": gold,
            "echo_mass_prompt": echo,
            "answer_minus_echo_mass": answer - echo,
            "mass_ratio_ans_over_prompt": answer / (echo + 1e-9),
            "control_margin": None if self.other is None else answer - float(p[self.other]),
            "answer_logit_gap": gap - float(top[1]) if gold == 1 else None,
            "answer_vs_top1_gap": None if gold == 1 else gap - float(top[0]),
        }

    def _overlap(self, z: Tensor, row: int) -> dict[str, float | None]:
        wide = z.softmax(-1).topk(50)
        ids, raw = set(wide.indices.tolist()), set(self.oracle.logits("raw", row)[-1].topk(50).indices.tolist())
        before, self.wide = self.wide, ids
        of_prompt = [float(v) for v, i in zip(wide.values, wide.indices.tolist(), strict=True) if i in self.words]
        return {
            "topk_prompt_mass@50": sum(of_prompt),
            "topk_jaccard_raw_norm@50": len(ids & raw) / len(ids | raw) if self.name in NORM_LENSES else None,
            "topk_jaccard_consecutive@50": None if before is None else len(ids & before) / len(ids | before),
        }

    def _geometry(self, row: int) -> dict[str, float | bool]:
        oracle = self.oracle
        resid, x = oracle.resid[row][-1], oracle.normed(oracle.start, row)[-1]
        # A translator of the last block is the identity: no need to trust its tensors.
        identity = row == oracle.n_layers and self.name in FITTED
        y = oracle.y(oracle.start if identity else self.name, row)[-1]
        answer, words = cosine(y, oracle.W_U[self.gold]), cosine(y, oracle.W_U[self.words])
        return {
            "cos_to_final": float(cosine(oracle.W_U @ y, oracle.own[-1])),
            "cos_to_answer": float(answer),
            "cos_to_prompt_max": float(words.max()),
            "geom_crossover": bool(answer >= words.max() + 0.02),
            "resid_norm_ratio": float(x.norm() / resid.norm()),
            "delta_resid_cos": float(cosine(x, resid)),
        }


def raw_row(oracle: Oracle, row: int, gold: int) -> dict[str, float | bool | None]:
    """The numbers of a line of the table rawlens but the overlap with the row before."""
    norm, raw = oracle.logits(oracle.start, row)[-1], oracle.logits("raw", row)[-1]
    p, q = norm.softmax(-1), raw.softmax(-1)
    middle = ((p + q) / 2).log()
    ranks = {"norm": 1 + int(rank(norm, gold)), "raw": 1 + int(rank(raw, gold))}
    sides: dict[str, float | bool | None] = {}
    for side, z in (("norm", norm), ("raw", raw)):
        chances = z.softmax(-1)
        sides |= {
            f"p_top1_{side}": float(chances.max()),
            f"top1_token_id_{side}": int(z.argmax()),
            f"p_answer_{side}": float(chances[gold]),
            f"answer_rank_{side}": ranks[side],
            f"entropy_bits_{side}": float(entropy(z)),
        }
    wide = set(norm.topk(50).indices.tolist()), set(raw.topk(50).indices.tolist())
    return sides | {
        "kl_norm_vs_raw_bits": float(kl(norm, raw)),
        "kl_raw_to_norm_bits": float(kl(raw, norm)),
        "js_divergence": float(kl(norm, middle) + kl(raw, middle)) / 2,
        "entropy_gap_bits": float(entropy(raw) - entropy(norm)),
        "l1_prob_diff": float((p - q).abs().sum()),
        "topk_jaccard_raw_norm@50": len(wide[0] & wide[1]) / len(wide[0] | wide[1]),
        "norm_only_semantics": ranks["norm"] == 1 and ranks["raw"] != 1,
    }
