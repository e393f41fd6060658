"""Few-shot subsets: of both protocols balanced, nested, and the same in every process."""

import hashlib
import itertools
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from bitzoo.data.shots import describe_short, draw_shots
from bitzoo.data.splits import choose

SHOTS = (1, 5, 10, 25)
LABELS = np.random.default_rng(5).integers(0, 9, 400) % 8  # class 0 is twice as large
CLASSES = [f"class {number}" for number in range(9)]  # the last has no examples


def as_big_vision_draws(labels, num_classes, shots, seed):
    """By the text of evaluators/fewshot_lsr.py."""
    generator = np.random.default_rng(seed)
    orders = []
    for number in range(num_classes):
        orders.append(generator.permutation(np.where(labels == number)[0]))
    return np.concatenate([order[:shots] for order in orders])


@pytest.mark.parametrize("seed", [0, 1, 2, 12345])
def test_the_probes_subsets_are_big_visions(seed):
    found = draw_shots(LABELS, 9, SHOTS, seed)
    for shots in SHOTS:
        expected = as_big_vision_draws(LABELS, 9, shots, seed)
        np.testing.assert_array_equal(found[shots], expected)


def both(seed):
    """Protocol -> shots -> positions."""
    chosen = {shots: choose(LABELS.tolist(), CLASSES, shots, seed) for shots in (*SHOTS, 1000)}
    drawn = draw_shots(LABELS, 9, (*SHOTS, 1000), seed)
    return {"finetune": chosen, "ridge": {k: tuple(v.tolist()) for k, v in drawn.items()}}


@pytest.mark.parametrize("protocol", ["finetune", "ridge"])
def test_balanced_and_nested(protocol):
    there = Counter(LABELS.tolist())
    for seed in range(5):
        subsets = both(seed)[protocol]
        for shots, positions in subsets.items():
            assert len(set(positions)) == len(positions)
            counts = Counter(LABELS[list(positions)].tolist())
            assert counts == {label: min(shots, count) for label, count in there.items()}
        ordered = [set(subsets[shots]) for shots in sorted(subsets)]
        assert all(small < large for small, large in itertools.pairwise(ordered))
        assert ordered[-1] == set(range(400))
    assert len({both(seed)[protocol][5] for seed in range(5)}) == 5


def test_the_choice_does_not_depend_on_what_else_is_asked_for():
    alone = draw_shots(LABELS, 9, [5], 3)
    np.testing.assert_array_equal(alone[5], draw_shots(LABELS, 9, [100, 5, 1], 3)[5])


CODE = """
import json, sys
sys.path.insert(0, {folder!r})
import test_shots
print(json.dumps(test_shots.digest()))
"""


def digest():
    """A hash of the subsets of some seeds."""
    subsets = json.dumps([both(seed) for seed in (0, 1, 7)], default=int)
    return hashlib.sha256(subsets.encode()).hexdigest()


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_equal_over_processes(hash_seed):
    code = CODE.format(folder=str(__file__).rpartition("/")[0])
    environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert json.loads(done.stdout) == digest()


def test_short_classes_are_named():
    labels = [0, 0, 1, 2, 2, 2]
    assert describe_short(labels, "abcd", 2) == "Classes with fewer than 2 images: b (1), d (0)."
    assert describe_short(labels[:5], "abc", 1) == ""
