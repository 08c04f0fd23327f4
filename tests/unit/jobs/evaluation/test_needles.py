"""Needle scenes: ten needles at their depths, each true there and nowhere else; what counts as found."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.evaluation.command import lengths_of
from jobs.evaluation.needle import SHORT_VIDEOS, asked_needle, is_answered, needle_tasks, plan_needles
from pipeline.errors import UsageError
from videoxl2.training.claims import Claim
from videoxl2.training.facts import script_facts
from videoxl2.training.needles import DEPTHS, Haystack, plan_haystack, seen_needles
from videoxl2.training.vocabulary import all_words, words_in


@pytest.fixture(scope="module", params=[1, 2])
def haystack(request: pytest.FixtureRequest) -> Haystack:
    return plan_haystack(request.param, 1200.0)


def test_ten_needles_lie_at_their_depths(haystack: Haystack) -> None:
    assert [needle.depth for needle in haystack.needles] == list(DEPTHS)
    assert len({needle.name for needle in haystack.needles}) == 10
    for needle in haystack.needles:
        middle = (needle.start_s + needle.end_s) / 2 / haystack.scene.duration_s
        assert middle == pytest.approx(needle.depth, abs=0.03), needle


def test_a_needle_is_true_in_one_place_only(haystack: Haystack) -> None:
    facts = script_facts(haystack.scene)
    for needle in haystack.needles:
        spans = needle.claim.intervals(facts)
        assert spans and not needle.claim.doubtful_intervals(facts), needle
        assert all(needle.start_s <= low and high <= needle.end_s for low, high in spans), needle
        assert needle.end_s - needle.start_s < 90.0
        if needle.claim.action is None:
            assert len(needle.claim.objects(facts)) == 1
        else:
            assert len(needle.claim.events(facts)) == 1


def test_the_right_option_is_true_and_the_others_are_false(haystack: Haystack) -> None:
    facts = script_facts(haystack.scene)
    for needle in haystack.needles:
        assert len(set(needle.options)) == 4
        right = needle.options["ABCD".index(needle.answer)]
        for option in needle.options:
            if needle.claim.action is None:
                claim = Claim(needle.claim.kind, option)
            elif needle.claim.colour is None:
                claim = Claim(
                    "person", option.split(" in a")[1].removeprefix("n").split()[0], None, needle.claim.action
                )
            else:
                continue
            assert claim.is_true(facts) is (option == right), (needle, option)


def test_the_questions_use_known_words_only(haystack: Haystack) -> None:
    known = set(all_words())
    for needle in haystack.needles:
        assert set(words_in(needle.question)) | set(words_in(needle.query)) <= known


def test_the_same_seed_gives_the_same_scene() -> None:
    assert plan_haystack(7, 600.0).needles == plan_haystack(7, 600.0).needles
    assert plan_haystack(7, 600.0).needles != plan_haystack(8, 600.0).needles


def test_needles_that_the_pixels_do_not_show_are_left_out(haystack: Haystack) -> None:
    facts = script_facts(haystack.scene)
    assert [needle.name for needle in seen_needles(haystack, facts)] == [needle.name for needle in haystack.needles]
    hidden = haystack.needles[3]
    kept = tuple(event for event in facts.events if event.kind != hidden.claim.action)
    objects = tuple(item for item in facts.objects if hidden.claim.action or item.kind != hidden.claim.kind)
    fewer = type(facts)(facts.camera_kind, facts.start_s, facts.end_s, objects, kept)
    assert hidden.name not in [needle.name for needle in seen_needles(haystack, fewer)]


@pytest.mark.parametrize("depths", [(), (0.0,), (1.2,), (0.5,) * 11])
def test_depths_that_cannot_be_are_refused(depths: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="depths"):
        plan_haystack(1, 600.0, depths)


def test_a_video_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="too short"):
        plan_haystack(1, 8.0)


def test_lengths() -> None:
    assert lengths_of([]) == (pytest.approx(1 / 6), 1.0)
    assert lengths_of([6.0]) == (pytest.approx(1 / 6), 1.0, 6.0)
    assert lengths_of([0.0]) == ()
    assert lengths_of([0.0, 2.0]) == (2.0,)
    with pytest.raises(UsageError, match="negative"):
        lengths_of([-1.0])


def answer(dense: list[tuple[float, float]], sparse: list[tuple[float, float]], text: str) -> dict[str, Any]:
    spans = [(*span, "dense") for span in dense] + [(*span, "sparse") for span in sparse]
    return {
        "answer": text,
        "citations": [{"start_s": low, "end_s": high, "level": level} for low, high, level in spans],
        "context": {"dense_chunks": len(dense)},
        "timings": {"first_token_s": 0.5},
    }


def test_what_counts_as_found() -> None:
    videos = plan_needles(1, [0.1])
    assert len(videos) == SHORT_VIDEOS
    video = videos[0]
    assert {task["id"] for task in needle_tasks(video, "file:///x")} == {
        f"{video.item_id(number)}:{what}" for number in range(10) for what in ("ask", "search")
    }
    needle = video.needles[4]
    middle = (needle.start_s + needle.end_s) / 2
    here, there = (middle - 1, middle + 23), (middle + 23, middle + 47)
    moments = {"moments": [{"start_s": needle.start_s, "end_s": needle.end_s}]}
    nothing: dict[str, Any] = {"moments": [{"start_s": needle.end_s + 60, "end_s": needle.end_s + 70}]}
    found = asked_needle(video, 4, answer([here], [there], needle.answer), moments, 4)
    assert (found.is_dense, found.is_in_context, found.is_in_top5) == (True, True, True)
    assert is_answered(found) and found.dense_share == 0.25 and found.depth == needle.depth
    pooled = asked_needle(video, 4, answer([there], [here], "E"), nothing, 4)
    assert (pooled.is_dense, pooled.is_in_context, pooled.is_in_top5) == (False, True, False)
    assert not is_answered(pooled)
    absent = asked_needle(video, 4, answer([there], [], ""), nothing, 4)
    assert (absent.is_dense, absent.is_in_context) == (False, False)
