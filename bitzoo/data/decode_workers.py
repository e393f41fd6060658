"""Pictures decoded by processes of their own: neither Python's lock nor training slows them.

A worker is another interpreter that reads paths from its standard input and answers each with
pixels. It never runs the user's script again (a multiprocessing worker does where it is spawned,
and then wants a `__main__` guard and loads torch again), and it inherits no locks, threads or GPU
handles (a forked one does). It ends when its input closes, so not even `kill -9` of its parent
leaves one behind.

Pictures that exist in memory only (arrays, Hugging Face rows) are decoded by threads of this
process: what loads them may be large to send or impossible to pickle.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from bitzoo.errors import UsageError
from bitzoo.models.preprocessing import EvalTransform, Picture

if TYPE_CHECKING:
    from bitzoo.data.dataset import Example

Pixels8 = npt.NDArray[np.uint8]

_CODE = (
    "import sys; sys.path[:] = {path!r}; "
    "from bitzoo.data.decode_workers import serve; serve({size})"
)
_GOOD, _BAD = b"\1", b"\0"


class Decoder:
    """Decodes and resizes examples, several at a time.

    Every image goes through `bitzoo.models.preprocessing.EvalTransform`: both edges become `size`
    pixels, bilinear and antialiased, whatever the aspect.

    Attributes:
        size: Edge of the results in pixels.
    """

    def __init__(self, size: int, workers: int, *, apart: bool = True) -> None:
        """Start nothing yet; workers start when there is something for them to do.

        Args:
            size: Edge of the results in pixels.
            workers: How many pictures are decoded at a time, at least 1.
            apart: Whether files are decoded by worker processes; False decodes them by threads of
                this one, which for a few pictures is done before a process has started.
        """
        self.size = size
        self._transform = EvalTransform(crop=size, resize=size)
        self._apart = apart
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="bitzoo-decode")
        self._idle: deque[_Worker] = deque()
        self._started: list[_Worker] = []
        self.close = weakref.finalize(self, _stop, self._threads, self._started)
        """Ends the workers; happens by itself when the decoder is no longer used."""

    def decode_each(
        self,
        examples: Sequence[Example],
        place: Callable[[int, Pixels8], object],
        advance: Callable[[int], object] | None = None,
    ) -> None:
        """Decode all, in any order.

        Args:
            examples: What to decode.
            place: Called by any thread with an example's number and its pixels, uint8
                (size, size, 3).
            advance: Called by this thread with how many are done.

        Raises:
            UsageError: If a picture cannot be decoded; those that have not begun are left out.
        """

        def work(number: int) -> None:
            place(number, self.decode(examples[number]))

        futures = [self._threads.submit(work, number) for number in range(len(examples))]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                if advance is not None:
                    advance(done)
        finally:
            for future in futures:
                future.cancel()
            wait(futures)

    def decode(self, example: Example) -> Pixels8:
        """Pixels of one example: uint8 (size, size, 3), RGB.

        Raises:
            UsageError: If the picture cannot be decoded.
        """
        if example.path is None or not self._apart:
            return self._decode_here(example)
        try:
            worker = self._idle.pop()
        except IndexError:  # as many at most as there are threads
            worker = _Worker(self.size)
            self._started.append(worker)
        pixels = worker.decode(os.path.abspath(example.path))
        self._idle.append(worker)
        # What a worker cannot read, this process may: by a plug-in of Pillow that the user's script
        # has loaded. If it cannot either, the error says why.
        return self._decode_here(example) if pixels is None else pixels

    def _decode_here(self, example: Example) -> Pixels8:
        try:
            return self._transform.array(source_of(example))
        except UsageError as error:
            raise UsageError(f"{example.key}: {error}") from error


def source_of(example: Example) -> Picture:
    """What `bitzoo.models.preprocessing` reads: the example's file, or what its `load` returns."""
    if example.path is not None:
        return example.path
    if example.load is None:
        raise UsageError("An example must have a path or a load function, found neither. Add one.")
    return example.load()


def count_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def serve(size: int) -> None:
    """Answer every path on standard input with pixels on standard output; a worker's whole life."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a parent that was killed: end without a word
    warnings.simplefilter("ignore")  # Pillow's, of broken EXIF data: inspection tells what matters
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not print between the pixels
    transform = EvalTransform(crop=size, resize=size)
    for line in sys.stdin.buffer:
        try:
            pixels = transform.array(json.loads(line))
        except UsageError:
            answers.write(_BAD)
        else:
            answers.write(_GOOD)
            answers.write(pixels.data)
        answers.flush()


class _Worker:
    """The parent's side of one worker process; for one thread at a time."""

    def __init__(self, size: int) -> None:
        self._shape = (size, size, 3)
        self._process = subprocess.Popen(
            # -I: nothing in the current folder or in PYTHON* variables comes before this path
            [sys.executable, "-I", "-c", _CODE.format(path=sys.path, size=size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # else a thread a core in each
            start_new_session=True,  # Ctrl-C is for the parent, which then closes the input
        )
        self._requests = cast("io.BufferedWriter", self._process.stdin)
        self._answers = cast("io.BufferedReader", self._process.stdout)

    def decode(self, path: str) -> Pixels8 | None:
        """Pixels of the file, None if the worker cannot read it."""
        pixels = np.empty(self._shape, np.uint8)
        with contextlib.suppress(BrokenPipeError):
            self._requests.write(json.dumps(path).encode() + b"\n")
            self._requests.flush()
        verdict = self._answers.read(1)
        if verdict == _BAD:
            return None
        if verdict == _GOOD and self._answers.readinto(pixels.data.cast("B")) == pixels.nbytes:
            return pixels
        raise UsageError(
            f"The picture {path!r} cannot be decoded: the process that was to do it ended with "
            f"status {self._process.wait()}. Status -9 means that the machine ran out of memory: "
            "use fewer workers. Otherwise save the picture again as PNG, or remove it."
        )

    def stop(self) -> None:
        for stream in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                stream.close()
        self._process.wait()  # at most until one picture is decoded


def _stop(threads: ThreadPoolExecutor, workers: list[_Worker]) -> None:
    threads.shutdown(cancel_futures=True)
    while workers:
        workers.pop().stop()
