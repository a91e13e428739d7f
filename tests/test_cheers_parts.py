"""The boxes of CHEERS one by one, by hand: autoencoder, vision tokenizer, hybrid mask, flow head, configuration."""

import math

import pytest
import torch
from torch import nn
from transformers import Llama4TextConfig, SiglipVisionConfig

from unimllm.cheers.autoencoder import CheersVae, LatentStatistics
from unimllm.cheers.configuration_cheers import CheersConfig, CheersVaeConfig, released_config, tiny_config
from unimllm.cheers.flow_head import DetailGate, DiTBlock, FlowHead, rotary, sinusoids
from unimllm.cheers.hybrid_mask import hybrid_mask, picture_numbers
from unimllm.cheers.vision_tokenizer import VisionTokenizer


@pytest.fixture
def config() -> CheersConfig:
    torch.manual_seed(0)
    return tiny_config()


# ---- autoencoder ----------------------------------------------------------------------------------------------------


def test_latent_statistics_are_frozen_in_training_too_and_invert():
    statistics = LatentStatistics(2).train()
    statistics.running_mean.copy_(torch.tensor([1.0, -2.0]))
    statistics.running_var.copy_(torch.tensor([4.0, 0.25]))
    latents = torch.tensor([5.0, -1.0]).view(1, 2, 1, 1)
    expected = torch.tensor([4 / math.sqrt(4.0001), 1 / math.sqrt(0.2501)])
    torch.testing.assert_close(statistics(latents).flatten(), expected)
    torch.testing.assert_close(statistics.invert(statistics(latents)), latents)
    assert statistics.running_mean.tolist() == [1.0, -2.0] and int(statistics.num_batches_tracked) == 0


