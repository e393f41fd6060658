"""The TensorFlow checkpoints that are attacked; a script, run in a process of its own.

    python tests/attacks/tensorflow_bases.py arrays.npz folder

Writes a part of a network as TensorFlow 1 saves variables, in one shard and in two, as TensorFlow 2
saves objects, in two ways, and as a SavedModel; and a whole network.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf

PATHS = {
    "resnet/root_block/standardized_conv2d/kernel": "_root/layer_with_weights-0/kernel",
    "resnet/block1/unit01/a/group_norm/gamma": (
        "_blocks/0/layer_with_weights-0/_unit_a/layer_with_weights-0/gamma"
    ),
    "resnet/block1/unit01/a/group_norm/beta": (
        "_blocks/0/layer_with_weights-0/_unit_a/layer_with_weights-0/beta"
    ),
    "resnet/block1/unit01/a/standardized_conv2d/kernel": (
        "_blocks/0/layer_with_weights-0/_unit_a_conv/kernel"
    ),
    "resnet/group_norm/gamma": "_pre_head/0/gamma",
    "resnet/head/conv2d/kernel": "_head/kernel",
    "resnet/head/conv2d/bias": "_head/bias",
}
"""Attributes that lead to a variable in the released TensorFlow 2 code (bit_tf2/models.py)."""


def write(prefix: Path, arrays: dict[str, np.ndarray]) -> None:
    """One shard, as `tf.compat.v1.train.Saver` writes it."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    names = sorted(arrays)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(arrays[name]) for name in names],
    )


def write_shards(prefix: Path, arrays: dict[str, np.ndarray]) -> None:
    """Two shards, as several workers write them."""
    names = sorted(arrays)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    parts = [prefix.parent / f"part{i}" / "part" for i in range(2)]
    for part, half in zip(parts, halves, strict=True):
        write(part, {name: arrays[name] for name in half})
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=list(map(str, parts)),
        destination_prefix=str(prefix),
        delete_old_dirs=True,
    )


def module(arrays: dict[str, np.ndarray], *, named: bool) -> tf.Module:
    """Objects with the released attributes; variables with the released names, or none."""
    root = tf.Module()
    for name, path in PATHS.items():
        *above, last = path.split("/")
        parent = root
        for step in above:
            if not hasattr(parent, step):
                setattr(parent, step, tf.Module())
            parent = getattr(parent, step)
        called = name.replace("head/conv2d", "head/dense")
        dense = name == "resnet/head/conv2d/kernel"
        value = arrays[name][0, 0] if dense else arrays[name]
        setattr(parent, last, tf.Variable(value, name=called if named else None))
    return root


def main(source: Path, folder: Path) -> None:
    """Write everything."""
    with np.load(source) as file:
        whole = {name: file[name] for name in file.files}
    part = {name: whole[name] for name in PATHS}
    slots = {f"{name}/Momentum": whole[name] * 0 + 1 for name in list(part)[:2]}
    write(folder / "tf1" / "bit.ckpt", part | slots | {"global_step": np.int64(7)})
    write_shards(folder / "shards" / "bit.ckpt", part)
    write(folder / "bfloat16" / "bit.ckpt", {n: tf.cast(a, tf.bfloat16) for n, a in part.items()})
    for name, named in (("objects", True), ("paths", False)):
        path = folder / name / "bit.ckpt"
        path.parent.mkdir()
        tf.train.Checkpoint(model=module(part, named=named)).write(str(path))
    tf.saved_model.save(module(part, named=True), str(folder / "saved"))
    write(folder / "whole" / "bit.ckpt", whole)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
