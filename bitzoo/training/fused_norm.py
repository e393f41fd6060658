"""Group normalization and ReLU as one operator that is compiled for this processor.

In a training step on a CPU, these two are most of what is above the convolutions: torch reads and
writes every map once more for the ReLU, and normalizes channels-last maps backward in several
passes. `native/group_norm_relu.cpp` is the same function in two passes each way. Its gradients are
within float32's rounding of torch's, not equal to them, so it belongs to what a run keeps from
checkpoint to checkpoint; `bitzoo.training.memory_layout` measures whether it pays.

The operator is compiled by torch's own extension loader, once per processor and version of torch,
where there are a C++ compiler and ninja (``pip install 'bitzoo[native]'`` brings the latter).
Everywhere else, torch's operators compute the layer.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bitzoo.errors import BitzooError
from bitzoo.files import reason_of, replaced, workspace
from bitzoo.locks import file_lock
from bitzoo.models.layers import GroupNormReLU
from bitzoo.training.gradient_accumulation import recast

_SOURCE = Path(__file__).with_name("native") / "group_norm_relu.cpp"
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno")
_DTYPES = (torch.float32, torch.bfloat16)

_log = logging.getLogger(__name__)


class FusedGroupNormReLU(GroupNormReLU):
    """A `GroupNormReLU` that trains channels-last maps by the compiled operator.

    In evaluation mode, and for other maps, it computes as the plain layer.
    """

    def rectified(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Compute the same as `GroupNormReLU`, up to rounding."""
        if not (self.training and _is_fusable(x, weight)):
            return super().rectified(x, weight, bias)
        y: Tensor = _GroupNormReLU.apply(x, weight, bias, self.num_groups, self.eps)
        return y


def _is_fusable(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in _DTYPES
        and weight.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
    )


class _GroupNormReLU(torch.autograd.Function):
    """Stores the input and two numbers per group, not what is between normalization and ReLU."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        y, mean, rstd = torch.ops.bitzoo.group_norm_relu(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        result: Tensor = y
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight, bias = ctx.saved_tensors
        found = torch.ops.bitzoo.group_norm_relu_backward(grad, x, mean, rstd, weight, bias)
        wanted = zip(found, ctx.needs_input_grad, strict=False)
        return *(g if needed else None for g, needed in wanted), None, None


def fuse_norms(model: nn.Module, enable: bool = True) -> None:
    """Have the group normalizations of a network train by the compiled operator, or again not.

    Args:
        model: Any module that contains `GroupNormReLU`s; changed in place.
        enable: False restores the plain layers. True needs `missing` to have returned None.
    """
    recast(model, GroupNormReLU, FusedGroupNormReLU, enable)


def has_norms(model: nn.Module) -> bool:
    """Whether there is anything in a network that `fuse_norms` changes."""
    return any(isinstance(module, GroupNormReLU) for module in model.modules())


@cache
def missing() -> str | None:
    """Compile or load the operator; return why it cannot be had, or None if it is there.

    The first call on a processor compiles for about a quarter of a minute.
    """
    if sys.platform != "linux":
        return "it was tried on Linux only"
    ops: Any = torch.ops
    tools = (os.environ.get("CXX", "c++"), "ninja")
    try:
        library = _library()
        with file_lock(library), _own_programs():
            if library.exists():
                ops.load_library(str(library))
            elif lacking := [name for name in tools if not shutil.which(name)]:
                return f"there is no {' and no '.join(lacking)}"
            else:
                _compile_and_load(library)
    except OSError as error:
        return reason_of(error)
    except (BitzooError, RuntimeError, ImportError) as error:  # the compiler's, for instance
        _log.debug("the operator cannot be had", exc_info=True)
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def describe_missing(model: nn.Module) -> str:
    """Return why a long run normalizes by torch's operators, and what to do; "" if all is well."""
    if not has_norms(model) or sys.platform != "linux" or not (why := missing()):
        return ""
    return (
        "The normalization that bitzoo compiles, with which training is usually faster, was not "
        f"tried: {why}. It needs a C++ compiler, and ninja, which pip install 'bitzoo[native]' "
        "brings."
    )


def _library() -> Path:
    """Return the path of the compiled operator, named by all that it depends on."""
    made_of = (_SOURCE.read_text(), *_FLAGS, torch.__version__, sys.version, _processor())
    key = hashlib.sha256("\0".join(map(str, made_of)).encode()).hexdigest()[:16]
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or _extension_loader().get_default_build_root()
    return Path(root) / "bitzoo" / f"group_norm_relu-{key}.so"


def _processor() -> str:
    """Return what `-march=native` depends on: model and features, of a home that machines share."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = ("model name", "flags", "Features", "CPU part")
        return "\n".join(dict.fromkeys(line for line in lines if line.startswith(names)))
    return platform.processor()


@contextlib.contextmanager
def _own_programs() -> Iterator[None]:
    """Let programs of this environment be found, activated or not: pip puts ninja there."""
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join((before, str(Path(sys.executable).parent)))
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _compile_and_load(library: Path) -> None:
    """Compile in a folder of its own, because a build that is killed leaves torch's lock there."""
    with workspace(library.parent) as folder:
        _extension_loader().load(
            library.stem.replace("-", "_"),
            [str(_SOURCE)],
            extra_cflags=list(_FLAGS),
            extra_ldflags=["-fopenmp"],
            build_directory=str(folder),
            is_python_module=False,
        )
        (built,) = folder.glob("*.so")
        with replaced(library) as place:
            shutil.copyfile(built, place)


def _extension_loader() -> Any:
    talk = logging.getLogger("torch.utils.cpp_extension")
    level = talk.level
    talk.setLevel(logging.ERROR)  # it looks for CUDA, and says so
    try:
        from torch.utils import cpp_extension
    finally:
        talk.setLevel(level)
    return cpp_extension
