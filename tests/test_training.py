"""The training loop: configuration, overrides, resuming bit for bit, two processes like one, complete checkpoints."""

import json
import math
import re
import shutil
import signal
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toy_training
from programs import Ended, run_program, started, wait_for
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_training import NUM_HELD_OUT, held_out_source

from unimllm import UniMLLMForConditionalGeneration
from unimllm.command_line import nearest
from unimllm.discrete.configuration_unimllm import tiny_config
from unimllm.errors import UserError
from unimllm.training import checkpoint, loop, presets
from unimllm.training import config as config_module
from unimllm.training.batches import Place
from unimllm.training.config import TrainConfig
from unimllm.training.deepspeed_config import lay_over
from unimllm.training.not_finite import told_samples
from unimllm.training.overrides import as_dict, parse_arguments, parse_value, set_field
from unimllm.training.sft import SftTask

LAST_DIGIT = 1.1e-4  # of a loss in the log
TOY = Path(__file__).parent / "toy_training.py"


run_toy = partial(run_program, TOY)


def losses(result: Ended, ended: bool = True) -> dict[int, str]:
    assert not ended or result.returncode == 0, result.stderr[-2000:]
    return {int(s): loss for s, loss in re.findall(r"step (\d+)/\d+ loss (\S+)", result.stdout)}


def validation(result: Ended) -> list[tuple[int, float, float]]:
    """(step, text, image) of each validation."""
    lines = re.findall(r"step (\d+)/\d+ validation: toy text (\S+) image (\S+)\n", result.stdout)
    return [(int(step), float(text), float(image)) for step, text, image in lines]


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> tuple[Path, dict[int, str]]:
    """Six steps without a break."""
    output = tmp_path_factory.mktemp("straight")
    return output, losses(run_toy(output))


def weights(output: Path) -> bytes:
    return (checkpoint.latest(output) / "model.safetensors").read_bytes()


def test_stopping_and_resuming_gives_the_same_losses_and_weights_bit_for_bit(straight, tmp_path):
    output, expected = straight
    assert list(expected) == [1, 2, 3, 4, 5, 6]
    killed = run_toy(tmp_path, "--die-after", "4", "--save-every-step")
    assert killed.returncode == 9
    resumed = run_toy(tmp_path)
    assert "resuming from step-000004" in resumed.stdout
    assert losses(resumed) == {5: expected[5], 6: expected[6]}
    assert weights(output) == weights(tmp_path)


def rows_fed(result: Ended) -> list[int]:
    """Numbers of the rows that a run was fed, in order of their steps where it is one process without workers."""
    assert result.returncode in (0, 9), result.stderr[-2000:]
    parts = re.findall(r"rows (\d+)-(\d+)\.", result.stdout)
    return [row for first, last in parts for row in range(int(first), int(last) + 1)]


@pytest.mark.parametrize("keeps_place", [True, False])
def test_another_batch_size_goes_on_with_the_next_row(keeps_place, tmp_path):
    """Nothing is fed twice or left out, however often it changes; a run.json without the place counts its own steps."""
    fed = rows_fed(run_toy(tmp_path, "--tell-rows", "--die-after", 2, "--save-every-step"))[:8]
    if not keeps_place:
        run_file = checkpoint.latest(tmp_path) / "run.json"
        run = json.loads(run_file.read_text())
        assert run.pop("next_sample") == 8
        run_file.write_text(json.dumps(run))
    options = ("--tell-rows", "--save-every-step", "--batch-size", 6, "--micro-batch-size", 2)
    resumed = run_toy(tmp_path, *options, "--die-after", 4)
    assert "batch size 4 -> 6: the run goes on with sample 8\n" in resumed.stdout
    fed += rows_fed(resumed)[:12]
    last = run_toy(tmp_path, "--tell-rows", "--nan-gradient-after", 5)
    assert "batch size 6 -> 4: the run goes on with sample 20\n" in last.stdout
    assert " at step 6, samples 24 to 27; nothing of the step" in last.stderr
    fed += [int(first) + i for first, _ in re.findall(r"rows (\d+)-(\d+)\.", last.stdout) for i in range(4)]
    assert fed == list(range(28))


def test_a_run_passes_samples_over_and_keeps_its_place_in_their_order():
    assert checkpoint.place_of(None, batch_size=4, passed_over=3) == Place(0, 12)
    run = {"step": 5, "recipe": {"train": {"batch_size": 2}}}
    assert checkpoint.place_of(run, batch_size=4, passed_over=3) == Place(5, 16)
    assert checkpoint.place_of(run | {"next_sample": 99}, batch_size=4, passed_over=3) == Place(5, 99)
    assert Place(5, 99).later(4, 2) == Place(7, 107)


@pytest.mark.parametrize("options", [("--num-workers", 2), ()])
def test_a_signal_to_one_process_ends_all_behind_a_checkpoint(options, straight, tmp_path):
    output, expected = straight
    stopped = run_toy(tmp_path, "--signal-after", 2, *options, processes=1 if options else 2)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr[-2000:]
    assert stopped.stdout.count("stopped by SIGTERM; step 3 is saved, and the same command goes on from it") == 1
    assert checkpoint.latest(tmp_path).name == "step-000003"
    resumed = run_toy(tmp_path, *options)
    assert losses(resumed) == {step: expected[step] for step in (4, 5, 6)}
    assert not options or weights(output) == weights(tmp_path)


