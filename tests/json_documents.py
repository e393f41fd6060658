"""Every JSON document that bitzoo prints or writes, made by its commands on tiny networks and data.

`Documents(folder).make()` fills `found`: name of a document, as in docs/reference/json.yml ->
what came out, several times where its keys depend on the options.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import make_checkpoint, write_npz
from click.testing import CliRunner
from hub_server import HubServer
from images import write_digits
from PIL import Image
from publishing import Workspace
from servers import FileServer
from tfds_builders import features_of, image_bytes, prepare
from vtab_records import prepare_all

from bitzoo.catalogue.class_names import class_names
from bitzoo.cli.main import app

QUICK = [
    *("--steps", 2, "--batch-size", 8, "--resolution", "36,32", "--workers", 1),
    *("--log", "none", "--checkpoint-every", 1),
]
FEW = [*QUICK[:8]]
FORM = ("--arch", "R(1,1,1,1)x0.5")
STUDY = """
title = "A small study"
[grid]
norm = ["group"]
seeds = 1
[data]
up = "digits:0-2"
down = "digits:3-5"
[pretrain]
arch = "R(1,1,1,1)x0.5"
data = "up"
steps = 2
batch_size = 8
micro_batch = 8
lr = 0.03
resolution = 32
flip = false
fraction = 0.2
eval_every = 0
workers = 1
log = "none"
[[transfer]]
name = "few"
kind = "fewshot"
method = "ridge"
data = "down"
shots = [2]
runs = 1
resolution = [36, 32]
workers = 1
"""


class Documents:
    """The documents, and the folder in which they are made; the working folder must be that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[str, list[Any]] = defaultdict(list)

    def call(self, name: str | None, *words: object, code: int = 0) -> None:
        """Run a command; its JSON is a document of that name."""
        result = CliRunner().invoke(app, [*map(str, words), *(["--json"] if name else [])])
        assert result.exit_code == code, (words, result.output, result.exception)
        if name:
            self.found[name].append(json.loads(result.stdout))

    def read(self, name: str, *paths: object) -> None:
        """Take files: JSON, or a document per line of JSON lines."""
        for path in map(Path, map(str, paths)):
            text = path.read_text()
            lines = text.splitlines() if path.suffix == ".jsonl" else [text]
            self.found[name] += [json.loads(line) for line in lines]

    def make(self) -> None:
        """Make all of them."""
        for step in (
            self.prepare, self.models, self.runs, self.figures, self.exports, self.publications
        ):  # fmt: skip
            step()

    def prepare(self) -> None:
        write_npz("own.npz", make_checkpoint(num_classes=3))
        write_npz("BiT-R50x1_160.npz", make_checkpoint(num_classes=1000))
        write_digits("photos", per_class=16, val_per_class=8, classes=range(3))
        write_digits("plain", per_class=16, classes=range(3))
        (twin,) = sorted(Path("photos/val/0").glob("*.png"))[:1]
        image = np.asarray(Image.open(twin)).copy()
        image[0, 0] += 1
        Image.fromarray(image).save("photos/train/0/twin.png")
        Path("broken.png").write_bytes(b"no image")
        prepare_all(self.folder / "tfds", "dtd")
        synsets = class_names("imagenet1k", descriptions=False)
        rows = [
            {"image": image_bytes(n, size=(20, 18), seed=5), "label": n, "number": n}
            for n in range(6)
        ]
        prepare(
            self.folder / "tfds", {"validation": rows}, "imagenet2012", "5.1.0",
            features=features_of(synsets),
        )  # fmt: skip

    def models(self) -> None:
        self.call("list", "list")
        for name in ("BiT-M-R50x1", "BiT-M-R50x1-run0-caltech101", "BiT-L-R50x1", "BiT-S-R50x1"):
            self.call("info-name", "info", name)
        self.call("convert", "convert", "own.npz")
        self.call("convert", "convert", "own.npz", "--dst", "half.safetensors",
                  "--dtype", "float16")  # fmt: skip
        self.call("convert", "convert", "own.npz", "--dst", "fast.safetensors", "--check", "none")
        self.call("convert", "convert", "own.npz", "--dst", "plain.npz", "--to", "npz",
                  "--check", "weights")  # fmt: skip
        self.call("verify", "verify", "own.npz", "own.safetensors")
        self.read("parity", "parity.json")
        self.call("info-file", "info", "own.safetensors")
        self.call("info-file", "info", "BiT-R50x1_160.npz")
        self.call("hyperrule", "hyperrule", "--examples", 3000, "--size", "480x640")
        self.call("hyperrule-measure", "hyperrule", "own.npz", "--measure", "--data", "photos",
                  *QUICK[:6])  # fmt: skip
        self.call("card", "card", "own.safetensors", "--out", "card.md")
        self.call("card", "card", "own.safetensors")
        self.call("publish-plan", "publish", "own.safetensors", "--repo", "lab/own", "--dry-run",
                  "--folder", "staged")  # fmt: skip
        self.read("manifest", "staged/manifest.json")

    def runs(self) -> None:
        self.call("finetune", "finetune", "own.npz", "--data", "photos", "--out", "runs/photos",
                  *QUICK, "--keep", "best", "--eval-every", 1)  # fmt: skip
        self.call("finetune", "finetune", "own.npz", "--data", "plain", "--out", "runs/twice",
                  *QUICK, "--repeats", 2, "--freeze")  # fmt: skip
        self.call("finetune", "resume", "runs/photos")
        self.call("finetune", "pretrain", *FORM, "--data", "photos", "--out", "runs/pre",
                  *QUICK[:4], "--resolution", 32, *QUICK[6:])  # fmt: skip
        self.call("distill", "distill", *FORM[1:], "--teacher", "runs/photos", "--data", "photos",
                  "--out", "runs/student", *QUICK[:4], "--resolution", 32, *QUICK[6:])  # fmt: skip
        runs = ("photos", "twice/seed-0", "pre", "student")
        for kind in ("evaluation.json", "metrics.jsonl"):
            self.read(kind.partition(".")[0], *(f"runs/{run}/{kind}" for run in runs))
        self.call("info-file", "info", "runs/student")
        self.call("evaluate", "evaluate", "runs/photos", "--data", "photos", "--workers", 1)
        self.call("evaluate", "evaluate", "BiT-R50x1_160.npz",
                  "--data", "tfds:imagenet2012@validation", "--workers", 1)  # fmt: skip
        self.call("predict", "predict", "runs/photos", "photos/val/0", "broken.png", "--top", 2,
                  code=1)  # fmt: skip

    def figures(self) -> None:
        self.call("probe", "probe", "own.npz", "gone.npz", "--data", "photos", "--out", "probes/a",
                  "--save", "probes/saved",
                  "--resolution", "36,32", "--workers", 1)  # fmt: skip
        self.read("probe", "probes/a/probe.json")
        self.call("fewshot", "fewshot", "own.npz", "--data", "photos", "--out", "few/ridge",
                  "--shots", "2,4", "--runs", 2, "--method", "ridge", "--resolution", "36,32",
                  "--workers", 1)  # fmt: skip
        self.call("fewshot", "fewshot", "own.npz", "--data", "photos", "--out", "few/tuned",
                  "--shots", "2", "--runs", 2, *FEW)  # fmt: skip
        self.read("fewshot", "few/ridge/fewshot.json")
        self.call("vtab", "vtab", "own.npz", "--out", "vtab", "--tasks", "dtd,svhn",
                  "--runs", 1, *QUICK[:4], "--resolution", "32", *QUICK[6:])  # fmt: skip
        self.read("vtab", "vtab/vtab.json")
        Path("s.toml").write_text(STUDY)
        self.call("study", "study", "s.toml", "--out", "study", "--processes", 1)
        self.read("study", "study/results.json")
        self.call("reproduce-list", "reproduce", "BiT-M-R50x1", "--list")
        self.call("reproduce", "reproduce", "BiT-R50x1_160.npz", "--claim", "ilsvrc-top1",
                  "--out", "again", "--workers", 1)  # fmt: skip

    def exports(self) -> None:
        self.call("export", "export", "runs/photos", "--to", "torch-export", "--out", "own.pt2")
        self.call("export-int8", "export", "runs/photos", "--to", "onnx", "--out", "small.onnx",
                  "--dtype", "int8", "--calibrate", "photos", "--calibration-images", 12,
                  "--judged-images", 24, "--max-loss", 1)  # fmt: skip
        self.read("export", "own.pt2.export.json")
        self.call("info-file", "info", "own.pt2")
        self.call("quickstart", "quickstart", "--folder", "quick")

    def publications(self) -> None:
        """On a stand-in Hub, with a mirror of two released files."""
        served = {}
        for run in range(2):
            path = write_npz("x.npz", make_checkpoint(num_classes=47, seed=run))
            served[f"vtab/BiT-M-R50x1-run{run}-dtd.npz"] = Path(path).read_bytes()
        with (
            FileServer(served) as mirror,
            HubServer() as hub,
            Workspace(self.folder, hub, BITZOO_MIRROR=mirror.url) as place,
        ):
            for name, words in (
                ("publish", ("own.safetensors", "--repo", "lab/own")),
                ("publish-several", ("BiT-M-R50x1-run[01]-dtd", "--org", "lab")),
            ):
                done = place.run("publish", *words, "--yes", "--json")
                self.found[name].append(json.loads(done.out))
            self.found["manifest"].append(
                json.loads(hub.repos["lab/BiT-M-R50x1-run0-dtd"].files()["manifest.json"])
            )
