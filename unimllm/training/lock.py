"""One run at a time in an output folder: rank 0 holds a lock on a file in it for as long as it lives.

The lock is the kernel's (flock), so it goes with the process however that ends; what the file says is for the message
alone. Where a file system knows no such locks a run goes on without.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from unimllm.distributed import is_first_process, refuse_together

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FILE = ".lock"
PATIENCE = 5.0  # seconds: a process that was killed holds it until its memory is given back
_held: dict[Path, int] = {}  # descriptors of this process


def claim(output_dir: Path) -> None:
    """Take the output folder for this run; called by all ranks once they have met, a second time without effect.

    Raises:
        UserError: another run has it; on every rank.
    """
    refuse_together(_take(output_dir) if is_first_process() else None)


def release(output_dir: Path) -> None:
    """Leave the folder to others."""
    descriptor = _held.pop(_path(output_dir), None)
    if descriptor is not None:
        os.close(descriptor)


@contextlib.contextmanager
def released(output_dir: Path) -> Iterator[None]:
    """Leave the folder to others behind what is done within."""
    try:
        yield
    finally:
        release(output_dir)


def _path(output_dir: Path) -> Path:
    return output_dir.resolve() / FILE


def _take(output_dir: Path) -> str | None:
    """Lock the folder; what to say where another run has it."""
    path = _path(output_dir)
    if fcntl is None or path in _held:
        return None
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # of another user
        return None
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
                os.close(descriptor)
                return (
                    f"another run ({holder or 'of an unknown process'}) is writing to --output-dir {output_dir}: wait "
                    "for its end or stop it, or name another folder"
                )
            time.sleep(0.1)
        except OSError:  # a file system without locks
            os.close(descriptor)
            return None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    _held[path] = descriptor
    return None


def _let_go() -> None:
    """In a forked child, a data worker for one: it may outlive a parent that is killed, whose lock goes with it."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go)
