"""The SDK border: addresses, translated errors, immutable queries, and what a query gives back."""

from __future__ import annotations

import dataclasses
import inspect
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from indexers import errors as store_errors
from indexers.folder import LocalFolder
from indexers.testing import make_video
from pipeline import Archive, SearchQuery
from pipeline.address import open_folder
from pipeline.archive import translate, translated
from pipeline.config import Settings
from pipeline.errors import (
    ArchiveBusy,
    ArchiveError,
    ConfigError,
    ModelMismatch,
    StorageError,
    StorageFull,
    UsageError,
)
from pipeline.s3 import S3Settings
from tests.unit.pipeline.samples import START, make_archive
from videoxl2 import errors as model_errors


def classes(module: Any, base: type[Exception]) -> list[type[Exception]]:
    return [kind for _, kind in inspect.getmembers(module, inspect.isclass) if issubclass(kind, base)]


def make(kind: type[Exception]) -> Exception:
    """An instance, whatever the constructor wants."""
    if kind is store_errors.DiskFull:
        return store_errors.DiskFull("the where", 2_000_000, 1_000_000)
    wanted = [
        parameter
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if name != "self"
        and parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    error = kind(*(f"the {parameter.name}" for parameter in wanted))
    return error if wanted else kind("the message")


LOWER = classes(store_errors, store_errors.StoreError) + classes(model_errors, model_errors.ModelError)
EXPECTED: dict[type[Exception], type[ArchiveError]] = {
    store_errors.ArchiveLocked: ArchiveBusy,
    store_errors.DiskFull: StorageFull,
    store_errors.SchemaMismatch: ModelMismatch,
    model_errors.FingerprintMismatch: ModelMismatch,
    **{
        kind: ConfigError
        for kind in classes(model_errors, model_errors.ModelError)
        if kind is not model_errors.FingerprintMismatch
    },
}


@pytest.mark.parametrize("kind", LOWER, ids=lambda kind: kind.__name__)
def test_every_lower_error_has_its_own_archive_error_with_the_same_words(kind: type[Exception]) -> None:
    error = make(kind)
    presented = translate(error)
    assert type(presented) is EXPECTED.get(kind, StorageError)
    assert (error.cause if isinstance(error, store_errors.DiskFull) else str(error)) in str(presented)


@pytest.mark.parametrize("kind", LOWER, ids=lambda kind: kind.__name__)
def test_a_translated_call_raises_the_archive_error_from_its_cause(kind: type[Exception]) -> None:
    error = make(kind)

    @translated
    def call() -> None:
        raise error

    with pytest.raises(ArchiveError) as caught:
        call()
    assert caught.value.__cause__ is error


def test_other_errors_pass_untouched() -> None:
    @translated
    def call(error: Exception) -> None:
        raise error

    for error in (UsageError("mine"), ValueError("a bug")):
        with pytest.raises(type(error)) as caught:
            call(error)
        assert caught.value is error


def test_every_public_method_that_does_work_is_translated() -> None:
    lazy = {"search", "ask_stream"}  # give a query or a generator, whose work is translated itself
    methods = {name: method for name, method in vars(Archive).items() if inspect.isfunction(method) and name[0] != "_"}
    assert {name for name, method in methods.items() if not hasattr(method, "__wrapped__")} == lazy
    assert hasattr(SearchQuery.run, "__wrapped__")


def test_addresses_become_absolute_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for address, path in {
        "a.vxl": tmp_path / "a.vxl",
        Path("a.vxl"): tmp_path / "a.vxl",
        f"file://{tmp_path}/b": tmp_path / "b",
        "~/c": tmp_path / "me" / "c",
    }.items():
        assert open_folder(address, S3Settings()) == LocalFolder(path)


@pytest.mark.parametrize("address", ["", "  "])
def test_an_empty_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="VXL_ARCHIVE"):
        open_folder(address, S3Settings())


@pytest.mark.parametrize("address", ["gs://b/a", "http://x/y", "~nobody-of-this-name/a"])
def test_an_address_that_cannot_work_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=address.replace(".", r"\.")):
        open_folder(address, S3Settings())


