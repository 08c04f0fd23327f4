"""Every published annotation form, on items made by hand: what is read from it, what is asked, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.evaluation.benchmarks.charades import CHARADES_STA, parse_line
from jobs.evaluation.benchmarks.items import Benchmark, Item
from jobs.evaluation.benchmarks.loading import InvalidItems, load
from jobs.evaluation.benchmarks.longvideobench import LONG_VIDEO_BENCH, LONG_VIDEO_BENCH_TEST
from jobs.evaluation.benchmarks.lvbench import LVBENCH
from jobs.evaluation.benchmarks.mlvu import MLVU, MLVU_TEST
from jobs.evaluation.benchmarks.registry import BENCHMARKS, find_benchmark
from jobs.evaluation.benchmarks.rows import AnnotationError, RowError
from jobs.evaluation.benchmarks.videomme import VIDEO_MME
from pipeline.errors import UsageError
from tests.unit.jobs.evaluation.benchmarks.samples import longvideobench_row, lvbench_qa, mlvu_row, videomme_row
from videoxl2.selection import unique_id

Put = Callable[..., Path]


def items(benchmark: Benchmark, folder: Path, subtitles: bool = False) -> list[Item]:
    found = list(benchmark.read(folder, subtitles))
    assert all(isinstance(one, Item) for one in found), found
    return [one for one in found if isinstance(one, Item)]


def refused(benchmark: Benchmark, folder: Path) -> str:
    with pytest.raises(InvalidItems) as caught:
        load(benchmark, folder)
    (why,) = caught.value.invalid
    return why


def test_mlvu_dev(put: Put, tmp_path: Path) -> None:
    put("json/2_needle.json", [mlvu_row(), mlvu_row(answer="A key", duration=467.98)])
    put("json/5_order.json", [mlvu_row(video="order_1.mp4", question_type="order")])
    put("json/8_sub_scene.json", [{"video": "x.mp4", "scoring_points": []}])
    put("video/2_needle/needle_1.mp4")
    first, second, third = items(MLVU, tmp_path)
    assert (first.item_id, first.answer, first.letters, first.category) == ("needle-1", "C", "ABCD", "findNeedle")
    assert first.video == tmp_path / "video/2_needle/needle_1.mp4" and first.video.is_file()
    assert first.source == "json/2_needle.json, item 1"
    assert (second.answer, second.duration_s) == ("D", 467.98)
    assert third.category == "order" and not third.video.exists()


def test_mlvu_test_with_and_without_answers(put: Put, tmp_path: Path) -> None:
    question = mlvu_row(question_id="AR_0", candidates=["a", "b", "c", "d", "e", "f"], answer="f")
    without = {name: value for name, value in question.items() if name != "answer"}
    put("test_question.json", [without])
    assert [(item.item_id, item.answer) for item in items(MLVU_TEST, tmp_path)] == [("AR_0", None)]
    put("test-ground-truth/test_mcq_gt.json", [question])
    assert [(item.item_id, item.answer) for item in items(MLVU_TEST, tmp_path)] == [("AR_0", "F")]


def test_mlvu_equal_options_take_the_last_as_published(put: Put, tmp_path: Path) -> None:
    put("1_plotQA.json", [mlvu_row(candidates=["Red", "Blue", "Red", "Green"], answer="Red")])
    assert items(MLVU, tmp_path)[0].answer == "C"


def test_mlvu_prompt_is_the_published_one(put: Put, tmp_path: Path) -> None:
    put("2_needle.json", [mlvu_row(candidates=["A card", "A cup"])])
    prompt = MLVU.prompt(items(MLVU, tmp_path)[0], ())
    assert prompt == "\nWhat does the hand take?\n(A) A card\n(B) A cup\nOnly give the best option.\n\nBest option: ("
    assert unique_id("mlvu", "needle_1.mp4", prompt) == "needle_1.mp4_What does the hand take?"


@pytest.mark.parametrize("form", ["parquet", "json", "template"])
def test_videomme_forms_read_alike(put: Put, tmp_path: Path, form: str) -> None:
    rows = [videomme_row(), videomme_row(question_id="001-2", answer="A", task_type="OCR Problems")]
    if form == "parquet":
        (tmp_path / "videomme").mkdir()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "videomme/test-00000-of-00001.parquet")
    elif form == "json":
        put("videomme.json", rows)
    else:
        video = {name: rows[0][name] for name in ("video_id", "duration", "domain", "sub_category", "url")}
        own = ("question_id", "task_type", "question", "options", "answer")
        put("videomme.json", [{**video, "questions": [{name: row[name] for name in own} for row in rows]}])
    put("data/abcDEF12_-x.mp4")
    first, second = items(VIDEO_MME, tmp_path)
    assert (first.item_id, first.answer, second.item_id, second.answer) == ("001-1", "C", "001-2", "A")
    assert first.video.is_file()
    assert first.options == ("A. One.", "B. Two.", "C. Three.", "D. Four.")
    assert first.categories == {
        "duration": ("short",),
        "task": ("Counting Problem",),
        "domain": ("Knowledge",),
        "sub_category": ("Geography",),
    }


def test_videomme_prompt_is_the_published_one(put: Put, tmp_path: Path) -> None:
    put("videomme.json", [videomme_row(options=["A. One.", "B. Two."], answer="B")])
    (item,) = items(VIDEO_MME, tmp_path)
    assert VIDEO_MME.prompt(item, ()) == (
        "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
        "Respond with only the letter (A, B, C, or D) of the correct option.\nHow many boats pass?\n"
        "['A. One.', 'B. Two.']\n\nAnswer with the option's letter from the given choices directly."
    )
    assert unique_id("videomme", "x.mp4", VIDEO_MME.prompt(item, ())) == "x.mp4_How many boats pass?"


SRT = """1
00:00:00,000 --> 00:00:01,000
<font color="white" size=".72c">Early words</font>

