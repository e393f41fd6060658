"""Charts, the report page and the model card: exact numbers, hostile names, nothing loaded."""

import ast
import base64
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from huggingface_hub import ModelCard, metadata_load
from PIL import Image
from scipy.stats import binomtest

from bitzoo.catalogue.model_info import Identity, ModelInfo
from bitzoo.inference.metrics import Evaluation
from bitzoo.runs.report.html import Mistake, RunRecord, find_mistakes, write_card, write_report
from bitzoo.runs.report.run_summary import wilson_interval
from bitzoo.runs.report.svg import Curve, confusion_matrix, line_chart, smoothed

HOSTILE = (
    "<script>alert(1)</script>",
    'x" onload="alert(2)',
    "]]>&amp;{{ 7 * 7 }}",
    "a|b *c* _d_ `e`",
    "line\nbreak",
    "control\x07 and \udcff",
    "猫" * 30,
)
FOLDER = 'runs/it\'s "here" <b>'


def evaluation_of(classes, outcomes):
    """From (true, predicted) pairs; the predicted class gets three quarters or so."""
    labels, predicted = np.array(outcomes).T
    logits = 2 * np.eye(len(classes), dtype=np.float32)[predicted]
    return Evaluation.of_logits(classes, labels, logits)


BIRDS = ("robin", "wren", "magpie", "finch", "tit", "owl", "kite")
# robin 3 of 4, wren 1 of 3 (predicted as magpie twice), magpie 1 of 1, finch 2 of 2, no others.
OUTCOMES = [(0, 0)] * 3 + [(0, 1), (1, 1), (1, 2), (1, 2), (2, 2), (3, 3), (3, 3)]


def make_run(**changes):
    history: list[dict[str, Any]] = [
        {"event": "start", "note": "no step at all"},
        *(
            {"event": "train", "step": s, "loss": 2 - s / 100, "lr": 0.003, "images_per_s": 80 + s}
            for s in range(100)
        ),
        {"event": "eval", "step": 50, "top1": 0.5, "top5": 0.8, "loss": 1.5},
        {"event": "eval", "step": 100, "top1": 0.7, "top5": 0.9, "loss": 1.25},
    ]
    run = RunRecord(
        title="Garden birds",
        model="BiT-M-R50x1",
        architecture="R50x1",
        image_size=128,
        classes=BIRDS,
        dataset="photos",
        data=[("training images", "3,201"), ("source", "photos/")],
        recipe=[("rule", "BiT-HyperRule (paper)"), ("batch_size", "512")],
        options={"val_fraction": 0.1, "compile": False, "lr": None, "resolution": [160, 128]},
        history=history,
        evaluation=evaluation_of(BIRDS, OUTCOMES),
        versions={"torch": "9.9.9"},
        folder="runs/photos",
        base="BiT-M-R50x1",
        info=ModelInfo("R50x1", 7, base=Identity("BiT-M-R50x1", "google"), license="apache-2.0"),
    )
    return replace(run, **changes)


class Page(HTMLParser):
    """What a browser would make of a page: its elements, its text, its tables."""

    def __init__(self, text):
        super().__init__()
        self.source, self.tags, self.texts, self.rows, self.pres = text, [], [], [], []
        self.open_pre = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "pre":
            self.pres.append("")
        self.open_pre = tag == "pre"

    def handle_endtag(self, tag):
        self.open_pre = False
        if tag == "table":
            self.rows.append([])

    def handle_data(self, data):
        self.texts.append(data)
        if self.open_pre:
            self.pres[-1] += data
        elif self.rows and self.rows[-1] and data.strip():
            self.rows[-1][-1] += data.strip()

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))

    @property
    def drawings(self):
        return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", self.source, re.S)]


def report(tmp_path, run):
    path = write_report(tmp_path / "report.html", run)
    return Page(path.read_text(encoding="utf-8"))


def card(tmp_path, run):
    path = write_card(tmp_path / "README.md", run)
    return path, path.read_text(encoding="utf-8")


