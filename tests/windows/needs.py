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
    pytest.skip(reason)


def programs(*names: str, packages: str) -> None:
    if missing := [name for name in names if not shutil.which(name)]:
        _missing(f"{' and '.join(missing)} not found (Debian: apt-get install --no-install-recommends {packages})")


def module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        _missing(f"{name} is not installed (pip install -r tests/requirements.txt)")


def shared_file(path: Path) -> Path:
    """A file of ../shared, which stands beside the project where it is developed, and not in a plain clone."""
    if not path.exists():
        pytest.skip(f"{path.name} is not there: ../shared is not beside this clone")
    return path
