"""Evidence from the source video: frames of an interval, and a clip cut and re-encoded to an exact interval."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from pipeline.frames import FrameSampler, SampledFrame
from pipeline.probe import MediaProbe, probe

CLIP_MAX_FPS = 30.0
CLIP_CRF = "23"


def read_frames(media: Path, start_s: float, end_s: float, fps: float) -> list[np.ndarray]:
    """Upright RGB frames (height, width, 3) uint8 shown in ``[start_s, end_s)``, at most ``fps`` per second."""
    facts = probe(str(media), _uri(media))
    return [frame.rgb_HWC for frame in _sample(media, facts, start_s, end_s, fps)]


def cut_clip(media: Path, path: Path, start_s: float, end_s: float) -> Path:
    """Write ``[start_s, end_s)`` of ``media`` as H.264 MP4 to ``path``; the file appears whole or not at all."""
    import av

    facts = probe(str(media), _uri(media))
    fps = min(facts.fps or CLIP_MAX_FPS, CLIP_MAX_FPS)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    time_base = Fraction(1, 90_000)
    try:
        with av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as out:
            stream = None
            for sampled in _sample(media, facts, start_s, end_s, fps):
                height, width = (side // 2 * 2 for side in sampled.rgb_HWC.shape[:2])
                if stream is None:
                    stream = out.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
                    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                    stream.options = {"crf": CLIP_CRF}
                    stream.codec_context.time_base = time_base
                frame = av.VideoFrame.from_ndarray(
                    np.ascontiguousarray(sampled.rgb_HWC[:height, :width]), format="rgb24"
                )
                frame.pts = round((sampled.time_s - start_s) / time_base)
                frame.time_base = time_base
                out.mux(stream.encode(frame))
            if stream is not None:
                out.mux(stream.encode(None))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _sample(media: Path, facts: MediaProbe, start_s: float, end_s: float, fps: float) -> Iterator[SampledFrame]:
    """Frames of the sampling grid that are shown in ``[start_s, end_s)``."""
    first = max(0, int(start_s * fps))
    # decord can hang where nobody watches it; PyAV gives the same pictures.
    sampler = FrameSampler(str(media), facts, fps, uri=_uri(media), first_index=first, decoder="pyav")
    for frame in sampler:
        if frame.time_s >= end_s:
            return
        if frame.time_s >= start_s and not frame.is_context:
            yield frame


def _uri(media: Path) -> str:
    return f"file://{media}"
