"""The 19 VTAB tasks: rows against the papers' facts, derived labels against definitions apart."""

import numpy as np
import pytest

from bitzoo.catalogue.vtab_tasks import DRIFT, GROUPS, PARTS, TASKS, Part
from bitzoo.data.derived_labels import RULES


def test_the_tasks_are_those_of_the_paper():
    by_group = {
        group: {task.title for task in TASKS.values() if task.group == group} for group in GROUPS
    }
    assert by_group == {
        "natural": {"Caltech101", "CIFAR-100", "DTD", "Flowers102", "Pets", "Sun397", "SVHN"},
        "specialized": {"Camelyon", "EuroSAT", "Resisc45", "Retinopathy"},
        "structured": {
            "Clevr-Count",
            "Clevr-Dist",
            "DMLab",
            "KITTI-Dist",
            "dSprites-Loc",
            "dSprites-Ori",
            "sNORB-Azim",
            "sNORB-Elev",
        },
    }


def test_the_exceptions_are_those_of_the_paper():
    titles = {task.title: task for task in TASKS.values()}
    still = {title for title, task in titles.items() if not task.flip}
    assert still == {"dSprites-Ori", "sNORB-Azim", "dSprites-Loc"}
    whole = {title for title, task in titles.items() if not task.crop}
    assert whole == {"Clevr-Count", "Clevr-Dist", "DMLab", "KITTI-Dist", "dSprites-Loc"}
    small = {title for title, task in titles.items() if task.small}
    assert small == {"CIFAR-100", "SVHN", "EuroSAT", "dSprites-Loc", "dSprites-Ori"}


def test_all_test_sets_together_are_as_large_as_known():
    assert sum(task.counts[2] for task in TASKS.values()) == 387_904


# What task_adaptation's constructors make of the number of records of `train`, by data set.
_SLICES = {
    "caltech101": (
        3_060,
        "train[:2754] | train[2754:] | train | test | train[:800] | train[2754:2954]",
    ),
    "oxford_iiit_pet": (
        3_680,
        "train[:2944] | train[2944:] | train | test | train[:800] | train[2944:3144]",
    ),
    "clevr-count": (
        70_000,
        "train[:63000] | train[63000:] | train | validation | train[:800] | train[63000:63200]",
    ),
    "svhn": (
        73_257,
        "train[:65931] | train[65931:] | train | test | train[:800] | train[65931:66131]",
    ),
    "eurosat": (
        27_000,
        "train[:16200] | train[16200:21600] | train[:21600] | train[21600:] | train[:800] | "
        "train[16200:16400]",
    ),
    "dsprites-xpos": (
        737_280,
        "train[:589824] | train[589824:663552] | train[:663552] | train[663552:] | train[:800] | "
        "train[589824:590024]",
    ),
    "smallnorb-azimuth": (
        24_300,
        "train | test[:50%] | train+test[:50%] | test[50%:] | train[:800] | test[:200]",
    ),
    "dtd": (
        1_880,
        "train | validation | train+validation | test | train[:800] | validation[:200]",
    ),
}


@pytest.mark.parametrize("name", _SLICES)
def test_parts_are_sliced_as_by_the_reference_code(name):
    records, expected = _SLICES[name]
    layout = TASKS[name].layout
    parts: tuple[Part, ...] = ("train", "val", "trainval", "test", "train800", "val200")
    assert " | ".join(layout.slices(part, records) for part in parts) == expected
    both = "+".join(layout.slices(part, records) for part in parts[-2:])
    assert layout.slices("train800val200", records) == both
    for part in PARTS:
        if layout.needs_count(part):
            with pytest.raises(ValueError, match=f"{part} depends on the number of records"):
                layout.slices(part)


def test_shares_are_rounded_down_one_by_one():
    # 60 % and 20 % of 1,009 are 605 and 201 records; 80 % would be 807.
    assert TASKS["eurosat"].layout.slices("test", 1_009) == "train[806:]"
    # The later version of Caltech101 has one training image less.
    assert TASKS["caltech101"].layout.slices("val200", 3_059) == "train[2753:2953]"