def test_a_file_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        Archive(tmp_path / "file")


def test_opening_costs_nothing_and_the_first_use_of_an_absent_archive_says_how_to_make_one(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "absent")
    with pytest.raises(ConfigError, match="vxl ingest"):
        archive.videos()
    assert not (tmp_path / "absent").exists()


def refinements(query: SearchQuery) -> dict[str, SearchQuery]:
    return {
        "cameras": query.cameras("gate", "yard"),
        "between": query.between("2026-03-01T00:00Z", None),
        "time_range": query.time_range("22:00", "06:00"),
        "time_zone": query.time_zone("UTC"),
        "where": query.where(camera="gate").where(video="a.mp4").where(camera="yard"),
        "limit": query.limit(3),
    }


def test_refining_gives_a_new_query_and_leaves_the_old(tmp_path: Path) -> None:
    query = Archive(tmp_path / "a", time_zone="Europe/Berlin").search("car")
    before = dataclasses.asdict(dataclasses.replace(query, archive=None))  # type: ignore[arg-type]
    changed = refinements(query)
    assert all(refined is not query and refined != query for refined in changed.values())
    assert dataclasses.asdict(dataclasses.replace(query, archive=None)) == before  # type: ignore[arg-type]
    assert (query.limit_, query.zone) == (Settings().query.limit, "Europe/Berlin")
    assert changed["cameras"].cameras_ == changed["where"].cameras_ == ("gate", "yard")
    assert changed["where"].videos_ == ("a.mp4",)
    assert changed["between"].after == "2026-03-01T00:00Z"
    assert changed["time_range"].daily == ("22:00", "06:00")
    assert (changed["limit"].limit_, changed["time_zone"].zone) == (3, "UTC")
    public = {name for name, value in vars(SearchQuery).items() if inspect.isfunction(value) and name[0] != "_"}
    assert public - set(changed) == {"run", "to_dicts", "to_arrow", "to_pandas"}


def test_a_query_cannot_be_changed_in_place(tmp_path: Path) -> None:
    query = Archive(tmp_path / "a").search("car")
    for field in dataclasses.fields(query):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(query, field.name, None)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    videos = [make_video("a"), make_video("b", camera="yard", start_time=None)]
    return Archive(make_archive(tmp_path_factory.mktemp("archives") / "two", videos))


def test_iterating_runs_the_query(archive: Archive) -> None:
    moments = list(archive.search("a red car").limit(4))
    assert [moment.rank for moment in moments] == list(range(1, len(moments) + 1))
    assert {moment.camera for moment in archive.search("car").cameras("yard")} == {"yard"}
    assert len(list(archive.search("car").limit(1))) == 1
    assert archive.search("car").limit(4).to_dicts() == [moment.to_dict() for moment in archive.search("car").limit(4)]


def test_arrow_has_one_schema_with_and_without_rows(archive: Archive) -> None:
    table = archive.search("car").to_arrow()
    none = archive.search("car").between("2030-01-01T00:00Z", None).to_arrow()
    assert none.num_rows == 0 and none.schema == table.schema
    assert table.schema.field("start_time").type == pa.timestamp("us", tz="UTC")
    moments = list(archive.search("car"))
    assert table.num_rows == len(moments)
    for row, moment in zip(table.to_pylist(), moments, strict=True):
        assert {name: getattr(moment, name) for name in table.schema.names} == row
    assert set(moments[0].to_dict()) == set(table.schema.names)


def test_a_time_range_by_datetime_and_by_text_is_the_same(archive: Archive) -> None:
    by_time = archive.search("car").between(START, datetime.fromisoformat("2026-03-01T09:00:00+01:00").replace(hour=12))
    by_text = archive.search("car").between("2026-03-01T08:00", "2026-03-01T11:00").time_zone("UTC")
    assert by_time.to_dicts() == by_text.to_dicts() != []


