"""A training program of a few seconds for the tests of the loop: the tiny model learns four fixed rows.

python tests/toy_training.py OUTPUT [--die-after STEP] [--save-every-step] [--validate-every STEPS] and more
"""

import argparse
import multiprocessing
import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.runtime.zero import GatheredParameters

from unimllm import UniMLLMForConditionalGeneration
from unimllm.discrete.configuration_unimllm import tiny_config
from unimllm.discrete.lora import add_lora, merged_state, save_lora
from unimllm.errors import UserError
from unimllm.training.batches import Place
from unimllm.training.config import TrainConfig
from unimllm.training.loop import train
from unimllm.training.seeding import seed_everything
from unimllm.training.sft import SftTask
from unimllm.training.start_model import train_image_tokens
from unimllm.training.validation import HeldOut

TELL_ROWS = "--tell-rows"
NUM_HELD_OUT = 5  # rows; two processes with two rows at a time share them unevenly


def source(indices: range) -> dict[str, torch.Tensor]:
    """Row i: a caption of one word and the picture that belongs to it; rows differ in how much of them is a target."""
    rows, labels = [], []
    if TELL_ROWS in sys.argv:
        print(f"rows {indices.start}-{indices.stop - 1}.", flush=True)
    for i in indices:
        generator = torch.Generator().manual_seed(i % 8)
        picture = (torch.randint(30, (4,), generator=generator) + 40).tolist()
        row = [2, 10 + i % 8, 3, 4, *picture, 5, 1]
        rows.append(row)
        labels.append([-100] * (3 + i % 3) + row[3 + i % 3 :])
    return {"input_ids": torch.tensor(rows), "labels": torch.tensor(labels)}


source.describe = lambda indices: f"toys {indices.start} to {indices.stop - 1}"


def held_out_source(indices: range) -> dict[str, torch.Tensor]:
    """Rows of the same kind with other targets; a random number is drawn in passing."""
    torch.rand(1)
    batch = source(indices)
    batch["labels"][:, -1] = -100
    return batch


def signal_everyone(number: int, times: int) -> None:
    """To the process and its data workers; each time twice, by the scheduler and by the launcher."""
    for i in range(times):
        if i:
            time.sleep(1.2)
        for process in (*multiprocessing.active_children(), multiprocessing.current_process()):
            for _ in range(2):
                os.kill(process.pid, number)
                time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--die-after", type=int, default=0)
    parser.add_argument("--die-in-export", type=int, default=0)
    parser.add_argument("--nan-gradient-after", type=int, default=0)
    parser.add_argument("--nan-loss-after", type=int, default=0, help="of the last process alone")
    parser.add_argument("--nan-loss-in", type=int, default=-1, help="of the last process alone, in one step")
    parser.add_argument("--skip-steps", type=int, nargs="+", default=[])
    parser.add_argument("--signal-after", type=int, default=0, help="SIGTERM to the last process and its data workers")
    parser.add_argument("--signal", default="SIGTERM", help="sent instead")
    parser.add_argument("--signals", type=int, default=1, help="1.2 seconds apart")
    parser.add_argument("--hold-at", type=int, default=0, help="wait before this step until OUTPUT/go is there")
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--max-steps", type=int, default=6)
    parser.add_argument("--warmup-steps", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=0)
    parser.add_argument("--ema-decay", type=float, default=0.0)
    parser.add_argument("--keep-every", type=int, default=0)
    parser.add_argument("--save-every-step", action="store_true")
    parser.add_argument(TELL_ROWS, action="store_true")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--micro-batch-size", type=int, default=0)
    parser.add_argument("--zero-stage", type=int, default=0)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--validate-every", type=int, default=0)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--offload-optimizer", action="store_true")
    args = parser.parse_args()
    config = TrainConfig(
        max_steps=args.max_steps, batch_size=args.batch_size, micro_batch_size=args.micro_batch_size,
        learning_rate=1e-2, warmup_steps=args.warmup_steps, weight_decay=0.0 if args.lora else args.weight_decay,
        precision=args.precision, zero_stage=args.zero_stage, save_minutes=0 if args.save_every_step else 60,
        skip_steps=tuple(args.skip_steps), num_threads=1, validate_every=args.validate_every,
        num_workers=args.num_workers, save_every=args.save_every, keep_every=args.keep_every,
        ema_decay=args.ema_decay, offload_optimizer=args.offload_optimizer,
    )  # fmt: skip
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a test that runs in the background ignores
    seed_everything(0)
    model = UniMLLMForConditionalGeneration(tiny_config())
    if args.lora:
        add_lora(model.language_model, rank=2, alpha=0, dropout=0)
        train_image_tokens(model)
    saves = []

    def export(folder: Path) -> None:
        saves.append(folder)
        if len(saves) == args.die_in_export:
            (folder / "model.safetensors").write_text("half")
            os._exit(9)
        if args.lora:
            model.save_pretrained(folder, state_dict=merged_state(model))
            save_lora(model, folder / "lora", "nowhere")
        else:
            model.save_pretrained(folder)

    def before_step(place: Place) -> None:
        step = place.step
        if args.die_after and step == args.die_after:
            os._exit(9)
        if args.nan_gradient_after and step == args.nan_gradient_after:
            model.get_input_embeddings().weight.register_hook(lambda gradient: gradient * float("nan"))
        is_last = dist.get_rank() == dist.get_world_size() - 1
        if args.signal_after and step == args.signal_after and is_last:
            signal_everyone(getattr(signal, args.signal), args.signals)
        if args.hold_at and step == args.hold_at:
            while not (args.output / "go").exists():
                time.sleep(0.05)
        if args.nan_loss_after and step == args.nan_loss_after and is_last:
            task.loss_weights["text"] = float("nan")
        if args.nan_loss_in >= 0 and is_last:
            task.loss_weights["text"] = float("nan") if step == args.nan_loss_in else 1.0

    held_out = {"toy": HeldOut(held_out_source, NUM_HELD_OUT)}
    task = SftTask(model, {"text": 1.0})
    try:
        train(task, source, config, args.output, export, before_step=before_step, held_out=held_out)
    except UserError as error:
        (args.output / f"error-{dist.get_rank()}.txt").write_text(str(error))
        raise
    cut = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]  # by ZeRO 3
    with GatheredParameters(cut) if cut else nullcontext():
        state = merged_state(model) if args.lora else model.state_dict()
        torch.save(state, args.output / f"memory-{os.environ.get('RANK', 0)}.pt")


if __name__ == "__main__":
    main()
