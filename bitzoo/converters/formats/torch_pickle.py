"""Read the pickle in a PyTorch file as data: no class is looked up, and nothing in it is called.

A pickle is a program for a small stack machine, whose harm comes from the classes and functions
that it names. This machine knows by name what makes up a state dict. What else training
checkpoints hold (arguments, dates, paths, NumPy's numbers) becomes an `Opaque`, which has no
content. A pickle that names anything else is refused.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # names of Python 2, up to protocol 2
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

MAX_BYTES = 16 << 20
"""Bound on a pickle; a training checkpoint of the largest network has 0.4 MB."""
MAX_STEPS = 500_000
"""Bound on its instructions, which take a second; such a checkpoint has 100,000."""
_MALFORMED = (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, ValueError)
_MAX_RANK = 32
_MAX_SIZE = 1 << 62
_MAX_KEY = 1 << 31

ITEM_SIZES: dict[str, int] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
    "qint8": 1,
    "quint8": 1,
    "qint32": 4,
    "bytes": 1,
}
"""Dtypes of storages and the bytes of an element; ``bytes`` are those of an untyped storage."""
_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
    "QInt8": "qint8",
    "QUInt8": "quint8",
    "QInt32": "qint32",
}
_LITERALS = {
    "BINBYTES",
    "BINBYTES8",
    "BINFLOAT",
    "BININT",
    "BININT1",
    "BININT2",
    "BINSTRING",
    "BINUNICODE",
    "BINUNICODE8",
    "BYTEARRAY8",
    "FLOAT",
    "INT",
    "LONG",
    "LONG1",
    "LONG4",
    "SHORT_BINBYTES",
    "SHORT_BINSTRING",
    "SHORT_BINUNICODE",
    "STRING",
    "UNICODE",
}
_MAPPINGS = {
    "builtins.dict",
    "collections.Counter",
    "collections.OrderedDict",
    "collections.defaultdict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
}
_OPAQUE: dict[str, str] = {
    "_codecs": "encode",
    "argparse": "Namespace",
    "builtins": "bool bytearray bytes complex float frozenset int list object range set slice str "
    "tuple",
    "collections": "deque",
    "copyreg": "__newobj__ _reconstructor",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "numpy": "bool_ dtype float16 float32 float64 int16 int32 int64 int8 ndarray str_ uint16 "
    "uint32 uint64 uint8",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy._core.numeric": "_frombuffer",
    "numpy.dtypes": "BoolDType Float16DType Float32DType Float64DType Int16DType Int32DType "
    "Int64DType Int8DType StrDType UInt16DType UInt32DType UInt64DType UInt8DType",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "torch": "Size Tensor bfloat16 bool complex128 complex64 device double float float16 float32 "
    "float64 float8_e4m3fn float8_e5m2 half int int16 int32 int64 int8 long per_channel_affine "
    "per_channel_affine_float_qparams per_channel_symmetric per_tensor_affine "
    "per_tensor_symmetric short strided uint16 uint32 uint64 uint8",
    "torch._tensor": "Tensor",
    "torch.nn.parameter": "Buffer Parameter",
    "torch.serialization": "_get_layout",
    "torch.storage": "TypedStorage UntypedStorage",
    "torch.torch_version": "TorchVersion",
    "types": "SimpleNamespace",
    "uuid": "UUID",
}
"""Classes of data, and functions that make data, by module. Nothing is done with them."""
_FUNCTIONS = (
    *("_codecs.encode", "copyreg.__newobj__", "copyreg._reconstructor"),
    *("numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar"),
    *("numpy._core.numeric._frombuffer", "torch.serialization._get_layout"),
)
"""Those of them that are functions."""
_RENAMED = {
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
    "torch.tensor": "torch._tensor",
}
_OLD_STORAGES = ("torch", "torch.storage", "torch.cuda")


class ForeignGlobalError(ValueError):
    """A pickle names a class or function that is no plain data.

    Attributes:
        name: What it names.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value whose content is not needed, or what makes one.

    Attributes:
        name: Class or function that the pickle names.
        is_made: Whether it is what that class or function makes.
    """

    name: str
    is_made: bool = False


@dataclass(frozen=True)
class OddTensor:
    """A tensor that is not plain numbers in a row.

    Attributes:
        kind: What it is.
    """

    kind: str


@dataclass(frozen=True)
class Storage:
    """A run of numbers that tensors view.

    Attributes:
        dtype: One of `ITEM_SIZES`.
        key: Its name in the file.
        count: Number of its elements.
    """

    dtype: str
    key: str
    count: int

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.count * ITEM_SIZES[self.dtype]


@dataclass(frozen=True)
class PickledTensor:
    """Where a tensor's numbers are.

    Attributes:
        storage: The storage that it views.
        dtype: Its dtype.
        offset: Elements before its first.
        shape: Its dimensions.
        strides: Elements from one index to the next, by dimension.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickle(stream: IO[bytes], *, views: bool = False) -> tuple[Any, dict[str, Storage]]:
    """Return the object of the next pickle in a stream, and the storages that it refers to, by key.

    Args:
        stream: The pickle, from its first byte.
        views: Whether what it says about a storage ends with a view of another one, as before
            PyTorch 1.6.

    Containers become dict, list and tuple, whatever class of mapping they were; numbers and text
    are themselves; tensors are `PickledTensor` or `OddTensor`; all else is `Opaque`.

    Raises:
        ForeignGlobalError: If it names a class or function that is no plain data.
        ValueError: If it is malformed, or longer than any state dict.
    """
    machine = _Machine(views)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_STEPS:
                break
            machine.run(opcode.name, argument)
        else:
            return machine.stack.pop(), machine.storages
    except ForeignGlobalError:
        raise
    except _MALFORMED as error:
        raise ValueError(f"its pickle is malformed: {error}") from error
    raise ValueError(f"its pickle has more than {MAX_STEPS:,} instructions")


