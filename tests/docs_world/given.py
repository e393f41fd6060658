"""What a page may assume: name -> what makes it, from real images and in real layouts.

A maker gets the world and the path to make. What is made by a command of bitzoo is made in the
small world, as a reader would have made it.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from images import photo

from bitzoo.catalogue.registry import get_spec
from docs_world import library_data

if TYPE_CHECKING:
    from docs_world.world import World

ANIMALS = ("birds", "cats", "dogs")
PER_CLASS = 24
SYNSETS = ("n01440764", "n01443537", "n02084071", "n02123045")
"""Two fishes, and of dogs and cats; the third is in ImageNet-21k alone."""


def _photos(world: World, path: Path) -> None:
    for number, animal in enumerate(ANIMALS):
        _photographs(path / animal, PER_CLASS, first_seed=1000 * number)


def _photographs(folder: Path, count: int, first_seed: int, name: str = "{:03}.jpg") -> None:
    """Pieces of two photographs, each with noise of its own, so that no two are alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        photo(first_seed + number, 72 + number % 8, 60).save(folder / name.format(number))


def _photos_csv(world: World, path: Path) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "person"))
        for animal in ANIMALS:
            for number in range(PER_CLASS):
                rows.writerow((f"photos/{animal}/{number:03}.jpg", animal, number // 4))


def _one_photo(seed: int) -> Callable[[World, Path], None]:
    return lambda world, path: photo(seed, 200, 150).save(path)


def _imagenet(world: World, path: Path) -> None:
    for number, synset in enumerate(name for name in SYNSETS if name != "n02084071"):
        name = f"ILSVRC2012_val_0000{number}{{:03}}.JPEG"
        _photographs(path / synset, 3, 5000 + 100 * number, name)


def _released(name: str) -> Callable[[World, Path], None]:
    def make(world: World, path: Path) -> None:
        world.bucket.read(get_spec(name).files["npz"])
        shutil.copy(world.bucket.folder / get_spec(name).files["npz"], path)

    return make


def _module(world: World, path: Path) -> None:
    folder = get_spec(path.stem).files["tfhub"]
    world.bucket.read(folder + "saved_model.pb")
    shutil.copytree(world.bucket.folder / folder, path)


def _by(*command: str, given: Sequence[str] = ()) -> Callable[[World, Path], None]:
    """A maker that runs a command, which is to write what is to be made."""

    def make(world: World, path: Path) -> None:
        key = path.relative_to(world.store)
        own = world.store / "made" / str(key).replace("/", "-")
        folder = own / "work"
        folder.mkdir(parents=True)
        world.furnish(folder, own, tuple(given))
        environment = world.environment(own) | world.processes(tuple(given))
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
        (folder / key).rename(path)

    return make


def _nothing(world: World, path: Path) -> None:
    """For what is only said, as `tensorflow`."""


MAKERS: dict[str, Callable[[World, Path], None]] = {
    **library_data.MAKERS,
    "tensorflow": _nothing,
    "photos": _photos,
    "photos.csv": _photos_csv,
    "new.jpg": _one_photo(7000),
    "photo.jpg": _one_photo(7001),
    "imagenet": _imagenet,
    "bit_m_r50x1.npz": _released("BiT-M-R50x1"),
    "bit_m_r50x1.safetensors": _by(
        "bitzoo", "convert", "bit_m_r50x1.npz", given=["bit_m_r50x1.npz"]
    ),
    "in1k.safetensors": _by(
        "bitzoo", "convert", "BiT-M-R50x1-ILSVRC2012", "--dst", "in1k.safetensors"
    ),
    "BiT-M-R50x1-run0-dtd.tfhub": _module,
    "runs/photos": _by(
        *("bitzoo", "finetune", "BiT-M-R50x1", "--data", "photos/", "--out", "runs/photos"),
        given=["photos"],
    ),
}
