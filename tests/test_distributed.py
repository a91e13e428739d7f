"""What the processes of a run ask about each other and their machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unimllm.distributed import LAUNCHERS, adopt_launcher, processes_here
from unimllm.errors import UserError

NEWEST = """
import os, sys
from pathlib import Path
import torch.distributed as dist
from unimllm.errors import UserError
from unimllm.training.checkpoint import find_newest
dist.init_process_group("gloo")
folder = Path(sys.argv[1]) / (f"machine-{dist.get_rank()}" if sys.argv[2] == "apart" else "")
folder.mkdir(exist_ok=True)
try:
    told = str(find_newest(folder))
except UserError as error:
    told = str(error)
Path(sys.argv[1], f"told-{dist.get_rank()}.txt").write_text(told)
"""
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


@pytest.fixture
def launched(monkeypatch):
    """launched(**environment): what a process is told by its launcher alone, and what it then takes itself for."""
    kept = {name for names in LAUNCHERS.values() for name in names}
    kept |= {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}

    def run(**environment: str) -> dict[str, str]:
        told = {name: value for name, value in os.environ.items() if name not in kept} | environment
        monkeypatch.setattr(os, "environ", told)
        adopt_launcher()
        return {name: told[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE") if name in told}

    return run


@pytest.mark.parametrize(
    ("launcher", "values"),
    [("srun", "11 16 3 8(x2)"), ("mpirun", "11 16 3 8"), ("mpiexec", "11 16 3 8")],
)
def test_processes_of_srun_and_mpirun_are_one_run(launched, launcher, values):
    told = dict(zip(LAUNCHERS[launcher], values.split(), strict=True))
    expected = {"RANK": "11", "WORLD_SIZE": "16", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"}
    assert launched(MASTER_ADDR="node-0", **told) == expected
    assert os.environ["MASTER_PORT"] == "29500"
    with pytest.raises(UserError, match=f"^{launcher} started 16 processes and MASTER_ADDR is not set"):
        launched(**told)
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    assert launched(**told, **torchrun) == torchrun
    daemon = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}
    assert launcher == "srun" or launched(MASTER_ADDR="node-0", **daemon, **told) == expected
    alone = told | {LAUNCHERS[launcher][0]: "0", LAUNCHERS[launcher][1]: "1"}
    assert launched(**alone) == {}


def newest(folder: Path, disks: str) -> list[str]:
    """What each of two processes says of the newest checkpoint."""
    program = folder / "newest.py"
    program.write_text(NEWEST)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launcher, str(program), str(folder), disks], check=True, capture_output=True)
    return [(folder / f"told-{rank}.txt").read_text() for rank in range(2)]


def test_all_processes_go_on_from_one_checkpoint(tmp_path):
    assert newest(tmp_path, "shared") == ["None", "None"]
    (tmp_path / "step-000005").mkdir()
    for name in ("run.json", "config.json"):
        (tmp_path / "step-000005" / name).write_text("{}")
    assert newest(tmp_path, "shared") == [str(tmp_path / "step-000005")] * 2
    assert not list(tmp_path.glob(".shared-test-*"))


def test_machines_with_an_output_folder_each_are_refused(tmp_path):
    for told in newest(tmp_path, "apart"):
        assert told.startswith("rank 1 on ") and "a disk that all machines share" in told
