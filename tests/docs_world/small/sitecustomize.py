"""In front of a Python's path this makes bitzoo's world small. Only this differs from the real one.

* Each of the six published architectures (``R50x1``, ...) is a network of four to six units and
  half the width of R50x1, wherever it is named: in the catalogue, and where a network is built by
  its name. Heads keep their classes. timm's `resnetv2_50x1_bit` and its like are the same networks.
* Trainings keep their rules, but take at most `STEPS` steps of `BATCH` images of `SIDE` pixels,
  whatever the rule or an option says, and a resumed one at most two steps more. (BITZOO_DOCS_LIMITS
  has other limits when outputs are made that pages show; tests never set it.)
* Probes take features of images of `SIDE` pixels, unless an option says another size.
* A study has the first of its seeds alone: each cell is a process of its own.
* TensorFlow is as if not installed, unless BITZOO_DOCS_TENSORFLOW is set: importing it would add
  eight seconds to every proof.

Modules are changed right after they are imported, so that a process that does not use them pays
nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

DEPTHS: dict[str, tuple[int, int, int, int]] = {
    "R50x1": (1, 1, 1, 1),
    "R50x3": (2, 1, 1, 1),
    "R101x1": (1, 2, 1, 1),
    "R101x3": (1, 1, 2, 1),
    "R152x2": (1, 1, 1, 2),
    "R152x4": (2, 2, 1, 1),
}
WIDTH = 0.5
STEPS, BATCH, SIDE = map(int, os.environ.get("BITZOO_DOCS_LIMITS", "4,8,32").split(","))


def _architectures(module: Any) -> None:
    kind, parse, name_of = module.Architecture, module.Architecture.parse, module.Architecture.name
    for name, depths in DEPTHS.items():
        module.ARCHITECTURES[name] = kind(depths, WIDTH)
    names = {depths: name for name, depths in DEPTHS.items()}

    def parse_small(cls: Any, name: str, in_chans: int = 3) -> Any:
        found, depths = parse(name, in_chans), DEPTHS.get(name.partition("-")[0])
        return replace(found, depths=depths, width=WIDTH) if depths else found

    def name_small(self: Any) -> Any:
        size, dash, rest = name_of.fget(self).partition("-")
        return (names.get(self.depths, size) if self.width == WIDTH else size) + dash + rest

    kind.parse, kind.name = classmethod(parse_small), property(name_small)


def _recipes(module: Any) -> None:
    kind, override, changed_at = (
        module.Recipe,
        module.Recipe.override,
        module.Recipe.changed_at,
    )

    def override_small(self: Any, **options: Any) -> Any:
        recipe = override(self, **options)
        crop = min(recipe.crop, SIDE)
        scale = crop / recipe.crop
        resize = max(crop, round(recipe.resize * scale))
        short = recipe.eval_resize and max(crop, round(recipe.eval_resize * scale))
        return replace(
            recipe,
            schedule=recipe.schedule.scaled(min(recipe.schedule.steps, STEPS)),
            batch_size=min(recipe.batch_size, BATCH),
            crop=crop,
            resize=resize,
            eval_resize=short,
        )

    def changed_small(self: Any, step: int, *, lr: Any = None, steps: Any = None) -> Any:
        if steps is not None:
            steps = min(steps, self.schedule.steps + 2)
        return changed_at(self, step, lr=lr, steps=steps)

    kind.override, kind.changed_at = override_small, changed_small


def _timm(module: Any) -> None:
    create = module._create_resnetv2_bit

    def create_small(variant: str, pretrained: bool = False, **options: Any) -> Any:
        depths = DEPTHS["R" + variant.split("_")[1]]
        return create(variant, pretrained, **options | {"layers": depths, "width_factor": WIDTH})

    module._create_resnetv2_bit = create_small


def _timm_names(module: Any) -> None:
    name_of, names = module.timm_name, {depths: name for name, depths in DEPTHS.items()}

    def name_of_small(architecture: Any) -> str:
        name = names.get(architecture.depths) if architecture.width == WIDTH else None
        return f"resnetv2_{name[1:]}_bit" if name else name_of(architecture)

    module.timm_name = name_of_small


def _probes(module: Any) -> None:
    resize, crop = module.PROBE_SIZE
    module.PROBE_SIZE = (round(resize * SIDE / crop), SIDE)


def _studies(module: Any) -> None:
    axes = module._axes

    def axes_small(*words: Any) -> Any:
        found, seeds = axes(*words)
        return found, seeds[:1]

    module._axes = axes_small


_CHANGES: dict[str, Callable[[Any], None]] = {
    "timm.models.resnetv2": _timm,
    "bitzoo.converters.formats.timm_config": _timm_names,
    "bitzoo.models.architecture": _architectures,
    "bitzoo.training.recipe": _recipes,
    "bitzoo.runs.probe_size": _probes,
    "bitzoo.runs.study_grid": _studies,
}


class _Changing(Loader):
    def __init__(self, loader: Any, change: Callable[[Any], None]) -> None:
        self._loader, self._change = loader, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._change(module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        change = _CHANGES.get(fullname)
        spec = PathFinder.find_spec(fullname, path, target) if change else None
        if spec and change:
            spec.loader = _Changing(spec.loader, change)
        return spec


class _WithoutTensorFlow(PathFinder):
    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return None if fullname == "tensorflow" else super().find_spec(fullname, path, target)


def hide_tensorflow(*, wanted: bool) -> None:
    """Make it as if TensorFlow were not installed, or as it is."""
    finder = _WithoutTensorFlow if wanted else PathFinder
    sys.meta_path = [
        finder if one in (PathFinder, _WithoutTensorFlow) else one for one in sys.meta_path
    ]


if __name__ == "sitecustomize":  # and not where the tests read its constants
    hide_tensorflow(wanted=not os.environ.get("BITZOO_DOCS_TENSORFLOW"))
    sys.meta_path.insert(0, _Finder())
