"""The sample data, the queries and the local servers keep their promises; demo and tests rely on them."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import dotenv
import paramiko
import psycopg
import pytest

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "sample_data"))

import demo  # noqa: E402
import generate  # noqa: E402
from dialer import GONE  # noqa: E402
from local_servers import (  # noqa: E402
    Dialer,
    LocalPostgres,
    OpenSshServer,
    ParamikoServer,
    ServerError,
    SftpServer,
    is_root,
    sftp_server,
    sshd_path,
    write_key_pair,
)

from mailing_pipeline import DIRECTIVES, SETTING_FIELDS  # noqa: E402

TODAY = date(2026, 12, 22)
QUERY_FILES = sorted((PROJECT / "queries").glob("*.sql"))
MAILING = b"telefone_1;nome\r\n11900001234;Jo\xc3\xa3o\r\n"

# What the sample gives at least, before invalid phones and repeated people are taken out.
LEAST_ROWS = {
    "10_cobranca_30d.sql": 4_000,
    "20_preventivo.sql": 2_000,
    "30_acordo_quebrado.sql": 800,
    "40_alto_valor.sql": 600,
    "50_longo_atraso.sql": 2_000,
    "60_promessa_hoje.sql": 100,
    "90_modelo.sql": 20_000,
}


# ---------------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows() -> dict[str, list[generate.Row]]:
    return generate.tables(TODAY)


def test_the_generator_gives_the_same_rows_every_time(rows: dict[str, list[generate.Row]]) -> None:
    assert generate.tables(TODAY) == rows


def test_on_another_day_only_the_dates_differ(rows: dict[str, list[generate.Row]]) -> None:
    tomorrow = generate.tables(date(2026, 12, 23))
    assert {name: len(table) for name, table in tomorrow.items()} == {name: len(table) for name, table in rows.items()}
    assert [row[:4] for row in tomorrow["contratos"]] == [row[:4] for row in rows["contratos"]]


def test_there_are_more_than_20000_contacts_and_debts(rows: dict[str, list[generate.Row]]) -> None:
    assert len(rows["clientes"]) >= 20_000
    assert len(rows["contratos"]) >= 20_000


def test_every_awkward_case_is_in(rows: dict[str, list[generate.Row]]) -> None:
    names = Counter(row[2] for row in rows["clientes"])
    assert all(names[name] > 5 for name in generate.AWKWARD_NAMES)
    notes = Counter(row[9] for row in rows["clientes"])
    assert all(notes[note] > 5 for note in generate.AWKWARD_NOTES)
    phones = Counter(row[2] for row in rows["telefones"])
    assert all(phones[phone] > 5 for phone in generate.AWKWARD_PHONES)
    for form in (r"\+55 \d\d ", r"\+55\d", r"0\d\d9", r"\(\d\d\) ", r"\d+$"):
        assert any(re.match(form, phone) for phone in phones), form
    with_phone = {row[1] for row in rows["telefones"]}
    assert sum(row[0] not in with_phone for row in rows["clientes"]) > 100
    assert sum(count > 1 for count in Counter(row[1] for row in rows["clientes"]).values()) > 100
    assert any("\n" in (row[5] or "") and ";" in row[5] for row in rows["clientes"])
    for column, name in ((3, "nascimento"), (4, "email"), (5, "endereco"), (8, "score"), (9, "observacao")):
        assert any(row[column] is None for row in rows["clientes"]), name
    contracts = [row[0] for row in rows["contratos"]]
    assert sum(contract.startswith("00") for contract in contracts) > 1_000
    assert sum(len(contract) == 20 for contract in contracts) > 1_000


def test_nobody_in_the_sample_can_be_real(rows: dict[str, list[generate.Row]]) -> None:
    for cpf in {row[1] for row in rows["clientes"]}:
        assert len(cpf) == 11
        assert int(cpf[10]) != generate.check_digit([int(digit) for digit in cpf[:10]]), f"{cpf} is a valid CPF"
    typed = [row[2] for row in rows["telefones"] if row[2] not in generate.AWKWARD_PHONES]
    numbers = [re.sub(r"\D", "", number.replace("+55", "")).removeprefix("0") for number in typed]
    assert {number[2:4] for number in numbers if len(number) == 11} == {"90"}
    assert {number[2:6] for number in numbers if len(number) != 11} == {"2000"}


# ---------------------------------------------------------------------------------------------------------------------
# PostgreSQL, and the queries on it
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgres() -> Iterator[LocalPostgres]:
    with LocalPostgres() as server:
        with server.connect() as connection:
            counts = generate.load(connection)
        assert counts["clientes"] == generate.CUSTOMERS
        yield server


def log_in(postgres: LocalPostgres, **other: str) -> psycopg.Connection[tuple[Any, ...]]:
    env = postgres.environment()
    keywords = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER", "password": "PGPASSWORD"}
    settings: dict[str, Any] = {keyword: env[name] for keyword, name in keywords.items()}
    return psycopg.connect(**settings | other)


def directives(query_file: Path) -> dict[str, str]:
    return directives_of(query_file.read_text(encoding="utf-8"))


def directives_of(query: str) -> dict[str, str]:
    """The settings in the leading comment lines of a query."""
    found = {}
    for line in query.splitlines():
        if not line.startswith("--"):
            break
        if match := re.match(r"-- (\w+): (.+)", line):
            found[match[1]] = match[2]
    return found


def mailing_of(postgres: LocalPostgres, query_file: Path) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Columns and rows of a query, run as the program's role and, unless it says otherwise, read-only."""
    with log_in(postgres) as connection:
        connection.read_only = directives(query_file).get("read_only") != "no"
        cursor = connection.execute(query_file.read_bytes())
        while cursor.nextset():
            pass
        return [column.name for column in cursor.description or ()], cursor.fetchall()


