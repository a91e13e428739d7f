"""The tokenizers with one flat codebook, and joint training: hand-made numbers, gradients, round trips, a model."""

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from semhitok import SemHiTokModel
from semhitok.auto import build_tokenizer
from semhitok.checkpoints import load_tokenizer
from semhitok.configuration_semhitok import tiny_config
from semhitok.fingerprint import fingerprint
from semhitok.image_processing_semhitok import for_tokenizer
from semhitok.losses import ReconstructionLosses
from semhitok.quantization import PixelCodebook, normalize
from semhitok.shared_index import SharedIndexConfig, SharedIndexModel, SharedVectorConfig
from semhitok.stages import JointStage
from unimllm import UniMLLMForConditionalGeneration
from unimllm.data.code_cache import cache_fingerprint
from unimllm.discrete.configuration_unimllm import UniMLLMConfig
from unimllm.discrete.configuration_unimllm import tiny_config as tiny_language_model

SINGLE = (SharedIndexConfig, SharedVectorConfig)


def tiny(config_class, **changes):
    values = tiny_config(num_semantic_codes=30, num_pixel_codes=1).to_dict()
    values.pop("model_type")
    return config_class(**(values | changes))


def build(config) -> SemHiTokModel:
    torch.manual_seed(0)
    model = build_tokenizer(config)
    for module in model.modules():
        if hasattr(module, "initialized"):
            module.initialized.fill_(True)
    return model.eval()


@pytest.fixture(params=[*SINGLE, "hierarchy"])
def model(request) -> SemHiTokModel:
    """Each of the three that can be trained jointly."""
    return build(tiny_config() if request.param == "hierarchy" else tiny(request.param))


@pytest.fixture(params=SINGLE)
def single(request) -> SemHiTokModel:
    """Each of the two with one codebook."""
    return build(tiny(request.param))


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def task_over(model: SemHiTokModel) -> JointStage:
    return JointStage(model, ReconstructionLosses()).train()


# ---- the search ----------------------------------------------------------------------------------------------------


def test_the_shared_index_by_hand():
    """Two codes: the first has the right meaning, the second the right pixels; the weight decides."""
    semantic = torch.tensor([[1.0, 0, 0, 0], [0.6, 0.8, 0, 0]])  # squared distances to e1: 0 and 0.8
    pixel = torch.tensor([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]])  # to e1: 4 and 0
    e1 = torch.tensor([[1.0, 0, 0, 0]])
    for weight, nearest in ((0.5, 1), (0.9, 0), (0.8, 1)):  # 4 (1 - w) against 0.8 w: equal at w = 5/6
        model = build(tiny(SharedIndexConfig, semantic_weight=weight))
        codes = model.weigh(semantic, pixel)
        vector = model.weigh(e1, e1)
        distances = (codes - vector).square().sum(-1)
        torch.testing.assert_close(distances, torch.tensor([4 * (1 - weight), 0.8 * weight]))
        torch.testing.assert_close(codes.norm(dim=-1), torch.ones(2))
        assert distances.argmin() == nearest == (vector @ codes.T).argmax()


def test_the_index_is_the_nearest_by_weighted_distance(pictures):
    model = build(tiny(SharedIndexConfig, semantic_weight=0.3))
    codes = model.encode(pictures)
    assert codes.shape == (6, 4, 2) and (codes[..., 1] == 0).all() and len(codes[..., 0].unique()) > 1
    semantic = model.semantic.encode(model.vision_features(pictures))
    pixel = model.pixel.encode(pictures)
    all_semantic, all_pixel = (table.reshape(30, 4) for table in model.code_tables())
    distance = 0.3 * torch.cdist(semantic, all_semantic.expand(6, -1, -1)).square()
    distance = distance + 0.7 * torch.cdist(pixel, all_pixel.expand(6, -1, -1)).square()
    assert torch.equal(distance.argmin(-1), codes[..., 0])


def test_halves_are_of_unit_length_and_whole_again(single):
    semantic, pixel = single.code_vectors(single.ids_to_codes(torch.arange(30)))
    tables = single.code_tables()
    assert torch.equal(tables[0], semantic) and torch.equal(tables[1], pixel.unsqueeze(1))
    if isinstance(single, SharedIndexModel):
        for half in (semantic, pixel):
            torch.testing.assert_close(half.norm(dim=-1), torch.ones(30))
        torch.testing.assert_close(single.weigh(semantic, pixel), single.codebook.codes)
        twice = torch.cat([semantic * 2, pixel * 0.1], -1)
        torch.testing.assert_close(single.settle(twice), single.codebook.codes)
    else:
        assert torch.equal(torch.cat([semantic, pixel], -1), single.codebook.codes)


