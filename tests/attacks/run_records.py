"""What runs, studies and data sets keep about themselves, under attack: more kinds of records."""

from __future__ import annotations

import csv
import io
import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attacks.mutations import Raw, change_json, damage, damaged_json, dump_json
from attacks.record_kinds import HASH, Kind, changed_csv, rfc4180
from attacks.text import letters_of

from bitzoo.data.imagenet_devkit import read_devkit
from bitzoo.data.run_folders import FEWSHOT_NAME, RUN_NAME
from bitzoo.data.split_record import SPLIT_NAME, read_split
from bitzoo.files import write_json
from bitzoo.runs.fewshot_result import recorded_trials
from bitzoo.runs.run_dir import SESSIONS_NAME, RunDir
from bitzoo.runs.study import read_study
from bitzoo.runs.study_cell import CELL_NAME, PRETRAIN, read_cell
from bitzoo.runs.work_log import WorkLog

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SPLIT = (
    f"path,label,split,sha256\na/1.png,cat,train,{HASH}\n"
    f'"b,2.png","the ""dog""",val,{HASH}\nc.png,newt,before,{HASH}\n'
).encode()
STUDY: dict[str, Any] = {
    "title": "A test",
    "about": "It shows nothing.",
    "grid": {
        "norm": ["batch", "group"],
        "lr": [0.1, 0.2],
        "length": [{"name": "short", "steps": 4}, {"name": "long", "steps": 8, "batch_size": 2}],
        "seeds": [0, 1],
    },
    "exclude": [{"norm": "batch", "lr": 0.2}],
    "data": {"own": "photos/", "other": ""},
    "pretrain": {"arch": "R(1,1,1,1)x0.5", "data": "own", "steps": 4, "resolution": [32, 32]},
    "transfer": [
        {"name": "few", "kind": "fewshot", "data": "own", "shots": [1, 5]},
        {"kind": "finetune", "data": "photos", "steps": 4},
    ],
    "published": [
        {"where": {"norm": "batch"}, "metric": "top-1", "value": 71.5, "source": "a paper"}
    ],
    "claim": [{"text": "It helps.", "source": "a paper"}],
    "scales": {"tiny": {"remarks": ["It is small."], "grid": {"seeds": 1}, "data": {"own": "x"}}},
}
SCORE = {"top1": 0.5, "correct": 4, "count": 8, "over": "held-out images"}
CELL = {
    "plan": {"arch": "R50x1", "seed": 0, "pretrain": {"steps": 4}, "transfers": {}},
    "parts": {"pretrain": {"top-1": SCORE}, "few": {"few": SCORE | {"top1": 1}}},
    "finished": {"date": "2026-11-27T03:40:00+00:00"},
}
SETTINGS = {"model": "a", "data": "photos", "shots": [1, 5]}
TRIAL = {"seed": 0, "images": 3, "correct": 4, "count": 8, "folder": "1/0", "steps": 4}
TRIALS = {
    "settings": SETTINGS,
    "trials": [
        TRIAL | {"shots": 1, "run": 0, "changes": {}, "top1": 0.5},
        TRIAL | {"shots": 5, "run": 1, "changes": {"lr": {"from": 1, "to": 2}}, "top1": 0.5},
    ],
}
SESSION = {"started": "2026-01-02T03:04:05+00:00", "from_step": 0, "device": "CPU", "seconds": 9.5}
SESSIONS = {"sessions": [SESSION, SESSION | {"from_step": 4, "waiting": "active"}]}
SYNSETS = ("n01440764", "n01443537", "n00001740")


# --- TOML ---------------------------------------------------------------------------------------


def dump_toml(value: Any) -> str:
    """Write a value of TOML, with inline tables; JSON's texts are TOML's."""
    if isinstance(value, Raw):
        return value.text
    if value is None:
        return "1979-05-27"  # which JSON does not have
    if isinstance(value, Mapping):
        pairs = (f"{json.dumps(str(key))} = {dump_toml(each)}" for key, each in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(dump_toml, value)) + "]"
    return json.dumps(value)


def _as_study(document: Any) -> bytes:
    if not isinstance(document, Mapping):
        return dump_toml(document).encode()
    lines = (f"{json.dumps(str(key))} = {dump_toml(value)}\n" for key, value in document.items())
    return "".join(lines).encode(errors="surrogatepass")


