"""What the rank of a lens costs: its KL at smaller ranks, and what a full-rank lens saves beyond it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lensmith.judge.judgement import Judgement
from lensmith.judge.plots import CLOSED_FORM, RANK_CURVES, TRAINED, curve_rows
from lensmith.lens.depth import PERCENTILES
from lensmith.process import wording

RankCurves = Mapping[str, Sequence[tuple[int, float]]]  # curve -> (rank, KL in bits), ranks ascending


def read(path: Path) -> RankCurves:
    """The curves of a lens from its rank_curve.csv. Raises IntegrityError as `curve_rows` does."""
    by_curve: dict[str, list[tuple[int, float]]] = {}
    for rank, curve, kl_bits in curve_rows(path, RANK_CURVES, "rank"):
        by_curve.setdefault(curve, []).append((rank, kl_bits))
    return by_curve


def in_words(curves: RankCurves, judgement: Judgement) -> str:
    """One or more sentences; empty where neither a curve nor a full-rank lens was measured."""
    number, sentences = wording.number, []
    if trained := curves.get(TRAINED, ()):
        rank, kl_bits = trained[-1]
        half = max((point for point in trained if 2 * point[0] <= rank), default=None)
        cut = f" and would leave {number(half[1])} if it were cut to rank {half[0]}" if half else ""
        sentences.append(f"At rank {rank} the lens leaves {number(kl_bits)} bits{cut}.")
    if closed := dict(curves.get(CLOSED_FORM, ())):
        best = min(closed, key=lambda rank: closed[rank])
        sentences.append(f"Its closed form, before training, would be best at rank {best}: {number(closed[best])} bits")
        at_rank = closed.get(judgement.lens.rank)
        sentences[-1] += "." if at_rank is None else f", and leaves {number(at_rank)} at rank {judgement.lens.rank}."
    gains = [judgement.number(f"ladder_gain_bits_full_{percent}") for percent in PERCENTILES]
    if judgement.lens.kind != "full" and None not in gains:
        saved = ", ".join(wording.signed(gain) for gain in gains)
        sentences.append(f"A full-rank lens saves {saved} bits more at 25, 50 and 75 % of depth.")
    return " ".join(sentences)
