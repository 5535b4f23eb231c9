"""Runs every test on a machine that has nothing but Python: `python tests` (options go to pytest).

Where packages are missing it makes .venv beside the program, installs them there and goes on inside, as demo.py does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "sample_data"))

import demo  # noqa: E402 (its folder comes first)

if __name__ == "__main__":
    try:
        if demo.missing_packages(for_tests=True):
            raise SystemExit(demo.go_on_in_venv(Path(__file__), sys.argv[1:]))
    except demo.SetupFault as fault:
        raise SystemExit(f"The tests cannot run: {fault}") from None
    import pytest

    # Two for each core and one more, for most tests wait half of their time; a file is the work of one.
    workers = str(min(8, 2 * (os.cpu_count() or 2) + 1))
    at_a_time = ["-n", workers, "--dist", "loadfile", "--no-loadscope-reorder"]
    raise SystemExit(pytest.main([str(HERE), *at_a_time, *sys.argv[1:]]))
