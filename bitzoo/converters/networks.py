"""Find the network in what a PyTorch program saved: a state dict, or a training checkpoint.

A network shows itself by the name of its first kernel. What stands before that name, in the keys of
nested mappings and in the names (``module.``, ``_orig_mod.``, ``backbone.``), is removed, whatever
it is. Several networks in one file are told apart by it: averages are taken first, other cases are
for the user to decide. Everything that is chosen or left out is in the notes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from bitzoo.converters.averages import AVERAGE, RAW, is_average, names_average, no_such_weights
from bitzoo.converters.key_mapping import TORCH_SCHEMES, name_of, scheme_of, slot_of
from bitzoo.errors import CheckpointError, UsageError
from bitzoo.models.architecture import Role, Slot

_BIT = "bit."
"""What the names of transformers' BitForImageClassification have, and those of a BitModel lack."""
_ANCHORS = [
    [name_of(slot, scheme).removeprefix(_BIT) for scheme in TORCH_SCHEMES]
    for slot in (Slot(Role.STEM_KERNEL), Slot(Role.KERNEL, 1, 1, "a"))
]
"""Names that show a network: of its first kernel, or for a file without it, of the second."""
_MAX_DEPTH = 6
"""Bound on the nesting of mappings that are searched."""
_TRAINING = {"gradients", "grad", "grads", "momentum", "optim", "optimizer", "optimizers"}
_TOP = "."
"""What the place of a network is called whose names stand at the top of the file."""
_MAX_NETWORKS = 16
_LISTED, _SHOWN = 10, 60
_Tensor = TypeVar("_Tensor")


@dataclass(frozen=True)
class Choice(Generic[_Tensor]):
    """The network that was chosen.

    Attributes:
        names: The naming scheme of its tensors.
        tensors: Its tensors under the names of that scheme; unknown ones are kept.
        stored: Each tensor's name in its mapping, by the name of the scheme.
        taken: Kind and place of the weights, if the file has several sets or only an average.
        notes: What was chosen, removed and left out, as sentences.
    """

    names: str
    tensors: dict[str, _Tensor]
    stored: dict[str, str]
    taken: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Network(Generic[_Tensor]):
    """A network in a file: keys to its mapping, prefix of its names, and what the mapping has."""

    path: tuple[str, ...]
    prefix: str
    tensors: dict[str, _Tensor]
    beside: dict[str, _Tensor]
    average: bool

    @property
    def parts(self) -> tuple[str, ...]:
        return (*self.path, *filter(None, self.prefix.split(".")))

    @property
    def place(self) -> str:
        return ".".join(self.parts) or _TOP

    @property
    def kind(self) -> str:
        return AVERAGE if self.average else RAW

    def is_called(self, wanted: str) -> bool:
        return wanted in (self.place, *self.parts)


def choose_network(
    content: Any,
    file: object,
    *,
    is_tensor: Callable[[Any], bool],
    is_state: Callable[[Any], bool],
    weights: str | None = None,
) -> Choice[Any] | None:
    """Choose a network in nested mappings.

    Args:
        content: What the file holds.
        file: Its name in messages.
        is_tensor: Whether a value is a tensor.
        is_state: Whether a tensor cannot be weights, such as a counter; skipped if it is not a
            tensor of the network.
        weights: Which network, if there are several: ``ema``, ``raw``, or the name of its place;
            None for an average, or else the only one.

    Returns:
        The network; tensors of an unknown network if there is no other; None without tensors.

    Raises:
        UsageError: If `weights` is not there, or several networks are and nothing decides.
        CheckpointError: If there are more networks than any training has.
    """
    found: list[_Network[Any]] = []
    largest: _Network[Any] | None = None
    for path, tensors, parent in _mappings(content, is_tensor):
        found += _networks(file, path, tensors, parent)
        if largest is None or len(tensors) > len(largest.tensors):
            largest = _Network(path, "", tensors, {}, average=False)
    if len(found) > _MAX_NETWORKS:
        raise _too_many(file, [network.place for network in found])
    networks = _distinct(found)
    if not networks and largest is not None and weights in (None, RAW):
        networks = [largest]
    if not networks:
        if largest is not None and weights is not None:
            raise no_such_weights(file, weights, [])
        return None
    chosen = _choose(networks, file, weights)
    scheme, stored = _scheme(chosen)
    tensors = {name: chosen.tensors[own] for name, own in stored.items()}
    state = [
        name
        for name, tensor in tensors.items()
        if found and is_state(tensor) and slot_of(name, scheme) is None
    ]
    left_out = [name for name, tensor in chosen.beside.items() if not is_state(tensor)]
    if left_out and not chosen.is_called(weights or ""):
        _require_head(chosen, scheme, tensors, left_out, file)
    skipped = [chosen.prefix + stored.pop(name) for name in state]
    skipped += [name for name, tensor in chosen.beside.items() if is_state(tensor)]
    others = _other_keys(content, found or networks)
    return Choice(
        scheme,
        {name: tensors[name] for name in stored},
        {name: chosen.prefix + own for name, own in stored.items()},
        f"{chosen.kind} ({_shown([chosen.place], quote=False)[0]})"
        if len(networks) > 1 or chosen.average
        else None,
        (
            *_notes(chosen, networks, left_out, list(dict.fromkeys([*skipped, *others]))),
            *(_unused_averages(content, others) if not chosen.average else ()),
        ),
    )