def texts(svg, style):
    return [e for e in svg.iter("text") if style in e.get("class", "").split()]


def polyline(svg, style):
    (line,) = [e for e in svg.iter("polyline") if style in e.get("class").split()]
    return [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]


def height_of(svg, label):
    """Where the value axis has a label; text sits 4 below its grid line."""
    (found,) = [e for e in texts(svg, "end") if e.text == label]
    return float(found.get("y")) - 4


def place_of(svg, label):
    (found,) = [e for e in texts(svg, "mid") if e.text == label]
    return float(found.get("x"))


class TestLineChart:
    def test_points_lie_where_the_axes_say(self):
        curve = Curve("loss", [(0, 3), (5000, 1), (10_000, 2)])
        svg = ET.fromstring(line_chart("Loss", [curve], unit="nats"))
        expected = [
            (place_of(svg, "0"), height_of(svg, "3")),
            (place_of(svg, "10,000") / 2 + place_of(svg, "0") / 2, height_of(svg, "1")),
            (place_of(svg, "10,000"), height_of(svg, "2")),
        ]
        np.testing.assert_allclose(polyline(svg, "a"), expected, atol=0.1)
        assert svg.get("aria-label") == "Loss"
        assert [e.text for e in texts(svg, "label")] == ["step", "nats"]

    def test_logarithmic(self):
        curve = Curve("lr", [(0, 0.0), (1, 1e-3), (2, 1e-5), (3, 1e-4)])
        svg = ET.fromstring(line_chart("lr", [curve], log=True))
        labels = ("10⁻³", "10⁻⁵", "10⁻⁴")
        expected = [height_of(svg, label) for label in labels]
        np.testing.assert_allclose([y for _, y in polyline(svg, "a")], expected, atol=0.1)

    def test_nearly_constant_values_get_a_linear_axis(self):
        svg = ET.fromstring(line_chart("lr", [Curve("lr", [(0, 0.003), (9, 0.003)])], log=True))
        assert "0.003" in [e.text for e in texts(svg, "end")]

    @pytest.mark.parametrize(
        ("values", "ticks"),
        [
            ((0.55, 0.98), [50, 60, 70, 80, 90, 100]),
            ((0.971, 1.0), [97, 98, 99, 100]),
            ((0.1, 0.9), [0, 20, 40, 60, 80, 100]),
            ((1.0, 1.0), [90, 95, 100]),
            ((0.0, 0.0), [0, 50, 100]),
        ],
    )
    def test_percentages_stay_between_0_and_100(self, values, ticks):
        curve = Curve("a", list(enumerate(values)))
        svg = ET.fromstring(line_chart("top-1", [curve], percent=True))
        found = [e.text for e in texts(svg, "end")]
        assert found == [f"{tick} %" for tick in ticks]
        low, high = ticks[0] / 100, ticks[-1] / 100
        bottom, top = height_of(svg, found[0]), height_of(svg, found[-1])
        expected = [bottom + (top - bottom) * (v - low) / (high - low) for v in values]
        np.testing.assert_allclose([y for _, y in polyline(svg, "a")], expected, atol=0.1)

    def test_a_single_point_is_a_dot_that_says_its_value(self):
        svg = ET.fromstring(line_chart("top-1", [Curve("top-1", [(1500, 0.97222)])], percent=True))
        assert list(svg.iter("polyline")) == []
        (dot,) = svg.iter("circle")
        assert dot.find("title").text == "top-1, step 1,500: 97.222 %"
        assert float(dot.get("cx")) == pytest.approx(place_of(svg, "1,500"), abs=0.1)

    def test_gaps_and_nothing(self):
        assert line_chart("none", []) == ""
        assert line_chart("none", [Curve("a", [(0, math.nan)])]) == ""
        assert line_chart("none", [Curve("a", [(0, 0.0), (1, -1.0)])], log=True) == ""
        svg = ET.fromstring(line_chart("a", [Curve("a", [(0, 1), (1, math.inf), (2, 2)])]))
        assert len(polyline(svg, "a")) == 2

    def test_long_runs_keep_their_outline_and_stay_small(self):
        values = np.random.default_rng(0).normal(5, 0.1, 50_000)
        values[31_234], values[777] = 9.0, 1.0
        text = line_chart("loss", [Curve("loss", list(enumerate(values.tolist())), marks=True)])
        svg = ET.fromstring(text)
        heights = [y for _, y in polyline(svg, "a")]
        unit = (height_of(svg, "0") - height_of(svg, "10")) / 10
        assert min(heights) == pytest.approx(height_of(svg, "0") - 9 * unit, abs=0.1)
        assert max(heights) == pytest.approx(height_of(svg, "0") - 1 * unit, abs=0.1)
        assert len(text) < 15_000
        assert list(svg.iter("circle")) == []

    def test_legend_only_where_there_is_a_choice(self):
        one, two = Curve("one", [(0, 1), (1, 2)]), Curve("two", [(0, 2), (1, 1)], "b")
        empty = Curve("none", [])
        assert texts(ET.fromstring(line_chart("x", [one, empty])), "legend") == []
        found = texts(ET.fromstring(line_chart("x", [one, empty, two])), "legend")
        assert [e.text for e in found] == ["one", "two"]


