"""Without internet: the README's `pip download` line brings all that run_pipeline.bat installs on Windows.

pip picks wheels for Windows on any machine, but asks the conditions of packages ("only on Windows", "only before
Python 3.13") of the Python it runs on, and so may leave out what only Windows needs. Therefore the line names those
packages, and here the conditions are asked again, for Windows. It takes the internet: on request, and in CI.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[1]
README = PROJECT / "README.md"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")

on_request = pytest.mark.skipif(
    os.environ.get("CI") != "true" and os.environ.get("ONLINE_TESTS") != "1",
    reason="asks the package index, for half a minute; ONLINE_TESTS=1 asks for it",
)


def download_options() -> list[str]:
    """The README's line, without the parts that a look instead of a download has no use for."""
    (line,) = re.findall(r"^python -m pip download (.+)$", README.read_text("utf-8"), re.MULTILINE)
    return re.sub(r"-d wheels|--python-version \S+", "", line).split()


def resolve(python: str, folder: Path) -> dict[str, dict]:
    """What pip would download for Windows and this Python: name → file name and metadata."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--report", str(report), "--target", str(folder / "nothing")]
    command += ["--python-version", python, *download_options()]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        canonicalize_name(package["metadata"]["name"]): {
            "file": package["download_info"]["url"].rsplit("/", 1)[1],
            "needs": package["metadata"].get("requires_dist", []),
        }
        for package in json.loads(report.read_text("utf-8"))["install"]
    }


def needed_on_windows(requirements: list[str], python: str, packages: dict[str, dict]) -> set[str]:
    """Follows the requirements through the packages, asking every condition as a Windows PC would."""
    windows = {
        "implementation_name": "cpython",
        "os_name": "nt",
        "platform_machine": "AMD64",
        "platform_python_implementation": "CPython",
        "platform_system": "Windows",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "win32",
    }
    todo = [Requirement(line) for line in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for text in packages.get(name, {"needs": []})["needs"]:
            need = Requirement(text)
            if not need.marker or any(need.marker.evaluate(windows | {"extra": extra}) for extra in extras | {""}):
                todo.append(need)
    return {name for name, _ in seen}


def test_the_readme_says_the_line_once_with_what_pip_must_be_told_on_another_platform():
    options = " ".join(download_options())
    assert options.startswith("-r requirements.txt tzdata typing_extensions ")
    assert options.endswith("--only-binary :all: --platform win_amd64 --implementation cp")


def test_the_conditions_of_packages_are_asked_for_windows_and_for_the_python_in_question():
    conditions = ["c; sys_platform == 'win32'", "d; python_version < '3.13'", "g; os_name == 'posix'"]
    packages = {"a": {"needs": [*conditions, "e; extra == 'x'", "f; extra == 'y'"]}, "c": {"needs": ["H_h"]}}
    assert needed_on_windows(["A[x]>=1"], "3.13", packages) == {"a", "c", "e", "h-h"}
    assert needed_on_windows(["A"], "3.12", packages) == {"a", "c", "d", "h-h"}


@on_request
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_package_that_windows_needs_has_a_wheel_for_it(python, tmp_path):
    lines = (PROJECT / "requirements.txt").read_text("utf-8").splitlines()
    packages = resolve(python, tmp_path)
    assert needed_on_windows([line for line in lines if line and line[0] != "#"], python, packages) <= packages.keys()
    tags = {package["file"].removesuffix(".whl").rsplit("-", 1)[1] for package in packages.values()}
    assert tags == {"any", "win_amd64"}