def test_ctrl_c_ends_a_run_behind_a_checkpoint_and_a_second_one_at_once(tmp_path):
    stopped = run_toy(tmp_path, "--signal-after", 2, "--signal", "SIGINT", "--num-workers", 1)
    assert stopped.returncode == 128 + signal.SIGINT, stopped.stderr[-2000:]
    assert "stopped by SIGINT; step 3 is saved" in stopped.stdout and "Traceback" not in stopped.stderr
    assert stopped.stderr.count("interrupted: the step is finished and saved; Ctrl-C again ends at once\n") == 1
    ended = run_toy(tmp_path, "--signal-after", 4, "--signal", "SIGINT", "--signals", 2)
    assert ended.returncode == 1 and ended.stderr.endswith("KeyboardInterrupt\n")
    assert checkpoint.latest(tmp_path).name == "step-000003"


def test_a_second_run_in_the_same_folder_is_refused_by_all_its_processes(straight, tmp_path):
    """And the first one goes on as if it had not been there."""
    output, expected = straight
    (tmp_path / "said").mkdir()
    with started(TOY, [tmp_path / "run", "--hold-at", 2, "--save-every-step"], tmp_path / "said") as first:
        while not (tmp_path / "run" / "step-000002").exists():
            assert first[0].is_alive()
            time.sleep(0.05)
        second = run_toy(tmp_path / "run", "--save-every-step", processes=2)
        assert second.returncode and losses(second, ended=False) == {}
        for rank in range(2):
            told = (tmp_path / "run" / f"error-{rank}.txt").read_text()
            assert told.startswith(f"another run (process {first[0].pid} on ") and "is writing to --output-dir" in told
        (tmp_path / "run" / "go").touch()
        assert wait_for(first) == 0
    assert weights(output) == weights(tmp_path / "run")


def test_a_run_keeps_what_it_is_told_to_and_the_best_of_its_validations(tmp_path):
    told = run_toy(tmp_path, "--save-every", 2, "--keep-every", 3, "--validate-every", 4, "--die-after", 5)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-000003", "step-000004"]
    loss = sum(validation(told)[0][1:]) / 2
    run = checkpoint.read_run(tmp_path / "best")
    assert run["best"] == {"step": 4, "loss": pytest.approx(loss, abs=1e-4)}
    assert run["validation"]["step"] == 4 and set(run["validation"]["losses"]["toy"]) == {"text", "image"}
    assert run["losses"]["loss"] == pytest.approx(float(losses(told, ended=False)[4]), abs=LAST_DIGIT)
    assert "grad_norm" in run["losses"] and "waited" not in run["losses"]
    assert UniMLLMForConditionalGeneration.from_pretrained(checkpoint.resolve(tmp_path / "best"))
    again = run_toy(tmp_path, "--save-every", 2, "--keep-every", 3, "--max-steps", 10)
    assert losses(again) and checkpoint.read_run(tmp_path / "step-000010")["best"] == run["best"]
    kept = [f"step-{step:06d}" for step in (3, 4, 6, 9, 10)]
    assert sorted(path.name for path in tmp_path.glob("step-*")) == kept
    rates = [TrainConfig(max_steps=n, learning_rate=1e-2, warmup_steps=2).learning_rate_at(4) for n in (6, 10)]
    assert f"schedule: 6 steps -> 10, learning rate {rates[0]:.1e} -> {rates[1]:.1e}\n" in again.stdout
    assert "warning" not in again.stdout


def test_the_average_of_the_weights_is_a_model_beside_them(straight, tmp_path):
    """By hand from the weights behind every step; a run that was killed has the same, and other weights change none."""
    assert losses(run_toy(tmp_path, "--ema-decay", 0.3, "--keep-every", 1)) == straight[1]
    assert weights(tmp_path) == weights(straight[0])
    steps = [load_file(tmp_path / f"step-{step:06d}" / "model.safetensors") for step in range(1, 7)]
    averages = [load_file(tmp_path / f"step-{step:06d}" / "ema" / "model.safetensors") for step in range(1, 7)]
    for step in range(2, 7):
        decay = min(0.3, (1 + step) / (10 + step))
        trained = {name: a for name, a in averages[step - 1].items() if not name.startswith("image_tokenizer.")}
        for name, average in trained.items():
            expected = averages[step - 2][name].lerp(steps[step - 1][name], 1 - decay)
            torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-7)
    assert UniMLLMForConditionalGeneration.from_pretrained(tmp_path / "step-000006" / "ema")
    for step in (4, 5, 6):
        shutil.rmtree(tmp_path / f"step-{step:06d}")
    assert "resuming from step-000003" in run_toy(tmp_path, "--ema-decay", 0.3).stdout
    again = load_file(tmp_path / "step-000006" / "ema" / "model.safetensors")
    assert all(torch.equal(again[name], average) for name, average in averages[-1].items())


