"""train/tokenizer.py as a user runs it, on pictures in a folder: every stage, killed with -9 and started again."""

import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import run_program, started, wait_for
from safetensors.torch import load_file
from transformers import SiglipVisionConfig, SiglipVisionModel

from semhitok.checkpoints import load_tokenizer
from unimllm.training import checkpoint

PROGRAM = Path(__file__).parent.parent / "train" / "tokenizer.py"
SIZES = {
    "num_semantic_codes": 8, "num_pixel_codes": 3, "semantic_dim": 4, "pixel_dim": 4,
    "semantic_hidden_size": 16, "semantic_layers": 1, "semantic_heads": 2,
    "conv_encoder_channels": [8, 8, 16], "conv_encoder_blocks": [0, 0, 1],
    "conv_decoder_channels": [8, 8, 8], "conv_decoder_blocks": [1, 0, 0, 0], "decoder_hidden_size": 16,
}  # fmt: skip
RUN = {"max_steps": 6, "batch_size": 4, "micro_batch_size": 0, "save_minutes": 0, "picture_every": 5, "num_workers": 0,
       "log_every": 1, "warmup_steps": 1, "precision": "fp32", "gradient_checkpointing": False}  # fmt: skip
STAGES = {
    "semantic": ["--quantize_after", "2"],
    "pixel": ["--quantize_after", "2", "--adversarial_weight", "0.5", "--adversarial_start", "3",
              "--discriminator_channels", "8", "--confused_share", "0.5", "--foreign_share", "0.2"],
    "decoder": ["--adversarial_weight", "0.5", "--adversarial_start", "1", "--discriminator_channels", "8",
                "--model.decoder_hidden_size", "32"],
    "joint": ["--quantize_after", "2", "--model.num_pixel_codes", "1", "--first_step", "1"],
    "vae": ["--adversarial_weight", "0.5", "--adversarial_start", "3", "--discriminator_channels", "8"],
}  # fmt: skip
PRESETS = {"joint": "ablation_shared_index", "vae": "scenes_64_cheers"}
VAE_SIZES = {"channels": 8, "latent_channels": 2, "num_groups": 4, "image_size": 32}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Twelve pictures, one of them broken, three others to validate on, and a tiny SigLIP."""
    place = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    for folder, count in (("pictures", 11), ("held_out", 3)):
        (place / folder).mkdir()
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (40, 36, 3), np.uint8)).save(place / folder / f"{i:02d}.png")
    (place / "pictures" / "broken.png").write_bytes(b"no picture")
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    SiglipVisionModel(vision).save_pretrained(place / "teacher")
    return place


def command(place: Path, stage: str, output: str) -> list[str]:
    sizes = VAE_SIZES if stage == "vae" else SIZES
    options = [f"--model.{name}={value}" for name, value in sizes.items()]
    options = [option for option in options if option.partition("=")[0] not in STAGES[stage]]
    options += [f"--train.{name}={value}" for name, value in RUN.items()]
    before = {"pixel": "semantic", "decoder": "pixel"}.get(stage)
    options += ["--init-from", str(place / before)] if before else ["--teacher", str(place / "teacher")]
    return [
        "--preset", PRESETS.get(stage, "photos_128"), "--stage", stage,
        "--patch_size", "0",
        "--data", str(place / "pictures"), "--output-dir", str(place / output), *options, *STAGES[stage],
    ]  # fmt: skip


def run(place: Path, stage: str, output: str, *options: str, processes: int = 1) -> str:
    result = run_program(PROGRAM, *command(place, stage, output), *options, processes=processes)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def watching(place: Path, steps: int) -> list[str]:
    return ["--validation-data", str(place / "held_out"), "--train.validate_every", str(steps)]


def run_and_kill(place: Path, stage: str, output: str, step: int) -> None:
    """kill -9 as soon as the line of a step is there: within or just before the saving of that step."""
    said = place / "stdout"
    said.write_text("")
    with started(PROGRAM, command(place, stage, output), place) as (process,):
        while f"\nstep {step}/" not in said.read_text():
            assert process.is_alive()
            time.sleep(0.01)
        process.kill()
        assert wait_for([process]) == -signal.SIGKILL


def weights(folder: Path) -> bytes:
    return (checkpoint.latest(folder) / "model.safetensors").read_bytes()


@pytest.mark.parametrize("stage", STAGES)  # in their order: each starts from the one before
def test_a_killed_stage_ends_as_the_one_without_a_break(place, stage):
    """And the one that was validated as the one that was not."""
    text = run(place, stage, stage, *watching(place, 2))
    validated = re.findall(r"^step (\d)/6 validation: pictures loss (.*)", text, re.M)
    assert [step for step, _ in validated] == ["2", "4", "6"] and "discriminator" not in validated[-1][1]
    if stage not in ("decoder", "vae"):  # codes begin after step 2
        used = [re.search(r"codes_used (\d+)\.0000 perplexity (\d+)", losses) for _, losses in validated]
        assert not used[0] and 1 <= float(used[2][2]) <= float(used[2][1]) <= 3 * 16
    assert "skipped" in text and "broken.png" in text
    assert ("discriminator" in text) == (stage in ("pixel", "decoder", "vae"))
    assert ("perceptual loss: the teacher's features" in text) == (stage in ("decoder", "vae"))
    assert ("a new decoder: decoder_hidden_size 32" in text) == (stage == "decoder")
    run_and_kill(place, stage, f"{stage}-killed", step=4)
    assert "resuming from step-00000" in run(place, stage, f"{stage}-killed")
    assert weights(place / stage) == weights(place / f"{stage}-killed")


def test_two_processes_share_an_autoencoder_out(place):
    settings = place / "settings.json"
    settings.write_text('{"zero_optimization": {"stage3_param_persistence_threshold": 0}}')  # else none is shared out
    common = ["--adversarial_weight", "0", "--train.num_threads", "1", "--max-steps", "3", "--train.picture_every", "2"]
    shared = [*common, "--train.zero_stage", "3", "--deepspeed", str(settings)]
    run(place, "vae", "whole", *common, processes=2)
    run(place, "vae", "shared", *shared, processes=2)
    found, expected = (
        {name: value for name, value in load_file(folder / "model.safetensors").items() if value.ndim > 1}
        for folder in map(checkpoint.latest, (place / "shared", place / "whole"))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-4)  # biases before norms have no gradient but rounding
    shutil.copytree(place / "shared", place / "shared-stopped")
    shutil.rmtree(place / "shared-stopped" / "step-000003")
    assert "resuming from step-000002" in run(place, "vae", "shared-stopped", *shared, processes=2)
    assert weights(place / "shared-stopped") == weights(place / "shared")


@pytest.mark.parametrize("zero_stage", ["2", "3"])
def test_codes_that_start_at_k_means_stay_there_under_zero(place, zero_stage):
    """Its optimiser has weights of its own, which must follow what is written in place."""
    common = ["--adversarial_weight", "0", "--train.num_threads", "1", "--max-steps", "4"]
    settings = place / "settings.json"
    settings.write_text('{"zero_optimization": {"stage3_param_persistence_threshold": 0}}')
    shared = ["--train.zero_stage", zero_stage, *(["--deepspeed", str(settings)] if zero_stage == "3" else [])]
    shared += ["--train.picture_every", "3", *watching(place, 3)]
    if not (place / "semantic").exists():
        run(place, "semantic", "semantic")
    if not (place / "pixel-whole").exists():
        run(place, "pixel", "pixel-whole", *common, processes=2)
    text = run(place, "pixel", f"pixel-zero-{zero_stage}", *common, *shared, processes=2)
    assert "step 3/4 validation: pictures loss" in text and "perplexity" in text
    expected, found = (
        load_file(checkpoint.latest(place / name) / "model.safetensors")["pixel.codebook.base"]
        for name in ("pixel-whole", f"pixel-zero-{zero_stage}")
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_a_run_is_not_resumed_with_other_losses(place):
    words = command(place, "pixel", "pixel") + ["--adversarial_weight", "0"]
    result = run_program(PROGRAM, *words)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "cannot resume from" in result.stderr and "adversarial_weight was 0.5 and is 0.0" in result.stderr


def test_other_sub_codebooks_over_the_same_semantic_stage(place):
    """The pixel stage may choose m anew; and with one semantic code it needs no semantic stage, only a SigLIP."""
    several = command(place, "pixel", "five") + ["--model.num_pixel_codes", "5", "--max-steps", "3"]
    flat = command(place, "pixel", "flat") + ["--model.num_semantic_codes", "1", "--max-steps", "3"]
    at = flat.index("--init-from")
    flat[at : at + 2] = ["--teacher", str(place / "teacher")]
    for words, said, codes in (
        (several, "the pixel branch is new: num_pixel_codes 5", (8, 5)),
        (flat, "teacher:", (1, 3)),
    ):
        result = run_program(PROGRAM, *words)
        assert result.returncode == 0 and said in result.stdout, result.stderr[-3000:]
        folder = checkpoint.latest(Path(words[words.index("--output-dir") + 1]))
        config = load_tokenizer(str(folder), "cpu")[0].config
        assert (config.num_semantic_codes, config.num_pixel_codes) == codes
    before = load_tokenizer(str(place / "semantic"), "cpu")[0].semantic.state_dict()
    after = load_tokenizer(str(place / "five"), "cpu")[0].semantic.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_checkpoint_s_sizes_are_recorded_and_what_the_preset_wanted_is_told(place):
    words = command(place, "pixel", "kept") + ["--max-steps", "1"]
    words = [word for word in words if not word.startswith("--model.")]
    words[words.index("--init-from") + 1] = str(place / "pixel")
    result = run_program(PROGRAM, *words)
    assert result.returncode == 0, result.stderr[-3000:]
    told = "of the preset's model not used, for --init-from decides it: num_semantic_codes 4096 (it has 8), "
    assert told in result.stdout
    recorded = checkpoint.read_run(checkpoint.latest(place / "kept"))["recipe"]["model"]
    assert recorded["num_semantic_codes"] == 8 and recorded["conv_decoder_channels"] == [8, 8, 8]
    again = run_program(PROGRAM, *words)
    assert again.returncode == 0 and "of the preset's model not used" not in again.stdout, again.stderr[-3000:]


def test_a_tokenizer_with_one_index_has_no_phases(place):
    """Refused in one line: the pixel stage would train what it does not have."""
    words = command(place, "pixel", "never")
    words[words.index("--init-from") + 1] = str(place / "joint")
    result = run_program(PROGRAM, *words)
    assert result.returncode == 2 and result.stderr.splitlines()[-1] == (
        f"error: {place / 'joint'} holds a semhitok_shared_index, which only --stage joint trains"
    )


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("30", "image_size 30 must be a multiple of 8, a latent position's pixels"),
        ("0", "image_size is 0; it must be a whole number of 1 or more"),
    ],
)
@pytest.mark.parametrize("is_planned", [True, False])
def test_a_size_that_latent_positions_do_not_divide_is_refused_before_training(place, size, message, is_planned):
    words = [word for word in command(place, "vae", "odd") if not word.startswith("--model.image_size")]
    words += [f"--model.image_size={size}", *(["--dry-run", "1"] if is_planned else [])]
    result = run_program(PROGRAM, *words)
    assert result.returncode == 2 and message in result.stderr.splitlines()[-1]
    assert not list((place / "odd").glob("step-*"))


def test_a_plan_of_pictures_of_another_size_than_is_read_is_refused():
    sizes = ["--model.image_size", "32", "--dry-run", "1"]
    result = run_program(PROGRAM, "--preset", "scenes_64_cheers", "--stage", "vae", *sizes)
    told = "the preset draws pictures of 64 x 64 pixels, but 32 x 32 are read: add --world.image_size 32"
    assert result.returncode == 2 and result.stderr.splitlines()[-1] == f"error: {told}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--validation-data", "held_out", "--train.validate_every", "0"], "which is 0; set that too"),
        (["--train.validate_every", "5"], "name them with --validation-data"),
        (["--validation-data", "pictures/../pictures"], "--validation-data is in --data too"),
        (["--strict"], "broken.png: no picture: "),
    ],
)  # fmt: skip
def test_data_that_cannot_be_as_it_is_asked_for(place, words, message):
    words = [str(place / word) if word[0] in "hp" else word for word in words]
    result = run_program(PROGRAM, *command(place, "semantic", "refused"), *words)
    assert result.returncode == 2 and message in result.stderr.splitlines()[-1]
    assert not (place / "refused" / "step-000006").exists()
