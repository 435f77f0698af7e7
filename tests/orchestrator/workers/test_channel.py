from __future__ import annotations

import select

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from orchestrator.workers.channel import Channel
from orchestrator.workers.host_channel import HostChannel

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio reads only while somebody waits
async def test_messages_that_come_while_nobody_waits_are_kept() -> None:
    """The first just fills the buffer that is made for it; the second comes behind it."""
    host, connection = HostChannel.pair()
    messages = [bytes(1 << 20), b"second"]

    def send() -> None:
        for message in messages:
            Channel(connection).send(message)

    with anyio.move_on_after(0):
        await host.wait_for_message()
    with connection, anyio.fail_after(30):
        await anyio.to_thread.run_sync(send)
        while select.select([host.socket], [], [], 0)[0]:
            await anyio.lowlevel.checkpoint()
        for message in messages:
            await host.wait_for_message()
            assert host.take() == message
    host.hang_up()
