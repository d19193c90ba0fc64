"""Fleets for the client's tests."""

from collections.abc import AsyncIterator

import pytest

from penstock_testing.servers.scripted_fleet import FleetFactory, scripted_fleets


@pytest.fixture
async def fleet() -> AsyncIterator[FleetFactory]:
    """Starts scripted fleets."""
    async with scripted_fleets() as start:
        yield start
