"""The boxes of inception crops against TensorFlow's own operator, and against integrals.

TensorFlow draws the ratio of width to height uniformly, then the height uniformly between those of
the least and the largest area that fit. Of a square of edge 1 the box then has, for a ratio r,
heights between a = sqrt(0.05 / r) and b = min(1, 1 / r), so that its expected area is
r (a^2 + a b + b^2) / 3, over r from 3/4 to 4/3.
"""

import numpy as np
import pytest
from scipy import integrate, stats

from bitzoo.data.inception_crop import CropKey, crop_box
from bitzoo.data.sampler import BatchPlan

LEAST_P = 0.001
"""Smallest probability of a difference at least as large by chance; seeds are fixed."""
RATIOS = (3 / 4, 4 / 3)


def boxes(height, width, count, seed=0):
    """(count, 4): top, left, height, width."""
    found = [crop_box(CropKey(seed, n // 64, n % 64).stream(), height, width) for n in range(count)]
    return np.array(found, float)


def mean_over_ratios(function):
    total, _ = integrate.quad(function, *RATIOS, points=[1.0])
    return total / (RATIOS[1] - RATIOS[0])


def test_areas_ratios_and_corners_of_a_large_square():
    """2000 pixels, so that rounding to pixels does not matter."""
    count, edge = 20_000, 2000
    top, left, height, width = boxes(edge, edge, count).T / edge
    area, ratio = height * width, width / height
    assert area.min() >= 0.05 - 1e-3
    assert area.max() <= 1
    assert ratio.min() >= RATIOS[0] - 2e-3
    assert ratio.max() <= RATIOS[1] + 2e-3
    assert stats.kstest(ratio, stats.uniform(RATIOS[0], RATIOS[1] - RATIOS[0]).cdf).pvalue > LEAST_P

    def low(r):
        return np.sqrt(0.05 / r)

    def high(r):
        return np.minimum(1, 1 / r)

    # given the ratio, where the height lies between its bounds is uniform
    place = (height - low(ratio)) / (high(ratio) - low(ratio))
    assert stats.kstest(place, stats.uniform().cdf).pvalue > LEAST_P
    expected = mean_over_ratios(lambda r: r * (low(r) ** 2 + low(r) * high(r) + high(r) ** 2) / 3)
    assert expected == pytest.approx(0.3754, abs=1e-4)
    assert area.mean() == pytest.approx(expected, abs=4 * area.std() / np.sqrt(count))
    # and the corner is anywhere where the box fits
    for corner, length in ((top, height), (left, width)):
        free = length < 0.9
        where = corner[free] / (1 - length[free])
        assert stats.kstest(where, stats.uniform().cdf).pvalue > LEAST_P


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (128, 128), (64, 200)])
def test_boxes_are_distributed_as_those_of_tensorflow(size):
    """The operator itself; its corners leave out the last place, which is one of hundreds."""
    tf = pytest.importorskip("tensorflow")
    count, (height, width) = 3000, size
    no_objects = tf.zeros((1, 0, 4))

    @tf.function
    def draw(number):
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.constant([height, width, 3]), no_objects, seed=[7, number], min_object_covered=0.0,
            aspect_ratio_range=RATIOS, area_range=(0.05, 1.0), max_attempts=100,
            use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        return tf.concat([begin[:2], extent[:2]], 0)

    @tf.function
    def draw_all():
        return tf.map_fn(draw, tf.range(count))

    wanted, found = draw_all().numpy().astype(float), boxes(height, width, count, seed=1)
    properties = {
        "height": lambda box: box[:, 2],
        "width": lambda box: box[:, 3],
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: box[:, 3] / box[:, 2],
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
    }
    for name, of in properties.items():
        pvalue = stats.ks_2samp(of(found), of(wanted)).pvalue
        assert pvalue > LEAST_P, f"{name} of {size}: {pvalue:.2g}"


def test_a_box_is_a_function_of_seed_step_row_and_size_alone():
    """Whatever was drawn before, in whatever order; no two keys share their numbers."""
    keys = [CropKey(seed, step, row) for seed in (0, 1) for step in (0, 1, 5) for row in range(50)]
    forwards = [crop_box(key.stream(), 300, 400) for key in keys]
    backwards = [crop_box(key.stream(), 300, 400) for key in reversed(keys)][::-1]
    assert forwards == backwards
    assert len(set(forwards)) == len(keys)
    # neighbouring rows, steps and seeds are not correlated
    table = np.array([box[2] * box[3] for box in forwards], float).reshape(2, 3, 50)
    pairs = [(table[0, 0], table[1, 0]), (table[0, 0], table[0, 1])]
    pairs.append((table[:, :, :-1].ravel(), table[:, :, 1:].ravel()))
    for first, second in pairs:
        assert stats.spearmanr(first, second).pvalue > LEAST_P


def test_boxes_have_numbers_of_their_own():
    """The plan's order, mirrors and mixtures are the same with and without them."""
    plain = BatchPlan(100, 16, 32, 32, True, 0.2, 9).batch(4)
    boxed = BatchPlan(100, 16, 32, 32, True, 0.2, 9, random_resized=True).batch(4)
    assert np.array_equal(plain.indices, boxed.indices)
    assert np.array_equal(plain.flip, boxed.flip)
    assert np.array_equal(plain.mix, boxed.mix)
    assert plain.lam == boxed.lam
