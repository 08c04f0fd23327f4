"""One row of each published annotation form; any field may be given."""

from __future__ import annotations

from typing import Any


def mlvu_row(**changes: Any) -> dict[str, Any]:
    row = {
        "video": "needle_1.mp4",
        "duration": 3.0,
        "question": "What does the hand take?",
        "candidates": ["A card", "A phone", "A cup", "A key"],
        "answer": "A cup",
        "question_type": "findNeedle",
    }
    return {**row, **changes}


def videomme_row(**changes: Any) -> dict[str, Any]:
    row = {
        "video_id": "001",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Geography",
        "url": "https://www.youtube.com/watch?v=abcDEF12_-x",
        "videoID": "abcDEF12_-x",
        "question_id": "001-1",
        "task_type": "Counting Problem",
        "question": "How many boats pass?",
        "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
        "answer": "C",
    }
    return {**row, **changes}


def lvbench_qa(**changes: Any) -> dict[str, Any]:
    row = {
        "uid": "7",
        "question": "Who opens the door?\n(A) A man\n(B) A woman\n(C) A child\n(D) Nobody",
        "answer": "B",
        "question_type": ["event understanding", "reasoning"],
        "time_reference": "00:01-00:02",
    }
    return {**row, **changes}


def longvideobench_row(**changes: Any) -> dict[str, Any]:
    row = {
        "id": "v1_0",
        "video_id": "v1",
        "video_path": "v1.mp4",
        "subtitle_path": "v1_en.json",
        "question": "What is on the wall?",
        "candidates": ["A map", "A clock", "A lamp", "A coat", "A sign"],
        "correct_choice": 3,
        "duration": 3.0,
        "duration_group": 15,
        "question_category": "S2O",
        "topic_category": "NP-News-Programs",
        "level": "L1-Perception",
        "position": [12, 40],
        "starting_timestamp_for_subtitles": 100.0,
    }
    return {**row, **changes}
