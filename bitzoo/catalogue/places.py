"""Other places where the catalogue's models were published: TensorFlow Hub, now Kaggle. Data only.

A handle is the path of an address: ``google/bit/m-r50x1`` in
``https://tfhub.dev/google/bit/m-r50x1/1``.
Nothing was fetched from there where this was written, so every place is unverified.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

_GOOGLE = "github.com/tensorflow/tfhub.dev, assets/docs/google/models/bit"
_SAYAK = "tfhub.dev/sayakpaul, from sayakpaul/BiT-jax2tf"
_TFHUB = "https://tfhub.dev/"
_ADDRESS = re.compile(
    r"(?:https?://(?:www\.)?(?:tfhub\.dev|kaggle\.com/models)/)?(?P<handle>.+?)(?:/1)?/?"
)
_KAGGLE = re.compile(r"google/bit/(?:frameworks/)?tensorflow2/(?:variations/)?(?P<model>.+?)", re.I)
_PAPER_ARCHS = ("R50x1", "R50x3", "R101x1", "R101x3", "R152x4")


@dataclass(frozen=True)
class Place:
    """A module elsewhere with the numbers of a catalogue entry.

    Attributes:
        handle: Its path at TensorFlow Hub, without the version.
        url: Its address there.
        kaggle: Its path at Kaggle, where the address leads now; empty if that is not known.
        outputs: ``logits``, or ``features`` for a module without a head.
        images: The range of the pixels that it takes.
        source: Where the facts come from.
        unverified: What nobody has checked.
    """

    handle: str
    url: str
    kaggle: str
    outputs: str
    images: str
    source: str
    unverified: str


def places_of(name: str) -> tuple[Place, ...]:
    """Return the other places of a catalogue entry."""
    return _PLACES.get(name, ())


@functools.cache
def names_by_handle() -> dict[str, str]:
    """Return handle, lower case -> catalogue name."""
    return {place.handle: name for name, places in _PLACES.items() for place in places}


def handle_of(text: str) -> str:
    """Return the handle in an address or path of TensorFlow Hub or Kaggle, in lower case."""
    match = _ADDRESS.fullmatch(text.strip().lower())
    handle = match["handle"] if match else ""
    kaggle = _KAGGLE.fullmatch(handle)
    if kaggle is None:
        return handle
    model = re.sub(
        r"-(ilsvrc2012|imagenet21k)-classification$", r"/\1_classification", kaggle["model"]
    )
    return f"google/bit/{model}"


def _google(kind: str, arch: str, task: str = "") -> Place:
    module = f"{kind}-{arch.lower()}"
    handle = f"google/bit/{module}" + (f"/{task}" if task else "")
    variation = module + (f"-{task.replace('_', '-')}" if task else "")
    return Place(
        handle=handle,
        url=f"{_TFHUB}{handle}/1",
        kaggle=f"google/bit/TensorFlow2/{variation}/1",
        outputs="logits" if task else "features",
        images="[0, 1], scaled to [-1, 1] inside",
        source=_GOOGLE,
        unverified="that its numbers are those of the file here, and its path at Kaggle",
    )


def _sayak(module: str, outputs: str) -> Place:
    handle = f"sayakpaul/{module}"
    return Place(
        handle=handle,
        url=f"{_TFHUB}{handle}/1",
        kaggle="",
        outputs=outputs,
        images="[-1, 1], unlike Google's own modules",
        source=_SAYAK,
        unverified="that its numbers are those of the file here, which its author converted",
    )


def _all() -> dict[str, tuple[Place, ...]]:
    places: dict[str, tuple[Place, ...]] = {}
    for arch in _PAPER_ARCHS:
        ilsvrc, full = "ilsvrc2012_classification", "imagenet21k_classification"
        places[f"BiT-S-{arch}"] = (_google("s", arch), _google("s", arch, ilsvrc))
        places[f"BiT-M-{arch}"] = (_google("m", arch), _google("m", arch, full))
        places[f"BiT-M-{arch}-ILSVRC2012"] = (_google("m", arch, ilsvrc),)
    for size in (224, 384):
        places[f"BiT-R152x2_T_{size}"] = (
            _sayak(f"bit_resnet152x2_{size}_classification", "logits"),
            _sayak(f"bit_r152x2_{size}_feature_extraction", "features"),
        )
    for size in (224, 160):
        places[f"BiT-R50x1_{size}"] = (
            _sayak(f"distill_bit_resnet50x1_{size}_classification", "logits"),
            _sayak(f"distill_bit_r50x1_{size}_feature_extraction", "features"),
        )
    return places


_PLACES = _all()
