"""Presets: functions that return the complete recipe of one training program. Others copy and change one of them."""

from unimllm.training.presets.ablation import (
    ablation_decoder,
    ablation_enhanced,
    ablation_joint,
    ablation_pixel,
    ablation_pixel_only,
    ablation_semantic,
    ablation_semantic_only_decoder,
    ablation_semantic_only_semantic,
    ablation_sft,
    ablation_shared_index,
    ablation_shared_vector,
    photos_128_shared_index,
    photos_128_shared_vector,
    semhitok_256_shared_index,
    semhitok_256_shared_vector,
)
from unimllm.training.presets.cheers import (
    cheers_1_5b_align,
    cheers_1_5b_general,
    cheers_1_5b_refined,
    cheers_1_5b_sft,
    scenes_64_cheers,
    scenes_128_cheers,
)
from unimllm.training.presets.llava import (
    llava15_vicuna7b_pretrain,
    llava15_vicuna7b_sft,
    unified_qwen25_0_5b_pretrain,
    unified_qwen25_0_5b_sft,
    unified_qwen25_7b_pretrain,
    unified_qwen25_7b_sft,
)
from unimllm.training.presets.photos import photos_128_decoder, photos_128_joint, photos_128_pixel, photos_128_semantic
from unimllm.training.presets.recipes import SftRecipe, TeacherRecipe, TokenizerRecipe
from unimllm.training.presets.scenes import (
    scenes_64_decoder,
    scenes_64_pixel,
    scenes_64_pretrain,
    scenes_64_semantic,
    scenes_64_sft,
    scenes_64_teacher,
    scenes_128_decoder,
    scenes_128_pixel,
    scenes_128_semantic,
    scenes_128_sft,
    scenes_128_teacher,
)
from unimllm.training.presets.semhitok import (
    semhitok_256_decoder,
    semhitok_256_joint,
    semhitok_256_pixel,
    semhitok_256_semantic,
    semhitok_384_decoder,
    semhitok_384_pixel,
    semhitok_384_semantic,
)
from unimllm.training.presets.vae import scenes_64_cheers_vae, scenes_128_cheers_vae

TEACHER_PRESETS = {"scenes_64": scenes_64_teacher, "scenes_128": scenes_128_teacher}
TEACHER_OF = {"scenes_64_cheers": "scenes_64", "scenes_128_cheers": "scenes_128"}
"""Presets that take another one's teacher."""
SEMANTIC_PRESETS = {
    "scenes_64": scenes_64_semantic,
    "scenes_128": scenes_128_semantic,
    "photos_128": photos_128_semantic,
    "semhitok_256": semhitok_256_semantic,
    "semhitok_384": semhitok_384_semantic,
    "ablation": ablation_semantic,
    "ablation_semantic_only": ablation_semantic_only_semantic,
}
PIXEL_PRESETS = {
    "scenes_64": scenes_64_pixel,
    "scenes_128": scenes_128_pixel,
    "photos_128": photos_128_pixel,
    "semhitok_256": semhitok_256_pixel,
    "semhitok_384": semhitok_384_pixel,
    "ablation": ablation_pixel,
    "ablation_pixel_only": ablation_pixel_only,
}
DECODER_PRESETS = {
    "scenes_64": scenes_64_decoder,
    "scenes_128": scenes_128_decoder,
    "photos_128": photos_128_decoder,
    "semhitok_256": semhitok_256_decoder,
    "semhitok_384": semhitok_384_decoder,
    "ablation": ablation_decoder,
    "ablation_enhanced": ablation_enhanced,
    "ablation_semantic_only": ablation_semantic_only_decoder,
}
JOINT_PRESETS = {
    "photos_128": photos_128_joint,
    "photos_128_shared_index": photos_128_shared_index,
    "photos_128_shared_vector": photos_128_shared_vector,
    "semhitok_256": semhitok_256_joint,
    "semhitok_256_shared_index": semhitok_256_shared_index,
    "semhitok_256_shared_vector": semhitok_256_shared_vector,
    "ablation": ablation_joint,
    "ablation_shared_index": ablation_shared_index,
    "ablation_shared_vector": ablation_shared_vector,
}
VAE_PRESETS = {"scenes_64_cheers": scenes_64_cheers_vae, "scenes_128_cheers": scenes_128_cheers_vae}
PRETRAIN_PRESETS = {
    "scenes_64": scenes_64_pretrain,
    "llava15_vicuna7b_pretrain": llava15_vicuna7b_pretrain,
    "unified_qwen25_7b_pretrain": unified_qwen25_7b_pretrain,
    "unified_qwen25_0_5b": unified_qwen25_0_5b_pretrain,
    "cheers_1_5b_align": cheers_1_5b_align,
}
SFT_PRESETS = {
    "scenes_64": scenes_64_sft,
    "scenes_128": scenes_128_sft,
    "ablation": ablation_sft,
    "llava15_vicuna7b_sft": llava15_vicuna7b_sft,
    "unified_qwen25_7b_sft": unified_qwen25_7b_sft,
    "unified_qwen25_0_5b": unified_qwen25_0_5b_sft,
    "scenes_64_cheers": scenes_64_cheers,
    "scenes_128_cheers": scenes_128_cheers,
    "cheers_1_5b_general": cheers_1_5b_general,
    "cheers_1_5b_refined": cheers_1_5b_refined,
    "cheers_1_5b_sft": cheers_1_5b_sft,
}

__all__ = [
    "DECODER_PRESETS",
    "JOINT_PRESETS",
    "PIXEL_PRESETS",
    "PRETRAIN_PRESETS",
    "SEMANTIC_PRESETS",
    "SFT_PRESETS",
    "TEACHER_OF",
    "TEACHER_PRESETS",
    "SftRecipe",
    "TeacherRecipe",
    "TokenizerRecipe",
    "VAE_PRESETS",
]
