"""The SDK as an application developer uses it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from pipeline import Answer, Archive, ArchiveError, EvidenceUnavailable, UsageError


@pytest.fixture
def archive(indexed: Path) -> Archive:
    return Archive(indexed, time_zone="Europe/Berlin")


def test_queries_are_immutable_and_refine(archive: Archive) -> None:
    everything = archive.search("somebody")
    gate = everything.cameras("gate").limit(2)
    assert len(list(gate)) == 2
    assert {moment.camera for moment in gate} == {"gate"}
    assert {moment.camera for moment in everything} == {"gate", "yard"}
    evening = everything.between(datetime(2026, 3, 2), "2026-03-03").time_range("22:00", "23:00")
    assert {moment.start_time.isoformat()[:10] for moment in evening if moment.start_time} == {"2026-03-02"}
    assert everything.to_dicts()[0]["rank"] == 1
    table = everything.to_arrow()
    assert table.num_rows == len(list(everything))
    assert str(table.schema.field("start_time").type) == "timestamp[us, tz=UTC]"


def test_naive_times_need_a_zone(indexed: Path) -> None:
    with pytest.raises(UsageError, match="time zone"):
        Archive(indexed).search("x").between(datetime(2026, 3, 1), None).run()


def test_evidence(archive: Archive, tmp_path: Path) -> None:
    moment = next(iter(archive.search("somebody").cameras("yard")))
    thumbnail = moment.thumbnail()
    assert thumbnail is not None
    assert thumbnail.startswith(b"\xff\xd8")
    assert moment.clip(tmp_path / "clips" / "a.mp4").stat().st_size > 0
    assert moment.frames(fps=1)[0].ndim == 3


def test_lost_sources_are_said(tmp_path: Path, clip: Path) -> None:
    footage = tmp_path / "a.mp4"
    footage.write_bytes(clip.read_bytes())
    archive = Archive(tmp_path / "archive")
    assert archive.ingest(footage).indexed == 1
    moment = next(iter(archive.search("x")))
    picture = moment.thumbnail()
    footage.unlink()
    assert picture is not None
    assert moment.thumbnail() == picture
    with pytest.raises(EvidenceUnavailable):
        moment.frames()
    assert not list(tmp_path.glob("**/*.tmp"))


def test_answers_stream(archive: Archive) -> None:
    *pieces, last = archive.ask_stream("What happens?", max_new_tokens=12)
    assert isinstance(last, Answer)
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    assert last.answer.startswith(text.strip()[:20])
    with pytest.raises(UsageError):
        list(archive.ask_stream(" "))


def test_errors_are_of_one_family(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError):
        Archive(tmp_path / "none").videos()