class Fixed(nn.Module):
    """Returns what it was given at the start, and keeps what it is asked."""

    def __init__(self, answer: torch.Tensor):
        super().__init__()
        self.answer = nn.Parameter(answer)

    def forward(self, asked: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        self.asked = asked
        return self.answer


def test_latents_are_the_posterior_mean_with_channel_major_squares(config):
    vae = CheersVae(config.vae_config)
    mean = torch.arange(4 * 4.0).view(1, 4, 2, 2)  # 4 latent channels of 2 x 2 latent pixels
    vae.encoder = Fixed(torch.cat([mean, torch.full_like(mean, 99.0)], 1))
    z = vae.encode(torch.zeros(1, 3, 8, 8))
    assert z.shape == (1, 16, 1, 1)  # channel c, row p, column q lies at 4 c + 2 p + q
    torch.testing.assert_close(z.flatten() * math.sqrt(1.0001), torch.arange(16.0))
    vae.decoder = Fixed(torch.zeros(1, 3, 8, 8))
    vae.decode(z)
    torch.testing.assert_close(vae.decoder.asked, mean)


def test_the_autoencoder_reads_and_writes_its_own_range_of_pixels(config):
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    for from_zero, seen, drawn in ((False, pixels, 0.25), (True, (pixels + 1) / 2, -0.5)):
        vae = CheersVae(tiny_config().vae_config)
        vae.config.pixels_from_zero = from_zero
        vae.encoder, vae.decoder = Fixed(torch.zeros(1, 8, 8, 8)), Fixed(torch.full((1, 3, 16, 16), 0.25))
        torch.testing.assert_close((vae.encode(pixels), vae.encoder.asked)[1], seen)
        torch.testing.assert_close(vae.decode(torch.zeros(1, 16, 4, 4)), torch.full((1, 3, 16, 16), drawn))


def test_shapes_of_a_real_autoencoder_and_its_gradients(config):
    vae = CheersVae(config.vae_config)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    z = vae.encode(pixels)
    assert z.shape == (2, 16, 4, 4) and vae.moments(pixels).shape == (2, 8, 8, 8)
    vae.decode(z).square().sum().backward()
    assert all(p.grad is not None for p in vae.parameters())


# ---- vision tokenizer -----------------------------------------------------------------------------------------------


def test_a_decoder_that_starts_as_the_vaes_decodes_alike(config):
    tokenizer = VisionTokenizer(config)
    tokenizer.vae_model.bn.running_mean.normal_()
    tokenizer.start_decoder()
    z = torch.randn(1, 16, 4, 4)
    torch.testing.assert_close(tokenizer.vae_decoder_projector(z).clamp(-1, 1), tokenizer.decode(z))
    assert not any(p.requires_grad for p in tokenizer.vae_model.parameters())
    assert all(p.requires_grad for p in tokenizer.vae_decoder_projector.parameters())


def test_positions_are_siglips_features_of_the_decoded_latent_and_details_its_patch_embedding(config):
    tokenizer = VisionTokenizer(config)
    z = torch.randn(2, 16, 4, 4)
    positions, details = tokenizer(z)
    pixels = tokenizer.vae_decoder_projector(z)
    siglip = tokenizer.vision_representation
    torch.testing.assert_close(positions, tokenizer.und_projector(siglip(pixels).last_hidden_state))
    torch.testing.assert_close(details, siglip.embeddings(pixels))
    assert positions.shape == (2, 4, 16) and details.shape == (2, 16, 24)


def test_without_the_decoder_siglip_reads_a_linear_map_of_each_latent_position():
    tokenizer = VisionTokenizer(tiny_config(decode_before_siglip=False))
    assert not any("decoder_projector" in name for name in tokenizer.state_dict())
    z = torch.randn(2, 16, 4, 4)
    positions, details = tokenizer(z)
    embeddings = tokenizer.vision_representation.embeddings
    linear = torch.nn.functional.linear(
        z.flatten(2).mT, embeddings.patch_embedding.weight[..., 0, 0], embeddings.patch_embedding.bias
    )
    torch.testing.assert_close(details, linear + embeddings.position_embedding.weight)
    assert positions.shape == (2, 4, 16) and details.shape == (2, 16, 24)


def test_linear_details_are_a_patch_embedding_of_their_own():
    tokenizer = VisionTokenizer(tiny_config(linear_details=True))
    z = torch.randn(2, 16, 4, 4)
    positions, details = tokenizer(z)
    pixels, embedding = tokenizer.vae_decoder_projector(z), tokenizer.detail_embedding
    patches = torch.nn.functional.unfold(pixels, 4, stride=4).mT
    linear = torch.nn.functional.linear(patches, embedding.weight.flatten(1), embedding.bias)
    where = tokenizer.vision_representation.embeddings.position_embedding.weight
    torch.testing.assert_close(details, linear + where)
    assert positions.shape == (2, 4, 16) and details.shape == (2, 16, 24)


def test_space_to_depth_puts_the_place_before_the_channel(config):
    compressor = VisionTokenizer(config).und_projector
    compressor.layernorm, compressor.mlp = nn.Identity(), nn.Identity()
    x = torch.stack([torch.arange(16.0), torch.arange(16.0) + 100], -1)[None]  # a 4 x 4 grid of two channels
    squares = compressor(x)[0]
    assert squares[0].tolist() == [0, 100, 1, 101, 4, 104, 5, 105]
    assert squares[3].tolist() == [10, 110, 11, 111, 14, 114, 15, 115]


def test_pictures_of_another_size_are_refused(config):
    with pytest.raises(ValueError, match="resize to 16 x 16"):
        VisionTokenizer(config).encode(torch.zeros(1, 3, 8, 8))


# ---- hybrid mask ----------------------------------------------------------------------------------------------------

TEXT_IMAGE_TEXT_IMAGE = torch.tensor([[0, 1, 1, 0, 1, 1]]).bool()
BY_HAND = torch.tensor(
    [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1],
    ]
).bool()


def mask_of(config: CheersConfig, numbers: torch.Tensor, **kwargs) -> torch.Tensor:
    config.text_config._attn_implementation = "sdpa"
    return hybrid_mask(config.text_config, torch.zeros(*numbers.shape, 16), numbers, **kwargs)


def test_text_is_causal_and_each_picture_sees_all_of_itself(config):
    numbers = picture_numbers(TEXT_IMAGE_TEXT_IMAGE)
    assert numbers.tolist() == [[-1, 0, 0, -1, 1, 1]]
    mask = mask_of(config, numbers)
    assert mask.shape == (1, 1, 6, 6) and mask.dtype == torch.bool
    assert torch.equal(mask[0, 0], BY_HAND)


def test_nobody_looks_at_padding(config):
    padded = torch.nn.functional.pad(TEXT_IMAGE_TEXT_IMAGE, (2, 0))
    attention_mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    mask = mask_of(config, picture_numbers(padded), attention_mask=attention_mask)
    assert torch.equal(mask[0, 0, 2:, 2:], BY_HAND) and not mask[0, 0, 2:, :2].any()


def test_packed_samples_do_not_see_one_another(config):
    numbers = picture_numbers(TEXT_IMAGE_TEXT_IMAGE.repeat(1, 2))
    mask = mask_of(config, numbers, position_ids=torch.arange(6).repeat(2)[None])
    assert torch.equal(mask[0, 0], torch.block_diag(BY_HAND, BY_HAND).bool())


