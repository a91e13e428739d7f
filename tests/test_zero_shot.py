"""eval/zero_shot.py: classification through SigLIP's text tower, by its features and by those that codes give back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_program
from PIL import Image
from torch.nn import functional as F
from transformers import SiglipConfig, SiglipModel

from semhitok.configuration_semhitok import tiny_config
from semhitok.teacher import load_teacher, tokenizer_over
from unimllm.scenes.text import train_text_tokenizer

CLASSES = {"n01": "red apple", "n02": "blue car"}
COLOURS = {"n01": (200, 20, 20), "n02": (20, 40, 200)}


@pytest.fixture(scope="module")
def program():
    return load_program("eval/zero_shot.py")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A whole SigLIP, a tokenizer over it, and pictures of two classes, one of them broken."""
    place = tmp_path_factory.mktemp("zero_shot")
    texts = train_text_tokenizer(["this is a photo of a red apple. blue car"], vocab_size=300)
    vision = tiny_config().vision_config.to_dict()
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "vocab_size": len(texts), "max_position_embeddings": 16, "projection_size": 16}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        siglip = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        siglip.save_pretrained(place / "siglip"), texts.save_pretrained(place / "siglip")
        torch.nn.init.normal_(siglip.vision_model.post_layernorm.weight)
        siglip.save_pretrained(place / "another"), texts.save_pretrained(place / "another")
        model = tokenizer_over(load_teacher(place / "siglip"), tiny_config())
    model.semantic.codebook.initialized.fill_(True)
    model.save_pretrained(place / "tokenizer")
    rng = np.random.default_rng(0)
    for folder, colour in COLOURS.items():
        (place / "pictures" / folder).mkdir(parents=True)
        for i in range(4):
            noisy = np.clip(np.array(colour) + rng.integers(-15, 15, (20, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(place / "pictures" / folder / f"{i}.png")
    (place / "pictures" / "n02" / "broken.png").write_bytes(b"no picture")
    (place / "names.json").write_text(json.dumps(CLASSES))
    return place


def words(place: Path, *more, teacher: str = "siglip") -> list:
    return ["--model", place / "tokenizer", "--teacher", place / teacher, "--data", place / "pictures", *more]


def test_the_program_tells_both_shares_and_what_was_skipped(program, call, place):
    ended = call(program, *words(place, "--classes", place / "names.json", "--json", place / "results.json"))
    assert ended.code == 0 and "SigLIP's features, top 1" in ended.out and "n02/broken.png" in ended.err
    results = json.loads((place / "results.json").read_text())
    assert results["num_pictures"] == 8 and results["num_classes"] == 2 and results["limited"]
    assert results["cost_top1"] == pytest.approx(results["continuous_top1"] - results["quantised_top1"])
    assert results["continuous_top5"] == 1.0  # of two classes


def test_pictures_are_what_their_pooled_features_are_nearest_to(program, call, place, monkeypatch):
    """Texts that lie where a class's pictures do are found; the features are SigLIP's own."""
    tokenizer, _ = program.load_tokenizer(str(place / "tokenizer"), "cpu")
    siglip, _ = program.load_siglip(str(place / "siglip"), tokenizer)
    squares = [np.asarray(Image.new("RGB", (16, 16), colour)) for colour in COLOURS.values()]
    found = program.pooled_features(tokenizer, siglip, np.stack(squares))["continuous"]
    pixel_values = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        expected = siglip.vision_model(pixel_values).pooler_output
    torch.testing.assert_close(found, F.normalize(expected, dim=-1))
    monkeypatch.setattr(program, "text_embeddings", lambda *args: found)
    assert call(program, *words(place, "--json", place / "right.json")).code == 0
    assert json.loads((place / "right.json").read_text())["continuous_top1"] == 1.0


def test_a_class_is_the_mean_of_its_texts(program, place):
    tokenizer, _ = program.load_tokenizer(str(place / "tokenizer"), "cpu")
    siglip, texts = program.load_siglip(str(place / "siglip"), tokenizer)
    both = program.text_embeddings(siglip, texts, ["red apple", "car"], ["{}", "a photo of {}."])
    each = [program.text_embeddings(siglip, texts, ["car"], [t])[0] for t in ("{}", "a photo of {}.")]
    torch.testing.assert_close(both[1], F.normalize(sum(each), dim=0))


@pytest.mark.parametrize(
    ("teacher", "more", "message"),
    [
        ("another", [], "is not the SigLIP of this tokenizer"),
        ("tokenizer", [], "name a whole SigLIP, with its text tower"),
        ("nowhere", [], "--teacher "),
        ("siglip", ["--template", "a photo"], "it needs one {} for the name"),
        ("siglip", ["--data", "siglip"], "holds 0 folders; it needs one for each class"),
        ("siglip", ["--classes", "some.json"], "names no 'n02', which is a folder of"),
        ("siglip", ["--classes", "siglip/model.safetensors"], "is no text in UTF-8"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(program, call, place, teacher, more, message):
    (place / "some.json").write_text('{"n01": "apple"}')
    more = [place / word if word.startswith("s") else word for word in more]
    assert message in call(program, *words(place, *more, teacher=teacher)).refusal()
