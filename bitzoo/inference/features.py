"""Pooled features of images: what the head of a network sees, computed once for all of them.

They are cached by what determines them: the contents of the images and how they were prepared, the
weights below the head, the compute dtype, the backend and the kind of device. The batch, the torch
release and other things that change a feature by rounding do not count.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bitzoo.data.image_store import Contents, Pixels
from bitzoo.errors import StorageError
from bitzoo.files import Progress, cache_dir
from bitzoo.inference.feature_cache import ROWS, Features, make_room, read_rows, write_rows
from bitzoo.inference.runner import Runner, batches_of, one_ahead
from bitzoo.locks import file_lock
from bitzoo.models.bit import BiT

BATCH = 64
BUDGET_BYTES = 20 * 10**9
"""Most bytes of all cached features, unless the caller says another number."""
TASK = "features"
"""The name of the work in progress reports."""


@dataclass
class Work:
    """What `compute_features` did.

    Attributes:
        batches: Of each batch that the network computed, how many images it had, and the seconds
            that it took, without those of reading and decoding.
        place: The folder of the cache that has these features; None where they are not cached.
    """

    batches: list[tuple[int, float]] = field(default_factory=list)
    place: Path | None = None

    @property
    def images(self) -> int:
        """Images that the network computed; those in the cache are not among them."""
        return sum(images for images, _ in self.batches)

    @property
    def images_per_s(self) -> float | None:
        """How many images the network computes in a second; None if it computed none.

        The first batch, in which kernels are packed, counts only if there is no other.
        """
        timed = self.batches[1:] or self.batches
        seconds = sum(seconds for _, seconds in timed)
        return sum(images for images, _ in timed) / seconds if seconds else None


_VERSION = 1
"""Changes whenever the same network and images may have other features."""
_log = logging.getLogger(__name__)


class FeatureNetwork:
    """A network without its head, prepared for its backend when the first image needs it.

    For several sets of images: preparing takes OpenVINO longer than a hundred images.
    """

    def __init__(
        self,
        model: BiT,
        device: torch.device | str | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        backend: str = "eager",
    ) -> None:
        """Prepare nothing yet; the arguments are those of `compute_features`."""
        self._encoder = _encoder(model)
        self._how = device, dtype, backend
        self._keys: dict[str, str] = {}

    @cached_property
    def _runner(self) -> Runner:
        return Runner(self._encoder, *self._how)

    def key(self, prepared: str) -> str:
        """Return the name of all that determines features besides the images' contents."""
        if prepared not in self._keys:
            self._keys[prepared] = _key(self._encoder, prepared, *self._how)
        return self._keys[prepared]

    def compute(
        self,
        pixels: Pixels,
        progress: Progress | None = None,
        *,
        cache: Path | None = None,
        budget_bytes: int = BUDGET_BYTES,
        work: Work | None = None,
    ) -> Features:
        """Return the pooled features of every image, as `compute_features` does."""
        features = np.empty((len(pixels), self._encoder.num_features), np.float32)

        def parts_of(rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
            """Compute the features of rows, and yield the rows of each part that is done."""
            if not len(rows):
                return iter(())
            return _compute(self._runner, pixels, features, rows, work or Work(), progress)

        contents = pixels.contents if budget_bytes > 0 else None
        place = cache or _usual_cache()
        if contents is None or place is None:
            deque(parts_of(np.arange(len(features))), maxlen=0)
            return features
        folder = place / self.key(contents.prepared)
        if work is not None:
            work.place = folder
        if not len(read_rows(folder, contents.hashes, features)):
            return features  # which needs neither a lock nor write permission
        with _locked(folder) as is_writable:
            missing = read_rows(folder, contents.hashes, features)
            for part in parts_of(missing):
                if is_writable:
                    hashes = [contents.hashes[row] for row in part.tolist()]
                    is_writable = _keep(place, folder, hashes, features[part], budget_bytes)
        return features


def compute_features(
    model: BiT,
    pixels: Pixels,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    backend: str = "eager",
    cache: Path | None = None,
    budget_bytes: int = BUDGET_BYTES,
    work: Work | None = None,
) -> Features:
    """Return the pooled features of every image: after the last norm, ReLU and the global mean.

    A second call for the same images and network computes nothing, if the first could write to the
    cache; of one that was interrupted, what it had computed is kept. Images whose contents are not
    known (`Pixels.contents`) are not cached.

    Args:
        model: The network; its head is not used.
        pixels: Images at the edge length that the network is to see.
        device: Where to compute; None is where the model is.
        progress: Called with ``"features"``, images done, and their total.
        dtype: Compute dtype.
        backend: What runs the network; see `bitzoo.optimize`.
        cache: Folder of the features of all networks; default ``cache_dir() / "features"``.
        budget_bytes: Most bytes that the whole folder may hold; those of other networks are removed
            to make room, least recently used first. 0 neither reads nor writes it.
        work: What is computed is added to it.

    Returns:
        float32 (n, num_features), on the CPU.
    """
    network = FeatureNetwork(model, device, dtype=dtype, backend=backend)
    return network.compute(pixels, progress, cache=cache, budget_bytes=budget_bytes, work=work)


def find_features(
    model: BiT,
    pixels: Pixels,
    device: torch.device | str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    backend: str = "eager",
    cache: Path | None = None,
    budget_bytes: int = BUDGET_BYTES,
    work: Work | None = None,
) -> Features | None:
    """Return the features of every image if all of them are in the cache; no image is decoded.

    Args:
        model: As for `compute_features`, as all that is not explained here.
        pixels: The images.
        device: Where the features would be computed.
        dtype: Compute dtype.
        backend: What would run the network.
        cache: Folder of the features of all networks.
        budget_bytes: 0 reads nothing.
        work: Its `place` is set.

    Returns:
        As `compute_features`; None if some are missing, or nothing can be cached.
    """
    contents = pixels.contents if budget_bytes > 0 else None
    place = cache or _usual_cache()
    if contents is None or place is None:
        return None
    encoder = _encoder(model)
    folder = place / _key(encoder, contents.prepared, device, dtype, backend)
    if work is not None:
        work.place = folder
    features = np.empty((len(pixels), model.num_features), np.float32)
    return None if len(read_rows(folder, contents.hashes, features)) else features


def count_missing(model: BiT, contents: Contents, device: torch.device | str | None = None) -> int:
    """Return how many images have no features in the cache, as `compute_features` would find them.

    Args:
        model: The network.
        contents: What names the images' pixels.
        device: Where they would be computed.
    """
    place = _usual_cache()
    if place is None or not place.is_dir():
        return len(contents.hashes)
    key = _key(_encoder(model), contents.prepared, device, torch.float32, "eager")
    rows = np.empty((len(contents.hashes), model.num_features), np.float32)
    return len(read_rows(place / key, contents.hashes, rows))


def _usual_cache() -> Path | None:
    """Return the folder of the features of all networks; None if there is no place for it."""
    try:
        return cache_dir() / TASK
    except StorageError:
        return None


def _compute(
    network: Runner,
    pixels: Pixels,
    features: Features,
    rows: npt.NDArray[np.int64],
    work: Work,
    progress: Progress | None,
) -> Iterator[npt.NDArray[np.int64]]:
    before = len(features) - len(rows)
    with ThreadPoolExecutor(1) as pool:
        for part in batches_of(rows, ROWS):
            count = -(-len(part) // BATCH)
            size = -(-len(part) // count) if network.has_one_shape else BATCH
            batches, done = batches_of(part, size), 0
            try:
                for batch, images in one_ahead(batches, lambda b: pool.submit(pixels.take, b)):
                    decoded, began = images.result(), time.perf_counter()
                    # The last batch is smaller by less than the number of batches.
                    missing = size - len(batch) if network.has_one_shape else 0
                    filled = np.concatenate([decoded, decoded[:1].repeat(missing, 0)])
                    features[batch] = network(filled if missing else decoded)[: len(batch)]
                    work.batches.append((len(batch), time.perf_counter() - began))
                    done += len(batch)
                    if progress:
                        progress(TASK, before + done, len(features))
            except BaseException:  # what is done is kept, whatever ends the work
                if done:
                    yield part[:done]
                raise
            before += done
            yield part


def _keep(place: Path, folder: Path, hashes: list[bytes], rows: Features, budget: int) -> bool:
    """Write features to the cache; False, with a warning, if it cannot be written."""
    try:
        write_rows(folder, hashes, rows)
        make_room(place, budget, folder)
    except OSError as error:
        _warn(place, error)
        return False
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Keep other processes from computing the same; yields whether the folder can be written."""
    with ExitStack() as stack:
        is_writable = True
        try:
            stack.enter_context(file_lock(folder / "build"))
        except OSError as error:
            _warn(folder, error)
            is_writable = False
        yield is_writable


def _warn(place: Path, error: OSError) -> None:
    _log.warning("Features are not kept: the cache %s cannot be used: %s", place, error)


def _key(
    encoder: BiT,
    prepared: str,
    device: torch.device | str | None,
    dtype: torch.dtype,
    backend: str,
) -> str:
    """Return the name of all that determines features besides the images."""
    where = next(encoder.parameters()).device if device is None else torch.device(device)
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        flat = tensor.detach().cpu().reshape(-1)  # in any memory format, also of 1 x 1 kernels
        digest.update(flat.view(torch.uint8).numpy().data)
    form = [encoder.architecture.name, encoder.output_stride]
    known = [_VERSION, *form, prepared, where.type, str(dtype), backend]
    digest.update(json.dumps(known).encode())
    return digest.hexdigest()[:32]


def _encoder(model: BiT) -> BiT:
    """Return the model without its head; all other parameters are shared."""
    encoder = copy.copy(model)
    encoder._modules = dict(model._modules)
    encoder.reset_classifier(0)
    return encoder
