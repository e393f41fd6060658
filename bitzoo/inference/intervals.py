"""How far a share that was counted may be from the one that more images would show."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def paired_difference(lost: int, gained: int, count: int, z: float = Z_95) -> tuple[float, float]:
    """Return an interval of by how much the first of two classifiers is right more often.

    Both judged the same images, so what says something is only where they differ. With half an
    image added to each of the four cells of the table (right or wrong, by either), so that it says
    something of few images too: ``d -+ z sqrt((b + c) - (b - c)^2 / n) / n`` with b = lost + 1/2,
    c = gained + 1/2, n = count + 2 and d = (b - c) / n.

    Source: A. Agresti and Y. Min, "Simple improved confidence intervals for comparing matched
    proportions", Statistics in Medicine 24 (2005), p. 729-740 (the Wald interval with 2 added).

    Args:
        lost: Images that only the first had right.
        gained: Images that only the second had right.
        count: All images.
        z: How many standard deviations; the default is for 95 %.

    Returns:
        Lower and upper end, in [-1, 1]; NaN without images.
    """
    if not count:
        return math.nan, math.nan
    b, c, n = lost + 0.5, gained + 0.5, count + 2
    middle = (b - c) / n
    reach = z * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return max(-1.0, middle - reach), min(1.0, middle + reach)


def student(values: Sequence[float], share: float = 0.95) -> tuple[float, float]:
    """Return Student's interval of the mean of a normal population of which values were drawn.

    It is ``mean -+ t s / sqrt(n)`` with s the standard deviation of the sample and t the quantile
    of Student's distribution with n - 1 degrees of freedom: 12.7 for two values, 4.3 for three. So
    it has what the seed of a run changes in it, and little to say where there are few seeds.

    Source: Student, "The probable error of a mean", Biometrika 6 (1908), p. 1-25.

    Args:
        values: At least two.
        share: In which share of all samples it has the mean in it.

    Returns:
        Lower and upper end, not bounded; NaN for fewer than two values.
    """
    count = len(values)
    if count < 2:
        return math.nan, math.nan
    mean = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    reach = student_quantile(count - 1, (1 + share) / 2) * deviation / math.sqrt(count)
    return mean - reach, mean + reach


def student_quantile(degrees: int, share: float) -> float:
    """Return the value below which a share of Student's distribution lies.

    By bisection of the distribution function, which has a closed form for whole degrees of freedom:
    M. Abramowitz and I. Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4.

    Args:
        degrees: Degrees of freedom, at least 1.
        share: In [0.5, 1).
    """
    low, high = 0.0, 1.0
    while _within(degrees, high) < 2 * share - 1:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if _within(degrees, middle) < 2 * share - 1:
            low = middle
        else:
            high = middle
    return high


def _within(degrees: int, t: float) -> float:
    """Return the share of Student's distribution within -t and t."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
