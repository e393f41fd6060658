"""What a network costs: the multiply-accumulates of its convolutions for one image."""

from __future__ import annotations

from collections.abc import Iterator

from bitzoo.models.architecture import NUM_BLOCKS, Architecture


def multiply_accumulates(architecture: Architecture, size: int, num_classes: int = 0) -> int:
    """Return the multiply-accumulates of a forward pass over one image.

    Those of the convolutions and of the head: the rest, norms and ReLUs, is no such operation. At
    224 pixels R50x1 has 4.1 billion.

    Args:
        architecture: Depths, width and input channels, with an output stride of 32.
        size: Edge of the image in pixels, at least 1.
        num_classes: Outputs of the head.
    """
    convolutions = sum(
        edge * edge * kernel * kernel * inputs * outputs
        for edge, kernel, inputs, outputs in _convolutions(architecture, size)
    )
    return convolutions + architecture.num_features * num_classes


def _convolutions(architecture: Architecture, size: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield edge of the output, edge of the kernel, input and output channels of each."""
    edge = _halved(size)
    channels = architecture.stem_channels
    yield edge, 7, architecture.in_chans, channels
    edge = _halved(edge)  # the stem's pool
    for block in range(1, NUM_BLOCKS + 1):
        mid, out = architecture.bottleneck_channels(block), architecture.block_channels(block)
        for unit in range(architecture.depths[block - 1]):
            before = edge
            if unit == 0 and block > 1:
                edge = _halved(edge)
            yield before, 1, channels, mid
            yield edge, 3, mid, mid
            yield edge, 1, mid, out
            if unit == 0:
                yield edge, 1, channels, out
            channels = out


def _halved(edge: int) -> int:
    return -(-edge // 2)
