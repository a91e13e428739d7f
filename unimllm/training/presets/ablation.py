"""The claim, measured: tokenizers of 4,096 ids over 64 positions, trained alike (`bash scripts/ablate_tokenizer.sh`).

A step is 32 scenes for every stage of every tokenizer, and each tokenizer gets STEPS of them from one order of scenes
(`TokenizerRecipe.first_step`): the joint ones all at once, the phased ones SEMANTIC_STEPS for meaning and the rest, on
the scenes that follow, for pixels. Losses on pictures, sizes of the networks, optimiser and schedule are the same; the
schedule runs once per stage, so a phased tokenizer warms up twice, and codes begin after a fifth of a stage. None has
the remedies against forgotten compositions that `scenes_64` needed (other objects, confused and foreign codes): two of
them have no counterpart without phases.

    pixel only       K = 1,     m = 4,096   stage pixel
    semantic only    K = 4,096, m = 1       stages semantic, decoder
    shared vector    K = 4,096, m = 1       stage joint    one vector for both decoders (the way of VILA-U)
    shared index     K = 4,096, m = 1       stage joint    two codebooks under one index (the way of TokenFlow)
    SemHiTok         K = 256,   m = 16      stages semantic, pixel; or stage joint

Below them the two shared ones over pictures of one's own, against the SemHiTok of the same number of ids and of steps.
"""

from semhitok import SemHiTokConfig
from semhitok.shared_index import SharedIndexConfig, SharedVectorConfig
from unimllm.training.presets.photos import photos_128_joint
from unimllm.training.presets.recipes import SftRecipe, TokenizerRecipe
from unimllm.training.presets.scenes import scenes_64_pixel, scenes_64_semhitok, scenes_64_sft
from unimllm.training.presets.semhitok import semhitok_256_joint

STEPS = 2000
SEMANTIC_STEPS = 600
NUM_CODES = 4096
BATCH_SIZE = 32


def _as_semhitok(num_semantic_codes: int) -> SemHiTokConfig:
    config = scenes_64_semhitok()
    config.num_semantic_codes, config.num_pixel_codes = num_semantic_codes, NUM_CODES // num_semantic_codes
    return config


def _as_single(
    config_class: type[SharedIndexConfig] | type[SharedVectorConfig], config: SemHiTokConfig
) -> SemHiTokConfig:
    """The same sizes with as many codes under one index."""
    values = config.to_dict() | {"num_semantic_codes": config.num_codes, "num_pixel_codes": 1}
    return config_class(**{name: value for name, value in values.items() if name != "model_type"})


def _recipe(model: SemHiTokConfig, first_step: int, last_step: int, quantize_after: int) -> TokenizerRecipe:
    recipe = scenes_64_pixel()
    recipe.model = model
    recipe.first_step = first_step
    recipe.train.max_steps, recipe.train.batch_size = last_step - first_step, BATCH_SIZE
    recipe.quantize_after = quantize_after
    recipe.other_share = recipe.confused_share = recipe.foreign_share = 0.0
    return recipe


def ablation_semantic() -> TokenizerRecipe:
    """`deepspeed train/tokenizer.py --preset ablation --stage semantic --teacher runs/scenes_64/teacher`: K = 256."""
    return _recipe(_as_semhitok(256), 0, SEMANTIC_STEPS, quantize_after=120)


def ablation_pixel() -> TokenizerRecipe:
    """`... --stage pixel`: 16 codes under each; `--model.num_pixel_codes` for others over the same semantic stage."""
    return _recipe(_as_semhitok(256), SEMANTIC_STEPS, STEPS, quantize_after=280)


def ablation_joint() -> TokenizerRecipe:
    """`... --stage joint --teacher runs/scenes_64/teacher`: both branches at once."""
    return _recipe(_as_semhitok(256), 0, STEPS, quantize_after=400)


def ablation_decoder() -> TokenizerRecipe:
    """`... --stage decoder`: the same decoder trained on, against which the enhanced one has to be held."""
    return _recipe(_as_semhitok(256), STEPS, 2 * STEPS - SEMANTIC_STEPS, quantize_after=0)


