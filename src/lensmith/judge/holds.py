"""What a lens holds: whether it reads a prompt's intermediate, which is said nowhere, before the last layer.

Of "The currency used in the country whose capital city is Tokyo is the" the intermediate is Japan. Every lens is asked
at the layers that the tuned lens reads, without the last, where every lens is the model itself. The best layer is the
first of those where the intermediate has its lowest rank. Chance is the intermediate of another prompt of the same
template, at the same layers.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lensmith.judge import bootstrap
from lensmith.judge.judgement import Estimate, Holding
from lensmith.judge.kpis import Book
from lensmith.judge.tables import RANKS, Floats


def holdings(book: Book, kept: NDArray[np.bool_]) -> Iterator[Holding]:
    """What each lens holds, over those of the kept prompts (n,) that have an intermediate; nothing without any."""
    curves, n_layers = book.measured.suite, book.measured.n_layers
    layers = [layer for layer in book.measured.layers if layer < n_layers]
    measured = kept & np.isfinite(curves.at(curves.lenses[0], "intermediate_token_rank")).any(axis=1)
    if not layers or not measured.any():
        return
    draws = book.suite.draws.only(measured)

    def share(ranks: Floats, k: int) -> Estimate:
        """Share of prompts that are within rank k at some layer; a prompt without ranks is left out."""
        has = np.asarray(np.isfinite(ranks).any(axis=1), dtype=np.bool_)
        reached = np.asarray((ranks[has] < k).any(axis=1), dtype=np.float64)
        return book.suite.estimate(bootstrap.mean, reached, draws.only(has))

    for lens in curves.lenses:
        ranks = {name: curves.at(lens, f"{name}_token_rank")[measured] for name in ("intermediate", "chance", "answer")}
        intermediate, chance, answer = (by_layer[:, layers] for by_layer in ranks.values())
        best = intermediate.argmin(axis=1)
        at_best = np.arange(len(best)), best
        skipped = (answer[at_best] < intermediate[at_best]).astype(np.float64)
        by_layer = np.where(np.isnan(ranks["intermediate"]), np.nan, ranks["intermediate"] < max(RANKS)).mean(axis=0)
        yield Holding(
            lens=lens,
            within={k: share(intermediate, k) for k in RANKS},
            by_chance={k: share(chance, k) for k in RANKS},
            best_depth=book.suite.estimate(bootstrap.median, np.array(layers)[best] / n_layers, draws),
            skip_ahead=book.suite.estimate(bootstrap.mean, skipped, draws),
            by_layer=tuple(by_layer.tolist()),
        )
