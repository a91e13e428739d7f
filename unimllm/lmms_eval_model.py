"""The models that lmms-eval finds under the name `unimllm` (entry point group `lmms_eval.models`; extra `eval`).

    python -m lmms_eval --model unimllm --model_args pretrained=runs/sft --tasks pope,mme --batch_size 16
    torchrun --nproc_per_node 8 -m lmms_eval --model unimllm --model_args pretrained=runs/sft --tasks pope
    python -m lmms_eval --model unimllm --model_args pretrained=runs/sft,draw_into=pictures --tasks geneval ...

lmms-eval takes the chat model where it is not told --force_simple, which its multiple-choice tasks need. Only lmms-eval
imports this file.
"""

import os
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from tqdm import tqdm

from unimllm.command_line import nearest
from unimllm.drawing import FLAGS, choose_drawing
from unimllm.errors import UserError
from unimllm.images import check_writable
from unimllm.inference import load
from unimllm.lmms_eval_requests import (
    answer_asked,
    answer_rounds,
    batches,
    continuation_losses,
    draw_asked,
    read_chat,
    read_continuation,
    read_simple,
)

MODEL_ARGS = ("pretrained", "batch_size", "device", "dtype", "draw_into", *FLAGS)
BATCHES_SORTED = 8  # so many batches of questions are held at once, and sorted by length


def manifests() -> list[ModelManifest]:
    """What the entry point gives to lmms-eval."""
    return [ModelManifest("unimllm", f"{__name__}.UniMLLM", f"{__name__}.UniMLLMChat")]


class UniMLLM(lmms):
    """lmms-eval's simple interface.

    Args:
        pretrained: folder or hub id of a checkpoint (default: the small model that ships).
        batch_size: questions at once.
        device: "cpu", "cuda", ...; under torchrun every rank takes its own GPU unless it is "cpu".
        dtype: of the weights: float32, bfloat16 or float16 (default: the checkpoint's; float32 on a CPU).
        draw_into: a folder: then every request is a prompt, and its answer {"text": "", "images": [path]} as JSON.
        others: how to draw, by the names of `drawing.FLAGS`, such as guidance_scale=3; what else --model_args names is
            refused.
    """

    is_simple = True
    read = staticmethod(read_simple)

    def __init__(
        self,
        pretrained: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        draw_into: str | None = None,
        max_batch_size: int | None = None,  # lmms-eval passes it on; it is for batch_size=auto
        **others,
    ):
        super().__init__()
        for name in others:
            if name not in FLAGS:
                raise UserError(f"--model_args: unimllm knows no {name!r}{nearest(name, MODEL_ARGS)}")
            if not draw_into:
                raise UserError(f"--model_args: {name} is of drawing; add draw_into=FOLDER")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"--batch_size {batch_size}: unimllm wants a number from 1")
        if dtype not in (None, "float32", "bfloat16", "float16"):
            raise UserError(f"dtype={dtype}: choose float32, bfloat16 or float16")
        self.batch_size = int(batch_size)
        self.draw_into = Path(draw_into) if draw_into else None
        if self.draw_into:
            check_writable(self.draw_into / "picture.png")
        self.accelerator = Accelerator(cpu=device == "cpu")
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            device = str(self.accelerator.device)
        self.model, self.processor = load(pretrained, device, "--model_args pretrained", dtype or "auto")
        self.device = self.model.device
        self.sampling = choose_drawing(self.model, others)

    def generate_until(self, requests: list) -> list[str]:
        if self.draw_into:
            return self._answer(requests, partial(draw_asked, folder=self.draw_into, sampling=self.sampling))
        return self._answer(requests, answer_asked)

    def generate_until_multi_round(self, requests: list) -> list[list[str]]:
        return self._answer(requests, answer_rounds)

    def loglikelihood(self, requests: list) -> list[tuple[float, bool]]:
        """(loss, whether greedy decoding would say it) of each: lmms-eval chooses the lowest.

        lmms-eval 0.7.3 turns these pairs into text before it scores them (unwrap_generation_output of
        lmms_eval/api/instance.py), so its own multiple-choice scoring fails there, whatever the model.
        """
        pairs = []
        for rows in self._windows(requests):
            wanted = [read_continuation(request.args, self.task_dict) for request in rows]
            pairs += continuation_losses(self.model, self.processor, wanted, self.batch_size)
        return pairs

    def _answer(self, requests: list, answer) -> list:
        answers = []
        for rows in self._windows(requests):
            asked = [self.read(request.args, self.task_dict) for request in rows]
            answers += answer(self.model, self.processor, asked, self.batch_size)
        return answers

    def _windows(self, requests: list):
        size = BATCHES_SORTED * self.batch_size
        with tqdm(total=len(requests), desc="answering", unit="question", disable=self.rank != 0) as progress:
            for rows in batches(requests, size):
                yield rows
                progress.update(len(rows))


class UniMLLMChat(UniMLLM):
    """lmms-eval's chat interface: pictures stand where the task's messages have them."""

    is_simple = False
    read = staticmethod(read_chat)