class TestSmoothed:
    def test_worked_example(self):
        # Window 2 halves what is past. From the left 0, (0/2 + 3)/1.5; from the right 1, 3.
        assert smoothed([(5, 0.0), (7, 3.0)], 2) == [(5, 0.5), (7, 2.5)]

    def test_keeps_constants_and_leaves_out_what_is_not_finite(self):
        points = [(0, 4.0), (1, math.nan), (2, 4.0), (3, math.inf), (4, 4.0)]
        assert [step for step, _ in smoothed(points)] == [0, 2, 4]
        assert [value for _, value in smoothed(points)] == pytest.approx([4, 4, 4], rel=1e-15)

    def test_is_neither_early_nor_late(self):
        line = [(step, float(step)) for step in range(1000)]
        middle = smoothed(line)[400:600]
        assert [value for _, value in middle] == pytest.approx(range(400, 600), abs=1e-2)

    def test_nothing(self):
        assert smoothed([]) == []


class TestConfusionMatrix:
    def test_counts_stand_in_their_cells(self):
        matrix = np.array([[9, 1, 0], [0, 0, 0], [0, 12_345, 4]])
        svg = ET.fromstring(confusion_matrix(("a", "b", "c"), matrix))
        cells = [(g.find("title").text, g.find("rect"), g.find("text")) for g in svg.iter("g")]
        assert [title for title, _, _ in cells] == [
            "9 of 10 images of a classified as a",
            "1 of 10 images of a classified as b",
            "12,345 of 12,349 images of c classified as b",
            "4 of 12,349 images of c classified as c",
        ]
        assert [text.text for _, _, text in cells] == ["9", "1", "12k", "4"]
        assert [r.get("class") for _, r, _ in cells] == ["right", "wrong", "wrong", "right"]
        shades = [float(rect.get("fill-opacity")) for _, rect, _ in cells]
        expected = np.sqrt([0.9, 0.1, 12_345 / 12_349, 4 / 12_349])
        np.testing.assert_allclose(shades, expected, rtol=1e-3)
        columns = [float(rect.get("x")) for _, rect, _ in cells]
        rows = [float(rect.get("y")) for _, rect, _ in cells]
        assert columns[1] == columns[2] == columns[0] + 44
        assert columns[3] == columns[0] + 88
        assert rows[2] == rows[3] == pytest.approx(rows[0] + 88, abs=0.1)

    def test_long_names_are_cut_and_told_in_full(self):
        name = "great spotted woodpecker"
        svg = ET.fromstring(confusion_matrix((name, "猫" * 11), np.eye(2, dtype=np.int64)))
        shown = [(e.text, e.find("title")) for e in texts(svg, "end")]
        assert [text for text, _ in shown[:2]] == ["great spotted", "woodpecker"]
        assert shown[2][0] == "猫" * 9 + "…"
        assert shown[2][1].text == "猫" * 11
        names = [e.find("title").text for e in texts(svg, "tick") if e.get("transform")]
        assert names == [name, "猫" * 11]


