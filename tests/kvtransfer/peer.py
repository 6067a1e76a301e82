"""One side of transfers in a process of its own, driven by lines of JSON: it can be killed.

``python -m tests.kvtransfer.peer give|take``. ``point`` names a place in the protocol where the
process kills (or stops) itself, so that a crash is exact and not by luck.
"""

import asyncio
import hashlib
import json
import signal
import sys

import msgspec

from kvtransfer import manifest
from kvtransfer.build import build_outbox, build_receiver
from kvtransfer.channel import Channel
from tests.kvtransfer.stores import SECRET, Store, by, ref_to
from tests.patience import PATIENCE_S
from triptych.core.clock import MonotonicClock
from triptych.core.config import TransferConfig
from triptych.core.errors import TriptychError
from triptych.core.handoff import Endpoint
from triptych.core.ids import Handle, InstanceId


def say(**line) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def die_at(point: str, how: str) -> None:
    """Send ourselves a signal just before (or after) sending a message of this name."""
    when, _, name = point.partition(":")
    send = Channel.send

    def sending(self, message, *rest, **more):
        is_it = type(message).__name__ == name
        if is_it and when == "before":
            signal.raise_signal(signal.Signals[how])  # of this thread: at once
        send(self, message, *rest, **more)
        if is_it and when == "after":
            signal.raise_signal(signal.Signals[how])  # of this thread: at once

    assert name in {cls.__name__ for cls in manifest._TYPES}
    Channel.send = sending


async def lines():
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield json.loads(line)


async def give(config: TransferConfig) -> None:
    loop = asyncio.get_running_loop()
    outbox = build_outbox(
        InstanceId("giver@0"), config, SECRET, MonotonicClock(), loop.call_soon_threadsafe
    )
    store = Store().fill(1)
    say(endpoint=msgspec.to_builtins(outbox.start()))
    async for line in lines():
        match line["do"]:
            case "offer":
                handle = line["handle"]
                offer = outbox.offer(
                    Handle(handle), 0, store, "job", lambda why, h=handle: say(released=[h, why])
                )
                offer.append(line["blocks"])
                if line["finish"]:
                    offer.finish(b"tail")
            case "census":
                say(census=[row.kind for row in outbox.census()])
    await outbox.close()


async def take(config: TransferConfig) -> None:
    receiver = build_receiver(InstanceId("taker@0"), config, SECRET, MonotonicClock())
    store = Store()
    tasks = set()

    async def fetch(line) -> None:
        endpoint = msgspec.convert(line["endpoint"], Endpoint)
        ref = ref_to("giver@0", endpoint, len(line["blocks"]), store.layout, line["handle"])
        until = MonotonicClock().now() + PATIENCE_S
        try:
            tail = await receiver.fetch(ref, store, line["blocks"], 0, lambda _: None, until)
        except TriptychError as error:
            say(failed=[line["handle"], error.code])
        else:
            data = b"".join(store.block(block) for block in line["blocks"])
            digest = hashlib.sha256(data).hexdigest()
            say(taken=[line["handle"], tail.decode(), digest])

    say(ready=True)
    async for line in lines():
        task = asyncio.create_task(fetch(line))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await receiver.close()


def main() -> None:
    side, config, point, how = sys.argv[1:5]
    if point:
        die_at(point, how)
    run = {"give": give, "take": take}[side]
    settings = msgspec.json.decode(config, type=TransferConfig)
    asyncio.run(run(by(settings.transport, settings)))


if __name__ == "__main__":
    main()
