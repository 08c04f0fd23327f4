"""Settings: argument over environment over file over default, and every wrong value named."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline.config import _ENVIRONMENT, Settings, load_settings
from pipeline.errors import ConfigError


def settings_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "vxl.toml"
    path.write_text(text)
    return path


def test_without_anything_the_defaults_hold() -> None:
    assert load_settings(environ={}) == Settings()


@pytest.mark.parametrize(("variable", "field"), _ENVIRONMENT.items())
def test_argument_over_environment_over_file_over_default(tmp_path: Path, variable: str, field: str) -> None:
    value_of = operator.attrgetter(field)
    file, environment, argument = {"ingest.codec": ("int4", "int8", "exact")}.get(
        field, ("from-file", "from-environment", "from-argument")
    )
    path = settings_file(tmp_path, f'{field} = "{file}"')
    environ = {variable: environment}
    assert value_of(load_settings(path, environ={})) == file
    assert value_of(load_settings(path, environ=environ)) == environment
    assert value_of(load_settings(path, {field: argument}, environ)) == argument
    assert value_of(load_settings(path, {field: None}, environ)) == environment
    assert value_of(load_settings(path, environ={variable: ""})) == file


def test_the_process_environment_is_read_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VXL_MODEL", "from-process")
    assert load_settings().model == "from-process"


def test_the_file_can_be_named_in_the_environment_and_an_argument_wins(tmp_path: Path) -> None:
    named = settings_file(tmp_path, 'model = "named"')
    given = tmp_path / "given.toml"
    given.write_text('model = "given"')
    environ = {"VXL_CONFIG": str(named)}
    assert load_settings(environ=environ).model == "named"
    assert load_settings(given, environ=environ).model == "given"


def test_an_override_changes_one_field_and_leaves_its_section() -> None:
    settings = load_settings(overrides={"ingest.fps": 2.0, "ingest.levels.chunk_groups": 3}, environ={})
    assert (settings.ingest.fps, settings.ingest.levels.chunk_groups) == (2.0, 3)
    assert settings.ingest.segment_s == Settings().ingest.segment_s
    assert settings.ingest.model_fields_set == {"fps", "levels"}


def test_an_override_merges_with_the_file(tmp_path: Path) -> None:
    path = settings_file(tmp_path, "[runner]\nworkers = 3\nmax_attempts = 4\n")
    runner = load_settings(path, {"runner.workers": 5}, environ={}).runner
    assert (runner.workers, runner.max_attempts) == (5, 4)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("speed = 3", "speed"),
        ("[ingest]\nfsp = 2.0", "ingest.fsp"),
        ("[ingest.levels]\nchunks = 2", "ingest.levels.chunks"),
        ("[ingest]\nfps = 0", "ingest.fps"),
        ("[ingest]\ncodec = 'int2'", "ingest.codec"),
        ('[ingest]\nfps = "fast"', "ingest.fps"),
        ("[ingest]\nsegment_s = -1", "ingest.segment_s"),
        ("[runner]\nkind = 'cluster'", "runner.kind"),
        ("[runner]\nworkers = 0", "runner.workers"),
        ("[query]\nlimit = 1001", "query.limit"),
        ("[decode]\ndecoder = 'ffmpeg'", "decode.decoder"),
        ("ingest = 5", "ingest"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, text: str, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(settings_file(tmp_path, text), environ={})
    assert str(caught.value).startswith(f"{name}: ")
    assert "got" in str(caught.value)


def test_a_value_where_a_section_belongs_is_named_when_it_is_overridden(tmp_path: Path) -> None:
    """It was a TypeError."""
    with pytest.raises(ConfigError, match=r"ingest: 5 .*section"):
        load_settings(settings_file(tmp_path, "ingest = 5"), {"ingest.fps": 2.0}, environ={})


def test_a_segment_shorter_than_one_frame_group_names_both_settings() -> None:
    with pytest.raises(ConfigError, match=r"ingest: .*segment_s=3.*fps=1"):
        load_settings(overrides={"ingest.segment_s": 3.0}, environ={})


def test_a_file_that_is_absent_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the settings file '.*gone.toml': No such file"):
        load_settings(tmp_path / "gone.toml", environ={})
    with pytest.raises(ConfigError, match="cannot read"):
        load_settings(tmp_path, environ={})
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_settings(settings_file(tmp_path, "model = "), environ={})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_settings(tmp_path / "binary.toml", environ={})


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    inner: list[Any] = [field.annotation for field in model.model_fields.values()]
    found = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [model, *(deeper for kind in found for deeper in sections(kind))]


@pytest.mark.parametrize("section", sections(Settings), ids=lambda kind: kind.__name__)
def test_every_section_is_frozen_closed_and_described(section: type[BaseModel]) -> None:
    assert section.model_config["frozen"] is True
    assert section.model_config["extra"] == "forbid"
    undescribed = {
        name
        for name, field in section.model_fields.items()
        if not field.description
        and not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    }
    assert not undescribed
