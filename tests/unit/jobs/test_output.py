"""Standard output belongs to the result: nothing else reaches it, and no name drives the terminal."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys

import pytest

from jobs.output import JsonLines, Output, claimed_stdout, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Kamera Süd – 入口", "Kamera Süd – 入口"),
        ("a b", "a b"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("one\ntwo\r\tthree", "one\\ntwo\\r\\tthree"),
        ("right\u202eto left", "right\\u202eto left"),
        ("no text \udcff", "no text \\udcff"),
        ("back\\slash 'quote'", "back\\slash 'quote'"),
    ],
)
def test_control_characters_are_shown_not_obeyed(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def run(body: str, *, expected: int = 0) -> subprocess.CompletedProcess[str]:
    code = "import os, sys\nfrom jobs.output import claimed_stdout\n" + body
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, encoding="utf-8", env=buffered
    )
    assert done.returncode == expected, done.stderr
    return done


def test_stray_writes_to_descriptor_1_stay_out_of_the_document() -> None:
    """Ray's core writes to the descriptor; a print stayed in Python's buffer and came out behind the document."""
    done = run(
        "with claimed_stdout(True) as out:\n"
        "    os.write(1, b'from the core\\n')\n"
        "    print('from a library')\n"
        "    os.system('echo from a child')\n"
        "    out.document({'answer': 'schön'})\n"
        "    print('and afterwards')\n"
    )
    assert json.loads(done.stdout) == {"answer": "schön"}
    assert done.stdout.count("\n") == 1
    for stray in ("from the core", "from a library", "from a child", "and afterwards"):
        assert stray in done.stderr


def test_what_was_printed_before_and_after_stays_on_standard_output() -> None:
    done = run("print('before')\nwith claimed_stdout(False) as out:\n    out.text('inside')\nprint('after')\n")
    assert done.stdout == "before\ninside\nafter\n"
    assert done.stderr == ""


def test_standard_output_is_given_back_after_an_error() -> None:
    done = run(
        "try:\n"
        "    with claimed_stdout(True) as out:\n"
        "        out.text('half')\n"
        "        raise KeyError\n"
        "except KeyError:\n"
        "    print('given back')\n"
    )
    assert done.stdout == "half\ngiven back\n"


def test_names_that_are_no_text_do_not_break_the_document() -> None:
    done = run("with claimed_stdout(True) as out:\n    out.document({'uri': 'a\\udcff'})\n")
    assert "\\udcff" in done.stdout


def test_a_captured_standard_output_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with claimed_stdout(True) as out:
        assert out.as_json
        out.document({"a": 1})
    assert json.loads(stream.getvalue()) == {"a": 1}


def test_tables_keep_every_character_when_piped_and_escape_cells() -> None:
    stream = io.StringIO()
    long = "s3://bucket/" + "x" * 300
    Output(stream, False).table(["a", "uri"], [["1", long], ["22", "\x1b[31m[bold]red"]], right=(0,))
    text = stream.getvalue()
    assert "\x1b" not in text and "\\x1b[31m[bold]red" in text
    assert text.replace("\n", "").replace(" ", "").count("x" * 300) == 1
    assert " 1" in text and "22" in text


def test_a_log_line_is_one_json_object_with_its_error() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("pipeline.x", logging.WARNING, "f", 1, "tried %r", ("a\nb",), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line
    document = json.loads(line)
    assert (document["level"], document["logger"], document["message"]) == ("WARNING", "pipeline.x", "tried 'a\\nb'")
    assert "ValueError: two" in document["error"]
    assert document["time"].endswith("+00:00")