@pytest.mark.parametrize("query_file", QUERY_FILES, ids=lambda file: str(file.stem))
def test_every_query_gives_its_columns_and_its_rows_in_the_same_order_each_time(
    postgres: LocalPostgres, query_file: Path
) -> None:
    columns, rows = mailing_of(postgres, query_file)
    assert columns == directives(query_file)["columns"].split(";")
    assert len(rows) >= LEAST_ROWS[query_file.name]
    assert mailing_of(postgres, query_file) == (columns, rows)


@pytest.mark.parametrize("query_file", QUERY_FILES, ids=lambda file: str(file.stem))
def test_nobody_who_asked_not_to_be_called_is_in_a_mailing(postgres: LocalPostgres, query_file: Path) -> None:
    columns, rows = mailing_of(postgres, query_file)
    with log_in(postgres) as connection:
        opted_out = {row[0] for row in connection.execute("SELECT cpf FROM nao_perturbe")}
        debtors = connection.execute("SELECT contrato, cpf FROM contratos JOIN clientes USING (cliente_id)")
        owner = dict(debtors.fetchall())
    key = "cpf" if "cpf" in columns else "contrato"
    found = {row[columns.index(key)] for row in rows}
    assert not opted_out & (found if key == "cpf" else {owner[contract] for contract in found})


def test_every_directive_is_in_use_somewhere_in_the_queries() -> None:
    used = {key for file in QUERY_FILES for key in directives(file)}
    assert used == DIRECTIVES.keys()


def test_no_query_that_runs_is_bound_to_a_time_of_day_or_to_a_folder_of_this_machine() -> None:
    for file in QUERY_FILES:
        found = directives(file)
        assert found.get("enabled") == "no" or not {"hours", "days", "folder"} & found.keys(), file.name


def test_a_wrong_database_password_is_refused(postgres: LocalPostgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        log_in(postgres, password="wrong")


def test_the_program_s_role_reads_and_cannot_write(postgres: LocalPostgres) -> None:
    with log_in(postgres) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("DELETE FROM clientes")


def test_postgres_comes_back_on_its_port_with_its_data(tmp_path: Path) -> None:
    with LocalPostgres(tmp_path) as server, LocalPostgres() as other:
        assert server.port != other.port
        with server.connect() as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
        server.stop("immediate")
        with pytest.raises(psycopg.OperationalError):
            log_in(server)
        server.start()
        with log_in(server) as connection:
            assert connection.execute("SELECT one FROM kept").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError):
        log_in(other)


# ---------------------------------------------------------------------------------------------------------------------
# SFTP
# ---------------------------------------------------------------------------------------------------------------------

needs_sshd = pytest.mark.skipif(sshd_path() is None, reason="OpenSSH's sshd is not installed")
needs_root = pytest.mark.skipif(not is_root(), reason="only root can make a user")


def openssh(folder: Path) -> SftpServer:
    return OpenSshServer(folder)


def openssh_with_a_user(_: Path) -> SftpServer:
    return OpenSshServer(login="test_user")


