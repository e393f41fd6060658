"""Features: those of the network, computed once, and again where the cache is damaged or away."""

import logging

import numpy as np
import pytest
import torch
from images import write_digits
from training import Digits, digits, make_model

from bitzoo.data.dataset import Split, read_dataset
from bitzoo.data.image_store import open_pixels
from bitzoo.data.validation import inspect
from bitzoo.inference import feature_cache, features
from bitzoo.inference.features import compute_features, count_missing
from bitzoo.inference.runner import Runner
from bitzoo.models.preprocessing import EvalTransform


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    root = write_digits(tmp_path_factory.mktemp("digits"), per_class=8, classes=range(5))
    return inspect(read_dataset(root), training=False)[0].train


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/features"


@pytest.fixture
def computed(monkeypatch):
    """The numbers of images that networks were given."""
    counts = []

    class Counting(Runner):
        def __call__(self, pixels):
            counts.append(len(pixels))
            return super().__call__(pixels)

    monkeypatch.setattr(features, "Runner", Counting)
    return counts


def open_all(split, size=32):
    return open_pixels(split, size, budget_bytes=0, workers=1)


def expected_of(model, pixels):
    """What comes before the head: by a hook, and by the plain network."""
    images = torch.from_numpy(pixels.take(np.arange(len(pixels))))
    seen = []
    handle = model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.eval()(images.permute(0, 3, 1, 2).float() / 127.5 - 1)
    handle.remove()
    return seen[0].mean((2, 3)).numpy() if seen[0].ndim == 4 else seen[0].numpy()


def files_in(cache):
    return sorted(cache.glob("*/*.features"))


def test_they_are_what_the_head_sees(split, cache):
    model = make_model()
    with open_all(split) as pixels:
        found = compute_features(model, pixels)
        expected = expected_of(model, pixels)
    assert found.dtype == np.float32
    assert found.shape == (40, model.num_features)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert model.num_classes == 10


def test_a_second_call_computes_nothing(split, cache, computed):
    with open_all(split) as pixels:
        first = compute_features(make_model(), pixels)
        again = compute_features(make_model(), pixels)
    assert sum(computed) == 40
    np.testing.assert_array_equal(first, again)
    assert len(files_in(cache)) == 1


def test_a_network_in_another_memory_format_has_the_same(split, cache):
    """As after a pass that was measured in channels last, where 1 x 1 kernels have odd strides."""
    last = make_model().to(memory_format=torch.channels_last)
    with open_all(split) as pixels:
        assert count_missing(last, pixels.contents) == 40
        compute_features(make_model(), pixels)
        assert count_missing(last, pixels.contents) == 0


def test_images_are_known_by_their_contents(split, cache, computed):
    """Some of them, in another order and twice; and only what is new is computed."""
    few = Split("x", tuple(split.examples[number] for number in (7, 3, 3, 30)))
    with open_all(few) as pixels:
        compute_features(make_model(), pixels)
    with open_all(split) as pixels:
        whole = compute_features(make_model(), pixels)
    assert computed == [4, 37]
    with open_all(few) as pixels:
        found = compute_features(make_model(), pixels)
    assert sum(computed) == 41
    np.testing.assert_allclose(found, whole[[7, 3, 3, 30]], rtol=1e-4, atol=1e-5)


