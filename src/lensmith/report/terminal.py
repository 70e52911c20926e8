"""Tables for a terminal: verdicts of all models, lenses of a release, entries of the cache, curves of a fit."""

import datetime as dt
import math
import sys
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lensmith.files.cache import CacheEntry
from lensmith.hub.index import IndexEntry
from lensmith.judge import gates
from lensmith.judge.judgement import MISSING, Judgement
from lensmith.judge.side_by_side import Row
from lensmith.judge.tables import RANKS, TUNED
from lensmith.lens.depth import PERCENTILES
from lensmith.process import amounts, wording
from lensmith.process.errors import shown
from lensmith.report import palette

PIPED = 160  # columns of a wide table that goes into a file
BARS = "▁▂▃▄▅▆▇█"
CURVE = 40  # validations that a curve shows
SHORT = 12  # characters of a bank's key, which is a hash
LEGEND = ", ".join(f"{wording.SYMBOLS[verdict]} {verdict}" for verdict in palette.VERDICTS_IN_A_TERMINAL)


def console() -> Console:
    """Where wide tables are printed: as wide as the terminal, or as PIPED says."""
    return Console() if sys.stdout.isatty() else Console(width=PIPED)


def verdicts(judged: Iterable[tuple[str, Judgement]]) -> Table:
    """One line for each model: held-out KL of the stronger norm lens and the tuned lens at three depths; each gate."""
    table = Table(
        title="KL(final, lens) in bits on held-out text at three depths, mean: norm → tuned",
        caption=f"gates: {LEGEND}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("model", overflow="fold")
    for percentile in PERCENTILES:
        table.add_column(f"{percentile} %", justify="right", no_wrap=True)
    lines = list(judged)
    letters = [gate.letter for gate in gates.of_table({x for _, judgement in lines for x in judgement.verdicts})]
    table.add_column(" ".join(letters), no_wrap=True)  # one column, so that all gates fit into 80
    table.add_column("prefer", no_wrap=True)
    for key, judgement in lines:
        verdicts = [judgement.verdicts.get(letter) for letter in letters]
        marks = [f"[{palette.VERDICTS_IN_A_TERMINAL[v]}]{wording.SYMBOLS[v]}[/]" if v else " " for v in verdicts]
        kls = (judgement.heldout_kl(percentile) for percentile in PERCENTILES)
        changes = (f"{wording.number(norm.value)} → {wording.number(tuned.value)}" for norm, tuned in kls)
        name = f"{key} ({judgement.lens_name(TUNED)})" if judgement.lens.kind == "transferred" else key
        table.add_row(name, *changes, " ".join(marks), judgement.preferred)
    return table


def side_by_side(rows: Iterable[Row]) -> Table:
    """One line for each lens: KL at three depths and its mean; what it holds, over all prompts; what it causes."""
    table = Table(
        title="KL(final, lens) in bits on held-out text; % of prompts with the intermediate in the top k",
        caption="chance: another prompt's intermediate, top 10; ahead: the answer ranks above it at its best layer; "
        "causes: cosine of what a lens says that changes do with what they do",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    kl = {f"kl_{percent}": f"{percent} %" for percent in PERCENTILES} | {"kl_mean": "mean"}
    shares = {f"within_{k}": f"top {k}" for k in reversed(RANKS)} | {"chance_10": "chance", "skip_ahead": "ahead"}
    for title in ("entry", "lens"):
        table.add_column(title, overflow="fold")
    for title in (*kl.values(), *shares.values(), "causes"):
        table.add_column(title, justify="right")
    for row in rows:
        bits = (wording.number(row.numbers.get(name, MISSING).value) for name in kl)
        held = (row.numbers.get(name, MISSING).text(wording.percent).replace(" %", "") for name in shares)
        causes = row.numbers.get("causal_cosine", MISSING).text(wording.number)
        table.add_row(row.entry, row.lens, *bits, *held, causes)
    return table


def lenses(index: Mapping[str, IndexEntry], release: str) -> Table:
    """One line for each lens of a release."""
    table = Table(title=Text(shown(release)), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    table_gates = gates.of_table({name.removeprefix("gate_") for entry in index.values() for name in entry.verdicts})
    for column in ("version", "lens", f"gates {' '.join(gate.letter for gate in table_gates)}", "prefer"):
        table.add_column(column, no_wrap=True)
    for model_id, entry in sorted(index.items()):
        verdicts = ((gate, entry.verdicts.get(f"gate_{gate.letter}")) for gate in table_gates)
        marks = " ".join(wording.symbol(str(word)) if word or not gate.optional else " " for gate, word in verdicts)
        rank = "?" if entry.rank is None else entry.rank
        cells = (entry.tl_version or "not sent", f"{entry.kind or '?'}, rank {rank}", marks, entry.preferred or "?")
        # As Text: a string of a stranger's index could hold rich's own markup.
        table.add_row(*(Text(shown(cell)) for cell in (model_id, *cells)))
    return table


def cache_entries(entries: Iterable[CacheEntry]) -> Table:
    """One line for each residual bank and for each fit's checkpoints."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("kind", "key", "size", "last used", "holds"):
        table.add_column(column, no_wrap=column != "holds", justify="right" if column == "size" else "left")
    for entry in entries:
        used = dt.datetime.fromtimestamp(entry.used).astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(entry.kind, entry.key[:SHORT], amounts.size(entry.size), used, entry.contents())
    return table


def fits(logs: Mapping[str, Sequence[Mapping[str, str]]]) -> Table:
    """One line for each kind of lens, from the lines of its fit_log.csv."""
    table = Table(title="KL(final, lens), bits", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("kind", "step", "training", "held out"):
        table.add_column(column, justify="left" if column == "kind" else "right", no_wrap=True)
    table.add_column("held out so far", no_wrap=True)
    for kind, rows in logs.items():
        last, means = rows[-1], [float(row["val_kl_bits_mean"]) for row in rows]
        trained = wording.number(float(last["train_kl_bits"])) if last["train_kl_bits"] else ""
        table.add_row(kind, last["step"], trained, wording.number(means[-1]), sparkline(means[-CURVE:]))
    return table


def sparkline(values: Sequence[float]) -> str:
    """Numbers above zero as bars, by their logarithms: the lowest has the lowest bar."""
    logs = [math.log(max(value, 1e-9)) for value in values]
    low, span = min(logs), max(logs) - min(logs)
    return "".join(BARS[round((len(BARS) - 1) * (each - low) / span) if span else 0] for each in logs)