class _Machine:
    """The stack machine of a pickle; `run` carries out one instruction."""

    def __init__(self, views: bool) -> None:
        self._views = views
        self.stack: list[Any] = []
        self.storages: dict[str, Storage] = {}
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps: dict[str, Callable[[Any], object]] = {
            "PROTO": self._nothing,
            "FRAME": self._nothing,
            "STOP": self._nothing,
            "BUILD": lambda _: self._build(),
            "POP": lambda _: self._drop(1),
            "POP_MARK": lambda _: self._drop_marked(),
            "MARK": lambda _: self._mark(),
            "DUP": lambda _: self.stack.append(self.stack[-1]),
            "NONE": lambda _: self.stack.append(None),
            "NEWTRUE": lambda _: self.stack.append(True),
            "NEWFALSE": lambda _: self.stack.append(False),
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "EMPTY_TUPLE": lambda _: self.stack.append(()),
            "EMPTY_SET": lambda _: self.stack.append(Opaque("set", True)),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "TUPLE": lambda _: self._gathered(tuple),
            "LIST": lambda _: self._gathered(list),
            "FROZENSET": lambda _: self._gathered(lambda items: Opaque("frozenset", True)),
            "DICT": lambda _: self._gathered(lambda items: _filled({}, items)),
            "APPEND": lambda _: self._extend([self.stack.pop()]),
            "APPENDS": lambda _: self._extend(self._drop_marked()),
            "ADDITEMS": lambda _: self._extend(self._drop_marked()),
            "SETITEM": lambda _: self._set([self.stack.pop(-2), self.stack.pop()]),
            "SETITEMS": lambda _: self._set(self._drop_marked()),
            "GET": self._recall,
            "BINGET": self._recall,
            "LONG_BINGET": self._recall,
            "PUT": self._remember,
            "BINPUT": self._remember,
            "LONG_BINPUT": self._remember,
            "MEMOIZE": lambda _: self._remember(len(self._memo)),
            "GLOBAL": lambda name: self.stack.append(_named(*name.split(" ", 1))),
            "STACK_GLOBAL": lambda _: self._stack_global(),
            "REDUCE": lambda _: self._call(self.stack.pop(-2), self.stack.pop()),
            "NEWOBJ": lambda _: self._make(self.stack.pop(-2), self.stack.pop()),
            "NEWOBJ_EX": lambda _: self._call_with_names(),
            "OBJ": lambda _: self._call_first(self._drop_marked()),
            "INST": lambda name: self._call(
                _named(*name.split(" ", 1)), tuple(self._drop_marked())
            ),
            "BINPERSID": lambda _: self.stack.append(self._storage(self.stack.pop())),
        }

    def run(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in self._steps:
            self._steps[name](argument)
        else:
            raise ValueError(f"the instruction {name} has no place in a state dict")

    def _nothing(self, argument: Any) -> None:
        pass

    def _drop(self, count: int) -> None:
        del self.stack[-count]

    def _build(self) -> None:
        self._drop(1)
        target = self.stack[-1]
        if not (isinstance(target, dict | PickledTensor | OddTensor) or _is_object(target)):
            raise TypeError("a state is given to what has none")

    def _mark(self) -> None:
        self._marks.append(self.stack)
        self.stack = []

    def _drop_marked(self) -> list[Any]:
        items, self.stack = self.stack, self._marks.pop()
        return items

    def _gathered(self, make: Callable[[list[Any]], Any]) -> None:
        items = self._drop_marked()
        self.stack.append(make(items))

    def _tuple(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) != count:
            raise IndexError("stack underflow")
        self.stack[-count:] = [items]

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        elif not _is_object(self.stack[-1]):
            raise TypeError("something is appended to what is no list")

    def _set(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            _filled(self.stack[-1], items)
        elif not _is_object(self.stack[-1]):
            raise TypeError("an item is set in what is no mapping")

    def _recall(self, index: int) -> None:
        self.stack.append(self._memo[index])

    def _remember(self, index: int) -> None:
        self._memo[index] = self.stack[-1]

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("a class is named by something other than text")
        self.stack.append(_named(module, name))

    def _call_with_names(self) -> None:
        self.stack.pop()
        self._make(self.stack.pop(-2), self.stack.pop())

    def _make(self, cls: Any, arguments: Any) -> None:
        if isinstance(cls, Opaque) and (
            cls.name in (*_TENSORS, *_FUNCTIONS) or _is_storage(cls.name)
        ):
            raise TypeError("an object of what is no class")
        self._call(cls, arguments)

    def _call_first(self, items: list[Any]) -> None:
        self._call(items[0], tuple(items[1:]))

    def _call(self, function: Any, arguments: Any) -> None:
        """Put what a call would return on the stack, without calling anything."""
        if not isinstance(arguments, tuple):
            raise TypeError("arguments that are no tuple")
        self.stack.append(_result(function, arguments))

    def _storage(self, found: Any) -> Storage:
        """Return the storage that a persistent id describes."""
        kind, cls, key, device, count, *view = found
        if kind != "storage" or view != [None] * self._views:
            raise ValueError("it refers to something else than the storage of a tensor")
        name = getattr(cls, "name", "")
        module, _, short = name.rpartition(".")
        dtype = _STORAGES.get(short.removesuffix("Storage"), "")
        if name == "torch.storage.UntypedStorage":
            dtype = "bytes"
        if (
            not dtype
            or module not in _OLD_STORAGES
            or not (isinstance(key, str) and isinstance(device, str))
        ):
            raise ValueError("a storage of an unknown kind")
        storage = Storage(dtype, key, _natural(count))
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"the storage {key!r:.40} is described in two ways")
        return storage


def _named(module: str, name: str) -> Opaque:
    """Return what stands for a class or function.

    Raises:
        ForeignGlobalError: If it is not in the list of plain data.
    """
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    module = _RENAMED.get(module, module)
    full = f"{module}.{name}"
    if full == _META:
        raise ValueError("it has tensors without numbers (device meta)")
    known = name in _OPAQUE.get(module, "").split() or full in _MAPPINGS or full in _TENSORS
    if not known and not _is_storage(full):
        raise ForeignGlobalError(full)
    return Opaque(full)


def _is_storage(full: str) -> bool:
    module, _, name = full.rpartition(".")
    known = module in _OLD_STORAGES and name.removesuffix("Storage") in _STORAGES
    return known and name.endswith("Storage")


def _result(function: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(function, Opaque) or function.is_made:
        raise TypeError("a call of something that is no class or function")
    name = function.name
    if name in ("copyreg._reconstructor", "copyreg.__newobj__") and arguments:
        return _result(arguments[0], ())
    if name in _MAPPINGS:
        return _mapping(name, arguments)
    if name in _TENSORS:
        make, least, most = _TENSORS[name]
        if not least <= len(arguments) <= most:
            raise TypeError(f"a tensor is made of {len(arguments)} arguments")
        return make(*arguments)
    if name in ("torch.Size", "torch.serialization._get_layout") and len(arguments) < 2:
        return arguments[0] if arguments else ()
    return Opaque(name, True)


def _is_object(value: Any) -> bool:
    return isinstance(value, Opaque) and value.is_made


def _mapping(name: str, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """Return a mapping as its class would make it from another one, or from a list of pairs."""
    made: dict[Any, Any] = {}
    if name == "collections.defaultdict" and arguments:
        factory, *arguments = arguments  # type: ignore[assignment]
        if not (factory is None or isinstance(factory, Opaque)):
            raise TypeError("a mapping whose factory of defaults is none")
    for argument in arguments:
        if isinstance(argument, dict):
            made.update(argument)
        elif isinstance(argument, list):
            for key, value in argument:
                _filled(made, [key, value])
        else:
            raise TypeError("a mapping is made of what is none")
    return made


def _filled(mapping: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    """Set keys and values that alternate, but only for keys that are text or small numbers.

    Others, such as nested tuples and numbers of equal hash, can stall or crash a dict.
    """
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(key, str) or (isinstance(key, int) and 0 <= key < _MAX_KEY):
            mapping[key] = value
    return mapping


def _natural(number: Any) -> int:
    if type(number) is not int or not 0 <= number < _MAX_SIZE:
        raise ValueError("a size is no number, negative or too large")
    return number


def _naturals(numbers: Any) -> tuple[int, ...]:
    if not isinstance(numbers, tuple) or len(numbers) > _MAX_RANK:
        raise ValueError("a tensor's shape is malformed")
    return tuple(_natural(number) for number in numbers)


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> PickledTensor:
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    if not isinstance(requires_grad, bool):
        raise TypeError("a tensor whose requires_grad is neither true nor false")
    for name, found in (("hooks", hooks), ("metadata", metadata)):
        if not (found is None or isinstance(found, dict)):
            raise TypeError(f"a tensor whose {name} are no mapping")
    sizes, steps = _naturals(shape), _naturals(strides)
    if len(sizes) != len(steps):
        raise ValueError("a tensor's shape and strides differ in length")
    return _within(PickledTensor(storage, storage.dtype, _natural(offset), sizes, steps))


def _tensor_of_dtype(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> PickledTensor:
    tensor = _tensor(storage, offset, shape, strides, requires_grad, hooks, metadata)
    name = dtype.name.removeprefix("torch.")
    return _within(PickledTensor(storage, name, tensor.offset, tensor.shape, tensor.strides))


def _within(tensor: PickledTensor) -> PickledTensor:
    """Raise if a tensor is larger than its storage, which PyTorch would then enlarge."""
    if 0 not in tensor.shape:
        pairs = zip(tensor.shape, tensor.strides, strict=True)
        last = tensor.offset + sum((size - 1) * step for size, step in pairs)
        if (last + 1) * ITEM_SIZES.get(tensor.dtype, 1) > tensor.storage.nbytes:
            raise ValueError(f"a tensor reaches out of its storage {tensor.storage.key!r:.40}")
    return tensor


def _odd(kind: str) -> Callable[..., OddTensor]:
    return lambda *arguments: OddTensor(kind)


def _sparse(layout: Any, *_: Any) -> OddTensor:
    return OddTensor(layout if isinstance(layout, str) else "sparse")


_META = "torch._utils._rebuild_meta_tensor_no_storage"
_TENSORS: Mapping[str, tuple[Callable[..., Any], int, int]] = {
    "torch._utils._rebuild_tensor": (_tensor, 4, 4),
    "torch._utils._rebuild_tensor_v2": (_tensor, 6, 7),
    "torch._utils._rebuild_tensor_v3": (_tensor_of_dtype, 7, 8),
    "torch._utils._rebuild_parameter": (lambda data, *_: data, 3, 3),
    "torch._utils._rebuild_parameter_with_state": (lambda data, *_: data, 4, 4),
    "torch._tensor._rebuild_from_type_v2": (lambda make, _, args, __: _result(make, args), 4, 4),
    "torch._utils._rebuild_sparse_tensor": (_sparse, 2, 2),
    "torch._utils._rebuild_qtensor": (_odd("quantized"), 7, 7),
    "torch._utils._rebuild_nested_tensor": (_odd("nested"), 4, 4),
    "torch._utils._rebuild_wrapper_subclass": (_odd("of a class of its own"), 8, 8),
    "torch._utils._rebuild_device_tensor_from_numpy": (_odd("stored for another device"), 4, 4),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": (
        _odd("stored for another device"), 4, 4,
    ),
}  # fmt: skip
"""The functions that PyTorch's pickles call to make tensors, what they come to here, and the fewest
and the most arguments that they take; torch/_utils.py."""
