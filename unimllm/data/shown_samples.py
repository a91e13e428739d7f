"""Samples as the model reads them, a line each, so that a person sees what was misread before training."""

from itertools import groupby
from operator import itemgetter

import numpy as np

from unimllm.conversation import ConversationTokenizer, Tokenized
from unimllm.data.sample_index import SampleIndex
from unimllm.data.sample_tokens import SampleTokenizer
from unimllm.data.samples import TASKS, BadSample
from unimllm.data.survey import Survey

LINE = 200  # characters of a sample that are shown
PIECE = 70  # of a question or an answer in it


def shown_samples(index: SampleIndex, survey: Survey, tokenizer: SampleTokenizer) -> list[str]:
    """The first usable sample of each task, where it lies and what its ids say, below a line that tells so."""
    lines = []
    for t, task in enumerate(TASKS):
        for number in np.flatnonzero((survey.lengths > 0) & (survey.tasks == t))[:1].tolist():
            try:
                tokenized, _ = tokenizer.usable(index.read(number).variants)[0][0]
            except BadSample:  # the survey was kept, and this time the disk does not give it
                continue
            lines.append(f"    {task}, {index.key(number)}: {decoded(tokenized, tokenizer.conversation)}")
    return ["  the first of each task, what is learnt in [[ ]]:", *lines] if lines else []


def decoded(tokenized: Tokenized, conversation: ConversationTokenizer) -> str:
    """A sample as one line of LINE characters at most: targets in [[ ]], pictures as `<image>`."""
    ids = conversation.ids
    instead = {ids["image_start"]: [], ids["image"]: [], ids["image_end"]: [ids["image"]]}  # one for its N positions
    pieces = []
    for is_target, run in groupby(zip(tokenized.input_ids, tokenized.is_target, strict=True), key=itemgetter(1)):
        told = [kept for token, _ in run for kept in instead.get(token, [token])]
        text = conversation.tokenizer.decode(told, clean_up_tokenization_spaces=False)
        text = shortened("".join(c if c.isprintable() else repr(c)[1:-1] for c in text), PIECE)
        pieces.append(f"[[{text}]]" if is_target else text)
    return shortened("".join(pieces), LINE)


def shortened(text: str, length: int) -> str:
    """A text without its middle where it is longer than so many characters."""
    end = length // 3
    return text if len(text) <= length else f"{text[: length - end - 5]} ... {text[-end:]}"
