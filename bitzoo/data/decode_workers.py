"""Worker processes that decode images, slowed down neither by Python's lock nor by training.

A worker is another interpreter that reads paths from its standard input and answers each with
pixels. It never runs the user's script again (a spawned multiprocessing worker does, and therefore
needs a `__main__` guard and loads torch again), and it inherits no locks, threads or GPU handles (a
forked one does). It ends when its input closes, so not even `kill -9` of its parent leaves a worker
behind.

What is decoded is what was hashed: a file is read once, and its bytes must have the SHA-256 that
validation found. Otherwise a file that is replaced in between would be trained on, and cached,
under the name of another.

Images that exist only in memory (arrays, Hugging Face rows) are decoded by threads of this process:
the function that loads them may be large to send or impossible to pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
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
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from bitzoo.data.inception_crop import CropKey, cropped
from bitzoo.errors import UsageError
from bitzoo.models.image_files import ImageTooLargeError, read_image_file
from bitzoo.models.preprocessing import (
    EvalTransform,
    ImageLike,
    loaded_upright,
    read_rgb,
    read_rgb_file,
)
from bitzoo.models.wide_values import is_wide_grey
from bitzoo.portable import cores, keep_freed_memory

if TYPE_CHECKING:
    from bitzoo.data.dataset import Example

Pixels8 = npt.NDArray[np.uint8]

_CODE = (
    "import sys; sys.path[:] = {path!r}; "
    "from bitzoo.data.decode_workers import serve; serve(**{transform!r})"
)
_GOOD, _BAD = b"\1", b"\0"


class Decoder:
    """Decodes and resizes examples, several at a time.

    Attributes:
        transform: What every image goes through; its `crop` is the edge of the results.
    """

    def __init__(
        self,
        size: int | EvalTransform,
        workers: int,
        *,
        use_processes: bool = True,
        bit_depth: int | None = None,
    ) -> None:
        """Start nothing yet; workers start when there is work for them.

        Args:
            size: How images are resized; a number of pixels means both edges, bilinear and
                antialiased, regardless of the aspect ratio (`EvalTransform.to_square`).
            workers: How many images to decode at a time, at least 1.
            use_processes: Whether worker processes decode the files; False uses threads of this
                process, which finish a few images before a worker process has started.
            bit_depth: See `bitzoo.models.preprocessing.read_rgb`; with an `EvalTransform`, None is
                that of the transform.
        """
        self.transform = as_transform(size, bit_depth)
        self._use_processes = use_processes
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="bitzoo-decode")
        self._idle: deque[_Worker] = deque()
        self._started: list[_Worker] = []
        self.close = weakref.finalize(self, _stop, self._threads, self._started)
        """Ends the workers; called automatically when the decoder is garbage-collected."""

    def decode_each(
        self,
        examples: Sequence[Example],
        store: Callable[[int, Pixels8], object],
        advance: Callable[[int], object] | None = None,
        crops: Sequence[CropKey] | None = None,
    ) -> None:
        """Decode all examples, in any order.

        Args:
            examples: What to decode.
            store: Called from any thread with an example's index and its pixels, uint8
                (size, size, 3).
            advance: Called from this thread with the number of images done.
            crops: Which random crop of each image is taken instead of the whole of it.

        Raises:
            UsageError: If an image cannot be decoded; images not yet started are skipped.
        """

        def work(number: int) -> None:
            store(number, self.decode(examples[number], crops[number] if crops else None))

        self.run_each(len(examples), work, advance)

    def run_each(
        self,
        count: int,
        work: Callable[[int], object],
        advance: Callable[[int], object] | None = None,
    ) -> None:
        """Call `work` with every number below `count`, in the threads that decode.

        Args:
            count: How many numbers.
            work: What is to be done, such as to `decode` an example.
            advance: Called from this thread with how much is done.

        Raises:
            Exception: The first that `work` raises; what has not started yet is skipped.
        """
        futures = [self._threads.submit(work, number) for number in range(count)]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                if advance is not None:
                    advance(done)
        finally:
            for future in futures:
                future.cancel()
            wait(futures)

    def decode(self, example: Example, crop: CropKey | None = None) -> Pixels8:
        """Return the pixels of one example: uint8 (size, size, 3), RGB.

        Args:
            example: What to decode.
            crop: Which random crop of the image to take; None resizes it by the transform.

        Raises:
            UsageError: If the image cannot be decoded, or is no longer the one that was checked.
        """
        if example.path is None or not self._use_processes:
            return self._decode_here(example, crop)
        try:
            worker = self._idle.pop()
        except IndexError:  # at most as many as there are threads
            worker = _Worker(self.transform)
            self._started.append(worker)
        pixels = worker.decode(os.path.abspath(example.path), example.sha256, crop)
        self._idle.append(worker)
        # This process may be able to read what a worker cannot, with a Pillow plug-in that the
        # user's script has loaded. If it cannot either, the error says why.
        return self._decode_here(example, crop) if pixels is None else pixels

    def _decode_here(self, example: Example, crop: CropKey | None) -> Pixels8:
        try:
            return _prepared(checked_image(example, self.transform.bit_depth), self.transform, crop)
        except UsageError as error:
            raise UsageError(f"{example.key}: {error}") from error


def _prepared(image: Image.Image, transform: EvalTransform, crop: CropKey | None) -> Pixels8:
    return transform.array(image) if crop is None else cropped(image, crop, transform.crop)


def as_transform(size: int | EvalTransform, bit_depth: int | None = None) -> EvalTransform:
    """Return the transform that is meant by one, or by the size of square images.

    Raises:
        UsageError: If the size is not positive.
    """
    if isinstance(size, EvalTransform):
        return size if bit_depth is None else replace(size, bit_depth=bit_depth)
    if size < 1:
        raise UsageError(f"The images' `size` must be at least 1 pixel, found {size}.")
    return EvalTransform.to_square(size, bit_depth)


def checked_image(example: Example, bit_depth: int | None = None) -> Image.Image:
    """Return an example's image as 8-bit RGB, upright, if it still is what validation saw.

    Args:
        example: Its `sha256`, if it has one, is what is expected.
        bit_depth: See `bitzoo.models.preprocessing.read_rgb`.

    Raises:
        UsageError: If it cannot be decoded, or has changed.
    """
    if example.stored is not None:
        name, content = f"The image {example.key}", example.stored()
    elif example.path is None:
        image = image_of(example)
        if example.sha256:
            _require_same(hash_of_image(image), example.sha256)
        return read_rgb(image, bit_depth)
    else:
        name, content = f"The image {str(example.path)!r}", read_content(example.path)
    if example.sha256:
        _require_same(hashlib.sha256(content).hexdigest(), example.sha256)
    return read_rgb_file(io.BytesIO(content), name, bit_depth)


def read_content(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of an image file.

    Raises:
        UsageError: If it cannot be read.
    """
    name = f"The image {os.fspath(path)!r}"
    try:
        return read_image_file(path)
    except ImageTooLargeError as error:
        raise UsageError(f"{name} is too large: {error}.") from error
    except (OSError, UnidentifiedImageError) as error:
        raise UsageError(
            f"{name} cannot be read: expected an image file of a format that is read, found "
            f"{error}. Check the path, or save the image again as PNG."
        ) from error


