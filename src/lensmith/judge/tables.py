"""Names that the tables of `sweep` and `suite-eval` hold: lenses, quantities, columns."""

from collections.abc import Collection
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lensmith.lens import depth
from lensmith.lens.depth import PERCENTILES

Floats = NDArray[np.float64]

# By the norm that a lens reads through: the model's final norm at every layer; the next block's input norm.
NORM_LENS: dict[Literal["final", "next_input"], str] = {"final": "norm", "next_input": "norm_next"}
NORMS = tuple(NORM_LENS.values())
RUNGS = ("temperature", "bias", "full")  # smaller and larger lenses of the same form as the tuned one
RAW, PRISM, TUNED = "raw", "prism", "tuned"  # no norm at all; one decoder for all layers; the lens that is judged
LENSES = (RAW, *NORMS, *RUNGS, PRISM, TUNED)  # every name that a table may hold, in its order
ALWAYS = (*NORMS, TUNED)
RANKS = (10, 5, 1)

DISTANCES = ("kl_final_lens_bits", "kl_lens_final_bits", "entropy_bits", "cos_to_final")
OTHER_TEXT = ("heldout-{}.csv", "positions-{}.csv")  # tables of a text of corpus.also_heldout, by its name
HELDOUT_COLUMNS = ("seq", "layer", "lens", "n_positions", *DISTANCES, "top1_agree")
FIRST = (*(f"first_rank_le_{k}" for k in RANKS), "first_kl_le_1_bit")  # layers; empty where it never is so
AT_DEPTH = tuple(f"kl_final_lens_bits_{percent}" for percent in PERCENTILES)
POSITION_COLUMNS = ("seq", "position", "part", "lens", *FIRST, "rank1_share", *AT_DEPTH)
ANSWER = ("answer_token_rank", "p_answer", "top1", "top1_agree", "p_control")
INTERMEDIATE = ("intermediate_token_rank", "p_intermediate", "chance_token_rank")  # empty for a prompt without one
TOKEN_RANKS = ("answer_token_rank", "intermediate_token_rank", "chance_token_rank")  # of suite rows
ROW_COLUMNS = ("id", "domain", "template", "layer", "lens", *DISTANCES, *ANSWER, *INTERMEDIATE)
FIRST_COLUMNS = ("id", "domain", "template", "lens", *FIRST)
FINAL = ("final_answer_token_rank", "final_p_answer")
DIRECTIONS = ("lens", "principal", "random")  # along which `causal` changes a residual
CAUSAL_COLUMNS = ("seq", "layer", "direction", "lens", "cosine", "stimulus_bits", "response_bits")
TRAJECTORIES = "trajectories.json"  # in both folders: texts read at every position
PROMPT_COLUMNS = (
    "id", "domain", "template", "answer", "n_prompt_tokens", "answer_token", "aligned", *FINAL, "intermediate_token",
)  # fmt: skip


def layers(lens: str, n_layers: int, absent: Collection[int]) -> tuple[int, ...]:
    """The layers that a lens reads: a translator belongs to a block, so it reads none at the embedding (layer 0).

    Args:
        absent: layers that the tuned lens lacks.
    """
    translated = depth.layers(n_layers, absent if lens == TUNED else ())
    return translated if lens in (*RUNGS, TUNED) else (0, *translated)
