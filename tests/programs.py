"""Programs of this repository as a user or torchrun starts them, without the ten seconds of imports before each.

A server (multiprocessing's forkserver) imports the libraries once and forks a child for every process of a program,
which has argv, environment, stdout and stderr of its own and may end or be killed as it likes. All share the hash seed
of the server; so tests/test_sft_data.py starts Python and torchrun itself.
"""

import contextlib
import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

IMPORTS = ["torch", "transformers", "deepspeed", "unimllm.training.loop", "unimllm.training.families"]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
GRACE = 10  # seconds that the others have once a process has failed
TIMEOUT = 800  # seconds that a program has; pytest's own limit comes first where it is shorter
LATE = 124  # exit code of one that took longer


@dataclass(frozen=True)
class Ended:
    """How a program ended: the exit code of the process that failed first (-9: killed), and what all of them said."""

    returncode: int
    stdout: str
    stderr: str


def run_program(program: Path, *words, processes: int = 1) -> Ended:
    """Run a program to its end, in processes that find each other as torchrun's do."""
    with tempfile.TemporaryDirectory() as folder, started(program, words, Path(folder), processes) as running:
        code = wait_for(running)
        ended = Ended(code, *((Path(folder) / name).read_text() for name in ("stdout", "stderr")))
    assert code != LATE, f"{program.name} took more than {TIMEOUT} seconds; it said {ended.stderr[-2000:]}"
    return ended


@contextlib.contextmanager
def started(program: Path, words, folder: Path, processes: int = 1) -> Iterator[list[multiprocessing.Process]]:
    """The running processes of a program; what they say goes to `stdout` and `stderr` in a folder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    with mock.patch.dict(os.environ, ENVIRONMENT):
        forkserver.ensure_running()
        port, environments = free_port(), [dict(os.environ) for _ in range(processes)]
    for rank, environment in enumerate(environments if processes > 1 else []):
        environment |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
        environment |= {name: str(processes) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    argv = [str(program), *map(str, words)]
    running = [context.Process(target=_run, args=(argv, env, os.getcwd(), str(folder))) for env in environments]
    for process in running:
        process.start()
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.join()


def wait_for(running: list[multiprocessing.Process]) -> int:
    """The first exit code that is not 0, or 0. Where one process fails the others are ended soon after."""
    end, code = time.monotonic() + TIMEOUT, 0
    while any(process.is_alive() for process in running):
        failed = [process.exitcode for process in running if process.exitcode]
        if failed and not code:
            code, end = failed[0], time.monotonic() + GRACE
        if time.monotonic() > end:
            code = code or LATE
            for process in running:
                process.kill()
        time.sleep(0.02)
    return code or next((process.exitcode for process in running if process.exitcode), 0)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _run(argv: list[str], environment: dict[str, str], place: str, folder: str) -> None:
    """In the child: become the program."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(place)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.argv = argv
    sys.path.insert(0, os.path.dirname(argv[0]))
    runpy.run_path(argv[0], run_name="__main__")