def hash_of_image(image: ImageLike) -> str:
    """Return the SHA-256 of the pixels of an image in memory, upright, as `Example.sha256`.

    It does not depend on the bit depth: that is known once all images have been seen.

    Raises:
        UsageError: If it cannot be decoded.
    """
    if isinstance(image, Image.Image):
        upright = loaded_upright(image, "The image")
        if is_wide_grey(upright):
            head = f"{upright.mode} {upright.width}x{upright.height}"
            return hashlib.sha256(head.encode() + upright.tobytes()).hexdigest()
    rgb = read_rgb(image)
    return hashlib.sha256(f"{rgb.width}x{rgb.height}".encode() + rgb.tobytes()).hexdigest()


def hash_stored(example: Example) -> str:
    """Return the SHA-256 of an image that has no file, as `Example.sha256`.

    Raises:
        UsageError: If it cannot be decoded.
        DatasetError: If it cannot be read from where it is stored.
    """
    if example.stored is not None:
        return hashlib.sha256(example.stored()).hexdigest()
    return hash_of_image(image_of(example))


def _require_same(found: str, expected: str) -> None:
    if found != expected:
        raise UsageError(
            "the image has changed since it was checked: expected the content with SHA-256 "
            f"{expected[:12]}..., found {found[:12]}.... Leave the images alone while they are "
            "used, and start again."
        )


