"""`python -m semhitok export`: what a shared folder holds, what it keeps to itself, what is refused."""

import json
import re
import shutil

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, SiglipVisionModel

from semhitok import SemHiTokModel, __main__, export
from semhitok.auto import build_tokenizer
from semhitok.checkpoints import load_tokenizer
from semhitok.configuration_semhitok import tiny_config
from semhitok.errors import UserError
from semhitok.image_processing_semhitok import for_size
from semhitok.quantization import EMACodebook, PixelCodebook
from semhitok.shared_index import SharedIndexConfig
from semhitok.teacher import load_teacher, tokenizer_over
from unimllm.fingerprint import weights_fingerprint

RUN = {
    "step": 20, "world_size": 2, "commit": "abc123-dirty", "preset": "photos_128", "stage": "pixel",
    "recipe": {"train": {"max_steps": 4000, "batch_size": 64, "precision": "fp32", "seed": 0},
               "data": {"paths": ["/of/somebody/pictures"], "pictures": 12345, "fingerprint": "0123456789ab"}},
}  # fmt: skip
RESULTS = {
    "program": "eval/reconstruction.py", "data": "/of/somebody/imagenet/val", "split": None, "resolution": 16,
    "num_pictures": 1500, "psnr": 21.234, "ssim": 0.61234, "commit": "def456", "limited": False,
    "intervals": {"psnr": [21.1, 21.4], "ssim": [None, None]}, "flat_code_use": 0.5, "semantic_code_use": 0.75,
    "frechet": {"FD(own SigLIP)": {"distance": 3.21}},
    "command": "python eval/reconstruction.py --model /of/somebody/run",
}  # fmt: skip


def trained(model: SemHiTokModel) -> SemHiTokModel:
    """Its codebooks as training leaves them."""
    for module in model.modules():
        if isinstance(module, EMACodebook | PixelCodebook):
            module.initialized.fill_(True)
    return model.eval()


@pytest.fixture
def run(tmp_path):
    """A run's folder as train/tokenizer.py leaves it, over a SigLIP from a folder: two checkpoints."""
    torch.manual_seed(0)
    SiglipVisionModel(tiny_config().vision_config).save_pretrained(tmp_path / "teacher")
    model = trained(tokenizer_over(load_teacher(tmp_path / "teacher"), tiny_config()))
    for step in (10, 20):
        folder = tmp_path / "run" / f"step-{step:06d}"
        with torch.no_grad():
            model.pixel.codebook.base += 1
        model.save_pretrained(folder)
        for_size(16).save_pretrained(folder)
        (folder / "deepspeed").mkdir()
        (folder / "deepspeed" / "states.pt").write_bytes(b"optimiser")
        (folder / "run.json").write_text(json.dumps(RUN | {"step": step}))
    return tmp_path / "run"


def texts(folder) -> str:
    return "".join(path.read_text() for path in folder.iterdir() if path.suffix != ".safetensors")


def test_a_run_is_shared_and_loads_by_the_auto_classes(call, run, tmp_path):
    out = tmp_path / "shared"
    ended = call(__main__, "export", run, out)
    assert ended.code == 0 and ended.out.startswith(f"{out}: README.md, config.json, model.safetensors, prepro")
    names = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o644}
    assert "_name_or_path" not in texts(out) and str(tmp_path) not in texts(out) and "somebody" not in texts(out)
    tokenizer, processor = AutoModel.from_pretrained(out).eval(), AutoImageProcessor.from_pretrained(out)
    before, _ = load_tokenizer(str(run / "step-000020"), "cpu")  # the newest
    pixel_values = torch.rand(3, 3, 16, 16) * 2 - 1
    codes = tokenizer.encode(pixel_values)
    assert torch.equal(codes, before.encode(pixel_values)) and processor.image_size == 16
    assert torch.equal(tokenizer.decode(codes), before.decode(codes))