def test_drifted_versions_are_accepted_but_not_first():
    for (data_set, version), reason in DRIFT.items():
        tasks = [task for task in TASKS.values() if task.tfds.split("/")[0] == data_set]
        assert tasks
        assert reason
        assert all(version in task.versions[1:] for task in tasks)


def test_every_rule_has_the_classes_of_its_task():
    for task in TASKS.values():
        if task.rule is not None:
            assert len(set(RULES[task.rule].classes)) == task.classes
    assert {task.rule for task in TASKS.values()} - {None} == set(RULES)


def _clevr(*depths):
    return {"objects": {"pixel_coords": np.array([(9, 9, d) for d in depths], np.float32)}}


def _just(distance, towards):
    return np.nextafter(np.float32(distance), np.float32(towards))


def test_clevr_counts_from_three_objects():
    rule = RULES["clevr-count"]
    for objects in range(3, 11):
        label = rule.label(_clevr(*range(1, objects + 1)))
        assert label == objects - 3
        assert rule.classes[label] == f"{objects} objects"
    assert [rule.label(_clevr(*[9] * objects)) for objects in (0, 1, 2, 11)] == [-1, -2, -1, 8]


@pytest.mark.parametrize(("upper", "label"), [(8, 0), (8.5, 1), (9, 2), (9.5, 3), (10, 4)])
def test_a_clevr_threshold_belongs_to_the_nearer_class(upper, label):
    label_of = RULES["clevr-distance"].label
    assert label_of(_clevr(50, upper, 99)) == label
    assert label_of(_clevr(50, _just(upper, 0), 99)) == label
    assert label_of(_clevr(50, _just(upper, 99), 99)) == label + 1


def test_clevr_distances_outside_the_thresholds_have_no_class():
    label_of = RULES["clevr-distance"].label
    assert label_of(_clevr(_just(0, 1))) == 0
    assert label_of(_clevr(100)) == 5
    assert label_of(_clevr(0, 9)) == -1
    assert label_of(_clevr(_just(100, 200))) == 6  # of 0 to 5
    assert label_of(_clevr()) == -1


def _kitti(*objects):
    types, depths = [kind for kind, _ in objects], [depth for _, depth in objects]
    places = np.array([(1, 2, depth) for depth in depths], np.float32).reshape(-1, 3)
    return {"objects": {"type": np.array(types, np.int64), "location": places}}


@pytest.mark.parametrize(("upper", "label"), [(8, 0), (20, 1)])
def test_a_kitti_threshold_belongs_to_the_nearer_class(upper, label):
    label_of = RULES["kitti-distance"].label
    for kind in (0, 1, 2):  # car, van, truck
        assert label_of(_kitti((kind, upper), (kind, 300))) == label
        assert label_of(_kitti((kind, _just(upper, 99)), (kind, 300))) == label + 1


def test_kitti_looks_at_vehicles_only():
    label_of = RULES["kitti-distance"].label
    assert label_of(_kitti()) == 3
    assert label_of(_kitti((3, 1), (7, 2))) == 3  # a pedestrian and what is not named
    assert label_of(_kitti((3, 1), (1, 30))) == 2
    assert label_of(_kitti((0, -99))) == 0
    assert label_of(_kitti((0, -100))) == -1


def test_sprites_are_binned_as_by_division():
    for value in range(32):
        assert RULES["dsprites-xpos"].label({"label_x_position": value}) == value // 2
    sizes = np.zeros(16, int)
    for value in range(40):
        label = RULES["dsprites-orientation"].label({"label_orientation": value})
        assert label == int(np.floor_divide(np.float32(value), np.float32(2.5)))
        sizes[label] += 1
        first, last = (int(n) for n in RULES["dsprites-orientation"].classes[label].split()[1::2])
        assert first <= value <= last
    assert sizes.tolist() == [3, 2] * 8


def test_norb_labels_are_the_stored_ones():
    record = {"label_azimuth": np.int64(17), "label_elevation": np.int64(8)}
    assert RULES["smallnorb-azimuth"].label(record) == 17
    assert RULES["smallnorb-azimuth"].classes[17] == "azimuth 340 degrees"
    assert RULES["smallnorb-elevation"].label(record) == 8
    assert RULES["smallnorb-elevation"].classes[8] == "elevation 70 degrees"
