"""`kill -9` at random moments: a run killed again and again ends with the very weights of a run that was left alone.

python tests/kill_and_resume.py --kills 20 --seed 0

Trains a tiny model on a LLaVA file with `train/sft.py` once without a break; then again, killing the whole process
group at random moments, of which some fall into the start of the program and many into a save, and giving the same
command each time. At the end both `model.safetensors` must be equal to the last bit. It takes minutes, most of them
for starting Python, so it is no part of the test suite. Exit code 0: equal.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conftest import write_tiny_checkpoint
from llava_files import write_llava

from unimllm.training import checkpoint

SFT = Path(__file__).parent.parent / "train" / "sft.py"
IN_START = 5  # every fifth kill comes before the first step


def command(folder: Path, steps: int) -> list[str]:
    """The run, but its --output-dir; a save follows the other after 0.06 seconds."""
    data = write_llava(folder / "mine")
    words = [
        sys.executable, SFT, "--init-from", write_tiny_checkpoint(folder / "tiny"), "--data", data, "--image-root",
        data.parent / "images", "--max_length", 80, "--max-steps", steps, "--train.batch_size", 4, "--train.compile",
        "false", "--train.precision", "fp32", "--train.save_minutes", 0.001, "--train.num_threads", 1,
        "--train.num_workers", 1, "--train.picture_every", 0,
    ]  # fmt: skip
    return [str(word) for word in words]


def start(words: list[str], output: Path, **pipes) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen([*words, "--output-dir", output], env=environment, start_new_session=True, **pipes)


def run_alone(words: list[str], output: Path) -> tuple[float, float]:
    """Train without a break. Returns the seconds until the first step, and those from there to the end."""
    begun, process = time.monotonic(), start(words, output, stdout=subprocess.PIPE, text=True)
    wait_for_step(process)
    first = time.monotonic()
    process.communicate()
    if process.returncode:
        sys.exit(f"error: the run without a break ended with code {process.returncode}")
    return first - begun, time.monotonic() - first


def wait_for_step(process: subprocess.Popen) -> None:
    """Read the log up to the first step, or to its end."""
    for line in process.stdout:
        if line.startswith("step "):
            break


def run_and_kill(words: list[str], output: Path, seconds: float, after_step: bool) -> bool:
    """Start, or go on, and kill all of it after so many seconds. Returns whether it was still running.

    Args:
        after_step: the seconds count from the first step, not from the start.
    """
    process = start(words, output, stdout=subprocess.PIPE, text=True)
    if after_step:
        wait_for_step(process)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        sys.exit(f"error: a run that went on ended with code {process.returncode}")
    return process.returncode != 0


def partial_saves(output: Path) -> set[str]:
    """Names of the folders that were being written when a run was killed."""
    return {folder.name for folder in output.glob(".step-*.partial")}


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill a run at random moments and compare how it ends.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kill-and-resume-"))
    (folder / "mine").mkdir()
    words, draw = command(folder, args.steps), random.Random(args.seed)
    starting, training = run_alone(words, folder / "alone" / "sft")
    print(f"without a break: {starting:.1f} s to the first step, {training:.1f} s for {args.steps} steps", flush=True)
    output = folder / "killed" / "sft"
    output.parent.mkdir()
    killed = in_start = in_save = 0
    while killed < args.kills:
        after_step = (killed + 1) % IN_START != 0
        # After a step so soon that the run is not over before the last kill.
        seconds = draw.uniform(0, training / args.kills if after_step else starting)
        before, broken_off = checkpoint.latest(output), partial_saves(output)
        if not run_and_kill(words, output, seconds, after_step):
            break
        killed += 1
        saving, after = bool(partial_saves(output) - broken_off), checkpoint.latest(output)
        in_start, in_save = in_start + (not after_step), in_save + saving
        print(f"kill {killed}, {seconds:.2f} s after its {'first step' if after_step else 'start'}"
              f"{', in a save' * saving}: {before and before.name} -> {after and after.name}", flush=True)  # fmt: skip
    if start(words, output, stdout=subprocess.DEVNULL).wait():
        sys.exit("error: the last run failed")
    both = [checkpoint.latest(place) / "model.safetensors" for place in (folder / "alone" / "sft", output)]
    equal = both[0].read_bytes() == both[1].read_bytes() and both[0].parent.name == both[1].parent.name
    print(f"{killed} kills, {in_start} of them soon after a start, {in_save} in a save: the weights "
          f"{'are equal bit for bit' if equal else 'DIFFER, see ' + str(folder)}")  # fmt: skip
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
