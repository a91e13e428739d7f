"""Curves: the same numbers and pictures in TensorBoard and, with a stand-in for wandb, in Weights & Biases."""

import contextlib
import errno
import importlib.machinery
import os
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unimllm.errors import UserError
from unimllm.training.config import TrainConfig
from unimllm.training.overrides import parse_arguments
from unimllm.training.presets import TEACHER_PRESETS
from unimllm.training.step_log import Curves, Speed, StepLog, rounded, tell

PICTURE = np.full((4, 6, 3), 7, np.uint8)


class FakeRun:
    """Keeps what is logged."""

    def __init__(self, **options):
        self.options, self.logged, self.defined, self.finished = options, [], [], False

    def define_metric(self, name: str, step_metric: str) -> None:
        self.defined.append((name, step_metric))

    def log(self, values: dict) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def runs(monkeypatch) -> list[FakeRun]:
    """The runs that a wandb without a network has started."""
    started = []
    wandb = ModuleType("wandb")
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    wandb.Image = lambda picture: ("picture", picture.shape)
    wandb.init = lambda **options: started.append(FakeRun(**options)) or started[-1]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return started


def test_both_have_the_same_numbers_and_pictures(runs, tmp_path):
    output = tmp_path / "scenes_64" / "sft"
    output.mkdir(parents=True)
    curves = Curves(output, 0, "mine", {"seed": 3})
    curves.add_scalars({"loss": 2.5, "validation/a/text": 1.5}, 1)
    curves.add_picture("pictures", PICTURE, 1)
    curves.close()
    (run,) = runs
    picture = {"step": 1, "pictures": ("picture", (4, 6, 3))}
    assert run.logged == [{"step": 1, "loss": 2.5, "validation/a/text": 1.5}, picture]
    assert run.defined == [("*", "step")]  # so that a run that is resumed from an earlier step draws its curves anew
    assert run.finished and run.options["project"] == "mine" and run.options["config"] == {"seed": 3}
    assert run.options["name"] == "scenes_64/sft" and run.options["dir"] == str(output)
    board = EventAccumulator(str(output / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("validation/a/text")] == [(1, 1.5)]
    assert [(event.step, event.width) for event in board.Images("pictures")] == [(1, 6)]


def test_a_part_of_the_loss_is_the_mean_of_the_steps_that_have_it(runs, tmp_path, capsys):
    config = TrainConfig(max_steps=4, log_every=4)
    log = StepLog(Curves(tmp_path, 0, "mine", {}), config, 0, Speed(torch.device("cpu"), 1))
    for step in range(1, 5):
        log.add(step, {"loss": 4.0, "waited": 0.0} | ({"flow": 1.0 + step} if step < 3 else {}))
    (logged,) = runs[0].logged
    assert logged["loss"] == 4 and logged["flow"] == 2.5
    assert "loss 4.0000 flow 2.5000 lr" in capsys.readouterr().out


class Clock:
    """Of `time.monotonic`; it stands still unless it is told to go on."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("unimllm.training.step_log.time.monotonic", lambda: self.now)


def test_what_is_no_step_is_not_charged_to_the_next(tmp_path, monkeypatch, capsys):
    clock = Clock(monkeypatch)
    log = StepLog(Curves(tmp_path, 0, "", {}), TrainConfig(max_steps=4, batch_size=8), 0, Speed(torch.device("cpu"), 2))
    for step in range(1, 5):
        clock.now += 2
        log.add(step, {"loss": 1.0, "waited": 0.5, "tokens": 100.0, "samples": 20.0})
        log.stop_clock()
        clock.now += 10
        log.start_clock()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(" 4 rows/s 20 samples/s 100 tokens/s data 25.0% " in line for line in lines)
    assert lines[1].endswith(" eta 0:00:14") and lines[3].endswith(" eta 0:00:00")  # 14 seconds for two steps


def test_steps_that_are_passed_over_bring_no_rate(tmp_path, monkeypatch, capsys):
    clock, config = Clock(monkeypatch), TrainConfig(max_steps=4, batch_size=8, log_every=2)
    log = StepLog(Curves(tmp_path, 0, "", {}), config, 0, Speed(torch.device("cpu"), 1), lambda number: number / 10)
    for step, values in enumerate(({}, {}, {"loss": 1.0, "waited": 0.0}, {}), 1):
        clock.now += 1
        log.add(step, values, sample=8 * step)
    *passed, logged = capsys.readouterr().out.splitlines()
    assert passed == [f"step {step}/4 passed over, by train.skip_steps" for step in (1, 2, 4)]
    assert logged.startswith("step 4/4 loss 1.0000 ") and " epoch 3.20 2 samples/s data 0.0% " in logged


def test_a_slow_run_has_no_rate_of_nothing():
    assert [rounded(rate) for rate in (0.04, 0.26, 3.97, 9.94, 9.96, 1234.6)] == "0.04 0.26 4 9.9 10 1235".split()


def test_a_resumed_run_goes_on_with_its_curves_and_another_folder_has_others(runs, tmp_path):
    for folder in ("a", "a", "b"):
        (tmp_path / folder).mkdir(exist_ok=True)
        Curves(tmp_path / folder, 0, "mine", {}).close()
    first, again, other = (run.options["id"] for run in runs)
    assert first == again != other and all(run.options["resume"] == "allow" for run in runs)


def test_without_a_project_nothing_is_started(runs, tmp_path):
    Curves(tmp_path, 0, "", {}).close()
    assert not runs and not (tmp_path / "wandb-id.txt").exists()


def test_wandb_that_is_missing_or_does_not_start_is_one_line(runs, tmp_path, monkeypatch):
    def refuse(**options):
        raise RuntimeError("no API key\nand a long story")

    sys.modules["wandb"].init = refuse
    with pytest.raises(UserError, match="wandb does not start: no API key; log in with `wandb login`"):
        Curves(tmp_path, 0, "mine", {})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"needs wandb: pip install 'unimllm\[wandb\]'"):
        parse_arguments("A test.", "teacher", TEACHER_PRESETS, ["--train.wandb_project", "mine"])


def test_a_full_disk_ends_the_curves_in_one_line_and_not_the_run(runs, tmp_path, capfd):
    curves = Curves(tmp_path, 0, "mine", {})
    curves.add_scalars({"loss": 3.0}, 1)
    (events,) = (tmp_path / "tensorboard").iterdir()
    events.unlink()
    events.symlink_to("/dev/full")  # TensorBoard opens its file anew for every number
    for step in (2, 3):
        curves.add_scalars({"loss": 2.0}, step)
        curves.add_picture("pictures", PICTURE, step)
    curves.close()
    told = capfd.readouterr()
    assert told.out == "warning: no curves in TensorBoard from here on: No space left on device; the run goes on\n"
    assert not told.err  # of TensorBoard's thread
    assert len(runs[0].logged) == 5 and runs[0].finished


def test_a_disk_that_is_full_from_the_start_is_no_traceback(tmp_path, monkeypatch, capsys):
    def refuse(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("unimllm.training.step_log.SummaryWriter", refuse)
    curves = Curves(tmp_path, 0, "", {})
    curves.add_scalars({"loss": 3.0}, 1)
    curves.close()
    assert capsys.readouterr().out.count("no curves in TensorBoard from here on: No space left on device") == 1


def test_a_log_file_on_a_full_disk_does_not_end_the_run(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        tell("step 1/4")
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    with open(os.open(os.devnull, os.O_RDONLY), "w") as closed:  # any other trouble is told
        monkeypatch.setattr("sys.stdout", closed)
        with pytest.raises(OSError, match="Bad file descriptor"):
            tell("step 1/4")
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            closed.close()
