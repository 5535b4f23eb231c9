"""The fixtures `rig`, `centre`, `programs` and `own_database`; a test file names this module in `pytest_plugins`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_servers import LocalPostgres
from stage import Stage

from .programs import Programs
from .several_pcs import Centre
from .theatre import Rig


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory, own_environment: None) -> Iterator[Programs]:  # noqa: ARG001
    """The fork server."""
    if not hasattr(os, "fork"):
        pytest.skip("the rig starts programs by fork, which Windows does not have")
    with Programs(tmp_path_factory.mktemp("programs")) as started:
        yield started


@pytest.fixture
def rig(stage: Stage, programs: Programs, tmp_path: Path) -> Iterator[Rig]:
    """A stage that fails on request."""
    made = Rig(stage, programs, tmp_path)
    yield made
    made.close()
    assert made.leaks() == [], "fault 70: a canary came out"


@pytest.fixture
def centre(stage: Stage, programs: Programs, tmp_path: Path, database: LocalPostgres) -> Iterator[Centre]:
    """Several PCs on one ledger; every one of its programs is killed at the end."""
    made = Centre(stage, programs, tmp_path, database)
    yield made
    assert made.leaks() == [], "a canary came out"
    made.close()


@pytest.fixture(scope="session")
def own_database(own_environment: None) -> Iterator[LocalPostgres]:  # noqa: ARG001
    """A PostgreSQL that a test may stop and freeze as a whole."""
    with LocalPostgres() as server:
        yield server
