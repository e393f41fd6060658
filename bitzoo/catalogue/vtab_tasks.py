"""The 19 tasks of VTAB-1k, as data: TFDS data sets, slices, labels and exceptions of the recipe.

VTAB is arXiv 1910.04867; a task's data set, slices and label are those of its code,
google-research/task_adaptation, data/*.py and scripts/run_all_tasks.sh at d7630d3. The sizes and
exceptions are those of BiT's paper (arXiv 1912.11370, section 3.3 and supplementary section F).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

Group = Literal["natural", "specialized", "structured"]
GROUPS: tuple[Group, ...] = get_args(Group)

Part = Literal["train800", "val200", "train800val200", "train", "val", "trainval", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
"""The parts of a task's data. VTAB-1k trains on ``train800val200``, in this order."""


@dataclass(frozen=True)
class SplitLayout:
    """How the parts of a task are cut from the splits of its TFDS data set.

    Attributes:
        train, val, trainval, test, train800, val200: Slices in TFDS's slicing language. In braces
            stand record numbers that depend on how many records the data set's `train` split has:
            ``{end}``, where the training part ends, ``{val_end}``, where the validation part ends,
            and ``{val200_end}``.
        train_percent: Share of `train` to train on, rounded down to whole records.
        val_percent: Share of `train` to validate on, rounded down by itself.
    """

    train: str
    val: str
    trainval: str
    test: str
    train800: str = "train[:800]"
    val200: str = "validation[:200]"
    train_percent: int | None = None
    val_percent: int | None = None

    def needs_count(self, part: Part) -> bool:
        """Whether the part depends on the number of records of `train`."""
        return "{" in self._template(part)

    def slices(self, part: Part, records: int | None = None) -> str:
        """Return a part in TFDS's slicing language.

        Args:
            part: One of `PARTS`.
            records: Number of records of the `train` split; only where `needs_count` says so.
        """
        template = self._template(part)
        if not self.needs_count(part):
            return template
        if records is None or self.train_percent is None:
            raise ValueError(f"{part} depends on the number of records of train")
        end = self.train_percent * records // 100
        val_end = end + (self.val_percent or 0) * records // 100
        return template.format(end=end, val_end=val_end, val200_end=end + 200)

    def _template(self, part: Part) -> str:
        if part == "train800val200":
            return f"{self.train800}+{self.val200}"
        template: str = getattr(self, part)
        return template


_OWN_VALIDATION = SplitLayout("train", "validation", "train+validation", "test")


def _end_of_train(percent: int, test: str = "test") -> SplitLayout:
    """Return the layout of data without validation split: what `percent` of train leaves is it."""
    return SplitLayout(
        "train[:{end}]",
        "train[{end}:]",
        "train",
        test,
        val200="train[{end}:{val200_end}]",
        train_percent=percent,
    )


def _one_split(train_percent: int, val_percent: int) -> SplitLayout:
    """Return the layout of data that are all in `train`; what the shares leave is the test set."""
    return SplitLayout(
        "train[:{end}]",
        "train[{end}:{val_end}]",
        "train[:{val_end}]",
        "train[{val_end}:]",
        val200="train[{end}:{val200_end}]",
        train_percent=train_percent,
        val_percent=val_percent,
    )


_HALVES_OF_TEST = SplitLayout(
    "train", "test[:50%]", "train+test[:50%]", "test[50%:]", val200="test[:200]"
)
"""smallNORB: validation on the first half of the official test set, test on the second."""


@dataclass(frozen=True)
class VtabTask:
    """A task of VTAB.

    Attributes:
        name: Its name in the released checkpoints.
        title: Its name in the papers' tables.
        group: One of `GROUPS`.
        tfds: TFDS data set, with its configuration if it has several.
        versions: Versions of that data set that are accepted. The first is the one that the
            reference lists of the parts were made with (KMnP/vpt, VTAB_SETUP.md); a later one may
            differ, see `DRIFT`.
        layout: How its parts are cut from the splits.
        counts: Number of examples of train, val and test that task_adaptation's tests expect.
        classes: Number of classes.
        small: Whether BiT-HyperRule takes its images for small: 32 or 64 px squares are, those of
            96 px are not.
        rule: Name of the rule that derives the label (`bitzoo.data.derived_labels`); None for the
            data set's own label.
        flip: Whether BiT's paper mirrors its training images at random.
        crop: Whether BiT's paper crops its training images at random.
        scale: What pixel values are multiplied by: 255 for masks of 0 and 1.
        manual: Whether TFDS needs files that must be downloaded by hand first.
    """

    name: str
    title: str
    group: Group
    tfds: str
    versions: tuple[str, ...]
    layout: SplitLayout
    counts: tuple[int, int, int]
    classes: int
    small: bool = False
    rule: str | None = None
    flip: bool = True
    crop: bool = True
    scale: int = 1
    manual: bool = False


