"""The closed-form classifier against big_vision's formula, written apart with a plain solver."""

import numpy as np
import pytest

from bitzoo.errors import UsageError
from bitzoo.training.ridge import L2, STRENGTHS, RidgeSystem, choose_strength, ridge, scores


def formula(support, labels, num_classes, test, l2=1024.0):
    """Scores by the text of evaluators/fewshot_lsr.py: always the primal, by a linear solver."""
    support, test = np.asarray(support, np.float64), np.asarray(test, np.float64)
    mean, std = support.mean(0), np.sqrt(((support - support.mean(0)) ** 2).mean(0)) + 1e-5
    constant = np.ptp(support, axis=0) == 0

    def prepared(x):
        standard = (x - mean) / std
        standard[:, constant] = 0.0  # their weight is 0, whatever the value
        return np.hstack([standard, np.full((len(x), 1), 100.0)])

    x, y = prepared(support), -np.ones((len(support), num_classes))
    for row, label in enumerate(labels):
        y[row, label] = 1.0
    weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)
    return prepared(test) @ weights


def examples(count, width, num_classes, seed):
    """Features as after a ReLU: not negative, some channels rarely above 0."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_classes, count)
    centres = random.gamma(0.5, 0.6, (num_classes, width))
    noise = random.normal(0, 0.5, (count, width))
    return np.maximum(centres[labels] + noise, 0).astype(np.float32), labels


@pytest.mark.parametrize(
    ("count", "width", "num_classes"),
    [(10, 256, 10), (50, 256, 10), (257, 256, 10), (256, 256, 10), (900, 128, 37), (1, 8, 3)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_and_predictions_are_those_of_the_formula(count, width, num_classes, seed):
    """Fewer examples than features, as many, and more: two forms of one solution."""
    features, labels = examples(count + 400, width, num_classes, seed)
    support, test = features[:count], features[count:]
    expected = formula(support, labels[:count], num_classes, test)
    found = scores(test, *ridge(support, labels[:count], num_classes))
    assert np.abs(found - expected).max() < 1e-6
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
    if count > 40:  # and it is a classifier: chance is one of num_classes
        assert (found.argmax(1) == labels[count:]).mean() > 2 / num_classes


@pytest.mark.parametrize("l2", [1e-3, 1.0, 2.0**20])
def test_any_strength_of_one_decomposition(l2):
    features, labels = examples(260, 40, 5, 2)
    system = RidgeSystem(features[:60], labels[:60], 5)
    for strength in (l2, L2):
        expected = formula(features[:60], labels[:60], 5, features[60:], strength)
        found = scores(features[60:], *system.solve(strength))
        assert np.abs(found - expected).max() < 1e-6


def refitted(features, labels, num_classes, l2):
    """Each example by a classifier that is solved without it; standardized as all of them are."""
    x = np.asarray(features, np.float64)
    standard = (x - x.mean(0)) / (x.std(0) + 1e-5)
    inputs = np.hstack([standard, np.full((len(x), 1), 100.0)])
    targets = np.where(np.arange(num_classes) == labels[:, None], 1.0, -1.0)
    found = np.empty_like(targets)
    for row in range(len(x)):
        kept = np.arange(len(x)) != row
        square = inputs[kept].T @ inputs[kept] + l2 * np.eye(inputs.shape[1])
        found[row] = inputs[row] @ np.linalg.solve(square, inputs[kept].T @ targets[kept])
    return found, targets


@pytest.mark.parametrize(("count", "width"), [(50, 12), (25, 40), (41, 40), (40, 40), (2, 5)])
@pytest.mark.parametrize("l2", [1.0, 64.0, L2, 2.0**20])
def test_leave_one_out_is_refitting_without_each(count, width, l2):
    features, labels = examples(count, width, 4, 5)
    features[:, 3] = 1.25
    expected, targets = refitted(features, labels, 4, l2)
    system = RidgeSystem(features, labels, 4)
    np.testing.assert_allclose(system.leave_one_out(l2), expected, rtol=0, atol=1e-8)
    found = system.judge(l2)
    assert (found.correct, found.count) == (int((expected.argmax(1) == labels).sum()), count)
    assert found.squared_error == pytest.approx(((expected - targets) ** 2).mean(), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_strength_is_chosen_by_what_is_right_then_by_the_error(seed):
    features, labels = examples(40, 15, 3, seed)
    strengths = (0.25, 16.0, 256.0, 4096.0, 2.0**18)
    judged = {}
    for l2 in strengths:
        expected, targets = refitted(features, labels, 3, l2)
        hits = int((expected.argmax(1) == labels).sum())
        judged[l2] = (hits, -((expected - targets) ** 2).mean())
    system = RidgeSystem(features, labels, 3)
    assert choose_strength(system, strengths).l2 == max(judged, key=lambda l2: judged[l2])
    assert len(STRENGTHS) == 31
    assert L2 in STRENGTHS
    with pytest.raises(UsageError, match="at least one number"):
        choose_strength(system, ())


@pytest.mark.parametrize("count", [12, 80])
def test_features_that_are_constant_on_the_support_count_for_nothing(count):
    """In both forms; the others' test values are divided by 1e-5 there, so rounding would show."""
    features, labels = examples(count + 300, 30, 4, 3)
    features[:count, [0, 7, 29]] = [0.0, 1 / 3, 7e4]
    support, test, truth = features[:count], features[count:], labels[:count]
    weight, bias = ridge(support, truth, 4)
    assert (weight[:, [0, 7, 29]] == 0).all()
    others = np.delete(np.arange(30), [0, 7, 29])
    alone = scores(test[:, others], *ridge(support[:, others], truth, 4))
    found = scores(test, weight, bias)
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-9)
    assert np.abs(found - formula(support, truth, 4, test)).max() < 1e-6


def test_classes_without_examples_score_minus_one():
    """Their targets are -1 throughout, and the bias is hardly regularized."""
    features, labels = examples(200, 20, 3, 4)
    found = scores(features, *ridge(features, labels, 5))
    np.testing.assert_allclose(found[:, 3:], -1, atol=1e-3)
    assert not np.isin(found.argmax(1), (3, 4)).any()


def test_one_example_says_its_class():
    weight, bias = ridge(np.ones((1, 6), np.float32), np.array([2]), 4)
    assert (weight == 0).all()
    expected = 1e4 / (1e4 + 1024)
    np.testing.assert_allclose(bias, [-expected, -expected, expected, -expected])


@pytest.mark.parametrize(
    ("features", "labels", "num_classes", "l2", "says"),
    [
        (np.ones((3, 2)), [0, 1], 2, 1.0, r"shape \(3, 2\) and labels of shape \(2,\)"),
        (np.ones((0, 2)), [], 2, 1.0, "n at least 1"),
        (np.ones((2, 2)), [0, 2], 2, 1.0, "from 0 to 1, found 0 to 2"),
        (np.ones((2, 2)), [0.0, 1.0], 2, 1.0, "whole numbers"),
        ([[1.0, np.nan], [1.0, 2.0]], [0, 1], 2, 1.0, "NaN in 1 of 2 rows"),
        (np.ones((2, 2)), [0, 1], 2, 0.0, "`l2` must be a number above 0, found 0.0"),
        (np.ones((2, 2)), [0, 1], 2, np.inf, "`l2`"),
    ],
)
def test_what_does_not_fit(features, labels, num_classes, l2, says):
    with pytest.raises(UsageError, match=says):
        ridge(features, np.array(labels), num_classes, l2)
