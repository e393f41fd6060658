"""All readers under attack, by name."""

from __future__ import annotations

from attacks.archives import TAR
from attacks.bundle_files import TENSORFLOW
from attacks.caches import CACHES
from attacks.downloads import DOWNLOADS
from attacks.engine import Target
from attacks.folders import CONFIG, SHARDS
from attacks.image_shards import IMAGES
from attacks.injections import INJECTIONS
from attacks.interruptions import INTERRUPTIONS
from attacks.keras_files import KERAS
from attacks.npz_files import NPZ
from attacks.pictures import PICTURES
from attacks.records import RECORDS
from attacks.run_states import STATES
from attacks.safetensors_files import SAFETENSORS
from attacks.torch_files import TORCH

READERS: tuple[Target, ...] = (
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
    IMAGES,
    STATES,
)
COMMANDS: tuple[Target, ...] = (INTERRUPTIONS, INJECTIONS, DOWNLOADS)
"""Whole commands: each costs a hundred times what an input of a reader costs."""
OWN_FILES: tuple[Target, ...] = (CACHES,)
"""What only bitzoo writes, of which nothing is refused: what is damaged is made again."""
TARGETS = {target.name: target for target in (*READERS, *OWN_FILES, *COMMANDS)}