def image_of(example: Example) -> ImageLike:
    """Return what `bitzoo.models.preprocessing` reads: the example's path or loaded image."""
    if example.path is not None:
        return example.path
    if example.load is None:
        raise UsageError("An example must have a path or a load function, found neither. Add one.")
    return example.load()


def count_cores() -> int:
    """Number of cores that this process may use."""
    return cores()


def serve(**transform: Any) -> None:
    """Run a worker: answer every path on standard input with pixels on standard output.

    Its arguments are the attributes of an `EvalTransform`.

    A request is a line of JSON: the path, the SHA-256 that its bytes must have ("": any), and the
    attributes of the `CropKey` or null. The answer is one byte, and the pixels if it is `_GOOD`;
    `_BAD` leaves it to the parent to try, and to say what is wrong.
    """
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # if the parent was killed, end silently
    warnings.simplefilter("ignore")  # Pillow's, about broken EXIF data: validation says what counts
    keep_freed_memory()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that nothing can print between the pixels
    resize = EvalTransform(**transform)
    for line in sys.stdin.buffer:
        path, sha256, crop = json.loads(line)
        try:
            content = read_content(path)
            if sha256:
                _require_same(hashlib.sha256(content).hexdigest(), sha256)
            image = read_rgb(content, resize.bit_depth)
            pixels = _prepared(image, resize, crop and CropKey(**crop))
        except UsageError:
            answers.write(_BAD)
        else:
            answers.write(_GOOD)
            answers.write(np.ascontiguousarray(pixels).data)
        answers.flush()


class _Worker:
    """The parent's end of one worker process; used by one thread at a time."""

    def __init__(self, transform: EvalTransform) -> None:
        self._shape = (transform.crop, transform.crop, 3)
        self._process = subprocess.Popen(
            # -I: neither the current folder nor PYTHON* variables take precedence over this path
            [
                *(sys.executable, "-I", "-c"),
                _CODE.format(path=sys.path, transform=asdict(transform)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # otherwise one thread per core each
            start_new_session=True,  # Ctrl-C reaches only the parent, which then closes the input
        )
        self._requests = cast("io.BufferedWriter", self._process.stdin)
        self._answers = cast("io.BufferedReader", self._process.stdout)

    def decode(self, path: str, sha256: str, crop: CropKey | None) -> Pixels8 | None:
        """Return the pixels of the file; None if the worker cannot read it, or it has changed."""
        pixels = np.empty(self._shape, np.uint8)
        with contextlib.suppress(BrokenPipeError):
            request = [path, sha256, crop and asdict(crop)]
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
        status = self._answers.read(1)
        if status == _BAD:
            return None
        if status == _GOOD and self._answers.readinto(pixels.data.cast("B")) == pixels.nbytes:
            return pixels
        raise UsageError(
            f"The image {path!r} cannot be decoded: its worker process ended with status "
            f"{self._process.wait()}. Status -9 means that the machine ran out of memory: use "
            "fewer `workers`. Otherwise save the image again as PNG, or remove it."
        )

    def stop(self) -> None:
        for stream in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                stream.close()
        self._process.wait()  # at most as long as one image takes


def _stop(threads: ThreadPoolExecutor, workers: list[_Worker]) -> None:
    threads.shutdown(cancel_futures=True)
    while workers:
        workers.pop().stop()