def _mappings(
    content: Any, is_tensor: Callable[[Any], bool]
) -> Iterator[tuple[tuple[str, ...], dict[str, Any], Mapping[Any, Any]]]:
    """Yield the keys to each mapping with tensors, its tensors, and the mapping that holds it."""
    seen: set[int] = set()
    nothing: Mapping[Any, Any] = {}
    ahead: deque[tuple[tuple[str, ...], Any, Mapping[Any, Any]]] = deque([((), content, nothing)])
    while ahead:
        path, value, parent = ahead.popleft()
        is_mapping = isinstance(value, Mapping)
        if id(value) in seen or not (is_mapping or isinstance(value, list | tuple)):
            continue
        seen.add(id(value))
        if is_mapping:
            tensors = {k: t for k, t in value.items() if isinstance(k, str) and is_tensor(t)}
            if tensors:
                yield path, tensors, parent
        if len(path) < _MAX_DEPTH:
            inner = value if is_mapping else dict(enumerate(value))
            ahead += [
                ((*path, str(key)), held, inner)
                for key, held in inner.items()
                if isinstance(held, Mapping | list | tuple)
            ]


def _networks(
    file: object, path: tuple[str, ...], tensors: dict[str, Any], parent: Mapping[Any, Any]
) -> list[_Network[Any]]:
    """Return the networks in one mapping, each with the tensors under its prefix."""
    prefixes = next(filter(None, (_prefixes(tensors, anchors) for anchors in _ANCHORS)), set())
    if len(prefixes) > _MAX_NETWORKS:
        raise _too_many(file, sorted(prefixes))
    inside: dict[str, dict[str, Any]] = {prefix: {} for prefix in sorted(prefixes)}
    longest_first = sorted(prefixes, key=len, reverse=True)
    beside = {}
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in longest_first if name.startswith(prefix)), None)
        if prefix is None:
            beside[name] = tensor
        else:
            inside[prefix][name.removeprefix(prefix)] = tensor
    networks = []
    for prefix, own in inside.items():
        parts = tuple(filter(None, prefix.split(".")))
        average = is_average(path, tensors, parent, prefix) or any(map(names_average, parts))
        networks.append(_Network(path, prefix, own, beside, average))
    return [network for network in networks if not _TRAINING & _words(network.parts)]


def _words(parts: tuple[str, ...]) -> set[str]:
    return {word for part in parts for word in part.lower().replace("-", "_").split("_")}


def _prefixes(names: Mapping[str, Any], anchors: list[str]) -> set[str]:
    prefixes = set()
    for name in names:
        for anchor in anchors:
            if name == anchor or name.endswith(f".{anchor}"):
                prefix = name.removesuffix(anchor)
                wrapped = prefix == _BIT or prefix.endswith(f".{_BIT}")
                prefixes.add(prefix.removesuffix(_BIT) if wrapped else prefix)
    return prefixes


def _distinct(networks: list[_Network[Any]]) -> list[_Network[Any]]:
    """Leave out networks that are others under a second name, the same memory."""
    kept: list[_Network[Any]] = []
    for network in sorted(networks, key=lambda network: len(network.parts)):
        if not any(network.tensors == other.tensors for other in kept):
            kept.append(network)
    return kept


