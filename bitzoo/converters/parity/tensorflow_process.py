"""TensorFlow in a process of its own, whose end is not this one's.

A damaged graph or a broken installation ends the process that TensorFlow runs in, a hostile graph
asks for all the memory there is, and neither can be caught. So the oracles that need TensorFlow run
in a child with limits; when it dies, they do not testify, and say why.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from bitzoo.converters.parity.serving_graph import NoWitness
from bitzoo.converters.parity.tensorflow_worker import OUT_OF_MEMORY, receive, send
from bitzoo.converters.source import Array

SPARE_MEMORY = 2 << 30
"""Bytes that TensorFlow may take for itself, and for what it computes of a small network: it takes
a quarter of that."""
NETWORKS = 4
"""How many times the network's bytes it may take besides. Variables of a graph are in memory as a
whole; the largest kernel of R152x4 is a sixth of it, of which float64 has eight times the bytes."""
_MEMORY_PER_CORE = 64 << 20
"""For the stacks of its threads, of which there are several per core."""
SPARE_SECONDS = 60
BYTES_PER_SECOND = 10_000_000
"""Processor time per request. R50x1 takes 2 s, so ten times that is more than enough."""
_WAIT = 20
"""Seconds to wait per second of processor time, on a machine that has much else to do."""
_LAST_SECONDS = 10
_CODE = (
    "import sys; sys.path[:] = {path!r}; "
    "from bitzoo.converters.parity.tensorflow_worker import serve; "
    "serve({parent}, {memory}, {seconds})"
)


class TensorFlowProcess:
    """Runs TensorFlow in a child process, which starts at once and loads it in the background.

    If the child dies, the next request starts another.
    """

    def __init__(self, size: int) -> None:
        """Start the child.

        Args:
            size: Bytes of the network's numbers; they bound its memory and time.
        """
        cores = os.cpu_count() or 1
        self.memory = SPARE_MEMORY + NETWORKS * size + _MEMORY_PER_CORE * cores
        self.seconds = SPARE_SECONDS + size // BYTES_PER_SECOND
        self._child: _Child | None = _Child(self.memory, self.seconds)

    @property
    def version(self) -> str:
        """TensorFlow's version; waits until it is loaded.

        Raises:
            NoWitness: If it cannot be loaded.
        """
        return self._running().version

    def forward(
        self, tensors: Mapping[str, Array], images: Array, *, dtype: str, eps: float | None
    ) -> Array:
        """Compute logits as `bitzoo.converters.parity.reference_tensorflow.forward` does.

        Raises:
            NoWitness: If TensorFlow fails, or dies.
        """
        line = {"do": "forward", "names": list(tensors), "dtype": dtype, "eps": eps}
        _, (logits,) = self._ask(line, [images], tensors)
        return logits

    def run_graph(
        self, graph: Path, prefix: Path, images: Array, like: Array
    ) -> tuple[str, Array] | None:
        """Run a SavedModel's graph as `bitzoo.converters.parity.serving_graph.ServingGraph` does.

        Args:
            graph: Its file.
            prefix: The checkpoint of its variables.
            images: As `ServingGraph` takes them.
            like: As `ServingGraph` takes it.

        Raises:
            NoWitness: If it must not or cannot be run, or TensorFlow dies of it.
        """
        where = {"graph": os.path.abspath(graph), "prefix": os.path.abspath(prefix)}
        line, arrays = self._ask({"do": "graph", **where}, [images, like], {})
        return (str(line["way"]), arrays[0]) if arrays else None

    def close(self) -> None:
        """End the child."""
        if self._child:
            self._child.kill()
            self._child = None

    def _running(self) -> _Child:
        child = self._child = self._child or _Child(self.memory, self.seconds)
        with self._deaths_reported(child):
            if not child.version:
                child.wait_until_ready()
        return child

    def _ask(
        self, line: Mapping[str, Any], arrays: Sequence[Array], tensors: Mapping[str, Array]
    ) -> tuple[dict[str, Any], list[Array]]:
        child = self._running()
        with self._deaths_reported(child):
            return child.ask(line, arrays, tensors)

    @contextmanager
    def _deaths_reported(self, child: _Child) -> Iterator[None]:
        try:
            yield
        except (EOFError, BrokenPipeError, json.JSONDecodeError) as error:
            self._child = None
            raise NoWitness(f"TensorFlow {self._reason(child, child.status())}") from error
        except BaseException as error:
            if not (isinstance(error, NoWitness) and child.version):
                self.close()  # in the middle of a message, or without TensorFlow
            raise

    def _reason(self, child: _Child, status: int) -> str:
        given = f"which had {self.memory / 1e9:.1f} GB of memory"
        if child.is_late or status == -signal.SIGXCPU:
            return f"was ended after {self.seconds:,} s of processor time"
        if status == OUT_OF_MEMORY:
            return f"was ended, {given} and asked for more"
        if status < 0:
            return f"died ({signal.Signals(-status).name}), {given}"
        return f"ended with status {status}, {given}"


class _Child:
    """One child process, used by one thread at a time."""

    def __init__(self, memory: int, seconds: int) -> None:
        code = _CODE.format(path=sys.path, parent=os.getpid(), memory=memory, seconds=seconds)
        self._process = subprocess.Popen(
            # -I: neither the current folder nor PYTHON* variables take precedence over this path
            [sys.executable, "-I", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
            start_new_session=True,  # Ctrl-C reaches only the parent, which then ends it
        )
        self._requests = cast("io.BufferedWriter", self._process.stdin)
        self._answers = cast("io.BufferedReader", self._process.stdout)
        self._patience = _WAIT * seconds
        self.version, self.is_late = "", False
        self.kill = weakref.finalize(self, _kill, self._process)
        """Ends the process; called automatically when nothing refers to this any more."""

    def wait_until_ready(self) -> None:
        self.version = str(self._receive()[0]["version"])

    def ask(
        self, line: Mapping[str, Any], arrays: Sequence[Array], tensors: Mapping[str, Array]
    ) -> tuple[dict[str, Any], list[Array]]:
        send(self._requests, line, arrays)
        while True:
            answer, found = self._receive()
            if "need" not in answer:
                return answer, found
            send(self._requests, {}, [tensors[answer["need"]]])

    def status(self) -> int:
        """Return the status with which the process has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_SECONDS)  # its pipes close before it has ended
        self.kill()
        return self._process.returncode

    def _receive(self) -> tuple[dict[str, Any], list[Array]]:
        if not hasattr(select, "poll"):
            raise NoWitness("TensorFlow is run only in a process with bounds; Windows has none")
        ready = select.poll()
        ready.register(self._answers, select.POLLIN)
        if not ready.poll(1000 * self._patience):
            self.is_late = True
            self._process.kill()
        answer, arrays = receive(self._answers)
        if "no" in answer:
            raise NoWitness(str(answer["no"]))
        return answer, arrays


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()
