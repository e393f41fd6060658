"""Small records under attack: proofs, lists of files, runs, metrics, lists of images.

Their second readers are Python's JSON module, and a few lines that read CSV by RFC 4180.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attacks.checkpoints_under_attack import Attacked, Base
from attacks.engine import READ
from attacks.judges import Judge
from attacks.mutations import damaged_json, dump_json
from attacks.record_kinds import HASH, Kind, changed_csv, changed_lines, rfc4180
from attacks.run_records import RUN_KINDS
from attacks.text import letters_of
from attacks.told_records import TOLD_KINDS

from bitzoo.converters.parity.verify import load_reports
from bitzoo.data.readers import read_listing
from bitzoo.errors import BitzooError
from bitzoo.hub.repo_manifest import FileRecord, manifest_files, require_proof
from bitzoo.runs.run_dir import RunDir

PARITY = {
    "model.safetensors": {
        "passed": True,
        "bitzoo_version": "1.0",
        "source": {"name": "bit.npz", "bytes": 100, "sha256": HASH},
        "output": {"name": "model.safetensors", "bytes": 8, "sha256": HASH, "numbers": "float32"},
        "architecture": "50x1",
        "num_classes": 3,
        "weights": {"tensors": 45, "params": 2_000_000, "differing": [], "passed": True},
        "weights_rule": "every output tensor mapped back equals the source bit for bit",
        "logits": [{"size": 64, "relative_l2": 1e-7, "tolerance": 1e-5, "passed": True}],
    }
}
MANIFEST = {
    "format": 1,
    "files": {
        name: {"bytes": 9, "sha256": HASH}
        for name in ("model.safetensors", "config.json", "README.md", "parity.json")
    },
}
RUN = {
    "data": {"source": "photos", "classes": ["a", "b"]},
    "recipe": {"steps": 4, "lr": 0.003},
    "seed": 0,
}
METRICS = [
    {"event": "train", "step": 1, "loss": 0.7, "lr": 0.003, "images_per_second": 3.5},
    {"event": "eval", "step": 2, "top1": 0.5, "top5": 1.0, "loss": 0.6, "count": 9, "x": "y"},
    {"event": "train", "step": 4, "loss": 0.2, "lr": 0.003, "images_per_second": 3.6},
]
CSV = b'path,label,split\r\na/1.png,cat,train\r\n"b,2.png","the ""dog""",val\r\nc.png,newt,test\r\n'
JSONL = [{"path": "a/1.png", "label": "cat"}, {"path": "b.png", "label": 2}]


def _read_proof(path: Path) -> Any:
    reports = load_reports(path)
    try:
        require_proof(reports, "model.safetensors", FileRecord(8, HASH), path)
    except BitzooError as error:
        return reports, error
    return reports, None


def _proof_agrees(data: bytes, found: Any) -> bool:
    """What counts as proof is what says so, in a type that says so."""
    reports, error = found
    said = json.loads(data.decode())
    if repr(reports) != repr(said):
        return False
    if error is not None:
        return True
    report = said["model.safetensors"]
    good = report["output"]["sha256"] == HASH and report["passed"] is True
    good = good and report["weights"]["differing"] == [] and len(report["logits"]) > 0
    return good and all(proof["passed"] is True for proof in report["logits"])


def _manifest_agrees(data: bytes, found: dict[str, FileRecord]) -> bool:
    said = json.loads(data.decode())["files"]
    return found.keys() == said.keys() and all(
        record.bytes == said[name]["bytes"] and record.sha256 == said[name]["sha256"]
        for name, record in found.items()
    )


def _resume(path: Path) -> Any:
    RunDir(path.parent).open(RUN, resume=True, overwrite=False)
    return True


def _run_agrees(data: bytes, found: Any) -> bool:
    return bool(json.loads(data.decode()) == RUN)


def _read_metrics(path: Path) -> Any:
    run = RunDir(path.parent)
    history = run.history()
    run.rewind(2, 6)
    return history, run.history()


