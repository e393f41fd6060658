"""What is told of models and results, under attack: ReaL's labels, reports, evaluations, cards."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import yaml
from attacks.mutations import Raw, change_json, damage, damaged_json, dump_json, odd_value
from attacks.record_kinds import HASH, Kind, changed_lines

from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.catalogue.vtab_tasks import TASKS, VtabTask
from bitzoo.data.real_labels import IMAGES, read_real_labels
from bitzoo.data.run_folders import RUN_NAME
from bitzoo.data.source_names import VTAB
from bitzoo.hub.repo_manifest import CARD_NAME
from bitzoo.model_cards.run_card import complete_draft
from bitzoo.model_cards.text import validate_card
from bitzoo.runs import vtab
from bitzoo.runs.config import FinetuneConfig
from bitzoo.runs.job import Job
from bitzoo.runs.probe_features import MEASURED_NAME, _measured
from bitzoo.runs.report.artifacts import EVALUATION_NAME
from bitzoo.small_files import read_json_lines, read_text
from bitzoo.zoo.info import EXPORT_REPORT_SUFFIX, info

# --- ReaL ---------------------------------------------------------------------------------------

_LABELS = [f"[{number % 1000}]" if number % 7 else "[]" for number in range(IMAGES)]
_LABELS[5:8] = ["[1, 2, 999]", "[0]", "[7, 7]"]
REAL = ("[" + ", ".join(_LABELS) + "]").encode()


def _other_labels(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    if rng.random() < 0.4:
        return damage(data, rng, [(0, 60), (len(data) - 60, len(data))])
    items, at = list(_LABELS), rng.randrange(IMAGES)
    kind = rng.choice(("value", "label", "label", "more", "gone"))
    if kind == "value":
        items[at] = dump_json(odd_value(rng, json.loads(items[at]))).decode()
    elif kind == "label":
        items[at] = dump_json([odd_value(rng, 998), 3]).decode()
    elif kind == "more":
        items.insert(at, "[1]")
    else:
        del items[at]
    return ("[" + ",".join(items) + "]").encode(), f"{kind} {at}"


def _labels_agree(data: bytes, found: tuple[tuple[int, ...], ...]) -> bool:
    said = json.loads(data.decode("utf-8-sig"))
    return len(found) == IMAGES and repr(list(map(list, found))) == repr(said)


# --- VTAB ---------------------------------------------------------------------------------------

_TASK = next(iter(TASKS.values()))
_TITLE = "a task of VTAB, as it is prepared"
_JOB = Job("BiT-M-R50x1", f"{VTAB}{_TASK.name}", FinetuneConfig())
EVALUATION = {"top1": 0.5, "correct": 4, "count": 8, "loss": 0.7, "classes": ["a", "b"]}
VTAB_RUN: dict[str, Any] = {
    "options": _JOB.to_dict(_TITLE),
    "recipe": {"steps": 4, "overrides": {"steps": {"from": 500, "to": 4}}},
    "changes": [{"step": 2, "key": "lr", "old": 0.1, "new": 0.2, "date": "2026-11-27"}],
    "finished": {"step": 4, "date": "2026-11-27"},
}


def _title(task: VtabTask, part: str | None = None) -> str:
    return _TITLE


def _scored(run: bytes, evaluation: bytes, folder: Path) -> Any:
    (folder / RUN_NAME).write_bytes(run)
    (folder / EVALUATION_NAME).write_bytes(evaluation)
    vtab.task_title = _title  # type: ignore[attr-defined]  # of this process
    found = vtab._finished(_JOB, folder, _TASK)
    said = vtab.departures_of([found[0]], 3, FinetuneConfig()) if found else ()
    return found, said


def _score_agrees(data: bytes, found: Any) -> bool:
    """What is not the score of a finished run is made again, and nothing is said of it."""
    if found[0] is None:
        return data != dump_json(EVALUATION)
    (_, correct, count), said = found[0], json.loads(data.decode("utf-8-sig"))
    return (correct, count) == (said["correct"], said["count"]) and 0 <= correct <= count > 0


def _record_agrees(data: bytes, found: Any) -> bool:
    if found[0] is None:
        return data != dump_json(VTAB_RUN)
    said = json.loads(data.decode("utf-8-sig"))
    steps = {name: (each["from"], each["to"]) for name, each in said["recipe"]["overrides"].items()}
    return found[0][0] == said and len(found[1]) <= len(steps) + 6


# --- reports ------------------------------------------------------------------------------------

MODEL = {
    "architecture": "R50x1",
    "num_classes": 3,
    "in_chans": 3,
    "identity": {"name": None, "basis": "unknown", "evidence": ""},
    "base": {"name": "BiT-M-R50x1", "basis": "google", "evidence": "fetched"},
    "own_names": ["cat", "dog", "newt"],
    "activation": "softmax",
    "preprocessing": {
        "crop": 224,
        "resize": 256,
        "interpolation": "bilinear",
        "square": True,
        "source": "a paper",
        "bit_depth": 8,
    },
    "license": "apache-2.0",
    "provenance": {"source": "a.npz", "sha256": HASH, "dtype": "float16", "kernel_scale": 1},
    "run": {
        "data": "photos",
        "fingerprint": HASH,
        "split": {"train": 540, "val": 60, "held_out": "at random"},
        "recipe": {"name": "a", "steps": 4},
        "seed": 0,
        "teachers": [
            {"name": "t", "sha256": HASH, "architecture": "R50x1", "identity": "", "dtype": "f"}
        ],
    },
    "sources": {"license": "the catalogue", "own_names": "the run"},
}
REPORT = {"format": "onnx", "passed": True, "model_info": MODEL}


def _read_report(path: Path) -> Any:
    exported = path.with_name(path.name.removesuffix(EXPORT_REPORT_SUFFIX))
    exported.write_bytes(b"no graph")
    found = info(str(exported))
    str(found)
    found._repr_html_()
    again = ModelInfo.from_dict(json.loads(found.to_json()))
    assert again.to_dict() == found.to_dict()
    return found


def _report_agrees(data: bytes, found: ModelInfo) -> bool:
    said = json.loads(data.decode("utf-8-sig"))["model_info"]
    known = ("architecture", "num_classes", "activation", "license")
    names = None if said.get("own_names") is None else tuple(said["own_names"])
    return (
        all(getattr(found, key) == said.get(key) for key in known)
        and found.own_names == names
        and (found.run is None or found.run.data == str(said["run"]["data"]))
    )


MEASURED = {"images_per_s": 12.5, "memory_bytes": 1 << 30}


def _measured_agrees(data: bytes, found: tuple[float | None, int | None]) -> bool:
    try:
        said = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return found == (None, None)
    rate, memory = found
    return (rate is None or (rate == float(said["images_per_s"]) and 0 < rate < math.inf)) and (
        memory is None or (memory == said["memory_bytes"] and memory > 0)
    )


# --- cards --------------------------------------------------------------------------------------

FRONT = {
    "license": "apache-2.0",
    "library_name": "bitzoo",
    "tags": ["image-classification", "bitzoo"],
    "datasets": ["photos"],
    "base_model": "google/bit-50",
    "model-index": [
        {
            "name": "photos",
            "results": [
                {
                    "task": {"type": "image-classification"},
                    "dataset": {"type": "photos", "name": "Photos"},
                    "metrics": [{"type": "accuracy", "value": 0.5}],
                }
            ],
        }
    ],
}
BODY = "# Photos\n\nA model.\n\n## Data\n\n540 photos.\n\n## How to load it\n\nSo.\n"
_BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
_FRONTS = (
    "a0: &a0 [x, x]\n" + _BOMB,
    "a: &a {b: *a}\n",
    "a: !!python/object/apply:os.system [true]\n",
    "a: 1\na: 2\n",
    "? [a, b]\n: c\n",
    "a: 2001-13-45\n",
    "a: 0x" + "f" * 300 + "\n",
    "a: \x00\n",
    "a:\tb\n",
    "- a\n- b\n",
    "license: [mit, other]\n",
    "license:\n  name: mit\n",
    "2: a\nnull: b\ntrue: c\n",
    "a: 12:30:45\n",
    "--- a\n",
    "a: .nan\nb: .inf\n",
)
LICENSE = "mit"


def _as_card(front: str) -> bytes:
    return f"---\n{front}\n---\n{BODY}".encode(errors="surrogatepass")


CARD = _as_card(yaml.safe_dump(FRONT, sort_keys=False).strip())


def _other_card(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    kind = rng.random()
    if kind < 0.3:
        return damage(data, rng, [(0, len(CARD) - len(BODY))])
    if kind < 0.45:
        at = rng.randrange(len(_FRONTS))
        return _as_card(f"{_FRONTS[at]}license: apache-2.0"), f"front {at}"
    front, what = change_json(FRONT, rng)
    if kind < 0.8 or isinstance(front, Raw) or not _is_plain(front):
        return _as_card(dump_json(front).decode(errors="surrogatepass")), what
    return _as_card(yaml.safe_dump(front, allow_unicode=True).strip()), what


def _is_plain(value: Any) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not isinstance(value, Raw) and all(map(_is_plain, inside))


def _complete(path: Path) -> str:
    known = ModelInfo("R50x1", 3, license=LICENSE)
    text = complete_draft(read_text(path), repo="me/it", info=known, history=[], proof=None)
    validate_card(text)
    return text


HISTORY = [
    *({"event": "train", "step": step, "loss": 2 / step, "lr": 0.003} for step in (1, 2, 3)),
    {"event": "eval", "step": 2, "loss": 0.5, "top1": 0.75},
]


def _with_curves(path: Path) -> str:
    known = ModelInfo("R50x1", 3, license=LICENSE)
    history = [record for record in read_json_lines(path) if record is not None]
    draft = CARD.decode()
    text = complete_draft(draft, repo="me/it", info=known, history=history, proof=None)
    validate_card(text)
    return text


def _curves_agree(data: bytes, found: str) -> bool:
    """Every number in the table is one of the file's."""
    rows = re.findall(r"^\| (-?[\d,]+) \| ", found, re.MULTILINE)
    steps = set()
    for line in data.decode(errors="replace").split("\n"):
        try:
            step = json.loads(line)["step"]
            steps.add(f"{int(step):,}")
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            continue
    return set(rows) <= steps


