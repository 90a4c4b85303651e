"""Streams whose queues run late: when something waits for them, or when a seeded scheduler feels like it.

CUDA C++ Programming Guide, "Asynchronous Concurrent Execution": launches return before they have run, and what is in
different streams may run in any order. A program is right only if it is right for every order that is allowed.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

from . import _errors

rng = random.Random(int(os.environ.get("LATE_GPU_SEED", "0")))
waits = 0  # how often the host has waited: tests look at it


class Op:
    """Something queued: it runs after those before it in its queue, and after `after`."""

    def __init__(self, run: Callable[[], None], after: list[Op]) -> None:
        self.run, self.after, self.done = run, after, False


class Stream:
    """A queue. The legacy default stream waits for the blocking ones, and they for it (same chapter)."""

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.non_blocking, self.null = non_blocking, null
        self.queue: list[Op] = []
        self.recording: Graph | None = None
        self.invalid = False
        streams.append(self)

    def __enter__(self) -> Stream:
        current.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        current.pop()

    def use(self) -> Stream:
        current[-1] = self
        return self

    def put(self, run: Callable[[], None], after: list[Op] | None = None) -> Op:
        op = Op(run, list(after or ()))
        if self.recording is not None:
            self.recording.ops.append(op)
            return op
        if not self.non_blocking:
            others = [s for s in streams if not s.non_blocking and s is not self and s.null != self.null]
            op.after += [s.queue[-1] for s in others if s.queue]
        self.queue.append(op)
        drift()
        return op

    def forbid_while_recording(self, what: str) -> None:
        """cudaStreamBeginCapture: waiting, and copies that wait, are errors, and make the capture invalid."""
        if self.recording is not None:
            self.invalid = True
            raise _errors.CUDARuntimeError(
                f"cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing ({what})"
            )

    def synchronize(self) -> None:
        global waits
        self.forbid_while_recording("synchronize")
        waits += 1
        drift()
        while self.queue:
            advance(self)
        _errors.raise_pending()

    @property
    def done(self) -> bool:
        drift()
        return not self.queue

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        self.put(lambda: None, [event.op] if event.op else [])

    def begin_capture(self, mode: int | None = None) -> None:
        if self.null:  # cudaStreamBeginCapture: "must not be the legacy stream"
            raise _errors.CUDARuntimeError("cudaErrorStreamCaptureUnsupported: the default stream cannot record")
        self.recording, self.invalid = Graph(), False

    def is_capturing(self) -> bool:
        return self.recording is not None

    def end_capture(self) -> Graph:
        graph, self.recording = self.recording, None
        if graph is None or self.invalid:
            raise _errors.CUDARuntimeError("cudaErrorStreamCaptureInvalidated: operation failed due to a previous error")
        return graph


class Graph:
    """What a capture recorded, with the addresses and scalars of then: launches replay just these."""

    def __init__(self) -> None:
        self.ops: list[Op] = []

    def launch(self, stream: Stream | None = None) -> None:
        (stream or current[-1]).put(lambda: [op.run() for op in self.ops])


class Event:
    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.op: Op | None = None
        self.when = 0.0

    def record(self, stream: Stream | None = None) -> None:
        def mark() -> None:
            self.when = time.perf_counter()

        self.op = (stream or current[-1]).put(mark)

    @property
    def done(self) -> bool:
        drift()
        return self.op is None or self.op.done

    def synchronize(self) -> None:
        global waits
        waits += 1
        if self.op is not None:
            finish(self.op)
        _errors.raise_pending()


def advance(stream: Stream) -> None:
    """Run the first of a queue, and before it what it waits for."""
    op = stream.queue[0]
    for other in op.after:
        finish(other)
    if stream.queue and stream.queue[0] is op:
        stream.queue.pop(0)
        op.run()
        op.done = True


def finish(op: Op) -> None:
    for stream in streams:
        while op in stream.queue:
            advance(stream)


def drift() -> None:
    """Now and then the device gets on with something."""
    while rng.random() < 0.3:
        busy = [s for s in streams if s.queue]
        if not busy:
            return
        advance(rng.choice(busy))


streams: list[Stream] = []
Stream.null_stream = Stream(null=True)
current: list[Stream] = [Stream.null_stream]


def get_current_stream(device_id: int = -1) -> Stream:
    return current[-1]


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    return (end_event.when - start_event.when) * 1e3
