"""What every test gets: an environment without the developer's own settings or credentials."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# No deadline: shared machines stall. In CI every run tries the same examples; elsewhere each run tries new ones.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")

# One model thread per process, before torch is imported: the workers of pytest-xdist take all cores, and with more
# threads than cores every small operation waits for threads that the system has put aside. Archives made here and by
# processes of tests.vxl are then equal to the bit.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

_KEPT = {"VXL_TEST_FOOTAGE"}
_COSTLY = ("indexed", "clips")
"""Session fixtures that take seconds to make: only one worker of pytest-xdist makes them."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Share tests out among the workers of pytest-xdist: what several tests use is made by one worker only.

    Tests with a fixture of their module, or with a costly one of the session, go to one worker together. Of the others
    the slow ones are begun first, so that no worker is left with one at the end.
    """
    if not hasattr(config, "workerinput"):
        return
    for item in items:
        group = _group_of(item)
        if group and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def _group_of(item: pytest.Item) -> str | None:
    """The name of what a test shares with others, or nothing."""
    fixtures = {name: found[-1] for name, found in item._fixtureinfo.name2fixturedefs.items()}  # type: ignore[attr-defined]
    if any(fixture.scope == "module" for fixture in fixtures.values()):
        return item.nodeid.partition("::")[0]
    return next((name for name in _COSTLY if name in fixtures and fixtures[name].scope == "session"), None)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No VXL_* or AWS_* variable of the machine reaches a test."""
    for name in list(os.environ):
        if name.startswith(("VXL_", "AWS_")) and name not in _KEPT:
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


@pytest.fixture(scope="session")
def footage_folder() -> Path:
    """The folder of real clips, or a skip where it is absent."""
    named = os.environ.get("VXL_TEST_FOOTAGE")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "videos"
    if not (folder / "manifest.jsonl").is_file():
        pytest.skip("real footage is not on this machine; name its folder in VXL_TEST_FOOTAGE")
    return folder


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server on loopback that lives as long as the test session."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
