"""The figures that others published about the checkpoints, as tables of numbers.

Percent, as printed. Nothing here was measured by this project. What each figure means, who says so
and how it was measured is in `bitzoo.catalogue.claims`, which reads these tables; no figure stands
anywhere else.
"""

from __future__ import annotations

from typing import NamedTuple

Spread = tuple[float, ...]
"""The median of several runs alone, or (lowest, median, highest)."""

SHOTS = (1, 5, None)
"""Training images per class in the columns of `README_CIFAR` and `README_ILSVRC`; None for all."""

README_CIFAR: dict[str, dict[str, dict[str, tuple[Spread, Spread, Spread]]]] = {
    "BiT-M-R50x1": {
        "pytorch": {
            "cifar10": ((45.8, 57.9, 65.7), (80.3, 82.3, 84.9), (97.4,)),
            "cifar100": ((34.6, 35.2, 38.6), (64.7, 65.5, 66.0), (86.6,)),
        },
        "tf2": {
            "cifar10": ((49.9, 54.4, 60.2), (80.8, 83.3, 85.5), (97.2,)),
            "cifar100": ((35.3, 37.1, 38.2), (63.8, 65.0, 66.5), (86.5,)),
        },
        "jax": {
            "cifar10": ((48.4, 54.1, 66.1), (76.7, 82.4, 85.4), (97.3,)),
            "cifar100": ((32.0, 35.2, 37.8), (63.4, 64.8, 66.5), (86.4,)),
        },
    },
    "BiT-M-R101x3": {
        "pytorch": {
            "cifar10": ((56.4, 56.7, 73.1), (84.8, 85.8, 89.6), (98.5, 98.6, 98.6)),
            "cifar100": ((31.6, 33.8, 36.9), (70.6, 71.6, 71.7), (91.1, 91.2, 91.4)),
        },
        "tf2": {
            "cifar10": ((52.5, 55.8, 60.2), (85.3, 87.2, 89.1), (98.5,)),
            "cifar100": ((34.8, 35.7, 37.9), (68.8, 70.4, 71.4), (90.8,)),
        },
        "jax": {
            "cifar10": ((48.7, 53.9, 65.0), (80.2, 85.8, 88.6), (98.4,)),
            "cifar100": ((32.1, 35.0, 37.1), (68.6, 70.8, 71.6), (91.2,)),
        },
    },
    "BiT-M-R152x2": {
        "pytorch": {
            "cifar10": ((50.9, 55.5, 59.5), (85.3, 85.8, 88.6), (98.5, 98.5, 98.6)),
            "cifar100": ((34.3, 36.8, 39.0), (70.3, 72.0, 72.3), (91.2, 91.3, 91.4)),
        },
        "jax": {
            "cifar10": ((44.0, 56.7, 65.0), (85.3, 87.0, 88.2), (98.5,)),
            "cifar100": ((36.4, 37.2, 38.9), (69.3, 70.5, 72.0), (91.2,)),
        },
    },
}
"""Fine-tuned on CIFAR, by the code in each framework (big_transfer's README, "CIFAR results")."""

README_ILSVRC: dict[str, tuple[float, ...]] = {
    "BiT-M-R50x1": (18.36, 50.64, 80.68),
    "BiT-M-R101x3": (25.55, 64.18),
    "BiT-M-R152x2": (24.5, 64.5, 85.15),
}
"""Fine-tuned on ILSVRC-2012, one run each (README, "ImageNet results"); R101x3 lacks the last."""


class VtabMeans(NamedTuple):
    """Mean top-1 over all 19 tasks and over those of each group."""

    mean: float
    natural: float
    structured: float
    specialized: float


README_VTAB = {
    "BiT-M-R152x4": VtabMeans(73.51, 80.77, 61.08, 85.67),
    "BiT-M-R101x3": VtabMeans(72.65, 80.29, 59.40, 85.75),
}
"""README, "VTAB-1k results": of the released runs, which are not those of the paper."""


PAPER_MODELS = ("BiT-S-R152x4", "BiT-M-R152x4", "BiT-L-R152x4")
"""The columns of the tables below."""

PAPER_TOP1 = {
    "ilsvrc": (81.30, 85.39, 87.54),
    "cifar10": (97.51, 98.91, 99.37),
    "cifar100": (86.21, 92.17, 93.51),
    "pets": (93.97, 94.46, 96.62),
    "flowers": (89.89, 99.30, 99.63),
    "vtab-1k": (66.87, 70.64, 76.29),
}
"""Tables 1 and 2 of the paper (version 3): median top-1; for VTAB-1k the mean over the tasks."""

PAPER_TOP5 = (95.65, 97.69, 98.46)
"""Top-5 on ILSVRC-2012."""

PAPER_DEVIATION = {
    "ilsvrc": 0.02,
    "cifar10": 0.06,
    "cifar100": 0.08,
    "pets": 0.23,
    "flowers": 0.03,
    "vtab-1k": 1.70,
}
"""Standard deviation of BiT-L's three runs (Table 1)."""

