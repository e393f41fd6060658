"""Verify an exported file: compare its runtime's outputs on probe images with a float64 oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitzoo.converters.parity import reference_numpy
from bitzoo.converters.parity.deviation import Deviation
from bitzoo.errors import UsageError
from bitzoo.exporters.export_formats import Run
from bitzoo.exporters.names import google_tensors
from bitzoo.models.bit import BiT

PROBES = ((224, 1), (97, 2))
"""Image side in pixels and number of images; the odd side exposes padding errors."""
SEED = 2020
TILE = 32
TOLERANCES = {"float32": 5e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""By the widest rounding: of stored kernels or of the computation; see `REASON`."""
REASON = (
    "relative L2 distance to the float64 reference. With float32 kernels, rounding alone causes "
    "1e-6 (R50x1) to 1e-4 (R152x2), a max-pool that pads with -inf 2e-3 to 2e-1 on these images; "
    "rounding the kernels themselves causes about 1e-3 (float16) and 1e-2 (bfloat16), computing "
    "in bfloat16 about 2e-2"
)


def tolerance_for(dtype: str, precision: str) -> float:
    """Return the tolerance for kernels stored in `dtype` and computation in `precision`.

    Args:
        dtype: A key of `TOLERANCES`.
        precision: As in `Opened`; a first word that is no key of `TOLERANCES` adds nothing.
    """
    words = precision.replace(",", " ").split()
    return max(TOLERANCES[dtype], TOLERANCES.get(words[0] if words else "", 0.0))


@dataclass(frozen=True)
class Probe:
    """Images (batch, height, width, channels) and the float64 reference's outputs for them."""

    images: npt.NDArray[np.float32]
    expected: npt.NDArray[np.float64]

    def judge(self, run: Run) -> Deviation:
        """Run the images through an exported file and measure its deviation."""
        found = run(np.ascontiguousarray(self.images.transpose(0, 3, 1, 2))).astype(np.float64)
        return Deviation.between(found, self.expected, self.images.shape[1])


def make_probes(model: BiT, sizes: Sequence[tuple[int, int]] | None = None) -> list[Probe]:
    """Create probe images and compute the outputs that the exported file must have.

    Args:
        model: The network, unfolded: the reference standardizes the kernels itself.
        sizes: Image side and number of images of each probe; None for `PROBES`.

    Raises:
        UsageError: If all outputs are zero for every image, as with an untrained head.
    """
    tensors = google_tensors(model)
    eps = reference_numpy.EPS if model.architecture.weight_standardization else None
    probes = []
    for size, count in PROBES if sizes is None else sizes:
        images = mosaics(size, count, model.architecture.in_chans)
        probes.append(Probe(images, reference_numpy.forward(tensors, images, eps=eps)))
    if not any(probe.expected.any() for probe in probes):
        raise UsageError(
            "The model's head is all zeros, as before training: nothing about an export could be "
            "verified. Train it first, or create the model with `num_classes=0` for its features."
        )
    return probes


def mosaics(size: int, count: int, channels: int) -> npt.NDArray[Any]:
    """Create images in [-1, 1] of coloured tiles with some noise: (count, size, size, channels).

    Wide areas of one sign, as in photographs, reach the border of the root's map; the error of a
    max-pool padded with -inf is then 20 to 40 times larger than on noise alone.
    """
    rng = np.random.default_rng(SEED)
    side = -(-size // TILE)
    tiles = rng.uniform(-0.75, 0.75, (count, side, side, channels))
    images = tiles.repeat(TILE, axis=1).repeat(TILE, axis=2)[:, :size, :size]
    return (images + rng.uniform(-0.25, 0.25, images.shape)).astype(np.float32)