@pytest.fixture(
    params=[
        pytest.param(openssh, marks=needs_sshd),
        pytest.param(openssh_with_a_user, marks=[needs_sshd, needs_root]),
        pytest.param(ParamikoServer),
    ]
)
def sftp(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SftpServer]:
    folder = tmp_path / "pasta com espaço & acentuação"
    folder.mkdir()
    make: Callable[[Path], SftpServer] = request.param
    with make(folder) as server:
        server.make_folder("entrada")
        yield server


@contextlib.contextmanager
def session(
    server: SftpServer, password: str | None = None, key_file: Path | None = None
) -> Iterator[paramiko.SFTPClient]:
    transport = paramiko.Transport((server.host, server.port))
    try:
        transport.start_client(timeout=10)
        if password is not None:
            transport.auth_password(server.user, password)
        else:
            key = paramiko.Ed25519Key.from_private_key_file(str(key_file or server.key_file))
            transport.auth_publickey(server.user, key)
        client = paramiko.SFTPClient.from_transport(transport)
        assert client is not None
        yield client
    finally:
        transport.close()


def remote(server: SftpServer, name: str) -> str:
    return str(server.remote_root / "entrada" / name)


def put(client: paramiko.SFTPClient, path: str, content: bytes) -> None:
    client.putfo(io.BytesIO(content), path)


def test_what_is_put_stands_in_the_local_folder(sftp: SftpServer) -> None:
    content = os.urandom(300_000)
    with session(sftp) as client:
        put(client, remote(sftp, ".part-1"), content)
        client.rename(remote(sftp, ".part-1"), remote(sftp, "mailing.csv"))
        assert client.listdir(remote(sftp, "")) == ["mailing.csv"]
        assert client.stat(remote(sftp, "mailing.csv")).st_size == len(content)
        with client.open(remote(sftp, "mailing.csv")) as file:
            assert file.read() == content
    assert (sftp.root / "entrada" / "mailing.csv").read_bytes() == content


def test_one_login_serves_several_channels_side_by_side(sftp: SftpServer) -> None:
    """As the program's workers use it."""
    contents = [os.urandom(1_000_000) for _ in range(4)]
    names = [remote(sftp, f"mailing_{number}.csv") for number in range(4)]
    with session(sftp) as first, ThreadPoolExecutor() as pool:
        channel = first.get_channel()
        assert channel is not None
        clients = [paramiko.SFTPClient.from_transport(channel.get_transport()) for _ in contents]
        list(pool.map(put, clients, names, contents))
    for number, content in enumerate(contents):
        assert (sftp.root / "entrada" / f"mailing_{number}.csv").read_bytes() == content


def test_a_rename_refuses_an_existing_target(sftp: SftpServer) -> None:
    with session(sftp) as client:
        put(client, remote(sftp, "old"), b"old")
        put(client, remote(sftp, "new"), b"new")
        with pytest.raises(OSError, match="Failure"):
            client.rename(remote(sftp, "new"), remote(sftp, "old"))
        client.posix_rename(remote(sftp, "new"), remote(sftp, "old"))
    assert (sftp.root / "entrada" / "old").read_bytes() == b"new"


def test_exclusive_creation_and_missing_files_are_told(sftp: SftpServer) -> None:
    with session(sftp) as client:
        put(client, remote(sftp, "taken"), b"")
        with pytest.raises(OSError):
            client.open(remote(sftp, "taken"), "wx")
        for fails in (client.stat, client.listdir, client.remove):
            with pytest.raises(FileNotFoundError):
                fails(remote(sftp, "missing"))
        client.remove(remote(sftp, "taken"))
        assert client.listdir(remote(sftp, "")) == []


def test_a_wrong_key_and_a_wrong_password_are_refused(sftp: SftpServer, tmp_path: Path) -> None:
    write_key_pair(tmp_path / "other_key")
    with pytest.raises(paramiko.AuthenticationException), session(sftp, key_file=tmp_path / "other_key"):
        pass
    with pytest.raises(paramiko.AuthenticationException), session(sftp, password="wrong"):
        pass


