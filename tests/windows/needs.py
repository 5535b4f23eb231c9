"""What a test needs from the machine: missing, it is skipped with the reason. In CI, which is to run all, it fails."""

import importlib
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason, allow_module_level=True)


def programs(*names: str, packages: str) -> None:
    if missing := [name for name in names if not shutil.which(name)]:
        _missing(f"{' and '.join(missing)} not found (Debian: apt-get install --no-install-recommends {packages})")


def internet(why_not: str) -> NoReturn:
    _missing(f"the package index gave no wheels: {why_not}")


def module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        _missing(f"{name} is not installed (pip install -r tests/requirements.txt)")


def shared_file(path: Path) -> Path:
    """A file of ../shared, which stands beside the project where it is developed, and not in a plain clone.

    One reason for all of them, so that pytest sums them up in one line.
    """
    if not path.exists():
        pytest.skip(
            "../shared is not beside this clone: without it no test of the program on a Windows Python, "
            "and none of the task against Microsoft's schema",
            allow_module_level=True,
        )
    return path