2
00:00:02,500 --> 00:00:04,000
late words
on two lines
"""


def test_videomme_subtitles_are_those_of_the_sampled_frames(put: Put, tmp_path: Path) -> None:
    put("videomme.json", [videomme_row(), videomme_row(video_id="002", videoID="other", question_id="002-1")])
    put("subtitle/abcDEF12_-x.srt", SRT)
    with_lines, without = items(VIDEO_MME, tmp_path, subtitles=True)
    assert VIDEO_MME.prompt_with_subtitles is not None
    begins = VIDEO_MME.prompt_with_subtitles(with_lines, (0.5, 1.0)).split("\n")
    assert begins[:2] == ["This video's subtitles are listed below: ", "Early words"]
    assert begins[2].startswith("Select the best answer") and begins[-1] == "The best answer is:"
    assert "late words on two lines" in VIDEO_MME.prompt_with_subtitles(with_lines, (3.0,))
    assert "\nNo subtitles available\n" in VIDEO_MME.prompt_with_subtitles(without, (0.5,))
    assert items(VIDEO_MME, tmp_path)[0].subtitles == ()


def test_lvbench(put: Put, tmp_path: Path) -> None:
    lines = [
        {"key": "Cm73ma6Ibcs", "type": "cartoon", "qa": [lvbench_qa(), lvbench_qa(uid="8", time_reference="")]},
        {"key": "other", "type": "sport", "qa": [lvbench_qa(uid=9, time_reference="01:02:03-01:02:30")]},
    ]
    put("data/video_info.meta.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    put("videos/Cm73ma6Ibcs.mp4")
    first, second, third = items(LVBENCH, tmp_path)
    assert (first.question, first.answer) == ("Who opens the door?", "B")
    assert first.options == ("(A) A man", "(B) A woman", "(C) A child", "(D) Nobody")
    assert first.categories["question_type"] == ("event understanding", "reasoning")
    assert (first.interval, second.interval, third.interval) == ((1.0, 2.0), None, (3723.0, 3750.0))
    assert (third.item_id, third.source) == ("9", "data/video_info.meta.jsonl, line 2, qa 1")
    prompt = LVBENCH.prompt(first, ())
    assert prompt == (
        "Who opens the door?\nA. (A) A man\nB. (B) A woman\nC. (C) A child\nD. (D) Nobody\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert unique_id("lvbench", "Cm73ma6Ibcs.mp4", prompt) == "Cm73ma6Ibcs_Who opens the door?"


def test_longvideobench_json_and_parquet(put: Put, tmp_path: Path) -> None:
    put("lvb_val.json", [longvideobench_row(), longvideobench_row(id="v1_1", candidates=["x", "y"], correct_choice=0)])
    first, second = items(LONG_VIDEO_BENCH, tmp_path)
    assert (first.answer, first.letters, second.answer, second.letters) == ("D", "ABCDE", "A", "AB")
    assert first.categories == {"duration_group": ("15",), "question_category": ("S2O",)}
    assert LONG_VIDEO_BENCH.prompt(second, ()) == (
        "What is on the wall?\nA. x\nB. y\nAnswer with the option's letter from the given choices directly.\n"
    )
    (tmp_path / "lvb_val.json").unlink()
    row = longvideobench_row(option0="x", option1="y", option2="z", option3="N/A", option4="N/A", correct_choice=2)
    del row["candidates"]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "validation-00000-of-00001.parquet")
    (item,) = items(LONG_VIDEO_BENCH, tmp_path)
    assert (item.options, item.answer) == (("x", "y", "z"), "C")


def test_longvideobench_test_has_no_answers(put: Put, tmp_path: Path) -> None:
    row = longvideobench_row()
    del row["correct_choice"]
    put("lvb_test_wo_gt.json", [row])
    (item,) = items(LONG_VIDEO_BENCH_TEST, tmp_path)
    assert item.answer is None
    assert LONG_VIDEO_BENCH_TEST.score(item, "B").value is None


@pytest.mark.parametrize(
    "lines",
    [
        [{"timestamp": [100.2, 100.4], "text": "first"}, {"timestamp": [102.0, None], "text": "last"}],
        [
            {"start": "00:01:40.200", "end": "00:01:40.400", "line": "first"},
            {"start": "00:01:42.000", "end": "00:01:43.000", "line": "last"},
        ],
    ],
    ids=["timestamp", "clock"],
)
def test_longvideobench_subtitles_that_cover_a_frame(put: Put, tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """The first lasts 0.2 s and counts as one second long; both are moved to the clock of the cut video."""
    put("lvb_val.json", [longvideobench_row()])
    put("subtitles/v1_en.json", lines)
    (item,) = items(LONG_VIDEO_BENCH, tmp_path, subtitles=True)
    assert LONG_VIDEO_BENCH.prompt_with_subtitles is not None
    assert LONG_VIDEO_BENCH.prompt_with_subtitles(item, (0.7,)).startswith("first\nWhat is on the wall?")
    assert LONG_VIDEO_BENCH.prompt_with_subtitles(item, (0.9,)) == LONG_VIDEO_BENCH.prompt(item, ())


def test_charades_text_and_json(put: Put, tmp_path: Path) -> None:
    put("charades_sta_test.txt", "3MSZA 0.3 2.4##person turn a light on.\n\n3MSZA 1 2##person sits # down.\n")
    put("Charades_v1_480/3MSZA.mp4")
    first, second = items(CHARADES_STA, tmp_path)
    assert (first.item_id, first.interval, first.question) == ("3MSZA-1", (0.3, 2.4), "person turn a light on.")
    assert (second.interval, second.question) == ((1.0, 2.0), "person sits # down.")
    assert second.source == "charades_sta_test.txt, line 3" and first.video.is_file()
    (tmp_path / "charades_sta_test.txt").unlink()
    put("test.json", [{"video": "3MSZA.mp4", "caption": "person sits.", "timestamp": [0.3, 2.4]}])
    assert items(CHARADES_STA, tmp_path)[0].interval == (0.3, 2.4)
    entry = {"image_id": "3MSZA.mp4", "caption": "person sits.", "timestamp": [0.3, 2.4], "id": 0}
    put("test.json", {"annotations": [entry], "images": []})
    (item,) = items(CHARADES_STA, tmp_path)
    assert (item.item_id, item.video.is_file()) == ("0", True)
    assert CHARADES_STA.prompt(item, ()) == (
        "Please find the visual event described by a sentence in the video, determining its starting and ending times. "
        "The format should be: 'The event happens in the start time - end time'. For example, The event 'person turn a "
        "light on' happens in the 24.3 - 30.4 seonds. Now I will give you the textual sentence: person sits.. "
        "Please return its start time and end time."
    )


@given(
    st.from_regex(r"[A-Z0-9]{5}", fullmatch=True),
    st.floats(0, 1e4, allow_nan=False),
    st.floats(0.01, 1e4),
    st.text(st.characters(blacklist_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1).filter(str.strip),
)
def test_a_written_charades_line_is_read_back(name: str, start_s: float, length_s: float, sentence: str) -> None:
    item = parse_line(f"{name} {start_s!r} {start_s + length_s!r}##{sentence}", "x, line 1", 1, Path("folder"))
    assert item.interval == (start_s, start_s + length_s)
    assert (item.question, item.video.stem) == (sentence.strip(), name)


@given(st.text())
def test_any_charades_line_is_an_item_or_a_row_error(line: str) -> None:
    try:
        item = parse_line(line, "x, line 1", 1, Path("folder"))
    except RowError as error:
        assert str(error).startswith("x, line 1: ")
    else:
        assert item.interval is not None and 0 <= item.interval[0] < item.interval[1]


@pytest.mark.parametrize(
    ("benchmark", "name", "content", "why"),
    [
        (MLVU, "3_ego.json", [mlvu_row(answer="A dog")], "3_ego.json, item 1: the answer 'A dog' is none of"),
        (MLVU, "3_ego.json", [mlvu_row(candidates="abcd")], "'candidates' should be a list of texts"),
        (MLVU, "3_ego.json", [mlvu_row(question=" ")], "'question' should be a text"),
        (MLVU, "3_ego.json", [mlvu_row(duration="3")], "'duration' should be a number"),
        (
            VIDEO_MME,
            "videomme.json",
            [videomme_row(answer="E")],
            "item 1: the answer 'E' is none of the",
        ),
        (VIDEO_MME, "videomme.json", [videomme_row(duration="tiny")], "the duration 'tiny' is none of short"),
        (
            LVBENCH,
            "video_info.meta.jsonl",
            {"key": "a", "qa": [lvbench_qa(answer="E")]},
            "line 1, qa 1: the answer",
        ),
        (
            LVBENCH,
            "video_info.meta.jsonl",
            {"key": "a", "qa": [lvbench_qa(question="Who?")]},
            "should end in lines",
        ),
        (
            LVBENCH,
            "video_info.meta.jsonl",
            {"key": "a", "qa": [lvbench_qa(time_reference="00:09-00:02")]},
            "ends before it starts",
        ),
        (
            LVBENCH,
            "video_info.meta.jsonl",
            {"key": "a", "qa": [lvbench_qa(time_reference="soon")]},
            "is not mm:ss",
        ),
        (LONG_VIDEO_BENCH, "lvb_val.json", [longvideobench_row(correct_choice=5)], "'correct_choice' 5 is none of"),
        (LONG_VIDEO_BENCH, "lvb_val.json", [longvideobench_row(duration_group=7)], "'duration_group' 7 is none of"),
        (CHARADES_STA, "charades_sta_test.txt", "ABCDE 1.0 2.0 a person", "line 1: not 'VIDEO START END##SENTENCE'"),
        (CHARADES_STA, "charades_sta_test.txt", "ABCDE one 2.0##a person", "should be seconds"),
        (CHARADES_STA, "charades_sta_test.txt", "ABCDE 2.0 2.0##a person", "2 to 2 s is no stretch of time"),
        (CHARADES_STA, "charades_sta_test.txt", "ABCDE 1.0 nan##a person", "is no stretch of time"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(
    put: Put, tmp_path: Path, benchmark: Benchmark, name: str, content: Any, why: str
) -> None:
    put(name, content)
    assert why in refused(benchmark, tmp_path)


@pytest.mark.parametrize(
    ("benchmark", "name", "content", "why"),
    [
        (MLVU, "1_plotQA.json", "[{", "1_plotQA.json is not JSON"),
        (MLVU, "1_plotQA.json", {"video": "x"}, "1_plotQA.json should hold a list"),
        (MLVU, "1_plotQA.json", ["x"], "1_plotQA.json, item 1: an object is expected"),
        (LVBENCH, "video_info.meta.jsonl", '{"key": "a"}\n[', "video_info.meta.jsonl, line 2 is not JSON"),
        (VIDEO_MME, "videomme/test-00000-of-00001.parquet", "no parquet", "is not a Parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    put: Put, tmp_path: Path, benchmark: Benchmark, name: str, content: Any, why: str
) -> None:
    put(name, content)
    with pytest.raises(AnnotationError, match=r"not JSON|list|object|Parquet") as caught:
        load(benchmark, tmp_path)
    assert why in str(caught.value)


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_a_folder_without_annotation_says_what_was_looked_for(benchmark: Benchmark, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="looked for"):
        load(benchmark, tmp_path)
    with pytest.raises(AnnotationError, match="is not there"):
        load(benchmark, tmp_path / "absent")


def test_benchmarks_are_found_by_name() -> None:
    assert find_benchmark("Video-MME") is VIDEO_MME
    assert find_benchmark("charades_sta") is CHARADES_STA
    with pytest.raises(UsageError, match="mlvu, mlvu-test, videomme"):
        find_benchmark("imagenet")
