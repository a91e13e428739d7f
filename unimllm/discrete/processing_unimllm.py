"""UniMLLMProcessor: conversations and pictures to inputs of the discrete family."""

import torch
from transformers import BatchFeature

from unimllm.processing import ConversationProcessor


class UniMLLMProcessor(ConversationProcessor):
    """See `ConversationProcessor`; the image processor is a SemHiTokImageProcessor."""

    def for_drawing(self, prompts: list[str]) -> BatchFeature:
        """With `unconditional_ids`, the prompt without its text, beside the rows."""
        data = super().for_drawing(prompts)
        data["unconditional_ids"] = torch.tensor(self.conversation.drawing_prompt(""))
        return data
