"""Training the teacher: a small SigLIP (arXiv 2303.15343) with phrases for regions beside captions for pictures."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import SiglipConfig, SiglipModel

from semhitok.vision import add_stem


class TeacherTask(nn.Module):
    """SigLIP's sigmoid loss between pictures and captions, and cross-entropy of what each patch shows.

    The second is what SigLIP 2 gains from captions with boxes (arXiv 2502.14786): patch features that say what lies
    there, which is what the semantic codebook quantises. Its classes carry no colours, so patches of a red and of a
    blue dog stay neighbours; colour is the pixel code's part. Through the text tower, or from captions alone, the same
    features took many times as long (docs/experiments.md).

    Args:
        config: of the SigLIP.
        num_classes: objects; patches of the ground are one class more.
        caption_weight: of the sigmoid loss beside the patch loss.
    """

    def __init__(self, config: SiglipConfig, num_classes: int, caption_weight: float):
        super().__init__()
        self.siglip = SiglipModel(config)
        add_stem(self.siglip.vision_model, config.vision_config)
        nn.init.constant_(self.siglip.logit_scale, torch.tensor(10.0).log().item())
        nn.init.constant_(self.siglip.logit_bias, -10.0)
        self.patch_classes = nn.Linear(config.vision_config.hidden_size, num_classes + 1)
        self.caption_weight = caption_weight

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, owners: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """See `scenes.sources.CaptionedScenes` for the shapes."""
        vision = self.siglip.vision_model(pixel_values)
        captions = F.normalize(self.siglip.text_model(input_ids).pooler_output.float(), dim=-1)
        images = F.normalize(vision.pooler_output.float(), dim=-1)
        logits = images @ captions.T * self.siglip.logit_scale.exp() + self.siglip.logit_bias  # (B, B)
        same = (input_ids[:, None] == input_ids[None]).all(-1)
        caption_loss = -F.logsigmoid(torch.where(same, logits, -logits)).sum(-1).mean()

        logits = self.patch_classes(vision.last_hidden_state).float()  # (B, N, classes + 1)
        per_patch = F.cross_entropy(logits.flatten(0, 1), owners.flatten(), reduction="none").view(owners.shape)
        is_object = owners < self.patch_classes.out_features - 1
        # Three patches of four show the ground: objects and ground weigh the same.
        patch_loss = per_patch[is_object].mean() + per_patch[~is_object].mean()
        return {
            "loss": patch_loss + self.caption_weight * caption_loss,
            "caption": caption_loss,
            "patch": patch_loss,
            "object_patches_right": (logits.argmax(-1) == owners)[is_object].float().mean(),
        }
