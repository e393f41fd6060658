"""Several labels an image: the arrays, manifests, and what refuses them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from bitzoo.data.class_counts import describe_classes
from bitzoo.data.dataset import list_splits, read_dataset
from bitzoo.data.label_sets import LabelSets, label_sets_of
from bitzoo.data.output_space import OutputSpace
from bitzoo.data.problems import DatasetError
from bitzoo.data.validation import inspect
from bitzoo.inference.evaluate import labels_of
from bitzoo.inference.truth import find_truth

SETS = [(2,), (0, 3), (), (3, 1, 2), (1,)]


def test_sets_are_those_that_were_given():
    sets = LabelSets.of(SETS)
    assert [sets[row] for row in range(len(sets))] == SETS
    assert sets[-1] == (1,)
    assert sets.counts.tolist() == [1, 2, 0, 3, 1]
    assert sets.values.dtype == np.int32
    assert sets.offsets.dtype == np.int64
    rows = [3, 0, 3, 2]
    assert [sets.take(rows)[k] for k in range(4)] == [SETS[row] for row in rows]


def test_targets_have_a_one_for_every_class():
    found = LabelSets.of(SETS).targets(np.array([1, 2, 3, 3]), 5)
    expected = [[1, 0, 0, 1, 0], [0] * 5, [0, 1, 1, 1, 0], [0, 1, 1, 1, 0]]
    assert found.dtype == np.float32
    assert found.tolist() == expected


def test_single_is_known_only_where_every_image_has_one_class():
    assert LabelSets.of(SETS).single is None
    assert LabelSets.of([(1,), ()]).single is None
    assert LabelSets.of([(1,), (0,)]).single.tolist() == [1, 0]
    single = LabelSets.of_single([4, 0, 2])
    assert single.single.tolist() == [4, 0, 2]
    assert single[1] == (0,)
    assert len(LabelSets.of([])) == 0
    assert LabelSets.of([]).targets([], 3).shape == (0, 3)


@pytest.mark.parametrize("rows", [[5], [-1]])
def test_a_row_that_does_not_exist_is_no_other(rows):
    with pytest.raises(IndexError):
        LabelSets.of(SETS).take(rows)


@pytest.mark.parametrize("offsets", [[0, 2], [1, 3], [0, 3, 2, 3], []])
def test_offsets_that_fit_no_values_are_refused(offsets):
    with pytest.raises(ValueError, match="offsets"):
        LabelSets(np.zeros(3, np.int32), np.array(offsets, np.int64))


@pytest.fixture
def images(tmp_path):
    random = np.random.default_rng(0)
    for number in range(6):
        pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


LISTED = [["sea", "boat"], ["sea"], ["boat", "dog", "sea"], ["dog"], ["boat"], ["dog", "sea"]]


def write(folder, kind):
    file = folder / f"list.{kind}"
    if kind == "csv":
        lines = [f"{k}.png,{' ; '.join(names)}" for k, names in enumerate(LISTED)]
        file.write_text("path,labels\n" + "\n".join(lines) + "\n")
    else:
        lines = [json.dumps({"path": f"{k}.png", "labels": n}) for k, n in enumerate(LISTED)]
        file.write_text("\n".join(lines) + "\n")
    return file


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_manifest_gives_an_image_several_labels(images, kind):
    found, summary = inspect(read_dataset(write(images, kind)))
    assert found.classes == ("boat", "dog", "sea")
    sets = label_sets_of(found.train)
    names = [[found.classes[k] for k in sets[row]] for row in range(6)]
    assert names == LISTED
    assert [e.label for e in found.train.examples] == [2, 2, 0, 1, 0, 1]
    assert summary.class_counts["train"] == (3, 3, 4)
    assert describe_classes(found)[2:] == ["boat       3", "dog        3", "sea        4"]
    with pytest.raises(DatasetError, match=r"images of train have several labels"):
        labels_of(found.train)


def test_labels_change_the_fingerprint(images):
    before = read_dataset(write(images, "csv")).fingerprint
    assert read_dataset(write(images, "jsonl")).fingerprint == before
    file = images / "list.csv"
    file.write_text(file.read_text().replace("sea ; boat", "sea"))
    assert read_dataset(file).fingerprint != before


def test_one_label_in_the_column_labels_counts_as_one(images):
    file = images / "list.csv"
    file.write_text("path,labels,split\n0.png,a,train\n1.png,b,train\n2.png,a,val\n3.png,b,val\n")
    found = read_dataset(file)
    assert labels_of(found.train).tolist() == [0, 1]
    assert labels_of(found.val).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"path": "0.png", "labels": []}', "labels is empty"),
        ('{"path": "0.png", "labels": ["a", " "]}', "labels has an empty name"),
        ('{"path": "0.png", "labels": {"a": 1}}', 'labels must be a list of names, found {"a": 1}'),
        ('{"path": "0.png", "labels": [true]}', "labels must be a list of names, found [true]"),
    ],
)
def test_a_line_without_usable_labels_is_a_problem(images, line, said):
    file = images / "list.jsonl"
    file.write_text(f'{line}\n{{"path": "1.png", "labels": ["a", "b", "a"]}}\n')
    found = read_dataset(file)
    assert [p.detail for p in found.problems] == [said]
    assert found.classes == ("a", "b")
    assert found.train.examples[0].labels == (0, 1)


def test_lines_with_one_label_beside_lines_with_several_are_refused(images):
    file = images / "list.jsonl"
    file.write_text('{"path": "0.png", "label": "a"}\n{"path": "1.png", "labels": ["a", "b"]}\n')
    with pytest.raises(DatasetError, match=r"found 1 lines with labels and 1 with label\."):
        read_dataset(file)


def test_an_evaluation_knows_all_labels_of_an_image(images):
    listed = list_splits(write(images, "csv"))
    assert listed.used == {"boat", "dog", "sea"}
    space = OutputSpace(4, "four classes", ("dog", "cat", "sea", "boat"))
    truth = find_truth(listed, space, None)
    examples = [example for split in listed.splits.values() for example in split]
    found = dict(zip((e.key for e in examples), truth.accepted_by(examples), strict=True))
    names = {key: {truth.names[k] for k in labels} for key, labels in found.items()}
    assert names == {e.key: {listed.classes[k] for k in e.classes} for e in examples}
    assert {"sea", "boat"} in names.values()
    assert not truth.is_real


def test_an_image_whose_labels_are_all_unknown_to_a_network_is_a_problem(images):
    listed = list_splits(write(images, "csv"))
    space = OutputSpace(2, "two classes", ("dog", "boat"))
    truth = find_truth(listed, space, None, skip_unknown=True)
    kept = listed.with_targets(truth.names, truth.target)
    before = [example for split in listed.splits.values() for example in split]
    known = {e.key for e in before if {listed.classes[k] for k in e.classes} & {"dog", "boat"}}
    assert {e.key for split in kept.splits.values() for e in split} == known
    unknown = {e.key for e in before} - known
    assert unknown
    assert {p.subject for p in kept.problems} == unknown


def test_a_class_that_only_lasts_as_a_second_label_is_no_empty_one(images):
    file = images / "list.csv"
    file.write_text("path,labels\n0.png,a;b\n1.png,a\n2.png,c\n")
    (images / "2.png").write_bytes(b"")
    found, _ = inspect(read_dataset(file), skip_bad=True)
    assert found.classes == ("a", "b")
    assert [label_sets_of(found.train)[row] for row in range(2)] == [(0, 1), (0,)]
