"""The interval against SciPy; which published figures stand beside a measurement, and why not."""

import json
import math
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
from scipy.stats import binomtest

from bitzoo.catalogue.evaluation_sets import EVALUATION_SETS, TASK_SETS
from bitzoo.catalogue.model_info import Identity, ModelInfo, Provenance
from bitzoo.catalogue.registry import get_spec
from bitzoo.data.tfds_datasets import TfdsSource
from bitzoo.inference.intervals import wilson
from bitzoo.inference.metrics import Evaluation
from bitzoo.inference.published import Judged, names_of_source, published_about
from bitzoo.zoo.info import transform_of

INFO = files("timm.data") / "_info"
ILSVRC = frozenset(INFO.joinpath("imagenet_synsets.txt").read_text().split())
R50 = "BiT-M-R50x1-ILSVRC2012"


@pytest.mark.parametrize(
    ("hits", "count"), [(0, 10), (10, 10), (1, 1), (0, 1), (2, 4), (40_193, 50_000), (3, 7_500)]
)
def test_the_interval_is_scipys(hits, count):
    expected = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_of_an_evaluation():
    logits = np.eye(4, dtype=np.float32)[[0, 1, 2, 0, 0]]
    found = Evaluation.of_logits("abcd", np.array([0, 1, 2, 3, 0]), logits)
    expected = binomtest(4, 5).proportion_ci(0.95, method="wilson")
    assert found.interval == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert json.loads(json.dumps(found.to_dict()))["interval"] == list(found.interval)
    assert found.interval_top5[1] == 1
    assert "95 % interval" in repr(found)
    none = Evaluation.of_logits("abcd", np.zeros(0, int), logits[:0])
    assert all(map(math.isnan, none.interval))
    assert none.to_dict()["interval"] is None


def known(name=R50, **changes):
    return replace(ModelInfo.of_release(get_spec(name)), **changes)


def about(model=None, **changes):
    """The top-1 figures by data set, for ILSVRC-2012's validation set unless changed."""
    model = model or known()
    of = {"sources": (), "classes": ILSVRC, "counted": 50_000, "total": 50_000} | changes
    found = published_about(model, Judged(**of), transform_of(model))
    return {figure.dataset: figure for figure in found if figure.name == "top-1"}


class TestPublished:
    def test_the_very_images_and_pixels(self):
        (figure,) = about(sources=("tfds:imagenet2012@validation",)).values()
        assert (figure.value, figure.resolution, figure.differs) == (80.386, 448, ())
        assert "evaluated by timm" in figure.sentence
        assert figure.to_dict()["differs"] == []

    def test_as_many_images_may_be_others(self):
        (figure,) = about().values()
        assert figure.dataset == "ILSVRC-2012"
        (reason,) = figure.differs
        assert "whether they are the same was not checked" in reason

    def test_fewer_images_are_others(self):
        (figure,) = about(counted=49_999).values()
        assert "It is of 50,000 images and these are 49,999" in figure.sentence
        (figure,) = about(counted=800, total=800).values()
        assert "these are 800" in figure.sentence

    def test_other_classes_have_no_figure(self):
        assert about(classes=frozenset(sorted(ILSVRC)[:12]), counted=600, total=600) == {}

    def test_as_many_as_another_set_of_these_classes_are_not_ilsvrcs(self):
        assert "ILSVRC-2012" not in about(counted=10_000, total=10_000)

    def test_other_labels_are_another_figure(self):
        assert "ILSVRC-2012" not in about(counted=46_837, real=True)

    def test_other_pixels(self):
        (figure,) = published_about(
            known(),
            Judged(("tfds:imagenet2012@validation",), ILSVRC, 50_000, 50_000),
            replace(transform_of(known()), crop=224, resize=256),
        )[:1]
        assert figure.differs == ("It is at 448 px, here are 224 px.",)

    def test_a_file_that_only_has_the_name(self):
        found = about(known(identity=Identity(R50, "file name", "x.npz")))
        assert "known only so: " in found["ILSVRC-2012"].sentence

    def test_rounded_weights(self):
        rounded = Provenance("x.npz", dtype="float16", rounded_from="float32")
        assert "rounded or scaled" in about(known(provenance=rounded))["ILSVRC-2012"].sentence

    def test_figures_of_networks_fine_tuned_from_it_are_not_its_own(self):
        upstream = known("BiT-M-R50x1")
        assert any(metric.dataset == "ILSVRC-2012" for metric in upstream.spec.metrics)
        assert about(upstream, sources=("tfds:imagenet2012@validation",)) == {}

    def test_both_of_two_sources(self):
        found = published_about(
            known("BiT-R50x1_224"),
            Judged(("tfds:imagenet2012@validation",), ILSVRC, 50_000, 50_000),
            transform_of(known("BiT-R50x1_224")),
        )
        values = [figure.value for figure in found if figure.name == "top-1"]
        assert {82.8, 82.82} <= set(values)


class TestSources:
    @pytest.mark.parametrize(
        ("source", "split", "names"),
        [
            ("tfds:imagenet2012@validation", "all", ["tfds:imagenet2012@validation"]),
            ("tfds:imagenet2012:5.1.0@validation", "all", ["tfds:imagenet2012@validation"]),
            ("tfds:imagenet2012", "val", ["tfds:imagenet2012@val", "tfds:imagenet2012@validation"]),
            ("tfds:dtd", "test", ["tfds:dtd@test"]),
            (TfdsSource("sun397/tfds", "test"), "all", ["tfds:sun397/tfds@test"]),
            ("folder", "all", []),
            (([], []), "all", []),
        ],
    )
    def test_by_name(self, source, split, names):
        assert list(names_of_source(source, split)) == names

    def test_every_task_has_one(self):
        assert {data.title for data in TASK_SETS.values()} <= {d.title for d in EVALUATION_SETS}
        assert all(data.sources for data in TASK_SETS.values())
        titles = [data.title for data in EVALUATION_SETS]
        assert len(set(titles)) == len(titles)
