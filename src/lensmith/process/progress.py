"""Progress of long work: a bar in a terminal, else one plain line every half minute.

    with Progress("fit", total=steps, unit="step") as progress:
        for step in range(steps):
            ...
            progress.advance(tokens=n, kl_bits=(2.75, 1.84, 1.11))

and `track` for a loop that reports nothing else. A log gets whole lines and no carriage return; work of less than half
a minute writes nothing there.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self, TextIO, TypeVar

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines of a log

Item = TypeVar("Item")


class Progress:
    """How far a loop has come. Everything goes to stderr; nothing that is computed depends on it."""

    def __init__(
        self,
        name: str,
        total: int | None,
        unit: str,
        *,
        done: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._total, self._unit, self._clock = name, total, unit, clock
        self._stream = sys.stderr if stream is None else stream
        self._started = self._said = clock()
        self._done = self._already_done = done  # by an earlier process, whose work goes on here
        self._tokens = 0
        self._kl_bits: tuple[float, ...] = ()
        watched = self._stream.isatty()
        bar = {"initial": done, "unit": unit, "file": self._stream, "dynamic_ncols": True}
        self._bar = tqdm(total=total, desc=name, **bar) if watched else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None and self._said > self._started:
            self._print(f"{self._counted()} in {tqdm.format_interval(self._clock() - self._started)}")

    def advance(self, n: int = 1, *, tokens: int = 0, kl_bits: Sequence[float] = ()) -> None:
        """`n` more units are done.

        Args:
            tokens: how many tokens they read.
            kl_bits: held-out KL at 25, 50 and 75 % of depth, where it was measured anew.
        """
        self._done += n
        self._tokens += tokens
        self._kl_bits = tuple(kl_bits) or self._kl_bits
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(self._facts()), refresh=False)
            self._bar.update(n)
        elif (now := self._clock()) - self._said >= EVERY:
            self._said = now
            self._print(", ".join([self._counted(), *self._facts(), *self._remaining()]))

    def note(self, line: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bar is not None:
            tqdm.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def _counted(self) -> str:
        return f"{self._done}{'' if self._total is None else f' of {self._total}'} {self._unit}s"

    def _facts(self) -> list[str]:
        seconds = self._clock() - self._started
        facts = [f"{tqdm.format_sizeof(self._tokens / seconds)} tokens/s"] if self._tokens and seconds > 0 else []
        if self._kl_bits:
            facts.append(f"KL {' / '.join(f'{value:.3f}' for value in self._kl_bits)} bits")
        return facts

    def _remaining(self) -> list[str]:
        if self._total is None or self._done == self._already_done:
            return []
        seconds = (self._clock() - self._started) / (self._done - self._already_done) * (self._total - self._done)
        return [f"{tqdm.format_interval(seconds)} left"]

    def _print(self, text: str) -> None:
        print(f"{self._name}: {text}", file=self._stream, flush=True)


def track(items: Sequence[Item], name: str, unit: str, tokens: Callable[[Item], int] | None = None) -> Iterator[Item]:
    """The items, with progress over them; `tokens` says how many tokens an item holds."""
    with Progress(name, len(items), unit) as progress:
        for item in items:
            yield item
            progress.advance(tokens=tokens(item) if tokens else 0)