def _study(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    if rng.random() < 0.3:
        return damage(data, rng)
    document, what = change_json(STUDY, rng)
    return _as_study(document), what


def _read_study(path: Path) -> Any:
    plan = read_study(path)
    names = [cell.name for cell in plan.cells]
    return plan.title, len(set(names)), [cell.plan() for cell in plan.cells], plan.published


def _study_agrees(data: bytes, found: Any) -> bool:
    document = tomllib.loads(data.decode(errors="replace"))
    title, names, plans, _ = found
    seeds = document.get("grid", {}).get("seeds", [0])
    known = set(range(seeds)) if isinstance(seeds, int) else set(seeds)
    return (
        title in (document.get("title"), "grid")
        and names == len(plans) > 0
        and {plan["seed"] for plan in plans} <= known
    )


# --- runs ---------------------------------------------------------------------------------------


def _split_agrees(data: bytes, found: Any) -> bool:
    rows = {tuple(row) for row in rfc4180(data.decode())}
    strict = csv.reader(io.StringIO(data.decode(), newline=""))
    rows |= {tuple(row) for row in strict}
    return found is not None and all(
        (entry.path, entry.label, entry.split, entry.sha256) in rows for entry in found.entries
    )


def _read_cell(path: Path) -> Any:
    run = path.parent / PRETRAIN
    run.mkdir(exist_ok=True)
    write_json(run / RUN_NAME, {"finished": {"step": 4}})
    record = read_cell(path.parent)
    assert record is not None
    return dict(record.plan), record.scores, record.finished


def _cell_agrees(data: bytes, found: Any) -> bool:
    plan, scores, finished = found
    said = json.loads(data.decode())
    listed = {name: score for part in said["parts"].values() for name, score in part.items()}
    return (
        plan == said["plan"]
        and finished is (said["finished"] is not None)
        and scores.keys() == listed.keys()
        and all(
            repr(score.top1) == repr(listed[name]["top1"]) and 0 <= score.top1 <= 1
            for name, score in scores.items()
        )
    )


def _trials_agree(data: bytes, found: Any) -> bool:
    said = {(each["shots"], each["run"]): each for each in json.loads(data.decode())["trials"]}
    return found.keys() == said.keys() and all(
        (trial.correct, trial.count) == (said[key]["correct"], said[key]["count"])
        and trial.top1 <= 1
        for key, trial in found.items()
    )


def _read_sessions(path: Path) -> Any:
    log = WorkLog(RunDir(path.parent))
    log.start("CPU", 8)
    return json.loads((path.parent / SESSIONS_NAME).read_bytes())["sessions"], log.rows()


def _sessions_agree(data: bytes, found: Any) -> bool:
    sessions, rows = found
    try:
        said = json.loads(data.decode("utf-8-sig"))["sessions"]
    except (ValueError, RecursionError, KeyError, TypeError):
        said = []
    listed = list(map(repr, said)) if isinstance(said, list) else []
    return bool(rows) and all(repr(session) in listed for session in sessions[:-1])


# --- ImageNet's development kit -----------------------------------------------------------------


def _meta() -> bytes:
    import numpy as np
    from scipy.io import savemat

    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    table = np.zeros((3, 1), kinds)
    for number, synset in enumerate(SYNSETS):
        table[number, 0] = (number + 1, synset, int(number == 2))
    out = io.BytesIO()
    savemat(out, {"synsets": table})
    return out.getvalue()


def _read_kit(path: Path) -> Any:
    for number in (1, 2):
        (path.parent / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(b"")
    (path.parent / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n")
    return [row.label for row in read_devkit(path.parent).rows]


def _kit_agrees(data: bytes, found: list[str]) -> bool:
    """Every label stands in the file; which number it has there, only its library knows."""
    return len(found) == 2 and all(letters_of(name).encode() in data for name in found)


RUN_KINDS = (
    Kind(SPLIT_NAME, SPLIT, changed_csv, lambda path: read_split(path.parent), _split_agrees),
    Kind("grid", _as_study(STUDY), _study, _read_study, _study_agrees),
    Kind(CELL_NAME, dump_json(CELL), damaged_json, _read_cell, _cell_agrees),
    Kind(
        FEWSHOT_NAME,
        dump_json(TRIALS),
        damaged_json,
        lambda path: recorded_trials(path.parent, SETTINGS, (1, 5), 2),
        _trials_agree,
    ),
    Kind(SESSIONS_NAME, dump_json(SESSIONS), damaged_json, _read_sessions, _sessions_agree),
    Kind("meta.mat", _meta(), damage, _read_kit, _kit_agrees),
)
