"""Random checkpoints in Google's layout, for every test that needs one.

Names and shapes are written from the published description of the released files, and the timm
names from timm's own loader; nothing is imported from bitzoo, so that tests do not compare its
tables with themselves.
"""

import math

import numpy as np

TINY = (1, 1, 1, 1)


def make_checkpoint(
    depths=TINY, width=0.5, num_classes=10, kernel_std="he", seed=0, in_chans=3
) -> dict[str, np.ndarray]:
    """Name in a released npz -> float32 array; kernels HWIO.

    Args:
        depths: Units in each of the four blocks.
        width: Width factor; 64 * width must be a multiple of 32.
        num_classes: Outputs of the head; 0 leaves the head out.
        kernel_std: Standard deviation within each standardized filter, or "he" for
            sqrt(2 / fan_in). Each filter also has a mean of its own, which a network that forgets
            to subtract it would show.
        seed: Of NumPy's generator.
        in_chans: Input channels of the root.
    """
    rng = np.random.default_rng(seed)
    arrays = {}

    def kernel(name, height, inputs, outputs):
        std = math.sqrt(2 / (height * height * inputs)) if kernel_std == "he" else kernel_std
        values = rng.standard_normal((height, height, inputs, outputs), dtype=np.float32)
        values += 0.5 * rng.standard_normal(outputs, dtype=np.float32)
        arrays[f"{name}/standardized_conv2d/kernel"] = values * np.float32(std)

    def norm(name, channels):
        gamma = rng.uniform(0.5, 1.5, channels)
        arrays[f"{name}/group_norm/gamma"] = gamma.astype(np.float32)
        beta = rng.uniform(-0.5, 0.5, channels)
        arrays[f"{name}/group_norm/beta"] = beta.astype(np.float32)

    inputs = round(64 * width)
    kernel("resnet/root_block", 7, in_chans, inputs)
    for block, depth in enumerate(depths, start=1):
        mid = round(64 * width * 2 ** (block - 1))
        for unit in range(1, depth + 1):
            name = f"resnet/block{block}/unit{unit:02d}"
            norm(f"{name}/a", inputs)
            kernel(f"{name}/a", 1, inputs, mid)
            if unit == 1:
                kernel(f"{name}/a/proj", 1, inputs, 4 * mid)
            norm(f"{name}/b", mid)
            kernel(f"{name}/b", 3, mid, mid)
            norm(f"{name}/c", mid)
            kernel(f"{name}/c", 1, mid, 4 * mid)
            inputs = 4 * mid
    norm("resnet", inputs)
    if num_classes:
        head = rng.standard_normal((1, 1, inputs, num_classes), dtype=np.float32)
        arrays["resnet/head/conv2d/kernel"] = head / np.float32(math.sqrt(inputs))
        arrays["resnet/head/conv2d/bias"] = rng.standard_normal(num_classes, dtype=np.float32)
    return arrays


def write_npz(path, arrays):
    """Write `arrays` as the released files are: np.savez, members stored. Returns `path`."""
    np.savez(path, **arrays)
    return path


def as_timm(arrays) -> dict[str, np.ndarray]:
    """The same checkpoint under timm's names, kernels OIHW."""
    return {
        timm_name(name): array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        for name, array in arrays.items()
    }


def timm_name(name):
    """timm's name of one tensor of a released npz."""
    parts = name.removeprefix("resnet/").split("/")
    kind = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}[parts.pop()]
    layer = parts.pop()  # standardized_conv2d, group_norm or conv2d
    if not parts:
        return f"norm.{kind}"
    if parts[0] in ("root_block", "head"):
        return {"root_block": "stem.conv", "head": "head.fc"}[parts[0]] + f".{kind}"
    block, unit, branch = int(parts[0].removeprefix("block")), int(parts[1][4:]), parts[2]
    number = "abc".index(branch) + 1
    if parts[3:] == ["proj"]:
        role = "downsample.conv"
    else:
        role = f"norm{number}" if layer == "group_norm" else f"conv{number}"
    return f"stages.{block - 1}.blocks.{unit - 1}.{role}.{kind}"
