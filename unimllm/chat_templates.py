"""Chat templates for language models whose tokenizers bring none that can be used, and one for a first stage."""

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

VICUNA = (
    "{{ bos_token }}"
    "{% if messages and messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}"
    "{% set system = '" + _VICUNA_SYSTEM.replace("'", "\\'") + "' %}{% set turns = messages %}"
    "{% endif %}"
    "{{ system + ' ' }}"
    "{% for message in turns %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Vicuna knows user and assistant, and a system turn at the beginning') }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Vicuna 1.1 and later, and LLaVA-1.5 (`v1`): `SYSTEM USER: question ASSISTANT: answer</s>USER: ...`."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML and nothing else, for tokenizers with its two marks: no system turn of its own, no thoughts, tools or dates.

Those of Qwen 3 render an answer otherwise once the conversation goes on, so targets of several turns cannot be told.
"""

CHAT_TEMPLATES = {"vicuna": VICUNA, "chatml": CHATML}

PLAIN = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% set pictures = message['content'].split('<image>') | length - 1 %}"
    "{% if message['role'] == 'user' %}{{ '<image>' * pictures if pictures else message['content'] }}"
    "{% else %}{{ message['content'] + '\n' }}"
    "{% endif %}"
    "{% endfor %}"
)
"""LLaVA-1.5's first stage (`plain`): the picture and its caption, without the words that ask for it: `<image>caption`.

Where a caption asks for a picture it stays: `caption<image>`. An answer ends with a line break, as LLaVA's does; what
follows this stage teaches the model the mark that ends one.
"""

TRAINING_TEMPLATES = CHAT_TEMPLATES | {"plain": PLAIN}
