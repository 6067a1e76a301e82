"""A giver's side of a way in a process of its own, without the conversation: it can be killed.

``python -m tests.kvtransfer.transports.owner WAY CONFIG``: a store, what it attaches on standard
output, and ``push``, ``close`` as lines of JSON on standard input.
"""

import json
import sys
import threading
import time

import msgspec

from kvtransfer.transports.nccl import Nccl
from kvtransfer.transports.nixl import Nixl
from kvtransfer.transports.transport import Extent
from tests.kvtransfer.stores import Store, layout
from triptych.core.clock import MonotonicClock
from triptych.core.config import TransferConfig
from triptych.core.errors import TriptychError


class Quiet:
    """As much of a channel as a way needs while nobody interrupts it."""

    is_cut = False

    def check(self) -> None:
        """Nothing ends the waiting."""

    def flush(self) -> None:
        """Nothing was held back."""


def say(**line) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    way, config = sys.argv[1], msgspec.json.decode(sys.argv[2], type=TransferConfig)
    if way == "nccl":
        from tests.kvtransfer.transports import nccl_rules  # torch takes seconds

        nccl_rules.register()
    made = Nccl(config) if way == "nccl" else Nixl("giver@0", config, MonotonicClock())
    carrier = made.carrier(Quiet())
    store = Store(num_blocks=int(sys.argv[3]), of=layout(1024)).fill(1)
    say(attach=carrier.attach(store).hex(), threads=threading.active_count())
    over = threading.Event()
    if way == "nixl":
        assert carrier.attach(store) == carrier.attach(store)
        threading.Thread(target=poll, args=(carrier, over)).start()
    for line in sys.stdin:
        match json.loads(line):
            case {"push": extents}:
                try:
                    carrier.push(store, [Extent(*one) for one in extents])
                    say(pushed=True)
                except TriptychError as error:
                    say(pushed=error.code)
            case {"close": _}:
                over.set()
                carrier.close()
                made.close()
                say(closed=True)
    over.set()


def poll(carrier, over) -> None:
    while not over.is_set():
        try:
            carrier.poll()
        except TriptychError:
            return
        time.sleep(carrier.poll_s)


if __name__ == "__main__":
    main()