def test_the_password_opens_where_there_is_one(sftp: SftpServer) -> None:
    if sftp.password is None:
        with pytest.raises(ServerError, match="no password"):
            sftp.environment("password")
    else:
        with session(sftp, password=sftp.environment("password")["SFTP_PASSWORD"]) as client:
            assert client.listdir(remote(sftp, "")) == []


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_the_fingerprint_is_the_one_that_ssh_keygen_prints(sftp: SftpServer) -> None:
    command = ["ssh-keygen", "-l", "-f", str(sftp.home / "host_key.pub")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[1] == sftp.fingerprint


def test_a_stopped_server_cuts_its_sessions_and_comes_back_on_its_port(sftp: SftpServer) -> None:
    port, fingerprint = sftp.port, sftp.fingerprint
    with session(sftp) as client:
        sftp.stop()
        with pytest.raises((OSError, EOFError, paramiko.SSHException)):
            client.listdir(remote(sftp, ""))
    with pytest.raises(ConnectionRefusedError), socket.create_connection((sftp.host, sftp.port)):
        pass
    sftp.start()
    assert (sftp.port, sftp.fingerprint) == (port, fingerprint)
    with session(sftp) as client:
        assert client.listdir(remote(sftp, "")) == []


def test_a_host_key_can_be_changed(sftp: SftpServer) -> None:
    old = sftp.renew_host_key()
    assert old != sftp.fingerprint
    with session(sftp) as client:
        channel = client.get_channel()
        assert channel is not None
        assert channel.get_transport().get_remote_server_key().fingerprint == sftp.fingerprint


@needs_sshd
def test_the_sftp_server_process_can_be_killed_while_sshd_goes_on(tmp_path: Path) -> None:
    with OpenSshServer(tmp_path) as server:
        with session(server) as client:
            assert client.listdir(str(server.remote_root)) == []
            assert server.kill_sessions() == 1
            with pytest.raises((OSError, EOFError, paramiko.SSHException)):
                client.listdir(str(server.remote_root))
        with session(server) as client:
            assert client.listdir(str(server.remote_root)) == []


@needs_sshd
@needs_root
def test_permission_bits_are_real_for_the_test_user() -> None:
    with OpenSshServer(login="test_user") as server:
        folder = server.make_folder("readonly")
        folder.chmod(0o555)
        with session(server) as client, pytest.raises(PermissionError):
            client.open(str(server.remote_root / "readonly" / "x"), "wx")
        user, root, home = server.user, server.root, server.home
    import pwd

    assert user not in {entry.pw_name for entry in pwd.getpwall()}
    assert not root.exists()
    assert not home.exists()


def test_dots_do_not_lead_out_of_the_paramiko_server_s_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "root").mkdir()
    with ParamikoServer(tmp_path / "root") as server, session(server) as client:
        for path in ("/../secret", "../secret", "/a/../../secret"):
            with pytest.raises(FileNotFoundError):
                client.stat(path)


def test_sftp_server_gives_openssh_where_it_is_installed(tmp_path: Path) -> None:
    with sftp_server(tmp_path) as server:
        assert type(server) is (OpenSshServer if sshd_path() else ParamikoServer)
        home = server.home
    assert not home.exists()


# ---------------------------------------------------------------------------------------------------------------------
# The dialer
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def drop_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "entrada" / "cobranca_30d"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def busy_threads() -> Iterator[None]:
    """Two threads that leave this process no time; a dialer among them would miss what it should see."""
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            sum(range(10_000))

    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join()


# In a process of its own, so that its sleeps are as short as they say.
FLASH = """
import os, sys, time
for n in range(50):
    path = os.path.join(sys.argv[1], f"mailing_{n}.csv")
    with open(path + ".part", "wb") as file:
        file.write(bytes(n))
    os.rename(path + ".part", path)
    time.sleep(0.010)
    try:
        os.remove(path)
    except FileNotFoundError:
        pass
"""


@pytest.mark.parametrize("take", [True, False], ids=["taking", "leaving"])
@pytest.mark.usefixtures("busy_threads")
def test_the_dialer_sees_every_file_that_stands_for_10_milliseconds(drop_folder: Path, take: bool) -> None:
    with Dialer([drop_folder], take=take) as dialer:
        subprocess.run([sys.executable, "-c", FLASH, str(drop_folder)], check=True)
        sizes = {each.name: each.size_bytes for each in dialer.record}
    assert sizes.keys() == {f"mailing_{n}.csv" for n in range(50)}
    assert all(size in (int(name[8:-4]), GONE) for name, size in sizes.items())  # GONE: this machine was very busy


