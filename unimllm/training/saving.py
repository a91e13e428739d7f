"""Writing checkpoints: which are kept, which was the best, and what is said where the disk is full."""

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import nn

from semhitok.checkpoints import BEST, RUN_FILE, folder_name, latest, step_folders, step_of
from semhitok.errors import first_line
from unimllm.distributed import barrier, is_first_process, refuse_together
from unimllm.errors import UserError
from unimllm.training.apart import shown
from unimllm.training.averages import EXPORTED, WeightAverage
from unimllm.training.checkpoint import STATE_FOLDER
from unimllm.training.config import TrainConfig
from unimllm.training.in_place import gathered
from unimllm.training.validation import codes_are_to_come, mean_loss

NO_ROOM = 1 << 20  # free bytes of a disk that count as none
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_IN_WORDS = (
    *(f"os error {number}" for number in FULL), *map(os.strerror, FULL),  # of safetensors, which is written in Rust
    "PytorchStreamWriter failed writing file", "unexpected pos",  # of torch.save
)  # fmt: skip


class Saver:
    """Writes the checkpoints of a run and deletes those that are kept no longer.

    Args:
        engine: DeepSpeed engine.
        task: what it trains.
        export: writes the Hugging Face folder; called on rank 0.
        best: as run.json of the checkpoint gone on with has it, None without.

    Attributes:
        best: {"step", "loss"} of the step with the lowest validation loss, all whose checkpoint is there; or None.
    """

    def __init__(
        self, engine, task: nn.Module, output_dir: Path, export: Callable[[Path], None], config: TrainConfig,
        best: dict | None = None,
    ):  # fmt: skip
        self.engine, self.task, self.output_dir, self.export, self.config = engine, task, output_dir, export, config
        self.best = best if best and (output_dir / folder_name(best["step"]) / RUN_FILE).is_file() else None
        self.warned = False
        self.average = WeightAverage(task, config.ema_decay) if config.ema_decay and is_first_process() else None
        refuse_together(self._go_on_with_average())
        if is_first_process():
            for broken_off in output_dir.glob(".step-*.partial"):  # by a kill
                shutil.rmtree(broken_off, ignore_errors=True)
            self._point_to_best()

    def _go_on_with_average(self) -> str | None:
        """Load the average of the newest checkpoint, on rank 0; what to say where it cannot be."""
        found = latest(self.output_dir) if self.average else None
        try:
            if found:
                self.average.load(found / STATE_FOLDER)
        except UserError as error:
            return str(error)
        return None

    def follow(self) -> None:
        """Take the weights behind a step into their average, on rank 0; it begins when all codebooks have."""
        if self.average and codes_are_to_come(self.task):
            self.average.restart()
        elif self.average:
            self.average.update()

    def note(self, step: int, validated: dict | None) -> bool:
        """Whether a step is the best so far, so that it is to be saved.

        Args:
            validated: {"step", "losses"} of the last validation; None: there was none.
        """
        if not self.config.save_best or validated is None or validated["step"] != step:
            return False
        loss = mean_loss(self.task, validated["losses"])
        if loss is None or not math.isfinite(loss) or (self.best and loss >= self.best["loss"]):
            return False
        self.best = {"step": step, "loss": loss}
        return True

    def save(self, run: dict) -> Path:
        """Write one checkpoint; called by every rank.

        Args:
            run: goes to run.json; must hold "step".

        Raises:
            UserError: the disk is full; the checkpoint before stays.
        """
        final = self.output_dir / folder_name(run["step"])
        partial = self.output_dir / f".{final.name}.partial"
        first = is_first_process()
        if first:
            self._warn_of_room()
        with left_whole(partial):
            if first:
                partial.mkdir(parents=True)
            barrier()
            self.engine.save_checkpoint(str(partial), tag=STATE_FOLDER, save_latest=False)
            told = json.dumps(run | {"best": self.best}, indent=1)
            with gathered(self.engine.parameters()), shown(self.task):
                if first:
                    self.export(partial)
                if self.average:
                    self._export_average(partial, told)
            if first:
                (partial / RUN_FILE).write_text(told, encoding="utf-8")
        if first:
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            self._point_to_best()
            self._delete_old()
        barrier()
        return final

    def _export_average(self, partial: Path, told: str) -> None:
        """The average as state to go on with, and as a model with the run's run.json."""
        self.average.save(partial / STATE_FOLDER)
        folder = partial / EXPORTED
        folder.mkdir()
        with self.average.in_place():
            self.export(folder)
        (folder / RUN_FILE).write_text(told, encoding="utf-8")

    def _delete_old(self) -> None:
        """The newest stay, the best, and those that `keep_every` names."""
        for old in step_folders(self.output_dir)[: -self.config.keep_checkpoints]:
            step = step_of(old)
            if not self.config.keeps(step) and not (self.best and self.best["step"] == step):
                shutil.rmtree(old)

    def _point_to_best(self) -> None:
        """Have the link `best` name the best checkpoint; without one there is no link."""
        link, fresh = self.output_dir / BEST, self.output_dir / f".{BEST}"
        try:
            if self.best is None:
                if link.is_symlink():
                    link.unlink()
                return
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(folder_name(self.best["step"]))
            os.replace(fresh, link)
        except OSError as error:  # a file system without links
            print(f"warning: {link} cannot be made ({first_line(error)}); the best step is {self.best}", flush=True)

    def _warn_of_room(self) -> None:
        """Say once that the disk holds less than the checkpoint before took."""
        before, free = latest(self.output_dir), shutil.disk_usage(self.output_dir).free
        if before and not self.warned and free < (needed := size_of(before)):
            self.warned = True
            print(f"warning: a checkpoint takes {in_words(needed)}, and {self.output_dir} has {in_words(free)} free: "
                  "make room, or this save fails and ends the run", flush=True)  # fmt: skip


@contextlib.contextmanager
def left_whole(partial: Path) -> Iterator[None]:
    """What fails while the folder `partial` is being written leaves nothing of it behind, on rank 0.

    Raises:
        UserError: the disk is full.
    """
    try:
        yield
    except BaseException as error:
        is_full, output_dir = disk_is_full(error, partial.parent), partial.parent
        before = latest(output_dir)
        needed = in_words(size_of(before)) if before else f"more than {in_words(size_of(partial))}"
        if is_first_process():
            shutil.rmtree(partial, ignore_errors=True)
        if not is_full:
            raise
        raise UserError(
            f"the disk of {output_dir} is full, nothing was saved ({first_line(error)}); a checkpoint takes {needed}, "
            f"{in_words(shutil.disk_usage(output_dir).free)} are free; the checkpoint before stays: make room and "
            "start the same command again"
        ) from error


def disk_is_full(error: BaseException | None, folder: Path) -> bool:
    """Whether a full disk or a used up quota is behind an error: torch and safetensors have errors of their own."""
    if not isinstance(error, Exception):
        return False
    seen = error
    while seen is not None:
        if getattr(seen, "errno", None) in FULL or any(word in str(seen) for word in FULL_IN_WORDS):
            return True
        seen = seen.__cause__ or seen.__context__
    return shutil.disk_usage(folder).free < NO_ROOM


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder, as far as they can be seen."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def in_words(size: int) -> str:
    """`3.4 GiB`, `0.2 MiB`."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
