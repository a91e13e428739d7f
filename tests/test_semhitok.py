"""The image tokenizer: ids, round trips, saving, and the promise that pixels never touch meaning."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict

from semhitok import SemHiTokConfig, SemHiTokImageProcessor, SemHiTokModel
from semhitok.configuration_semhitok import tiny_config
from semhitok.discriminator import AdversarialLoss
from semhitok.image_processing_semhitok import adm_center_crop, for_size, for_tokenizer, to_pixel_values, to_uint8
from semhitok.losses import ReconstructionLosses, coarse_loss, teacher_distance
from semhitok.stages import DecoderStage, PixelStage, SemanticStage, confuse
from semhitok.transformer import attention


@pytest.fixture(params=["conv", "vit"])
def model(request) -> SemHiTokModel:
    torch.manual_seed(0)
    model = SemHiTokModel(tiny_config(pixel_backbone=request.param))
    model.semantic.codebook.initialized.fill_(True)
    model.pixel.codebook.initialized.fill_(True)
    return model.eval()


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def test_ids_and_codes_are_a_bijection(model):
    ids = torch.arange(model.config.num_codes)
    codes = model.ids_to_codes(ids)
    assert torch.equal(model.codes_to_ids(codes), ids)
    assert codes[:, 0].max() == 9 and codes[:, 1].max() == 2
    assert len({tuple(c) for c in codes.tolist()}) == 30
    assert model.codes_to_ids(torch.tensor([4, 2])) == 4 * 3 + 2
    narrow = codes.to(torch.uint8)  # as shards have them
    assert torch.equal(model.codes_to_ids(narrow), ids)
    for wide, same in zip(model.code_vectors(codes), model.code_vectors(narrow), strict=True):
        assert torch.equal(wide, same)


def test_shapes_and_ranges(model, pictures):
    codes = model.encode(pictures)
    assert codes.shape == (6, 4, 2) and codes.dtype == torch.int64
    decoded = model.decode(codes)
    assert decoded.shape == pictures.shape and decoded.abs().max() <= 1
    semantic, pixel = model.code_vectors(codes)
    assert semantic.shape == pixel.shape == (6, 4, 4)
    torch.testing.assert_close(pixel.norm(dim=-1), torch.ones(6, 4))


def test_encoding_is_stable_alone_in_a_batch_and_again(model, pictures):
    codes = model.encode(pictures)
    assert torch.equal(codes, model.encode(pictures))
    assert torch.equal(codes[2:3], model.encode(pictures[2:3]))
    assert torch.equal(model.decode(codes), model.decode(model.ids_to_codes(model.codes_to_ids(codes))))


def test_code_vectors_are_fixed_points_of_their_codebooks(model):
    """Encode -> decode -> encode on the codes themselves: a code's own vector chooses that code again."""
    codes = model.ids_to_codes(torch.arange(model.config.num_codes))
    model.pixel.codebook.bend.data.normal_(generator=torch.Generator().manual_seed(0))
    semantic, pixel = model.code_vectors(codes)
    assert torch.equal((semantic @ model.semantic.codebook.codes.T).argmax(-1), codes[:, 0])
    assert torch.equal(model.pixel.codebook.search(pixel, codes[:, 0]), codes[:, 1])


def test_wrong_sizes_are_refused_with_both_numbers(model, pictures):
    with pytest.raises(ValueError, match="reads 16 x 16"):
        model.encode(pictures[..., :8, :8])
    with pytest.raises(ValueError, match="torch.uint8, not floats"):
        model.encode(pictures.byte())
    with pytest.raises(ValueError, match=r"\(B, 4, 2\)"):
        model.decode(torch.zeros(1, 5, 2, dtype=torch.long))
    for wrong in (pictures[0], pictures[:, :1], pictures[:0]):
        with pytest.raises(ValueError, match=r"pictures are \(B, 3, 16, 16\)"):
            model.encode(wrong)
    with pytest.raises(ValueError, match="patch_size 8 needs 3"):
        SemHiTokModel(tiny_config(conv_encoder_channels=(8, 8)))
    with pytest.raises(ValueError, match="vit, conv"):
        tiny_config(pixel_backbone="mlp")


