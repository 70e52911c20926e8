"""Progress: bars for people, plain lines for logs."""

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from lensmith.process import progress
from lensmith.process.progress import Progress


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(seconds_each: float, steps: int = 10, **facts) -> list[str]:
    """The lines of a log of `steps` steps."""
    clock, log = Clock(), io.StringIO()
    with Progress("fit", steps, "step", stream=log, clock=clock) as bar:
        for _ in range(steps):
            clock.now += seconds_each
            bar.advance(**facts)
    assert "\r" not in log.getvalue()
    return log.getvalue().splitlines()


def test_a_log_gets_one_line_every_half_minute():
    """Ten steps of ten seconds: lines at 30, 60 and 90 s, and one at the end. 12,300 tokens a step: 1.23k a second."""
    lines = run(10, tokens=12_300, kl_bits=(2.746, 1.836, 1.107))

    assert lines == [
        "fit: 3 of 10 steps, 1.23k tokens/s, KL 2.746 / 1.836 / 1.107 bits, 01:10 left",
        "fit: 6 of 10 steps, 1.23k tokens/s, KL 2.746 / 1.836 / 1.107 bits, 00:40 left",
        "fit: 9 of 10 steps, 1.23k tokens/s, KL 2.746 / 1.836 / 1.107 bits, 00:10 left",
        "fit: 10 of 10 steps in 01:40",
    ]


COSTS = {  # seconds of: preparations, a unit, an extra; units after which an extra comes; whether one comes first
    "a fit that is validated at its start, three times on its way, and at its end": (90, 1.0, 40.0, 120, True),
    "a rung of few steps, validated at both ends": (90, 0.5, 20.0, 480, True),
    "a sweep in three batches, each captured first": (0, 0.01, 3.0, 160, True),
    "probes, each followed by work on its last position": (0, 0.1, 2.0, 24, False),
    "units alone": (0, 1.0, 0.0, 480, False),
}


@pytest.mark.parametrize("case", COSTS)
def test_the_time_left_holds_from_a_tenth_of_the_way_on(case):
    """Within 30 % of what was in fact left, wherever two kinds of work of unequal costs alternate."""
    prepare, unit, extra, every, is_first = COSTS[case]
    clock, said = Clock(), list[tuple[float, float]]()
    units = 480
    bar = Progress("fit", units, "step", extras=units // every + is_first, clock=clock, stream=io.StringIO())

    def pause() -> None:
        with bar.extra():
            clock.now += extra

    clock.now += prepare
    if is_first:
        pause()
    for done in range(1, units + 1):
        clock.now += unit
        bar.advance()
        if done >= units / 10:
            said.append((clock.now, bar.seconds_left() or 0.0))
        if done % every == 0:
            pause()

    assert len(said) > 400
    for now, left in said[:-1]:
        assert left == pytest.approx(clock.now - now, rel=0.3, abs=2 * unit), now


def test_work_that_goes_on_from_a_checkpoint_is_timed_anew():
    """The steps of an earlier process took no time of this one: two steps of ten seconds, six are left."""
    clock = Clock()
    bar = Progress("fit", 10, "step", done=2, clock=clock, stream=io.StringIO())
    assert bar.seconds_left() is None
    for _ in range(2):
        clock.now += 10
        bar.advance()
    assert bar.seconds_left() == pytest.approx(60)


def test_short_work_writes_nothing_to_a_log():
    """Ten steps of 2.9 s are less than half a minute."""
    assert run(2.9) == []


def test_the_last_kl_stays_until_the_next_is_measured():
    """A line between two measurements repeats the last one."""
    clock, log = Clock(), io.StringIO()
    with Progress("fit", None, "step", stream=log, clock=clock) as bar:
        bar.advance(kl_bits=(3, 2, 1))
        clock.now = 31
        bar.advance()
    assert log.getvalue().splitlines()[0] == "fit: 2 steps, KL 3.000 / 2.000 / 1.000 bits"


def test_work_that_fails_prints_no_closing_line():
    """The only line is the one of half a minute; the closing line would say that the work is done."""
    clock, log = Clock(), io.StringIO()

    def work() -> None:
        with Progress("fit", 10, "step", stream=log, clock=clock) as bar:
            clock.now = 31
            bar.advance()
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()
    assert len(log.getvalue().splitlines()) == 1


def test_track_yields_the_items_and_a_short_loop_prints_nothing(capsys):
    """The items come unchanged and in order."""
    assert list(progress.track([3, 4], "sweep", "chunk", tokens=lambda n: n)) == [3, 4]
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar():
    """Under a pseudo-terminal the bar is redrawn on one line, with speed and KL; a note has a line of its own."""
    code = (
        "from lensmith.process.progress import Progress\n"
        "with Progress('fit', 3, 'step') as bar:\n"
        "    for step in range(3): bar.advance(tokens=1000, kl_bits=(3, 2, 1))\n"
        "    bar.note('a note')\n"
    )
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with subprocess.Popen([sys.executable, "-c", code], stderr=child) as process:
        os.close(child)
        seen = b""
        while True:
            try:
                part = os.read(parent, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            seen += part
        assert process.wait() == 0
    os.close(parent)
    text = seen.decode()
    assert "\r" in text and "3/3" in text and "tokens/s" in text and "KL 3.000 / 2.000 / 1.000 bits" in text
    assert "a note" in text
