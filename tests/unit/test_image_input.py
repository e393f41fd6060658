"""Images that the network cannot read, in our words: models, and all that `optimize` makes."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import TINY, as_timm, make_checkpoint

from bitzoo.errors import LayoutError
from bitzoo.inference import deviation, optimize
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT, FeatureExtractor, fold

BACKENDS = ("eager", "compile", "onnxruntime", "openvino")
PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), np.uint8))
IMAGES = PIXELS.float() / 127.5 - 1


@cache
def classifier():
    model = BiT(Architecture(TINY, 0.5), 10)
    state = as_timm(make_checkpoint(TINY, 0.5, 10))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return model.eval()


@cache
def readers(name):
    made: dict[str, Callable[[], Any]] = {
        "classifier": classifier,
        "folded": lambda: fold(classifier()),
        "features": lambda: FeatureExtractor(Architecture(TINY, 0.5)).eval(),
        "half": lambda: BiT(Architecture(TINY, 0.5), 10).half().eval(),
    }
    return made[name]() if name in made else optimize(classifier(), backend=name)


LAYOUT = r"Images must be \(batch, channels, height, width\) with 3 channels, RGB as "
SCALE = r"Scale pixels \(0 to 255\): images\.float\(\) / 127\.5 - 1\.$"
FOR_ALL = [
    (PIXELS, rf"in \[-1, 1\], found uint8\. {SCALE}"),
    (PIXELS.long(), rf"found int64\. {SCALE}"),
    (PIXELS > 127, rf"found bool\. {SCALE}"),
    (IMAGES.permute(0, 2, 3, 1), r"\(2, 64, 64, 3\)\. Put channels first: images\.permute\(0, 3, "),
    (IMAGES[0], r"found shape \(3, 64, 64\)\. Add the batch dimension: images\[None\]\.$"),
    (IMAGES[:, :1], r"found shape \(2, 1, 64, 64\)\. Create the model with other `in_chans`"),
    (IMAGES.flatten(), r"found shape \(24576,\)\.$"),
    (IMAGES.numpy(), r"found a numpy\.ndarray, not a tensor\. .* torch\.from_numpy\(images\)\.$"),
    ([IMAGES[0]], r"found a builtins\.list, not a tensor\. .* torch\.stack\(images\)\.$"),
]


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["classifier", "folded", "features", "half", *BACKENDS])
@pytest.mark.parametrize(("images", "says"), FOR_ALL)
def test_what_nothing_reads(reader, images, says):
    with pytest.raises(LayoutError, match=LAYOUT + ".*" + says) as error, torch.no_grad():
        readers(reader)(images)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reader", ["classifier", "folded", "features"])
def test_floats_of_another_width_than_the_kernels(reader, dtype):
    name = str(dtype).removeprefix("torch.")
    says = (
        rf"RGB as float32 in .*, found {name}\. Convert images\.to\(torch\.float32\), or the "
        rf"model: model\.to\(torch\.{name}\)\.$"
    )
    with pytest.raises(LayoutError, match=says):
        readers(reader)(IMAGES.to(dtype))


def test_narrow_kernels_ask_for_narrow_images():
    with pytest.raises(LayoutError, match=r"RGB as float16 in .* found float32\. .*torch\.float16"):
        readers("half")(IMAGES)
    assert readers("half")(IMAGES.half()).shape == (2, 10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_an_optimized_model_converts_floats(dtype):
    found = readers("eager")(IMAGES.to(dtype))
    assert torch.equal(found, readers("eager")(IMAGES.to(dtype).float()))


def test_autocast_converts_halves_but_nothing_else():
    model = classifier()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(IMAGES.bfloat16()), model(IMAGES.bfloat16().float()))
        for other in (IMAGES.double(), PIXELS):
            with pytest.raises(LayoutError, match=r"found (float64|uint8)"):
                model(other)


def test_words_for_other_channels():
    gray = BiT(Architecture(TINY, 0.5, 1), 10)
    with pytest.raises(LayoutError, match=r"with 1 channels, 1 channel as float32 in \[-1, 1\]"):
        gray(IMAGES)
    with pytest.raises(LayoutError, match="5 channels as floats"):
        optimize(BiT(Architecture(TINY, 0.5, 5), 10))(IMAGES)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_images_give_no_logits(backend):
    found = readers(backend)(IMAGES[:0])
    assert (found.shape, found.dtype) == ((0, 10), torch.float32)
    with pytest.raises(LayoutError, match=r"must have pixels, found shape \(2, 3, 0, 64\)"):
        readers(backend)(IMAGES[:, :, :0])


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (PIXELS.float(), "from 0 to 255"),
        (IMAGES / 0.225, "from -4.444 to 4.444"),
        (IMAGES * 1.4, None),  # as after interpolation in floats
        (IMAGES, None),
    ],
)
def test_values_of_another_scale_are_told_once(caplog, images, found):
    optimized = optimize(classifier())
    deviation(optimized, classifier())  # its images are not the user's first
    with caplog.at_level(logging.WARNING):
        optimized(images)
        optimized(images)
    said = [record.getMessage() for record in caplog.records]
    expected = (
        f"Images must be RGB in [-1, 1], found values {found}: the network was not trained for "
        "them. Scale pixels (0 to 255): images.float() / 127.5 - 1."
    )
    assert said == ([expected] if found else [])
