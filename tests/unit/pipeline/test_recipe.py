"""The recipe decides the fingerprint, names what differs, and its file is written whole and read with suspicion."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

from indexers import container
from indexers.records import SCHEMA_VERSION
from pipeline.config import IngestSettings, Settings
from pipeline.errors import ConfigError, ModelMismatch
from pipeline.ingest_run import run_ingest
from pipeline.recipe import MANIFEST_NAME, RECORDED_LATER, Manifest, Recipe, make_recipe, read_manifest, write_manifest
from tests.unit.pipeline.samples import tiny_recipe
from videoxl2.checkpoint import read_checkpoint_info, resolve_checkpoint
from videoxl2.config import GroupSpec, LevelSettings, PrefillSettings
from videoxl2.errors import ModelError

RECIPE = tiny_recipe()


def other(value: Any) -> Any:
    """A value of the same kind that is not ``value``."""
    match value:
        case bool():
            return not value
        case str():
            return {"chunked": "plain", "average": "max"}.get(value, f"{value}x")
        case int() | float():
            return value + 1
        case None:
            return 7
        case list() | tuple():
            return [*value, 1]
    raise TypeError(f"no other {value!r}")


def flipped(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """``value`` once for every leaf in it, with that leaf changed."""
    if not isinstance(value, dict):
        yield path, other(value)
        return
    for name, inner in value.items():
        for where, changed in flipped(inner, (*path, name)):
            yield where, {**value, name: changed}


FLIPPED = list(flipped(RECIPE.model_dump(mode="json")))


def recipe_of(document: dict[str, Any]) -> Recipe:
    """The recipe of these values, sensible together or not."""
    return Recipe.model_construct(**{**document, "prefill": PrefillSettings.model_construct(**document["prefill"])})


def test_every_field_is_flipped_by_these_tests() -> None:
    assert {path[0] for path, _ in FLIPPED} == set(Recipe.model_fields)
    assert {path[1] for path, _ in FLIPPED if path[0] == "prefill"} == set(PrefillSettings.model_fields)


@pytest.mark.parametrize(("path", "document"), FLIPPED, ids=[".".join(path) for path, _ in FLIPPED])
def test_any_difference_changes_the_fingerprint_and_is_named(path: tuple[str, ...], document: dict[str, Any]) -> None:
    changed = recipe_of(document)
    assert changed.fingerprint != RECIPE.fingerprint
    with pytest.raises(ModelMismatch, match=f"another {path[0]}") as caught:
        RECIPE.require_equal(changed, "/archive")
    assert "'/archive'" in str(caught.value)


def test_fingerprints_of_all_differences_differ() -> None:
    prints = [recipe_of(document).fingerprint for _, document in FLIPPED]
    assert len({*prints, RECIPE.fingerprint}) == len(FLIPPED) + 1
    assert all(len(text) == 32 for text in prints)


@pytest.mark.parametrize("absent", [RECORDED_LATER, *((name,) for name in RECORDED_LATER)], ids=",".join)
def test_an_archive_made_before_a_field_was_recorded_keeps_its_fingerprint(absent: tuple[str, ...]) -> None:
    old = RECIPE.model_copy(update=dict.fromkeys(absent))
    fields = {name: value for name, value in RECIPE.model_dump(mode="json").items() if name not in absent}
    assert Recipe.model_validate(fields) == old
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    assert old.fingerprint == xxhash.xxh3_128_hexdigest(text.encode())
    old.require_equal(RECIPE, "a")


def test_both_values_are_shown() -> None:
    with pytest.raises(ModelMismatch, match=r"another fps: the archive has 1\.0, this run 2\.0"):
        RECIPE.require_equal(RECIPE.model_copy(update={"fps": 2.0}), "a")


def test_the_same_recipe_is_accepted_and_has_the_same_fingerprint() -> None:
    assert recipe_of(RECIPE.model_dump(mode="json")).fingerprint == RECIPE.fingerprint
    again = Recipe.model_validate_json(RECIPE.model_dump_json())
    RECIPE.require_equal(again, "a")
    assert again.fingerprint == RECIPE.fingerprint


def test_the_order_of_fields_does_not_matter() -> None:
    def turned(value: Any) -> Any:
        return {name: turned(value[name]) for name in reversed(value)} if isinstance(value, dict) else value

    again = Recipe.model_validate(turned(RECIPE.model_dump(mode="json")))
    assert list(again.architecture) != list(RECIPE.architecture)
    assert again.fingerprint == RECIPE.fingerprint


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (IngestSettings(fps=2.0), "fps"),
        (IngestSettings(segment_s=None), "segment_s"),
        (IngestSettings(prefill=PrefillSettings(previous_blocks=2)), "prefill"),
        (IngestSettings(levels=LevelSettings(chunk_groups=3)), "chunk_groups"),
        (IngestSettings(levels=LevelSettings(compression=2)), "compression"),
    ],
)
def test_settings_that_change_stored_bytes_reach_the_recipe(settings: IngestSettings, field: str) -> None:
    info = read_checkpoint_info(resolve_checkpoint("tiny"))
    made = make_recipe(info, settings, "float32")
    differing = {name for name in Recipe.model_fields if getattr(made, name) != getattr(RECIPE, name)}
    assert differing == {field}
    ingest = Manifest(model="tiny", recipe=made).ingest
    assert ingest == settings


def test_settings_of_queries_do_not_change_the_recipe() -> None:
    info = read_checkpoint_info(resolve_checkpoint("tiny"))
    levels = LevelSettings(max_dense_chunks=1, dense_share=0.3, dense_first_last=False)
    assert make_recipe(info, IngestSettings(levels=levels), "float32") == RECIPE


def test_a_search_head_of_another_width_than_the_visual_tokens_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    info = read_checkpoint_info(resolve_checkpoint("tiny"))
    head = GroupSpec(token_width=96, width=64, mlp_width=96, num_layers=1, num_heads=2, embedding_width=128)
    monkeypatch.setattr(GroupSpec, "from_config", lambda config: head)
    with pytest.raises(ModelError, match=r"visual tokens of width 96, the model's have 128"):
        make_recipe(info, IngestSettings(), "float32")


@pytest.mark.parametrize("codec", ["exact", "int8", "int4"])
def test_the_codec_is_no_part_of_the_fingerprint(codec: str) -> None:
    """A segment may be encoded anew later, and what was computed stays what it was."""
    info = read_checkpoint_info(resolve_checkpoint("tiny"))
    assert make_recipe(info, IngestSettings.model_validate({"codec": codec}), "float32") == RECIPE


MANIFEST = Manifest(model="tiny", recipe=RECIPE)


def test_a_manifest_reads_back_as_it_was_written(tmp_path: Path) -> None:
    write_manifest(tmp_path / "new" / "archive", MANIFEST)
    assert read_manifest(tmp_path / "new" / "archive") == MANIFEST
    assert [path.name for path in (tmp_path / "new" / "archive").iterdir()] == [MANIFEST_NAME]


def test_no_archive_is_no_manifest(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    assert read_manifest(tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "damaged"),
        (b'{"format": "vxl-arch', "damaged"),
        (b"\xff\xfe\x00", "damaged"),
        (b"[]", "not the manifest"),
        (b'{"format": "something else"}', "not the manifest"),
        (b'{"format": "vxl-archive"}', "damaged"),
        (b'{"format": "vxl-archive", "recipe": 5}', "damaged"),
        (b'{"format": "vxl-archive", "recipe": {"fps": 1}}', "damaged"),
    ],
)
def test_a_damaged_manifest_is_a_config_error_that_names_it(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        read_manifest(tmp_path)
    assert MANIFEST_NAME in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_manifest_with_a_field_too_many_is_damaged(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    document = json.loads((tmp_path / MANIFEST_NAME).read_text())
    document["recipe"]["surprise"] = 1
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="damaged"):
        read_manifest(tmp_path)


def test_another_schema_is_a_mismatch_that_names_both(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    document = json.loads((tmp_path / MANIFEST_NAME).read_text())
    document["recipe"]["schema_version"] = SCHEMA_VERSION + 1
    document["a field of the future"] = True
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(document))
    with pytest.raises(ModelMismatch, match=f"schema version {SCHEMA_VERSION + 1}.*writes {SCHEMA_VERSION}"):
        read_manifest(tmp_path)


def test_a_manifest_that_cannot_be_opened_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / MANIFEST_NAME).mkdir()
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(ConfigError, match="cannot read archive"):
            read_manifest(folder)


def test_a_writer_that_dies_leaves_the_old_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(tmp_path, MANIFEST)

    class Killed(BaseException):
        pass

    def die(*arguments: object) -> None:
        raise Killed

    monkeypatch.setattr(container.DurableFile, "commit", die)
    with pytest.raises(Killed):
        write_manifest(tmp_path, Manifest(model="other", recipe=RECIPE))
    assert read_manifest(tmp_path) == MANIFEST


def test_a_folder_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    """It was a traceback: exit code 1 where 2 was right."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot make an archive"):
        write_manifest(tmp_path / "file", MANIFEST)


