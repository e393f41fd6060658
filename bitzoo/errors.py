"""Every error that users can see. A message says what was expected, what was found, what to do.

The command line prints the message and exits with `exit_code`; `--debug` adds the traceback.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from bitzoo.display import shortened, visible

_MAX_CHARACTERS, _MAX_LINES = 6_000, 50
"""Bounds on a message: a screen. A hostile file's names would otherwise fill it with megabytes."""
_MAX_REASON = 200
_ABOUT_CONTENT = {None, errno.EINVAL}
"""Error numbers with which libraries report a file's content: none, or a position that is none."""


class BitzooError(Exception):
    """Base of all errors that bitzoo raises on purpose.

    Messages quote files that anyone can write. Here, once for all of them, their length is bounded
    and characters that could act on a terminal become visible escapes.

    Attributes:
        exit_code: Exit code of a command: 2 for bad input or usage, 1 for a failed proof.
    """

    exit_code = 2

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(_screen(a) if isinstance(a, str) else a for a in arguments))


class UnknownModelError(BitzooError, KeyError):
    """A name that is not in the catalogue; the message lists the nearest names."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class ArchitectureError(BitzooError, ValueError):
    """Depths, a width or channels from which no BiT network can be built."""


class LayoutError(BitzooError, ValueError):
    """A tensor whose dimensions do not fit its declared layout."""


class CheckpointError(BitzooError, ValueError):
    """A file that is damaged, unsafe, or not a checkpoint of a known format."""


class TensorMismatchError(CheckpointError):
    """Tensors are missing, extra or misshapen; the message shows a sorted `+/-` diff."""


class WeightsUnavailableError(BitzooError, LookupError):
    """Weights that were never released, or that no configured source has."""


class StorageError(BitzooError, OSError):
    """A file or folder that cannot be read or written: no permission, a full or failing disk."""


class DownloadError(BitzooError, OSError):
    """A download that failed, was refused, or did not match its checksum."""


class NotServedError(DownloadError):
    """The server answered, but does not have the file or denies access to it."""


class FoldedModelError(BitzooError, RuntimeError):
    """An operation that needs trainable kernels was called on a folded model."""


class ParityError(BitzooError):
    """A proof of equality failed: the output does not compute what the source computes.

    Attributes:
        report: The `ParityReport` with the measurements, if there is one.
    """

    exit_code = 1
    report: object = None


class AccuracyLossError(BitzooError):
    """A file of fewer bits is right on fewer images than was allowed.

    Attributes:
        report: What was measured, if there is a report.
    """

    exit_code = 1
    report: object = None


class UsageError(BitzooError, ValueError):
    """Options that contradict each other or an output that may not be overwritten."""


class MissingExtraError(BitzooError, ImportError):
    """An optional dependency is needed; the message says which extra installs it."""


class HubError(BitzooError, OSError):
    """The Hugging Face Hub denied a request, or its contents differ from what was expected."""


class HubUnreachableError(HubError):
    """The Hub cannot be reached or cannot answer now; the same command may work later."""


@contextmanager
def damage_reported(
    place: str | os.PathLike[str],
    expected: str,
    advice: str = "It is truncated or damaged; fetch it again.",
    kind: type[BitzooError] = CheckpointError,
) -> Iterator[None]:
    """The boundary of a reader: turn whatever is raised about a file's content into one error.

    Libraries raise all kinds for a damaged file, and so does code that trusts its form:
    `OverflowError` for an infinite count, `RecursionError`, `MemoryError` for a size that is none.
    Errors of ours pass. So do those of the operating system (no permission, a full disk), which
    are not about the content and say so themselves.

    Args:
        place: The file, or words that name the part of it.
        expected: What it should have been.
        advice: What to do.
        kind: The class to raise.

    Raises:
        BitzooError: Of class `kind`.
    """
    try:
        yield
    except BitzooError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in _ABOUT_CONTENT:
            raise
        raise kind(
            f"{os.fspath(place)}: expected {expected}, but it cannot be read "
            f"({reason_of(error)}). {advice}"
        ) from error


def reason_of(error: BaseException) -> str:
    """Return what an error of a library says, in one short line; its class if it says nothing."""
    said = " ".join(str(error).split())
    if isinstance(error, LookupError) or not said:
        said = f"{type(error).__name__}: {said}".removesuffix(": ")
    return said if len(said) <= _MAX_REASON else said[:_MAX_REASON] + "..."


def _screen(message: str) -> str:
    """Return a message bounded to a screen; its end, which says what to do, stays."""
    lines = visible(message).split("\n")
    if len(lines) > _MAX_LINES:
        tail = _MAX_LINES // 5
        head = _MAX_LINES - tail - 1
        left_out = f"  [... {len(lines) - head - tail:,} lines ...]"
        lines = [*lines[:head], left_out, *lines[-tail:]]
    return shortened("\n".join(lines), _MAX_CHARACTERS)