def test_the_dialer_takes_a_file_and_knows_what_was_in_it(drop_folder: Path) -> None:
    with Dialer([drop_folder]) as dialer:
        before = time.time()
        (drop_folder / ".part-1").write_bytes(MAILING)
        (drop_folder / ".part-1").rename(drop_folder / "mailing_a.csv")
        (arrival,) = dialer.record
    assert (arrival.campaign, arrival.name, arrival.size_bytes) == ("cobranca_30d", "mailing_a.csv", len(MAILING))
    assert arrival.sha256 == hashlib.sha256(MAILING).hexdigest()
    assert before - 1 < arrival.at < time.time() + 1
    assert arrival.path.read_bytes() == MAILING
    assert list(drop_folder.iterdir()) == []


def test_the_dialer_records_a_growing_file_as_short_as_it_was_when_it_appeared(drop_folder: Path) -> None:
    with Dialer([drop_folder]) as dialer, (drop_folder / ".part").open("wb", buffering=0) as file:
        file.write(MAILING[:10])
        (drop_folder / ".part").rename(drop_folder / "mailing_a.csv")
        (arrival,) = dialer.record
        file.write(MAILING[10:])
        assert dialer.record == [arrival]
    assert (arrival.size_bytes, arrival.sha256) == (10, hashlib.sha256(MAILING[:10]).hexdigest())


def test_the_dialer_takes_only_what_matches_and_one_for_any_name_takes_all(drop_folder: Path) -> None:
    with Dialer([drop_folder], take=False) as strict, Dialer([drop_folder], pattern="*", take=False) as greedy:
        for name in (".part-0a1b2c3d", "mailing_a.csv.part", "mailing_a.csv"):
            (drop_folder / name).write_bytes(MAILING)
        assert {each.name for each in strict.record} == {"mailing_a.csv"}
        assert {each.name for each in greedy.record} == {".part-0a1b2c3d", "mailing_a.csv.part", "mailing_a.csv"}


def test_the_same_name_again_is_a_second_arrival(drop_folder: Path) -> None:
    with Dialer([drop_folder]) as taking:
        for _ in range(2):
            (drop_folder / ".part").write_bytes(MAILING)
            (drop_folder / ".part").rename(drop_folder / "mailing_a.csv")
            taking.look()
        assert [each.path.name for each in taking.record] == ["mailing_a.csv", "mailing_a.csv~2"]
    with Dialer([drop_folder], take=False) as leaving:
        for _ in range(2):
            (drop_folder / ".part").write_bytes(MAILING)
            (drop_folder / ".part").replace(drop_folder / "mailing_a.csv")
            leaving.look()
        assert len(leaving.record) == 2


def test_a_file_that_stood_there_before_the_dialer_is_taken_once(drop_folder: Path) -> None:
    (drop_folder / "mailing_a.csv").write_bytes(MAILING)
    with Dialer([drop_folder], delete=True) as dialer:
        assert dialer.wait_for(2, timeout_s=0.05) == dialer.record
        assert [each.name for each in dialer.record] == ["mailing_a.csv"]
    assert list(drop_folder.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a name that is gone already")
def test_a_name_that_was_gone_before_the_dialer_could_look_is_recorded_all_the_same(drop_folder: Path) -> None:
    with Dialer([drop_folder], take=False) as dialer:
        for n in range(100):
            (drop_folder / f"mailing_{n}.csv").touch()
            (drop_folder / f"mailing_{n}.csv").unlink()
        assert Counter(each.name for each in dialer.record) == Counter(f"mailing_{n}.csv" for n in range(100))
        assert {each.size_bytes for each in dialer.record} <= {GONE, 0}


def test_the_dialer_finds_a_drop_folder_that_was_removed_and_made_again(drop_folder: Path) -> None:
    with Dialer([drop_folder]) as dialer:
        drop_folder.rmdir()
        dialer.look()
        drop_folder.mkdir()
        (drop_folder / "mailing_a.csv").write_bytes(b"")
        assert [each.name for each in dialer.record] == ["mailing_a.csv"]


def test_a_dialer_that_failed_does_not_acquit(drop_folder: Path) -> None:
    def fail(_: object) -> None:
        raise ValueError("on purpose")

    with pytest.raises(RuntimeError, match="not complete"), Dialer([drop_folder], on_take=fail) as dialer:
        (drop_folder / "mailing_a.csv").write_bytes(MAILING)
        dialer.wait_for(1)


# ---------------------------------------------------------------------------------------------------------------------
# The demo
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "contacts"),
    [
        (b"", 0),
        (b"telefone_1;nome\r\n", 0),
        (MAILING, 1),
        (b"\xef\xbb\xbf" + MAILING, 1),
        (b"11900001234;a\n11900001235;b\n", 2),
        (b";so o segundo telefone\n11900001235;b", 2),
        (b'telefone_1,nome\r\n11900001234,"a ""b"" c;\r\nd"\r\n', 1),
    ],
    ids=["nothing", "header only", "one", "with BOM", "no header", "first empty, no last newline", "quotes"],
)
def test_the_dialer_counts_contacts_not_lines(content: bytes, contacts: int) -> None:
    assert demo.count_contacts(content) == contacts


