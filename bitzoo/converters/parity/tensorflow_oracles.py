"""The oracles that need TensorFlow: its forward pass, and a SavedModel's own graph.

Both run in a process of their own. One that cannot be run, or must not be, does not testify; a
sentence says why, in the log and in the proof.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from bitzoo.converters.parity import reference_tensorflow
from bitzoo.converters.parity.serving_graph import NoWitness
from bitzoo.converters.parity.tensorflow_process import TensorFlowProcess
from bitzoo.converters.source import Array, Source

_FORWARD = "TensorFlow's forward pass"
_GRAPH = "the SavedModel's own graph"
_log = logging.getLogger(__name__)


class TensorFlowOracles:
    """What TensorFlow says that a source computes, as far as it is installed and works.

    Attributes:
        absent: A sentence about each oracle that there is and that did not testify.
    """

    def __init__(self, source: Source, size: int, *, is_hidden: bool, absent: list[str]) -> None:
        """Start TensorFlow, which loads in the background.

        Args:
            source: The original, open.
            size: Bytes of its network's numbers.
            is_hidden: Whether a head of zeros hides what the graph computes before it.
            absent: The list that `absent` is to be.
        """
        self._path, self._graph, self.absent = source.path, source.graph, absent
        self._process = TensorFlowProcess(size) if reference_tensorflow.is_installed() else None
        if self._graph and not self._process:
            self.absent.append(f"{_GRAPH}: TensorFlow is not installed")
        elif self._graph and is_hidden:
            self._graph = None
            self.absent.append(f"{_GRAPH}: the head of zeros hides what is before it")

    def forward(
        self, tensors: Mapping[str, Array], images: Array, dtype: str, eps: float | None
    ) -> tuple[str, Array] | None:
        """Return the oracle's name and the logits of its forward pass; None if it is no witness.

        Args:
            tensors: As `bitzoo.converters.parity.reference_tensorflow.forward` takes them.
            images: RGB in [-1, 1], shape (batch, height, width, channels).
            dtype: What everything is computed in.
            eps: Added to the variance of each kernel; None for kernels used as they are.
        """
        if self._process is None:
            return None
        try:
            name = f"TensorFlow {self._process.version} forward pass"
            logits = self._process.forward(tensors, images, dtype=dtype, eps=eps)
        except NoWitness as error:
            self._silence(_FORWARD, error)
            if self._graph:
                self.absent.append(f"{_GRAPH}: TensorFlow does not run")
            self.close()
            return None
        return name, logits.astype(np.float64)

    def own_graph(self, images: Array, found: Array) -> tuple[str, Array] | None:
        """Return the oracle's name and the outputs of the source's own graph, if it testifies.

        Args:
            images: RGB in [-1, 1], float32.
            found: The outputs that it may have to equal.
        """
        if self._process is None or self._graph is None:
            return None
        try:
            outcome = self._process.run_graph(*self._graph, images, found)
        except NoWitness as error:
            self._silence(_GRAPH, error)
            self._graph = None
            return None
        return (f"{_GRAPH} ({outcome[0]})", outcome[1]) if outcome else None

    def close(self) -> None:
        """End TensorFlow's process."""
        if self._process:
            self._process.close()
            self._process = None

    def _silence(self, oracle: str, error: NoWitness) -> None:
        _log.warning("%s: %s is no witness: %s.", self._path, oracle, error)
        self.absent.append(f"{oracle}: {error}")
