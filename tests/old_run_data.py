"""The data of the stored run: images whose bytes no library decides on."""

import struct
from pathlib import Path

import numpy as np

SIDE = 40
TRAIN, VAL = 5, 2
CLASSES = ("ash", "elm", "oak")


def pixels(kind, number):
    """uint8 (40, 40, 3)."""
    y, x, channel = np.indices((SIDE, SIDE, 3))
    waves = (3 + kind) * x * (y + number) + (5 + 7 * kind) * y + 31 * number + 40 * channel
    return (waves % 256).astype(np.uint8)


def write_data(folder):
    """Write `train/ash/0.bmp` and so on, uncompressed with 24 bits a pixel."""
    for kind, name in enumerate(CLASSES):
        for number in range(TRAIN + VAL):
            split = "train" if number < TRAIN else "val"
            path = Path(folder, split, name, f"{number}.bmp")
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = pixels(kind, number)[::-1, :, ::-1].tobytes()  # from the bottom, BGR
            size = 54 + len(rows)
            header = struct.pack("<2sIHHI", b"BM", size, 0, 0, 54)
            header += struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, 0, len(rows), 0, 0, 0, 0)
            path.write_bytes(header + rows)