def test_the_demo_s_config_keeps_every_value_as_it_is() -> None:
    values = {"A": "a b", "B": "p#w $HOME ${x} 'q' \"d\"", "C": "C:/Users/João Silva/x", "D": "", "E": " # "}
    text = demo.config_text(values)
    assert dotenv.dotenv_values(stream=io.StringIO(text), interpolate=False) == values


@pytest.fixture
def temp(tmp_path: Path) -> Path:
    """A TMPDIR of its own, to see what is left in it."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    if is_root():  # PostgreSQL's user must be able to pass through
        for each in (tmp_path, *tmp_path.parents[:2]):
            each.chmod(each.stat().st_mode | 0o111)
    return folder


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The project as a newcomer has it, in a folder with a blank and an accent."""
    folder = tmp_path / "Área de Trabalho" / "mailing"
    not_ours = shutil.ignore_patterns(".*", "output", "logs", "wheels", "config.env", "__pycache__")
    shutil.copytree(PROJECT, folder, ignore=not_ours)
    return folder


def zone_at(hour: int) -> str:
    """A time zone, as POSIX writes it, in which it is five past that hour now; mostly on another weekday."""
    now = datetime.now(UTC)
    west_min = (now.hour * 60 + now.minute - hour * 60 - 5) % (24 * 60)
    return f"XXX{west_min // 60}:{west_min % 60:02}"


# What this shell sets would win over the demo's config.env, in the demo and in the commands that it prints.
HOSTILE = {"PGHOST": "nowhere.invalid", "LANGUAGE": "xx", "RUN_HOURS": "nonsense", "HOLIDAYS": "always"}


def start_demo(clone: Path, temp: Path, *options: str, **environ: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(clone / "sample_data" / "demo.py"), *options]
    environ = os.environ | {"TMPDIR": str(temp)} | HOSTILE | environ
    return subprocess.Popen(
        command, env=environ, cwd=temp, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )


def page_rows(page: Path) -> dict[str, list[str]]:
    """Today's table: campaign and the words of its cells."""
    (table,) = re.findall(r"(?s)<table.*?</table>", page.read_text(encoding="utf-8"))
    rows = {}
    for row in re.split(r"<tr[^>]*>", table)[1:]:
        name, *cells = (re.sub(r"<[^>]+>", "", cell).strip() for cell in re.split(r"<t[hd]\b[^>]*>", row)[1:])
        rows[name] = cells
    return rows


@pytest.mark.parametrize(
    "hour", [pytest.param(3, id="in the night"), pytest.param(23, id="before midnight", marks=pytest.mark.long)]
)
def test_the_demo_ends_with_every_mailing_in_the_dialer_s_hands_and_leaves_only_the_page(
    clone: Path, temp: Path, hour: int
) -> None:
    process = start_demo(clone, temp, TZ=zone_at(hour))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert re.search(r"^  dialer: campaign cobranca_30d started: 4,\d{3} contacts$", said, re.MULTILINE)
    assert "All 6 mailings are in the dialer's hands, whole; the collapsed one is not" in said
    assert f"Slot {datetime.now():%Y}" in said and f" {hour:02}:00" in said
    assert list(temp.iterdir()) == []
    page = clone / "output" / "status.html"
    assert f"What the status page says of it: {page}\n" in said
    assert list(page.parent.iterdir()) == [page]
    rows = page_rows(page)
    names = demo.campaigns(PROJECT / "queries")
    assert list(rows)[1:] == [*names, "mutirao"]
    slots = next(iter(rows.values()))
    now = slots.index(f"{hour:02}:00")
    assert all(re.fullmatch(rf"[\d,]+\s*{hour:02}:\d\d", rows[name][now]) for name in names), rows
    assert "held" in rows["mutirao"][now]
    later = {cell for cells in list(rows.values())[1:] for cell in cells[now + 1 :]}
    assert later <= {""}, "what is delivered this hour is due in the next one too"


