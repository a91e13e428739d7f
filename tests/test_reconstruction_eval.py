"""eval/reconstruction.py on tiny random tokenizers and hand-made pictures, and the parts it is made of."""

import hashlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_program
from picture_files import write_parquet, write_tar
from PIL import Image
from released_siglips import FORMATS, PICTURES

from semhitok import SemHiTokModel, lpips_weights
from semhitok.fingerprint import weights_digest
from semhitok.image_processing_semhitok import adm_center_crop, to_pixel_values, to_uint8
from semhitok.teacher import Teacher, load_teacher
from unimllm.cheers.autoencoder import CheersVae
from unimllm.cheers.configuration_cheers import tiny_config as tiny_cheers
from unimllm.data.sequential import FolderPictures, PackedPictures, cropped_batches, open_sequential
from unimllm.errors import UserError
from unimllm.grid import draw_grid
from unimllm.metrics import networks
from unimllm.metrics.frechet import frechet_distance
from unimllm.metrics.intervals import bootstrap, bootstrap_mean
from unimllm.metrics.networks import import_inception, inception_net, lpips_distance, siglip_net, tokenizer_net
from unimllm.metrics.reconstruction import psnr, ssim
from unimllm.scenes import GlyphAtlas

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def program():
    return load_program("eval/reconstruction.py")


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder) -> SemHiTokModel:
    return SemHiTokModel.from_pretrained(tokenizer_folder).eval()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five pictures of several shapes in two folders, one that is cut off, and a text."""
    folder = tmp_path / "pictures"
    (folder / "b").mkdir(parents=True)
    for number, (name, size) in enumerate(
        {"a.png": (40, 24), "b/1.JPG": (16, 16), "b/2.png": (17, 90), "b/3.png": (8, 12), "c.webp": (33, 33)}.items()
    ):
        noise(*size, seed=number).save(folder / name)
    (folder / "b" / "0.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "index.jsonl").write_text("{}")
    return folder


# ---- the crop ------------------------------------------------------------------------------------------------------


def test_adm_crop_of_the_right_size_is_the_picture():
    assert np.array_equal(np.asarray(adm_center_crop(noise(16, 16), 16)), np.asarray(noise(16, 16)))


def test_adm_crop_cuts_the_centre():
    pixels = np.asarray(noise(21, 16))
    assert np.array_equal(np.asarray(adm_center_crop(Image.fromarray(pixels), 16)), pixels[:, 2:18])
    pixels = np.asarray(noise(16, 25))
    assert np.array_equal(np.asarray(adm_center_crop(Image.fromarray(pixels), 16)), pixels[4:20])


def test_adm_crop_halves_by_means_of_boxes_first():
    pixels = np.asarray(noise(64, 64)).astype(float)
    means = pixels.reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(np.asarray(adm_center_crop(noise(64, 64), 32)) - means).max() <= 1  # Pillow rounds twice
    halved = adm_center_crop(noise(64, 64), 32)
    assert np.array_equal(np.asarray(adm_center_crop(noise(64, 64), 16)), np.asarray(adm_center_crop(halved, 16)))


@pytest.mark.parametrize("size", [(1, 30), (63, 31), (31, 32), (500, 33), (32, 1000), (101, 67)])
def test_adm_crop_has_the_size_asked_for(size):
    assert adm_center_crop(Image.new("RGB", size, (7, 8, 9)), 32).getcolors() == [(32 * 32, (7, 8, 9))]


# ---- pictures one after the other ----------------------------------------------------------------------------------


def test_folder_is_read_in_order_and_what_is_broken_is_named(folder):
    source = FolderPictures(folder)
    assert len(source) == 6 and source.num_other_files == 1
    assert [key for key, _ in source] == ["a.png", "b/1.JPG", "b/2.png", "b/3.png", "c.webp"]
    assert list(source.skipped) == ["b/0.png"] and "cut off" in source.skipped["b/0.png"]
    batches = list(cropped_batches(source, 16, 2, limit=3))
    assert [keys for keys, _ in batches] == [["a.png", "b/1.JPG"], ["b/2.png"]]
    assert batches[0][1].shape == (2, 16, 16, 3) and batches[0][1].dtype == np.uint8
    assert np.array_equal(batches[1][1][0], np.asarray(adm_center_crop(noise(17, 90, seed=2), 16)))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_packed_pictures_are_read_in_order_and_what_is_broken_is_named(folder, tmp_path, kind):
    contents = [path.read_bytes() for path in (folder / "a.png", folder / "b" / "0.png", folder / "c.webp")]
    write = write_tar if kind == "tar" else write_parquet
    root = tmp_path / "shards"
    write(root / "sub" / f"0.{kind}", contents)
    write(root / f"1.{kind}", contents[2:])
    source = open_sequential(root)
    members = ("000.png", "002.png") if kind == "tar" else ("row 0", "row 2")
    expected = [f"sub/0.{kind}:{member}" for member in members]
    keys = [f"1.{kind}:{members[0]}", *expected]
    assert isinstance(source, PackedPictures) and len(source) == 4
    read = dict(source)
    assert list(read) == keys and source.num_other_files == (4 if kind == "tar" else 0) and not source.faults
    (broken, why), = source.skipped.items()  # fmt: skip
    assert broken == f"sub/0.{kind}:{'001.png' if kind == 'tar' else 'row 1'}" and broken in why and "cut off" in why
    assert np.array_equal(np.asarray(read[expected[0]]), np.asarray(noise(40, 24)))
    alone = open_sequential(root / f"1.{kind}")
    assert [key for key, _ in alone] == keys[:1] and len(alone) == 1
    assert [key for batch, _ in cropped_batches(source, 16, 2, limit=2) for key in batch] == keys[:2]


def test_a_folder_of_pictures_may_hold_a_tar_besides(folder):
    write_tar(folder / "more.tar", [(folder / "a.png").read_bytes()])
    source = open_sequential(folder)
    assert isinstance(source, FolderPictures) and len(source) == 6 and source.num_other_files == 2


def test_a_folder_without_pictures_is_told(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="no picture in .*: 1 files"):
        FolderPictures(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        FolderPictures(tmp_path / "none")
    with pytest.raises(UserError, match="a file, but neither .tar nor .parquet"):
        FolderPictures(tmp_path / "notes.txt")


# ---- feature networks ----------------------------------------------------------------------------------------------


def test_features_of_the_own_and_of_a_saved_siglip_agree(tokenizer, tmp_path):
    pictures = np.stack([np.asarray(noise(16, 16, seed)) for seed in range(3)])
    own = tokenizer_net(tokenizer)
    features = own.extract(pictures)
    assert features.shape == (3, 16) and own.frechet_name == "FD(own SigLIP)"
    expected = tokenizer.vision_model(to_pixel_values(pictures)).last_hidden_state.mean(1).detach()
    assert features == pytest.approx(expected.numpy(), abs=1e-6)

    tokenizer.vision_model.save_pretrained(tmp_path)  # without preprocessor_config.json: scaled to -1..1
    saved = siglip_net(str(tmp_path), load_teacher(tmp_path), CPU)
    assert saved.extract(pictures) == pytest.approx(features, abs=1e-5)
    assert saved.frechet_name == f"FD({tmp_path})" and saved.kid_name == f"KD({tmp_path})"
    digits = weights_digest(tokenizer.vision_model.state_dict())
    assert f"SigLIP {digits}, mean" in own.library and f"SigLIP {digits}, mean" in saved.library
    with torch.no_grad():
        teacher = load_teacher(tmp_path)
        next(teacher.vision_model.parameters()).add_(1)
    assert digits not in siglip_net(str(tmp_path), teacher, CPU).library


@pytest.mark.parametrize("released", FORMATS)
def test_a_released_siglip_of_any_format_sees_pictures_as_its_own_library_prepares_them(released, tmp_path):
    torch.manual_seed(0)
    expected = FORMATS[released](tmp_path).mean(1)
    extracted = siglip_net("any", load_teacher(tmp_path), CPU).extract(PICTURES)
    assert extracted == pytest.approx(expected.detach().numpy(), abs=1e-5)


def test_pictures_are_resized_as_a_siglip_was_trained(tokenizer):
    pictures = np.asarray(noise(32, 32))[None]
    teacher = Teacher(tokenizer.vision_model, (0.2,) * 3, (0.3,) * 3, Image.Resampling.NEAREST)
    extracted = siglip_net("any", teacher, CPU).extract(pictures)
    nearest = np.array(noise(32, 32).resize((16, 16), Image.Resampling.NEAREST))
    pixel_values = (torch.from_numpy(nearest).permute(2, 0, 1)[None] / 255 - 0.2) / 0.3
    assert extracted == pytest.approx(
        tokenizer.vision_model(pixel_values).last_hidden_state.mean(1).detach().numpy(), abs=1e-5
    )


FAKE_INCEPTION = """
import torch
from torch_fidelity.helpers import scale

