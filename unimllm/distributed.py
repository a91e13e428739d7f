"""What the processes of a run ask about each other; right in a single process too."""

import os

import torch
import torch.distributed as dist


def is_first_process() -> bool:
    """Whether this is rank 0; before the processes have met, by what their launcher put into the environment."""
    return dist.get_rank() == 0 if dist.is_initialized() else os.environ.get("RANK", "0") == "0"


def barrier() -> None:
    """Wait until every process has come here."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


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
