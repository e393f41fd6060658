"""Models by name or file: the network, its weights, and how to feed and read it."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from bitzoo.catalogue.class_names import class_names_or_reason
from bitzoo.catalogue.registry import ModelSpec, find_spec, get_spec
from bitzoo.converters.identify import Inventory, identify
from bitzoo.converters.key_mapping import name_of
from bitzoo.converters.open import open_source
from bitzoo.converters.source import Source
from bitzoo.converters.state_dict import read_state_dict
from bitzoo.errors import CheckpointError, UsageError
from bitzoo.models.architecture import Architecture, Role, Slot
from bitzoo.models.bit import Backbone, BiT, FeatureExtractor, adapt_stem_kernel, fold
from bitzoo.models.preprocessing import EvalTransform
from bitzoo.zoo.resolve import CONFIG_NAME, Located, find_weights, is_location, locate

__all__ = ["Origin", "create_model", "create_transform", "fold", "labels"]

Place = str | os.PathLike[str]
DEFAULT_TRANSFORM = EvalTransform(crop=224, resize=256, interpolation="bilinear", square=False)
"""For weights that say nothing of their preprocessing: the resolution of BiT's pre-training."""
_STEM = Slot(Role.STEM_KERNEL)
_ROUNDING = 1e-6
"""Keeps a crop_pct that was written as 96 / 118 from giving 117.99999999999999 pixels."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """What is known of a model beyond its numbers; `create_model` leaves it in `model.origin`.

    Attributes:
        spec: The catalogue entry, if the model is one.
        path: The file its weights were read from; None for random weights.
        config: The `config.json` that lay beside it.
    """

    spec: ModelSpec | None = None
    path: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


def create_model(
    model: Place,
    pretrained: bool | Place = False,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
    out_indices: Iterable[int] = (0, 1, 2, 3, 4),
    output_stride: int = 32,
    progress: bool | None = None,
) -> BiT | FeatureExtractor:
    """Create a BiT network, with Google's weights, one's own, or random ones.

    No tensor is initialised that weights overwrite: the network is built without storage and takes
    the file's memory-mapped tensors, so that a converted file of 4.4 GB is there at once and
    read as it is used. Writing to them never changes the file.

    Args:
        model: A catalogue name (``BiT-M-R101x1``; case, ``-`` and ``_`` do not matter), or what
            `pretrained` may be: then the architecture and class count come from the file.
        pretrained: True for the weights that belong to `model`; else the path of a checkpoint of
            any format that bitzoo converts, the path of a folder with `model.safetensors` and
            maybe `config.json`, an http(s) address, or ``hub:organisation/name@revision``. False
            for random weights and a zero head.
        num_classes: None (or the file's own count) keeps the file's head; another count gives a
            new head that starts at zero; 0 gives pooled features.
        in_chans: Channels of the images. None keeps the weights' own, which are 3 for all names;
            another count adapts the stem's kernel.
        features_only: Whether to return a `FeatureExtractor`, whose output is a list of maps.
        out_indices: Which maps: 0 the stem's convolution, 1 to 4 the blocks.
        output_stride: 32, or 16 or 8 for dilated later blocks with the same weights.
        progress: Whether to show a bar while fetching; None shows it on a terminal.

    Returns:
        The network in training mode if its weights are random, else in evaluation mode.

    Raises:
        UnknownModelError: If there is no such name; the message lists the nearest.
        WeightsUnavailableError: If Google never released the weights (BiT-L).
        CheckpointError: If the file is damaged or of another architecture than the name says.
        DownloadError: If the weights cannot be fetched.
    """
    spec, place = _resolve(model, pretrained, progress)
    indices = tuple(out_indices) if features_only else None
    wanted = _Wanted(num_classes, in_chans, indices, output_stride)
    if place is None:
        assert spec is not None
        network = wanted.build(spec.architecture, spec.num_classes)
        network.origin = Origin(spec)
        return network
    with open_source(place.path) as source:
        inventory = identify(source)
        spec = _agreeing_spec(spec, source, inventory)
        if pretrained is False:
            network = wanted.build(inventory.architecture, inventory.num_classes)
            network.origin = Origin(spec, None, place.config)
        else:
            network = _load(source, inventory, wanted)
            network.origin = Origin(spec, str(place.path), place.config)
    return network


def create_transform(model: Backbone | str) -> EvalTransform:
    """Return the evaluation preprocessing of a model: RGB, resize, crop, [-1, 1].

    Args:
        model: A model from `create_model`, or a catalogue name.

    Returns:
        A callable from a picture (path, PIL image, uint8 array) to a float32 tensor (3, s, s). A
        model that says nothing of its preprocessing gets `DEFAULT_TRANSFORM`.

    Raises:
        UnknownModelError: If there is no such name.
        CheckpointError: If the `config.json` beside the weights states it in no readable form.
    """
    origin = _origin(model)
    if pretrained := origin.config.get("pretrained_cfg"):
        return _transform_from_config(pretrained, origin.path)
    if origin.spec is None:
        _log.warning("The model does not say how to prepare images; using %s.", DEFAULT_TRANSFORM)
        return DEFAULT_TRANSFORM
    facts = origin.spec.preprocessing
    return EvalTransform(facts.crop, facts.resize, facts.interpolation, facts.square)


def labels(model: Backbone | str) -> list[str] | None:
    """Return the class names of a model's outputs, or None; the reason is then logged.

    Args:
        model: A model from `create_model`, or a catalogue name.
    """
    names, reason = _names_or_reason(_origin(model))
    if names is not None and not isinstance(model, str):
        outputs = model.num_classes if isinstance(model, BiT) else 0
        if len(names) != outputs:
            reason = f"The model has {outputs:,} class outputs, but {len(names):,} names are known."
            names = None
    if names is None:
        _log.warning("%s", reason)
    return names


def _names_or_reason(origin: Origin) -> tuple[list[str] | None, str]:
    own, words = (origin.config.get(key) for key in ("label_names", "label_descriptions"))
    if isinstance(own, list):  # with words for each of them, as timm's config.json may have
        return [str(words.get(name, name) if isinstance(words, dict) else name) for name in own], ""
    names, reason = class_names_or_reason(origin.spec.label_set if origin.spec else None)
    return names, (origin.spec.label_note if origin.spec else "") or reason


def _resolve(
    model: Place, pretrained: bool | Place, progress: bool | None
) -> tuple[ModelSpec | None, Located | None]:
    """Return the catalogue entry, if a name was given, and the checkpoint, if one is needed."""
    if is_location(model):
        if not isinstance(pretrained, bool):
            raise UsageError(
                f"Two checkpoints were given, {model} and {pretrained}. Give a catalogue name and "
                "a file, or one file with pretrained=True."
            )
        return None, locate(model, progress=progress)
    spec = get_spec(str(model))
    if pretrained is False:
        return spec, None
    if pretrained is True:
        return spec, Located(find_weights(spec, progress=progress))
    return spec, locate(pretrained, progress=progress)


def _agreeing_spec(
    spec: ModelSpec | None, source: Source, inventory: Inventory
) -> ModelSpec | None:
    """Check a file against the name it was asked by, or recognise it by what it says of itself."""
    if spec is None:
        said = find_spec(source.metadata.get("model") or source.path.stem)
        same = said is not None and said.architecture == inventory.architecture
        return said if same else None
    if spec.architecture != replace(inventory.architecture, in_chans=spec.architecture.in_chans):
        raise CheckpointError(
            f"{source.path}: expected {spec.arch_name}, as {spec.name} is; found "
            f"{inventory.title}. To load it as what it is, give the file instead of the name."
        )
    return spec


@dataclass(frozen=True)
class _Wanted:
    """What the caller asked for; None is what the weights or the catalogue have."""

    num_classes: int | None
    in_chans: int | None
    out_indices: tuple[int, ...] | None
    output_stride: int

    def build(self, architecture: Architecture, num_classes: int) -> BiT | FeatureExtractor:
        """Build the network, of an architecture and class count that serve where None was asked."""
        channels = architecture.in_chans if self.in_chans is None else self.in_chans
        architecture = replace(architecture, in_chans=channels)
        if self.out_indices is not None:
            return FeatureExtractor(
                architecture, self.out_indices, output_stride=self.output_stride
            )
        classes = num_classes if self.num_classes is None else self.num_classes
        return BiT(architecture, classes, output_stride=self.output_stride)


def _load(source: Source, inventory: Inventory, wanted: _Wanted) -> BiT | FeatureExtractor:
    """Build a network without storage and hand it the file's tensors."""
    classes = wanted.num_classes
    new_head = classes is not None and classes != inventory.num_classes
    with torch.device("meta"):
        network = (replace(wanted, num_classes=0) if new_head else wanted).build(
            inventory.architecture, inventory.num_classes
        )
    state = read_state_dict(source, inventory)
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


def _origin(model: Backbone | str) -> Origin:
    if isinstance(model, str):
        return Origin(get_spec(model))
    return model.origin if isinstance(model.origin, Origin) else Origin()


def _transform_from_config(config: Any, path: str | None) -> EvalTransform:
    """Read timm's `pretrained_cfg`, the form in which `config.json` states preprocessing.

    The resize rounds down, as timm/data/transforms_factory.py does.
    """
    try:
        crop = int(config["input_size"][-1])
        resize = math.floor(crop / float(config.get("crop_pct") or 1) + _ROUNDING)
        interpolation = str(config.get("interpolation") or "bilinear")
        statistics = {float(x) for key in ("mean", "std") for x in config.get(key) or ()}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(
            f"The pretrained_cfg in {CONFIG_NAME} beside {path} cannot be read ({error!r}). "
            "Expected timm's form: input_size, crop_pct, interpolation."
        ) from error
    if statistics - {0.5}:
        raise CheckpointError(
            f"The pretrained_cfg in {CONFIG_NAME} beside {path} normalizes images with mean and "
            f"std {config.get('mean')} and {config.get('std')}; expected 0.5 for both, because "
            "BiT reads pixels in [-1, 1]. Prepare the images yourself."
        )
    return EvalTransform(crop, resize, interpolation, config.get("crop_mode") == "squash")