def test_the_card_tells_what_is_known(call, run, tmp_path):
    results = RESULTS | {"fingerprint": weights_fingerprint(run / "step-000010")}
    (tmp_path / "results.json").write_text(json.dumps(results))
    out = tmp_path / "shared"
    assert call(__main__, "export", run / "step-000010", out, "--results", tmp_path / "results.json").code == 0
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: image-feature-extraction\ntags:\n")
    for row in (
        "| codes (K x m) | 10 semantic x 3 pixel codes under each: 30 ids |",
        "| positions of a picture | 4 (2 x 2 patches of 8 pixels) |", "| preset | photos_128 |", "| stage | pixel |",
        "| pictures | 16 x 16 pixels: the centre square, scaled by bicubic |", "| steps | 10 of 4,000 |",
        "| commit | abc123-dirty |", "| data | 12,345 pictures, fingerprint `0123456789ab` |",
        "| PSNR, dB | 21.23 (21.10 to 21.40) |", "| SSIM | 0.6123 |", "| FD(own SigLIP) | 3.210 |",
        "| all codes used | 50.0 % |",
    ):  # fmt: skip
        assert row in card
    assert "On 1,500 pictures of `val`, 16 x 16, by `eval/reconstruction.py`, commit def456.\n" in card
    assert "import semhitok" in card and "load_tokenizer(" in card and "somebody" not in card
    for code in re.findall("```python\n(.*?)```", card, re.S):
        compile(code, "README.md", "exec")


def test_what_is_not_known_has_no_heading(call, run, tmp_path):
    (run / "step-000020" / "run.json").unlink()
    assert call(__main__, "export", run / "step-000020", tmp_path / "shared").code == 0
    card = (tmp_path / "shared" / "README.md").read_text()
    assert re.findall("^## (.*)", card, re.M) == ["What it is", "How to load it"]


def test_a_rival_of_one_codebook_is_shared_too(call, tmp_path):
    torch.manual_seed(0)
    config = SharedIndexConfig(vision_config=tiny_config().vision_config, num_semantic_codes=10, pixel_backbone="conv")
    trained(build_tokenizer(config)).save_pretrained(tmp_path / "rival")
    assert call(__main__, "export", tmp_path / "rival", tmp_path / "shared").code == 0
    assert type(AutoModel.from_pretrained(tmp_path / "shared")).__name__ == "SharedIndexModel"
    assert "rival of" in (tmp_path / "shared" / "README.md").read_text()


def test_what_cannot_be_shared_is_refused_and_leaves_nothing(call, run, tmp_path, monkeypatch):
    out, newest = tmp_path / "shared", run / "step-000020"
    assert "name a checkpoint and the folder" in call(__main__, "export", run).refusal()
    assert "no such folder" in call(__main__, "export", tmp_path / "none", out).refusal()
    (tmp_path / "empty").mkdir()
    assert "no checkpoint in" in call(__main__, "export", tmp_path / "empty", out).refusal()
    assert "is not empty" in call(__main__, "export", run, tmp_path / "teacher").refusal()
    assert "is a file" in call(__main__, "export", run, newest / "run.json").refusal()
    for content, message in (
        ("[", "is no JSON"), ("[]", "holds a list"), ('{"program": "eval/pope.py"}', "is of 'eval/pope.py'"),
        (json.dumps(RESULTS | {"fingerprint": "0"}), "is of other weights (0) than"),
    ):  # fmt: skip
        (tmp_path / "results.json").write_text(content)
        assert message in call(__main__, "export", run, out, "--results", tmp_path / "results.json").refusal()
    model = SemHiTokModel.from_pretrained(newest)
    model.pixel.codebook.initialized.fill_(False)
    model.save_pretrained(tmp_path / "semantic")
    assert "no codes in pixel.codebook yet" in call(__main__, "export", tmp_path / "semantic", out).refusal()

    def full(self, folder, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SemHiTokModel, "save_pretrained", full)
    assert "cannot write to" in call(__main__, "export", run, out).refusal()
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_an_empty_folder_may_be_written(call, run, tmp_path):
    (tmp_path / "shared").mkdir()
    shutil.rmtree(run / "step-000010")
    assert call(__main__, "export", run, tmp_path / "shared").code == 0
    assert (tmp_path / "shared" / "config.json").is_file()


@pytest.mark.parametrize("sizes", [{"num_semantic_codes": 1}, {"num_pixel_codes": 1}])
def test_a_codebook_of_one_code_need_not_have_begun(sizes, tmp_path):
    model = SemHiTokModel(tiny_config(**sizes))
    begun = model.semantic.codebook if "num_pixel_codes" in sizes else model.pixel.codebook
    begun.initialized.fill_(True)
    export.check_trained(model, tmp_path)
    begun.initialized.fill_(False)
    with pytest.raises(UserError, match="has no codes in "):
        export.check_trained(model, tmp_path)
