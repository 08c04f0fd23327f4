"""Who may import what, who may read the environment, and what may lie in the repository: read from the sources."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What each package may import of the others. Imports for types count: they point the same way.
MAY_IMPORT = {
    "videoxl2": set(),
    "indexers": set(),
    "pipeline": {"indexers", "videoxl2"},
    "jobs": {"pipeline", "indexers", "videoxl2"},
}

# The modules that know an outside library. Types in brackets: for TYPE_CHECKING only.
OWNERS = {
    "ray": {"pipeline/runner.py"},
    "lancedb": {"indexers/store.py"},
    "boto3": {"pipeline/s3.py", "jobs/demo_server.py"},  # the demo fills the bucket of its own server
    "botocore": {"pipeline/s3.py", "jobs/demo_server.py"},
    "decord": {"pipeline/frames.py"},
    "flash_attn": {"videoxl2/attention_kernels.py"},
    "transformers": set(),
    "moto": {"jobs/demo_server.py"},
    "typer": {"jobs/cli.py", "jobs/evaluate.py"},
    "rich": {"jobs/output.py", "jobs/ingest.py", "jobs/train.py"},
    "jinja2": {"jobs/report.py"},
    "huggingface_hub": {"videoxl2/checkpoint.py"},
}

# Who touches the environment, how, and why.
ENVIRONMENT = {
    ("pipeline/config.py", "load_settings", "environ"): "the one reader of settings",
    (
        "pipeline/decode_child.py",
        "_inject_fault",
        "environ.get",
    ): "VXL_FAULT, a switch for tests of the killable process",
    ("pipeline/decode_worker.py", "__init__", "environ"): "handed on to the decoding process",
    ("pipeline/runner.py", "start", "environ.setdefault"): "switches off Ray's telemetry and keeps its hands off GPUs",
    ("pipeline/stages.py", "load_models", "environ.setdefault"): "idle model threads must not spin beside the decoder",
    ("jobs/cli.py", "main", "environ.setdefault"): "switches off Ray's telemetry and Lance's log",
    ("jobs/output.py", "configure_logging", "environ.setdefault"): "switches off Lance's log",
    ("jobs/demo.py", "_vxl", "environ"): "handed on to the demo's commands",
}

TOP_LEVEL = {
    *("pipeline", "videoxl2", "indexers", "jobs", "tests", "infra", "docs", ".ci"),
    *("pyproject.toml", "README.md", "Makefile", "constraints.txt", "CHANGELOG.md", "LICENSE", ".gitignore"),
}


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    is_for_types: bool
    is_at_top: bool
    """Outside of any function, class or condition."""


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def imports_of(path: Path) -> tuple[Import, ...]:
    """Every import in a module, however deep, and whether it is for type checking only."""

    def walk(node: ast.AST, is_for_types: bool) -> Iterator[Import]:
        is_at_top = isinstance(node, ast.Module)
        for child in ast.iter_child_nodes(node):
            deeper = is_for_types or (isinstance(node, ast.If) and child in node.body and _asks_for_types(node.test))
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, deeper, is_at_top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{name_of(path)}:{child.lineno}: write the full name of the module"
                assert child.module is not None
                yield Import(child.module, child.lineno, deeper, is_at_top)
            elif isinstance(child, ast.Call) and _imports_by_name(child):
                argument = child.args[0]
                if isinstance(argument, ast.Constant):
                    yield Import(str(argument.value), child.lineno, deeper, is_at_top)
            yield from walk(child, deeper)

    return tuple(walk(ast.parse(path.read_text(encoding="utf-8")), False))


def _asks_for_types(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _imports_by_name(call: ast.Call) -> bool:
    return ast.unparse(call.func) in ("importlib.import_module", "import_module", "__import__")


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    """jobs -> pipeline -> indexers -> videoxl2, imports for types included; nothing imports jobs or the tests."""
    paths = sources(package)
    assert paths
    forbidden = {*MAY_IMPORT, "tests"} - MAY_IMPORT[package] - {package}
    wrong = [
        f"{name_of(path)}:{found.line} imports {found.module}"
        for path in paths
        for found in imports_of(path)
        if found.module.split(".")[0] in forbidden
    ]
    assert not wrong


@pytest.mark.parametrize("library", OWNERS)
def test_every_library_has_its_owner(library: str) -> None:
    users = {
        name_of(path): found
        for path in sources(*MAY_IMPORT)
        for found in imports_of(path)
        if found.module.split(".")[0] == library
    }
    assert users.keys() <= OWNERS[library], {name: found.line for name, found in users.items()}


@pytest.mark.parametrize("library", ["ray", "lancedb", "boto3", "decord", "flash_attn", "moto"])
def test_optional_and_heavy_libraries_are_imported_inside_functions(library: str) -> None:
    for path in sources(*MAY_IMPORT):
        at_import = {found.module.split(".")[0] for found in imports_of(path) if found.is_at_top}
        assert library not in at_import, name_of(path)


def test_owners_that_are_named_own_something() -> None:
    """An owner without its library is a stale line in the table above."""
    for library, owners in OWNERS.items():
        for owner in owners:
            assert any(found.module.split(".")[0] == library for found in imports_of(ROOT / owner)), (library, owner)


def environment_uses(path: Path) -> Iterator[tuple[str, str, int]]:
    """Enclosing function, form (``environ``, ``environ.get``, ...) and line of every touch of the environment."""

    def walk(node: ast.AST, function: str) -> Iterator[tuple[str, str, int]]:
        for child in ast.iter_child_nodes(node):
            inner = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
            if isinstance(child, ast.ImportFrom) and child.module == "os":
                names = {alias.name for alias in child.names} & {"environ", "getenv", "putenv"}
                assert not names, f"{name_of(path)}:{child.lineno}: write os.{min(names)}"
            if isinstance(child, ast.Attribute) and ast.unparse(child) in ("os.environ", "os.getenv", "os.putenv"):
                outer = f".{node.attr}" if isinstance(node, ast.Attribute) else ""
                yield inner, child.attr + outer, child.lineno
            yield from walk(child, inner)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), "")


def test_only_these_touch_the_environment() -> None:
    found = {
        (name_of(path), function, form): line
        for path in sources(*MAY_IMPORT)
        for function, form, line in environment_uses(path)
    }
    strangers = {use: line for use, line in found.items() if use not in ENVIRONMENT}
    assert not strangers, "settings come from load_settings"
    assert found.keys() == ENVIRONMENT.keys(), "a line of the table above is stale"


def test_the_decoding_process_reads_one_variable_only() -> None:
    text = (ROOT / "pipeline/decode_child.py").read_text(encoding="utf-8")
    assert set(re.findall(r"os\.environ\.get\(([^,)]+)", text)) == {'"VXL_FAULT"'}


def repository_files() -> list[str]:
    """Tracked files, and new ones that are not ignored."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    command = ["git", "-c", "core.quotePath=off", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60).stdout
    return sorted({name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()})


def test_the_top_level_holds_only_the_fixed_entries() -> None:
    assert {name.split("/")[0] for name in repository_files()} <= TOP_LEVEL


def test_no_file_names_a_path_of_somebody_s_machine() -> None:
    folders = "|".join(("home/[a-z]", "Users/[A-Za-z]", "root/", "work/", "workspace/"))
    pattern = re.compile(rf"(?<![\w.~/}}-])/(?:{folders})|[A-Z]:\\\\?Users".encode())
    assert pattern.search(b'"/' + b"home/me/project") and not pattern.search(b"s3://bucket/" + b"home/x")
    found = []
    for name in repository_files():
        content = (ROOT / name).read_bytes()
        if b"\0" not in content:
            found += [f"{name}: {match.group().decode()}" for match in pattern.finditer(content)]
    assert not found


def test_nothing_large_is_in_the_repository() -> None:
    large = {name: size for name in repository_files() if (size := (ROOT / name).stat().st_size) > 20 * 2**20}
    assert not large