def test_each_decoder_reads_its_own_part(pictures):
    """TokenFlow's way: the other half changes nothing. VILA-U's: both decoders hang on all of the vector."""
    for config_class, reads_all in zip(SINGLE, (False, True), strict=True):
        model = build(tiny(config_class))
        quantized = model.quantize(model.vision_features(pictures), pictures)
        assert (quantized.for_features.shape[-1] == 8) == reads_all
        drawn = model.decode_vectors(quantized.semantic, quantized.pixel)
        other = model.decode_vectors(-quantized.semantic, quantized.pixel)
        assert torch.equal(drawn, other) != reads_all
        torch.testing.assert_close(drawn.clamp(-1, 1), model.decode(quantized.codes), rtol=0, atol=1e-5)


def test_one_sub_codebook_is_searched_without_a_copy_for_every_vector():
    codebook = PixelCodebook(1, 50, 4)
    vectors = normalize(torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0)))
    index = codebook.search(vectors, torch.zeros(3, 7, dtype=torch.long))
    assert torch.equal(index, torch.cdist(vectors, codebook.codes().detach().expand(3, -1, -1)).argmin(-1))


def test_what_makes_no_sense_is_refused():
    for config_class in SINGLE:
        with pytest.raises(ValueError, match="num_pixel_codes is 3; a tokenizer with one index has 1"):
            config_class(num_pixel_codes=3)
    with pytest.raises(ValueError, match="semantic_weight is 1"):
        SharedIndexConfig(semantic_weight=1)
    config = tiny(SharedIndexConfig)
    config.semantic_weight = 2.0  # as a command line does
    with pytest.raises(ValueError, match="semantic_weight is 2"):
        build_tokenizer(config)


# ---- joint training ------------------------------------------------------------------------------------------------


def test_the_gradient_passes_the_codes_straight_through(model, pictures):
    """Of the pictures' loss alone: what a code vector gets goes to the encoder's vector, number by number."""
    passed = []

    def keep(codebook, vectors, outputs):
        for tensor in (vectors[0], outputs[0]):
            tensor.retain_grad()
        passed.append((vectors[0], outputs[0]))

    codebooks = [module for module in model.modules() if hasattr(module, "initialized")]
    for codebook in codebooks:
        codebook.register_forward_hook(keep)
    quantized = model.quantize(model.vision_features(pictures), pictures)
    model.decode_vectors(quantized.semantic, quantized.pixel).square().mean().backward()
    assert len(passed) == len(codebooks) == (2 if type(model) is SemHiTokModel else 1)
    for vectors, codes in passed:
        assert not torch.equal(vectors, codes) and torch.equal(vectors.grad, codes.grad)
        assert vectors.grad.abs().sum() > 0
    assert model.pixel.encoder.layers[0].weight.grad.abs().sum() > 0
    reaches_meaning = not isinstance(model, SharedIndexModel)  # its pixel decoder never sees the semantic half
    assert (model.semantic.encoder.proj_in.weight.grad.abs().sum() > 0) == reaches_meaning


def test_joint_training_moves_both_branches_and_leaves_the_teacher(model, pictures):
    task = task_over(model)
    task.initialize_codebook([pictures])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        outputs = task(pixel_values=pictures)
        outputs["loss"].backward()
        optimizer.step()
        losses.append(outputs["loss"].item())
    assert losses[-1] < 0.8 * losses[0]
    assert {"psnr", "cosine", "feature_l1", "quantization", "codes_used"} < set(outputs)
    assert not model.vision_model.training and model.pixel.decoder.training
    parts = {"semantic.encoder", "semantic.decoder", "pixel.encoder", "pixel.decoder"}
    parts |= {"semantic.codebook", "pixel.codebook"} if type(model) is SemHiTokModel else {"codebook.codes"}
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert all(any(name.startswith(part) for name in moved) for part in parts)
    assert not any(name.startswith("vision_model") for name in moved)