def test_layers_with_a_window_see_that_far_back_and_all_of_a_picture(config):
    """The same of rows with branches, which bring their own mask; where layers differ there is a mask for each kind."""
    text, numbers = config.text_config, picture_numbers(TEXT_IMAGE_TEXT_IMAGE)
    text.sliding_window, text.layer_types = 2, ["sliding_attention", "full_attention"]
    near = torch.ones(6, 6).triu(-1).bool()  # a position and the one before
    near[1:3, 1:3] = near[4:, 4:] = True
    mask = mask_of(config, numbers)
    assert torch.equal(mask["full_attention"][0, 0], BY_HAND)
    assert torch.equal(mask["sliding_attention"][0, 0], BY_HAND & near)
    text.layer_types = ["sliding_attention"] * 2
    assert torch.equal(mask_of(config, numbers)[0, 0], BY_HAND & near)
    branches = mask_of(config, numbers, attention_mask=torch.ones(1, 1, 6, 6).tril().bool())
    assert torch.equal(branches[0, 0], BY_HAND & near)
    asked_at = torch.tensor([[0, 1, 2, 3, 2, 3]])  # the second picture is a branch behind position 1
    branches = mask_of(config, numbers, attention_mask=torch.ones(1, 1, 6, 6).tril().bool(), position_ids=asked_at)
    assert branches[0, 0, 4].tolist() == [False, True, True, True, True, True]


def test_a_leading_picture_is_causal_where_the_quirk_asks_for_it():
    is_picture = torch.tensor([[0, 1, 1, 0, 1, 1], [1, 1, 0, 0, 1, 1]]).bool()
    is_text = ~is_picture & torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]).bool()  # row 0 begins with padding
    assert picture_numbers(is_picture, is_text).tolist() == [[-1, -1, -1, -1, 1, 1], [-1, -1, -1, -1, 1, 1]]


# ---- flow head ------------------------------------------------------------------------------------------------------


def test_sinusoids_of_raw_t_cosines_first():
    assert sinusoids(torch.zeros(1), 6).tolist() == [[1, 1, 1, 0, 0, 0]]
    angles = [0.5, 0.5 * 10000 ** (-1 / 2)]
    expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    torch.testing.assert_close(sinusoids(torch.tensor([0.5]), 4)[0], torch.tensor(expected))


def test_rotary_positions_count_through_or_begin_again():
    cos, sin = rotary(4, 4, False, torch.zeros(1))
    assert cos.shape == (1, 4, 4)
    torch.testing.assert_close(sin[0, :, 0], torch.arange(4.0).sin())
    torch.testing.assert_close(sin[0, :, 1], (torch.arange(4.0) / 100).sin())
    torch.testing.assert_close(cos[0, :, 2], torch.arange(4.0).cos())  # both halves turn alike
    _, repeated = rotary(4, 4, True, torch.zeros(1))
    torch.testing.assert_close(repeated[0, :, 0], torch.tensor([0.0, 1.0, 0.0, 1.0]).sin())
    exact, rounded = (
        rotary(200, 4, False, torch.zeros(1, dtype=dtype), is_rounded=True)[1]
        for dtype in (torch.float, torch.bfloat16)
    )
    torch.testing.assert_close(exact[0, :, 1], (torch.arange(200.0) * 0.01).sin())
    torch.testing.assert_close(rounded[0, :, 1], (torch.arange(200.0) * 164 / 2**14).sin().bfloat16())  # 0.01 to 8 bits


def test_a_dit_block_begins_as_nothing_and_then_does_what_the_formula_says():
    torch.manual_seed(0)
    block = DiTBlock(8, 2, 1)
    x, time, positions = torch.randn(2, 3, 8), torch.randn(2, 1, 8), rotary(3, 4, False, torch.zeros(1))
    assert torch.equal(block(x, time, positions), x)
    nn.init.normal_(block.adaLN_modulation[-1].weight)
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = block.adaLN_modulation(time).chunk(6, -1)
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    y = x + gate * block.attn(normed * (1 + scale) + shift, positions)
    normed = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = y + mlp_gate * block.mlp(normed * (1 + mlp_scale) + mlp_shift)
    torch.testing.assert_close(block(x, time, positions), expected)


def test_pixel_shuffle_puts_the_place_before_the_channel(config):
    head = FlowHead(config)
    head.gen_projector = Fixed(torch.arange(4 * 4 * 24.0).view(1, 4, 96))  # 2 x 2 positions of 2 x 2 x 24
    shuffled = head.semantics(torch.zeros(1, 4, 16), torch.zeros(1, 1, 16))[0]  # a 4 x 4 grid, row by row
    assert shuffled.shape == (16, 24)
    assert shuffled[:, 0].tolist() == [
        0, 24, 96, 120, 48, 72, 144, 168, 192, 216, 288, 312, 240, 264, 336, 360,
    ]  # fmt: skip
    assert shuffled[1].tolist() == list(range(24, 48))