@pytest.mark.parametrize(
    ("correct", "count"), [(0, 1), (0, 10), (9, 10), (10, 10), (350, 360), (1, 2)]
)
def test_wilson_interval_against_scipy(correct, count):
    expected = binomtest(correct, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, count) == pytest.approx(tuple(expected), abs=1e-12)


class TestRecord:
    def test_series_takes_the_last_of_a_step_and_only_numbers(self):
        history = [
            {"event": "train", "step": 2, "loss": 1.0},
            {"event": "train", "step": 1, "loss": 3.0},
            {"event": "train", "step": 2, "loss": 2.0},  # again, after a resume
            {"event": "train", "step": 3, "loss": None},
            {"event": "train", "step": 4, "loss": math.nan},
            {"event": "eval", "step": 5, "loss": 9.0},
        ]
        assert make_run(history=history).series("train", "loss") == [(1, 3.0), (2, 2.0)]

    def test_mistakes_are_the_worst_with_their_pictures(self):
        class Pixels:
            def take(self, indices):
                return np.stack([np.full((2, 2, 3), index, np.uint8) for index in indices])

        logits = np.log(np.array([[1, 9], [6, 4], [7, 3], [2, 8]], np.float32))
        labels, rows = np.array([0, 1, 1, 1]), np.array([10, 20, 30, 40])
        found = Evaluation.of_logits(("cat", "dog"), labels, logits, rows)
        keys = [f"{index}.png" for index in range(50)]
        first, second = find_mistakes(found, Pixels(), keys, limit=2)
        assert (first.key, first.true, first.predicted) == ("10.png", "cat", "dog")
        assert (second.key, second.true, second.predicted) == ("30.png", "dog", "cat")
        assert (first.score, second.score) == pytest.approx((0.9, 0.7), rel=1e-6)
        assert np.asarray(first.image)[0, 0, 0] == 10
        assert find_mistakes(evaluation_of(BIRDS, [(0, 0)]), Pixels(), keys) == []