def test_a_warm_up_that_is_longer_than_the_run_is_shortened_and_told(tmp_path):
    told = run_toy(tmp_path, "--warmup-steps", 50, "--max-steps", 2)
    assert "warm-up takes 0 steps, a tenth of the run's 2: warmup_steps 50 are more than it has\n" in told.stdout
    assert checkpoint.read_run(checkpoint.latest(tmp_path))["recipe"]["train"]["warmup_steps"] == 50
    assert [TrainConfig(max_steps=n, warmup_steps=50).warmup() for n in (49, 50, 500)] == [4, 50, 50]


def test_a_kill_while_saving_leaves_the_checkpoint_before(straight, tmp_path):
    _, expected = straight
    killed = run_toy(tmp_path, "--die-in-export", "3", "--save-every-step")
    assert killed.returncode == 9
    assert checkpoint.latest(tmp_path).name == "step-000002"
    assert losses(run_toy(tmp_path)) == {s: expected[s] for s in (3, 4, 5, 6)}


@pytest.mark.parametrize("options", [(), ("--zero-stage", "1", "--precision", "bf16")])
def test_a_gradient_that_is_no_number_ends_the_run_before_it_is_saved(options, tmp_path):
    broken = run_toy(tmp_path, "--nan-gradient-after", "2", "--save-every-step", *options)
    assert broken.returncode != 0
    assert re.search(r"UserError: the gradient.* at step 3, samples 8 to 11; nothing of the step was saved: lower ",
                     broken.stderr)  # fmt: skip
    assert checkpoint.latest(tmp_path).name == "step-000002"
    written = load_file(checkpoint.latest(tmp_path) / "model.safetensors")
    assert all(value.isfinite().all() for value in written.values())


def test_a_loss_that_is_no_number_at_one_process_ends_all(tmp_path):
    broken = run_toy(tmp_path, "--nan-loss-after", "2", "--save-every-step", processes=2)
    assert broken.returncode != 0
    told = [(tmp_path / f"error-{rank}.txt").read_text() for rank in range(2)]
    assert told[0] == told[1] and told[0].startswith("the loss is nan at step 3, samples 8 to 11; nothing of the step")
    assert checkpoint.latest(tmp_path).name == "step-000002"


def test_a_step_whose_loss_is_none_is_named_and_can_be_passed_over(straight, tmp_path):
    options = ("--nan-loss-in", "2", "--save-every-step")
    broken = run_toy(tmp_path / "two", *options, "--micro-batch-size", 1, processes=2)
    assert "samples 10 to 10, rank 1, loss nan: toys 10 to 10\n" in broken.stdout and "rank 0," not in broken.stdout
    told = (tmp_path / "two" / "error-0.txt").read_text()
    assert told.endswith("pass over the step with --train.skip_steps 3")
    assert run_toy(tmp_path / "one", *options).returncode != 0
    passed = run_toy(tmp_path / "one", *options, "--skip-steps", 3)
    assert "resuming from step-000002" in passed.stdout and "warning" not in passed.stdout
    assert "step 3/6 passed over, by train.skip_steps\n" in passed.stdout and list(losses(passed)) == [4, 5, 6]
    assert checkpoint.read_run(checkpoint.latest(tmp_path / "one"))["recipe"]["train"]["skip_steps"] == [3]
    whole = run_toy(tmp_path / "whole", "--skip-steps", 3)
    assert losses(whole) == {step: straight[1][step] for step in (1, 2)} | losses(passed)
    assert weights(tmp_path / "one") == weights(tmp_path / "whole") != weights(straight[0])


def test_the_suspects_of_a_step_are_told():
    lines = told_samples([[1.0, math.inf], [math.nan, 2.0]], 8, 2, None)
    assert lines == ["samples 10 to 11, rank 0, loss inf", "samples 12 to 13, rank 1, loss nan"]
    lines = told_samples([[float(i) for i in range(10)]], 0, 1, lambda indices: f"file:{indices.start}")
    assert lines[0] == "samples 9 to 9, rank 0, loss 9: file:9" and len(lines) == 9
    assert lines[-1] == "and 2 more such micro-batches"


@pytest.fixture(scope="module")
def validated(tmp_path_factory) -> tuple[Path, Ended]:
    """The same with validation on the way."""
    output = tmp_path_factory.mktemp("validated")
    return output, run_toy(output, "--validate-every", "4")


def test_validation_is_the_mean_over_all_targets_and_leaves_the_run_as_it_is(validated, straight):
    output, told = validated
    assert losses(told) == straight[1] and weights(output) == weights(straight[0])
    assert [step for step, *_ in validation(told)] == [4, 6]
    model = UniMLLMForConditionalGeneration.from_pretrained(checkpoint.latest(output)).eval()
    batch = held_out_source(range(NUM_HELD_OUT))
    with torch.no_grad():
        parts = model(**batch).losses  # in one batch its means are over all targets
    image = float(sum(value for name, value in parts.items() if name != "text"))
    assert validation(told)[-1] == (6, pytest.approx(float(parts["text"]), abs=2e-4), pytest.approx(image, abs=2e-4))
    curves = EventAccumulator(str(output / "tensorboard")).Reload()
    assert [event.step for event in curves.Scalars("validation/toy/text")] == [4, 6]