def test_codes_that_this_tokenizer_has_not_are_refused(model, pictures):
    codes, config = model.encode(pictures), model.config
    with pytest.raises(ValueError, match=r"\(B, 4, 2\)"):
        model.decode(codes[0])
    with pytest.raises(ValueError, match="codes are torch.float32; they must be whole numbers"):
        model.decode(codes.float())
    for place, name, size in ((0, "semantic", config.num_semantic_codes), (1, "pixel", config.num_pixel_codes)):
        for value in (-1, size):
            wrong = codes.clone()
            wrong[-1, -1, place] = value
            with pytest.raises(ValueError, match=f"^{name} codes from .*{value}.*; .* has 0 to {size - 1}$"):
                model.decode(wrong)


def train_steps(stage: torch.nn.Module, pictures: torch.Tensor, steps: int, lr: float = 1e-2) -> list[float]:
    stage.train()
    optimizer = torch.optim.AdamW([p for p in stage.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        loss = stage(pictures)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_pixel_stage_leaves_the_semantic_branch_bit_identical(model, pictures):
    semantic, vision = state(model.semantic), state(model.vision_model)
    codes = model.encode(pictures)[..., 0]
    stage = PixelStage(model, ReconstructionLosses(perceptual=0.1, distance=teacher_distance(model)))
    stage.initialize_codebook([pictures])
    before = state(model.pixel)
    train_steps(stage, pictures, 3)
    assert same(semantic, state(model.semantic)) and same(vision, state(model.vision_model))
    assert torch.equal(codes, model.eval().encode(pictures)[..., 0])
    assert not same(before, state(model.pixel))


def test_the_semantic_stage_trains_only_the_semantic_branch(pictures):
    torch.manual_seed(0)
    model = SemHiTokModel(tiny_config())
    pixel, vision = state(model.pixel), state(model.vision_model)
    stage = SemanticStage(model)
    stage.initialize_codebook([pictures])
    train_steps(stage, pictures, 3)
    assert same(pixel, state(model.pixel)) and same(vision, state(model.vision_model))


def test_patchgan_joins_at_its_start_and_trains_beside_the_decoder(model, pictures):
    adversarial = AdversarialLoss(weight=0.1, adaptive=True, channels=8, num_halvings=1)
    stage = PixelStage(model, ReconstructionLosses(adversarial=adversarial))
    assert stage(pictures)["adversarial"] == 0
    adversarial.active = True
    semantic, discriminator = state(model.semantic), state(adversarial.discriminator)
    decoder = state(model.pixel.decoder)
    losses = stage(pictures)
    assert {"adversarial", "discriminator", "real_logit", "fake_logit", "psnr"} <= losses.keys()
    train_steps(stage, pictures, 2)
    assert not same(discriminator, state(adversarial.discriminator)) and not same(decoder, state(model.pixel.decoder))
    assert same(semantic, state(model.semantic))


def test_the_decoder_stage_keeps_every_code(model, pictures):
    codes = model.encode(pictures)
    losses = train_steps(DecoderStage(model, ReconstructionLosses()), pictures, 5)
    assert torch.equal(codes, model.eval().encode(pictures)) and losses[-1] < losses[0]


def test_a_wider_decoder_keeps_every_code_and_is_saved(model, pictures, tmp_path):
    codes = model.encode(pictures)
    before = sum(p.numel() for p in model.pixel.decoder.parameters())
    model.replace_decoder(decoder_hidden_size=32, decoder_heads=4)
    assert sum(p.numel() for p in model.pixel.decoder.parameters()) > 1.5 * before
    train_steps(DecoderStage(model, ReconstructionLosses()), pictures, 2)
    model.save_pretrained(tmp_path)
    loaded = SemHiTokModel.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded.encode(pictures), codes) and torch.equal(loaded.decode(codes), model.eval().decode(codes))


def test_new_sub_codebooks_leave_the_rest_as_it_was(model, pictures, tmp_path):
    semantic, encoder, decoder = state(model.semantic), state(model.pixel.encoder), state(model.pixel.decoder)
    model.replace_pixel_codebook(5)
    stage = PixelStage(model, ReconstructionLosses())
    assert float(stage(pictures)["commit"]) == 0  # unquantised until there are codes
    stage.initialize_codebook([pictures])
    assert model.pixel.codebook.codes().shape[1] == 5 and model.encode(pictures)[..., 1].max() < 5
    assert same(semantic, state(model.semantic))
    assert same(encoder, state(model.pixel.encoder)) and same(decoder, state(model.pixel.decoder))
    model.save_pretrained(tmp_path)
    assert SemHiTokModel.from_pretrained(tmp_path).config.num_pixel_codes == 5


def test_the_pixel_stage_overfits_one_batch(model, pictures):
    stage = PixelStage(model, ReconstructionLosses())
    stage.initialize_codebook([pictures])
    losses = train_steps(stage, pictures, 150)
    assert losses[-1] < 0.6 * losses[0]


def test_save_and_load_through_the_auto_class_is_bit_equal(model, pictures, tmp_path):
    model.save_pretrained(tmp_path)
    for_size(16).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, SemHiTokModel) and same(state(model), state(loaded))
    assert torch.equal(model.encode(pictures), loaded.encode(pictures))
    assert isinstance(loaded.config, SemHiTokConfig) and loaded.config.vision_config.patch_size == 8
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), SemHiTokImageProcessor)


