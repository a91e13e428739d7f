"""Fit pictures to a trained language model before it is tuned: LLaVA-1.5's first stage, with drawing beside it.

deepspeed train/pretrain.py --preset llava15_vicuna7b_pretrain --image-tokenizer runs/semhitok_256/pixel \
    --data blip_laion_cc_sbu_558k.json --image-root images

What stands between pictures and words (adapter and image head; CHEERS's compressor and flow head) and the rows of the
image tokens are trained; every other weight of the language model keeps its bits. `train/sft.py --init-from` goes on
from what this writes.
"""

from unimllm.errors import UserError
from unimllm.training.language_model import train_language_model
from unimllm.training.language_options import OPTIONS
from unimllm.training.overrides import parse_arguments, run_program
from unimllm.training.presets import PRETRAIN_PRESETS
from unimllm.training.start_model import backbone_name, check_words_stay, freeze_language_model


def main() -> None:
    about = "Train what stands between pictures and a language model that stays as it is."
    args, recipe = parse_arguments(about, "pretrain", PRETRAIN_PRESETS, **OPTIONS)
    if not (args.init_from or backbone_name(args, recipe)):
        raise UserError("the language model stays as it is, so it must be a trained one: name it with --language-model")
    check_words_stay(recipe)
    train_language_model(args, recipe, freeze_language_model)


if __name__ == "__main__":
    run_program(main)
