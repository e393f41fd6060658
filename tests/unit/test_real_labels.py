"""ReaL: several labels per validation image. Oracle: timm's `RealLabelsImagenet`."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data import ImageNetInfo
from timm.data.real_labels import RealLabelsImagenet

from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.data.folder import Row
from bitzoo.data.label_space import match_labels, output_space
from bitzoo.data.problems import DatasetError
from bitzoo.data.real_labels import (
    RealLabels,
    file_name,
    read_real_labels,
    real_targets,
    validation_number,
)
from bitzoo.errors import BitzooError
from bitzoo.zoo.info import info

ILSVRC = ImageNetInfo("imagenet-1k").label_names()
NAMES = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]


@pytest.fixture(scope="module")
def real():
    return read_real_labels()


@pytest.fixture(scope="module")
def oracle():
    return RealLabelsImagenet(NAMES)


@pytest.fixture(scope="module")
def ilsvrc():
    return output_space(info("BiT-M-R50x1-ILSVRC2012"))


@pytest.fixture(scope="module")
def google():
    return output_space(info("BiT-M-R50x1"))


def hits(columns, logits):
    """(right at first, right among five, counted) as the module's docstring says."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    judged = [(row, set(labels)) for row, labels in zip(order, columns, strict=True) if labels]
    first = sum(row[0] in labels for row, labels in judged)
    return first, sum(bool(labels & set(row)) for row, labels in judged), len(judged)


def test_labels_are_the_published_ones(real, oracle):
    assert [list(labels) for labels in real.labels] == [oracle.real_labels[n] for n in NAMES]
    assert sum(not labels for labels in real.labels) == 3163


def test_counts_equal_those_of_timm(real, ilsvrc):
    """On 3,000 images in random order, predictions drawn so that a good part is right."""
    draw = np.random.default_rng(0)
    numbers = draw.permutation(50_000)[:3_000]
    logits = draw.normal(size=(3_000, 1_000)).astype(np.float32)
    for row, number in enumerate(numbers):
        for label in real.labels[number][:1]:
            logits[row, label] += 3.0
    names = [NAMES[number] for number in numbers]
    oracle = RealLabelsImagenet(NAMES)
    oracle.filenames = names
    oracle.add_result(torch.from_numpy(logits))
    found = real_targets(names, real, ilsvrc, match_labels(ILSVRC, ilsvrc))
    first, five, counted = hits(found.columns, logits)
    assert counted == len(oracle.is_correct[1]) < 3_000
    assert 500 < first == sum(oracle.is_correct[1]) < five == sum(oracle.is_correct[5]) < counted
    unlabelled = 3_000 - counted
    assert found.notes == (
        "Judged by ReaL's labels, as they come with timm: a prediction is right if it is any of an "
        "image's labels.",
        f"Not counted: {unlabelled:,} of 3,000 images, which have no label.",
    )


def test_on_the_large_head_labels_without_output_are_dropped(real, google, oracle):
    synsets = ImageNetInfo("imagenet-21k-goog").label_names()
    teddy = ILSVRC.index("n04399382")
    match = match_labels(ILSVRC, google)
    found = real_targets(NAMES, real, google, match)
    columns = [synsets[output] for output in match.competing]
    expected = [
        sorted({ILSVRC[label] for label in oracle.real_labels[name] if label != teddy})
        for name in NAMES
    ]
    assert [sorted(columns[k] for k in labels) for labels in found.columns] == expected
    lost = sum(oracle.real_labels[name] == [teddy] for name in NAMES)
    assert lost > 10
    assert found.notes[2] == (
        f"Not counted: {lost} of 50,000 images, all of whose labels are classes without a "
        "competing output."
    )
    draw = np.random.default_rng(1)
    part = draw.permutation(50_000)[:300]
    logits = draw.normal(size=(300, len(synsets))).astype(np.float32)
    masked = np.full_like(logits, -np.inf)
    allowed = [synsets.index(id_) for id_ in ILSVRC if id_ in synsets]
    masked[:, allowed] = logits[:, allowed]
    for row, number in enumerate(part):
        for id_ in expected[number][-1:]:
            k = synsets.index(id_)
            logits[row, k] = masked[row, k] = logits[row, k] + 3.0
    outside = [
        (expected[number], [synsets[k] for k in torch.from_numpy(row).topk(5).indices])
        for number, row in zip(part, masked, strict=True)
        if expected[number]
    ]
    count = hits([found.columns[number] for number in part], match.restrict(logits))
    assert count == (
        sum(top[0] in labels for labels, top in outside),
        sum(bool(set(labels) & set(top)) for labels, top in outside),
        len(outside),
    )
    assert 50 < count[0] < count[1] < count[2]