def _card_agrees(data: bytes, found: str) -> bool:
    """The licence is the model's, and everything else is what the author wrote."""
    before, after = _front(data.decode(errors="replace")), _front(found)
    kept = {key: value for key, value in before.items() if key != "license"}
    return after.pop("license") == LICENSE and repr(_sorted(after)) == repr(_sorted(kept))


def _front(text: str) -> dict[Any, Any]:
    found = yaml.safe_load(text.replace("\r\n", "\n").removeprefix("---\n").split("\n---")[0])
    if not isinstance(found, dict):
        raise TypeError("no mapping")
    return found


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return sorted((str(key), _sorted(each)) for key, each in value.items())
    return [_sorted(each) for each in value] if isinstance(value, list) else value


TOLD_KINDS = (
    Kind("real.json", REAL, _other_labels, lambda p: read_real_labels(p).labels, _labels_agree),
    Kind(
        EVALUATION_NAME,
        dump_json(EVALUATION),
        damaged_json,
        lambda path: _scored(dump_json(VTAB_RUN), path.read_bytes(), path.parent),
        _score_agrees,
    ),
    Kind(
        "vtab-run.json",
        dump_json(VTAB_RUN),
        damaged_json,
        lambda path: _scored(path.read_bytes(), dump_json(EVALUATION), path.parent),
        _record_agrees,
    ),
    Kind(
        f"model.onnx{EXPORT_REPORT_SUFFIX}",
        dump_json(REPORT),
        damaged_json,
        _read_report,
        _report_agrees,
    ),
    Kind(
        MEASURED_NAME,
        dump_json(MEASURED),
        damaged_json,
        lambda path: _measured(path.parent),
        _measured_agrees,
    ),
    Kind(CARD_NAME, CARD, _other_card, _complete, _card_agrees),
    Kind(
        "curves.jsonl",
        b"\n".join(map(dump_json, HISTORY)) + b"\n",
        changed_lines,
        _with_curves,
        _curves_agree,
    ),
)
