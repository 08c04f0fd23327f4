"""Questions of several lines are looked up line by line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from indexers.records import VectorHit
from indexers.scope import EVERYTHING, Scope
from pipeline.question_hits import MOST_LINES, QuestionHits, join_hits, question_hits, question_lines
from pipeline.reader import Resolved
from pipeline.results import Coverage
from tests.unit.pipeline.samples import hit

CHOICE = "Which of these happens?\nA. a dog runs\n\n(B) a red car drives\n c) a van parks \nD: nothing"


def test_options_are_looked_up_with_what_asks_for_them_and_without_their_letters() -> None:
    asked = "Which of these happens?"
    options = [f"{asked} {option}" for option in ("a dog runs", "a red car drives", "a van parks", "nothing")]
    assert question_lines(CHOICE) == [asked, *options]
    assert question_lines("Of the gate.\nWhat is red?\nA. a dog\nB. a van\nAnswer:") == [
        "Of the gate.",
        "What is red?",
        "What is red? a dog",
        "What is red? a van",
        "Answer:",
    ]
    assert question_lines("A. a dog\nB. a van") == ["a dog", "a van"], "options that nothing asks for"
    assert question_lines("Does A. Smith run?") == ["Does A. Smith run?"], "one line stays what it is"
    many = "\n".join(f"line {number}" for number in range(MOST_LINES + 1))
    assert question_lines(many) == [many]
    assert question_lines("  \n ") == ["  \n "]


def groups(*scores: float) -> list[VectorHit]:
    """Hits in two chunks' worth of frame groups, best first; group i has score i."""
    return sorted((hit("v", index, score) for index, score in enumerate(scores)), key=lambda found: -found.score)


def test_one_line_keeps_its_similarities() -> None:
    found = join_hits([groups(0.1, 0.7, 0.2, 0, 0, 0, 0.4)])
    assert found.chunks == {"v-0-0": 0.7, "v-0-1": 0.4}
    assert found.segments == {"v-0": 0.7}
    assert found.best_groups == {"v-0-0": "v-00001", "v-0-1": "v-00006"}


def test_a_chunk_counts_as_much_as_it_stands_out_for_one_line() -> None:
    """The first line is similar to everything alike, the second to little, and to one chunk more than to the others."""
    alike = groups(*[0.8] * 6, *[0.79] * 6, *[0.78] * 6, *[0.8] * 6)
    telling = groups(*[0.05] * 6, *[0.02] * 6, *[0.3] * 6, *[0.04] * 6)
    found = join_hits([alike, telling])
    assert max(found.chunks, key=lambda name: found.chunks[name]) == "v-0-2"
    assert found.best_groups["v-0-2"] == "v-00012"
    assert found.segments == {"v-0": max(found.chunks.values())}
    assert join_hits([telling, alike]).chunks == found.chunks


@pytest.mark.parametrize("turned", [False, True])
def test_what_only_one_line_found_has_the_group_that_it_was_found_by(turned: bool) -> None:
    first, second = groups(0.5, 0.4, 0.1, 0, 0, 0, 0.3), [hit("w", 0, 0.2), hit("v", 0, 0.1)]
    found = join_hits([second, first] if turned else [first, second])
    assert set(found.chunks) == set(found.best_groups) == {"v-0-0", "v-0-1", "w-0-0"}
    assert found.best_groups["v-0-1"] == "v-00006" and found.best_groups["w-0-0"] == "w-00000"
    assert set(found.segments) == {"v-0", "w-0"}


def test_nothing_is_found_where_there_is_nothing() -> None:
    assert join_hits([[], []]).chunks == {}
    assert join_hits([[]]).segments == {}


def test_every_line_is_embedded_and_searched_in_scope() -> None:
    seen: list[Any] = []

    def search(vector: np.ndarray, scope: object, limit: int) -> list[VectorHit]:
        seen.append((vector.tolist(), scope, limit))
        return groups(0.1, 0.2)

    reader: Any = SimpleNamespace(
        text_encoder=SimpleNamespace(embed=lambda texts: np.asarray([[len(text)] for text in texts])),
        store=SimpleNamespace(search_vectors=search),
    )
    question_hits(reader, "What?\nA. red\nB. green", about())
    assert [vector for vector, _, _ in seen] == [[len("What?")], [len("What? red")], [len("What? green")]]
    assert {scope for _, scope, _ in seen} == {EVERYTHING}


def about(videos: Sequence[Any] = ()) -> Resolved:
    return Resolved(scope=EVERYTHING, coverage=Coverage(videos=len(videos), hours=1.0), videos=tuple(videos))


class FakeStore:
    """Two groups of each camera's only video; the index finds those of ``shop`` before any of ``gate``."""

    def __init__(self, cameras: Sequence[str], segments: int = 1) -> None:
        self.videos = [SimpleNamespace(video_id=f"of {camera}", camera=camera) for camera in cameras]
        self.num_segments = segments
        self.asked: list[Scope] = []

    def segments(self, video_id: str) -> list[Any]:
        return [
            SimpleNamespace(segment_id=f"{video_id}-{number}", start_s=600.0 * number, end_s=600.0 * (number + 1))
            for number in range(self.num_segments)
        ]

    def search_vectors(self, vector: np.ndarray, scope: Scope, limit: int) -> list[VectorHit]:
        self.asked.append(scope)
        shown = [video for video in self.videos if scope.cameras is None or video.camera in scope.cameras]
        found = [
            replace(hit(video.video_id, index, 0.5 - 0.1 * number - 0.01 * index), camera=video.camera)
            for number, video in enumerate(self.videos)
            for index in range(2)
            if video in shown
        ]
        return found[:2]


def hits_of(store: FakeStore, question: str) -> QuestionHits:
    reader: Any = SimpleNamespace(
        store=store, text_encoder=SimpleNamespace(embed=lambda texts: np.zeros((len(texts), 1)))
    )
    return question_hits(reader, question, about(store.videos))


def test_segments_of_a_named_camera_are_looked_up_and_come_first() -> None:
    store = FakeStore(["shop", "gate"])
    assert hits_of(store, "Who runs?").best_segments(2) == ["of shop-0"]
    found = hits_of(store, "Who runs at the gate?")
    assert found.best_segments(2) == ["of gate-0", "of shop-0"]
    assert found.best_segments(1) == ["of gate-0"]
    assert found.segments["of gate-0"] < found.segments["of shop-0"], "the similarities stay what they are"
    assert store.asked[-1].cameras == {"gate"}
    hits_of(FakeStore(["gate"]), "Who runs at the gate?")
    assert store.asked[0] == EVERYTHING


@pytest.mark.parametrize(("cameras", "expected"), [(["gate"], "of gate-3"), (["gate", "shop"], "of gate-0")])
def test_a_named_time_brings_its_segment_in_where_one_video_is_meant(cameras: list[str], expected: str) -> None:
    found = hits_of(FakeStore(cameras, segments=6), "What happens at 31:40?")
    assert found.best_segments(1) == [expected]
    assert hits_of(FakeStore(cameras, segments=6), "What happens at the gate at 31:40?").best_segments(1) == [
        "of gate-3"
    ]
