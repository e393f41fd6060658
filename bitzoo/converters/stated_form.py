"""Whether a file says that its network standardizes its kernels, which no tensor shows.

Every released BiT network does, and so does every network of group normalization in a file that
says nothing: there have been no others, and formats other than safetensors have no place to say
it. For batch normalization there is no such custom, so nothing is assumed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from bitzoo.converters.source import Source, brief
from bitzoo.errors import ArchitectureError, CheckpointError
from bitzoo.models.architecture import Architecture, Norm
from bitzoo.small_files import parse_json, read_json

STATED_KEY = "architecture"
"""Key of the network's name in a file's metadata and in `config.json`."""
_CONFIG = "config.json"
_CHECKPOINT = "bitzoo_checkpoint"
"""Key of what a training checkpoint says about its run."""
_TIMMS_OWN = re.compile(r"resnetv2_\d+(?!x)\w*", re.ASCII)
"""Names of timm's ResNet-v2 networks that are not BiT, such as ``resnetv2_50``."""


def standardizes(source: Source, norm: Norm) -> bool:
    """Return whether the network in an open checkpoint standardizes its kernels.

    The first of these that names an architecture with that normalization decides: the file's own
    metadata, the `config.json` next to it.

    Args:
        source: The checkpoint.
        norm: Its normalization, by its tensors.

    Raises:
        CheckpointError: If nothing says it and nothing is customary, or the file is of a network
            of timm's that computes something else.
    """
    names = list(_stated(source))
    for name in names:
        try:
            stated = Architecture.parse(name)
        except ArchitectureError:
            continue
        if stated.norm == norm:
            return stated.weight_standardization
    if norm == "group":
        return True
    for name in names:
        if _TIMMS_OWN.fullmatch(name):
            raise CheckpointError(
                f"{source.path}: {brief(name)} of timm has the tensors of a network with batch "
                "normalization and without weight standardization, but computes something else "
                "(eps 1e-5 instead of 1e-3, another padding of the first pool). Its weights run "
                "in `with_timm_numbers(BiT(...))` of bitzoo.models.timm_numbers, not as a file."
            )
    raise CheckpointError(
        f"{source.path}: it has running statistics of batch normalization, but nothing says "
        f"whether the network standardizes its kernels, which tensors do not show. "
        f'Expected the key "{STATED_KEY}" in the metadata, or in a {_CONFIG} next to '
        "model.safetensors, with a name such as R50x1-BN (standardized) or R50x1-BN-noWS (not); "
        f"found {', '.join(map(repr, map(brief, names))) or 'none'}."
    )


def _stated(source: Source) -> Iterator[str]:
    """Yield the names in the metadata, in a training checkpoint's record, and in `config.json`."""
    if name := source.metadata.get(STATED_KEY):
        yield name
    found: list[Any] = []
    try:
        if record := source.metadata.get(_CHECKPOINT):
            found.append(parse_json(record)["meta"]["loop"].get(STATED_KEY))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # of another program
    try:
        if source.folder is not None:
            found.append(read_json(source.folder / _CONFIG).get(STATED_KEY))
    except (CheckpointError, OSError):
        pass  # `read_info` reports it
    yield from (name for name in found if isinstance(name, str))