def ablation_enhanced() -> TokenizerRecipe:
    """`deepspeed train/tokenizer.py --preset ablation_enhanced --stage decoder`: 2.2 times the parameters, anew."""
    recipe = ablation_decoder()
    recipe.model.decoder_hidden_size, recipe.model.conv_decoder_channels = 240, [192, 72, 36]
    recipe.new_decoder = True
    return recipe


def ablation_pixel_only() -> TokenizerRecipe:
    """`deepspeed train/tokenizer.py --preset ablation_pixel_only --stage pixel --teacher ...`: one flat codebook."""
    return _recipe(_as_semhitok(1), 0, STEPS, quantize_after=400)


def ablation_semantic_only_semantic() -> TokenizerRecipe:
    """`deepspeed train/tokenizer.py --preset ablation_semantic_only --stage semantic --teacher ...`: K = 4,096."""
    return _recipe(_as_semhitok(NUM_CODES), 0, SEMANTIC_STEPS, quantize_after=120)


def ablation_semantic_only_decoder() -> TokenizerRecipe:
    """`... --stage decoder --init-from SEMANTIC`: pictures from semantic codes; no pixel encoder is trained."""
    return _recipe(_as_semhitok(NUM_CODES), SEMANTIC_STEPS, STEPS, quantize_after=0)


def ablation_shared_vector() -> TokenizerRecipe:
    """`deepspeed train/tokenizer.py --preset ablation_shared_vector --stage joint --teacher ...`: VILA-U's way."""
    return _recipe(_as_single(SharedVectorConfig, _as_semhitok(NUM_CODES)), 0, STEPS, quantize_after=400)


def ablation_shared_index() -> TokenizerRecipe:
    """`deepspeed train/tokenizer.py --preset ablation_shared_index --stage joint --teacher ...`: TokenFlow's way."""
    return _recipe(_as_single(SharedIndexConfig, _as_semhitok(NUM_CODES)), 0, STEPS, quantize_after=400)


def _over_pictures(recipe: TokenizerRecipe, config_class) -> TokenizerRecipe:
    recipe.model = _as_single(config_class, recipe.model)
    return recipe


def photos_128_shared_vector() -> TokenizerRecipe:
    """`... --preset photos_128_shared_vector --stage joint --teacher SIGLIP --data PICTURES`: 65,536 ids. Untrained."""
    return _over_pictures(photos_128_joint(), SharedVectorConfig)


def photos_128_shared_index() -> TokenizerRecipe:
    """`... --preset photos_128_shared_index --stage joint --teacher SIGLIP --data PICTURES`: 65,536 ids. Untrained."""
    return _over_pictures(photos_128_joint(), SharedIndexConfig)


def semhitok_256_shared_vector() -> TokenizerRecipe:
    """`... --preset semhitok_256_shared_vector --stage joint --teacher SIGLIP --data DATA`: 196,608 ids. Untrained."""
    return _over_pictures(semhitok_256_joint(), SharedVectorConfig)


def semhitok_256_shared_index() -> TokenizerRecipe:
    """`... --preset semhitok_256_shared_index --stage joint --teacher SIGLIP --data DATA`: 196,608 ids. Untrained."""
    return _over_pictures(semhitok_256_joint(), SharedIndexConfig)


def ablation_sft() -> SftRecipe:
    """`deepspeed train/sft.py --preset ablation --image-tokenizer FOLDER`: questions alone, over any of them.

    `--drawing_share 0.55 --model.image_head factorised` (or flat) trains a model that draws, to compare the heads.
    """
    recipe = scenes_64_sft()
    recipe.model.image_head = "flat"
    text = recipe.model.text_config
    text.num_hidden_layers, text.layer_types = 4, text.layer_types[:4]
    recipe.train.max_steps = 1000
    recipe.train.warmup_steps = 100
    recipe.num_scenes = 30_000
    recipe.drawing_share = recipe.sequential_share = 0.0
    return recipe
