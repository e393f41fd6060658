"""Labels of VTAB tasks that are derived from other features of a record, as rows of a table.

Thresholds and bins are those of google-research/task_adaptation, data/clevr.py, data/kitti.py,
data/dsprites.py and data/smallnorb.py at d7630d3. All of them are exact in float32, in which TFDS
stores the distances, so the comparisons are exact too. What these formulas make of a record that
has no class is outside the range of the classes, or `NO_LABEL`; whoever reads records refuses it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bitzoo.data.tfds_datasets import LabelRule

NO_LABEL = -1
"""Of a record without anything to derive a label from, such as an image of Clevr's official test
split, which lists no objects; and of a distance below the lowest threshold."""
CLEVR_FEWEST, CLEVR_MOST = 3, 10
"""Fewest and most objects of an image of Clevr."""
CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
"""Class k: the nearest object's distance is above the k-th value and at most the next one."""
KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)
"""In metres. Class k: the nearest vehicle's distance is above the k-th value and at most the next
one; the last class has no upper end."""
KITTI_NO_VEHICLE = 1000.0
"""What counts as the distance where there is no vehicle, which so has a class of its own."""
KITTI_VEHICLES = 3
"""Object types below this are vehicles: Car, Van and Truck."""


def count_objects(record: Mapping[str, Any]) -> int:
    """Return the class of Clevr-Count: 3 to 10 objects are 0 to 7.

    Args:
        record: With `objects`, a sequence of features of each object.
    """
    count = len(record["objects"]["pixel_coords"])
    return count - CLEVR_FEWEST if count else NO_LABEL


def find_nearest_object(record: Mapping[str, Any]) -> int:
    """Return the class of Clevr-Dist, by the smallest depth of an object (`pixel_coords[2]`).

    Args:
        record: With `objects`, a sequence of features of each object.
    """
    coordinates = np.asarray(record["objects"]["pixel_coords"], np.float32).reshape(-1, 3)
    if not len(coordinates):
        return NO_LABEL
    return _last_below(CLEVR_DISTANCES, float(coordinates[:, 2].min()))


def find_nearest_vehicle(record: Mapping[str, Any]) -> int:
    """Return the class of KITTI-Dist, by the smallest camera z of a car, van or truck.

    Args:
        record: With `objects`: `type` and `location` (x, y, z in metres) of each object.
    """
    objects = record["objects"]
    pairs = zip(objects["type"], objects["location"], strict=False)
    depths = [float(place[2]) for kind, place in pairs if kind < KITTI_VEHICLES]
    return _last_below(KITTI_DISTANCES, min([KITTI_NO_VEHICLE, *depths]))


def find_x_position(record: Mapping[str, Any]) -> int:
    """Return the class of dSprites-Loc: the 32 positions along x, in 16 bins of 2."""
    return int(record["label_x_position"]) // 2


def find_orientation(record: Mapping[str, Any]) -> int:
    """Return the class of dSprites-Ori: the 40 orientations, in 16 bins of 3 and 2 by turns."""
    return int(record["label_orientation"]) * 2 // 5  # exactly the floor of a 2.5th


def azimuth(record: Mapping[str, Any]) -> int:
    """Return the class of sNORB-Azim, 0 to 17."""
    return int(record["label_azimuth"])


def elevation(record: Mapping[str, Any]) -> int:
    """Return the class of sNORB-Elev, 0 to 8."""
    return int(record["label_elevation"])


def _last_below(thresholds: Sequence[float], distance: float) -> int:
    """Return the index of the last threshold that is strictly below `distance`."""
    below = [index for index, threshold in enumerate(thresholds) if threshold < distance]
    return below[-1] if below else NO_LABEL


def _between(thresholds: Sequence[float]) -> tuple[str, ...]:
    pairs = itertools.pairwise(thresholds)
    return tuple(f"above {low:g} to {high:g}" for low, high in pairs)


def _bins(of: int, bins: int, what: str) -> tuple[str, ...]:
    members = [[value for value in range(of) if value * bins // of == k] for k in range(bins)]
    return tuple(f"{what} {values[0]} to {values[-1]}" for values in members)


RULES: Mapping[str, LabelRule] = {
    rule.name: rule
    for rule in (
        LabelRule(
            "clevr-count",
            ("objects",),
            tuple(f"{count} objects" for count in range(CLEVR_FEWEST, CLEVR_MOST + 1)),
            count_objects,
        ),
        LabelRule("clevr-distance", ("objects",), _between(CLEVR_DISTANCES), find_nearest_object),
        LabelRule(
            "kitti-distance",
            ("objects",),
            ("at most 8 m", "above 8 to 20 m", "above 20 m", "no vehicle"),
            find_nearest_vehicle,
        ),
        LabelRule(
            "dsprites-xpos", ("label_x_position",), _bins(32, 16, "x position"), find_x_position
        ),
        LabelRule(
            "dsprites-orientation",
            ("label_orientation",),
            _bins(40, 16, "orientation"),
            find_orientation,
        ),
        LabelRule(
            "smallnorb-azimuth",
            ("label_azimuth",),
            tuple(f"azimuth {20 * step} degrees" for step in range(18)),
            azimuth,
        ),
        LabelRule(
            "smallnorb-elevation",
            ("label_elevation",),
            tuple(f"elevation {30 + 5 * step} degrees" for step in range(9)),
            elevation,
        ),
    )
}
"""The rules by name, each with its class names in order."""
