"""Store errors keep their facts, survive pickling, and importing the package loads nothing heavy."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from indexers import errors

CASES = [
    errors.StoreError("boom"),
    errors.StoreUnavailable("/a", "gone"),
    errors.DiskFull("/a", 5_000_000, 1_000_000),
    errors.DiskFull("/a", None, 1_000_000),
    errors.CommitConflict("videos", "twice"),
    errors.SchemaMismatch("videos", "columns"),
    errors.RowConflict("segments", "k", "other settings"),
    errors.CorruptKV("/a.vxlkv", 3, "checksum differs"),
    errors.CorruptKV("/a.vxlkv", None, "checksum differs"),
    errors.MissingKV("/a.vxlkv"),
    errors.CorruptStaging("/a.rows", "cut"),
    errors.ArchiveLocked("/a", "process 1"),
    errors.LeaseLost("s3://b/a", "another process has taken it over"),
]


@pytest.mark.parametrize("error", CASES, ids=lambda error: type(error).__name__)
def test_every_error_survives_pickling_with_its_facts(error: errors.StoreError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_every_class_is_covered_and_only_two_are_retryable() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert {type(case) for case in CASES} == set(classes)
    assert {kind for kind in classes if kind.retryable} == {errors.StoreUnavailable, errors.CommitConflict}


def test_corrupt_kv_names_file_and_chunk() -> None:
    assert "'/a.vxlkv', chunk 3" in str(CASES[7])
    assert "'/a.vxlkv', header" in str(CASES[8])


def test_the_package_and_all_its_names_load_without_heavy_libraries() -> None:
    """Search must answer in two seconds: torch alone would take most of that, and lancedb is loaded on first use."""
    code = (
        "import sys, indexers\n"
        "assert 'pyarrow' not in sys.modules\n"
        "for name in indexers.__all__: getattr(indexers, name)\n"
        "heavy = {'torch', 'ray', 'boto3', 'av', 'decord', 'transformers', 'lancedb', 'videoxl2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    import indexers

    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = indexers.nothing_like_it
    assert "LanceStore" in dir(indexers)
