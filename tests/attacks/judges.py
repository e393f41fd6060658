"""The independent readers that can crash: each in a process of its own, made anew when it dies.

    python tests/attacks/judges.py h5     # serves requests from standard input

Nothing is imported from bitzoo. A request is a line of JSON with a path and the name of a file for
the numbers; the answer lists the tensors and where in that file they are.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
MOST_NUMBERS = 4 << 20
"""Twice the smallest network: what has more is not read."""
CPU_SECONDS = 20


class RefusedError(Exception):
    """The independent reader cannot read the file."""


class Judge:
    """An independent reader in a process of its own."""

    def __init__(self, name: str) -> None:
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
        )
        self._ids = count(os.getpid() << 32)

    def __call__(self, path: Path, out: Path) -> Arrays:
        """Return every tensor in the file; `out` names a file for the numbers.

        Raises:
            RefusedError: If the reader refuses the file, or dies of it.
        """
        process, number = self._process, (os.getpid() << 32) + next(self._ids) % (1 << 32)
        assert process.stdin is not None
        assert process.stdout is not None
        request = {"id": number, "path": str(path), "out": str(out)}
        process.stdin.write(json.dumps(request).encode() + b"\n")
        while True:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("the judge is gone")
            answer = json.loads(line)
            if answer["id"] == number:  # others are for workers that died meanwhile
                break
        if "error" in answer:
            raise RefusedError(answer["error"])
        data = np.fromfile(out, np.uint8)
        return {
            name: data[start : start + size].view(dtype).reshape(shape)
            for name, dtype, shape, start, size in answer["tensors"]
        }

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


# --- readers ------------------------------------------------------------------------------------


def read_h5(path: Path) -> Arrays:
    """As Keras loads weights by name: the groups in `layer_names`, the data in `weight_names`."""
    import h5py

    found: Arrays = {}
    with h5py.File(path, "r") as file:
        root = (
            file["model_weights"]
            if "layer_names" not in file.attrs and "model_weights" in file
            else file
        )
        for layer in _keras_names(root, "layer_names"):
            group = root[layer]
            for weight in _keras_names(group, "weight_names"):
                dataset = group[weight]
                if _bounded(dataset.shape):
                    found[f"{layer}|{weight}"] = dataset[()]
    return found


def _keras_names(group: Any, key: str) -> Iterator[str]:
    """The texts of an attribute, or of its pieces `key0`, `key1`; none if there is none."""
    parts = [group.attrs[key]] if key in group.attrs else []
    while key not in group.attrs and f"{key}{len(parts)}" in group.attrs:
        parts.append(group.attrs[f"{key}{len(parts)}"])
    for part in parts:
        for name in np.asarray(part).reshape(-1):
            yield name.decode() if isinstance(name, bytes) else str(name)


def read_torch(path: Path) -> Arrays:
    """As `torch.load` reads it without a memory map, and with the archive's own checksums.

    What it refuses because of objects beside the network is read once more with these left unbuilt.
    """
    import pickle
    import zipfile

    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                raise ValueError(f"CRC-32 of {bad}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, TypeError, ValueError):
        content = torch.load(
            path, map_location="cpu", weights_only=False, pickle_module=_data_only_pickle()
        )
    found: Arrays = {}

    def walk(value: object, at: str, depth: int) -> None:
        if isinstance(value, torch.Tensor):
            plain = value.detach()
            if plain.is_quantized or plain.layout != torch.strided or not _bounded(plain.shape):
                return
            wide = plain.float() if plain.dtype == torch.bfloat16 else plain
            with contextlib.suppress(TypeError, RuntimeError):
                found[at] = wide.contiguous().numpy()
        elif isinstance(value, Mapping) and depth < 5:
            for key, inner in value.items():
                walk(inner, f"{at}|{key}" if at else str(key), depth + 1)

    walk(content, "", 0)
    return found


_BUILT = {
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    ("collections", "OrderedDict"),
    ("collections", "Counter"),
}
_DATA = {"argparse", "collections", "datetime", "decimal", "fractions", "pathlib", "types", "uuid"}
_DATA |= {"numpy", "numpy.dtypes", "numpy.core.multiarray", "numpy._core.multiarray", "_codecs"}
_DATA |= {"pathlib._local", "copyreg", "torch.torch_version"}
_PLAIN = {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list"}
_PLAIN |= {"object", "range", "set", "slice", "str", "tuple"}


class _Unbuilt(dict[str, Any]):
    """Stands for an object of another class, whatever it would be made of."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        """Nothing is done with it."""

    append = extend = add = __setstate__


def _tolerant(make: Any) -> Any:
    """Leave out a tensor that cannot be: one of the network is missed, one beside it is not."""
    if isinstance(make, type):
        return make

    def made(*arguments: Any) -> Any:
        try:
            return make(*arguments)
        except (RuntimeError, TypeError, ValueError):
            return _Unbuilt()

    return made


def _data_only_pickle() -> Any:
    """A pickle module, for `torch.load`, that builds tensors and nothing else."""
    import pickle
    import types

    import torch

    kind: Any = torch.serialization.StorageType
    kind.__call__ = lambda self, *_: _Unbuilt()  # what a changed pickle may call, in vain

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in _BUILT:
                return _tolerant(super().find_class(module, name))
            plain = module in ("builtins", "__builtin__") and name in _PLAIN
            if plain or module in _DATA or (module.startswith("torch") and name[:1] != "_"):
                return _Unbuilt
            raise pickle.UnpicklingError(f"{module}.{name}")

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    return types.SimpleNamespace(Unpickler=Unpickler, load=load, __name__="data_only")


def read_tensorflow(path: Path) -> Arrays:
    """As TensorFlow reads a checkpoint, all its tensors of floats."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(path))
    dtypes = reader.get_variable_to_dtype_map()
    found: Arrays = {}
    for name, shape in reader.get_variable_to_shape_map().items():
        if dtypes[name].is_floating and _bounded(shape):
            with contextlib.suppress(Exception):  # a damaged tensor says nothing about the others
                value = np.asarray(reader.get_tensor(name))
                found[name] = value.astype(np.float32) if dtypes[name] == tf.bfloat16 else value
    return found