def test_two_processes_and_accumulation_follow_the_losses_of_one(validated, straight, tmp_path):
    _, expected = straight
    told = run_toy(tmp_path / "two", "--validate-every", "4", processes=2)
    two = losses(told)
    assert validation(told) == [
        tuple(pytest.approx(v, abs=2e-4) for v in values) for values in validation(validated[1])
    ]
    accumulated = losses(run_toy(tmp_path / "accumulated", "--micro-batch-size", "1"))
    for step, loss in expected.items():
        assert float(two[step]) == pytest.approx(float(loss), abs=2e-4)
        assert float(accumulated[step]) == pytest.approx(float(loss), abs=2e-4)


@pytest.mark.parametrize("options", [("2",), ("3", "--precision", "bf16"), ("2", "--lora"), ("3", "--lora")])
@pytest.mark.timeout(600)
def test_zero_stages_follow_the_losses_of_one_process_and_resume_bit_for_bit(options, straight, tmp_path):
    options = ("--zero-stage", *options)
    _, expected = straight
    told = run_toy(tmp_path / "whole", *options, "--validate-every", "3", processes=2)  # the others go without
    whole = losses(told)
    assert [step for step, *_ in validation(told)] == [3, 6]
    tolerance = 0.05 if "bf16" in options else 2e-4
    for step in [1] if "--lora" in options else expected:  # LoRA begins as the model that it adapts
        assert float(whole[step]) == pytest.approx(float(expected[step]), abs=tolerance)
    killed = run_toy(tmp_path / "killed", *options, "--die-after", "4", "--save-every-step", processes=2)
    assert killed.returncode != 0
    shutil.copytree(tmp_path / "killed", tmp_path / "fewer")
    resumed = run_toy(tmp_path / "killed", *options, processes=2)
    assert losses(resumed) == {5: whole[5], 6: whole[6]}
    fewer = losses(run_toy(tmp_path / "fewer", *options))
    assert list(fewer) == [5, 6]
    for step, loss in fewer.items():
        assert float(loss) == pytest.approx(float(whole[step]), abs=5e-3 if "bf16" in options else LAST_DIGIT)
    assert weights(tmp_path / "whole") == weights(tmp_path / "killed")
    written = load_file(checkpoint.latest(tmp_path / "whole") / "model.safetensors")
    assert all(value.numel() for value in written.values())
    image = {name: v for name, v in written.items() if name.startswith("image_tokenizer.") and v.is_floating_point()}
    assert image and {v.dtype for v in image.values()} == {torch.float32}
    if "--lora" in options:
        adapter = load_file(checkpoint.latest(tmp_path / "killed") / "lora" / "adapter_model.safetensors")
        trained = [value for name, value in adapter.items() if ".lora_B." in name]
        assert len(trained) == 7 and all(value.abs().max() > 0 for value in trained)  # not what LoRA began with
    for rank in (0, 1):
        held = torch.load(tmp_path / "whole" / f"memory-{rank}.pt")
        assert all(torch.equal(value, held[name]) for name, value in written.items())


def test_an_offloaded_optimiser_follows_the_losses_of_one_that_is_not_and_resumes(straight, tmp_path):
    _, expected = straight
    options = ("--zero-stage", "2", "--offload-optimizer")
    assert run_toy(tmp_path, *options, "--die-after", "4", "--save-every-step").returncode == 9
    resumed = losses(run_toy(tmp_path, *options))
    assert list(resumed) == [5, 6]
    for step, loss in resumed.items():
        assert float(loss) == pytest.approx(float(expected[step]), abs=LAST_DIGIT)


def test_gradient_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    model = UniMLLMForConditionalGeneration(tiny_config())
    batch, runs = toy_training.source(range(4)), []
    for checkpointing in (False, True):
        task = SftTask(model, {"text": 1.0}).train()
        decoder = model.language_model.get_decoder()
        if checkpointing:
            loop.checkpoint_activations(task)
        calls = []
        hook = decoder.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model.zero_grad()
        loss = task(**batch)["loss"]
        loss.backward()
        hook.remove()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        runs.append((loss.item(), gradients, len(calls)))
    (loss, gradients, once), (again, recomputed, twice) = runs
    assert (loss, once, twice) == (again, 1, 2) and gradients.keys() == recomputed.keys()
    assert all(torch.equal(value, recomputed[name]) for name, value in gradients.items())


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_two_processes_go_on_under_zero_where_one_stopped(stage, straight, tmp_path):
    _, expected = straight
    assert run_toy(tmp_path, "--zero-stage", stage, "--die-after", "4", "--save-every-step").returncode == 9
    resumed = losses(run_toy(tmp_path, "--zero-stage", stage, processes=2))
    assert list(resumed) == [5, 6]
    for step, loss in resumed.items():
        assert float(loss) == pytest.approx(float(expected[step]), abs=LAST_DIGIT)


@pytest.mark.parametrize("stage", ["0", "2"])
def test_a_resumed_run_decays_as_it_is_told_and_tells_it(stage, straight, tmp_path):
    _, expected = straight
    assert run_toy(tmp_path, "--zero-stage", stage, "--die-after", "4", "--save-every-step").returncode == 9
    resumed = run_toy(tmp_path, "--zero-stage", stage, "--weight-decay", "50")
    assert "train.weight_decay was 0.02 and is 50.0" in resumed.stdout
    assert losses(resumed)[5] == expected[5] and losses(resumed)[6] != expected[6]


