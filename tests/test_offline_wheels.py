"""requirements.txt: what is installed is what was tested, also without internet.

It pins every package that the program needs and every package that these need, without conditions: one set for every
Python from 3.11 to 3.14, on Windows and on Linux. So pip can bring the set for another PC without asking any package's
conditions, which it would ask of the Python it runs on.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[1]
README = PROJECT / "README.md"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
LINUX = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 26, 24, 17)] + ["manylinux2014_x86_64"]
PLATFORMS = {"Windows": ["win_amd64"], "Linux": LINUX}
# What the program itself imports, or asks another package to.
DIRECT = ("psycopg[binary]", "paramiko", "pandas", "pyarrow", "python-dotenv", "rich", "apprise")

on_request = pytest.mark.skipif(
    os.environ.get("CI") != "true" and os.environ.get("ONLINE_TESTS") != "1",
    reason="asks the package index, for half a minute; ONLINE_TESTS=1 asks for it",
)


def pinned() -> dict[str, str]:
    """requirements.txt: name -> version. Anything but exact versions is a failure."""
    lines = (PROJECT / "requirements.txt").read_text("utf-8").splitlines()
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)(\[binary\])?==([0-9a-z.]+)", line) for line in lines if line[:1] != "#"]
    assert all(pins), lines
    return {canonicalize_name(pin[1]): pin[3] for pin in pins}


def installed(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(platform: str, python: str) -> dict[str, str]:
    """What a package's conditions are asked of."""
    names = {"Windows": ("nt", "win32", "AMD64"), "Linux": ("posix", "linux", "x86_64")}
    os_name, sys_platform, machine = names[platform]
    return {
        "implementation_name": "cpython",
        "os_name": os_name,
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": platform,
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": sys_platform,
    }


def needs(asked: Mapping[str, str]) -> Iterator[Requirement]:
    """Every requirement that follows from DIRECT in such an environment, read from the packages installed here."""
    todo = [Requirement(name) for name in DIRECT]
    seen = set()
    while todo:
        requirement = todo.pop()
        yield requirement
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        found = installed(name)
        if (name, extras) in seen or not found:
            continue
        seen.add((name, extras))
        for need in map(Requirement, found.requires or ()):
            if not need.marker or any(need.marker.evaluate({**asked, "extra": e}) for e in extras | {""}):
                todo.append(need)


ENVIRONMENTS = [(platform, python) for platform in PLATFORMS for python in PYTHONS]


def test_the_pins_are_the_versions_that_these_tests_run_on():
    here = {name: found.version for name in pinned() if (found := installed(name))}
    assert here == {name: version for name, version in pinned().items() if name in here}
    assert {Requirement(name).name for name in DIRECT} <= here.keys()


@pytest.mark.parametrize(("platform", "python"), ENVIRONMENTS)
def test_everything_that_is_needed_there_is_pinned_to_a_version_that_all_agree_on(platform, python):
    pins = pinned()
    for need in needs(environment(platform, python)):
        assert need.specifier.contains(pins[canonicalize_name(need.name)]), need


def test_nothing_is_pinned_that_is_needed_nowhere():
    needed = {canonicalize_name(need.name) for asked in ENVIRONMENTS for need in needs(environment(*asked))}
    assert set(pinned()) == needed


def download_options() -> list[str]:
    """The README's line, without the parts that a look instead of a download has no use for."""
    (line,) = re.findall(r"^python -m pip download (.+)$", README.read_text("utf-8"), re.MULTILINE)
    return re.sub(r"-d wheels|--platform \S+|--python-version \S+", "", line).split()


def test_the_readme_s_line_brings_the_pins_and_pip_itself_for_another_platform():
    assert download_options() == ["--no-deps", "-r", "requirements.txt", "pip", "--only-binary", ":all:"]


@on_request
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("platform", "python"), ENVIRONMENTS)
def test_every_pin_has_a_wheel_for_it(platform, python, tmp_path):
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--report", str(report), "--target", str(tmp_path / "nothing")]
    command += [f"--platform={tag}" for tag in PLATFORMS[platform]]
    done = subprocess.run(
        [*command, "--python-version", python, *download_options()], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    packages = [package["metadata"] for package in json.loads(report.read_text("utf-8"))["install"]]
    found = {canonicalize_name(package["name"]): package["version"] for package in packages}
    assert found.pop("pip")
    assert found == pinned()
