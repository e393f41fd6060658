"""Functions for tests to call in a process of their own; importing this module loads nothing."""

import os
import signal
import time
from typing import Any


def loop(descriptor=0):
    """Compute for ever."""
    while True:
        pass


def fill():
    """Allocate a gigabyte."""
    return len(bytearray(1 << 30))


def crash():
    """End as a library does that follows a bad pointer."""
    os.kill(os.getpid(), signal.SIGSEGV)


def wait(path):
    """Write the process's number to a file, then wait for ever."""
    with open(f"{path}.part", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{path}.part", path)
    while True:
        time.sleep(1)


def sums_of_weights(paths):
    """What h5py reads in each of several Keras files: layer and weight -> sum; None for damage."""
    import h5py

    found: list[dict[str, Any] | None] = []
    for path in paths:
        sums = {}
        try:
            with h5py.File(path) as file:
                for layer in file.attrs["layer_names"]:
                    group = file[layer]
                    for weight in group.attrs["weight_names"]:
                        key = f"{_text(layer)} {_text(weight)}"
                        sums[key] = float(group[weight][()].astype("f8").sum())
        except Exception:
            found.append(None)
            continue
        found.append(sums)
    return found


def _text(value):
    return value.decode() if isinstance(value, bytes) else str(value)
