"""Which family a run trains: that of the preset's model. What differs in training lies in two siblings,
`discrete_family` and `cheers_family`, with the same verbs:

    processor_class, model_class
    without_weights                                fields of its config that may change over a checkpoint
    takes_varlen                                   whether its packed samples are causal throughout
    check_options(args, recipe)                    UserError for options that are the other family's
    open_vision(args)                              the trained part of a new model that turns pictures to codes, latents
    build(config, vision, language_model)          a new model over it, and over a language model where there is one
    exchange_vision(model, args)                   what --image-tokenizer does to a trained model
    image_processor(config, pad_to_square)
    scene_pictures(...), sample_pictures(...)      the pictures of rows, by scene and of --data
    make_task(model, recipe)                       the losses
    first_stage_keeps(model)                       what train/pretrain.py leaves as it is
    parts(model), row_bytes(model, recipe, share)  for the plan of --dry-run
    random_ids(config, count)                      ids (count, N) of pictures in rows, for measuring: of nothing real
    random_pixels(config, input_ids)               what a batch of such rows has of them besides
"""

from types import ModuleType

from transformers import PreTrainedConfig

from unimllm.training import cheers_family, discrete_family

FAMILIES = {family.model_class.config_class.model_type: family for family in (discrete_family, cheers_family)}


def family_of(config: PreTrainedConfig) -> ModuleType:
    """The family of a model's config."""
    return FAMILIES[config.model_type]
