"""The error of training: a stage that cannot start or go on, with the reason in one sentence."""

from __future__ import annotations

from videoxl2.errors import ModelError


class TrainingError(ModelError):
    """A stage lacks what it needs, or a run folder belongs to another run; the message says what to do."""
