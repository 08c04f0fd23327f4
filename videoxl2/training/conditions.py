"""Light and weather of a random scene: what falls on a surface, how far one sees, how grainy the sensor is.

Owns plain values and their choice from the time of day; ``backdrops`` applies them to a place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np

from videoxl2.training.scene import SceneryKind

Light = Literal["day", "dusk", "night"]
Weather = Literal["clear", "rain", "fog"]
INDOOR_KINDS: frozenset[SceneryKind] = frozenset({"corridor", "shop"})


@dataclass(frozen=True)
class Conditions:
    """How a place is lit. ``gain`` is the light under the open sky (or indoors, of the lamps) per colour channel.

    ``lamps`` scales the pools of light of street lamps, ``sun`` is the shadow per metre of height or None,
    ``fog_per_m`` the loss of contrast with distance, ``noise_sigma`` the sensor's grain in grey levels of 255.
    """

    light: Light
    weather: Weather
    gain: tuple[float, float, float]
    lamps: float
    sun: tuple[float, float] | None
    fog_per_m: float
    noise_sigma: float

    @property
    def fog_rgb(self) -> tuple[float, float, float]:
        """Colour that fog and rain mix into what is far away."""
        level = {"day": 196.0, "dusk": 128.0, "night": 62.0}[self.light]
        return level, level * 1.01, level * 1.04


def light_of_hour(hour: float) -> Light:
    if 7.5 <= hour < 18.0:
        return "day"
    return "dusk" if 6.0 <= hour < 7.5 or 18.0 <= hour < 19.5 else "night"


def random_conditions(kind: SceneryKind, start: datetime, rng: np.random.Generator) -> Conditions:
    """Conditions for a camera at a time of day: weather by chance, indoors only the lamps change."""
    light = light_of_hour(start.hour + start.minute / 60)
    warmth = float(rng.uniform(-0.04, 0.05))
    if kind in INDOOR_KINDS:
        level = float(rng.uniform(0.86, 1.08)) if light == "day" else float(rng.uniform(0.66, 0.92))
        warmth += 0.0 if light == "day" else 0.04
        return Conditions(light, "clear", _tinted(level, warmth), 0.0, None, 0.0, float(rng.uniform(1.2, 3.2)))
    weather: Weather = ("clear", "clear", "clear", "rain", "fog")[int(rng.integers(5))]
    fog = {"clear": 0.0015, "rain": 0.008, "fog": float(rng.uniform(0.014, 0.027))}[weather]
    noise = float(rng.uniform(1.2, 2.6)) + {"day": 0.0, "dusk": 0.8, "night": 1.6}[light]
    if light == "day":
        level = float(rng.uniform(0.92, 1.08)) * (0.86 if weather != "clear" else 1.0)
        angle, length = float(rng.uniform(0, math.tau)), float(rng.uniform(0.4, 1.1))
        sun = (length * math.cos(angle), abs(length * math.sin(angle)) * 0.6) if weather == "clear" else None
        return Conditions(light, weather, _tinted(level, warmth), 0.0, sun, fog, noise)
    if light == "dusk":
        level = float(rng.uniform(0.58, 0.74))
        return Conditions(light, weather, _tinted(level, 0.05 + warmth), 0.35, None, fog, noise)
    return Conditions(light, weather, _tinted(float(rng.uniform(0.32, 0.42)), -0.03), 0.75, None, fog, noise)


def _tinted(level: float, warmth: float) -> tuple[float, float, float]:
    return level * (1 + warmth), level, level * (1 - warmth)
