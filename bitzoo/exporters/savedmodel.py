"""Export to TensorFlow's SavedModel from the functional TensorFlow network, without Keras."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitzoo.converters.parity import reference_tensorflow
from bitzoo.converters.parity.reference_tensorflow import load_tensorflow
from bitzoo.exporters.export_formats import NO_OPTIONS, Opened
from bitzoo.exporters.names import google_tensors
from bitzoo.exporters.this_processor import processor
from bitzoo.models.bit import BiT

IMAGES = "images_from_minus1_to_1"
PIXELS = "pixels_from_0_to_255"
"""Input names of the signatures; they state the range because TF-Hub's BiT modules took [0, 1]."""


def export_savedmodel(
    model: BiT, path: Path, *, dtype: str = "float32", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a network as a SavedModel folder; batch, height and width are free.

    Signatures: ``serving_default`` takes ``images_from_minus1_to_1``, float32 (batch, height,
    width, channels); ``pixels`` takes ``pixels_from_0_to_255``, uint8, already resized and cropped.
    Both return ``logits``, or ``features`` if there is no head. ``facts`` takes nothing and returns
    the facts as strings.

    Args:
        model: The network, folded or not (with batch normalization, not); it is unchanged.
        path: The folder to write; must not exist.
        dtype: Dtype that kernels are stored in; computation stays in float32.
        metadata: Text for the signature ``facts``.

    Raises:
        MissingExtraError: If TensorFlow is not installed.
        FoldedModelError: If batch normalization was folded.
    """
    tf = load_tensorflow()
    output = "logits" if model.num_classes else "features"
    channels = model.architecture.in_chans
    module = tf.Module()
    module.tensors = {
        name: tf.Variable(tf.cast(array, dtype if array.ndim == 4 else "float32"), trainable=False)
        for name, array in google_tensors(model, standardized=True).items()
    }
    module.facts = {key: tf.constant(value) for key, value in (metadata or {}).items()}

    def compute(images: Any) -> dict[str, Any]:
        return {output: reference_tensorflow.forward(module.tensors, images, eps=None)}

    def of_images(**inputs: Any) -> dict[str, Any]:
        return compute(inputs[IMAGES])

    def of_pixels(**inputs: Any) -> dict[str, Any]:
        return compute(tf.cast(inputs[PIXELS], tf.float32) / 127.5 - 1)

    shape = [None, None, None, channels]
    signatures = {
        "serving_default": _signature(tf, of_images, IMAGES, shape, tf.float32),
        "pixels": _signature(tf, of_pixels, PIXELS, shape, tf.uint8),
        "facts": tf.function(lambda: dict(module.facts)).get_concrete_function(),
    }
    tf.saved_model.save(module, os.fspath(path), signatures=signatures)


def load_savedmodel(path: Path, options: Mapping[str, str] = NO_OPTIONS) -> Opened:
    """Open a SavedModel in TensorFlow, with its graph optimizations, for its default signature.

    The network takes channels last; the images that `Run` takes are transposed here.

    Args:
        path: The folder.
        options: None: TensorFlow reads its settings when it is imported.
    """
    tf = load_tensorflow()
    module = tf.saved_model.load(os.fspath(path))
    serve = module.signatures["serving_default"]

    def run(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        outputs = serve(**{IMAGES: tf.constant(images.transpose(0, 2, 3, 1))})
        logits: npt.NDArray[np.float32] = next(iter(outputs.values())).numpy()
        run.module = module  # type: ignore[attr-defined]
        return logits

    onednn = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "unset")
    return Opened(
        run,
        f"TensorFlow {tf.__version__}, its graph optimizations",
        processor(),
        f"float32, TF_ENABLE_ONEDNN_OPTS {onednn}",
    )


def _signature(tf: Any, function: Any, name: str, shape: list[int | None], dtype: Any) -> Any:
    spec = tf.TensorSpec(shape, dtype, name=name)
    return tf.function(function).get_concrete_function(**{name: spec})