def _metrics_agree(data: bytes, found: Any) -> bool:
    history, kept = found
    said = []
    for line in data.decode(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            said.append(repr(record))
    steps = [record.get("step") for record in kept]
    small = all(not isinstance(step, (int, float)) or not step > 2 for step in steps)
    return set(map(repr, history)) <= set(said) and small


def _list(path: Path) -> list[tuple[str, str]]:
    return [(row.key, row.label) for row in read_listing(path).rows]


def _list_agrees(data: bytes, found: list[tuple[str, str]]) -> bool:
    text = data.decode("utf-8-sig")
    rows = {tuple(letters_of(cell.strip()) for cell in row) for row in rfc4180(text)}
    cells = {cell for row in rows for cell in row}
    return all(letters_of(cell) in cells for row in found for cell in row)


def _jsonl_agrees(data: bytes, found: list[tuple[str, str]]) -> bool:
    cells: set[str] = set()
    for line in data.decode("utf-8-sig").split("\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            cells |= {letters_of(str(record.get(key))) for key in ("path", "label")}
    return all(letters_of(cell) in cells for row in found for cell in row)


KINDS = (
    Kind("parity.json", dump_json(PARITY), damaged_json, _read_proof, _proof_agrees),
    Kind(
        "manifest.json",
        dump_json(MANIFEST),
        damaged_json,
        lambda path: manifest_files(path.parent),
        _manifest_agrees,
    ),
    Kind("run.json", dump_json(RUN), damaged_json, _resume, _run_agrees),
    Kind(
        "metrics.jsonl",
        b"\n".join(map(dump_json, METRICS)) + b"\n",
        changed_lines,
        _read_metrics,
        _metrics_agree,
    ),
    Kind("images.csv", CSV, changed_csv, _list, _list_agrees),
    Kind(
        "images.jsonl",
        b"\n".join(map(dump_json, JSONL)) + b"\n",
        changed_lines,
        _list,
        _jsonl_agrees,
    ),
    *RUN_KINDS,
    *TOLD_KINDS,
)


@dataclass
class RecordsTarget:
    """All kinds of records."""

    name: str = "records"
    judge: str = ""
    kinds: dict[str, Kind] = field(default_factory=lambda: {kind.name: kind for kind in KINDS})

    def prepare(self, folder: Path, judge: Judge | None) -> None:
        from bitzoo.fetch.hub_client import MANIFEST_NAME

        self.kinds[MANIFEST_NAME] = Kind(MANIFEST_NAME, *_rest(self.kinds.pop("manifest.json")))
        for name, kind in self.kinds.items():
            place = folder / name
            place.mkdir()
            case = self._write(kind, kind.content, place, "")
            found = self.read(case)
            assert kind.agrees(kind.content, found), (name, found)

    def _write(self, kind: Kind, data: bytes, place: Path, label: str) -> Attacked:
        path = place / "input-folder" / kind.name
        path.parent.mkdir()
        path.write_bytes(data)
        return Attacked(path, label, Base(kind.name, {kind.name: data}), place)

    def attack(self, rng: random.Random, place: Path) -> Attacked:
        kind = self.kinds[rng.choice(list(self.kinds))]
        data, what = kind.change(kind.content, rng)
        return self._write(kind, data, place, f"{kind.name}: {what}")

    def read(self, case: Attacked) -> Any:
        return self.kinds[case.base.name].read(case.path)

    def differs(self, case: Attacked, ours: Any, judge: Judge | None) -> tuple[str, str]:
        kind = self.kinds[case.base.name]
        try:
            agrees = kind.agrees(case.base.files[kind.name], ours)
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            OverflowError,
        ) as error:
            return "unread", f"{type(error).__name__}: {str(error)[:200]}"
        return (READ, "") if agrees else ("different", str(ours)[:200])


def _rest(kind: Kind) -> tuple[Any, ...]:
    return kind.content, kind.change, kind.read, kind.agrees


RECORDS = RecordsTarget()
