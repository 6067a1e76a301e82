"""Vocabulary and sizes of the oracle model: bytes are words, control tokens stand behind them.

Numbers only, so that tokenizer, template, model card and the oracle itself agree.
"""

NAME = "oracle"
"""What ``model.path`` says for this model."""

VOCAB_SIZE = 512
"""Ids 0-255 are bytes; ids behind the control tokens have no text."""
EOS = 256
IMAGE_PAD = 257
VISION_START = 258
VISION_END = 259
IM_START = 260
IM_END = 261

CONTROL_TEXT = {
    "<|endoftext|>": EOS,
    "<|image_pad|>": IMAGE_PAD,
    "<|vision_start|>": VISION_START,
    "<|vision_end|>": VISION_END,
    "<|im_start|>": IM_START,
    "<|im_end|>": IM_END,
}
"""How the template writes the control tokens."""

MAX_POSITIONS = 32_768
PATCH_SIZE = 14
MERGE_SIZE = 2
TEMPORAL_PATCH_SIZE = 2
MIN_PIXELS = 56 * 56
MAX_PIXELS = 28 * 28 * 1280
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
