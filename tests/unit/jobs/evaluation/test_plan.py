"""Which files, questions and searches a run consists of; when a moment is the right one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest

from jobs.evaluation.plan import (
    LONG_MINUTES,
    SHARES,
    chance_of,
    choose_questions,
    choose_searches,
    first_right,
    is_match,
    plan_files,
)
from jobs.evaluation.records import Question, Search
from jobs.evaluation.twice import plan_long_files
from videoxl2.training.claims import Claim
from videoxl2.training.facts import Facts, script_facts
from videoxl2.training.priors import wording
from videoxl2.training.random_scenes import CAMERA_KINDS
from videoxl2.training.wording import LETTERS


@pytest.fixture(scope="module")
def videos() -> Mapping[str, Facts]:
    """What happens in twenty minutes of test footage, without rendering it."""
    return {f"{file.scene.camera.name}/x.mp4": script_facts(file.scene) for file in plan_files(11, 60)}


@pytest.fixture(scope="module")
def eighty(videos: Mapping[str, Facts]) -> list[Question]:
    """Eighty questions about them, chosen once."""
    return choose_questions(videos, 3, 80)[0]


@pytest.fixture(scope="module")
def sixty(videos: Mapping[str, Facts]) -> tuple[list[Question], list[str]]:
    """Sixty questions and the notes about them, chosen once."""
    return choose_questions(videos, 3, 60)


def cameras_of(videos: Mapping[str, Facts]) -> dict[str, str]:
    return {key: key.split("/")[0] for key in videos}


def test_files_are_of_every_kind_and_length() -> None:
    files = plan_files(5, 300)
    lengths = Counter(file.minutes for file in files)
    assert lengths == {1.0: 15, 2.0: 10, 5.0: 5, 10.0: 5, LONG_MINUTES: 1}
    short = {(file.scene.camera.scenery, file.minutes) for file in files if file.minutes < LONG_MINUTES}
    assert short == {(kind, minutes) for kind in CAMERA_KINDS for minutes in (1.0, 2.0, 5.0, 10.0)}
    names = [file.scene.camera.name for file in files]
    assert len(set(names)) == len(names)
    assert all(file.scene.duration_s == pytest.approx(file.minutes * 60) for file in files)


def test_the_same_seed_gives_the_same_files_and_another_seed_others() -> None:
    assert plan_files(5, 9) == plan_files(5, 9)
    assert {file.scene.seed for file in plan_files(5, 9)}.isdisjoint(file.scene.seed for file in plan_files(6, 9))


@pytest.mark.parametrize("minutes", [1.0, 2.0, 7.5])
def test_minutes_can_be_given(minutes: float) -> None:
    files = plan_files(1, 300, minutes)
    assert sum(file.minutes for file in files) == pytest.approx(minutes)


def test_questions_come_in_their_shares_and_every_id_once(
    videos: Mapping[str, Facts], sixty: tuple[list[Question], list[str]]
) -> None:
    questions, notes = sixty
    counts = Counter(question.kind for question in questions)
    assert len(questions) == 60 == len({question.item_id for question in questions})
    assert not notes
    for kind, share in SHARES.items():
        assert abs(counts[kind] - 60 * share) <= 1, counts
    assert len({(question.video, question.question) for question in questions}) == 60
    assert questions == choose_questions(videos, 3, 60)[0]
    assert {question.question for question in questions} != {q.question for q in choose_questions(videos, 4, 60)[0]}


def test_existence_is_balanced_and_true_to_the_facts(eighty: list[Question]) -> None:
    exists = [question for question in eighty if question.kind == "exists"]
    answers = Counter(question.expected for question in exists)
    assert abs(answers["yes"] - answers["no"]) <= 1 and len(exists) == 20
    for question in exists:
        assert (question.interval is not None) == (question.expected == "yes")


def test_no_option_is_given_away_by_its_wording(eighty: list[Question]) -> None:
    """Candidates give it away: "walks" is right wherever it is offered. The questions that are chosen do not."""
    choices = [question for question in eighty if question.kind == "choice"]
    letters = Counter(question.expected for question in choices)
    assert len(choices) >= 16 and max(letters.values()) - min(letters[letter] for letter in LETTERS) <= 3
    offered: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for question in choices:
        offered.update(map(wording, question.options))
        right[wording(question.options[LETTERS.index(question.expected)])] += 1
    assert all(right[name] <= offered[name] / 4 + 1 for name in right)


def test_long_files_last_half_an_hour_to_an_hour() -> None:
    for minutes, number in ((30.0, 1), (60.0, 1), (61.0, 2), (150.0, 3), (2.0, 1)):
        files = plan_long_files(4, minutes)
        assert len(files) == number and sum(file.minutes for file in files) == pytest.approx(minutes)
        assert all(30.0 <= file.minutes <= 60.0 for file in files) or minutes < 30.0
    short = {file.scene.seed for file in plan_files(4, 300)}
    assert short.isdisjoint(file.scene.seed for file in plan_long_files(4, 150.0))


def test_long_videos_are_asked_more_than_short_ones(
    videos: Mapping[str, Facts], sixty: tuple[list[Question], list[str]]
) -> None:
    questions, _ = sixty
    asked = Counter(question.video for question in questions)
    by_length = sorted(videos, key=lambda key: videos[key].end_s - videos[key].start_s)
    assert asked[by_length[-1]] > asked[by_length[0]]
    assert len(asked) > len(videos) / 2


def test_too_few_questions_are_said(videos: Mapping[str, Facts]) -> None:
    key = min(videos, key=lambda key: videos[key].end_s)
    questions, notes = choose_questions({key: videos[key]}, 3, 500)
    assert 0 < len(questions) < 500
    assert notes and "instead of" in notes[0]


def test_searches_are_half_and_half_and_their_moments_are_true(videos: Mapping[str, Facts]) -> None:
    searches = choose_searches(videos, cameras_of(videos), 3, 20)
    assert Counter(search.num_attributes for search in searches) == {1: 10, 2: 10}
    assert len({(search.text, search.camera) for search in searches}) == 20
    for search in searches:
        assert search.right
        for key, low, high in search.right:
            assert videos[key].start_s <= low < high <= videos[key].end_s
            assert search.camera in (None, cameras_of(videos)[key])
    red = next((search for search in searches if search.text == "a person falling down"), None)
    if red is not None and red.camera is None:
        claim = Claim("person", action="fall")
        true = {(key, *span) for key, facts in videos.items() for span in claim.intervals(facts)}
        assert set(red.right) == true


RIGHT = ("v", 100.0, 120.0)


@pytest.mark.parametrize(
    ("moment", "matches"),
    [
        (("v", 100.0, 120.0), True),
        (("v", 104.0, 108.0), True),  # inside
        (("v", 90.0, 150.0), True),  # IoU a third
        (("v", 84.0, 144.0), True),  # its middle is inside, 60 s
        (("v", 80.0, 180.0), False),  # holds it, but is mostly something else
        (("v", 60.0, 160.0), False),  # even when its middle is inside
        (("v", 60.0, 108.0), False),
        (("v", 120.0, 124.0), False),
        (("w", 100.0, 120.0), False),
    ],
)
def test_matches(moment: tuple[str, float, float], matches: bool) -> None:
    assert is_match(moment, RIGHT) is matches


def test_a_long_moment_inside_a_longer_truth_is_right() -> None:
    assert is_match(("v", 100.0, 200.0), ("v", 0.0, 1000.0))


def test_ranks_leave_doubtful_moments_out() -> None:
    search = Search("s", "x", 1, (RIGHT,), (("v", 0.0, 10.0),))
    wrong, unsure, right = ("v", 500.0, 510.0), ("v", 2.0, 8.0), ("v", 104.0, 112.0)
    assert first_right(search, [right]) == 1
    assert first_right(search, [wrong, right]) == 2
    assert first_right(search, [unsure, wrong, unsure, right]) == 2
    assert first_right(search, [wrong, unsure]) is None
    assert first_right(search, []) is None


def test_chance_is_that_of_a_blind_ranking_of_moments_in_scope() -> None:
    facts = Facts("gate", 0.0, 240.0, (), ())
    search = Search("s", "x", 1, (("a/x", 26.0, 40.0),), ())
    everything = {"a/x": facts, "b/x": facts}
    cameras = {"a/x": "a", "b/x": "b"}
    assert chance_of(search, everything, cameras) == {
        "recall1": pytest.approx(1 / 20),
        "recall5": pytest.approx(5 / 20),
    }
    scoped = Search("s", "x", 1, (("a/x", 26.0, 40.0),), (("a/x", 0.0, 20.0),), "a")
    assert chance_of(scoped, everything, cameras) == {"recall1": pytest.approx(1 / 9), "recall5": pytest.approx(5 / 9)}
