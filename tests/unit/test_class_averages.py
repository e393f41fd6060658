"""Balanced accuracy and macro F1 against scikit-learn, and top-5 only where it says something."""

import math
import warnings

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from bitzoo.inference.metrics import Evaluation


def evaluation_of(num_classes, labels, predicted):
    logits = np.eye(num_classes, dtype=np.float32)[np.asarray(predicted, int)]
    return Evaluation.of_logits(
        [f"class {index}" for index in range(num_classes)], np.asarray(labels, int), logits
    )


def test_by_hand():
    # 8 of 10 cats right, 1 of 2 dogs; 2 cats taken for dogs, 1 dog for a cat.
    found = evaluation_of(2, [0] * 10 + [1] * 2, [0] * 8 + [1] * 2 + [0, 1])
    assert found.top1 == 9 / 12
    assert found.balanced_accuracy == pytest.approx((0.8 + 0.5) / 2, rel=1e-15)
    cat, dog = 2 * 8 / (2 * 8 + 1 + 2), 2 * 1 / (2 * 1 + 2 + 1)
    assert found.macro_f1 == pytest.approx((cat + dog) / 2, rel=1e-15)


@pytest.mark.parametrize("num_classes", [2, 7, 40])
@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn(num_classes, seed):
    """Classes that no image has, too, and some that nothing is taken for."""
    random = np.random.default_rng(seed)
    odds = random.dirichlet(np.full(num_classes, 0.3))
    labels = random.choice(num_classes, 60, p=odds)
    predicted = np.where(random.random(60) < 0.6, labels, random.integers(0, num_classes, 60))
    found = evaluation_of(num_classes, labels, predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # classes that are predicted only
        expected = balanced_accuracy_score(labels, predicted)
    assert found.balanced_accuracy == pytest.approx(expected, rel=1e-12)
    expected = f1_score(labels, predicted, average="macro", zero_division=0)
    assert found.macro_f1 == pytest.approx(expected, rel=1e-12)


def test_a_class_without_images_that_is_predicted_costs_f1_only():
    found = evaluation_of(3, [0, 0, 1, 1], [0, 2, 1, 1])
    assert found.balanced_accuracy == 0.75
    assert found.macro_f1 == pytest.approx((2 / 3 + 1 + 0) / 3, rel=1e-15)


def test_nothing_evaluated():
    found = evaluation_of(3, [], [])
    assert math.isnan(found.balanced_accuracy)
    assert math.isnan(found.macro_f1)
    record = found.to_dict()
    assert (record["balanced_accuracy"], record["macro_f1"]) == (None, None)


@pytest.mark.parametrize(("num_classes", "shown"), [(2, False), (9, False), (10, True)])
def test_top5_is_shown_from_ten_classes_on_and_always_recorded(num_classes, shown):
    found = evaluation_of(num_classes, [0, 1], [0, 0])
    assert ("top-5" in dict(found.display_rows())) is shown
    assert found.to_dict()["top5"] == 1.0
