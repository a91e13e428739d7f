"""Which image tokenizer a stage of `train/tokenizer.py` trains: that of the preset's model. What differs lies in two
siblings, `semhitok_stages` and `vae_stages`, with the same verbs:

    check_start(args, recipe, stage)             UserError for options that the stage cannot have
    start_model(args, recipe, stage)             the tokenizer that the stage starts from; UserError where it cannot
    make_task(model, recipe, stage, args)        the losses; without `args` no SigLIP is opened for them
    parts(model), trained_calls(model, stage, picture), describe_positions(config)       for the plan of --dry-run
"""

from types import ModuleType

from transformers import PreTrainedConfig

from semhitok.auto import MODELS
from unimllm.cheers.configuration_cheers import CheersVaeConfig
from unimllm.training import semhitok_stages, vae_stages

STAGES = dict.fromkeys(MODELS, semhitok_stages) | {CheersVaeConfig.model_type: vae_stages}


def stages_of(config: PreTrainedConfig) -> ModuleType:
    """The stages of an image tokenizer, by its config."""
    return STAGES[config.model_type]
