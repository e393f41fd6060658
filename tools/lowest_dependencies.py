"""Print the lowest version that pyproject.toml allows of each dependency, as pip's constraints.

python tools/lowest_dependencies.py test > lowest.txt
pip install --editable ".[test]" --constraint lowest.txt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
_LOWER_BOUNDS = (">=", "==", "~=")


def lowest(project: Mapping[str, Any], extras: Sequence[str] = ()) -> dict[str, Version]:
    """The lowest allowed version by normalized name, of what this Python would install.

    Args:
        project: The table `[project]` of a pyproject.toml.
        extras: Names of its optional dependencies; those that they include are followed.
    """
    floors: dict[str, Version] = {}
    for requirement in _requirements(project, extras):
        name = canonicalize_name(requirement.name)
        floor = _floor(requirement)
        # an extra may ask for more than the package itself does
        floors[name] = max(floor, floors.get(name, floor))
    return dict(sorted(floors.items()))


def read_project() -> dict[str, Any]:
    """Return the table `[project]` of this checkout's pyproject.toml."""
    project: dict[str, Any] = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    return project


def _requirements(
    project: Mapping[str, Any], extras: Sequence[str], seen: frozenset[str] = frozenset()
) -> Iterator[Requirement]:
    """All that the package and the extras name, without the package itself."""
    optional: Mapping[str, Sequence[str]] = project.get("optional-dependencies", {})
    if unknown := sorted(set(extras) - set(optional)):
        raise SystemExit(f"pyproject.toml has no extra {', '.join(unknown)}; it has {[*optional]}")
    lines = [] if seen else list(project.get("dependencies", []))
    for extra in extras:
        lines += optional[extra]
    own_name = canonicalize_name(project["name"])
    for requirement in map(Requirement, lines):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if canonicalize_name(requirement.name) != own_name:
            yield requirement
            continue
        included = sorted(requirement.extras - seen - set(extras))
        if included:
            yield from _requirements(project, included, seen | set(extras))


def _floor(requirement: Requirement) -> Version:
    bounds = [Version(s.version) for s in requirement.specifier if s.operator in _LOWER_BOUNDS]
    if not bounds:
        raise SystemExit(
            f"pyproject.toml: {requirement} names no lowest version. Write {requirement.name}>=..."
        )
    return max(bounds)


def main() -> None:
    """Read the names of extras from the command line, and print one `name==version` a line."""
    parser = argparse.ArgumentParser(description="Print the lowest allowed versions.")
    parser.add_argument("extras", nargs="*", help="optional dependencies to take in")
    extras = parser.parse_args().extras
    for name, version in lowest(read_project(), extras).items():
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
