"""Runs whose cache or files are changed under them; and runs on data that were checked before."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import make_checkpoint, write_npz
from click.testing import CliRunner
from PIL import Image

import bitzoo
from bitzoo.cli.main import app
from bitzoo.data import kept_checks
from bitzoo.errors import UsageError
from bitzoo.runs.config import Callbacks

STEPS, COUNT = 6, 12


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint, and two classes of noise in files that have not changed for a while."""
    monkeypatch.setattr(kept_checks, "TICK_NS", 0)
    write_npz(tmp_path / "small.npz", make_checkpoint())
    random = np.random.default_rng(0)
    for number in range(COUNT):
        path = tmp_path / "data" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 44, 3), np.uint8)).save(path)
    return tmp_path


class Run:
    """A run of few steps with a cache; `meddle` is called after the second."""

    def __init__(self, place: Path, name: str, meddle: Any = None, **options: Any) -> None:
        self.tasks: list[str] = []
        self.said: list[str] = []
        self.cache = place / f"cache-{options.pop('cache', name)}"
        os.environ["BITZOO_CACHE"] = str(self.cache)

        def on_step(metrics: Any) -> None:
            if meddle is not None and metrics["step"] == 2:
                meddle(self)

        result = bitzoo.finetune(
            place / "small.npz",
            place / "data",
            place / name,
            steps=STEPS,
            batch_size=4,
            mixup=0.1,
            resolution=(36, 32),
            val_fraction=0.25,
            eval_every=0,
            checkpoint_every=0,
            micro_batch=2,
            workers=1,
            device="cpu",
            channels_last=False,
            log="none",
            progress=lambda task, done, total: self.tasks.append(task),
            callbacks=Callbacks(say=self.said.append, on_step=on_step),
            **options,
        )
        self.evaluation = result.evaluation
        (weights,) = (place / name).glob("*.safetensors")
        self.weights = weights.read_bytes()

    @property
    def shards(self) -> list[Path]:
        return sorted(self.cache.glob("pixels/*/*.rows"))


def poison(run: Run) -> None:
    """Turn every pixel of the cache, in place."""
    for shard in run.shards:
        content = np.frombuffer(shard.read_bytes(), np.uint8).copy()
        content[: -36 * (len(content) // (32 * 32 * 3))] ^= 0xFF
        with shard.open("r+b") as file:
            file.write(content.tobytes())


def test_rows_that_change_under_a_run_are_not_trained_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BITZOO_CACHE", "")  # restored at the end
    plain = Run(place, "plain")
    assert "decoding" not in plain.tasks  # the check made the rows of both splits
    assert len(plain.shards) == 2
    assert not any("Not read again" in text for text in plain.said)
    poisoned = Run(place, "poisoned", poison)
    assert poisoned.weights == plain.weights
    assert poisoned.evaluation is not None
    assert plain.evaluation is not None
    np.testing.assert_array_equal(poisoned.evaluation.losses, plain.evaluation.losses)
    told = [r.getMessage() for r in caplog.records if r.name == "bitzoo.data.pixel_cache"]
    assert [text[:25] for text in told] == ["Removed the damaged shard"] * 2
    assert poisoned.shards == []

    def replace_all(run: Run) -> None:
        poison(run)
        for path in (place / "data").glob("*/*.png"):
            Image.new("RGB", (40, 44), "red").save(path)

    with pytest.raises(UsageError, match=r"[ab]/\d+\.png: the image has changed since it was"):
        Run(place, "replaced", replace_all)


def test_a_second_run_reads_no_file_to_check_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITZOO_CACHE", "")
    first = Run(place, "first", cache="shared")
    again = Run(place, "again", cache="shared")
    assert again.weights == first.weights
    (said,) = [text for text in again.said if text.startswith("Not read again")]
    assert said.startswith(f"Not read again: {COUNT} images, checked ")
    assert said.endswith(", unchanged by size, time and inode. `recheck=True` reads all.")
    third = Run(place, "third", cache="shared", recheck=True)
    assert not any("Not read again" in text for text in third.said)
    found = [bitzoo.evaluate(place / "first", place / "data", workers=1) for _ in range(2)]
    assert found[1].kept.startswith("Not read again: 3 images, checked ")
    np.testing.assert_array_equal(found[0].losses, found[1].losses)
    for flags, is_said in ([], True), (["--recheck"], False):
        shown = CliRunner().invoke(
            app, ["evaluate", str(place / "first"), "--data", str(place / "data"), *flags]
        )
        assert shown.exit_code == 0, shown.output
        assert ("Not read again: 3 images" in shown.output) == is_said
        assert ("--recheck reads all" in " ".join(shown.output.split())) == is_said
