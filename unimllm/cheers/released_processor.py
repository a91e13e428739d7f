"""What a released CHEERS checkpoint lacks to be used beside its weights: a processor, and how it was drawn with."""

import json
from pathlib import Path

from transformers import AutoTokenizer

from semhitok.errors import first_line
from semhitok.image_processing_semhitok import for_size
from unimllm.cheers.configuration_cheers import CheersConfig
from unimllm.cheers.processing_cheers import CheersProcessor

RELEASED_DRAWING = {"guidance_scale": 9.5, "num_steps": 80, "time_shift": 0.5}
"""Of the released demo (README of AI9Stars/Cheers)."""


def write_processor(folder: Path) -> None:
    """Save a processor and the drawing options into the folder of a converted checkpoint.

    Where its text tokenizer cannot be used a line says so, and the weights stand alone.
    """
    generation = folder / "generation_config.json"
    settings = json.loads(generation.read_text()) if generation.is_file() else {}
    settings.pop("_from_model_config", None)
    generation.write_text(json.dumps(settings | {"drawing": RELEASED_DRAWING}, indent=2) + "\n")
    config = CheersConfig.from_pretrained(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        processor = CheersProcessor(for_size(config.image_size), tokenizer, num_positions=config.num_positions)
        ids = processor.conversation.ids
        if other := [role for role in CheersProcessor.image_tokens if ids[role] != getattr(config, f"{role}_token_id")]:
            raise ValueError(f"its ids of {', '.join(other)} are not the model's")
    except Exception as error:  # damaged files raise nearly anything
        print(f"note: no processor was written, the text tokenizer cannot be used: {first_line(error)}")
        return
    processor.save_pretrained(folder)
