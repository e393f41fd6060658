"""Data sets as other libraries leave them on a machine, and shards: small, of real images.

Names, classes and layouts are those of the real data sets, the images pieces of two photographs.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from images import photo

if TYPE_CHECKING:
    from docs_world.world import World

CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
BEANS = ("angular_leaf_spot", "bean_rust", "healthy")
BEANS_AT = "AI-Lab-Makerere___beans/default/0.0.0/90c755fb6db1c0ccdad02e897a37969dbf070bed"
"""Where `datasets` keeps what it has loaded: the name, the config, the commit."""
TEXTURES = ("banded", "dotted", "woven")


def jpeg(seed: int, width: int = 48, height: int = 40) -> bytes:
    """A small photograph: the bytes of its file."""
    content = io.BytesIO()
    photo(seed, width, height).save(content, "JPEG")
    return content.getvalue()


def make_tfds(world: World, path: Path) -> None:
    """CIFAR-10 and DTD, as TFDS prepares them: DTD with the numbers that VTAB takes from it."""
    import tensorflow_datasets as tfds
    from tfds_builders import prepare
    from vtab_records import prepare as prepare_of_vtab

    features = {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=list(CIFAR10)),
    }
    splits = {
        split: [
            {"id": f"{split}_{number:05}", "image": jpeg(first + number), "label": number % 10}
            for number in range(count)
        ]
        for split, count, first in (("train", 120, 10_000), ("test", 40, 11_000))
    }
    with _finished(path) as folder:
        keys = ("image", "label")
        prepare(folder, splits, "cifar10", "3.0.2", features=features, supervised_keys=keys)
        prepare_of_vtab(folder, "dtd")


def make_hf(world: World, path: Path) -> None:
    """Beans, as `load_dataset` leaves it in its cache."""
    import datasets

    features = datasets.Features(
        image_file_path=datasets.Value("string"),
        image=datasets.Image(),
        labels=datasets.ClassLabel(names=list(BEANS)),
    )
    with _finished(path) as folder:
        source = folder / "source"
        source.mkdir()
        for split, count, first in (("train", 60, 12_000), ("validation", 12, 13_000)):
            names = [f"{split}/{BEANS[number % 3]}/{number}.jpg" for number in range(count)]
            images = [{"bytes": jpeg(first + number), "path": None} for number in range(count)]
            columns = {
                "image_file_path": names,
                "image": images,
                "labels": [number % 3 for number in range(count)],
            }
            table = datasets.Dataset.from_dict(columns, features=features)
            table.to_parquet(source / f"{split}.parquet")
        datasets.load_dataset("parquet", data_dir=str(source), cache_dir=str(folder))
        (built,) = filter(Path.is_dir, folder.glob("parquet/*/*/*"))
        place = folder / BEANS_AT
        place.parent.mkdir(parents=True)
        built.rename(place)
        for table_file in place.glob("parquet-*"):
            table_file.rename(place / table_file.name.replace("parquet-", "beans-"))


def make_torchvision(world: World, path: Path) -> None:
    """DTD, as torchvision unpacks it: images by class, and lists of each split's."""
    with _finished(path) as root:
        folder = root / "dtd" / "dtd"
        lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for number, name in enumerate(TEXTURES):
            (folder / "images" / name).mkdir(parents=True)
            for one in range(12):
                file = f"{name}/{name}_{one:04}.jpg"
                (folder / "images" / file).write_bytes(jpeg(14_000 + 100 * number + one))
                lists[("train", "val", "test", "train")[one % 4]].append(file)
        (folder / "labels").mkdir()
        for split, files in lists.items():
            (folder / "labels" / f"{split}1.txt").write_text("\n".join(files) + "\n")


def make_shards(world: World, path: Path) -> None:
    """Tar files in WebDataset's layout: four of train, one of val."""
    with _finished(path) as folder:
        shards = [(f"train-{number:03}.tar", 15_000 + 100 * number) for number in range(4)]
        for name, first in [*shards, ("val-000.tar", 16_000)]:
            with tarfile.open(folder / name, "w") as tar:
                for number in range(12):
                    label = ("cat", "dog", "bird")[number % 3].encode()
                    for ending, content in (("jpg", jpeg(first + number)), ("cls", label)):
                        member = tarfile.TarInfo(f"{name[:-4]}-{number:03}.{ending}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))


@contextmanager
def _finished(path: Path) -> Iterator[Path]:
    """Yield a folder that gets its name when all is in it."""
    folder = path.with_name(path.name + ".part")
    folder.mkdir(parents=True)
    yield folder
    folder.rename(path)


MAKERS: dict[str, Callable[[World, Path], None]] = {
    "tfds": make_tfds,
    "hf": make_hf,
    "torchvision": make_torchvision,
    "shards": make_shards,
}
"""As `docs_world.given.MAKERS`."""
