"""Stage `suite-eval`: every prompt of the suite, read at its last position by every lens at every layer.

Writes rows.csv (a line for each prompt, layer and lens), first.csv (for each prompt and lens, the first layer with the
answer within rank 10, 5, 1, and with a KL of at most a bit), prompts.csv (a line for each prompt), suite.json (files,
counts, the lens). The columns are in `tables.py`.

`answer_token_rank` and `p_answer` are of the answer's first token as it stands behind the prompt. Where aliases give
further first tokens, the best rank and the sum of the probabilities count. A prompt whose answer has no first token
of its own ("unaligned") keeps its distances and has neither.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from lensmith.files import artifacts
from lensmith.judge import contamination, trajectories
from lensmith.judge.bench import Bench, Reading, Target, compare
from lensmith.judge.facts import SuiteFacts
from lensmith.judge.heldout import CLOSE_BITS
from lensmith.judge.prompts import Prompt, gold_token, read_suite
from lensmith.judge.tables import FIRST_COLUMNS, PROMPT_COLUMNS, RANKS, ROW_COLUMNS
from lensmith.lens import divergence
from lensmith.process.progress import track
from lensmith.settings.sections import ModelParams
from lensmith.source import corpus as corpora


@dataclass(frozen=True)
class Asked:
    """A prompt in tokens."""

    line: Prompt
    ids: list[int]
    gold: list[int]  # first tokens of the answer and its aliases, the answer's first; empty where none is aligned
    control: int | None

    @property
    def aligned(self) -> bool:
        return bool(self.gold)


def run(settings: ModelParams, corpus: Path, lens: Path, out: Path) -> None:
    """Measure the suite of one model.

    Raises:
        InputError: a line of the suite is wrong, or a prompt is longer than the model's context.
        IntegrityError: corpus or lens are damaged, or belong to another model.
    """
    suite = read_suite(settings.suite.files)
    bench = Bench.load(settings, corpus, lens)
    asked = ask(bench, suite.lines)
    cells, prompts = measure(bench, asked, settings.suite.batch_prompts)
    artifacts.write_csv(out / "rows.csv", ROW_COLUMNS, cells)
    artifacts.write_csv(out / "first.csv", FIRST_COLUMNS, first_lines(cells))
    artifacts.write_csv(out / "prompts.csv", PROMPT_COLUMNS, prompts)
    trajectories.write(out, bench, shown(asked, settings.suite.trajectories))
    # As inside a text: nothing added before it, nor the first token, which has a space before it there.
    inside = [prompt.ids[1 + len(bench.encode.added[0]) :] + prompt.gold[:1] for prompt in asked]
    present = contamination.in_text(inside, corpora.read_tokens(corpus))
    facts = SuiteFacts(
        schema=3,
        model_key=settings.key,
        n_layers=bench.n_layers,
        lens=bench.identity,
        lenses=bench.names,
        files=suite.files,
        in_training_text=tuple(prompt.line.id for prompt, hit in zip(asked, present, strict=True) if hit),
    )
    facts.write(out / "suite.json")


def ask(bench: Bench, lines: Iterable[tuple[str, Prompt]]) -> list[Asked]:
    """Prompts in tokens.

    Raises:
        InputError: a prompt does not fit into the model's context.
    """
    asked = []
    for where, line in lines:
        ids = bench.encode.prompt(line.prompt, where)
        tokens = [gold_token(bench.encode, line.prompt, answer) for answer in (line.answer, *line.aliases)]
        # Without the answer itself the prompt is unaligned, whatever its aliases give: they are spellings of it.
        gold = [] if tokens[0] is None else list(dict.fromkeys(token for token in tokens if token is not None))
        control = None if line.control is None else gold_token(bench.encode, line.prompt, line.control)
        asked.append(Asked(line, ids, gold, control))
    return asked


def shown(asked: Sequence[Asked], count: int) -> list[trajectories.Shown]:
    """`count` prompts for the report: the first of each domain, then the second of each, and so on."""
    turns: Counter[str] = Counter()
    order = []
    for number, prompt in enumerate(asked):
        order.append((turns[prompt.line.domain], number))
        turns[prompt.line.domain] += 1
    chosen = [asked[number] for _, number in sorted(order)[:count]]
    return [trajectories.Shown(prompt.line.id, prompt.line.prompt, prompt.line.answer, prompt.ids) for prompt in chosen]


Cells = list[list[object]]


@torch.inference_mode()
def measure(bench: Bench, asked: Sequence[Asked], batch_prompts: int) -> tuple[Cells, Cells]:
    """The lines of rows.csv and of prompts.csv, prompts in their order."""
    cells: Cells = []
    prompts: Cells = []
    size = min(bench.chunk, batch_prompts * max(1, 256 // batch_prompts))
    for start in track(range(0, len(asked), size), "suite-eval", "chunk"):
        group = asked[start : start + size]
        parts = [group[i : i + batch_prompts] for i in range(0, len(group), batch_prompts)]
        resid = torch.cat([capture_last(bench, [prompt.ids for prompt in part]) for part in parts])
        target = Target.of(bench.final(resid))
        by_prompt: list[Cells] = [[] for _ in group]
        for lens, layer in bench.decoded:
            reading = compare(target, bench.decode(lens, layer, resid))
            for lines, line in zip(by_prompt, _lines(bench, group, lens, layer, reading), strict=True):
                lines.append(line)
        cells += [line for lines in by_prompt for line in lines]
        for prompt, (rank, p) in zip(group, _answers(group, target.logits, target.log_p), strict=True):
            asks, first = prompt.line, bench.text(prompt.gold[0]) if prompt.aligned else None
            about = [asks.id, asks.domain, asks.template, asks.answer, len(prompt.ids)]
            prompts.append([*about, first, int(prompt.aligned), rank, p])
    return cells, prompts


def first_lines(cells: Iterable[Sequence[object]]) -> Iterator[list[object]]:
    """The lines of first.csv from those of rows.csv: the first layer where a bound holds; None where none does."""
    lens, layer = ROW_COLUMNS.index("lens"), ROW_COLUMNS.index("layer")
    rank, kl = ROW_COLUMNS.index("answer_token_rank"), ROW_COLUMNS.index("kl_final_lens_bits")
    bounds = [(rank, k - 1) for k in RANKS] + [(kl, CLOSE_BITS)]
    for where, group in groupby(cells, key=lambda cell: (*cell[:3], cell[lens])):
        blocks = [cell for cell in group if cell[layer]]
        yield [*where, *(next((c[layer] for c in blocks if _within(c[at], bound)), None) for at, bound in bounds)]


def _within(value: object, bound: float) -> bool:
    return isinstance(value, int | float) and value <= bound


def capture_last(bench: Bench, ids: Sequence[list[int]]) -> Tensor:
    """The residual stream at the last token of each of some texts: (n, L + 1, d_model)."""
    lengths = torch.tensor([len(text) for text in ids])
    tokens = torch.zeros(len(ids), int(lengths.max()), dtype=torch.long)
    for place, text in enumerate(ids):
        tokens[place, : len(text)] = torch.tensor(text)
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
    return bench.backbone.capture(tokens, lengths[:, None] - 1, attention_mask=mask)[:, 0]


def _lines(bench: Bench, group: Sequence[Asked], lens: str, layer: int, reading: Reading) -> Cells:
    answers = _answers(group, reading.logits, reading.log_q)
    controls = _probabilities(reading.log_q, [prompt.control for prompt in group])
    tops = reading.top.tolist()
    lines: Cells = []
    for prompt, numbers, answer, top, control in zip(
        group, reading.measured.tolist(), answers, tops, controls, strict=True
    ):
        *distances, agree = numbers
        where = (prompt.line.id, prompt.line.domain, prompt.line.template, layer, lens)
        lines.append([*where, *distances, *answer, bench.text(top), int(agree), control])
    return lines


def _answers(group: Sequence[Asked], logits: Tensor, log_q: Tensor) -> list[tuple[int | None, float | None]]:
    """(best token rank, probability) of each prompt's accepted first tokens; (None, None) where it has none."""
    width = max((len(prompt.gold) for prompt in group), default=0)
    accepted: list[list[tuple[int, float]]] = [[] for _ in group]
    for number in range(width):
        tokens = [prompt.gold[number] if number < len(prompt.gold) else None for prompt in group]
        ids = torch.tensor([token or 0 for token in tokens], device=logits.device)
        ranks = divergence.token_rank(logits, ids).tolist()
        for pairs, rank, p in zip(accepted, ranks, _probabilities(log_q, tokens), strict=True):
            if p is not None:
                pairs.append((rank, p))
    return [(min(rank for rank, _ in pairs), sum(p for _, p in pairs)) if pairs else (None, None) for pairs in accepted]


def _probabilities(log_q: Tensor, tokens: Sequence[int | None]) -> list[float | None]:
    ids = torch.tensor([token or 0 for token in tokens], device=log_q.device)
    chances = log_q.gather(-1, ids[:, None]).squeeze(-1).exp().tolist()
    return [None if token is None else p for token, p in zip(tokens, chances, strict=True)]