def test_the_codebook_of_two_halves_stays_one(pictures):
    """EMA moves a code as a whole; each half then gets its own length back, so the distance stays what it is."""
    model = build(tiny(SharedIndexConfig, semantic_weight=0.2))
    task = task_over(model)
    task.initialize_codebook([pictures])
    for _ in range(2):
        halves = model.codebook.codes.split([4, 4], -1)
        for half, weight in zip(halves, (0.2, 0.8), strict=True):
            torch.testing.assert_close(half.square().sum(-1), torch.full((30,), weight))
        task(pixel_values=pictures)
    task.eval()
    before = model.codebook.codes.clone()
    task(pixel_values=pictures)
    assert torch.equal(before, model.codebook.codes)


def test_vectors_pass_unquantised_until_the_codebook_starts(single, pictures):
    single.codebook.initialized.fill_(False)
    features = single.vision_features(pictures)
    quantized = single.quantize(features, pictures)
    for one, other in zip(single.divide(single.join(features, pictures)), quantized[1:3], strict=True):
        assert torch.equal(one, other)
    assert quantized.loss == 0


# ---- as a tokenizer among others -----------------------------------------------------------------------------------


def test_saved_and_loaded_bit_equal_through_the_auto_classes(single, pictures, tmp_path):
    single.save_pretrained(tmp_path)
    for_tokenizer(single.config).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(single.config)
    for loaded in (AutoModel.from_pretrained(tmp_path), load_tokenizer(str(tmp_path), "cpu")[0]):
        assert type(loaded) is type(single)
        state = loaded.state_dict()
        assert state.keys() == single.state_dict().keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in single.state_dict().items())
        assert torch.equal(loaded.eval().encode(pictures), single.encode(pictures))
        assert fingerprint(loaded) == fingerprint(single)
    assert AutoImageProcessor.from_pretrained(tmp_path).crop_size["height"] == 16


def test_ids_and_codes_are_a_bijection(single, pictures):
    ids = torch.arange(30)
    codes = single.ids_to_codes(ids)
    assert single.config.num_codes == 30 and torch.equal(single.codes_to_ids(codes), ids)
    assert torch.equal(codes, torch.stack([ids, torch.zeros_like(ids)], -1))
    outputs = single(pictures)
    assert outputs.reconstruction.shape == pictures.shape and outputs.codes.shape == (6, 4, 2)


def test_the_fingerprint_covers_all_that_decides_the_codes(single, fake_world):
    first = fingerprint(single)
    with torch.no_grad():
        for parameter in (*single.semantic.decoder.parameters(), *single.pixel.decoder.parameters()):
            parameter += 1
    assert fingerprint(single) == first
    cached = cache_fingerprint(single, fake_world, 0, "train")
    for tensor in (single.codebook.codes, single.pixel.encoder.layers[0].weight):
        before = fingerprint(single)
        with torch.no_grad():
            tensor[0] += 0.1
        assert fingerprint(single) != before
    if isinstance(single, SharedIndexModel):
        before = fingerprint(single)
        single.config.semantic_weight = 0.4
        assert fingerprint(single) != before
    assert cache_fingerprint(single, fake_world, 0, "train") != cached


@pytest.mark.parametrize("image_head", ["flat", "factorised"])
def test_a_language_model_reads_and_draws_with_it(single, pictures, image_head, tmp_path):
    config = tiny_language_model(image_head=image_head)
    config.image_tokenizer_config = single.config
    torch.manual_seed(0)
    model = UniMLLMForConditionalGeneration(config)
    model.image_tokenizer.load_state_dict(single.state_dict())
    ids = model.get_image_tokens(pictures[:2])
    assert ids.min() >= 40 and ids.max() < 70
    assert torch.equal(model.decode_image_tokens(ids), single.decode(single.encode(pictures[:2])))
    rows = torch.cat([torch.tensor([[2, 10, 4]] * 2), ids, torch.tensor([[5, 1]] * 2)], -1)
    loss = model(input_ids=rows, labels=rows).loss
    loss.backward()
    assert torch.isfinite(loss) and model.adapter.pixel[0].weight.grad.abs().sum() > 0
    drawn = model.generate(torch.tensor([[2, 10, 4]]), generation_mode="image")
    assert drawn.shape == (1, 4) and drawn.min() >= 40

    model.save_pretrained(tmp_path)
    assert type(UniMLLMConfig.from_pretrained(tmp_path).image_tokenizer_config) is type(single.config)
    loaded = UniMLLMForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(input_ids=rows, labels=rows).loss, model.eval()(input_ids=rows, labels=rows).loss)
    alone, _ = load_tokenizer(str(tmp_path))  # the tokenizer out of the language model's checkpoint
    assert type(alone) is type(single) and fingerprint(alone) == fingerprint(single)
