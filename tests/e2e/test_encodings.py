"""In every encoding the same drawings are learnt as well as from 8-bit PNG, or are refused.

`tests/unit/test_dark_images.py` compares their pixels, which takes seconds.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import make_checkpoint, write_npz
from image_encodings import ENCODINGS, SAME, Encoding
from images import digits
from PIL import Image

import bitzoo
from bitzoo.data.problems import DatasetError

pytestmark = [pytest.mark.full_size, pytest.mark.timeout(600)]  # a run each: some minutes

CLASSES, TRAIN, VAL, SIZE = (0, 1, 4), 24, 20, 32
WITHIN = 0.05
"""Of the accuracy from 8-bit PNG."""


def write_set(encoding: Encoding, root: Path) -> Path:
    images, labels = digits()
    for digit in CLASSES:
        for number, index in enumerate(np.flatnonzero(labels == digit)[: TRAIN + VAL]):
            folder = root / ("val" if number < VAL else "train") / str(digit)
            folder.mkdir(parents=True, exist_ok=True)
            large = Image.fromarray(images[index]).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            encoding.save(np.asarray(large), folder / f"{index:04}")
    return root


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("encodings")
    write_npz(folder / "small.npz", make_checkpoint())

    def run(encoding: Encoding, root: Path) -> float:
        result = bitzoo.finetune(
            folder / "small.npz",
            write_set(encoding, root / "data"),
            root / "run",
            pretrained=False,
            freeze=True,
            steps=100,
            lr=0.003,
            batch_size=24,
            resolution=(SIZE, SIZE),
            flip=False,
            mixup=0,
            workers=1,
        )
        assert result.evaluation is not None
        assert result.evaluation.count == VAL * len(CLASSES)
        again = bitzoo.evaluate(root / "run", root / "data", workers=1)
        assert again.top1 == result.evaluation.top1
        return result.evaluation.top1

    return run


@pytest.fixture(scope="module")
def reference(train: Any, tmp_path_factory: pytest.TempPathFactory) -> float:
    found: float = train(ENCODINGS[0], tmp_path_factory.mktemp("reference"))
    assert found >= 0.9
    return found


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: encoding.name)
def test_learnt_as_well_or_refused(
    encoding: Encoding, train: Any, reference: float, tmp_path: Path
) -> None:
    if encoding.outcome == SAME:
        assert train(encoding, tmp_path) >= reference - WITHIN
    else:
        with pytest.raises(DatasetError, match=re.escape(encoding.outcome)):
            train(encoding, tmp_path)