PAPER_FEW_SHOT = {
    ("ilsvrc", 5): 72.0,
    ("ilsvrc", 10): 76.8,
    ("ilsvrc", 100): 84.1,
    ("cifar10", 10): 97.0,
    ("cifar100", 10): 82.6,
}
"""BiT-L R152x4: (data set, images per class) -> median top-1 (abstract and section 3.4)."""

PAPER_VTAB_SEARCH = 78.72
"""BiT-L R152x4 on VTAB-1k, with a search of hyper-parameters per task (appendix A)."""

DISTILLATION_README = {
    "BiT-R50x1_224": 82.8,
    "BiT-R50x1_160": 80.5,
    "BiT-R152x2_T_224": 83.0,
    "BiT-R152x2_T_384": 84.3,
}
"""Top-1 on ILSVRC-2012 in the READMEs of big_vision and, for the students, of big_transfer."""

DISTILLATION_PAPER_TOP1 = {
    "BiT-R50x1_224": 82.82,
    "BiT-R50x1_160": 80.49,
    "BiT-R152x2_T_384": 83.7,
}
"""The same in the paper: students in Table 3, the teacher in the text."""

DISTILLATION_TASKS = {
    "flowers": (97.82, 97.50),
    "pets": (91.03, 88.20),
    "food101": (86.24, 85.05),
    "sun397": (74.22, 71.61),
}
"""At 128 px: top-1 of the released teacher, and of BiT-M R50x1 fine-tuned (paper, Table 4)."""

DISTILLATION_R50X1_224 = 78.4
"""BiT-M R50x1 fine-tuned and tested on ILSVRC-2012 at 224 px (the distillation paper's text)."""

TIMM_SETS = (
    "imagenet",
    "imagenet-real",
    "imagenetv2-matched-frequency",
    "imagenet-a",
    "imagenet-a-clean",
    "imagenet-r",
    "imagenet-r-clean",
    "sketch",
)
"""The files of timm's results, ``results/results-NAME.csv``; the columns of `TIMM`."""

TIMM: dict[str, tuple[int, tuple[tuple[float, float], ...]]] = {
    "BiT-M-R50x1-ILSVRC2012": (
        448,
        (
            (80.386, 95.694),
            (86.464, 97.613),
            (67.890, 89.100),
            (27.120, 62.613),
            (95.030, 99.060),
            (39.397, 57.883),
            (94.760, 99.180),
            (25.355, 45.361),
        ),
    ),
    "BiT-M-R101x1-ILSVRC2012": (
        448,
        (
            (82.332, 96.524),
            (87.678, 97.946),
            (70.700, 90.960),
            (38.280, 70.253),
            (96.100, 99.280),
            (44.100, 62.050),
            (95.330, 99.380),
            (29.914, 51.105),
        ),
    ),
    "BiT-M-R50x3-ILSVRC2012": (
        448,
        (
            (83.982, 97.130),
            (88.400, 98.185),
            (71.820, 91.260),
            (46.387, 76.680),
            (96.730, 99.530),
            (47.760, 65.667),
            (96.290, 99.630),
            (33.744, 55.939),
        ),
    ),
    "BiT-M-R101x3-ILSVRC2012": (
        448,
        (
            (84.430, 97.380),
            (88.445, 98.155),
            (72.430, 92.070),
            (52.400, 79.840),
            (97.010, 99.490),
            (50.523, 67.967),
            (96.300, 99.590),
            (36.444, 59.034),
        ),
    ),
    "BiT-M-R152x2-ILSVRC2012": (
        448,
        (
            (84.468, 97.432),
            (88.710, 98.305),
            (73.040, 91.990),
            (52.800, 81.133),
            (97.020, 99.590),
            (51.820, 69.360),
            (96.530, 99.590),
            (38.006, 61.172),
        ),
    ),
    "BiT-M-R152x4-ILSVRC2012": (
        480,
        (
            (84.936, 97.456),
            (88.567, 98.192),
            (73.140, 91.780),
            (59.560, 83.160),
            (97.490, 99.620),
            (54.217, 70.273),
            (96.890, 99.680),
            (41.304, 64.360),
        ),
    ),
    "BiT-R50x1_224": (
        224,
        (
            (82.820, 96.526),
            (87.798, 97.903),
            (72.180, 91.080),
            (25.133, 59.387),
            (96.100, 99.270),
            (45.357, 62.270),
            (95.390, 99.420),
            (31.640, 51.312),
        ),
    ),
    "BiT-R152x2_T_224": (
        224,
        (
            (82.918, 96.568),
            (87.491, 97.801),
            (71.430, 90.280),
            (32.040, 63.547),
            (96.090, 99.310),
            (49.170, 65.447),
            (95.740, 99.430),
            (37.356, 59.461),
        ),
    ),
    "BiT-R152x2_T_384": (
        384,
        (
            (83.858, 97.130),
            (88.144, 98.046),
            (72.720, 90.940),
            (50.080, 77.707),
            (96.830, 99.450),
            (52.070, 68.833),
            (96.170, 99.500),
            (38.989, 62.487),
        ),
    ),
}
"""Checkpoint -> evaluated size in pixels, and (top-1, top-5) on each of `TIMM_SETS`.

Source: huggingface/pytorch-image-models, commit aa4b5850 of 2026-08-08.
"""