def test_a_finished_run_says_that_it_trains_nothing(straight, tmp_path):
    shutil.copytree(straight[0], tmp_path / "run")
    again = run_toy(tmp_path / "run")
    assert losses(again) == {} and "is at the end of its 6 steps: nothing is trained" in again.stdout


def test_a_damaged_checkpoint_is_told_as_one(straight, tmp_path):
    shutil.copytree(straight[0], tmp_path / "run")
    folder = checkpoint.latest(tmp_path / "run")
    state = folder / "deepspeed" / "mp_rank_00_model_states.pt"
    state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    assert "if it is damaged, remove it and the same command goes on" in run_toy(tmp_path / "run").stderr
    (folder / "run.json").write_text('{"step": 6, "reci')
    with pytest.raises(UserError, match="run.json is damaged .* goes on from the checkpoint before it"):
        checkpoint.read_run(folder)


def test_a_missing_shard_is_told_with_the_number_of_processes(straight, tmp_path):
    output, _ = straight
    shutil.copytree(output, tmp_path / "run")
    folder = checkpoint.latest(tmp_path / "run")
    run = checkpoint.read_run(folder)
    (folder / "run.json").write_text(json.dumps(run | {"world_size": 4}))
    resumed = run_toy(tmp_path / "run", "--zero-stage", "2")
    assert "train.zero_stage was 0 and is 2; take the options of that run and its number of processes, 4, or" in (
        resumed.stderr
    )


def test_a_run_is_described_beside_its_weights_and_in_curves(straight):
    output, _ = straight
    folder = checkpoint.latest(output)
    run = checkpoint.read_run(folder)
    assert run["step"] == 6 and run["recipe"]["train"]["max_steps"] == 6 and run["cpu_seconds"] > 0
    assert {"config.json", "model.safetensors", "run.json"} <= {p.name for p in folder.iterdir()}
    assert run["next_sample"] == 24 and run["precision"] == "fp32" and "toy_training.py" in run["command"]
    assert set(run["versions"]) == {"python", "torch", "deepspeed", "transformers"}
    assert run["versions"]["torch"] == torch.__version__ and run["best"] is None and run["validation"] is None
    assert list((output / "tensorboard").glob("events*"))
    assert json.loads((folder / "config.json").read_text())["model_type"] == "unimllm"


def test_learning_rate_by_hand():
    config = TrainConfig(max_steps=110, warmup_steps=10, learning_rate=1.0, final_lr_ratio=0.1)
    assert config.learning_rate_at(0) == pytest.approx(0.1)
    assert config.learning_rate_at(9) == pytest.approx(1.0)
    assert config.learning_rate_at(60) == pytest.approx(0.55)
    assert config.learning_rate_at(110) == pytest.approx(0.1)