def _bounded(shape: Sequence[int]) -> bool:
    """Whether a tensor is of a size that bitzoo may read; others are left out."""
    return math.prod(shape) <= MOST_NUMBERS


READERS: dict[str, tuple[str, Callable[[Path], Arrays]]] = {
    "h5": ("h5py", read_h5),
    "torch": ("torch", read_torch),
    "tensorflow": ("tensorflow", read_tensorflow),
}


# --- the process --------------------------------------------------------------------------------


def serve(name: str) -> None:
    """Answer requests in a child that is forked anew when it dies; end with standard input."""
    module, read = READERS[name]
    __import__(module)
    shared = mmap.mmap(-1, 8)
    while True:
        pid = os.fork()
        if not pid:
            try:
                _serve(read, shared)
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        if status == 0:
            return
        (number,) = struct.unpack("<q", shared[:])
        how = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else status
        _answer({"id": number, "error": f"died of {how}"})


def _serve(read: Callable[[Path], Arrays], shared: mmap.mmap) -> None:
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE + (4 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    pending = b""
    while True:
        while b"\n" not in pending:
            data = os.read(0, 1 << 16)
            if not data:
                return
            pending += data
        line, _, pending = pending.partition(b"\n")
        request = json.loads(line)
        shared[:] = struct.pack("<q", request["id"])
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, 3 * CPU_SECONDS)
        try:
            tensors, position = [], 0
            with open(request["out"], "wb") as out:
                for name, found in read(Path(request["path"])).items():
                    array = np.asarray(found)
                    if array.dtype.kind in "OSUVM":
                        continue
                    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
                    raw = array.tobytes() + b"\0" * (-array.nbytes % 16)
                    shape = np.shape(found)
                    tensors.append([name, array.dtype.str, shape, position, array.nbytes])
                    out.write(raw)
                    position += len(raw)
            answer = {"id": request["id"], "tensors": tensors}
        except BaseException as error:
            answer = {"id": request["id"], "error": f"{type(error).__name__}: {error}"[:300]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _answer(answer)


def _answer(answer: Mapping[str, object]) -> None:
    line = json.dumps(answer).encode() + b"\n"
    while line:
        line = line[os.write(1, line) :]


if __name__ == "__main__":
    serve(sys.argv[1])
