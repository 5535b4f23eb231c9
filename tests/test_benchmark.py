"""The benchmark runs, and speaks of functions that the program has; what it measures judges nobody."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys

import benchmark
import pytest
from stage import PROJECT

import mailing_pipeline


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("sftp"), reason="needs OpenSSH's sftp")
def test_a_quick_look_delivers_with_every_program_and_prints_the_ratios() -> None:
    command = [sys.executable, PROJECT / "tests" / "benchmark.py", "--only", "a", "--rows-scale", "0.002"]
    command += ["--rounds", "1", "--beside", PROJECT / "mailing_pipeline.py"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    for program in ("mailing_pipeline", "psql + sftp", "usual script", "floor", "the other version"):
        assert f"\n| {program} " in done.stdout, done.stdout
    assert "ROWS SCALED BY 0.002" in done.stdout
    assert "a worker" in done.stdout  # the split of time


@pytest.mark.parametrize("kind", benchmark.PURPOSES)
def test_the_split_of_time_names_functions_that_the_program_has(kind: str) -> None:
    names = {"<module>"}
    for name, value in vars(mailing_pipeline).items():
        if inspect.isfunction(value):
            names.add(name)
        elif inspect.isclass(value):
            names |= {f"{name}.{method}" for method in vars(value)}
    for beginning in benchmark.PURPOSES[kind]:
        assert any(name.startswith(beginning) for name in names), beginning
