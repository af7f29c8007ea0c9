"""A Python service in the hands of a test.

Reads requests from stdin, one JSON object per line, and answers each with a line on stdout:

    -> {"id": 1, "do": "publish", ...}        <- {"id": 1, "ok": ...} or {"id": 1, "error": "..."}

What a subscription receives comes in lines of its own: {"subscription": "...", "got": {...}}. Ends with
its stdin. Whatever else is printed or logged goes to stderr.
"""

import asyncio
import importlib
import json
import os
import sys
import threading
import traceback

# The module that answers a request; imported when it is first needed.
MODULES = {
    "publish": "publishing",
    "dump": "publishing",
    "deserialize": "reading",
    "consume_kafka": "reading",
    "consume_amqp": "reading",
    "faststream_kafka": "streaming",
    "faststream_amqp": "streaming",
    "faststream_publish": "streaming",
    "send_kafka": "clients",
    "send_amqp": "clients",
    "join_group": "clients",
    "tables_create": "tables",
    "outbox_add": "tables",
    "outbox_rows": "tables",
    "outbox_produce": "tables",
    "inbox_add": "tables",
    "inbox_pending": "tables",
    "confluent_write": "registry",
    "confluent_read": "registry",
    "confluent_frame": "registry",
    "confluent_parse": "registry",
}


class Peer:
    """The line to the test."""

    def __init__(self):
        # Nobody else may write to the test's pipe.
        self._out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
        os.dup2(2, 1)
        self._lock = threading.Lock()
        self._stops = {}

    def say(self, line):
        with self._lock:
            self._out.write(json.dumps(line) + "\n")

    def pusher(self, subscription):
        """What a subscription calls with what it receives."""
        return lambda got: self.say({"subscription": subscription, "got": got})

    async def answer(self, request):
        number = request.pop("id")
        try:
            self.say({"id": number, "ok": await self._do(request.pop("do"), request)})
        except Exception as error:
            traceback.print_exc()
            self.say({"id": number, "error": f"{type(error).__name__}: {error}"})

    async def _do(self, what, arguments):
        if what == "unsubscribe":
            await self._stops.pop(arguments["subscription"])()
            return None
        action = getattr(importlib.import_module(MODULES[what]), what)
        if "subscription" not in arguments:
            return await action(**arguments)
        name = arguments.pop("subscription")
        self._stops[name] = await action(self.pusher(name), **arguments)
        return None


async def main():
    peer = Peer()
    loop = asyncio.get_running_loop()
    requests = asyncio.Queue()

    def read():
        for line in sys.stdin:
            loop.call_soon_threadsafe(requests.put_nowait, json.loads(line))
        # The test is over, however it ended: without farewells.
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    running = set()
    while True:
        task = asyncio.create_task(peer.answer(await requests.get()))
        running.add(task)
        task.add_done_callback(running.discard)


if __name__ == "__main__":
    asyncio.run(main())
