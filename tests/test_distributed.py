"""What the processes of a run ask about each other and their machine."""

import os
import subprocess
import sys

import pytest

from unimllm.distributed import processes_here

PROGRAM = "from unimllm.distributed import threads_per_process; print([threads_per_process(n) for n in (1, 2, 64)])"


def shown(before: str = "", **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", before + PROGRAM]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True).stdout.strip()


def test_threads_are_those_wished_for():
    assert shown(OMP_NUM_THREADS="1") == "[1, 1, 1]"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux gives a process some of the cores")
def test_threads_are_the_cores_allowed_shared_among_the_processes():
    allowed = sorted(os.sched_getaffinity(0))
    for cores in (1, min(2, len(allowed))):
        before = f"import os; os.sched_setaffinity(0, {set(allowed[:cores])}); "
        assert shown(before) == str([cores, max(1, cores // 2), 1])


@pytest.mark.parametrize("name", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE", None])
def test_the_processes_of_this_machine_are_what_its_launcher_says(name, monkeypatch):
    for other in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(other, raising=False)
    if name:
        monkeypatch.setenv(name, "8")
    assert processes_here(32) == (8 if name else 32)
