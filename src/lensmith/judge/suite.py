"""Stage `suite-eval`: every prompt of the suite, read at its last position by every lens at every layer.

Writes rows.csv (a line for each prompt, layer and lens), first.csv (for each prompt and lens, the first layer with the
answer within rank 10, 5, 1, and with a KL of at most a bit), prompts.csv (a line for each prompt), suite.json (files,
counts, the lens). The columns are in `tables.py`.

`answer_token_rank` and `p_answer` are of the answer's first token when it follows the prompt. Where aliases give
further first tokens, the best rank and the sum of the probabilities count. A prompt whose answer has no first token
of its own ("unaligned") keeps its distances and has neither. `intermediate_token_rank` and `p_intermediate` are the
same of the prompt's intermediate, `chance_token_rank` of that of another prompt: what a lens reads by chance.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lensmith.files import artifacts
from lensmith.judge import contamination, trajectories
from lensmith.judge.bench import Bench
from lensmith.judge.facts import SuiteFacts
from lensmith.judge.heldout import CLOSE_BITS
from lensmith.judge.prompts import Prompt, first_tokens, read_suite
from lensmith.judge.tables import FIRST_COLUMNS, PROMPT_COLUMNS, RANKS, ROW_COLUMNS
from lensmith.judge.walk import Reading
from lensmith.process.progress import Progress
from lensmith.settings.sections import ModelParams
from lensmith.source import corpus as corpora


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt in tokens."""

    line: Prompt
    ids: list[int]
    gold: list[int]  # first tokens of the answer and its aliases, the answer's first; empty where none is aligned
    control: list[int]  # of a wrong answer: one or none
    intermediate: list[int]  # of the intermediate and its aliases; empty where the answer begins as it does
    chance: list[int]  # of the intermediate of another prompt

    @property
    def aligned(self) -> bool:
        return bool(self.gold)

    @property
    def template(self) -> tuple[str, str]:
        return self.line.domain, self.line.template

    @property
    def targets(self) -> tuple[list[int], ...]:
        """The tokens that are ranked, by what they mean: in the order of `Ranked`."""
        return self.gold, self.control, self.intermediate, self.chance


def run(settings: ModelParams, corpus: Path, lens: Path, out: Path) -> None:
    """Measure the suite of one model.

    Raises:
        InputError: a line of the suite is wrong, or a prompt is longer than the model's context.
        IntegrityError: corpus or lens are damaged, or belong to another model.
    """
    suite = read_suite(settings.suite.files)
    bench = Bench.load(settings, corpus, lens)
    prompts = tokenize(bench, suite.lines)
    cells, prompt_lines = measure(bench, prompts, settings.suite.batch_prompts)
    artifacts.write_csv(out / "rows.csv", ROW_COLUMNS, cells)
    artifacts.write_csv(out / "first.csv", FIRST_COLUMNS, first_lines(cells))
    artifacts.write_csv(out / "prompts.csv", PROMPT_COLUMNS, prompt_lines)
    chosen = shown(prompts, settings.suite.trajectories)
    trajectories.write(out, bench, chosen, "suite-eval, trajectories")
    # Inside a text nothing is added before a prompt, and its first token differs, by a space: both are left out.
    inside = [prompt.ids[1 + len(bench.encode.added[0]) :] + prompt.gold[:1] for prompt in prompts]
    present = contamination.in_text(inside, corpora.read_tokens(corpus))
    facts = SuiteFacts(
        schema=4,
        model_key=settings.key,
        n_layers=bench.n_layers,
        lens=bench.identity,
        lenses=bench.names,
        files=suite.files,
        in_training_text=tuple(prompt.line.id for prompt, hit in zip(prompts, present, strict=True) if hit),
    )
    facts.write(out / "suite.json")


def tokenize(bench: Bench, lines: Iterable[tuple[str, Prompt]]) -> list[TokenizedPrompt]:
    """Prompts in tokens.

    Raises:
        InputError: a prompt does not fit into the model's context.
    """
    prompts = []
    for where, line in lines:
        ids = bench.encode.prompt(line.prompt, where)
        answers, controls = [line.answer, *line.aliases], [] if line.control is None else [line.control]
        gold, control, intermediate = (
            first_tokens(bench.encode, line.prompt, texts) for texts in (answers, controls, line.intermediates)
        )
        if not gold or set(intermediate) & set(gold):  # one token cannot tell both
            intermediate = []
        prompts.append(TokenizedPrompt(line, ids, gold, control, intermediate, chance=[]))
    return [replace(prompt, chance=chance(prompt, prompts)) for prompt in prompts]


def chance(prompt: TokenizedPrompt, prompts: Sequence[TokenizedPrompt]) -> list[int]:
    """The first tokens of another prompt's intermediate, which a lens finds in this prompt by chance alone.

    The next prompt of the same template is taken, in a circle, whose intermediate shares no token with this prompt's
    intermediate or answer. Empty where there is none.
    """
    if not prompt.intermediate:
        return []
    alike = [other for other in prompts if other.template == prompt.template]
    start, taken = alike.index(prompt), {*prompt.intermediate, *prompt.gold}
    others = (other.intermediate for other in alike[start + 1 :] + alike[:start])
    return next((tokens for tokens in others if tokens and not taken & set(tokens)), [])


