"""What is said between the KV of different videos in one context. Pure text; both asking and training say it so."""

from __future__ import annotations

from datetime import datetime


def header_text(camera: str | None, title: str, start: datetime | None) -> str:
    """Camera, or title where there is none, and the wall-clock start of the video's time 0 (UTC), where it is known."""
    name = f"Camera {camera}" if camera is not None else f"Video {title}"
    when = f", starts {start:%Y-%m-%d %H:%M:%S} UTC" if start is not None else ""
    return f"\n{name}{when}:\n"