class FeatureExtractorInceptionV3(torch.nn.Module):
    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert features_list == ["2048"]
        self.linear = torch.nn.Linear(3, 8)
        self.linear.load_state_dict(torch.load(feature_extractor_weights_path))

    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        return (self.linear(scale(x.float().mean((2, 3)))),)
"""


@pytest.fixture
def fake_fidelity(tmp_path, monkeypatch) -> Path:
    """A torch_fidelity as the real one: its __init__ imports torchvision, the Inception's module does not."""
    package = tmp_path / "site" / "torch_fidelity"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (package / "helpers.py").write_text("def scale(x):\n    return x / 128 - 1\n")
    (package / "feature_extractor_inceptionv3.py").write_text(FAKE_INCEPTION)
    monkeypatch.syspath_prepend(tmp_path / "site")
    torch.save(torch.nn.Linear(3, 8).state_dict(), tmp_path / "inception.pth")
    return tmp_path / "inception.pth"


def trust(monkeypatch, weights: Path) -> str:
    """Take a fake file for the real Inception; returns the first digits of its checksum."""
    digits = hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(networks, "INCEPTION", digits)
    return digits


def test_other_weights_are_no_inception(fake_fidelity):
    digits = hashlib.sha256(fake_fidelity.read_bytes()).hexdigest()[:8]
    with pytest.raises(UserError, match=f"not the Inception of FID: its sha256 begins with {digits}, not 6726825d"):
        inception_net(fake_fidelity, CPU)
    with pytest.raises(UserError, match="cannot read the weights .*none.pth"):
        inception_net(fake_fidelity.with_name("none.pth"), CPU)