def test_a_stem_of_convolutions_survives_saving(pictures, tmp_path):
    config = tiny_config()
    config.vision_config.stem_channels = [8, 8, 8]
    model = SemHiTokModel(config).eval()
    model.save_pretrained(tmp_path)
    assert torch.equal(model.encode(pictures), SemHiTokModel.from_pretrained(tmp_path).eval().encode(pictures))


def test_pictures_to_values_and_back():
    pictures = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).view(2, 4, 4, 3).numpy()
    values = to_pixel_values(pictures)
    assert values.shape == (2, 3, 4, 4) and values.min() == -1
    assert (to_uint8(values) == pictures).all()


def test_confusion_exchanges_whole_pictures_for_near_codes():
    codebook = torch.nn.functional.normalize(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    semantic = torch.randint(20, (50, 6), generator=torch.Generator().manual_seed(1))
    assert torch.equal(confuse(semantic, codebook, 0.0), semantic)
    assert torch.equal(confuse(semantic * 0, codebook[:1], 0.5), semantic * 0)  # no other code to exchange it for
    torch.manual_seed(0)
    exchanged = confuse(semantic, codebook, 0.5)
    moved = (exchanged != semantic).any(-1)
    assert 10 < moved.sum() < 40
    ranks = (codebook @ codebook.T).argsort(-1, descending=True).argsort(-1)  # 0: the code itself
    for old, new in zip(semantic[moved], exchanged[moved], strict=True):
        assert len(set(ranks[old, new].tolist())) == 1 and 1 <= ranks[old[0], new[0]] <= 7


def test_the_semantic_branch_gives_the_codes_that_the_pixel_stage_confuses(model, pictures):
    assert torch.equal(model.semantic_codes(pictures), model.encode(pictures)[..., 0])
    stage = PixelStage(model, ReconstructionLosses(), confused_share=0.5, foreign_share=0.5)
    assert torch.isfinite(stage(pictures)["loss"])


@pytest.mark.parametrize("size", [(16, 16), (40, 24), (17, 90), (16, 33), (8, 12), (300, 33)])
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_the_image_processor_crops_as_training_does(size, resample):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
    pixel_values = for_size(16, resample)(picture, return_tensors="pt")["pixel_values"]
    expected = to_pixel_values(np.asarray(adm_center_crop(picture, 16, resample))[None])
    torch.testing.assert_close(pixel_values, expected, rtol=0, atol=1e-6)


def test_pictures_of_the_right_size_reach_the_model_as_they_always_did():
    """Codes of scenes must not change: bit for bit what transformers' own resize and crop give."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    processor = for_size(16)
    images = [Image.fromarray(p) for p in pictures]
    before = []
    for picture in pictures.transpose(0, 3, 1, 2):
        x = PilBackend.resize(processor, picture, SizeDict(shortest_edge=16), Image.Resampling.BICUBIC)
        x = processor.rescale(processor.center_crop(x, SizeDict(height=16, width=16)), 1 / 255)
        before.append(processor.normalize(x, [0.5] * 3, [0.5] * 3))
    now = processor(images, return_tensors="np")["pixel_values"]
    assert now.dtype == np.float32 and np.array_equal(now, np.stack(before))


def test_a_wide_picture_is_padded_or_cut(tmp_path):
    wide = Image.new("RGB", (32, 16), (255, 0, 0))
    cut = for_tokenizer(tiny_config())
    padded = for_tokenizer(tiny_config(), pad_to_square=True)
    assert torch.equal(cut(wide, return_tensors="pt")["pixel_values"][0, 0], torch.ones(16, 16))
    padded.save_pretrained(tmp_path)
    seen = SemHiTokImageProcessor.from_pretrained(tmp_path)(wide, return_tensors="pt")["pixel_values"][0]
    assert seen.shape == (3, 16, 16) and torch.equal(seen[0, 4:12], torch.ones(8, 16))
    assert seen[:, :3].abs().max() < 0.02 and seen[:, 13:].abs().max() < 0.02  # grey


def test_a_picture_on_black_is_scaled_once_and_then_filled_up(tmp_path):
    processor = for_size(16)
    processor.fit_on_black = True
    processor.save_pretrained(tmp_path)
    processor = SemHiTokImageProcessor.from_pretrained(tmp_path)
    seen = processor(Image.new("RGB", (5, 8), "white"), return_tensors="pt")["pixel_values"][0]
    expected = -torch.ones(3, 16, 16)
    expected[:, :, 3:13] = 1  # 10 of 16 columns, 3 black ones at the left and at the right
    assert torch.equal(seen, expected)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8))
    seen = processor(noise, return_tensors="pt")["pixel_values"][0]
    scaled = to_pixel_values(np.asarray(noise.resize((16, 7), Image.Resampling.BICUBIC))[None])[0]
    torch.testing.assert_close(seen[:, 4:11], scaled, rtol=0, atol=1e-6)
    assert (seen[:, :4] == -1).all() and (seen[:, 11:] == -1).all()


def test_a_wrong_colour_weighs_in_the_coarse_loss_and_a_fine_pattern_does_not():
    true = torch.zeros(2, 3, 16, 16)
    shifted = true + 0.5
    board = torch.where((torch.arange(16)[:, None] + torch.arange(16)) % 2 == 0, 0.5, -0.5).expand_as(true)
    assert coarse_loss(shifted, true).item() == pytest.approx(0.5)
    assert coarse_loss(board, true).item() == 0.0
    corner = true.clone()
    corner[..., :2, :2] = 0.6  # in one of 64, 16 and 4 averages: 0.6, 0.15 and 0.0375
    expected = (0.6 / 64 + 0.15 / 16 + 0.0375 / 4) / 3
    assert coarse_loss(corner, true).item() == pytest.approx(expected)
    losses = ReconstructionLosses(l2=0, edges=0, coarse=2)(shifted, true, torch.nn.Parameter(torch.ones(1)))
    assert losses["loss"].item() == pytest.approx(0.5 + 2 * 0.5)
    assert "coarse" not in ReconstructionLosses()(shifted, true, torch.nn.Parameter(torch.ones(1)))


def test_attention_of_an_empty_batch_is_empty_and_has_a_gradient():
    empty = torch.zeros(0, 2, 3, 4, requires_grad=True)
    mixed = attention(empty, empty, empty)
    mixed.sum().backward()
    assert mixed.shape == empty.shape and empty.grad is not None
