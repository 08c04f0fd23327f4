"""What is said between videos."""

from __future__ import annotations

from datetime import UTC, datetime

from videoxl2.headers import header_text


def test_a_header_names_the_camera_and_the_start_of_the_video() -> None:
    start = datetime(2026, 3, 1, 8, tzinfo=UTC)
    assert header_text("gate", "0800", start) == "\nCamera gate, starts 2026-03-01 08:00:00 UTC:\n"
    assert header_text(None, "Metropolis", None) == "\nVideo Metropolis:\n"
