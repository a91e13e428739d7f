"""What the processes of a run ask about each other; right in a single process too."""

import os
import re

import torch
import torch.distributed as dist

from unimllm.errors import UserError

LAUNCHERS = {
    "mpirun": (
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"
    ),
    "mpiexec": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
}  # fmt: skip
"""Under which names launchers tell a process what torchrun calls RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE.

srun comes last: under Slurm it starts the daemons of the others, which inherit its names.
"""


def adopt_launcher() -> None:
    """Put what srun or mpirun tells into the names of torchrun; where torchrun or deepspeed told them nothing is done.

    Without, each of their processes would take itself for the only one.

    Raises:
        UserError: several processes that do not know where the first one is.
    """
    if "WORLD_SIZE" in os.environ:
        return
    for launcher, names in LAUNCHERS.items():
        told = [re.fullmatch(r"(\d+)(\(x\d+\))?", os.environ.get(name, "")) for name in names]  # Slurm: 8(x4), or 4,2
        if told[0] is None or told[1] is None or int(told[1][1]) < 2:
            continue
        rank, world_size, local_rank, here = (int(word[1]) if word else 0 for word in told)
        if "MASTER_ADDR" not in os.environ:
            raise UserError(
                f"{launcher} started {world_size} processes and MASTER_ADDR is not set, by which they find each other: "
                "export MASTER_ADDR=HOST, the machine of the first, before it (and MASTER_PORT, if not 29500)"
            )
        if told[2] is None and torch.cuda.device_count() > 1:
            raise UserError(f"{launcher} does not tell which GPU is whose: set LOCAL_RANK, RANK and WORLD_SIZE")
        if torch.cuda.is_available():  # one that was given a GPU of its own sees that alone
            local_rank %= torch.cuda.device_count()
        os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": f"{world_size}", "LOCAL_RANK": f"{local_rank}"}
        os.environ |= {"LOCAL_WORLD_SIZE": f"{here}"} if here else {}
        os.environ.setdefault("MASTER_PORT", "29500")
        return


def is_first_process() -> bool:
    """Whether this is rank 0; before the processes have met, by what their launcher put into the environment."""
    return dist.get_rank() == 0 if dist.is_initialized() else os.environ.get("RANK", "0") == "0"


def rank_and_size() -> tuple[int, int]:
    """Number of this process among those that have met, and how many these are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def barrier() -> None:
    """Wait until every process has come here."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def refuse_together(problem: str | None) -> None:
    """UserError on every rank where rank 0 has a problem; called by all of them once they have met.

    Args:
        problem: of rank 0; what others bring is not looked at.
    """
    problems = [problem]
    if rank_and_size()[1] > 1:
        dist.broadcast_object_list(problems, src=0)
    if problems[0]:
        raise UserError(problems[0])


def print_once(text: str) -> None:
    """Print at once, on the first process alone."""
    if is_first_process():
        print(text, flush=True)


def local_gpu() -> str | None:
    """The GPU of this process under torchrun, None outside it or without one."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank is not None and torch.cuda.is_available() else None


def processes_here(world_size: int) -> int:
    """How many of a run's processes are on this machine: torchrun and deepspeed tell it under a name each."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size)


def threads_per_process(processes: int) -> int:
    """CPU threads for each of the processes on this machine: OMP_NUM_THREADS, else this process's cores among them."""
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()  # read by torch when it was imported
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # Linux alone
    return max(1, cores // processes)
