"""What a released CHEERS checkpoint lacks to be used beside its weights: a processor, and how it was drawn with."""

import json
from pathlib import Path

from transformers import AutoTokenizer

from semhitok.errors import first_line
from semhitok.image_processing_semhitok import for_size
from unimllm.cheers.configuration_cheers import CheersConfig
from unimllm.cheers.processing_cheers import CheersProcessor
from unimllm.vocabulary import add_tokens

RELEASED_DRAWING = {"guidance_scale": 9.5, "num_steps": 80, "time_shift": 0.5}
"""Of the released demo (README of AI9Stars/Cheers)."""

RELEASED_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% set text = message['content'] %}"
    "{% if message['role'] == 'user' %}"
    "{% set text = text.replace('<image>\n', '<image>').replace('<image>', '<image>\n') %}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + text + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As the released model was trained: Qwen2.5's turns, another system turn, a line break behind a picture to be read."""


def write_processor(folder: Path) -> None:
    """Save a processor and the drawing options into the folder of a converted checkpoint.

    Where its text tokenizer cannot be used a line says so, and the weights stand alone.
    """
    generation = folder / "generation_config.json"
    settings = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
    settings.pop("_from_model_config", None)
    generation.write_text(json.dumps(settings | {"drawing": RELEASED_DRAWING}, indent=2) + "\n", encoding="utf-8")
    config = CheersConfig.from_pretrained(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = RELEASED_TEMPLATE
        add_tokens(tokenizer, CheersProcessor.image_tokens)  # the published one may end before them
        image_processor = for_size(config.image_size)
        image_processor.fit_on_black = True  # as all that the released code reads; drawings are not preprocessed
        processor = CheersProcessor(
            image_processor, tokenizer, num_positions=config.num_positions, stand_in_picture=True
        )
        ids = processor.conversation.ids
        if other := [role for role in CheersProcessor.image_tokens if ids[role] != getattr(config, f"{role}_token_id")]:
            raise ValueError(f"its ids of {', '.join(other)} are not the model's")
    except Exception as error:  # damaged files raise nearly anything
        print(f"note: no processor was written, the text tokenizer cannot be used: {first_line(error)}")
        return
    processor.save_pretrained(folder)