def test_inception_comes_without_the_rest_of_its_package(fake_fidelity, monkeypatch):
    digits = trust(monkeypatch, fake_fidelity)
    net = inception_net(fake_fidelity, CPU)
    assert net.frechet_name == "FID" and net.kid_name == "KID" and digits in net.library
    assert net.extract(np.zeros((2, 16, 16, 3), np.uint8)).shape == (2, 8)
    assert not [name for name in sys.modules if name.startswith("torch_fidelity")]


def test_a_missing_torch_fidelity_is_told(monkeypatch):
    monkeypatch.setattr(networks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps torch-fidelity"):
        import_inception()


class FakeLpips(torch.nn.Module):
    """What lpips.LPIPS looks like: a backbone in slices that keep torchvision's numbers."""

    def __init__(self, net: str, pnet_rand: bool, verbose: bool):
        super().__init__()
        assert net == "alex" and pnet_rand and not verbose
        self.net = torch.nn.Module()
        self.net.slice2 = torch.nn.Sequential()
        self.net.slice2.add_module("3", torch.nn.Conv2d(3, 1, 1))

    def forward(self, first, second):
        return (self.net.slice2(first) - self.net.slice2(second)).abs().mean((1, 2, 3), keepdim=True)


def test_lpips_takes_its_backbone_from_torchvision_s_file(tmp_path, monkeypatch):
    weights = tmp_path / "alexnet.pth"
    state = {"features.3.weight": torch.ones(1, 3, 1, 1), "features.3.bias": torch.zeros(1)}
    torch.save(state | {"classifier.1.weight": torch.zeros(2)}, weights)
    with pytest.raises(UserError, match="no backbone of LPIPS"):
        lpips_distance(weights, CPU)
    monkeypatch.setattr(lpips_weights, "BACKBONES", {lpips_weights.checksum(weights): "alex"})
    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=FakeLpips))
    lpips = lpips_distance(weights, CPU)
    black, grey = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 51, np.uint8)
    grey[1] = 255
    assert lpips.distance(black, grey) == pytest.approx([3 * 0.4, 3 * 2])  # in -1..1, summed over channels
    assert lpips.backbone == "alex"
    loss = lpips_weights.LPIPS(weights).train()
    predicted = to_pixel_values(grey).requires_grad_()
    value = loss(predicted, to_pixel_values(black))
    assert value.item() == pytest.approx(3 * 1.2) and not loss.network.training
    value.backward()
    assert predicted.grad.any() and not any(p.requires_grad for p in loss.parameters())


