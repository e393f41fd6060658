"""The size of the images on whose features closed-form classifiers are compared."""

from __future__ import annotations

from bitzoo.runs.config import Resolution

PROBE_SIZE = (256, 224)
"""Edge to which images are resized, and that of their centre; big_vision, common_fewshot.py."""


def probe_size(resolution: Resolution) -> tuple[int, int]:
    """Return resize and crop.

    Args:
        resolution: As the user gave it. With a crop alone, the resize scales with it; None is
            `PROBE_SIZE`.
    """
    resize, crop = resolution if isinstance(resolution, tuple) else (None, resolution)
    if crop is None:
        return PROBE_SIZE
    return resize or round(PROBE_SIZE[0] * crop / PROBE_SIZE[1]), crop