def test_a_gate_at_zero_injects_nothing_and_one_number_per_position_opens_it():
    gate = DetailGate(6)
    semantics, details = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    assert torch.equal(gate(semantics, details), gate.layer_norm(semantics))
    assert torch.equal(gate(semantics, None), gate.layer_norm(semantics))
    nn.init.constant_(gate.gate[-1].bias, -3.0)  # no sigmoid: it may well be negative
    torch.testing.assert_close(gate(semantics, details), gate.layer_norm(semantics - 3 * details))
    nn.init.normal_(gate.gate[-1].weight)
    assert gate.gate(semantics).shape == (2, 3, 1)


def test_velocities_depend_on_t_and_on_details_as_the_config_says(config):
    hidden, details, t = torch.randn(2, 4, 16), torch.randn(2, 16, 24), torch.tensor([0.1, 0.9])
    head = FlowHead(config)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    out, first = head(hidden, details, t)
    assert out.shape == (2, 16, 4, 4) and first.shape == (2, 16, 24)
    assert not torch.allclose(out, head(hidden, details, 1 - t)[0])
    assert not torch.allclose(out, head(hidden, -details, t)[0])
    blind = FlowHead(tiny_config(inject_details=False))
    blind.load_state_dict(head.state_dict())
    torch.testing.assert_close(blind(hidden, details, t), blind(hidden, -details, t))
    repeated = FlowHead(tiny_config(repeat_detail_positions=True))
    repeated.load_state_dict(head.state_dict())
    assert not torch.allclose(out, repeated(hidden, details, t)[0])


# ---- configuration --------------------------------------------------------------------------------------------------


def test_sizes_of_the_released_model_and_of_none():
    for config, quirks in ((CheersConfig(), False), (released_config(), True)):
        assert (config.latent_size, config.grid_size, config.num_positions) == (32, 16, 256)
        assert config.vae_config.patched_channels == 128
        assert config.flow_heads == (12, 16, 2) and config.num_flow_key_value_heads is None
        config.settle()
        assert config.num_flow_key_value_heads == 2
        assert config.extra_euler_step is config.repeat_detail_positions is config.leading_picture_is_causal is quirks
        assert config.round_rotary_frequencies is quirks
        assert config.vae_config.pixels_from_zero is config.flow_loss_on_read_pictures is quirks


def vision(**changes) -> SiglipVisionConfig:
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return SiglipVisionConfig(**sizes | {"patch_size": 4} | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vae_config": CheersVaeConfig(channels=8, channel_multipliers=(1, 2, 2), num_groups=4)}, "covers 8 pixels"),
        ({"compression": 3}, "must be a multiple of"),
        ({"num_detail_heads": 5}, "num_detail_heads is 5"),
        ({"num_flow_key_value_heads": 4}, r"num_flow_key_value_heads is 4, but num_semantic_heads \(2\) must be a"),
        ({"num_flow_key_value_heads": 0}, "num_flow_key_value_heads is 0; it must be a whole number of 1 or more"),
        ({"num_semantic_heads": "2"}, "num_semantic_heads is '2'; it must be a whole number of 1 or more"),
        ({"compression": 0}, "compression is 0; it must be a whole number of 1 or more"),
        ({"time_channels": 15}, "time_channels is 15; it must be even"),
        ({"num_semantic_layers": -1}, "num_semantic_layers is -1; it must be a whole number of 0 or more"),
        ({"vision_config": vision(image_size=0)}, "image_size of vision_config is 0; it must be a whole"),
        ({"vision_config": vision(image_size=20)}, r"image_size 20 must be a multiple of patch_size \* compression"),
        ({"text_config": Llama4TextConfig(num_hidden_layers=2)}, "layers of chunked_attention, in which"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        tiny_config(**changes)


def test_group_norms_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="num_groups"):
        CheersVaeConfig(channels=10, num_groups=4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 60}, "image_size 60 must be a multiple of 8"),
        ({"channel_multipliers": []}, "channel_multipliers are"),
        ({"channel_multipliers": [1, 0]}, "channel_multipliers are"),
        ({"num_groups": 5}, "multiples of num_groups"),
        *(({name: 0}, f"{name} is 0; it must be") for name in ("channels", "num_blocks", "latent_patch_size")),
    ],
)
def test_an_autoencoder_asks_again_for_sizes_that_were_changed(changes, words):
    config = CheersVaeConfig(8, (1, 2, 2), 1, 4, 2, num_groups=4, image_size=64)
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=words):
        CheersVae(config)
