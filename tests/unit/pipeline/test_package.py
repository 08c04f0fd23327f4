"""The SDK's surface: pinned, complete, and free until it is used."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import pipeline
from pipeline import errors, results

PUBLIC = [
    "AnomalyResult",
    "Answer",
    "Archive",
    "ArchiveBusy",
    "ArchiveError",
    "Citation",
    "ConfigError",
    "Coverage",
    "DecoderCrashed",
    "DecoderTimeout",
    "Event",
    "EvidenceUnavailable",
    "IngestReport",
    "MediaChanged",
    "MediaError",
    "MediaFetchError",
    "ModelMismatch",
    "Moment",
    "ScratchFull",
    "SearchQuery",
    "SearchResult",
    "Settings",
    "SourceUnavailable",
    "StageError",
    "StorageError",
    "StorageFull",
    "UnreadableMedia",
    "UsageError",
    "VideoReport",
    "WorkerLost",
    "load_settings",
]


def test_the_surface_is_pinned() -> None:
    assert sorted(pipeline.__all__) == PUBLIC
    assert sorted(pipeline._HOME_OF) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_that_of_its_home(name: str) -> None:
    found = getattr(pipeline, name)
    assert (found.__name__, found.__module__) == (name, pipeline._HOME_OF[name])


def test_every_error_is_public() -> None:
    classes = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__}
    assert classes <= set(PUBLIC)


def test_every_document_is_public() -> None:
    documents = {
        name
        for name, kind in inspect.getmembers(results, inspect.isclass)
        if kind.__module__ == results.__name__ and hasattr(kind, "to_dict")
    }
    assert documents - {"Timings", "Context"} <= set(PUBLIC)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = pipeline.nothing_like_it


def test_importing_the_packages_loads_no_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import pipeline, indexers, videoxl2, jobs\n"
        "print(*sorted({n.split('.')[0] for n in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["indexers", "jobs", "pipeline", "videoxl2"]