def _choose(networks: list[_Network[Any]], file: object, weights: str | None) -> _Network[Any]:
    places = [network.place for network in networks]
    if weights is None:
        fits = [network for network in networks if network.average] or networks
    elif weights in (AVERAGE, RAW):
        fits = [network for network in networks if network.kind == weights]
    else:
        fits = [network for network in networks if network.is_called(weights)]
    if len(fits) == 1:
        return fits[0]
    if not fits:
        kinds = [kind for kind in (AVERAGE, RAW) if any(n.kind == kind for n in networks)]
        raise no_such_weights(file, str(weights), [*kinds, *_shown(places, quote=False)])
    listed = " and ".join(_shown([network.place for network in fits]))
    raise UsageError(
        f"{file}: expected one network, found {len(fits)}, under {listed}. Choose one, as with "
        f'`weights="{_shown([fits[0].place], quote=False)[0]}"`.'
    )


def _scheme(network: _Network[Any]) -> tuple[str, dict[str, str]]:
    """Return the naming scheme of a network's tensors, and their present names by its names."""
    bare = _ANCHORS[0][TORCH_SCHEMES.index("transformers")]
    added = _BIT if bare in network.tensors else ""
    names = {f"{added}{name}": name for name in network.tensors}
    return scheme_of(names, TORCH_SCHEMES), names


def _too_many(file: object, places: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{file}: expected one network, found {len(places):,} ({_listed(places)}). "
        "This is not a BiT checkpoint."
    )


def _require_head(
    chosen: _Network[Any],
    scheme: str,
    tensors: Mapping[str, Any],
    left_out: list[str],
    file: object,
) -> None:
    """Refuse to take a network without its head, if what is beside it may be that."""
    if name_of(Slot(Role.HEAD_KERNEL), scheme) not in tensors:
        place = _shown([chosen.place], quote=False)[0]
        raise CheckpointError(
            f"{file}: the network under {_shown([chosen.prefix])[0]} has no head, but "
            f"beside it are tensors that may be one: {_listed(left_out)}. Save the head as "
            f"{name_of(Slot(Role.HEAD_KERNEL), scheme)} with the network; "
            f'`weights="{place}"` takes the network without a head.'
        )


def _other_keys(content: Any, networks: list[_Network[Any]]) -> list[str]:
    """Return the file's keys beside those that lead to networks and their tensors."""
    if not isinstance(content, Mapping):
        return []
    own: set[str] = set()
    for network in networks:
        own.update(network.path[:1])
        if not network.path:
            own.update(network.beside, (network.prefix + name for name in network.tensors))
    return [str(key) for key in content if str(key) not in own]


def _unused_averages(content: Any, keys: list[str]) -> Iterator[str]:
    """Yield a note if something that is called an average is none of a network by its names."""
    held = [key for key in keys if isinstance(content.get(key), Mapping | list | tuple)]
    if named := [key for key in held if names_average(key)]:
        yield f"No network has its names under {_listed(named)}: that average was not used."


def _notes(
    chosen: _Network[Any],
    networks: list[_Network[Any]],
    left_out: list[str],
    skipped: list[str],
) -> Iterator[str]:
    others = [network for network in networks if network is not chosen]
    if others or chosen.average:
        what = "averaged weights (EMA)" if chosen.average else "weights"
        offered = [o.kind if o.average != chosen.average else o.place for o in others]
        rest = ", ".join(
            f'`weights="{_shown([name], quote=False)[0]}"` takes those under {_shown([o.place])[0]}'
            for name, o in zip(offered[:3], others, strict=False)
        )
        yield f"Took the {what} under {_shown([chosen.place])[0]}" + (f"; {rest}." if rest else ".")
    elif chosen.path:
        yield f"Took the weights under {_shown(['.'.join(chosen.path)])[0]}."
    if chosen.prefix:
        yield f"Removed the prefix {_shown([chosen.prefix])[0]} from the names."
    if left_out:
        yield f"Left out what is not under {_shown([chosen.prefix])[0]}: {_listed(left_out)}."
    if skipped:
        yield f"Skipped training state: {_listed(skipped)}."


def _listed(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(_shown(names[:_LISTED])) + (f" and {more:,} more" if more > 0 else "")


def _shown(names: list[str], *, quote: bool = True) -> list[str]:
    """Return names from a file, shortened and without control characters."""
    short = [n if len(n) <= _SHOWN else f"{n[:_SHOWN]}..." for n in names]
    return [repr(name) if quote else repr(name)[1:-1] for name in short]
