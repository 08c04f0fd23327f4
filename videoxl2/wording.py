"""What is said around the pictures when they are prefilled.

The visual tokens see these texts, so stored KV depends on them: an archive's recipe records both. The template is
``qwen_1_5`` (``reference`` section 3.3), the timestamps are those of section 1.6.
"""

from __future__ import annotations

DEFAULT_SYSTEM = "You are a helpful assistant."
END = "<|im_end|>"


def prefix_text(system: str = DEFAULT_SYSTEM) -> str:
    """The text before the video."""
    return f"<|im_start|>system\n{system}{END}\n<|im_start|>user\n"


def timestamp_text(t_s: float) -> str:
    """The text before a frame group, from its time in seconds: ``Time 12.3s:``, rounded to one decimal."""
    return f"Time {round(float(t_s), 1):.1f}s:"
