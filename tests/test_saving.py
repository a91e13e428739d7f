"""Checkpoints as they are written: a full disk, what is kept, the best of them, one run in a folder at a time."""

import errno
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from semhitok.checkpoints import find_tokenizer
from unimllm.errors import UserError
from unimllm.training import checkpoint, lock, saving
from unimllm.training.config import TrainConfig
from unimllm.training.saving import Saver
from unimllm.training.validation import mean_loss


class Engine:
    """DeepSpeed's, of which a save writes a few bytes and then ends with an error, if there is one."""

    def __init__(self, error: BaseException | None = None):
        self.error = error

    def parameters(self) -> list:
        return []

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        (Path(folder) / tag).mkdir()
        (Path(folder) / tag / "mp_rank_00_model_states.pt").write_text("half")
        if self.error:
            raise self.error


def export(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def saver(output_dir: Path, error: BaseException | None = None, best: dict | None = None, **options) -> Saver:
    return Saver(Engine(error), torch.nn.Module(), output_dir, export, TrainConfig(**options), best)


def names(output_dir: Path) -> list[str]:
    return sorted(path.name for path in output_dir.iterdir())


# ---- a full disk -----------------------------------------------------------------------------------------------------


class SafetensorError(Exception):
    """As safetensors has it: no OSError."""


class FromFullDisk(RuntimeError):
    """As torch.save has it."""

    def __init__(self):
        super().__init__("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (FromFullDisk(), True),
        (RuntimeError("an error of another kind"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_a_save_that_fails_leaves_the_checkpoint_before_and_nothing_else(error, is_full, tmp_path):
    saver(tmp_path).save({"step": 1})
    told = (
        rf"^the disk of {tmp_path} is full, nothing was saved \(.*\); a checkpoint takes 0.0 MiB, .* [GM]iB are free; "
        "the checkpoint before stays: make room and start the same command again$"
    )
    with pytest.raises(UserError if is_full else type(error), match=told if is_full else None):
        saver(tmp_path, error).save({"step": 2})
    assert names(tmp_path) == ["step-000001"] and (checkpoint.latest(tmp_path) / "config.json").is_file()
    saver(tmp_path, keep_checkpoints=1).save({"step": 2})
    assert names(tmp_path) == ["step-000002"]


def test_a_disk_that_has_less_room_than_a_checkpoint_took_is_told_once(tmp_path, monkeypatch, capsys):
    made = saver(tmp_path)
    made.save({"step": 1})
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda folder: SimpleNamespace(free=5))
    for step in (2, 3):
        made.save({"step": step})
    assert capsys.readouterr().out == (
        f"warning: a checkpoint takes 0.0 MiB, and {tmp_path} has 0.0 MiB free: make room, or this save fails and ends "
        "the run\n"
    )


def test_what_a_kill_broke_off_is_gone_when_the_run_goes_on(tmp_path):
    (tmp_path / ".step-000007.partial" / "deepspeed").mkdir(parents=True)
    saver(tmp_path)
    assert names(tmp_path) == []


# ---- which are kept --------------------------------------------------------------------------------------------------


def validated(step: int, loss: float) -> dict:
    return {"step": step, "losses": {"a": {"text": loss, "image": loss + 2}, "b": {"text": loss}}}


def test_the_newest_every_so_manieth_and_the_best_are_kept(tmp_path):
    made = saver(tmp_path, keep_checkpoints=2, keep_every=4)
    for step, loss in enumerate([5.0, 2.0, 3.0, 4.0, float("nan"), 2.0, 2.5], start=1):
        assert made.note(step, validated(step, loss)) == (step in (1, 2))
        made.save({"step": step})
    assert names(tmp_path) == ["best", *(f"step-00000{step}" for step in (2, 4, 6, 7))]
    assert os.readlink(tmp_path / "best") == "step-000002"
    assert made.note(8, validated(7, 0.0)) is False  # of another step
    assert made.note(8, None) is False and made.note(8, validated(8, 1.0)) is True
    made.save({"step": 8})
    assert names(tmp_path) == ["best", *(f"step-00000{step}" for step in (4, 7, 8))]
    assert checkpoint.read_run(tmp_path / "best")["best"] == {"step": 8, "loss": 1.5}
    assert checkpoint.resolve(tmp_path / "best") == tmp_path / "step-000008"
    assert find_tokenizer(str(tmp_path / "best")) == str(tmp_path / "step-000008")
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000008"


def test_a_run_that_went_back_forgets_a_best_that_is_gone(tmp_path):
    made = saver(tmp_path)
    for step in (1, 2):
        made.note(step, validated(step, 3.0 - step))
        made.save({"step": step})
    again = saver(tmp_path, best={"step": 2, "loss": 2.0})
    assert again.best == {"step": 2, "loss": 2.0} and not again.note(3, validated(3, 5.0))
    shutil.rmtree(tmp_path / "step-000002")
    assert saver(tmp_path, best={"step": 2, "loss": 2.0}).best is None
    assert names(tmp_path) == ["step-000001"]


def test_a_best_step_may_be_left_alone(tmp_path):
    made = saver(tmp_path, save_best=False)
    assert made.note(1, validated(1, 1.0)) is False
    made.save({"step": 1})
    assert names(tmp_path) == ["step-000001"]


def test_steps_at_which_checkpoints_are_due_and_stay():
    config = TrainConfig(max_steps=10, save_every=4, keep_every=3)
    assert [step for step in range(1, 11) if config.saves_at(step)] == [3, 4, 6, 8, 9, 10]
    assert [step for step in range(1, 11) if config.keeps(step)] == [3, 6, 9]
    assert not any(TrainConfig(max_steps=10).saves_at(step) for step in range(1, 10))
    with pytest.raises(ValueError, match="train.save_every is -1; it must be 0 or more"):
        TrainConfig(save_every=-1).validate()


def test_the_loss_of_a_validation_is_the_whole_or_the_mean_of_its_parts():
    task = torch.nn.Module()
    assert mean_loss(task, {"a": {"loss": 3.0, "psnr": 20.0}, "b": {"loss": 5.0}}) == 4.0
    assert mean_loss(task, {"a": {"text": 1.0, "image": 4.0}, "b": {"text": 0.5}, "c": {}}) == 1.5
    assert mean_loss(task, {"a": {}}) is None
    for begun, expected in ((False, None), (True, 3.0)):  # without codes a tokenizer's loss is another
        task.codebooks = lambda begun=begun: [SimpleNamespace(initialized=torch.tensor(begun))]
        assert mean_loss(task, {"a": {"loss": 3.0}}) == expected


# ---- one run at a time -----------------------------------------------------------------------------------------------


def in_a_child(work) -> int:
    """Number of a process that does some work and waits to be killed."""
    child = os.fork()
    if not child:
        work()
        time.sleep(60)
        os._exit(0)
    return child


def end(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_a_folder_has_one_run_until_that_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.2)

    def take() -> None:
        lock.claim(tmp_path)
        (tmp_path / "worker").write_text(str(in_a_child(lambda: None)))  # it lives on and must not hold the lock

    other = in_a_child(take)
    while not (tmp_path / "worker").exists() or not (tmp_path / "worker").read_text():
        time.sleep(0.01)
    try:
        with pytest.raises(
            UserError, match=rf"^another run \(process {other} on .*\) is writing to --output-dir {tmp_path}"
        ):
            lock.claim(tmp_path)
    finally:
        end(other)
    with lock.released(tmp_path):
        lock.claim(tmp_path)
        lock.claim(tmp_path)  # once more by the same run
    os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)
    assert not lock._held


def test_where_there_are_no_locks_a_run_goes_on_without(tmp_path, monkeypatch):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    lock.claim(tmp_path)
    assert not lock._held


# ---- the average of the weights -------------------------------------------------------------------------------------


def test_the_average_begins_when_codes_do(tmp_path):
    """Until then, and with it untrained sub-codebooks, there is nothing to average."""
    task = torch.nn.Linear(2, 2)
    codebook = SimpleNamespace(initialized=torch.tensor(False))
    task.codebooks = lambda: [codebook]
    made = Saver(Engine(), task, tmp_path, export, TrainConfig(ema_decay=0.9))
    for _ in range(3):
        torch.nn.init.normal_(task.weight)
        made.follow()
        assert torch.equal(made.average.average["weight"], task.weight) and made.average.num_updates == 0
    codebook.initialized.fill_(True)
    before = task.weight.detach().clone()
    torch.nn.init.normal_(task.weight)
    made.follow()
    torch.testing.assert_close(made.average.average["weight"], before.lerp(task.weight, 1 - 2 / 11).detach())


def test_an_average_that_cannot_be_gone_on_with_is_told(tmp_path):
    made = Saver(Engine(), torch.nn.Linear(2, 2), tmp_path, export, TrainConfig(ema_decay=0.9))
    made.follow()
    folder = made.save({"step": 1})
    assert (folder / "ema" / "run.json").read_text() == (folder / "run.json").read_text()
    again = Saver(Engine(), torch.nn.Linear(2, 2), tmp_path, export, TrainConfig(ema_decay=0.9))
    assert (
        torch.equal(again.average.average["weight"], made.average.average["weight"]) and again.average.num_updates == 1
    )
    with pytest.raises(UserError, match="is the average of other weights; remove it"):
        Saver(Engine(), torch.nn.Linear(3, 2), tmp_path, export, TrainConfig(ema_decay=0.9))
    (folder / "deepspeed" / "averages.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="averages.safetensors is damaged .*; remove it"):
        Saver(Engine(), torch.nn.Linear(2, 2), tmp_path, export, TrainConfig(ema_decay=0.9))
