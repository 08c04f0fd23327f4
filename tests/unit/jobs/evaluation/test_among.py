"""Questions asked of several videos at once."""

from __future__ import annotations

from jobs.evaluation.among import OTHERS, figures_among, task_id, tasks_among
from jobs.evaluation.metrics import document
from jobs.evaluation.report import to_markdown
from tests.unit.jobs.evaluation.samples import asked, make_run, question

KINDS = {
    "gate-1/x.mp4": "gate",
    "gate-2/y.mp4": "gate",
    "shop-3/a.mp4": "shop",
    "shop-4/b.mp4": "shop",
    "street-5/c.mp4": "street",
    "parking-6/d.mp4": "parking",
}
URIS = {key: f"file:///{key}" for key in KINDS}


def test_every_third_question_names_its_place_beside_two_other_kinds_of_camera() -> None:
    items = [question("exists", number, question="Does somebody run?") for number in range(30)]
    tasks = tasks_among(items, KINDS, URIS, seed=5)
    assert [task["id"] for task in tasks] == [task_id(item) for item in items[::3]]
    for task in tasks:
        assert task["kind"] == "ask" and task["question"] == "Does somebody run at the gate?"
        own, *others = (uri.removeprefix("file:///") for uri in task["videos"])
        assert own == "gate-1/x.mp4" and len(others) == OTHERS
        assert len({KINDS[key] for key in (own, *others)}) == OTHERS + 1, "the place is of one video only"
    assert len({tuple(task["videos"]) for task in tasks}) > 3
    assert tasks == tasks_among(items, KINDS, URIS, seed=5) != tasks_among(items, KINDS, URIS, seed=6)


def test_nothing_is_asked_so_in_which_times_matter() -> None:
    timed = [
        question("when"),
        question("order"),
        question("count", question="How many people are there at 17 seconds?"),
        question("choice", question="When?\nA. 1 to 3 seconds\nB. 5 to 7 seconds"),
    ]
    assert tasks_among(timed, KINDS, URIS, seed=5) == []
    assert len(tasks_among([*timed, question("choice")], KINDS, URIS, seed=5)) == 1


def test_where_all_cameras_are_of_one_kind_nothing_is_asked_so() -> None:
    assert tasks_among([question("exists")], {"gate-1/x.mp4": "gate", "gate-2/y.mp4": "gate"}, URIS, seed=5) == []


def test_figures_compare_the_same_questions() -> None:
    items = [
        asked("exists", {"bilevel"}, 0, among_answer="no"),
        asked("exists", {"bilevel"}, 1, among_answer="yes"),
        asked("exists", set(), 2, among_answer="Yes."),
        asked("exists", {"bilevel"}, 3, among_answer=""),
        asked("exists", set(), 4),
    ]
    found = figures_among(items)
    assert found["right"]["n"] == found["alone"]["n"] == found["difference"]["n"] == 4
    assert found["right"]["value"] == 0.5 and found["alone"]["value"] == 0.75
    assert found["difference"]["value"] == -0.25


def test_the_report_tells_of_several_videos_where_they_were_asked() -> None:
    plain = document(make_run())
    assert plain["among_videos"]["right"]["n"] == 0 and "three videos" not in to_markdown(plain)
    run = make_run(questions=(asked("exists", {"bilevel"}, 0, among_answer="no"),))
    assert "| `ask` | 1 | 0.000 | 1.000 | -1.000 |" in to_markdown(document(run))
