"""How far the outputs of two implementations are apart: the one record of all such comparisons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Deviation:
    """How far outputs are from those of an oracle on some images.

    Attributes:
        size: Side of the square images in pixels.
        images: Number of images.
        relative_l2: ``|found - expected| / |expected|`` over all outputs.
        max_abs: Largest absolute difference.
        max_logit: Largest absolute output of the oracle.
        top1_equal: Images for which both rank the same output first.
    """

    size: int
    images: int
    relative_l2: float
    max_abs: float
    max_logit: float
    top1_equal: int

    @classmethod
    def between(cls, found: npt.NDArray[Any], expected: npt.NDArray[Any], size: int) -> Deviation:
        """Compare outputs of shape (images, outputs) for images of `size` pixels.

        Outputs that are all zero are compared as they are, not relative to their norm.
        """
        difference = found - expected
        scale = np.linalg.norm(expected) or 1.0
        return cls(
            size=size,
            images=len(expected),
            relative_l2=float(np.linalg.norm(difference) / scale),
            max_abs=float(np.abs(difference).max()),
            max_logit=float(np.abs(expected).max()),
            top1_equal=int((found.argmax(1) == expected.argmax(1)).sum()),
        )

    def within(self, tolerance: float) -> bool:
        """Whether the distance is a number within the tolerance."""
        return bool(self.relative_l2 <= tolerance)
