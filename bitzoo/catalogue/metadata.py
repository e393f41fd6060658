"""What others published about the checkpoints, as data: evaluation sizes, class counts, doubts.

Nothing here was measured by this project, and every fact states its source. The catalogue
(`bitzoo.catalogue.registry`) attaches these facts to its entries. Published scores are in
`bitzoo.catalogue.claims`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

PAPER = "https://arxiv.org/abs/1912.11370"
DISTILLATION_PAPER = "https://arxiv.org/abs/2106.05237"
BIG_TRANSFER = "https://github.com/google-research/big_transfer"
BIG_VISION_DISTILL = (
    "https://github.com/google-research/big_vision/tree/main/big_vision/configs/proj/distill"
)
VTAB = "https://github.com/google-research/task_adaptation"
TIMM = "https://github.com/huggingface/pytorch-image-models"
_TIMM_CONFIG = f"{TIMM} timm/models/resnetv2.py"

Interpolation = Literal["bilinear", "bicubic"]
MAX_SIDE = 4_096
"""Bound on the images that a record may ask for, in pixels; the largest published evaluation has
480. At 200,000, the first picture would take 23 GB."""


@dataclass(frozen=True)
class Preprocessing:
    """How an RGB image becomes the network's input; pixels are then scaled to [-1, 1].

    Attributes:
        crop: Side of the square that the network sees, in pixels; cut from the centre.
        resize: Length in pixels before the crop: of the shorter edge, or of both if `square`.
        interpolation: Interpolation of the resize.
        square: Whether the resize ignores the aspect ratio, as in BiT-HyperRule's evaluation.
        source: Who evaluates this way, and why the catalogue follows.
        bit_depth: Bits of the values of images of more than 8 bits per channel, whose largest is
            white: of all images of the training data together. None if it had no such images, or
            nothing says so.

    Raises:
        ValueError: If a value is of another kind, or no network sees images of that size.
    """

    crop: int
    resize: int
    interpolation: Interpolation
    square: bool
    source: str
    bit_depth: int | None = None

    def __post_init__(self) -> None:
        sides = (self.crop, self.resize)
        if any(type(side) is not int for side in sides) or type(self.square) is not bool:
            raise ValueError(
                f"crop, resize and square must be two whole numbers and true or false, found "
                f"{self.crop!r:.20}, {self.resize!r:.20} and {self.square!r:.20}"
            )
        if not 1 <= self.crop <= self.resize <= MAX_SIDE:
            raise ValueError(
                f"a crop of {self.crop!r:.20} from {self.resize!r:.20} pixels, expected 1 to "
                f"{MAX_SIDE:,} and the crop at most as large"
            )
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(
                f"interpolation {self.interpolation!r:.20}, expected one of "
                f"{', '.join(get_args(Interpolation))}"
            )
        depth = self.bit_depth
        if depth is not None and (type(depth) is not int or not 8 <= depth <= 16):
            raise ValueError(f"bit_depth {depth!r:.20}, expected 8 to 16, or none")

    def in_words(self) -> str:
        """Return one readable line, without the source."""
        edges = "both edges" if self.square else "shorter edge"
        how = f"RGB, {edges} to {self.resize} px ({self.interpolation})"
        if self.crop != self.resize or not self.square:
            how += f", central {self.crop} x {self.crop}"
        if self.bit_depth is not None:
            white = (1 << self.bit_depth) - 1
            how += f", values of more than 8 bits read as {self.bit_depth}-bit ({white:,} is white)"
        return f"{how}, scaled to [-1, 1]"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data; a bit depth of None has no key."""
        record = asdict(self)
        if self.bit_depth is None:
            del record["bit_depth"]
        return record


@dataclass(frozen=True)
class Metric:
    """One published score.

    Attributes:
        name: ``top-1``, ``top-5`` or ``mean top-1`` (over the tasks of a benchmark).
        dataset: What it was measured on.
        value: Percent.
        resolution: Side of the evaluated crop in pixels, where the source states it.
        source: Citation or address.
        note: How it was measured, and on what if not on the released weights themselves.
        lowest, highest: Of the runs behind the figure, in percent; None where not published.
        claim: The figure's id; see `bitzoo.catalogue.claims`.
        command: The command that measures it again; None if there is none.
        reason: Why there is none; "" if there is one.
    """

    name: str
    dataset: str
    value: float
    resolution: int | None
    source: str
    note: str
    lowest: float | None = None
    highest: float | None = None
    claim: str = ""
    command: str | None = None
    reason: str = ""

    @property
    def how(self) -> str:
        """How it was measured, with the range of the runs where it was published."""
        if self.lowest is None or self.highest is None:
            return self.note
        return f"{self.note}; {self.lowest:g} to {self.highest:g}"

    @property
    def again(self) -> str:
        """The command that measures it again, or why there is none."""
        return self.command or f"not reproducible: {self.reason}"


