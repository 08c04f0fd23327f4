"""README and docs say what is so: examples run, settings files load, commands exist, links resolve.

    python -m tests.unit.test_docs

rewrites the settings table of the README from ``pipeline.config``.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel
from typer.exceptions import TyperException

from indexers.access_log import NOTES_FOLDER
from jobs.cli import app
from pipeline.config import Settings, load_settings
from tests.clips import RECIPES, make

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
SETTINGS_FILES = sorted((ROOT / "infra" / "settings").glob("*.toml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")

FLAGS = {
    "archive": "`--archive`, `VXL_ARCHIVE`",
    "model": "`ingest --model`, `VXL_MODEL`; *fixed*",
    "device": "`VXL_DEVICE`",
    "ingest.fps": "`ingest --fps`; *fixed*",
    "ingest.segment_s": "`ingest --segment-s`; *fixed*",
    "ingest.prefill": "*fixed*",
    "ingest.levels.chunk_groups": "*fixed*",
    "ingest.levels.compression": "*fixed*",
    "runner.kind": "`ingest --runner`",
    "runner.workers": "`ingest --workers`",
    "query.limit": "`search --limit`",
    "query.max_new_tokens": "`ask --max-new-tokens`",
}
"""Where else a setting, or all settings of a section, can be given."""

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_TABLE = re.compile(r"(<!-- settings: [^\n]*-->\n).*?(<!-- end of settings -->)", re.DOTALL)
_COMMANDS = typer.main.get_command(app)


def fenced(text: str, *languages: str) -> list[str]:
    """Contents of the code blocks in some languages, without their indentation."""
    found = [(indent, language, body) for indent, language, body in _FENCE.findall(text) if language in languages]
    return ["\n".join(line.removeprefix(indent) for line in body.splitlines()) for indent, _, body in found]


def command_lines(text: str) -> Iterator[list[str]]:
    """Arguments of every ``vxl`` command in shell blocks."""
    for block in fenced(text, "sh", ""):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if re.match(r"(\S+=\S+ )*(\.venv/bin/)?vxl ", line) else []
            while words and not words[0].endswith("vxl"):
                words.pop(0)
            end = next((at for at, word in enumerate(words) if word in {"|", ">", ">>", "2>", "2>>", "&&"}), None)
            if words:
                yield words[1:end]


def command_mentions(text: str) -> Iterator[list[str]]:
    """Words after ``vxl`` wherever inline code begins with it; arguments may be left out there."""
    for code in re.findall(r"(?<!`)`vxl ([^`]+)`(?!`)", _FENCE.sub("", text)):
        yield [word for word in shlex.split(code) if word != "..."]


def check_command(words: list[str], *, is_whole: bool) -> None:
    """Fail unless the command, its options and, for a whole line, its arguments are taken by the command line."""
    known: Any = {name: param for param in _COMMANDS.params for name in param.opts}
    while words and words[0].startswith("--"):
        words = words[1:] if words[0] == "--help" or known[words[0]].is_flag else words[2:]
    if not words:
        return
    assert words[0] in _COMMANDS.commands, f"there is no command vxl {words[0]}"
    command = _COMMANDS.commands[words[0]]
    if hasattr(command, "commands") and words[1:]:  # a sub-app
        assert words[1] in command.commands, f"there is no command vxl {words[0]} {words[1]}"
        command, words = command.commands[words[1]], words[1:]
    if is_whole:
        try:
            command.make_context(words[0], list(words[1:]))
        except TyperException as exc:
            pytest.fail(f"vxl {shlex.join(words)}: {exc.format_message()}")
    else:
        options = {name for param in command.params for name in param.opts} | {"--help"}
        assert not [word for word in words[1:] if word.startswith("--") and word not in options], words


def settings_rows(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """A table row for every setting, in the order of the code."""
    for name, field in model.model_fields.items():
        path = prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings_rows(field.annotation, path + ".")
            continue
        default = "-" if field.default is None else f"`{json.dumps(field.default)}`"
        also = next((FLAGS[key] for key in (path, prefix.removesuffix(".")) if key in FLAGS), "")
        meaning = str(field.description).rstrip(".").replace("|", r"\|")
        if meaning[1:2].islower() and not meaning.startswith("Ray"):
            meaning = meaning[:1].lower() + meaning[1:]
        yield f"| `{path}` | {default} | {meaning} | {also} |"


def settings_table() -> str:
    head = "| setting | default | meaning | flag, environment |\n|---|---|---|---|\n"
    return head + "".join(row + "\n" for row in settings_rows())


@pytest.fixture
def footage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the README's examples run in, with a short clip where they expect one."""
    (tmp_path / "footage" / "gate" / "2026-03-01").mkdir(parents=True)
    made = make(RECIPES["h264.mp4"], tmp_path).path
    made.rename(tmp_path / "footage" / "gate" / "2026-03-01" / "080000.mp4")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_examples_run_in_order(footage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ten_lines, sdk, model = fenced(README, "python")
    exec(compile(ten_lines, "README.md, ten lines", "exec"), {})
    out = capsys.readouterr().out
    assert "1 indexed, 0 not" in out
    assert "1 gate 2026-03-01 07:00:00+00:00 file://" in out
    assert "not looked at: ()" in out
    exec(compile(sdk, "README.md, the SDK", "exec"), {})
    assert (footage / "moment-1.mp4").stat().st_size > 0
    assert "Coverage(videos=1" in capsys.readouterr().out
    exec(compile(model, "README.md, the model", "exec"), {})


def test_the_example_is_about_ten_lines() -> None:
    assert len(fenced(README, "python")[0].splitlines()) <= 11


@pytest.mark.parametrize("path", SETTINGS_FILES, ids=lambda path: path.name)
def test_settings_files_load(path: Path) -> None:
    settings = load_settings(path, environ={})
    assert settings.model_fields_set


def test_the_cluster_file_pins_a_gpu() -> None:
    settings = load_settings(ROOT / "infra" / "settings" / "gpu-cluster.toml", environ={})
    assert settings.runner.kind == "ray"
    assert settings.runner.accelerator_type and settings.runner.num_gpus
    assert settings.device == "cuda"


def test_the_settings_table_is_that_of_the_code() -> None:
    found = _TABLE.search(README)
    assert found is not None
    written = found.group(0).split("\n", 1)[1].removesuffix("<!-- end of settings -->").strip()
    assert written == settings_table().strip(), "rewrite it with: python -m tests.unit.test_docs"


def test_flags_of_the_settings_table_exist() -> None:
    names = {row.split("`")[1] for row in settings_rows()}
    assert all(key in names or any(name.startswith(key + ".") for name in names) for key in FLAGS)
    for text in FLAGS.values():
        for command, option in re.findall(r"`(\w+) (--[\w-]+)`", text):
            check_command([command, option], is_whole=False)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist_with_their_options(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for words in command_lines(text):
        check_command(words, is_whole=True)
    for words in command_mentions(text):
        check_command(words, is_whole=False)


def test_every_command_is_documented() -> None:
    texts = [document.read_text(encoding="utf-8") for document in DOCUMENTS]
    found = [words for text in texts for words in (*command_lines(text), *command_mentions(text))]
    assert {word for words in found for word in words} >= set(_COMMANDS.commands)
    for name, group in _COMMANDS.commands.items():
        for command in getattr(group, "commands", {}):
            assert any(words[:2] == [name, command] for words in found), f"vxl {name} {command}"


def test_a_command_that_does_not_exist_is_found() -> None:
    with pytest.raises(AssertionError, match="no command vxl fly"):
        check_command(["fly"], is_whole=True)
    with pytest.raises(pytest.fail.Exception, match="--colour"):
        check_command(["search", "x", "--colour", "red"], is_whole=True)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_resolve(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), f"{document.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {_anchor(heading) for heading in headings}, f"{document.name} links to {target}"


def test_paths_named_in_the_documents_exist() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        named = re.findall(r"\b(?:pipeline|indexers|videoxl2|jobs|tests|infra)/[\w/.-]*\w(?:\.\w+|/)", text)
        missing = [path for path in named if not (ROOT / path).exists()]
        assert not missing, f"{document.name}: {missing}"


def test_make_targets_named_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", "\n".join([*fenced(README, "sh")]))) <= targets


def test_the_s3_policy_only_lists_and_gets() -> None:
    policy = json.loads((ROOT / "infra" / "iam" / "ingest-read-only.json").read_text())
    actions = [statement["Action"] for statement in policy["Statement"]]
    assert sorted(actions) == ["s3:GetObject", "s3:ListBucket"]
    assert all(statement["Resource"] != "*" for statement in policy["Statement"])


def test_the_policies_of_an_archive_reach_no_further_than_its_prefix() -> None:
    allowed: dict[str, dict[str, str]] = {}
    for name in ("archive-read-write", "archive-ask"):
        policy = json.loads((ROOT / "infra" / "iam" / f"{name}.json").read_text())
        allowed[name] = {
            action: statement["Resource"].partition("/")[2]
            for statement in policy["Statement"]
            for action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
        }
    listing = {"s3:ListBucket": "", "s3:ListBucketMultipartUploads": ""}
    below = "archives/gate/*"
    changes = ("s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts")
    assert allowed["archive-read-write"] == {**listing, "s3:GetObject": below, **dict.fromkeys(changes, below)}
    assert allowed["archive-ask"] == {
        **listing,
        "s3:GetObject": below,
        "s3:PutObject": f"archives/gate/{NOTES_FOLDER}/*",
    }


def _anchor(heading: str) -> str:
    """The anchor that a Markdown viewer gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(_TABLE.sub(lambda found: found.group(1) + settings_table() + found.group(2), README))