@pytest.mark.long
def test_every_command_that_the_demo_prints_can_be_pasted_as_it_stands(clone: Path, temp: Path) -> None:
    process = start_demo(clone, temp, "--keep")
    assert process.stdout is not None
    said = ""
    while "; logs.\n" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    commands = re.findall(r"(?:^\$ |^  # .*\n  )(.+)$", said, re.MULTILINE)
    assert len(commands) == 2 + len(demo.HANDS_ON)
    ended = [
        subprocess.run(command, shell=True, env=os.environ | HOSTILE, cwd="/", capture_output=True, encoding="utf-8")
        for command in commands
    ]
    # The first run's again, with the collapsed one beside it; that one alone; then --check, --dry-run …
    assert [done.returncode for done in ended] == [4, 4, 0, 4, 4, 4, 0], [done.stdout + done.stderr for done in ended]
    assert "already delivered" in ended[0].stdout
    assert "held" in ended[1].stdout and "cobranca_30d" not in ended[1].stdout
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert list(temp.iterdir()) == []


def test_the_demo_says_at_its_end_how_to_try_it_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "nowhere.invalid")
    for key in demo.of_this_shell():
        if key != "PGHOST":
            monkeypatch.delenv(key)
    assert demo.shell_line(["py", "a b.py", "--keep"]) == "env --unset=PGHOST py 'a b.py' --keep"
    monkeypatch.delenv("PGHOST")
    assert demo.shell_line(["py", "a b.py", "--keep"]) == "py 'a b.py' --keep"
    monkeypatch.setattr(demo, "WINDOWS", True)
    assert demo.shell_line(["py", "a b.py"]) == 'py "a b.py"'
    monkeypatch.setenv("PGHOST", "nowhere.invalid")
    assert demo.shell_line(["py", "a b.py"]) == 'set "PGHOST=" & py "a b.py"'


@pytest.mark.parametrize("key", SETTING_FIELDS)
def test_no_setting_of_this_shell_reaches_the_demo(key: str) -> None:
    assert demo.PROGRAM_SETTINGS.fullmatch(key)


@pytest.mark.parametrize(
    ("now", "waits_s"), [("23:59:00", 0), ("23:59:20", 40), ("23:59:59", 1), ("00:00:00", 0), ("13:59:59", 0)]
)
def test_the_demo_lets_midnight_pass(now: str, waits_s: float) -> None:
    assert demo.seconds_to_wait(datetime.fromisoformat(f"2026-12-22 {now}")) == waits_s


def test_the_page_of_an_installed_program_is_never_overwritten_by_the_demo(tmp_path: Path) -> None:
    made, output = tmp_path / "made.html", tmp_path / "output"
    made.write_text("the demo's")
    assert demo.keep_page(made, output) == output / "status.html"
    (output / "status.html").write_text("the real one")
    (output / "ledger.sqlite3").touch()
    assert demo.keep_page(made, output) == output / "demo_status.html"
    assert (output / "status.html").read_text() == "the real one"
    assert (output / "demo_status.html").read_text() == "the demo's"


# ---------------------------------------------------------------------------------------------------------------------
# What README says of samples and demo
# ---------------------------------------------------------------------------------------------------------------------

README = (PROJECT / "README.md").read_text(encoding="utf-8")
FORMULA = '=HYPERLINK("http://127.0.0.1";"Nota")'


def example_of_readme() -> tuple[str, str]:
    """Its query, and the file name that stands above it."""
    found = re.search(r"(?s)`queries/(\w+\.sql)`: the number.*?```sql\n(.*?)```", README)
    assert found
    return found[1], found[2]