_HYPERRULE = f"BiT-HyperRule's evaluation, {PAPER}; which images are small: {VTAB}"
_ILSVRC = (
    f"{_TIMM_CONFIG}, issue 388; the paper fine-tunes at 384 (480 for R152x4), the released code "
    "at 480, but the published scores of these files were measured at this size"
)

PREPROCESSING: dict[str, Preprocessing] = {
    "upstream": Preprocessing(224, 256, "bilinear", False, f"{_TIMM_CONFIG}; trained on 224 crops"),
    "ilsvrc": Preprocessing(448, 448, "bilinear", False, _ILSVRC),
    "ilsvrc-R152x4": Preprocessing(480, 480, "bilinear", False, _ILSVRC),
    "vtab-small": Preprocessing(128, 128, "bilinear", True, _HYPERRULE),
    "vtab-large": Preprocessing(384, 384, "bilinear", True, _HYPERRULE),
    "vtab-large-R152x4": Preprocessing(480, 480, "bilinear", True, _HYPERRULE),
    "distill-384": Preprocessing(384, 384, "bicubic", False, _TIMM_CONFIG),
    "distill-224": Preprocessing(224, 256, "bicubic", False, _TIMM_CONFIG),
    "distill-160": Preprocessing(
        160, 182, "bicubic", False, "inferred: the 7/8 crop of the 224 px student"
    ),
    "distill-128": Preprocessing(
        128, 160, "bicubic", False, f"sizes from {BIG_VISION_DISTILL}, interpolation inferred"
    ),
}
"""Evaluation preprocessing by protocol; a key that ends in an architecture overrides it there."""

DEFAULT_PREPROCESSING = Preprocessing(
    224, 256, "bilinear", False, "not known; this is BiT's pre-training"
)
"""Used, with a warning, where nothing states how images are prepared."""

TEACHER_TASKS: dict[str, tuple[str, int]] = {
    "flowers": ("oxford_flowers102", 102),
    "pet": ("oxford_iiit_pet", 37),
    "food": ("food101", 101),
    "sun": ("sun397", 397),
}
"""The 128 px teachers' tasks and classes (big_vision, bigsweep_flowers_pet.py, .._food_sun.py)."""

ALIASES: dict[str, tuple[str, ...]] = {
    "BiT-R50x1_224": (
        "FunMatch-224px-i1k82.8",
        "resnetv2_50x1_bit.goog_distilled_in1k",
        "resnetv2_50x1_bit_distilled",
    ),
    "BiT-R50x1_160": ("FunMatch-160px-i1k80.5",),
    "BiT-R152x2_T_224": (
        "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k",
        "resnetv2_152x2_bit_teacher",
    ),
    "BiT-R152x2_T_384": (
        "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384",
        "resnetv2_152x2_bit_teacher_384",
    ),
}
"""Names of single files in big_vision (models/bit_paper.py) and in timm, new and old."""

_UNSEEN_HEAD = "The number of classes is the task's; nobody has counted the outputs in the file."

DOUBTS: dict[str, tuple[str, ...]] = {
    "BiT-S": ("The evaluation preprocessing is inferred from BiT-M's.",),
    "BiT-S-R152x2": (
        "The file may not exist: big_transfer's model tables list it, but its README does not.",
    ),
    "BiT-S-R50x3": ("The h5 file is reported to contain a width-1 root (big_transfer#47).",),
    "BiT-S-R101x1": ("The h5 file is reported to contain a width-4 root (big_transfer#47).",),
    "BiT-R50x1_160": ("The evaluation preprocessing is inferred from the 224 px student's.",),
    "BiT-teacher-128": (
        _UNSEEN_HEAD,
        "The interpolation of the evaluation resize is inferred (big_vision averages areas).",
    ),
    "BiT-M-VTAB": (
        _UNSEEN_HEAD,
        "The evaluation preprocessing is the paper's rule; the release states none.",
    ),
    "BiT-L": (
        "There are no weights to check: the class count is the paper's, the preprocessing BiT-M's.",
        "Softmax is assumed; a multi-label head (one sigmoid per class) would need a sigmoid.",
    ),
}
"""What nobody could check, by family or name. No released file was opened for this catalogue."""

_README = f"{BIG_TRANSFER} README"

SOURCES: dict[str, tuple[str, ...]] = {
    "BiT-S": (PAPER, _README),
    "BiT-M": (PAPER, _README, f"{BIG_TRANSFER}/issues/26 (sigmoid cross-entropy)"),
    "BiT-M-ILSVRC2012": (PAPER, _README),
    "BiT-distilled": (DISTILLATION_PAPER, _README),
    "BiT-teacher": (DISTILLATION_PAPER, _README, BIG_VISION_DISTILL),
    "BiT-teacher-128": (DISTILLATION_PAPER, BIG_VISION_DISTILL),
    "BiT-M-VTAB": (PAPER, _README, VTAB),
    "BiT-L": (PAPER, f"{BIG_TRANSFER}/issues/4", f"{BIG_TRANSFER}/issues/50"),
}
"""Where a family's names, files and heads are described."""
