"""Progress of long work: a bar in a terminal, else one plain line every half minute.

    with Progress("fit", total=steps, unit="step") as progress:
        for step in range(steps):
            ...
            progress.advance(tokens=n, kl_bits=(2.75, 1.84, 1.11))

and `track` for a loop that reports nothing else. A log gets whole lines and no carriage return; work of less than half
a minute writes nothing there.

The time left is that of two kinds of work, each at its own pace: the units, and `extras` that interrupt them, such as
the validations of a fit or the forward pass before a batch is read.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
        extras: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Progress towards `total` units.

        Args:
            done: units that an earlier process did.
            extras: how many times `extra` will be entered.
        """
        self._name, self._total, self._unit, self._clock = name, total, unit, clock
        self._stream = sys.stderr if stream is None else stream
        self._started = self._said = self._counted_until = clock()
        self._done = self._already_done = done
        self._unit_seconds = self._extra_seconds = 0.0
        self._extras, self._extras_done = extras, 0
        self._tokens = 0
        self._kl_bits: tuple[float, ...] = ()
        watched = self._stream.isatty()
        # Without tqdm's own speed and time left, which know one kind of work.
        form = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
        bar = {"initial": done, "unit": unit, "file": self._stream, "dynamic_ncols": True, "bar_format": form}
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
        self._unit_seconds += self._seconds()
        self._tokens += tokens
        self._kl_bits = tuple(kl_bits) or self._kl_bits
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join([*self._facts(), *self._remaining()]), refresh=False)
            self._bar.update(n)
        elif self._counted_until - self._said >= EVERY:
            self._said = self._counted_until
            self._print(", ".join([self._counted(), *self._facts(), *self._remaining()]))

    @contextmanager
    def extra(self) -> Iterator[None]:
        """Around one of the extras. Preparations, which come before the first unit or extra, count as neither."""
        if self._done == self._already_done and not self._extras_done:
            self._seconds()
        yield
        self._extra_seconds += self._seconds()
        self._extras_done += 1

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

    def seconds_left(self) -> float | None:
        """Of units and extras that are still to do; None before the first unit, or where nobody knows how many."""
        if self._total is None or self._done == self._already_done:
            return None
        seconds = self._unit_seconds / (self._done - self._already_done) * (self._total - self._done)
        if self._extras_done:
            seconds += self._extra_seconds / self._extras_done * (self._extras - self._extras_done)
        return seconds

    def _remaining(self) -> list[str]:
        seconds = self.seconds_left()
        return [] if seconds is None else [f"{tqdm.format_interval(seconds)} left"]

    def _seconds(self) -> float:
        """Since the last call."""
        before, self._counted_until = self._counted_until, self._clock()
        return self._counted_until - before

    def _print(self, text: str) -> None:
        print(f"{self._name}: {text}", file=self._stream, flush=True)


def track(items: Sequence[Item], name: str, unit: str, tokens: Callable[[Item], int] | None = None) -> Iterator[Item]:
    """The items, with progress over them; `tokens` says how many tokens an item holds."""
    with Progress(name, len(items), unit) as progress:
        for item in items:
            yield item
            progress.advance(tokens=tokens(item) if tokens else 0)
