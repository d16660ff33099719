"""What all tests share: where the real data is, and which tests are long."""

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests run in `make faults`; elsewhere they are left out with the command that runs them."""
    if os.environ.get("CROUPIER_LONG"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="minutes of load or faults: CROUPIER_LONG=1, or `make faults`"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the project; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}: put the shared folder beside the project to run this test")
    return SHARED
