"""Pre-training from shards: the run of the same images as files, and of data with bad images."""

from __future__ import annotations

import tarfile

import pytest
import torch
from images import write_digits
from safetensors.torch import load_file

import bitzoo
from bitzoo.data.problems import DatasetError
from bitzoo.runs import one_run
from bitzoo.runs.config import Callbacks


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path):
    return write_digits(tmp_path / "digits", per_class=8, classes=[0, 1, 2])


def packed(folder, shards=2):
    """Write the files of a folder into shards, in the order in which folders are listed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for shard in range(shards):
        with tarfile.open(folder.parent / f"s-{shard}.tar", "w") as tar:
            half = len(files) // shards
            for path in files[shard * half : (shard + 1) * half]:
                key = f"{path.parent.name}-{path.stem}"
                tar.add(path, f"{key}{path.suffix}")
                label = folder.parent / "label"
                label.write_text(path.parent.name)
                tar.add(label, f"{key}.cls")
    return f"tar:{folder.parent}/s-{{0..{shards - 1}}}.tar"


def train(source, out, **options):
    options = {"steps": 4, "val_fraction": 0.25, **options}
    return bitzoo.pretrain(
        *("R(1,1,1,1)x0.5", source, out),
        batch_size=8,
        resolution=32,
        eval_every=0,
        log="none",
        workers=1,
        device="cpu",
        **options,
    )


def weights(out):
    return load_file(out / "model.safetensors")


def assert_equal(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_shards_train_as_the_same_files(tmp_path, folder, monkeypatch):
    source = packed(folder)
    ours = train(source, tmp_path / "shards")
    theirs = train(folder, tmp_path / "files")
    assert_equal(weights(tmp_path / "shards"), weights(tmp_path / "files"))
    assert ours.evaluation.loss == theirs.evaluation.loss
    assert (tmp_path / "shards" / "split.csv").is_file()
    monkeypatch.setattr(one_run, "CHECKED_BEFORE", 0)
    said: list[str] = []
    lazy = train(source, tmp_path / "lazy", callbacks=Callbacks(say=said.append))
    assert_equal(weights(tmp_path / "lazy"), weights(tmp_path / "files"))
    assert lazy.evaluation.loss == theirs.evaluation.loss
    assert lazy.leakage is None
    assert not (tmp_path / "lazy" / "split.csv").exists()
    assert any("Not looked for" in sentence for sentence in said)


def test_bad_images_are_replaced_and_a_resumed_run_is_the_same(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(one_run, "CHECKED_BEFORE", 0)
    monkeypatch.setattr("bitzoo.data.lazy_validation.SAMPLE", 1)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files[3:20:4]:
        path.write_bytes(path.read_bytes()[:70])
    source = packed(folder)
    with pytest.raises(DatasetError, match=r"not checked in full.*skip_bad=True"):
        train(source, tmp_path / "ends")
    said: list[str] = []
    train(source, tmp_path / "whole", skip_bad=True, callbacks=Callbacks(say=said.append))
    met = [sentence for sentence in said if "the next image stands in" in sentence]
    assert 1 <= len(met) <= 5

    def stop(metrics):
        if metrics["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            source,
            tmp_path / "cut",
            skip_bad=True,
            checkpoint_every=1,
            callbacks=Callbacks(on_step=stop),
        )
    bitzoo.resume(tmp_path / "cut")
    assert_equal(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
