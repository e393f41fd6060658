"""How far a share that was counted may be from the one that more images would show."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""Standard normal deviate that 2.5 % of the distribution exceed."""


def wilson(hits: int, count: int, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a share.

    With p = hits / count it is ``(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 /
    n)``: the shares from which p is at most z standard deviations away. It stays within [0, 1] and
    holds for few images and for shares near 0 and 1 too. It takes the images for a random sample:
    what the choice of the data set, of the checkpoint or of a seed changes is not in it.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
    Journal of the American Statistical Association 22 (1927), p. 209-212.

    Args:
        hits: Images that were right.
        count: Images.
        z: How many standard deviations; the default is for 95 %.

    Returns:
        Lower and upper end, in [0, 1]; NaN without images.
    """
    if not count:
        return math.nan, math.nan
    share = hits / count
    square = z * z / count
    centre = share + square / 2
    reach = z * math.sqrt(share * (1 - share) / count + square / (4 * count))
    low = 0.0 if not hits else (centre - reach) / (1 + square)
    high = 1.0 if hits == count else (centre + reach) / (1 + square)
    return low, high
