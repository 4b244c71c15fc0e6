"""Sessions: a new connection is opened, however the broker ended the last one."""

from __future__ import annotations

import asyncio
import contextlib

import pamqp.commands
import pamqp.frame
import pamqp.heartbeat

from netspace_client.card import Broker
from netspace_client.session import Session

START = pamqp.commands.Connection.Start(server_properties={}, mechanisms="EXTERNAL", locales="en_US")
TUNE = pamqp.commands.Connection.Tune(64, 131072, 1)


def test_a_broker_that_is_slow_to_let_one_in_is_tried_again(tmp_path):
    """The broker delays a log-in and sends heartbeats, which aiormq doesn't expect; the session tries again."""
    (tmp_path / "password").write_text("x")

    async def trial() -> None:
        visits: list[asyncio.Task[None] | None] = []
        again = asyncio.Event()

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            visits.append(asyncio.current_task())
            if len(visits) == 2:
                again.set()
            with contextlib.suppress(asyncio.CancelledError):
                for answer in (START, TUNE):
                    await reader.read(4096)
                    writer.write(pamqp.frame.marshal(answer, 0))
                await reader.read(4096)
                writer.write(pamqp.heartbeat.Heartbeat().marshal())
                await reader.read()
            writer.close()

        server = await asyncio.start_server(slow, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        broker = Broker("127.0.0.1", port, "v", username="x", password_file=tmp_path / "password")
        session = Session(("127.0.0.1", port, "v", ""), lambda: broker)
        await asyncio.wait_for(again.wait(), 60)
        await session.close()
        server.close()
        for visit in visits:
            if visit is not None:
                visit.cancel()

    asyncio.run(trial())