def test_the_order_of_a_runs_outputs_does_not_matter(real):
    run = output_space(ModelInfo("R50x1", 1000, own_names=tuple(reversed(ILSVRC))))
    found = real_targets(NAMES[1:3], real, run, match_labels(ILSVRC, run))
    assert [sorted(999 - k for k in labels) for labels in found.columns] == [[795, 970], [230, 231]]


def test_outputs_without_ids_are_refused(real):
    run = output_space(ModelInfo("R50x1", 2, own_names=("cat", "dog")))
    with pytest.raises(DatasetError, match="must be known by WordNet id, found the 2 classes"):
        real_targets(NAMES[:1], real, run, match_labels(["cat"], run))


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("ILSVRC2012_val_00000001.JPEG", 1),
        ("val/n01751748/ILSVRC2012_val_00050000.JPEG", 50_000),
        ("val\\ILSVRC2012_val_00000293_n02123045.JPEG", 293),
        ("ilsvrc2012_val_00000293.jpg", 293),
        ("ILSVRC2012_val_00000000.JPEG", None),
        ("ILSVRC2012_val_00050001.JPEG", None),
        ("ILSVRC2012_val_0000001.JPEG", None),
        ("ILSVRC2012_test_00000001.JPEG", None),
        ("copy of ILSVRC2012_val_00000001.JPEG", None),
        ("row 17", None),
        ("", None),
    ],
)
def test_number_by_name(name, number):
    assert validation_number(name) == number


def test_names_of_rows():
    assert file_name(Row("a/x.png", "c", path=Path("data/a/x.png"))) == "x.png"
    assert file_name(Row("val[3]", "c", extra={"file_name": NAMES[7]})) == NAMES[7]
    assert file_name(Row("row 3", "c", extra={"filename": "", "width": "3"})) == "row 3"


def test_other_names_are_refused(real, ilsvrc):
    match = match_labels(ILSVRC, ilsvrc)
    with pytest.raises(DatasetError) as error:
        real_targets(["row 0", NAMES[0], "row \x1b"], real, ilsvrc, match)
    said = str(error.value)
    assert "found 2 of 3 with other names: row 0, row \\x1b. " in said
    assert "no order is known" in said


def test_a_number_may_not_occur_twice(real, ilsvrc):
    twice = [NAMES[4], NAMES[5], "ILSVRC2012_val_00000005_n02123045.JPEG"]
    with pytest.raises(DatasetError, match="found 1 more than once: numbers 5"):
        real_targets(twice, real, ilsvrc, match_labels(ILSVRC, ilsvrc))


class TestFile:
    def test_of_the_user(self, tmp_path):
        labels: list[list[int]] = [[] for _ in range(50_000)]
        labels[3] = [999, 0]
        path = tmp_path / "real.json"
        path.write_text(json.dumps(labels))
        real = read_real_labels(path)
        assert real.labels[3] == (999, 0)
        assert real.labels[4] == ()
        assert real.source == f"ReaL's labels ({path})"

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ("[[1]]", "found 1 items"),
            ('{"a": 1}', "found no list"),
            ("[" + "[1000]," * 49_999 + "[1]]", r"found \[1000\]"),
            ("[" + "[true]," * 49_999 + "[1]]", r"found \[True\]"),
            ("[" + "3," * 49_999 + "3]", "found 3"),
            ("[[1], ", "cannot be read"),
            ("", "cannot be read"),
        ],
    )
    def test_of_another_kind_is_refused(self, content, says, tmp_path):
        path = tmp_path / "real.json"
        path.write_text(content)
        with pytest.raises(DatasetError, match=says) as error:
            read_real_labels(path)
        assert "expected a list of 50,000 lists of class indices from 0 to 999" in str(error.value)

    def test_that_is_missing_or_a_folder(self, tmp_path):
        for path in (tmp_path / "none.json", tmp_path):
            with pytest.raises(BitzooError, match="found no file"):
                read_real_labels(path)


@dataclass
class Odd:
    key: str = "row 1"
    path: None = None
    extra: dict = field(default_factory=dict)


def test_file_name_takes_anything_alike():
    assert file_name(Odd(extra={"filename": "x"})) == "x"


def test_labels_can_be_made_by_hand(ilsvrc):
    labels = ((5,),) + ((),) * 49_999
    found = real_targets(
        NAMES[:2], RealLabels(labels, "mine"), ilsvrc, match_labels(ILSVRC, ilsvrc)
    )
    assert found.columns == ((5,), ())
