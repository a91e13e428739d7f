"""eval/pictures.py on small folders: pairs by name, sets of all, and CLIPScore by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_program
from PIL import Image

from unimllm.metrics import comparison
from unimllm.metrics.clip_score import ClipScorer
from unimllm.metrics.frechet import frechet_distance, kid
from unimllm.metrics.networks import FeatureNet, PairDistance
from unimllm.metrics.reconstruction import MOST, psnr, ssim


@pytest.fixture(scope="module")
def program():
    return load_program("eval/pictures.py")


def noise(seed: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def write(folder: Path, pictures: dict[str, np.ndarray]) -> Path:
    for name, pixels in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return folder


def means(pictures: np.ndarray) -> np.ndarray:
    """Two features of each picture, (n, H, W, 3) -> (n, 2): something that a network could see."""
    return np.stack([pictures[..., 0].mean((1, 2)), pictures[..., 1].std((1, 2))], 1).astype(np.float32) / 64


@pytest.fixture
def networks(monkeypatch):
    """The real Inception's place is taken by `means`, LPIPS's by a constant."""
    inception = FeatureNet("", "by hand", means)
    lpips = PairDistance("alex", "by hand", lambda first, second: np.full(len(first), 0.25))
    monkeypatch.setattr(comparison, "inception_net", lambda weights, device: inception)
    monkeypatch.setattr(comparison, "lpips_distance", lambda weights, device: lpips)
    return "--inception-weights", "inception.pth", "--lpips-weights", "alex.pth"


def compared(call, program, tmp_path, *words) -> tuple[dict, str]:
    ended = call(program, "compare", *words, "--device", "cpu", "--json", tmp_path / "out.json")
    assert ended.code == 0, ended.err
    return json.loads((tmp_path / "out.json").read_text()), " ".join(ended.out.split())


def test_pairs_have_one_name_whatever_their_endings(call, program, networks, tmp_path):
    originals = {f"{folder}/{i}": noise(i) for i, folder in enumerate("aab")}
    changed = {name: (pixels // 2 + 60).astype(np.uint8) for name, pixels in originals.items()}
    reference = write(tmp_path / "reference", {f"{name}.bmp": p for name, p in originals.items()})
    decoded = write(tmp_path / "decoded", {f"{name}.bmp.png": p for name, p in originals.items()})
    assert compared(call, program, tmp_path, reference, decoded)[0]["num_pairs"] == 3  # as semhitok decode names them
    generated = write(tmp_path / "generated", {f"{name}.png": p for name, p in changed.items()})
    results, table = compared(call, program, tmp_path, reference, generated, *networks, "--batch-size", 2)
    first, second = (np.stack(list(pictures.values())) for pictures in (originals, changed))
    assert results["psnr"] == pytest.approx(psnr(first, second).mean())
    assert results["ssim"] == pytest.approx(ssim(first, second).mean()) and results["lpips"] == 0.25
    assert (results["num_reference"], results["num_generated"], results["num_pairs"]) == (3, 3, 3)
    features = [means(pictures).astype(np.float64) for pictures in (first, second)]
    moments = [moment for f in features for moment in (f.mean(0), np.cov(f.T))]
    fid = results["frechet"]["FID"]
    assert fid["distance"] == pytest.approx(frechet_distance(*moments), rel=1e-5) and fid["num_pairs"] == 3
    for words in ("FID", "KID x 1000, 3 pairs", "LPIPS (alex)", "3 pairs", "3 pictures is biased"):
        assert words in table
    assert "alone holds" not in table and results["command"].startswith("python eval/pictures.py compare")
    assert results["model"] == str(generated) and results["fingerprint_of"] == "pictures"
    named, _ = compared(call, program, tmp_path, reference, reference, "--name", "M")
    assert named["model"] == "M" and named["fingerprint"] != results["fingerprint"]


def test_other_names_are_told_and_belong_to_the_sets(call, program, networks, tmp_path):
    reference = write(tmp_path / "reference", {f"{i}.png": noise(i) for i in range(5)})
    generated = write(tmp_path / "generated", {f"{i}.png": noise(10 + i) for i in range(3, 7)})
    results, table = compared(call, program, tmp_path, reference, generated, *networks)
    first, second = (np.stack([noise(i) for i in seeds]) for seeds in (range(5), range(13, 17)))
    assert results["num_pairs"] == 2 and results["psnr"] == pytest.approx(psnr(first[3:], second[:2]).mean())
    features = [means(pictures).astype(np.float64) for pictures in (first, second)]
    moments = [moment for f in features for moment in (f.mean(0), np.cov(f.T))]
    fid = results["frechet"]["FID"]
    assert fid["distance"] == pytest.approx(frechet_distance(*moments), rel=1e-5) and fid["num_pairs"] == 2
    # Common names come first in both sets.
    order = [f[i] for f, i in zip(features, ([3, 4, 0, 1, 2], [0, 1, 2, 3]), strict=True)]
    assert (fid["kid_mean"], fid["kid_std"]) == pytest.approx(kid(*order, 2, subset_size=2), rel=1e-4, abs=1e-6)
    assert "reference alone holds 3 pictures, 0 first" in table and "generated alone holds 2 pictures, 5 first" in table
    assert "KID x 1000, 2 pairs" in table and results["limited"]

    others = write(tmp_path / "others", {"a.png": noise(1, 24), "b.png": noise(2)})
    results, _ = compared(call, program, tmp_path, reference, others, *networks)
    assert results["num_pairs"] == 0 and "psnr" not in results and results["frechet"]["FID"]["distance"] > 0


def test_pairs_of_two_sizes_are_cropped_where_it_is_asked_for(call, program, tmp_path):
    reference = write(tmp_path / "reference", {"a.png": noise(0, 32), "b.png": noise(1)})
    generated = write(tmp_path / "generated", {"a.png": noise(0, 32), "b.png": noise(2, 20)})
    told = call(program, "compare", reference, generated, "--device", "cpu")
    assert told.code == 2 and "b: the two pictures are 16 x 16 and 20 x 20 pixels; crop both with --size" in told.err
    results, table = compared(call, program, tmp_path, reference, generated, "--size", 16)
    other = write(tmp_path / "other", {"b.png": noise(2, 20)})
    assert results["num_pairs"] == 2 and results["num_equal"] == 1 and results["frechet"] == {}
    different = compared(call, program, tmp_path, reference, other, "--size", 16)
    assert results["psnr"] == pytest.approx((MOST + different[0]["psnr"]) / 2) and different[0]["num_equal"] == 0
    assert "FID" not in table and "Size: 16" in table
    assert "Exactly equal: 1 pair, at 100 dB in the mean PSNR" in table and "equal" not in different[1]


def test_a_damaged_picture_is_told_before_any_is_compared(call, program, clip, tmp_path):
    reference, generated = (write(tmp_path / n, {f"{i}.png": noise(i) for i in range(3)}) for n in ("one", "two"))
    (generated / "2.png").write_bytes((generated / "2.png").read_bytes()[:60])
    rows = "".join(json.dumps({"file": f"{i}.png", "prompt": "a red apple"}) + "\n" for i in range(3))
    (generated / "index.jsonl").write_text(rows)
    for words in (("compare", reference, generated), ("clipscore", generated, "--clip", clip)):
        ended = call(program, *words, "--device", "cpu")
        assert ended.code == 2 and "two/2.png does not decode" in ended.err.splitlines()[-1]
        assert "comparing" not in ended.err and "scoring" not in ended.err


def test_mistakes_of_compare_are_one_line(call, program, tmp_path):
    reference, generated = (write(tmp_path / n, {f"{n}.png": noise(0)}) for n in ("one", "two"))
    for words, message in (
        ((), "name two folders"),
        ((reference,), "name two folders"),
        ((reference, tmp_path / "none"), "none: no such folder"),
        ((reference, generated), "there are no pairs; for sets give --inception-weights or --features"),
        ((reference, generated, "--inception-weights", reference / "one.png"), "is not the Inception of FID"),
        ((reference, generated, "--features", tmp_path), "--features: "),
        ((reference, generated, "--limt", 2), "unknown option --limt"),
    ):
        assert message in call(program, "compare", *words).refusal()
    write(reference, {"one.bmp": noise(1)})
    assert (
        "holds two pictures of one name, one.bmp and one.png"
        in call(program, "compare", reference, generated).refusal()
    )
    assert "no command" in call(program).refusal()


# ---- CLIPScore -----------------------------------------------------------------------------------------------------


class Corners:
    """A CLIP by hand: a picture's features are its mean RGB, normalised; a text's are its numbers."""

    device = torch.device("cpu")

    class config:
        class vision_config:
            image_size = 8

        class text_config:
            max_position_embeddings = 3

    def get_image_features(self, pixel_values):
        return self._output(pixel_values.mean((2, 3)).sign())

    def get_text_features(self, texts):
        return self._output(torch.tensor([[float(word) for word in text.split()] for text in texts]))

    def _output(self, features):
        return type("Output", (), {"pooler_output": features})


class Words(dict):
    def to(self, device):
        return self


def test_clip_score_by_hand():
    def tokenizer(texts, **options):
        return {"input_ids": texts.split()} if isinstance(texts, str) else Words(texts=texts)

    scorer = ClipScorer(Corners(), tokenizer, "by hand")
    white = Image.new("RGB", (9, 9), "white")  # (1, 1, 1)
    red = Image.new("RGB", (9, 9), "red")  # (1, -1, -1)
    scores = scorer.score([white, white, white, red], ["1 1 1", "1 0 0", "-1 0 0", "2 -2 0"])
    assert scores == pytest.approx([100, 100 / 3**0.5, 0, 100 * 2 / 6**0.5], abs=1e-4)  # never below 0
    assert scorer.is_cut("1 1 1 1") and not scorer.is_cut("1 1 1")


def scored(call, program, tmp_path, *words) -> dict:
    ended = call(program, "clipscore", *words, "--device", "cpu", "--json", tmp_path / "out.json")
    assert ended.code == 0 and "CLIPScore, 100 * max(cos, 0)" in ended.out, ended.err
    assert 'its prefix "A photo depicts" is not put before the prompts' in " ".join(ended.out.split())
    return json.loads((tmp_path / "out.json").read_text())


def test_prompts_are_found_in_three_layouts(call, program, clip, tmp_path):
    texts = ["a photo of a red apple", "a photo of a blue apple object"]
    pictures = [noise(0), noise(1, 24)]
    drawn = write(tmp_path / "drawn", {f"{i:05d}.png": p for i, p in enumerate(pictures)})
    rows = [{"file": f"{i:05d}.png", "prompt": text} for i, text in enumerate(texts)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "prompts.jsonl").write_text(lines)
    by_file = scored(call, program, tmp_path, drawn, "--clip", clip, "--prompts", tmp_path / "prompts.jsonl")
    (drawn / "index.jsonl").write_text(lines)
    by_index = scored(call, program, tmp_path, drawn, "--clip", clip, "--batch-size", 1)
    official = write(tmp_path / "geneval", {f"{i:05d}/samples/0000.png": p for i, p in enumerate(pictures)})
    for i, text in enumerate(texts):
        prompt = {"tag": "colors", "include": [{"class": "apple", "count": 1}], "prompt": text}
        (official / f"{i:05d}" / "metadata.jsonl").write_text(json.dumps(prompt))
    by_folder = scored(call, program, tmp_path, official, "--clip", clip)
    scorer = ClipScorer.load(str(clip), "cpu")
    expected = scorer.score([Image.fromarray(p) for p in pictures], texts).mean()
    for results in (by_file, by_index, by_folder):
        assert results["clip_score"] == pytest.approx(expected, abs=1e-4) and results["num_pictures"] == 2
        assert results["clip_score_paper"] == pytest.approx(expected / 40, abs=1e-6)
        assert results["num_cut_prompts"] == 0 and str(clip) in results["clip"]


def test_mistakes_of_clipscore_are_one_line(call, program, clip, tmp_path):
    folder = write(tmp_path / "pictures", {"a.png": noise(0)})
    (tmp_path / "rows.jsonl").write_text('{"file": "b.png", "prompt": "a red apple"}')
    assert "folder of pictures is missing" in call(program, "clipscore").refusal()
    assert "--clip is missing" in call(program, "clipscore", folder).refusal()
    told = call(program, "clipscore", folder, "--clip", clip).refusal()  # as a run that was broken off leaves it
    assert (
        f"{folder} holds neither GenEval's layout nor index.jsonl" in told and "name the prompts with --prompts" in told
    )
    (folder / "00000").mkdir()
    assert "00000/metadata.jsonl" in call(program, "clipscore", folder, "--clip", clip).refusal()
    told = call(program, "clipscore", folder, "--clip", tmp_path, "--prompts", tmp_path / "rows.jsonl").refusal()
    assert "--clip" in told and "cannot be loaded" in told
    for rows, message in (('{"file": 1, "prompt": "a"}', "must be text"),
                          ('{"file": "a.png", "prompt": "a"}\n' * 2, "row 2: a.png was named before")):  # fmt: skip
        (tmp_path / "wrong.jsonl").write_text(rows)
        told = call(program, "clipscore", folder, "--clip", clip, "--prompts", tmp_path / "wrong.jsonl").refusal()
        assert message in told
    ended = call(program, "clipscore", folder, "--clip", clip, "--prompts", tmp_path / "rows.jsonl", "--device", "cpu")
    assert ended.code == 2 and "no such picture" in ended.err.splitlines()[-1]
