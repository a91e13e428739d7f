"""Being told to stop: a scheduler that ends or preempts a job sends SIGTERM, or SIGUSR1 some time before (Slurm's
`--signal=USR1@300`), and Ctrl-C sends SIGINT. The step in hand is finished and saved, and the run ends; a second Ctrl-C
ends it at once.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Self

from unimllm.distributed import is_first_process, print_once

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]  # Windows: two
SAME = 1.0  # seconds in which a second SIGINT is the first: the terminal and a launcher both send it
WORKER_GRACE = 600  # seconds that a data worker goes on after a signal; far more than a step takes


class Ending:
    """Hears the signals while it is entered; a context manager. In threads but the main one it hears nothing.

    Attributes:
        asked: number of the signal that came, 0 before.
    """

    def __init__(self):
        self.asked = 0
        self.interrupted = 0.0  # when the first SIGINT came

    def __enter__(self) -> Self:
        is_main = threading.current_thread() is threading.main_thread()
        heard = set(SIGNALS if is_main else [])
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started by a script in its background
            heard.discard(signal.SIGINT)
        self._before = {number: signal.signal(number, self._hear) for number in heard}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        if number != signal.SIGINT:
            return
        if self.interrupted and time.monotonic() - self.interrupted > SAME:
            raise KeyboardInterrupt
        if not self.interrupted:
            self.interrupted = time.monotonic()
            if is_first_process():
                with contextlib.suppress(OSError):  # not by print, which may be at work just now
                    os.write(2, b"interrupted: the step is finished and saved; Ctrl-C again ends at once\n")

    @staticmethod
    def end(number: int, step: int) -> None:
        """Leave the program with the exit status of a process that a signal ended.

        Args:
            number: of the signal that some process of the run was sent.
            step: that is saved.
        """
        name = signal.Signals(number).name
        print_once(f"stopped by {name}; step {step:,} is saved, and the same command goes on from it")
        sys.exit(128 + number)


def outlive_the_step(_worker: int) -> None:
    """Of a data worker: a signal to the whole group must not take the data from the step in hand.

    It may come several times: a scheduler and the launcher both send it. The main process ends a worker that hangs by
    it, too, so none ignores it for good.
    """

    def hear(_number: int, _frame: FrameType | None) -> None:
        left = signal.alarm(WORKER_GRACE)
        if left:
            signal.alarm(left)

    for number in SIGNALS:
        signal.signal(number, hear)
