"""Every error that users can see. A message says what was expected, what was found, what to do.

The command line prints the message and exits with `exit_code`; `--debug` adds the traceback.
"""

from __future__ import annotations


class BitzooError(Exception):
    """Base of all errors that bitzoo raises on purpose.

    Attributes:
        exit_code: Exit code of a command: 2 for bad input or usage, 1 for a failed proof.
    """

    exit_code = 2


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


class UsageError(BitzooError, ValueError):
    """Options that contradict each other or an output that may not be overwritten."""


class MissingExtraError(BitzooError, ImportError):
    """An optional dependency is needed; the message says which extra installs it."""


class HubError(BitzooError, OSError):
    """The Hugging Face Hub denied a request, or its contents differ from what was expected."""


class HubUnreachableError(HubError):
    """The Hub cannot be reached or cannot answer now; the same command may work later."""
