"""What a checkout holds beside the package: citation, workflows, floors of dependencies."""

import re
import subprocess
from pathlib import Path

import lowest_dependencies
import pytest
import yaml
from packaging.version import Version

from bitzoo import __version__

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
PROJECT = lowest_dependencies.read_project()
needs_checkout = pytest.mark.skipif(not GITHUB.is_dir(), reason="an sdist leaves .github out")


def classified_pythons():
    prefix = "Programming Language :: Python :: "
    names = [c.removeprefix(prefix) for c in PROJECT["classifiers"] if c.startswith(prefix)]
    return [name for name in names if "." in name]


@pytest.fixture(scope="module")
def jobs():
    return yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text())["jobs"]


def steps(job):
    return [step.get("uses") or step["run"] for step in job["steps"]]


class TestCitation:
    @pytest.fixture
    def citation(self):
        return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))

    def test_is_of_this_version(self, citation):
        assert citation["cff-version"] == "1.2.0"
        assert citation["title"] == PROJECT["name"]
        assert citation["version"] == __version__
        assert citation["license"] == PROJECT["license"]
        assert [{"name": author["name"]} for author in citation["authors"]] == PROJECT["authors"]

    def test_names_the_paper(self, citation):
        (paper,) = citation["references"]
        names = [author["family-names"] for author in paper["authors"]]
        said = f"{', '.join(names)} {paper['title']} {paper['year']} {paper['url']}"
        assert said == (
            "Kolesnikov, Beyer, Zhai, Puigcerver, Yung, Gelly, Houlsby "
            "Big Transfer (BiT): General Visual Representation Learning 2020 "
            "https://arxiv.org/abs/1912.11370"
        )


class TestPythons:
    def test_the_lowest_classified_is_the_lowest_required(self):
        assert PROJECT["requires-python"] == f">={classified_pythons()[0]}"

    @needs_checkout
    def test_each_is_tested(self, jobs):
        assert jobs["test"]["strategy"]["matrix"]["python-version"] == classified_pythons()

    @needs_checkout
    def test_the_lowest_has_the_lowest_dependencies(self, jobs):
        (python,) = (
            step["with"]["python-version"]
            for step in jobs["test-lowest"]["steps"]
            if "setup-python" in step.get("uses", "")
        )
        assert python == classified_pythons()[0]


@needs_checkout
class TestWorkflows:
    def test_run_what_a_contributor_can(self, jobs):
        commands = [step for job in jobs.values() for step in steps(job) if "uses" not in step]
        made = {word for word in " ".join(commands).split() if word.startswith(("test", "lint"))}
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert made == {"lint", "test", "test-slow", "test-lowest", "test-wheel"} <= targets

    @pytest.mark.parametrize("path", sorted(GITHUB.glob("workflows/*")), ids=lambda path: path.name)
    def test_may_do_little_and_pin_what_they_use(self, path):
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        assert workflow["concurrency"]["group"]
        for job in workflow["jobs"].values():
            assert job["timeout-minutes"] <= 60
            for step in job["steps"]:
                assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/none@v1"))

    @pytest.mark.parametrize(
        "path", sorted(GITHUB.glob("ISSUE_TEMPLATE/[!c]*")), ids=lambda path: path.name
    )
    def test_issue_forms_ask_each_thing_once(self, path):
        form = yaml.safe_load(path.read_text())
        assert form["name"]
        assert form["description"]
        fields = [field for field in form["body"] if field["type"] != "markdown"]
        names = [field["id"] for field in fields]
        assert len(names) == len(set(names)) > 0
        assert all(field["attributes"]["label"] for field in fields)


@needs_checkout
def test_hooks_need_no_other_repository():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]


class TestLowestDependencies:
    def test_are_the_floors_of_pyproject(self, capsys, monkeypatch):
        """Read here in another way: every `name>=version` between quotes."""
        text = (ROOT / "pyproject.toml").read_text()
        text = text[text.index("\ndependencies = ") : text.index("\n[project.scripts]")]
        pairs = re.findall(r'"([\w-]+)>=([\w.]+)[";]', text)
        floors = dict(pairs)
        assert len(floors) == len(pairs) > 20, "a floor stands once"
        monkeypatch.setattr("sys.argv", ["", *PROJECT["optional-dependencies"]])
        lowest_dependencies.main()
        found = dict(line.split("==") for line in capsys.readouterr().out.splitlines())
        found.setdefault("tomli", floors["tomli"])  # asked for below Python 3.11 only
        assert found == floors

    @pytest.mark.parametrize(
        ("extras", "expected"),
        [
            ([], "a==1.2\nb==3"),
            (["x"], "a==1.3\nb==3\nd-e==4"),
            (["all"], "a==1.3\nb==3\nd-e==5.1"),
        ],
    )
    def test_of_the_package_and_its_extras(self, extras, expected):
        project = {
            "name": "the_package",
            "dependencies": ["a>=1.2,!=1.4,<2", "b==3", "c>=9; python_version < '3'"],
            "optional-dependencies": {
                "x": ["a>=1.3", "D_e>=4"],
                "all": ["The.Package[x,y]"],
                "y": ["d-e~=5.1", "the-package[all]"],
            },
        }
        lowest = lowest_dependencies.lowest(project, extras)
        assert "\n".join(f"{name}=={floor}" for name, floor in lowest.items()) == expected

    def test_refuses_what_has_none(self):
        with pytest.raises(SystemExit, match=r"a<2 names no lowest version. Write a>="):
            lowest_dependencies.lowest({"name": "x", "dependencies": ["a<2"]})
        with pytest.raises(SystemExit, match=r"no extra z; it has"):
            lowest_dependencies.lowest({"name": "x", "optional-dependencies": {"y": []}}, ["z"])

    def test_safetensors_below_0_8_wrote_garbage_over_a_mapped_file(self):
        floor = lowest_dependencies.lowest(PROJECT)["safetensors"]
        assert floor >= Version("0.8")


def test_no_file_names_the_host_of_a_package_registry():
    """Whoever installs chooses where from; some machines reach a mirror alone."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    hosts = [
        ".".join(parts)
        for parts in [
            ("pypi", "org"),
            ("pythonhosted", "org"),
            ("pypi", "python", "org"),
            ("download", "pytorch", "org"),
            ("anaconda", "org"),
            ("registry", "npmjs", "org"),
        ]
    ]
    patterns = [word for host in hosts for word in ("-e", host)]
    command = ["git", "grep", "--fixed-strings", "--ignore-case", "--name-only", *patterns]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (1, "", "")  # 1: in no file