def ingest_nothing(archive: Path, source: Path) -> None:
    facts: dict[str, Any] = {"key_pattern": None, "time_zone": None, "dry_run": False, "wait_s": 0.0, "observe": None}
    run_ingest(archive, [str(source)], Settings(), **facts)


def test_a_killed_writer_of_the_manifest_does_not_spoil_the_folder(tmp_path: Path) -> None:
    """The next ingest took the leftover for somebody's data and refused the folder for ever."""
    source, archive = tmp_path / "source", tmp_path / "archive"
    source.mkdir()
    archive.mkdir()
    (archive / f".{MANIFEST_NAME}.0123456789abcdef.tmp").write_text('{"format')
    ingest_nothing(archive, source)
    assert read_manifest(archive) is not None


def test_a_folder_of_other_things_is_not_made_an_archive(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(ConfigError, match="not empty and not an archive"):
        ingest_nothing(tmp_path, tmp_path / "source")
    assert not (tmp_path / MANIFEST_NAME).exists()


def test_a_head_that_reads_visual_tokens_is_part_of_the_recipe() -> None:
    """The packaged model's dual encoder has one; a recipe without one has no word of it."""
    assert RECIPE.encoder is not None
    assert RECIPE.encoder["group"]["embedding_width"] == RECIPE.embedding_dim
    towers = {name: spec for name, spec in RECIPE.encoder.items() if name != "group"}
    without = RECIPE.model_copy(update={"encoder": towers})
    assert without.fingerprint != RECIPE.fingerprint
    with pytest.raises(ModelMismatch, match="group"):
        without.require_equal(RECIPE, "archive")