def test_a_missing_lpips_is_told(tmp_path, monkeypatch):
    weights = tmp_path / "vgg.pth"
    torch.save({}, weights)
    monkeypatch.setattr(lpips_weights, "BACKBONES", {lpips_weights.checksum(weights): "vgg"})
    monkeypatch.setitem(sys.modules, "lpips", None)  # import fails
    with pytest.raises(UserError, match=r"LPIPS needs lpips .*pip install torch==\S+ torchvision lpips"):
        lpips_distance(weights, CPU)


# ---- intervals and grids -------------------------------------------------------------------------------------------


def test_bootstrap_of_a_mean_is_the_bootstrap():
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap_mean(values) == pytest.approx(bootstrap(lambda picked: values[picked].mean(), range(50)))


def test_grid_holds_every_picture_enlarged_without_smoothing():
    cells = [[noise(64, 64, seed), noise(64, 64, seed + 10)] for seed in range(3)]
    sheet = np.asarray(draw_grid(cells, ["one", "two", "three"], 2, "title"))
    enlarged = np.asarray(cells[2][1]).repeat(3, 0).repeat(3, 1)  # to 192 pixels, the first above 160
    windows = [sheet[y : y + 192, 12 : 12 + 192] for y in range(sheet.shape[0] - 191)]
    assert sum(np.array_equal(window, enlarged) for window in windows) == 1
    assert sheet.shape[1] == 2 * (192 + 12) + 12


# ---- the program ---------------------------------------------------------------------------------------------------


