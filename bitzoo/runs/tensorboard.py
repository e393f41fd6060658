"""Log metrics to TensorBoard, through accelerate's tracker, if TensorBoard is installed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

FOLDER_NAME = "tensorboard"

Track = Callable[[int, Mapping[str, float]], None]
"""Called with the number of updates made so far and metrics by name."""


@contextlib.contextmanager
def tracker(run: Path, step: int) -> Iterator[Track]:
    """Log metrics below `run`; without TensorBoard (extra ``tensorboard``) do nothing.

    Args:
        run: The run folder.
        step: Number of updates already made: later records are dropped.
    """
    from accelerate.utils import is_tensorboard_available

    if not is_tensorboard_available():
        yield lambda step, metrics: None
        return
    keep_tensorflow_out()
    from accelerate.tracking import TensorBoardTracker

    board = TensorBoardTracker(FOLDER_NAME, run, purge_step=step + 1)
    board.start()
    try:
        yield lambda step, metrics: board.log(dict(metrics), step=step)
    finally:
        board.finish()


def keep_tensorflow_out() -> None:
    """Make TensorBoard write files itself, by the switch of its builds without TensorFlow.

    Otherwise it imports TensorFlow if that is installed, which takes seconds, and having both
    TensorFlow's LLVM and that of torch's Triton ends the process (TensorFlow 2.21, torch 2.15).
    """
    name = "tensorboard.compat.notf"
    sys.modules.setdefault(name, ModuleType(name))
