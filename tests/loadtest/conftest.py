from collections.abc import AsyncIterator

import pytest

from tests.loadtest.tiny import Tiny


@pytest.fixture
async def tiny() -> AsyncIterator[Tiny]:
    server = await Tiny().start()
    yield server
    await server.stop()