def test_the_query_of_readme_is_planned_and_delivered_in_the_demo_and_a_formula_arrives_as_it_is(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    name, query = example_of_readme()
    folder = demo_folder(tmp_path_factory)
    with demo.stage(folder) as (config, dialer):
        for sample in (folder / "queries").iterdir():
            sample.unlink()
        (folder / "queries" / name).write_text(query, encoding="utf-8")
        quoted = FORMULA.replace("'", "''")
        (folder / "queries" / "20_preventivo.sql").write_text(f"SELECT '{quoted}' AS nome", encoding="utf-8")
        assert demo.run_program(config, "--check") == 0
        assert demo.run_program(config) == 0
        got = {each.campaign: each.path.read_text("utf-8") for each in dialer.wait_for(2)}
    lines = got["cobranca_30d"].splitlines()
    assert lines[0] == directives_of(query)["columns"]
    assert len(lines) > 4_000
    assert got["preventivo"].splitlines()[1] == '"' + FORMULA.replace('"', '""') + '"'


def demo_folder(factory: pytest.TempPathFactory) -> Path:
    """As demo.py makes one: PostgreSQL's user and sshd can pass through."""
    folder = factory.mktemp("demo")
    folder.chmod(0o755)
    return folder


def test_readme_has_every_sample_query_removed_before_the_first_check() -> None:
    first, last = re.search(r"Delete the sample queries `queries\\(\d+)_…` to `(\d+)_…`", README).groups()  # type: ignore[union-attr]
    assert README.index("Delete the sample queries") < README.index("run_pipeline.bat --check")
    left = [file for file in QUERY_FILES if not int(first) <= int(file.name[:2]) <= int(last)]
    assert [directives(file).get("enabled") for file in left] == ["no"]


def test_readme_names_the_page_where_the_demo_leaves_it(tmp_path: Path) -> None:
    (tmp_path / "made").touch()
    page = demo.keep_page(tmp_path / "made", tmp_path / "output")
    assert f"`{page.relative_to(tmp_path).as_posix()}`" in README


# ---------------------------------------------------------------------------------------------------------------------
# The set-up of demo and tests
# ---------------------------------------------------------------------------------------------------------------------


PIP = """#!/bin/sh
case "$*" in *"-m pip install"*) echo pip >> "{calls}"; exit ${{PIP_ENDS_WITH:-0}};; esac
echo "inside: $*"
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for .venv's python")
def test_installing_is_said_only_when_something_is_installed(clone: Path, temp: Path) -> None:
    """The clone's own Python lacks everything; .venv's stands in, since the real one would take the internet."""
    calls = temp / "calls"
    python = clone / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PIP.format(calls=calls))
    python.chmod(0o755)

    def start(**environ: str) -> tuple[int, str]:
        command = [sys.executable, "-I", "-S", str(clone / "sample_data" / "demo.py"), "--keep"]
        outside = {key: value for key, value in os.environ.items() if key != demo.INSIDE}  # `python tests` sets it
        done = subprocess.run(command, env=outside | environ, capture_output=True, encoding="utf-8", check=False)
        return done.returncode, done.stdout + done.stderr

    code, said = start(PIP_ENDS_WITH="1")
    assert code == 2 and "the installation failed" in said
    code, said = start()
    assert code == 0 and "Installing what is needed" in said, said
    assert said.endswith(f"inside: {clone / 'sample_data' / 'demo.py'} --keep\n")
    code, said = start()
    assert (code, said) == (0, f"inside: {clone / 'sample_data' / 'demo.py'} --keep\n")
    with (clone / "tests" / "requirements.txt").open("a") as file:
        file.write("# an update\n")
    assert "Installing what is needed" in start()[1]
    assert calls.read_text().split() == ["pip"] * 3


def imported(file: Path) -> set[str]:
    """The first words of what a file imports at its top."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_every_package_that_a_test_imports_is_looked_for_before_the_tests_begin() -> None:
    """Or an environment of last month would end in tracebacks, not in an installation."""
    files = [*PROJECT.glob("*.py"), *PROJECT.glob("tests/**/*.py"), *PROJECT.glob("sample_data/*.py")]
    own = {file.stem for file in files} | {"rig", "windows"}
    brought_along = {"cryptography", "numpy", "packaging"}  # by paramiko, pandas, pytest
    foreign = set().union(*map(imported, files)) - own - sys.stdlib_module_names - brought_along
    assert foreign <= {*demo.PACKAGES, *demo.TEST_PACKAGES}


@pytest.mark.long
def test_without_shared_beside_it_a_clone_says_so_in_one_line(clone: Path) -> None:
    chosen = [str(clone / "tests" / name) for name in ("test_schedule_task.py", "test_windows_python.py")]
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", *chosen]
    done = subprocess.run(command, cwd=clone, capture_output=True, encoding="utf-8", timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = re.findall(r"^SKIPPED .*$", done.stdout, re.MULTILINE)
    assert "../shared is not beside this clone" in line
