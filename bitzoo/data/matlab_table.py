"""The table of synsets in a file of MATLAB, which a library reads that may crash of a damaged one.

scipy ends the process with a fault, or loops for ever, where the sizes in such a file are not true.
So this is called by `limited_process.run_limited`, wherever a process can be bounded.
"""

from __future__ import annotations

import importlib
import io
import os
from typing import IO, Any

_library: Any = importlib.import_module("scipy.io")  # here: importing is not bounded


def read_leaves(descriptor: int) -> list[tuple[int, str]]:
    """Do as `leaves_in`, for an open file; for a process of its own."""
    with open(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return leaves_in(io.BytesIO(file.read()))


def leaves_in(file: IO[bytes]) -> list[tuple[int, str]]:
    """Return `ILSVRC2012_ID` and WordNet id of the synsets without children.

    Raises whatever scipy raises of a damaged file.
    """
    table = _library.loadmat(file, squeeze_me=True)["synsets"]
    leaves = [row for row in table if int(row["num_children"]) == 0]
    return [(int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in leaves]
