"""The child's side of TensorFlow in a process of its own; `tensorflow_process` has the parent's.

It reads requests from its standard input and answers on its standard output: a line of JSON, and
after it the bytes of the arrays that the line describes. It ends by itself when its parent does, or
when it has more memory or takes more time than it was given.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitzoo.converters.parity.reference_tensorflow import forward, load_tensorflow
from bitzoo.converters.parity.serving_graph import NoWitness, ServingGraph
from bitzoo.converters.source import Array, brief
from bitzoo.errors import MissingExtraError

OUT_OF_MEMORY = 75
"""Exit status after more memory than was given."""
MAX_LINE = 1 << 20
_LOOK_SECONDS = 0.05
"""Time between two looks at the parent and the memory."""


def send(stream: io.BufferedIOBase, line: Mapping[str, Any], arrays: Sequence[Array] = ()) -> None:
    """Write a message.

    Args:
        stream: Where to.
        line: What JSON can say.
        arrays: Arrays of numbers.
    """
    plain = [np.ascontiguousarray(array, array.dtype.newbyteorder("=")) for array in arrays]
    described = [[array.dtype.name, array.shape] for array in plain]
    stream.write(json.dumps({**line, "arrays": described}).encode() + b"\n")
    for array in plain:
        stream.write(array.reshape(-1).view(np.uint8).data)
    stream.flush()


def receive(stream: io.BufferedIOBase) -> tuple[dict[str, Any], list[Array]]:
    """Read a message.

    Raises:
        EOFError: If the other side has ended.
    """
    text = stream.readline(MAX_LINE)
    if not text.endswith(b"\n"):
        raise EOFError
    line = json.loads(text)
    arrays: list[Array] = []
    for dtype, shape in line.pop("arrays"):
        array = np.empty(shape, dtype)
        buffer, done = array.reshape(-1).view(np.uint8).data, 0
        while done < len(buffer):
            count = stream.readinto(buffer[done:])
            if not count:
                raise EOFError
            done += count
        arrays.append(array)
    return line, arrays


def serve(parent: int, memory: int, seconds: int) -> None:
    """Run the child until its parent ends.

    Args:
        parent: Process id of the parent.
        memory: Bytes that it may have.
        seconds: Seconds of processor time that it may take for each request.
    """
    import resource

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)  # so that nothing can print between the numbers
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_DATA, memory)
    threading.Thread(target=_watch, args=(parent, memory), daemon=True).start()
    worker = _Worker(requests, answers)
    try:
        worker.answer(lambda: ({"version": str(load_tensorflow().__version__)}, []))
        while True:
            line, arrays = receive(requests)
            _limit(resource.RLIMIT_CPU, int(time.process_time()) + seconds)
            worker.answer(lambda: worker.obey(line, arrays))  # noqa: B023 - called at once
    except EOFError:
        return


class _Worker:
    """What requests ask for."""

    def __init__(self, requests: io.BufferedIOBase, answers: io.BufferedIOBase) -> None:
        self._requests, self._answers = requests, answers
        self._graph: tuple[str, ServingGraph] | None = None

    def answer(self, work: Callable[[], tuple[dict[str, Any], list[Array]]]) -> None:
        """Do some work, and send what came of it or why nothing did."""
        try:
            line, arrays = work()
        except (NoWitness, MissingExtraError) as error:
            line, arrays = {"no": str(error)}, []
        except EOFError:
            raise
        except Exception as error:  # whatever TensorFlow finds wrong
            reason = brief(" ".join(f"{type(error).__name__}: {error}".split()))
            line, arrays = {"no": f"TensorFlow fails ({reason})"}, []
        send(self._answers, line, arrays)

    def obey(
        self, line: Mapping[str, Any], arrays: Sequence[Array]
    ) -> tuple[dict[str, Any], list[Array]]:
        if line["do"] == "forward":
            tensors = _Asked(line["names"], self._requests, self._answers)
            found = forward(tensors, arrays[0], dtype=line["dtype"], eps=line["eps"])
            return {}, [found.numpy()]
        if self._graph is None or self._graph[0] != line["graph"]:
            self._graph = line["graph"], ServingGraph(Path(line["graph"]), Path(line["prefix"]))
        outcome = self._graph[1](*arrays)
        return ({"way": outcome[0]}, [outcome[1]]) if outcome else ({}, [])


class _Asked(Mapping[str, Array]):
    """Tensors that the parent sends one by one when they are needed."""

    def __init__(
        self, names: Sequence[str], requests: io.BufferedIOBase, answers: io.BufferedIOBase
    ) -> None:
        self._names, self._requests, self._answers = names, requests, answers

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        send(self._answers, {"need": name})
        return receive(self._requests)[1][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _watch(parent: int, memory: int) -> None:
    while os.getppid() == parent:
        if _resident() > memory:
            os._exit(OUT_OF_MEMORY)
        time.sleep(_LOOK_SECONDS)
    os._exit(0)


def _resident() -> int:
    """Bytes of memory of this process."""
    import resource

    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except FileNotFoundError:  # the most so far, which is as good: in bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )


def _limit(kind: int, most: int) -> None:
    """Set a limit, within the one that nobody may raise."""
    import resource

    _, hard = resource.getrlimit(kind)
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (soft, hard))