@pytest.mark.parametrize("major, is_fast", [(7, False), (8, True)])
def test_a_gpu_that_emulates_bf16_trains_in_fp32(major, is_fast, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert TrainConfig().autocast() == is_fast


@pytest.mark.parametrize(
    "precision, is_fast", [("autocast", False), ("autocast", True), ("bf16", False), ("bf16", True), ("auto", False)]
)
def test_bf16_without_hardware_for_it_is_warned_of(precision, is_fast, monkeypatch, capsys):
    monkeypatch.setattr(config_module, "has_fast_bf16", lambda: is_fast)
    monkeypatch.setattr(loop.dist, "get_rank", lambda: 0)
    loop._announce(torch.nn.Linear(2, 2), TrainConfig(precision=precision), None, Place(0, 0), 1)
    lines = capsys.readouterr().out.splitlines()
    warned = [line for line in lines if line.startswith(f"warning: --train.precision {precision}: ")]
    assert len(warned) == (precision != "auto" and not is_fast) == len(lines) - 1


def test_the_deepspeed_json_follows_from_the_configuration():
    made = TrainConfig(batch_size=32, micro_batch_size=4, zero_stage=2, precision="bf16").deepspeed(world_size=2)
    assert (made["train_micro_batch_size_per_gpu"], made["gradient_accumulation_steps"]) == (4, 4)
    assert made["zero_optimization"]["stage"] == 2 and made["bf16"]["enabled"]
    with pytest.raises(UserError, match=r"must be a multiple of .* \(4 x 1\); the next one is 12$"):
        TrainConfig(batch_size=10, micro_batch_size=4).deepspeed(1)
    with pytest.raises(UserError, match=r"\(2 x 16\); the next one is 48$"):
        TrainConfig(batch_size=40).deepspeed(16)
    assert TrainConfig(batch_size=48).per_device(16) == (3, 1)


ADDS = """
import sys, torch
from unimllm.training.batches import Place
from unimllm.training.config import TrainConfig
from unimllm.training.loop import build_engine, start_processes
class Task(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(8, 8, dtype=torch.bfloat16))
    def forward(self, x):
        return (self.w * x).sum()
start_processes()
sizes = {"batch_size": 16, "micro_batch_size": 1}
config = TrainConfig(precision="bf16", zero_stage=int(sys.argv[1]), max_grad_norm=9e9, **sizes)
engine, _ = build_engine(Task(), config, 1)
for i in range(16):
    engine.backward(engine(x=torch.tensor(1.0 if not i else 2**-9, dtype=torch.bfloat16)))
    engine.step()
print("norm", float(engine.get_global_grad_norm()))
"""


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_gradients_of_bf16_weights_are_added_up_in_float32(zero_stage, tmp_path):
    (tmp_path / "adds.py").write_text(ADDS)
    told = run_program(tmp_path / "adds.py", zero_stage)
    assert told.returncode == 0, told.stderr[-2000:]
    small = 15 * 2**-9  # nothing of which remains in bf16
    assert float(told.stdout.split("norm ")[-1]) == pytest.approx(8 * (1 + small) / 16, rel=1e-4)


@dataclass
class Recipe:
    train: TrainConfig = field(default_factory=TrainConfig)
    model: object = field(default_factory=tiny_config)
    share: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    prompts: tuple[str, ...] = ("a", "b")


def parse(*argv: str):
    return parse_arguments("A test.", "toy", {"small": Recipe, "large": Recipe}, ["--preset", "small", *argv])


def test_overrides_reach_any_field():
    args, recipe = parse(
        "--train.learning_rate", "3e-4", "--model.head_dim=12", "--model.text_config.vocab_size", "50", "--share", "1",
        "--sizes", "[3, 4]", "--max-steps", "7", "--train.compile", "true", "--train.eps", "1e-6",
    )  # fmt: skip
    assert recipe.train.eps == 1e-6
    assert recipe.train.learning_rate == 3e-4 and recipe.model.head_dim == 12
    assert recipe.model.text_config.vocab_size == 50 and recipe.share == 1.0 and recipe.sizes == (3, 4)
    assert recipe.train.max_steps == 7 and recipe.train.compile is True
    assert args.output_dir == Path("runs/small/toy")


def test_whole_numbers_and_lists_are_taken_as_people_type_them():
    recipe = parse("--max-steps", "2e3", "--train.batch_size", "1e2", "--prompts", "a dog on a beach", "--sizes", "5")[
        1
    ]
    assert (recipe.train.max_steps, recipe.train.batch_size) == (2000, 100)
    assert type(recipe.train.batch_size) is int and recipe.sizes == (5,) and recipe.prompts == ("a dog on a beach",)
    assert parse_value("shares", "[1, 0.5]", (0.2, 0.3)) == (1.0, 0.5)
    assert parse("--prompts", "17")[1].prompts == ("17",)
    assert parse("--prompts", "['a dog', 'a cat']")[1].prompts == ("a dog", "a cat")


def test_nothing_far_off_is_suggested():
    assert nearest("--lr", ["--strict"]) == nearest("eps", ["max_steps"]) == nearest("--epochs", ["--teacher"]) == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preset", "smal"], "unknown preset 'smal' (did you mean 'small'?)"),
        (["--train.learning_rat", "1"], "has no 'learning_rat' (did you mean 'learning_rate'?)"),
        (["--model.text_config.vocab_sise", "1"], "did you mean 'vocab_size'"),
        (["--train.tokens", "1"], "train has no 'tokens'; it has seed, max_steps, batch_size, "),
        (["--shar", "1"], "unknown option --shar (did you mean '--share'?)"),
        (
            ["--train.max_steps", "many"],
            "train.max_steps is 1000 now: a whole number is wanted in its place, not 'many'",
        ),
        (["--train.max_steps", "1.5"], "a whole number is wanted in its place, not '1.5'"),
        (["--train.compile", "1"], "train.compile is False now: true or false is wanted in its place, not '1'"),
        (["--sizes", "3, x"], "sizes: '3, x' is no list; write --sizes '[1, 2]'"),
        (["--prompts", "['a dog', a cat]"], """--prompts '["a", "b"]'"""),
        (["--train.skip_steps", "x"], "train.skip_steps: 'x' is no list; write --train.skip_steps '[1, 2]'"),
        (["--epochs", "3"], "--epochs: a run is counted in steps: set --max-steps; of a run with --data, --dry-run"),
        (["--train.num_train_epochs", "3"], "--train.num_train_epochs: a run is counted in steps"),
        (["--train.eps", "0"], "train.eps is 0.0; it must be above 0"),
        (["--train.max_steps"], "needs a value"),
        (["--train.zero_stage", "5"], "stages 0 to 3"),
        (["--train.keep_checkpoints", "-1"], "must be at least 1"),
        (["--train.weight_decay", "-0.1"], "train.weight_decay is -0.1; it must be 0 or more"),
        (["--train.beta2", "1.0"], "from 0 to below 1"),
        (["--train.zero_stage", "3", "--train.compile", "true"], "set train.compile to false"),
        (["--max-steps", "many"], "argument --max-steps: a whole number is wanted, not 'many'; see --help"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_bad_options_are_named_with_the_nearest(argv, message):
    with pytest.raises(UserError) as caught:
        parse(*argv)
    assert message in str(caught.value)


def test_help_names_the_fields(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    told = capsys.readouterr().out
    assert "Fields of a preset are options too" in told and "train.batch_size" in told and "model.*, share" in told


def test_an_unknown_key_is_never_swallowed_by_a_transformers_config():
    recipe = Recipe()
    with pytest.raises(UserError, match="head_dim"):
        set_field(recipe, "model.head_dims", "3")
    assert not hasattr(recipe.model, "head_dims")


@pytest.mark.parametrize("num_layers", [1, 5])
def test_layers_of_a_language_model_have_their_kinds(num_layers, tmp_path):
    """transformers names the kind of each, and refuses a config with another number of them."""
    recipe = Recipe()
    set_field(recipe, "model.text_config.num_hidden_layers", str(num_layers))
    model = UniMLLMForConditionalGeneration(recipe.model)
    assert len(model.language_model.get_decoder().layers) == num_layers
    recipe.model.save_pretrained(tmp_path)
    assert len(type(recipe.model).from_pretrained(tmp_path).text_config.layer_types) == num_layers


@pytest.mark.parametrize(
    "presets_of_a_stage",
    [
        presets.TEACHER_PRESETS,
        presets.SEMANTIC_PRESETS,
        presets.PIXEL_PRESETS,
        presets.DECODER_PRESETS,
        presets.SFT_PRESETS,
    ],
)
def test_every_preset_builds_and_is_plain_json(presets_of_a_stage):
    for make in presets_of_a_stage.values():
        recipe = make()
        recipe.train.validate(), recipe.validate()
        recipe.train.deepspeed(1), recipe.train.deepspeed(2)
        assert make.__doc__ and json.dumps(as_dict(recipe))


@pytest.mark.parametrize(
    ("make", "field", "value", "message"),
    [
        (presets.SFT_PRESETS["scenes_64"], "text_weight", -1.0, "--text_weight -1.0: it must be 0 or more"),
        (presets.SFT_PRESETS["scenes_64"], "alignment_weight", -1.0, "--alignment_weight -1.0: it must be 0 or"),
        (presets.SFT_PRESETS["scenes_64"], "text_drop", 2.0, "--text_drop 2.0: a share is from 0 to 1"),
        (presets.SFT_PRESETS["scenes_64"], "drawing_share", 3.0, "--drawing_share 3.0: a share is from 0 to 1"),
        (presets.SFT_PRESETS["scenes_64"], "time_shift", 0.0, "--time_shift 0.0: it must be above 0"),
        (presets.SFT_PRESETS["scenes_64"], "lora_rank", -1, "--lora_rank -1: it must be 0 or more"),
        (presets.SFT_PRESETS["scenes_64"], "max_length", 0, "--max_length 0: it must be 1 or more"),
        (presets.PIXEL_PRESETS["scenes_64"], "l1_weight", -1.0, "--l1_weight -1.0: it must be 0 or more"),
        (presets.PIXEL_PRESETS["scenes_64"], "foreign_share", 1.5, "--foreign_share 1.5: a share is from 0 to 1"),
        (presets.TEACHER_PRESETS["scenes_64"], "caption_weight", -1.0, "--caption_weight -1.0: it must be 0 or more"),
    ],
)
def test_weights_and_shares_that_cannot_be_name_their_option(make, field, value, message):
    with pytest.raises(UserError) as caught:
        parse_arguments("A test.", "toy", {"scenes_64": make}, [f"--{field}", str(value)])
    assert message in str(caught.value)


def test_checkpoints_are_found_newest_first_and_incomplete_ones_ignored(tmp_path):
    for step, complete in ((5, True), (12, True), (20, False)):
        folder = tmp_path / f"step-{step:06d}"
        folder.mkdir()
        if complete:
            (folder / "run.json").write_text("{}")
            (folder / "config.json").write_text("{}")
    assert checkpoint.latest(tmp_path).name == "step-000012"
    assert checkpoint.resolve(tmp_path).name == "step-000012"
    with pytest.raises(UserError, match="no checkpoint in"):
        checkpoint.resolve(tmp_path / "nowhere")


def test_what_is_found_in_data_is_kept_beside_the_output_folder_or_in_it(tmp_path, monkeypatch):
    output = tmp_path / "runs" / "mine" / "sft"
    assert checkpoint.index_folder(output) == tmp_path / "runs" / "mine" / "index"  # though nothing is there yet
    monkeypatch.chdir(tmp_path)
    assert checkpoint.index_folder(Path("sft")) == Path("index")
    output.mkdir(parents=True)
    (output.parent / "index").write_text("")
    assert checkpoint.index_folder(output) == output / "index"
    (output.parent / "index").unlink()
    monkeypatch.setattr(checkpoint.os, "access", lambda place, mode: place != output.parent)  # read-only
    assert checkpoint.index_folder(output) == output / "index"


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot write to --output-dir"):
        checkpoint.prepare_output(blocked / "run")


@pytest.mark.parametrize(
    ("program", "argv", "message"),
    [
        ("teacher.py", ["--preset", "scenes_46"], "did you mean 'scenes_64'?"),
        ("tokenizer.py", ["--stage", "pixels"], "choose one of semantic, pixel, decoder"),
        ("tokenizer.py", ["--stage", "semantic", "--teacher", "no/such/siglip"], "is neither a folder nor a hub id"),
        ("sft.py", ["--train.lr", "1"], "has no 'lr'"),
    ],
)
def test_programs_end_with_one_line_and_code_2(program, argv, message, tmp_path):
    path = Path(__file__).parent.parent / "train" / program
    result = run_program(path, *argv, "--output-dir", tmp_path / "out")
    assert result.returncode == 2
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and message in line and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


# ---- --deepspeed FILE ----------------------------------------------------------------------------------------------


def lay(tmp_path: Path, values, **fields) -> tuple[TrainConfig, list[str]]:
    path = tmp_path / "ds.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    config = TrainConfig(**fields)
    return config, lay_over(config, path)


def test_a_deepspeed_file_as_people_have_it(tmp_path):
    config, told = lay(
        tmp_path,
        {
            "bf16": {"enabled": True}, "fp16": {"enabled": "auto"}, "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": "auto", "gradient_clipping": 0.5,
            "optimizer": {"type": "AdamW", "params": {"lr": "auto"}}, "torch_autocast": {"enabled": True},
            "zero_optimization": {"stage": 3, "overlap_comm": True, "stage3_prefetch_bucket_size": "auto",
                                  "round_robin_gradients": True,
                                  "offload_param": {"device": "cpu"}},
        },
        batch_size=16,
    )  # fmt: skip
    assert (config.precision, config.zero_stage, config.micro_batch_size, config.max_grad_norm) == ("bf16", 3, 2, 0.5)
    assert told == [
        "optimizer: left out; set with --train.learning_rate and its neighbours",
        "torch_autocast: left out; set with --train.precision autocast",
        "zero_optimization.round_robin_gradients: left out; a run could not go on with another number of processes",
        "train.micro_batch_size: 0 -> 2",
        "train.max_grad_norm: 1.0 -> 0.5",
        "train.precision: auto -> bf16",
        "train.zero_stage: 0 -> 3",
        "zero_optimization.overlap_comm: unset -> True",
        "zero_optimization.offload_param.device: unset -> cpu",
    ]
    made = config.deepspeed(4)
    assert made["zero_optimization"] == {"stage": 3, "overlap_comm": True, "offload_param": {"device": "cpu"}}
    assert made["bf16"] == {"enabled": True} and made["gradient_accumulation_steps"] == 2
    assert "optimizer" not in made and "fp16" not in made


def test_a_deepspeed_file_that_says_nothing_new(tmp_path):
    config, told = lay(tmp_path, {"zero_optimization": {"stage": 2}, "gradient_clipping": "auto"}, zero_stage=2)
    assert told == [] and config == TrainConfig(zero_stage=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{", "is no JSON"),
        ([], "holds no JSON object"),
        ({"fp16": {"enabled": True}}, "fp16 is not to be had"),
        ({"zero_optimization": {"stage": "two"}}, "zero_optimization.stage is 'two'; int is wanted"),
        ({"train_batch_size": 1.5}, "train_batch_size is 1.5"),
        ({"gradient_clipping": {"x": 1}}, "gradient_clipping.x is a section in the place of a value"),
        ({"zero_optimization": 2}, "zero_optimization is a section in the place of a value"),
        ({"zero_optimisation": {"stage": 2}}, "did you mean 'zero_optimization'?"),
        ({"data_types": {"grad_acum_dtype": "bf16"}}, "data_types.grad_acum_dtype is no setting of DeepSpeed (did you"),
        ({"data_types": {"grad_acum_dtype": "bf16"}}, "did you mean 'grad_accum_dtype'?"),
        ({"aio": {"blocksize": 1}}, "aio.blocksize is no setting of DeepSpeed (did you mean 'block_size'?)"),
        ({"aio": {"x": 1}}, "aio.x is no setting of DeepSpeed; aio has block_size, queue_depth, intra_op_paral"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "cpu and none are to be had"),
    ],
)
def test_a_deepspeed_file_that_cannot_be_used_is_one_line(values, message, tmp_path):
    with pytest.raises(UserError, match=re.escape(message)):
        lay(tmp_path, values)
    with pytest.raises(UserError, match="--deepspeed .*nowhere.json: No such file"):
        lay_over(TrainConfig(), tmp_path / "nowhere.json")


def test_an_offloaded_optimiser_in_a_file_is_known_to_the_plan(tmp_path):
    values = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}}}
    config, told = lay(tmp_path, values | {"bf16": {"enabled": True, "check_overflow": True}})
    assert config.offload_optimizer and config.precision == "bf16"
    assert "bf16.check_overflow: unset -> True" in told
    assert config.deepspeed(1)["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert config.deepspeed(1)["bf16"] == {"enabled": True, "check_overflow": True}


def test_an_offloaded_optimiser_needs_zero():
    assert TrainConfig(zero_stage=1, offload_optimizer=True).deepspeed(1)["zero_optimization"] == {
        "stage": 1, "offload_optimizer": {"device": "cpu"}
    }  # fmt: skip
    with pytest.raises(ValueError, match="needs ZeRO"):
        TrainConfig(offload_optimizer=True).validate()