def test_table_json_and_grid_of_a_folder(program, tokenizer, tokenizer_folder, folder, tmp_path, call):
    out, grid = tmp_path / "new" / "scores.json", tmp_path / "grid.png"
    options = ("--model", tokenizer_folder, "--data", folder, "--device", "cpu")
    ended = call(program, *options, "--batch-size", 2, "--json", out, "--grid", grid)
    assert ended.code == 0
    results = json.loads(out.read_text())

    ((_, pictures),) = cropped_batches(FolderPictures(folder), 16, 9, None)
    decoded = to_uint8(tokenizer.decode(tokenizer.encode(to_pixel_values(pictures))))
    assert results["pictures_fingerprint"] == hashlib.sha256(pictures.tobytes()).hexdigest()[:16]  # of any batches
    assert results["psnr"] == pytest.approx(psnr(pictures, decoded).mean(), abs=0.01)
    assert results["ssim"] == pytest.approx(ssim(pictures, decoded).mean(), abs=1e-3)
    assert results["ssim_uniform_data_range_2"] > results["ssim"] and results["intervals"]["psnr"][0] <= results["psnr"]
    first, second = (tokenizer_net(tokenizer).extract(p) for p in (pictures, decoded))
    expected = frechet_distance(first.mean(0), np.cov(first.T), second.mean(0), np.cov(second.T))
    fd = results["frechet"]["FD(own SigLIP)"]
    assert fd["distance"] == pytest.approx(expected, rel=1e-3) and fd["num_features"] == 16
    assert fd["kid_name"] == "KD(own SigLIP)" and fd["kid_subset_size"] == 2
    assert (results["num_pictures"], results["num_positions"], results["resolution"]) == (5, 20, 16)
    assert list(results["skipped"]) == ["b/0.png"] and results["num_other_files"] == 1 and results["limited"]
    assert 0 < results["flat_code_use"] <= results["semantic_code_use"] <= 1
    assert results["encode_pictures_per_second"] > 0 and results["decode_pictures_per_second"] > 0
    assert "FID" not in results["frechet"] and "lpips" not in results and "classes_digest" not in results

    for words in ("PSNR", "data_range = 1.0", "data_range = 2.0", "FD(own SigLIP)", "KD(own", "16 x 16", "ADM centre"):
        assert words in ended.out
    assert "5 pictures is biased" in " ".join(ended.out.split()) and "FID" not in ended.out
    assert "Skipped: 1 of 6 pictures" in ended.out and "Other files: 1" in ended.out and "b/0.png" in ended.err
    assert Image.open(grid).size == (5 * (160 + 12) + 12, 12 + 29 + 160 * 2 + 2 + 2 * 17 + 12)


def test_packed_pictures_are_measured_as_those_of_a_folder(program, tokenizer_folder, folder, tmp_path, call):
    names = ["a.png", "b/1.JPG", "b/2.png", "b/3.png", "c.webp"]
    write_tar(tmp_path / "packed" / "0.tar", [(folder / name).read_bytes() for name in names])
    cut = write_tar(tmp_path / "packed" / "1.tar", [(folder / "a.png").read_bytes()])
    cut.write_bytes(cut.read_bytes()[:700])
    results = {}
    for name, data in (("folder", folder), ("packed", tmp_path / "packed")):
        out = tmp_path / f"{name}.json"
        assert call(program, "--model", tokenizer_folder, "--data", data, "--device", "cpu", "--json", out).code == 0
        results[name] = json.loads(out.read_text())
    for key in ("pictures_fingerprint", "psnr", "num_pictures", "num_equal"):
        assert results["folder"][key] == results["packed"][key]
    assert any("1.tar" in warning for warning in results["packed"]["warnings"]) and results["packed"]["limited"]


def test_pictures_are_scaled_as_the_tokenizer_was_trained(program, tokenizer, folder, tmp_path, call):
    for name, resample in (("bicubic", 3), ("bilinear", 2)):
        config = type(tokenizer.config).from_dict(tokenizer.config.to_dict() | {"resample": resample})
        model = SemHiTokModel(config)
        model.load_state_dict(tokenizer.state_dict())
        model.save_pretrained(tmp_path / name)
        out = tmp_path / f"{name}.json"
        assert call(program, "--model", tmp_path / name, "--data", folder, "--device", "cpu", "--json", out).code == 0
        results = json.loads(out.read_text())
        ((_, pictures),) = cropped_batches(FolderPictures(folder), 16, 9, None, resample)
        assert results["pictures_fingerprint"] == hashlib.sha256(pictures.tobytes()).hexdigest()[:16]
        assert results["crop"] == f"ADM centre crop (box halving, {name})"


