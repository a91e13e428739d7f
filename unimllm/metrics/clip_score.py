"""CLIPScore (arXiv 2104.08718): how well pictures fit their prompts, by the cosine of their CLIP embeddings.

100 * max(cos, 0) as most papers and torchmetrics print it. With the paper's weight it is 2.5 * max(cos, 0), that is
score / 40, which is not the paper's own score: its script puts "A photo depicts" before each text, nothing here does.
"""

from importlib.metadata import version

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from semhitok.checkpoints import choose_device
from unimllm.metrics.geneval_detector import clip_pixels, load_named

WEIGHT = 2.5  # the paper's


class ClipScorer:
    """A CLIP that compares pictures and texts; final, not trained."""

    def __init__(self, clip, tokenizer, name: str):
        """A scorer.

        Args:
            clip: a `CLIPModel`.
            tokenizer: its text tokenizer.
            name: of both, for the report.
        """
        self.clip, self.tokenizer, self.name = clip, tokenizer, name

    @classmethod
    def load(cls, name: str, device: str | None = None) -> "ClipScorer":
        """A CLIP in Hugging Face's format by folder or hub id; UserError if it cannot be loaded."""
        from transformers import AutoTokenizer, CLIPModel

        clip = load_named(CLIPModel, name, "--clip").to(choose_device(device))
        tokenizer = load_named(AutoTokenizer, name, "--clip")
        return cls(clip, tokenizer, f"{name}, transformers {version('transformers')}")

    @property
    def context(self) -> int:
        """The most tokens of a prompt that are read."""
        return self.clip.config.text_config.max_position_embeddings

    def is_cut(self, prompt: str) -> bool:
        """Whether the end of a prompt is not read."""
        return len(self.tokenizer(prompt)["input_ids"]) > self.context

    @torch.inference_mode()
    def score(self, pictures: list[Image.Image], prompts: list[str]) -> np.ndarray:
        """RGB pictures and the prompt of each -> (n,) float64 in 0..100."""
        size = self.clip.config.vision_config.image_size
        pixels = torch.stack([clip_pixels(picture, size) for picture in pictures]).to(self.clip.device)
        inputs = self.tokenizer(prompts, padding=True, truncation=True, max_length=self.context, return_tensors="pt")
        of_pictures = self.clip.get_image_features(pixel_values=pixels).pooler_output  # (n, D)
        of_prompts = self.clip.get_text_features(**inputs.to(self.clip.device)).pooler_output  # (n, D)
        pairs = (features.float().cpu().double() for features in (of_pictures, of_prompts))  # mps has no float64
        return 100 * F.cosine_similarity(*pairs).clamp(min=0).numpy()
