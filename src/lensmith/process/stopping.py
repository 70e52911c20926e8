"""How a command ends before its work is done.

TERM and INT end it at once (exit code 128 + signal), or, where it asked for that, at the end of a step:

    with stopping.deferred() as stop:
        for step in steps:
            ...
            if stop.signal is not None:
                save()
                raise Interrupted(stop.signal, "stopped at step 12; its checkpoint is kept")

A second signal ends the process immediately. A stage gets TERM when the DVC that runs it dies, else it would go on
alone, and a second `dvc repro` would start another one beside it.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
KEPT = "what is finished is kept. `dvc repro` goes on."


class Interrupted(BaseException):  # as KeyboardInterrupt: `except Exception` must not catch it
    """A signal asked the command to end."""

    def __init__(self, number: int, kept: str) -> None:
        super().__init__(f"{signal.Signals(number).name}: {kept}")
        self.exit_code = 128 + number


@dataclass
class Stop:
    """The signal that arrived, if one did."""

    signal: int | None = None


_deferring: list[Stop] = []


def install() -> None:
    """Take TERM and INT, also where a parent such as nohup has them ignored; a stage of DVC follows DVC."""

    def on_signal(number: int, _: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if not _deferring:
            raise Interrupted(number, KEPT)
        _deferring[-1].signal = number

    for number in SIGNALS:
        signal.signal(number, on_signal)
    if "DVC_STAGE" in os.environ:
        follow(os.getppid())


def follow(parent: int) -> None:
    """TERM for this process, and for what it becomes by exec, when its parent dies. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before it was watched
            signal.raise_signal(signal.SIGTERM)


@contextmanager
def deferred() -> Iterator[Stop]:
    """Within the block a signal is only recorded; the block looks for it when it is ready to end."""
    stop = Stop()
    _deferring.append(stop)
    try:
        yield stop
    finally:
        _deferring.remove(stop)
    if stop.signal is not None:
        raise Interrupted(stop.signal, KEPT)
