"""The ladder of lenses, from the norm lens up: how much of the saved KL each rung explains on held-out text.

    norm lens -> temperature -> bias -> low_rank -> full

Each rung is the same map with more free parameters, fit by the same code on the same text, and reads through the same
norm. The judged lens stands at the rung of its own kind; a lens of another kind (imported) stands at the end. A rung's
gain is the KL of the rung before it minus its own; its share is the gain as part of what the last rung saves.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from lensmith.judge import bootstrap
from lensmith.judge.judgement import Estimate
from lensmith.judge.kpis import Book
from lensmith.judge.tables import TUNED
from lensmith.lens.depth import PERCENTILES

START = "identity"
ORDER = ("temperature", "bias", "low_rank", "full")


def rungs(book: Book) -> dict[str, str]:
    """Rung -> name of the lens in the tables, from the norm lens up."""
    lens_of = {rung: rung for rung in book.measured.rungs} | {book.measured.run.lens.kind: TUNED}
    last = [kind for kind in lens_of if kind not in (*ORDER, START)]
    order = [rung for rung in ORDER if rung in lens_of] + last
    return {START: book.start} | {rung: lens_of[rung] for rung in order}


def kpis(book: Book) -> Iterator[tuple[str, Estimate]]:
    """`ladder_kl_bits_<rung>_<percent>`, `ladder_gain_bits_...` and `ladder_share_...`, each with its interval."""
    units, lens_of = book.heldout, rungs(book)
    for percent in PERCENTILES:
        kl = {rung: units.kl[lens][percent] for rung, lens in lens_of.items()}
        saved = kl[START] - kl[list(lens_of)[-1]]
        for rung, bits in kl.items():
            yield f"ladder_kl_bits_{rung}_{percent}", units.estimate(bootstrap.mean, bits)
        for before, rung in pairwise(kl):
            gain = kl[before] - kl[rung]
            yield f"ladder_gain_bits_{rung}_{percent}", units.estimate(bootstrap.mean, gain)
            both = np.stack([gain, saved], axis=1)
            yield f"ladder_share_{rung}_{percent}", units.estimate(bootstrap.ratio, both)
