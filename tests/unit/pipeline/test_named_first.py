"""What a question names: cameras and times, and that these come first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.named_cameras import cameras_named, words_of
from pipeline.named_first import Named

CAMERAS = ("gate-1", "gate-2", "Gate_03", "shop", "loading dock 4", "loading dock 5", "7", "a", "CAM-09", "tür-1")


@pytest.mark.parametrize(
    ("question", "named"),
    [
        ("What happened at gate 3 after midnight?", {"Gate_03"}),
        ("Who runs on camera gate-2?", {"gate-2"}),
        ("gate1 or GATE 02?", {"gate-1", "gate-2"}),
        ("Does somebody drop a bag at the gate?", {"gate-1", "gate-2", "Gate_03"}),
        ("How many people are at the gates?", {"gate-1", "gate-2", "Gate_03"}),
        ("Who is at gate 2, and who walks from the gate to the shop?", {"gate-2", "shop"}),
        ("Is gate 8 open?", set()),
        ("Does a van stop at the loading dock?", {"loading dock 4", "loading dock 5"}),
        ("Does a van stop at loading dock 5?", {"loading dock 5"}),
        ("What is loading at the dock?", set()),
        ("Do 7 people meet? Is there a dog?", set()),
        ("What does camera 7 show, and what does cam a?", {"7", "a"}),
        ("What does cam 9 show?", {"CAM-09"}),
        ("Which camera shows a dog?", set()),
        ("Who shops?", set()),
        ("Who is in the shop? 3 people?", {"shop"}),
        ("Who is in shop 3?", set()),
        ("What happens in the shop 02:21 and at gate 3 02:25?", {"shop", "Gate_03"}),
        ("Wer steht an der TÜR?", {"tür-1"}),
        ("", set()),
    ],
)
def test_cameras_are_named_as_people_say_them(question: str, named: set[str]) -> None:
    assert cameras_named(question, CAMERAS) == named


def test_the_longer_of_two_names_is_meant() -> None:
    assert cameras_named("Who is at the back gate?", {"gate", "back gate"}) == {"back gate"}
    assert cameras_named("Who is at the gate, who at the back gate?", {"gate", "back gate"}) == {"gate", "back gate"}
    assert cameras_named("Who is at gate 2?", {"gate", "gate-1"}) == frozenset()
    assert cameras_named("Who is at gate 2?", {"gate 2", "Gate-02"}) == {"gate 2", "Gate-02"}, "the same to the ear"
    assert cameras_named("Who is at the gate?", ()) == frozenset()


@given(st.sets(st.text(min_size=1, max_size=12), max_size=6), st.text(max_size=30))
def test_a_name_ofwords_of_after_camera_is_always_understood(cameras: set[str], rest: str) -> None:
    for name in filter(words_of, cameras):
        named = cameras_named(f"What happens on camera {name}? {rest}", cameras)
        spoken = words_of(f"camera {name}")
        longer = {
            other for other in cameras if set(words_of(other)) & set(spoken) and words_of(other) != words_of(name)
        }
        assert name in named or longer
        assert named <= cameras


def row(camera: str, start_s: float) -> dict[str, object]:
    return {"camera": camera, "start_s": start_s, "end_s": start_s + 24.0}


def test_named_camera_before_named_time_before_the_rest() -> None:
    rows = [row(camera, start_s) for camera in ("gate", "shop") for start_s in (0.0, 24.0, 48.0)]
    scores = [0.1, -0.2, 0.3, 0.9, 0.5, 0.6]
    cameras = ("gate", "shop")
    assert Named.in_question("Who runs?", cameras).lifted(rows, scores) == scores
    named = Named.in_question("Who runs at the gate at 00:30?", cameras)
    assert named == Named(frozenset({"gate"}), ((30.0, 30.0),))
    assert [named.rank(one) for one in rows] == [2, 3, 2, 0, 1, 0]
    lifted = named.lifted(rows, scores)
    assert sorted(range(6), key=lambda number: -lifted[number]) == [1, 2, 0, 4, 3, 5]
    assert named.lifted([], []) == []


def test_times_come_first_and_rows_are_half_open() -> None:
    rows = [row("gate", 24.0 * number) for number in range(5)]
    scores = [0.1, -0.2, 0.9, 0.3, 0.5]
    at_30 = Named.in_question("What happens at 00:30?", ["gate"]).lifted(rows, scores)
    assert max(range(5), key=at_30.__getitem__) == 1
    assert [score for number, score in enumerate(at_30) if number != 1] == [0.1, 0.9, 0.3, 0.5]
    lifted = Named.in_question("When?\nA. 0 to 5 seconds\nB. 46 to 50 seconds", ["gate"]).lifted(rows, scores)
    assert sorted(range(5), key=lambda number: -lifted[number]) == [2, 0, 1, 4, 3], "the best of those named first"
    assert Named.in_question("What happens at 24 seconds?", ["gate"]).rank(rows[0]) == 0


def test_who_names_all_cameras_names_none() -> None:
    assert Named.in_question("Who is at the gate?", ["gate-1", "gate-2"]).cameras == frozenset()
    assert Named.in_question("Who is at the gate?", ["gate-1", "gate-2", "shop"]).cameras == {"gate-1", "gate-2"}
