"""Chat templates for tokenizers that come without one."""

from __future__ import annotations

VICUNA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set turns = messages[1:] %}"
    "{% else %}A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions.{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% if message['role'] == 'assistant' %} ASSISTANT: {{ message['content'] }}{{ eos_token }}"
    "{% elif loop.first or loop.previtem['role'] != 'assistant' %} USER: {{ message['content'] }}"
    "{% else %}USER: {{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
"""The prompt of Vicuna 1.1 and later, as the published models were tuned on it."""

TEMPLATES = {"vicuna": VICUNA}
