"""`create_model`: the network with its weights, by name or file, and what is known about it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, overload

import torch

from bitzoo.catalogue.model_info import Identity, ModelInfo
from bitzoo.catalogue.registry import ModelSpec, get_spec
from bitzoo.converters.identify import Inventory, identify
from bitzoo.converters.key_mapping import name_of
from bitzoo.converters.model_record import as_loaded, read_info, with_taken
from bitzoo.converters.open import open_source
from bitzoo.converters.source import Source
from bitzoo.converters.state_dict import read_state_dict
from bitzoo.errors import CheckpointError, UsageError
from bitzoo.files import Progress
from bitzoo.models.architecture import Architecture, Role, Slot
from bitzoo.models.bit import Backbone, BiT, FeatureExtractor, adapt_stem_kernel, fold
from bitzoo.progress import shown
from bitzoo.zoo.resolve import Located, find_weights, is_location, locate

__all__ = ["create_model", "fold"]

Place = str | os.PathLike[str]
_STEM = Slot(Role.STEM_KERNEL)
_log = logging.getLogger(__name__)


@overload
def create_model(
    model: Place,
    pretrained: bool | Place | None = ...,
    *,
    num_classes: int | None = ...,
    in_chans: int | None = ...,
    features_only: Literal[False] = ...,
    out_indices: Iterable[int] = ...,
    output_stride: int = ...,
    weights: str | None = ...,
    mmap: bool = ...,
    progress: Progress | bool | None = ...,
) -> BiT: ...


@overload
def create_model(
    model: Place,
    pretrained: bool | Place | None = ...,
    *,
    num_classes: int | None = ...,
    in_chans: int | None = ...,
    features_only: Literal[True],
    out_indices: Iterable[int] = ...,
    output_stride: int = ...,
    weights: str | None = ...,
    mmap: bool = ...,
    progress: Progress | bool | None = ...,
) -> FeatureExtractor: ...


@overload
def create_model(
    model: Place,
    pretrained: bool | Place | None = ...,
    *,
    num_classes: int | None = ...,
    in_chans: int | None = ...,
    features_only: bool,
    out_indices: Iterable[int] = ...,
    output_stride: int = ...,
    weights: str | None = ...,
    mmap: bool = ...,
    progress: Progress | bool | None = ...,
) -> BiT | FeatureExtractor: ...


def create_model(
    model: Place,
    pretrained: bool | Place | None = None,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
    out_indices: Iterable[int] = (0, 1, 2, 3, 4),
    output_stride: int = 32,
    weights: str | None = None,
    mmap: bool = True,
    progress: Progress | bool | None = None,
) -> BiT | FeatureExtractor:
    """Create a BiT network with Google's weights, your own, or random ones.

    Tensors that the weights overwrite are not initialised: the network is built without storage and
    takes the file's memory-mapped tensors, so that a converted file of 4.4 GB loads at once and is
    read as it is used. Writing to the tensors never changes the file. Whoever changes the file in
    place changes the network, or ends the process; docs/how-to/saving.md has the safe ways.

    Args:
        model: A catalogue name (``BiT-M-R101x1``; case, ``-`` and ``_`` do not matter), or a
            checkpoint as for `pretrained`, which then determines architecture and class count.
        pretrained: True for the weights that belong to `model`; otherwise the path of a checkpoint
            in any format that bitzoo converts, the path of a folder with `model.safetensors` and
            optionally `config.json`, an http(s) address, or ``hub:organisation/name@revision``.
            False for random weights and a zero head. None is True for a checkpoint, whose weights
            are the reason to name it, and False for a catalogue name, as in timm.
        num_classes: None (or the file's own count) keeps the file's head; another count gives a
            new head that starts at zero; 0 gives pooled features.
        in_chans: Channels of the images. None keeps those of the weights, 3 for all catalogue
            names; another count adapts the stem's kernel.
        features_only: Whether to return a `FeatureExtractor`, whose output is a list of maps.
        out_indices: Which maps: 0 for the stem's convolution, 1 to 4 for the blocks.
        output_stride: 32, or 16 or 8 to dilate the later blocks, with the same weights.
        weights: Which weights of a training checkpoint: ``ema`` (averages over training), ``raw``,
            or the name of their place in the file. None for averages if there are any, as in timm;
            the log says what was taken, and so does `info(model).provenance`.
        mmap: Whether tensors may be mapped from the file. False reads them into memory, so that
            nothing that happens to the file afterwards matters.
        progress: For weights that are fetched; as for `bitzoo.finetune`.

    Returns:
        The network in training mode if its weights are random, else in evaluation mode.

    Raises:
        UnknownModelError: If there is no such name; the message lists the nearest names.
        WeightsUnavailableError: If Google never released the weights (BiT-L).
        CheckpointError: If the file is damaged, or its architecture is not that of the name.
        DownloadError: If the weights cannot be fetched.
    """
    if pretrained is None:
        pretrained = is_location(model)
    with shown(progress):
        spec, place = _resolve(model, pretrained, weights)
    indices = tuple(out_indices) if features_only else None
    wanted = _Wanted(num_classes, in_chans, indices, output_stride)
    if place is None:
        assert spec is not None
        if weights is not None:
            raise UsageError(
                f'{model}: `weights="{weights}"` chooses between the weights in a file, but with '
                "`pretrained=False` none is read. Leave it out, or give a file."
            )
        network = wanted.build(spec.architecture, spec.num_classes)
        network.info = _info_of(network, _random(ModelInfo.of_release(spec)))
        return network
    with open_source(place.path, weights=weights) as source:
        inventory = identify(source)
        if spec is not None:
            _require_architecture(spec, source, inventory)
        info, notes = read_info(source, inventory, place.identity)
        info, more_notes = as_loaded(with_taken(info, source), inventory)
        for note in (*source.notes, *notes, *more_notes):
            _log.warning("%s", note)
        if spec is not None:
            info = _asked_as(spec, info)
        if pretrained is False:
            network = wanted.build(inventory.architecture, inventory.num_classes)
            info = _random(info)
        else:
            network = _load(source, inventory, wanted, mmap=mmap)
        network.info = _info_of(network, info)
    return network


def _asked_as(spec: ModelSpec, info: ModelInfo) -> ModelInfo:
    """Add what the requested name implies, if the file says nothing about itself."""
    if info.identity.name or info.base or info.run:
        return info
    asked = Identity(spec.name, "stated", "the name that was requested")
    if info.num_classes == spec.num_classes:
        return replace(info, identity=asked).completed_by_catalogue()
    return replace(info, base=asked, preprocessing=info.preprocessing or spec.preprocessing)


def _random(info: ModelInfo) -> ModelInfo:
    """Return what is known about a network of the same form with random weights."""
    return replace(
        info,
        identity=Identity(None, "unknown", "random weights"),
        base=None,
        license=None,
        provenance=None,
        run=None,
        path=None,
    )


def _info_of(network: Backbone, info: ModelInfo) -> ModelInfo:
    """Adapt what is known about the weights to the network that was made from them."""
    info = replace(info, in_chans=network.architecture.in_chans)
    classes = network.num_classes if isinstance(network, BiT) else 0
    if classes == info.num_classes:
        return info
    return info.with_head(classes) if classes else info.without_head()


def _resolve(
    model: Place, pretrained: bool | Place, weights: str | None
) -> tuple[ModelSpec | None, Located | None]:
    """Return the catalogue entry, if a name was given, and the checkpoint, if one is needed."""
    if is_location(model):
        if not isinstance(pretrained, bool):
            raise UsageError(
                f"Two checkpoints were given, {model} and {pretrained}. Give a catalogue name and "
                "a file, or one file with `pretrained=True`."
            )
        return None, locate(model, weights=weights)
    spec = get_spec(str(model))
    if pretrained is False:
        return spec, None
    if pretrained is True:
        return spec, find_weights(spec)
    return spec, locate(pretrained, weights=weights)


def _require_architecture(spec: ModelSpec, source: Source, inventory: Inventory) -> None:
    """Check a file against the requested name; its head may be another."""
    found = replace(inventory.architecture, in_chans=spec.architecture.in_chans)
    if not spec.fits(found, spec.num_classes):
        raise CheckpointError(
            f"{source.path}: expected {spec.arch_name}, the architecture of {spec.name}, found "
            f"{inventory.title}. To load the file as what it is, give the file instead of the name."
        )


@dataclass(frozen=True)
class _Wanted:
    """What the caller requested; None stands for what the weights or the catalogue have."""

    num_classes: int | None
    in_chans: int | None
    out_indices: tuple[int, ...] | None
    output_stride: int

    def build(self, architecture: Architecture, num_classes: int) -> BiT | FeatureExtractor:
        """Build the network; `architecture` and `num_classes` fill in what was not requested."""
        channels = architecture.in_chans if self.in_chans is None else self.in_chans
        architecture = replace(architecture, in_chans=channels)
        if self.out_indices is not None:
            return FeatureExtractor(
                architecture, self.out_indices, output_stride=self.output_stride
            )
        classes = num_classes if self.num_classes is None else self.num_classes
        return BiT(architecture, classes, output_stride=self.output_stride)


def _load(
    source: Source, inventory: Inventory, wanted: _Wanted, *, mmap: bool
) -> BiT | FeatureExtractor:
    """Build a network without storage and hand it the file's tensors."""
    classes = wanted.num_classes
    new_head = classes is not None and classes != inventory.num_classes
    with torch.device("meta"):
        network = (replace(wanted, num_classes=0) if new_head else wanted).build(
            inventory.architecture, inventory.num_classes
        )
    state = read_state_dict(source, inventory, mmap=mmap)
    found, channels = inventory.architecture.in_chans, network.architecture.in_chans
    if channels != found:
        stem = name_of(_STEM, "timm")
        state[stem] = adapt_stem_kernel(state[stem], channels)
        _log.warning("The stem's kernel was adapted from %d to %d channels.", found, channels)
    network.load_state_dict({name: state[name] for name in network.state_dict()}, assign=True)
    if isinstance(network, BiT) and new_head and classes:
        network.reset_classifier(classes)
        _log.warning(
            "%s has %s; the new head of %d classes starts at zero and needs training.",
            source.path.name,
            f"a head of {inventory.num_classes} classes" if inventory.num_classes else "no head",
            classes,
        )
    return network.eval()
