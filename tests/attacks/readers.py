"""All readers under attack, by name."""

from __future__ import annotations

from attacks.archives import TAR
from attacks.bundle_files import TENSORFLOW
from attacks.engine import Target
from attacks.folders import CONFIG, SHARDS
from attacks.keras_files import KERAS
from attacks.npz_files import NPZ
from attacks.pictures import PICTURES
from attacks.records import RECORDS
from attacks.safetensors_files import SAFETENSORS
from attacks.torch_files import TORCH

ALL: tuple[Target, ...] = (
    NPZ,
    SAFETENSORS,
    KERAS,
    TORCH,
    TENSORFLOW,
    TAR,
    SHARDS,
    CONFIG,
    RECORDS,
    PICTURES,
)
TARGETS = {target.name: target for target in ALL}
