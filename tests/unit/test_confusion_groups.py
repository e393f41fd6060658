"""Classes that are confused stand together: against SciPy's clustering, and by hand."""

import time

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage, to_tree
from scipy.spatial.distance import squareform

from bitzoo.inference.metrics import Confusion
from bitzoo.runs.report.confusion_groups import MAX_CLASSES, MAX_GROUP, group_confused


def confusions_of(matrix):
    rows, columns = np.nonzero(matrix)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [Confusion(a, b, int(matrix[a, b])) for a, b in pairs if a != b]


def largest_small_clusters(counts):
    """The largest clusters of at most `MAX_GROUP` in SciPy's tree; all counts are positive."""
    distances = counts.max() + 1 - counts.astype(float)
    np.fill_diagonal(distances, 0)
    nodes, found = [to_tree(linkage(squareform(distances), "average"))], []
    while nodes:
        node = nodes.pop()
        if node.get_count() <= MAX_GROUP:
            found.append(frozenset(node.pre_order()))
        else:
            nodes += [node.get_left(), node.get_right()]
    return found


@pytest.mark.parametrize("seed", range(8))
def test_groups_are_those_of_average_linkage(seed):
    random = np.random.default_rng(seed)
    count = 40
    matrix = (
        random.permutation(count * count).reshape(count, count) + 1
    )  # no two sums alike, or few
    counts = matrix + matrix.T
    found = group_confused(count, confusions_of(matrix))
    expected = [group for group in largest_small_clusters(counts) if len(group) > 1]
    assert {frozenset(group) for group in found.groups} == set(expected)
    inner = [counts[np.ix_(sorted(g), sorted(g))] for g in found.groups]
    assert list(found.mistakes) == [int(np.triu(block, 1).sum()) for block in inner]
    assert list(found.mistakes) == sorted(found.mistakes, reverse=True)
    assert sorted(found.order) == list(range(count))
    for group in found.groups:  # and they stand together
        start = found.order.index(group[0])
        assert found.order[start : start + len(group)] == group


def test_blocks_that_were_shuffled_are_found_again():
    """30 blocks of 5 classes, confused within a block and, more seldom, anywhere."""
    random = np.random.default_rng(0)
    block = random.permutation(np.repeat(np.arange(30), 5))
    matrix = np.where(block[:, None] == block, random.integers(5, 9, (150, 150)), 0)
    matrix[random.integers(0, 150, 100), random.integers(0, 150, 100)] += 1
    found = group_confused(150, confusions_of(matrix))
    assert {frozenset(group) for group in found.groups} == {
        frozenset(np.flatnonzero(block == number).tolist()) for number in range(30)
    }


def test_classes_without_mistakes_stand_last_in_their_own_order():
    found = group_confused(7, [Confusion(5, 2, 1), Confusion(2, 5, 2), Confusion(6, 1, 9)])
    assert found.groups == ((1, 6), (2, 5))
    assert found.mistakes == (9, 3)
    assert found.order == (1, 6, 2, 5, 0, 3, 4)


def test_nothing_confused():
    found = group_confused(3, [])
    assert (found.order, found.groups, found.mistakes) == ((0, 1, 2), (), ())


def test_equal_counts_end_and_do_not_depend_on_the_order_of_the_pairs():
    pairs = [Confusion(a, b, 1) for a in range(60) for b in range(60) if a != b]
    found = group_confused(60, pairs)
    assert found == group_confused(60, pairs[::-1])
    assert sorted(found.order) == list(range(60))


def test_more_classes_than_are_clustered_keep_those_with_the_most_mistakes():
    count = MAX_CLASSES + 500
    pairs = [Confusion(k, k + 1, 1 + (k >= 1000)) for k in range(0, count, 2)]
    found = group_confused(count, pairs)
    assert len(found.order) == MAX_CLASSES
    assert set(range(1000, count)) <= set(found.order)
    assert found.order[:2] == (1000, 1001)


def test_a_thousand_classes_take_no_time():
    random = np.random.default_rng(3)
    matrix = random.poisson(0.05, (1000, 1000))
    began = time.perf_counter()
    group_confused(1000, confusions_of(matrix))
    assert time.perf_counter() - began < 10