def shown(prompts: Sequence[TokenizedPrompt], count: int) -> list[trajectories.Shown]:
    """`count` prompts for the report: the first of each domain, then the second of each, and so on."""
    turns: Counter[str] = Counter()
    order = []
    for number, prompt in enumerate(prompts):
        order.append((turns[prompt.line.domain], number))
        turns[prompt.line.domain] += 1
    chosen = [prompts[number] for _, number in sorted(order)[:count]]
    return [trajectories.Shown(prompt.line.id, prompt.line.prompt, prompt.line.answer, prompt.ids) for prompt in chosen]


Cells = list[list[object]]


@torch.inference_mode()
def measure(bench: Bench, prompts: Sequence[TokenizedPrompt], batch_prompts: int) -> tuple[Cells, Cells]:
    """The lines of rows.csv and of prompts.csv, prompts in their order."""
    cells: Cells = []
    lines: Cells = []
    size = batch_prompts * max(1, 256 // batch_prompts)
    readings = list(bench.decoded)
    starts = range(0, len(prompts), size)
    with Progress("suite-eval", len(prompts) * len(readings), "reading", extras=len(starts)) as progress:
        for start in starts:
            group = prompts[start : start + size]
            parts = [group[i : i + batch_prompts] for i in range(0, len(group), batch_prompts)]
            with progress.extra():
                resid = torch.cat([capture_last(bench, [prompt.ids for prompt in part]) for part in parts])
            targets = [[*chain(*prompt.targets)] for prompt in group]
            width = max(len(tokens) for tokens in targets)
            padded = [tokens + [0] * (width - len(tokens)) for tokens in targets]
            wanted = torch.tensor(padded, dtype=torch.long, device=resid.device)
            read = bench.read(resid, readings, targets=wanted, advance=progress.advance)
            by_reading = [_lines(bench, group, *reading, read[reading]) for reading in readings]
            cells += [line for by_prompt in zip(*by_reading, strict=True) for line in by_prompt]
            for prompt, ranked in zip(group, _ranked(group, read["norm", bench.n_layers]), strict=True):
                line = prompt.line
                first, middle = (
                    bench.text(tokens[0]) if tokens else None for tokens in (prompt.gold, prompt.intermediate)
                )
                origin = [line.id, line.domain, line.template, line.answer, len(prompt.ids)]
                lines.append([*origin, first, int(prompt.aligned), *ranked.answer, middle])
    return cells, lines


def first_lines(cells: Iterable[Sequence[object]]) -> Iterator[list[object]]:
    """The lines of first.csv from those of rows.csv: the first layer where a bound holds; None where none does."""
    lens, layer = ROW_COLUMNS.index("lens"), ROW_COLUMNS.index("layer")
    rank, kl = ROW_COLUMNS.index("answer_token_rank"), ROW_COLUMNS.index("kl_final_lens_bits")
    bounds = [(rank, k - 1) for k in RANKS] + [(kl, CLOSE_BITS)]
    for where, group in groupby(cells, key=lambda cell: (*cell[:3], cell[lens])):
        blocks = [cell for cell in group if cell[layer]]
        firsts = []
        for at, bound in bounds:
            values = ((cell[layer], cell[at]) for cell in blocks)
            reached = (depth for depth, value in values if isinstance(value, int | float) and value <= bound)
            firsts.append(next(reached, None))
        yield [*where, *firsts]


def capture_last(bench: Bench, ids: Sequence[list[int]]) -> Tensor:
    """The residual stream at the last token of each of some texts: (n, L + 1, d_model)."""
    lengths = torch.tensor([len(text) for text in ids])
    tokens = torch.zeros(len(ids), int(lengths.max()), dtype=torch.long)
    for place, text in enumerate(ids):
        tokens[place, : len(text)] = torch.tensor(text)
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
    return bench.backbone.capture(tokens, lengths[:, None] - 1, attention_mask=mask)[:, 0]


class Standing(NamedTuple):
    """First tokens of one meaning in one reading; None where there are none."""

    rank: int | None  # the best one's
    p: float | None  # of all together


class Ranked(NamedTuple):
    """What one reading makes of a prompt's targets."""

    answer: Standing
    control: Standing
    intermediate: Standing
    chance: Standing


def _ranked(prompts: Sequence[TokenizedPrompt], reading: Reading) -> Iterator[Ranked]:
    # Column 0 is the model's own answer; the targets follow.
    numbers = reading.ranks[:, 1:].tolist(), reading.log_q[:, 1:].exp().tolist()
    for prompt, ranks, p in zip(prompts, *numbers, strict=True):
        standings, start = [], 0
        for tokens in prompt.targets:
            places = slice(start, start := start + len(tokens))
            standings.append(Standing(min(ranks[places]), sum(p[places])) if tokens else Standing(None, None))
        yield Ranked(*standings)


def _lines(bench: Bench, prompts: Sequence[TokenizedPrompt], lens: str, layer: int, reading: Reading) -> Cells:
    lines: Cells = []
    numbers = zip(prompts, reading.measured.tolist(), _ranked(prompts, reading), reading.top.tolist(), strict=True)
    for prompt, (*distances, agree), (answer, control, intermediate, by_chance), top in numbers:
        origin = (prompt.line.id, prompt.line.domain, prompt.line.template, layer, lens)
        answers = (*answer, bench.text(top), int(agree), control.p)
        lines.append([*origin, *distances, *answers, *intermediate, by_chance.rank])
    return lines