class TestReport:
    def test_numbers_are_exact(self, tmp_path):
        page = report(tmp_path, make_run())
        assert "70.00 % top-1 accuracy" in page.text
        assert "7 of 10; 95 % interval 39.7% to 89.2%" in page.text
        found = make_run().evaluation
        # recall 3/4, 1/3, 1/1, 2/2; F1 6/7, 2/5, 2/4, 4/4
        assert "77.08 % balanced accuracy" in page.text
        assert "68.93 % macro F1" in page.text
        assert f"{found.loss:.4f} mean cross-entropy" in page.text
        assert "130 images per second" in page.text  # the median of 80 to 179 is 129.5

    def test_classes_worst_first(self, tmp_path):
        rows = report(tmp_path, make_run()).rows
        start = rows.index(["class", "correct", "accuracy", "", "most often confused with"])
        assert rows[start + 1 : start + 8] == [
            ["wren", "1 of 3", "33.33 %", "", "magpie (2)"],
            ["robin", "3 of 4", "75.00 %", "", "wren (1)"],
            ["finch", "2 of 2", "100.00 %", "", ""],
            ["magpie", "1 of 1", "100.00 %", "", ""],
            ["tit", "0 of 0", "none held out", "", ""],
            ["owl", "0 of 0", "none held out", "", ""],
            ["kite", "0 of 0", "none held out", "", ""],
        ]
        start = rows.index(["class", "classified as", "images"])
        assert rows[start + 1 : start + 3] == [
            ["wren", "magpie", "2 of 3"],
            ["robin", "wren", "1 of 4"],
        ]

    def test_whole_recipe_data_options_and_versions(self, tmp_path):
        rows = report(tmp_path, make_run()).rows
        for row in (
            ["rule", "BiT-HyperRule (paper)"],
            ["training images", "3,201"],
            ["val_fraction", "0.1"],
            ["compile", "no"],
            ["lr", "not given"],
            ["resolution", "160, 128"],
            ["torch", "9.9.9"],
        ):
            assert row in rows

    def test_draws_what_was_recorded(self, tmp_path):
        page = report(tmp_path, make_run())
        titles = [svg.get("aria-label") for svg in page.drawings]
        names = ["Loss", "Accuracy", "Learning rate", "Speed"]
        assert titles == [f"{name} over steps" for name in names] + ["Confusion matrix"]
        dots = [dot.find("title").text for dot in page.drawings[1].iter("circle")]
        assert dots == [
            "top-1, step 50: 50 %",
            "top-1, step 100: 70 %",
        ]
        for svg in page.drawings[:4]:  # all over the same steps
            assert place_of(svg, "100") == place_of(page.drawings[0], "100")

    def test_loads_nothing_and_runs_nothing(self, tmp_path):
        mistake = Mistake(np.zeros((9, 9, 3), np.uint8), "a.png", "wren", "owl", 0.5)
        page = report(tmp_path, make_run(mistakes=[mistake]))
        allowed = {"http-equiv", "content", "name", "lang", "charset", "alt", "scope", "src"}
        allowed |= {"tabindex", "role", "aria-label"}
        html = [(t, a) for t, a in page.tags if t not in {"svg", "g", "text", "line", "rect"}]
        html = [(t, a) for t, a in html if t not in {"circle", "polyline", "title"}]
        assert {t for t, _ in html}.isdisjoint({"script", "link", "iframe", "object", "a", "base"})
        assert {n for _, a in html for n in a} <= allowed | {"class", "style"}
        sources = [a["src"] for _, a in html if "src" in a]
        assert len(sources) == 1
        assert sources[0].startswith("data:image/jpeg;base64,")
        assert "http" not in page.source.replace("http-equiv", "")
        assert "url(" not in page.source
        assert "@import" not in page.source
        (policy,) = [a["content"] for _, a in html if "http-equiv" in a]
        assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

    def test_hostile_names_are_text(self, tmp_path):
        run = make_run(
            title=HOSTILE[0],
            dataset=HOSTILE[1],
            classes=HOSTILE,
            data=[(HOSTILE[0], HOSTILE[2])],
            options={HOSTILE[0]: HOSTILE[1]},
            evaluation=evaluation_of(HOSTILE, OUTCOMES),
            mistakes=[
                Mistake(np.zeros((9, 9, 3), np.uint8), HOSTILE[1], HOSTILE[0], HOSTILE[2], 0.5)
            ],
            folder=FOLDER,
        )
        page = report(tmp_path, run)
        plain = report(tmp_path, make_run(mistakes=run.mistakes))
        assert {t for t, _ in page.tags} == {t for t, _ in plain.tags}
        assert not [n for _, a in page.tags for n in a if n.startswith("on")]
        cells = {cell for row in page.rows for cell in row}
        assert {HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[3], HOSTILE[6]} <= cells
        assert "control\N{REPLACEMENT CHARACTER} and \N{REPLACEMENT CHARACTER}" in cells
        (image,) = [a for t, a in page.tags if t == "img"]
        assert image["alt"] == HOSTILE[1]
        names = [e.text for e in texts(page.drawings[-1], "end")]
        assert names[1:4] == list(HOSTILE[1:4])

    def test_snippets_are_what_they_say(self, tmp_path):
        shell, python, timm = report(tmp_path, make_run(folder=FOLDER)).pres
        strings = [n.value for n in ast.walk(ast.parse(python)) if isinstance(n, ast.Constant)]
        assert FOLDER in strings
        strings = [n.value for n in ast.walk(ast.parse(timm)) if isinstance(n, ast.Constant)]
        assert f"local-dir:{FOLDER}" in strings
        assert shell == """bitzoo predict 'runs/it'"'"'s "here" <b>' photo.jpg"""

    def test_timm_is_named_only_where_it_has_the_network(self, tmp_path):
        page = report(tmp_path, make_run(architecture="R(1,1,1,1)x0.5"))
        assert len(page.pres) == 2
        assert "timm" not in page.source

    def test_thumbnails(self, tmp_path):
        pixels = np.zeros((400, 200, 3), np.uint8)
        pixels[..., 0] = 200
        file = io.BytesIO()
        Image.new("L", (32, 16), 77).save(file, "PNG")
        mistakes = [
            Mistake(pixels, "red", "robin", "owl", 0.987654),
            Mistake(file.getvalue(), "grey", "kite", "wren", 0.5),
        ]
        page = report(tmp_path, make_run(mistakes=mistakes))
        uris = [a["src"].partition(",")[2] for t, a in page.tags if t == "img"]
        red, grey = (Image.open(io.BytesIO(base64.b64decode(uri))) for uri in uris)
        assert (red.format, red.size, grey.size) == ("JPEG", (64, 128), (32, 16))
        np.testing.assert_allclose(red.getpixel((30, 60)), (200, 0, 0), atol=3)
        np.testing.assert_allclose(grey.getpixel((9, 9)), (77, 77, 77), atol=2)
        assert "robin classified as owl, 98.8 % red" in page.text

    def test_a_perfect_run(self, tmp_path):
        page = report(tmp_path, make_run(evaluation=evaluation_of(BIRDS, [(0, 0), (6, 6)])))
        assert "None: every held-out image was classified correctly." in page.text
        assert "Worst mistakes" not in page.text

    def test_nothing_held_out_and_nothing_recorded(self, tmp_path):
        page = report(tmp_path, make_run(evaluation=None, history=[]))
        assert "No images were held out" in page.text
        assert page.drawings == []
        assert "accuracy" not in page.text.lower()

    @pytest.mark.parametrize(("count", "shown"), [(9, False), (10, True)])
    def test_top5_from_ten_classes_on(self, tmp_path, count, shown):
        classes = [f"class {number}" for number in range(count)]
        run = make_run(classes=classes, evaluation=evaluation_of(classes, OUTCOMES))
        assert ("top-5" in report(tmp_path, run).source) is shown
        path, text = card(tmp_path, run)
        assert ("| top-5 accuracy |" in text) is shown
        results = metadata_load(path)["model-index"][0]["results"][0]["metrics"]
        assert ("top_5_accuracy" in [result["type"] for result in results]) is shown

    def test_many_classes(self, tmp_path):
        count = 1100
        classes = [f"n{index:05}" for index in range(count)]
        outcomes = [(index, index // 2) for index in range(count)]
        thumbnails = np.random.default_rng(0).integers(0, 256, (24, 128, 128, 3), dtype=np.uint8)
        run = make_run(
            classes=classes,
            evaluation=evaluation_of(classes, outcomes),
            mistakes=[Mistake(image, "key", "a", "b", 0.5) for image in thumbnails],
        )
        page = report(tmp_path, run)
        assert "All classes" in page.text
        assert "970 more classes" in page.text
        assert "100 classes with higher accuracy are left out" in page.text
        start = page.rows.index(["class", "classified as", "images"])
        assert page.rows[start + 1] == ["n00001", "n00000", "1 of 1"]
        assert len(page.source) < 900_000  # noise is the worst case for JPEG

    def test_replaces_the_file_and_leaves_no_other(self, tmp_path):
        report(tmp_path / "run", make_run(title="before"))
        page = report(tmp_path / "run", make_run(title="after"))
        assert "after" in page.text
        assert "before" not in page.text
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["report.html"]


def tables_of(markdown):
    """The cells of each table row, split at the bars that are not escaped."""
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


class TestCard:
    def test_front_matter(self, tmp_path):
        path, text = card(tmp_path, make_run())
        data = metadata_load(path)
        assert data["license"] == "apache-2.0"
        assert data["library_name"] == "timm"
        assert data["pipeline_tag"] == "image-classification"
        assert data["base_model"] == "timm/resnetv2_50x1_bit.goog_in21k"
        assert data["base_model_relation"] == "finetune"
        assert data["metrics"] == ["accuracy"]
        assert {"bitzoo", "image-classification"} <= set(data["tags"])
        results = ModelCard(text).data["eval_results"]
        found = [(r.metric_type, r.metric_value, r.dataset_name) for r in results]
        assert found == [("accuracy", 0.7, "photos")]

    @pytest.mark.parametrize("base", [None, "BiT-M-R50x1-run00-caltech101", "my own weights"])
    def test_a_base_that_the_hub_does_not_have_is_not_named(self, tmp_path, base):
        path, _ = card(tmp_path, make_run(base=base))
        data = metadata_load(path)
        assert "base_model" not in data
        assert "base_model_relation" not in data

    def test_says_where_the_weights_come_from(self, tmp_path):
        _, text = card(tmp_path, make_run(base="bit_m_r50x1"))
        assert "Training started from BiT-M-R50x1, pre-trained by Google on imagenet-21k" in text
        assert "It inherits what BiT-M-R50x1 learned" in text
        _, text = card(tmp_path, make_run(info=None))
        assert "it is not established that they are Google's release." in text
        _, text = card(tmp_path, make_run(base=None, model="random weights"))
        assert "Google" not in text
        assert "from random weights on photos" in text

    def test_exact_results(self, tmp_path):
        _, text = card(tmp_path, make_run())
        rows = tables_of(text)
        found = make_run().evaluation
        for row in (
            ["top-1 accuracy", "70.00 %", "7 of 10"],
            ["balanced accuracy", "77.08 %", ""],
            ["macro F1", "68.93 %", ""],
            ["mean cross-entropy", f"{found.loss:.4f}", ""],
            ["wren", "33.33 %", "1 of 3", "magpie (2)"],
            ["kite", "", "0 of 0", ""],
            ["training images", "3,201"],
            ["batch\\_size", "512"],
            ["torch", "9.9.9"],
        ):
            assert row in rows
        assert "39.68 % to 89.22 %" in text
        assert "Some classes have no held-out images" in text
        assert "3 of the classes had no held-out image." in text

    def test_without_held_out_images(self, tmp_path):
        path, text = card(tmp_path, make_run(evaluation=None))
        assert "Not measured: no images were held out." in text
        assert "model-index" not in metadata_load(path)

    def test_hostile_names_stay_in_their_cells(self, tmp_path):
        run = make_run(
            title="---\nlicense: mit\n---",
            dataset=HOSTILE[1],
            classes=HOSTILE,
            evaluation=evaluation_of(HOSTILE, OUTCOMES),
            data=[(HOSTILE[3], HOSTILE[0])],
        )
        path, text = card(tmp_path, run)
        data = metadata_load(path)
        assert data["license"] == "apache-2.0"
        assert data["model-index"][0]["name"] == "---\nlicense: mit\n---"
        body = ModelCard(text).text
        assert "<script" not in body.replace("\\<", "")
        rows = tables_of(body)
        assert ["a\\|b \\*c\\* \\_d\\_ \\`e\\`", "\\<script\\>alert(1)\\</script\\>"] in rows
        wide = [row for row in rows if len(row) == 4]
        assert len(wide) == 2 + len(HOSTILE)  # header, rule and one a class
        assert {len(row) for row in rows} == {2, 3, 4}

    def test_snippets(self, tmp_path):
        _, text = card(tmp_path, make_run(folder="/home/me/secret"))
        assert "secret" not in text
        blocks = re.findall(r"```python\n(.*?)```", text, re.S)
        assert [ast.parse(block).body[0].names[0].name for block in blocks] == ["bitzoo", "timm"]
        assert 'create_model("FOLDER", pretrained=True)' in blocks[0]
        assert '"local-dir:FOLDER"' in blocks[1]
