"""Groups stay on one side of the automatic split; groups of one are drawn as ever."""

from collections import Counter

import pytest

from bitzoo.data.splits import draw_folds, hold_out, join_groups

LABELS = [0] * 9 + [1] * 5 + [2] + [0] * 3 + [3] * 20
RECORDED = {
    0: (4, 6, 8, 12, 24, 25, 28, 37),
    1: (0, 1, 5, 12, 27, 31, 35, 37),
    7: (0, 8, 9, 16, 21, 23, 28, 33),
}
"""Seed -> what was held out before there were groups."""


@pytest.mark.parametrize("seed", RECORDED)
@pytest.mark.parametrize("groups", [None, range(38), [f"x{i}" for i in range(38)]])
def test_groups_of_one_are_drawn_as_ever(seed, groups):
    assert hold_out(LABELS, "abcd", 0.2, seed, groups) == RECORDED[seed]


@pytest.mark.parametrize("fraction", [0.03, 0.1, 0.37, 0.9])
def test_groups_of_one_for_every_fraction(fraction):
    for seed in range(20):
        alone = hold_out(LABELS, "abcd", fraction, seed, range(38))
        assert alone == hold_out(LABELS, "abcd", fraction, seed)


def test_a_group_of_every_class():
    """Two hundred people who each show ten numbers once: whole people, equal in all classes."""
    labels = [number for _ in range(200) for number in range(10)]
    people = [person for person in range(200) for _ in range(10)]
    held = hold_out(labels, "0123456789", 0.1, 3, people)
    assert Counter(labels[i] for i in held) == dict.fromkeys(range(10), 20)
    assert Counter(people[i] for i in held) == dict.fromkeys({people[i] for i in held}, 10)
    assert held != hold_out(labels, "0123456789", 0.1, 4, people)


def test_pairs_stay_together_and_the_numbers_nearly_fit():
    labels = [0] * 40 + [1] * 40
    pairs = [i // 2 for i in range(80)]
    for seed in range(20):
        held = set(hold_out(labels, "ab", 0.1, seed, pairs))
        assert {i ^ 1 for i in held} == held
        assert Counter(labels[i] for i in held) == {0: 4, 1: 4}


def test_large_groups_are_better_than_none():
    """Three people, a third of each class each, and a tenth asked for."""
    labels = [0, 1] * 30
    people = [i // 20 for i in range(60)]
    held = hold_out(labels, "ab", 0.1, 0, people)
    assert len(held) == 20
    assert len({people[i] for i in held}) == 1


def test_no_class_is_taken_from_training():
    labels = [0, 0, 0, 1, 1, 1]
    assert hold_out(labels, "ab", 0.5, 0, ["x"] * 3 + ["y"] * 3) == ()
    held = hold_out(labels, "ab", 0.5, 0, ["x", "x", "z", "y", "y", "w"])
    assert len(held) in (2, 3, 4)
    assert {labels[i] for i in set(range(6)) - set(held)} == {0, 1}


def test_only_equality_of_groups_counts():
    labels = [i % 3 for i in range(90)]
    numbers = [i // 4 for i in range(90)]
    names = [("group", str(-number)) for number in numbers]
    assert hold_out(labels, "abc", 0.2, 5, numbers) == hold_out(labels, "abc", 0.2, 5, names)


def test_groupings_join():
    content = ["p", "q", "p", "r", "s", "t"]
    person = [1, 2, 3, 3, 4, 5]
    assert join_groups(content) == (0, 1, 0, 3, 4, 5)
    assert join_groups(content, person) == (0, 1, 0, 0, 4, 5)
    chain = [0, 1, 1, 2, 2, 3], [0, 0, 1, 1, 2, 2]
    assert join_groups(*chain) == (0,) * 6


class TestFolds:
    @pytest.mark.parametrize("folds", [2, 5, 7])
    def test_they_are_as_even_as_those_of_scikit_learn(self, folds):
        """Every class, and all of them, as evenly as whole numbers allow."""
        import numpy as np
        from sklearn.model_selection import StratifiedKFold

        labels = np.random.default_rng(0).permutation(np.repeat(range(4), [37, 9, 61, 20]))
        found = draw_folds(labels, "abcd", folds, 0)
        theirs = StratifiedKFold(folds).split(labels[:, None], labels)
        ours = [np.bincount(labels[found == fold], minlength=4) for fold in range(folds)]
        expected = [np.bincount(labels[test], minlength=4) for _, test in theirs]
        for label in range(4):
            assert sorted(row[label] for row in ours) == sorted(row[label] for row in expected)
        sizes = sorted(row.sum() for row in ours)
        assert sizes[-1] - sizes[0] <= 1
        assert (found == draw_folds(labels, "abcd", folds, 0)).all()
        assert (found != draw_folds(labels, "abcd", folds, 1)).any()

    def test_groups_are_in_one_fold(self):
        labels = [i % 3 for i in range(90)]
        groups = [i // 4 for i in range(90)]
        found = draw_folds(labels, "abc", 5, 0, groups).tolist()
        assert len({*zip(groups, found, strict=True)}) == len(set(groups))
        assert all(abs(count - 18) <= 4 for count in Counter(found).values())

    def test_few_groups_leave_folds_empty(self):
        assert sorted({*draw_folds([0, 0, 1, 1], "ab", 3, 0, "xxyy").tolist()}) == [0, 1]
