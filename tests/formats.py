"""The random checkpoint of `checkpoints`, written as other code wrote BiT: from published facts.

Nothing is imported from bitzoo. The names of Keras were observed with TensorFlow 2.2 and 2.3
(`tensorflow_files.py` makes such files for real); those of bit_pytorch stand in
google-research/big_transfer, bit_pytorch/models.py.
"""

from collections import OrderedDict

import h5py
import numpy as np
import torch

LAYERS = ["root_block", "block1", "block2", "block3", "block4", "group_norm"]
KERAS_FORMS = {
    "tf22_built": lambda layer, path: path,
    "tf22_called": lambda layer, path: f"resnet/{path}",
    "tf23": lambda layer, path: path.removeprefix(f"{layer}/"),
}
"""How TensorFlow calls a weight inside its layer's group."""


def keras_weights(arrays):
    """Layer -> its weights' paths in the order of Keras: a unit's projection comes last."""
    layers: dict[str, list[str]] = {layer: [] for layer in LAYERS}
    for name in arrays:
        path = name.removeprefix("resnet/").replace("head/conv2d", "head/dense")
        layer = "head/dense" if path.startswith("head/") else path.split("/")[0]
        layers.setdefault(layer, []).append(path)
    for paths in layers.values():
        paths.sort(key=lambda path: (path.split("/")[1] if "unit" in path else "", "proj" in path))
    return layers


def write_keras(path, arrays, form="tf22_built", group="", split=False, **storage):
    """A legacy weights file; `storage` as h5py's create_dataset takes it. Returns `path`."""
    layers = keras_weights(arrays)
    names = [*LAYERS, "re_lu_12", "global_average_pooling2d", *list(layers)[len(LAYERS) :]]
    with h5py.File(path, "w") as file:
        root = file.require_group(group) if group else file
        encoded = np.array(names, "S")
        if split:
            root.attrs["layer_names0"], root.attrs["layer_names1"] = encoded[:4], encoded[4:]
        else:
            root.attrs["layer_names"] = encoded
        root.attrs["backend"], root.attrs["keras_version"] = b"tensorflow", b"2.3.0-tf"
        for layer in names:
            inner = root.create_group(layer)
            weights = [f"{KERAS_FORMS[form](layer, at)}:0" for at in layers.get(layer, [])]
            inner.attrs["weight_names"] = np.array(weights, "S" if weights else "S1")
            for weight, at in zip(weights, layers.get(layer, []), strict=True):
                array = arrays["resnet/" + at.replace("head/dense", "head/conv2d")]
                inner.create_dataset(
                    weight, data=array[0, 0] if at == "head/dense/kernel" else array, **storage
                )
    return path


def as_bit_pytorch(arrays):
    """State dict of the release's own PyTorch network."""
    return OrderedDict(
        (
            bit_pytorch_name(name),
            torch.from_numpy(
                np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if array.ndim == 4 else array
            ),
        )
        for name, array in arrays.items()
    )


def bit_pytorch_name(name):
    parts = name.removeprefix("resnet/").split("/")
    kind = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}[parts[-1]]
    if parts[0] == "root_block":
        return f"root.conv.{kind}"
    if parts[0] == "group_norm":
        return f"head.gn.{kind}"
    if parts[0] == "head":
        return f"head.conv.{kind}"
    block, unit, branch = parts[:3]
    number = "abc".index(branch) + 1
    layer = {"group_norm": f"gn{number}", "proj": "downsample"}.get(parts[3], f"conv{number}")
    return f"body.{block}.{unit}.{layer}.{kind}"