def test_what_changes_them_is_part_of_the_key(split, cache, computed):
    calls = []

    def call(model, size: int | EvalTransform = 32, **options):
        with open_all(split, size) as pixels:
            compute_features(model, pixels, **options)
        calls.append(sum(computed) // 40)

    call(make_model())
    headless = make_model(num_classes=3)  # the head is none of them, nor is training mode
    headless.load_state_dict(
        {k: v for k, v in make_model().state_dict().items() if "head" not in k}, strict=False
    )
    call(headless.train())
    assert calls == [1, 1]
    changed = make_model()
    with torch.no_grad():
        changed.norm.bias[0] += 1e-6
    call(changed)
    call(make_model(), 36)
    call(make_model(), EvalTransform(32, 36))
    call(make_model(), dtype=torch.bfloat16)
    call(make_model(), backend="eager", device="cpu")
    assert calls == [1, 1, 2, 3, 4, 5, 5]


@pytest.mark.parametrize("damage", ["a byte", "cut", "empty", "name"])
def test_damage_is_noticed(split, cache, computed, caplog, damage):
    with open_all(split) as pixels:
        first = compute_features(make_model(), pixels)
        (path,) = files_in(cache)
        content = bytearray(path.read_bytes())
        if damage == "a byte":
            content[len(content) // 2] ^= 4
        elif damage == "name":
            path = path.rename(path.with_name("what-7.features"))
        path.write_bytes(content[: {"cut": -5, "empty": 0}.get(damage, len(content))])
        with caplog.at_level(logging.WARNING):
            again = compute_features(make_model(), pixels)
        assert f"Removed the damaged file {path}" in caplog.text
        assert sum(computed) == 80
        np.testing.assert_array_equal(first, again)
        compute_features(make_model(), pixels)
    assert sum(computed) == 80


def test_removing_the_folder_is_safe(split, cache, computed):
    with open_all(split) as pixels:
        compute_features(make_model(), pixels)
        for path in files_in(cache):
            path.unlink()
        compute_features(make_model(), pixels)
    assert sum(computed) == 80


def test_interrupted_work_is_kept(split, cache, computed, monkeypatch):
    monkeypatch.setattr(features, "ROWS", 16)
    monkeypatch.setattr(features, "BATCH", 8)

    def stop(task, done, total):
        assert (task, total) == ("features", 40)
        if done == 24:
            raise KeyboardInterrupt

    with open_all(split) as pixels:
        with pytest.raises(KeyboardInterrupt):
            compute_features(make_model(), pixels, progress=stop)
        assert computed == [8] * 3
        resumed = []
        found = compute_features(make_model(), pixels, progress=lambda *call: resumed.append(call))
    assert [done for _, done, _ in resumed] == [32, 40]
    whole = compute_features(make_model(), Digits(np.stack(open_all(split).rows(range(40)))))
    np.testing.assert_array_equal(found, whole)


def test_contents_that_are_not_known_are_not_cached(cache, computed):
    pixels = Digits(digits(32)[0][:10])
    for _ in range(2):
        compute_features(make_model(), pixels)
    assert sum(computed) == 20
    assert not cache.exists()


def test_no_budget_no_cache(split, cache, computed):
    with open_all(split) as pixels:
        compute_features(make_model(), pixels, budget_bytes=0)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_said(split, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("no folder")
    with open_all(split) as pixels, caplog.at_level(logging.WARNING):
        found = compute_features(make_model(), pixels, cache=tmp_path / "file")
        expected = compute_features(make_model(), pixels, budget_bytes=0)
    np.testing.assert_array_equal(found, expected)
    assert caplog.text.count("Features are not kept") == 1


def test_the_least_recently_used_make_room(tmp_path):
    rows = np.ones((4, 8), np.float32)

    def hashes(first):
        return [bytes([first + number]) * 32 for number in range(4)]

    for number, name in enumerate("abc"):
        feature_cache.write_rows(tmp_path / name, hashes(8 * number), rows)
    (size,) = {path.stat().st_size for path in files_in(tmp_path)}
    out = np.zeros((4, 8), np.float32)
    assert not len(feature_cache.read_rows(tmp_path / "a", hashes(0), out))  # used now
    np.testing.assert_array_equal(out, rows)
    feature_cache.make_room(tmp_path, 2 * size, tmp_path / "c")
    assert [path.parent.name for path in files_in(tmp_path)] == ["a", "c"]
    feature_cache.make_room(tmp_path, 0, tmp_path / "c")
    assert [path.parent.name for path in files_in(tmp_path)] == ["c"]