def test_an_autoencoder_is_measured_without_codes(program, folder, tmp_path, call):
    torch.manual_seed(0)
    config = tiny_cheers().vae_config
    CheersVae(config).save_pretrained(tmp_path / "vae")
    out, grid = tmp_path / "scores.json", tmp_path / "grid.png"
    options = ("--model", tmp_path / "vae", "--data", folder, "--json", out, "--grid", grid)
    ended = call(program, *options)
    assert ended.code == 0 and "PSNR" in ended.out and "Code use" not in ended.out
    assert "has no SigLIP of its own, name one with --features" in " ".join(ended.out.split())
    results = json.loads(out.read_text())
    assert (results["num_pictures"], results["num_positions"], results["resolution"]) == (5, 5 * 16, 16)
    assert results["frechet"] == {} and "flat_code_use" not in results and results["decode_pictures_per_second"] > 0
    model = CheersVae.from_pretrained(tmp_path / "vae")
    ((_, pictures),) = cropped_batches(FolderPictures(folder), 16, 9, None)
    decoded = to_uint8(model.decode(model.encode(to_pixel_values(pictures))))
    assert results["psnr"] == pytest.approx(psnr(pictures, decoded).mean(), abs=0.01)


def test_fid_stands_over_the_real_inception_only(program, tokenizer_folder, folder, fake_fidelity, monkeypatch, call):
    options = ("--model", tokenizer_folder, "--data", folder, "--inception-weights", fake_fidelity)
    assert "not the Inception of FID" in call(program, *options).refusal()
    trust(monkeypatch, fake_fidelity)
    ended = call(program, *options)
    assert ended.code == 0 and "FID" in ended.out and "KID x 1000" in ended.out and "8 features" in ended.out
    assert "FD(" not in ended.out


def test_scenes_and_a_whole_model(program, tiny_checkpoint, fake_atlas, monkeypatch, tmp_path, call):
    monkeypatch.setattr(GlyphAtlas, "from_font", lambda names, font_path=None: fake_atlas)
    out = tmp_path / "scores.json"
    options = ("--model", tiny_checkpoint, "--data", "scenes", "--limit", 3, "--json", out)
    assert call(program, *options).code == 0
    results = json.loads(out.read_text())
    assert results["num_pictures"] == 3 and results["crop"].startswith("none")
    assert (results["image_size"], results["num_classes"]) == (16, 24) and len(results["classes_digest"]) == 16
    assert results["glyphs_digest"] == fake_atlas.digest() and results["dtype"] == "float32"
    assert results["intervals"]["ssim"][0] <= results["ssim"] <= results["intervals"]["ssim"][1]


def test_one_picture_has_no_frechet_distance(program, tokenizer_folder, folder, tmp_path, call):
    options = ("--model", tokenizer_folder, "--data", folder, "--limit", 1)
    ended = call(program, *options)
    assert ended.code == 0 and "no Frechet distance" in ended.out and "FD(" not in ended.out


def test_a_full_memory_is_one_line(program, tokenizer_folder, folder, monkeypatch, call):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(program, "reconstruct", fail)
    ended = call(program, "--model", tokenizer_folder, "--data", folder, "--batch-size", 3)
    assert ended.code == 2 and ended.out == ""
    last = ended.err.splitlines()[-1]
    assert last == "error: not enough memory for 3 pictures at once; choose a smaller --batch-size"


def test_mistakes_are_one_line(program, tokenizer_folder, folder, tmp_path, call):
    model, data = ("--model", tokenizer_folder), ("--data", folder)
    assert "--model is missing" in call(program, *data).refusal()
    assert "--data is missing" in call(program, *model).refusal()
    assert "did you mean '--limit'" in call(program, *model, *data, "--limt", 3).refusal()
    assert "no checkpoint in" in call(program, "--model", tmp_path / "none", *data).refusal()
    assert "no such file or folder" in call(program, *model, "--data", tmp_path / "a.tar").refusal()
    assert "pictures are written as" in call(program, *model, *data, "--grid", tmp_path / "grid.svg").refusal()
    assert "--features: " in call(program, *model, *data, "--features", tmp_path).refusal()
    assert "holds a semhitok model" in call(program, *model, *data, "--features", tokenizer_folder).refusal()
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    ended = call(program, *model, *data)
    assert ended.code == 2 and "none of the 6 pictures" in ended.err and ended.err.count("skipped:") == 6