@pytest.mark.parametrize(
    ("refine", "words"),
    [
        (lambda q: q.cameras("roof"), "unknown camera 'roof'; the archive has: 'gate', 'yard'"),
        (lambda q: q.where(video="/none.mp4"), "unknown video"),
        (lambda q: q.between("2026-03-01T08:00", None), "no time zone"),
        (lambda q: q.time_range("22:00", "06:00"), "--time-zone"),
        (lambda q: q.time_range("22:00", "22:00").time_zone("UTC"), "empty"),
        (lambda q: q.limit(0), "--limit 0"),
        (lambda q: dataclasses.replace(q, text=" "), "text is empty"),
    ],
)
def test_a_wrong_query_is_refused_when_it_runs(archive: Archive, refine: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        refine(archive.search("car")).run()


def test_an_archive_of_other_weights_is_refused(tmp_path: Path) -> None:
    from pipeline.recipe import Manifest, write_manifest
    from tests.unit.pipeline.samples import tiny_recipe

    folder = make_archive(tmp_path / "a")
    for field in ("weights_digest", "encoder_digest"):
        write_manifest(folder, Manifest(model="tiny", recipe=tiny_recipe(**{field: "0" * 32})))
        with pytest.raises(ModelMismatch, match="other weights"):
            Archive(folder).search("car").run()


def test_a_checkpoint_that_changed_beside_its_weights_is_refused_by_the_name_of_the_field(tmp_path: Path) -> None:
    """Asking used to compare weights only: KV was served to a model of another rotation and to other token ids."""
    from pipeline.config import IngestSettings
    from pipeline.recipe import Manifest, make_recipe, write_manifest
    from videoxl2.checkpoint import read_checkpoint_info, resolve_checkpoint

    model, folder = tmp_path / "model", make_archive(tmp_path / "a")
    shutil.copytree(resolve_checkpoint("tiny"), model)
    recipe = make_recipe(read_checkpoint_info(model), IngestSettings(), "float32")
    write_manifest(folder, Manifest(model=str(model), recipe=recipe))
    Archive(folder).search("car").run()
    config, tokenizer, encoder_config, encoder_tokenizer = (
        model / name
        for name in ("config.json", "tokenizer.json", "dual_encoder/config.json", "dual_encoder/tokenizer.json")
    )
    for path, old, new, field in (
        (config, '"rope_theta": 1000000.0', '"rope_theta": 10000.0', "architecture.language.rope_theta"),
        (config, '"mm_spatial_pool_mode": "average"', '"mm_spatial_pool_mode": "max"', "architecture.pool_mode"),
        (tokenizer, '"version":"1.0"', '"version": "1.0"', "tokenizer_digest"),
        (encoder_tokenizer, '"version":"1.0"', '"version": "1.0"', "encoder_tokenizer_digest"),
        (encoder_config, '"num_attention_heads": 4', '"num_attention_heads": 2', "encoder.image.num_heads"),
        (encoder_config, '"pad_token_id": 896', '"pad_token_id": 1', "encoder.text.pad_id"),
    ):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ModelMismatch, match=f"another {field}"):
            Archive(folder).search("car").run()
        with pytest.raises(ModelMismatch, match=f"another {field}"):
            Archive(folder).ask("what?")
        path.write_text(text)


def test_a_program_that_lays_out_kv_in_another_way_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_archive(tmp_path / "a")
    for name, other, field in (
        ("KV_LAYOUT_VERSION", 99, "kv_layout_version"),
        ("PREPROCESSING", "x", "preprocessing"),
        ("prefix_text", lambda: "You see a video.", "prompt_text"),
        ("timestamp_text", lambda t_s: f"At {t_s:.2f} s:", "timestamp_text"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"pipeline.recipe.{name}", other)
            with pytest.raises(ModelMismatch, match=f"another {field}"):
                Archive(folder).search("car").run()


def test_a_stream_ends_with_the_answer_and_raises_what_asking_raises(archive: Archive) -> None:
    pieces = list(archive.ask_stream("what?", after="2030-01-01T00:00Z"))
    assert [type(piece).__name__ for piece in pieces] == ["Answer"]
    with pytest.raises(UsageError, match="question is empty"):
        list(archive.ask_stream(" "))