_AZIMUTH = VtabTask(
    "smallnorb-azimuth",
    "sNORB-Azim",
    "structured",
    "smallnorb",
    ("2.0.0", "2.1.0"),
    _HALVES_OF_TEST,
    (24_300, 12_150, 12_150),
    18,
    rule="smallnorb-azimuth",
    flip=False,
)
_X_POSITION = VtabTask(
    "dsprites-xpos",
    "dSprites-Loc",
    "structured",
    "dsprites",
    ("2.0.0", "2.1.0"),
    _one_split(80, 10),
    (589_824, 73_728, 73_728),
    16,
    small=True,
    rule="dsprites-xpos",
    flip=False,
    crop=False,
    scale=255,
)
_DISTANCE = VtabTask(
    "clevr-distance",
    "Clevr-Dist",
    "structured",
    "clevr",
    ("3.1.0", "3.0.0"),
    _end_of_train(90, test="validation"),
    (63_000, 7_000, 15_000),
    6,
    rule="clevr-distance",
    crop=False,
)

_ROWS = (
    VtabTask(
        "caltech101",
        "Caltech101",
        "natural",
        "caltech101",
        ("3.0.1", "3.0.0", "3.0.2"),
        _end_of_train(90),
        (2_754, 306, 6_084),
        102,
    ),
    VtabTask(
        "diabetic_retinopathy",
        "Retinopathy",
        "specialized",
        "diabetic_retinopathy_detection/btgraham-300",
        ("3.0.0",),
        _OWN_VALIDATION,
        (35_126, 10_906, 42_670),
        5,
        manual=True,
    ),
    VtabTask(
        "dtd",
        "DTD",
        "natural",
        "dtd",
        ("3.0.1", "3.0.0"),
        _OWN_VALIDATION,
        (1_880, 1_880, 1_880),
        47,
    ),
    VtabTask(
        "oxford_flowers102",
        "Flowers102",
        "natural",
        "oxford_flowers102",
        ("2.1.1", "2.1.0", "2.0.0"),
        _OWN_VALIDATION,
        (1_020, 1_020, 6_149),
        102,
    ),
    VtabTask(
        "oxford_iiit_pet",
        "Pets",
        "natural",
        "oxford_iiit_pet",
        ("3.2.0", "3.1.0", "3.0.0", "4.0.0"),
        _end_of_train(80),
        (2_944, 736, 3_669),
        37,
    ),
    VtabTask(
        "resisc45",
        "Resisc45",
        "specialized",
        "resisc45",
        ("3.0.0",),
        _one_split(60, 20),
        (18_900, 6_300, 6_300),
        45,
        manual=True,
    ),
    VtabTask(
        "sun397",
        "Sun397",
        "natural",
        "sun397/tfds",
        ("4.0.0",),
        _OWN_VALIDATION,
        (76_128, 10_875, 21_750),
        397,
    ),
    VtabTask(
        "cifar100",
        "CIFAR-100",
        "natural",
        "cifar100",
        ("3.0.2", "3.0.1", "3.0.0"),
        _end_of_train(90),
        (45_000, 5_000, 10_000),
        100,
        small=True,
    ),
    VtabTask(
        "eurosat",
        "EuroSAT",
        "specialized",
        "eurosat/rgb",
        ("2.0.0",),
        _one_split(60, 20),
        (16_200, 5_400, 5_400),
        10,
        small=True,
    ),
    VtabTask(
        "patch_camelyon",
        "Camelyon",
        "specialized",
        "patch_camelyon",
        ("2.0.0",),
        _OWN_VALIDATION,
        (262_144, 32_768, 32_768),
        2,
    ),
    replace(
        _AZIMUTH,
        name="smallnorb-elevation",
        title="sNORB-Elev",
        classes=9,
        rule="smallnorb-elevation",
        flip=True,
    ),
    VtabTask(
        "svhn",
        "SVHN",
        "natural",
        "svhn_cropped",
        ("3.0.0", "3.1.0"),
        _end_of_train(90),
        (65_931, 7_326, 26_032),
        10,
        small=True,
    ),
    replace(
        _X_POSITION,
        name="dsprites-orientation",
        title="dSprites-Ori",
        rule="dsprites-orientation",
        crop=True,
    ),
    _AZIMUTH,
    _DISTANCE,
    replace(_DISTANCE, name="clevr-count", title="Clevr-Count", classes=8, rule="clevr-count"),
    VtabTask(
        "dmlab",
        "DMLab",
        "structured",
        "dmlab",
        ("2.0.1",),
        _OWN_VALIDATION,
        (65_550, 22_628, 22_735),
        6,
        crop=False,
    ),
    VtabTask(
        "kitti-distance",
        "KITTI-Dist",
        "structured",
        "kitti",
        ("3.2.0", "3.1.0", "3.3.0"),
        _OWN_VALIDATION,
        (6_347, 423, 711),
        4,
        rule="kitti-distance",
        crop=False,
    ),
    _X_POSITION,
)

TASKS: Mapping[str, VtabTask] = {task.name: task for task in _ROWS}
"""The tasks by name, in the order of big_transfer's README."""

DRIFT: Mapping[tuple[str, str], str] = {
    ("caltech101", "3.0.2"): "another archive; copies made with it count 2,753 + 306 training and "
    "6,085 test images, where the reference has 2,754 + 306 and 6,084",
    ("oxford_iiit_pet", "4.0.0"): "corrupt images were encoded again",
    ("svhn_cropped", "3.1.0"): "the only version that TFDS can still prepare",
    ("kitti", "3.3.0"): "occlusion labels were added; the reference is 3.2.0, and "
    "task_adaptation asks for 3.1.0",
}
"""What is known of the versions that differ from those that the published scores were made with."""
