"""Faults 81 to 84: PostgreSQL as call centres have it: few sessions, poolers, other languages, old encodings.

The servers are real: PostgreSQL as Debian installs it, PgBouncer, Pgpool-II. `LosesBegin` is none, and says so.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from conftest import IN_CI
from local_servers import LocalPostgres
from rig.poolers import (
    PGBOUNCER,
    PGPOOL,
    Balancer,
    FromOutside,
    InstalledPostgres,
    LosesBegin,
    PgBouncer,
    Pgpool,
    installed_binaries,
    outer_address,
    write_certificate,
)
from rig.proxy import Proxy
from rig.theatre import Rig, until

pytest_plugins = ["rig.plugin"]

PATIENT = {"RETRY_FIRST_SECONDS": 1, "RETRY_MAX_SECONDS": 2}


def need(found: object, package: str) -> None:
    """Skip where a server is missing; in CI that is a failure."""
    if not found:
        reason = f"needs a real server: apt-get install {package}"
        pytest.fail(reason) if IN_CI else pytest.skip(reason)


@contextlib.contextmanager
def installed(rig: Rig, encoding: str = "UTF8", language: str = "", conf: str = "") -> Iterator[InstalledPostgres]:
    """The program reads the PostgreSQL that this machine has installed."""
    need(installed_binaries(), "postgresql")
    usual = rig.stage.database
    with InstalledPostgres(encoding, language, conf) as database:
        rig.stage.database = database
        rig.settings(**database.environment())
        try:
            yield database
        finally:
            rig.stage.database = usual


@contextlib.contextmanager
def pgbouncer(rig: Rig, mode: str = "transaction", **settings: object) -> Iterator[PgBouncer]:
    """The program reads through PgBouncer."""
    need(PGBOUNCER, "pgbouncer")
    with PgBouncer(rig.stage.database, mode, **settings) as pooler:
        rig.settings(**pooler.environment())
        yield pooler


@contextlib.contextmanager
def pgpool(rig: Rig, **settings: object) -> Iterator[Pgpool]:
    """The program reads through Pgpool-II."""
    need(PGPOOL, "pgpool2")
    with Pgpool(rig.stage.database, **settings) as pooler:
        rig.settings(**pooler.environment())
        yield pooler


@contextlib.contextmanager
def limited_role(rig: Rig, limits: str, back: str) -> Iterator[None]:
    """The program's role with limits of its own for a while."""
    rig.stage.execute(f"ALTER ROLE mailing {limits}")
    try:
        yield
    finally:
        rig.stage.execute(f"ALTER ROLE mailing {back}")


def checked(rig: Rig, code: int = 0) -> str:
    """What --check says, in one line."""
    program = rig.run("--check")
    assert program.code == code, program.output
    return " ".join(program.output.split())


# The matrix ----------------------------------------------------------------------------------------------------------

ROUTES: dict[str, Callable[[Rig], AbstractContextManager[object]]] = {
    "PostgreSQL as installed": installed,
    "PgBouncer in transaction mode": pgbouncer,
    "PgBouncer in session mode": lambda rig: pgbouncer(rig, "session"),
    "Pgpool-II with load balancing": pgpool,
}


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES.keys())
def test_each_server_makes_three_mailings_once(
    rig: Rig, route: Callable[[Rig], AbstractContextManager[object]]
) -> None:
    """83: small, middling, large; a rerun sends nothing, --check finds nothing."""
    for name, rows in (("dez", 10), ("vinte_mil", 20_000), ("trezentas_mil", 300_000)):
        rig.campaign(name, rows)
    with route(rig), rig.dialer():
        assert rig.run().code == 0
        rig.delivered("dez", "vinte_mil", "trezentas_mil")
        assert rig.run().code == 0
        rig.delivered("dez", "vinte_mil", "trezentas_mil")
        assert "NOTE" not in checked(rig)
        assert "WARNING" not in rig.log()


# 81: fewer sessions than workers -------------------------------------------------------------------------------------


def test_ten_connections_serve_forty_campaigns_of_thirty_two_workers(rig: Rig) -> None:
    """81: three of the ten are kept for superusers."""
    with installed(rig, conf="max_connections = 10"):
        rig.settings(QUERY_WORKERS=32)
        names = [f"c{number}" for number in range(40)]
        for name in names:
            rig.campaign(name, pause_s=0.5)
        with rig.dialer():
            assert rig.run(timeout_s=110).code == 0
            rig.delivered(*names)
        assert "mailings take turns" in rig.log()


@pytest.mark.parametrize("limit", [3, 1])
def test_check_says_how_many_sessions_it_got(rig: Rig, limit: int) -> None:
    """81."""
    rig.campaigns("alfa", "beta", "gama", "delta", "epsilon")
    assert "database sessions" not in checked(rig)
    with limited_role(rig, f"CONNECTION LIMIT {limit}", "CONNECTION LIMIT -1"):
        assert f"grants {max(1, limit - 1)} of 4 database sessions" in checked(rig)


# 83: PgBouncer -------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_pool_of_one_connection_is_used_in_turn(rig: Rig) -> None:
    """83: the snapshot's session holds the only one there is, and is given up."""
    rig.campaign("alfa", pause_s=0.3)
    rig.campaigns("beta", "gama")
    with pgbouncer(rig, default_pool_size=1), rig.dialer():
        assert rig.run().code == 0
        rig.delivered("alfa", "beta", "gama")
        assert "1 of 3 database sessions" in checked(rig)


def test_a_pool_that_others_keep_busy_is_waited_for(rig: Rig) -> None:
    """83: PgBouncer says so with 08P01, and ends the session."""
    rig.campaigns("alfa", "beta")
    rig.settings(**PATIENT)
    with pgbouncer(rig, default_pool_size=1, query_wait_timeout=1) as pooler, rig.dialer():
        with pooler.connect(autocommit=False) as other:
            other.execute("SELECT 1")
            program = rig.start()
            until(lambda: " retry 1 of" in rig.log(), "the pooler has refused", 30)
        assert program.wait().code == 0
        rig.delivered("alfa", "beta")


@pytest.mark.long
def test_a_query_that_a_pooler_breaks_off_is_tried_again(rig: Rig) -> None:
    """83: 08P01 in the middle of a transaction."""
    rig.campaign("alfa", pause_s=2)
    rig.settings(**PATIENT)
    with pgbouncer(rig, query_timeout=1), rig.dialer():
        assert rig.run().code == 4
        assert "alfa: retry 4 of 4" in rig.log()
        rig.delivered()


@pytest.mark.long
@pytest.mark.parametrize("size", [1, 3])
def test_a_temp_table_works_behind_a_pooler_every_time(rig: Rig, size: int) -> None:
    """83: what is left in a pooled connection meets whoever gets it next."""
    sql = "CREATE TEMP TABLE base AS SELECT '11980000001' AS telefone;\nSELECT telefone FROM base"
    rig.campaign("alfa", sql=sql, read_only="no")
    rig.campaign("beta", sql=sql, read_only="no")
    with pgbouncer(rig, default_pool_size=size), rig.dialer() as dialer:
        for _ in range(3):
            assert rig.run().code == 0, rig.log()
            rig.clock.jump(3600, steady_too=True)
        assert len(dialer.record) == 6 and rig.violations() == []


def test_a_startup_parameter_that_a_pooler_refuses_is_named_once(rig: Rig) -> None:
    """83."""
    rig.campaigns("alfa")
    rig.settings(PGOPTIONS="-c geqo=off")
    with pgbouncer(rig), rig.dialer():
        program = rig.run()
        assert program.code == 5
        assert "unsupported startup parameter: options" in program.output
        assert "PGOPTIONS" in program.output and "ignore_startup_parameters" in program.output
        assert " retry " not in rig.log()
        rig.delivered()


def test_a_pooler_in_statement_mode_is_named_once(rig: Rig) -> None:
    """83: it takes no BEGIN, which stays so; the hint was that it would be tried again by itself."""
    rig.campaigns("alfa", "beta")
    with pgbouncer(rig, "statement"), rig.dialer():
        program = rig.run()
        assert program.code == 5
        assert "pool_mode" in program.output and " retry " not in rig.log()
        assert "pool_mode" in checked(rig, 5)
        rig.delivered()


# 83: Pgpool-II -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_only", ["yes", "no"])
def test_a_pooler_that_loses_the_transaction_is_found_out(rig: Rig, read_only: str) -> None:
    """83: without its BEGIN a query has no timeout and no snapshot, and what it writes stays whatever happens."""
    rig.campaign("alfa", read_only=read_only)
    rig.campaign("beta", sql="INSERT INTO escrita VALUES ('perdida') RETURNING nota", read_only="no")
    rig.settings(PGSSLMODE="disable")
    with LosesBegin(rig.stage.database.port) as line, rig.dialer():
        rig.settings(PGHOST=line.host, PGPORT=line.port)
        program = rig.run()
        assert program.code == 5
        assert "transaction_isolation" in rig.log()
        rig.delivered()
        assert "transaction_isolation" in checked(rig, 5)
    with rig.stage.database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM escrita WHERE nota = 'perdida'").fetchone() == (0,)


@pytest.mark.parametrize("reserved", [0, 1])
def test_a_pgpool_with_few_children_serves_every_mailing_in_turn(rig: Rig, reserved: int) -> None:
    """83: with reserved_connections it refuses the next login, without it lets it wait for ever."""
    names = [f"c{number}" for number in range(6)]
    for name in names:
        rig.campaign(name, pause_s=0.3)
    rig.settings(RETRY_ATTEMPTS=2)
    with pgpool(rig, num_init_children=2 + reserved, reserved_connections=reserved), rig.dialer():
        assert rig.run().code == 0
        rig.delivered(*names)


def test_what_a_query_writes_through_pgpool_is_kept_with_its_mailing(rig: Rig) -> None:
    """83: its temp table, its timeout and its COMMIT reach the one transaction."""
    sql = (
        "CREATE TEMP TABLE base AS SELECT '11980000001' AS telefone, current_setting('statement_timeout') AS limite;\n"
        "INSERT INTO escrita VALUES ('pgpool');\nSELECT * FROM base"
    )
    rig.campaign("alfa", sql=sql, read_only="no", timeout=7)
    with pgpool(rig), rig.dialer() as dialer:
        for _ in range(2):
            assert rig.run().code == 0
            rig.clock.jump(3600, steady_too=True)
        assert [arrival.path.read_bytes() for arrival in dialer.record] == [
            b"telefone;limite\r\n11980000001;7s\r\n"
        ] * 2
    with rig.stage.database.connect() as connection:
        assert connection.execute("DELETE FROM escrita WHERE nota = 'pgpool'").rowcount == 2


# 82: several servers -------------------------------------------------------------------------------------------------


def test_a_snapshot_behind_an_address_of_several_servers_is_given_up(rig: Rig) -> None:
    """82."""
    need(installed_binaries(), "postgresql")
    rig.campaigns("alfa", "beta", "gama", "delta")
    second = InstalledPostgres()
    second.password = rig.stage.database.password
    with second, Balancer(rig.stage.database.port, second.port) as line, rig.dialer():
        rig.settings(PGHOST=line.host, PGPORT=line.port)
        assert rig.run().code == 0
        rig.delivered("alfa", "beta", "gama", "delta")
        assert rig.log().count("each query sees its own") == 1


# 84: other languages -------------------------------------------------------------------------------------------------

LOGINS = {
    "wrong password": {"PGPASSWORD": "wrong-canary"},
    "unknown database": {"PGDATABASE": "nenhuma"},
    "unknown role": {"PGUSER": "ninguem"},
    "NOLOGIN": {"PGUSER": "parado", "PGPASSWORD": "parado-canary"},
    "no CONNECT": {"PGDATABASE": "fechada"},
}


@pytest.fixture(scope="module", params=["de", "es", "fr"])
def foreign_server(request: pytest.FixtureRequest) -> Iterator[LocalPostgres]:
    """A PostgreSQL that speaks another language."""
    need(installed_binaries(), "postgresql")
    with InstalledPostgres(language=request.param) as database:
        with database.connect() as connection:
            for statement in (
                "CREATE ROLE parado NOLOGIN PASSWORD 'parado-canary'",
                "CREATE DATABASE fechada",
                "REVOKE CONNECT ON DATABASE fechada FROM public",
            ):
                connection.execute(statement)
        yield database


@pytest.mark.parametrize("login", LOGINS.values(), ids=LOGINS.keys())
def test_a_refused_login_is_tried_once_in_any_language(
    rig: Rig, foreign_server: LocalPostgres, login: dict[str, str]
) -> None:
    """84."""
    rig.campaigns("alfa", "beta")
    with Proxy(foreign_server.port) as line, rig.dialer():
        rig.settings(**foreign_server.environment() | {"PGPORT": str(line.port)} | login)
        program = rig.run()
        assert program.code == 5
        assert line.accepted == 1
        assert set(login) & set(program.output.replace(",", " ").split())
        rig.delivered()


def test_a_foreign_server_that_has_no_session_left_is_used_in_turn(rig: Rig, foreign_server: LocalPostgres) -> None:
    """84: 'too many' names the role as well, and passes."""
    rig.settings(**foreign_server.environment())
    usual, rig.stage.database = rig.stage.database, foreign_server
    for number in range(4):
        rig.campaign(f"c{number}", pause_s=0.3)
    try:
        with limited_role(rig, "CONNECTION LIMIT 2", "CONNECTION LIMIT -1"), rig.dialer():
            assert rig.run().code == 0
            rig.delivered("c0", "c1", "c2", "c3")
    finally:
        rig.stage.database = usual


def refusal(says: str, sqlstate: str = "28P01", encoding: str = "latin-1", severity: str = "FATAL") -> bytes:
    """An ErrorResponse, as a server answers the first words of a client."""
    texts = {b"S": severity, b"V": "FATAL", b"C": sqlstate, b"M": says}
    fields = b"".join(kind + value.encode(encoding) + b"\0" for kind, value in texts.items())
    return b"E" + struct.pack(">I", len(fields) + 5) + fields + b"\0"


@pytest.mark.parametrize(
    ("says", "sqlstate", "tried"),
    [
        ('autenticação do tipo senha falhou para o usuário "mailing"', "28P01", 1),
        ('banco de dados "cobranca" não existe', "3D000", 1),
        ('role "mailing" não existe', "28000", 1),
        ('role "mailing" não tem permissão para efetuar login', "28000", 1),
        ('permissão negada para banco de dados "cobranca"', "42501", 1),
        ('nenhuma entrada no pg_hba.conf para máquina "10.0.0.9", usuário "mailing"', "28000", 1),
        ("la autentificación falló para el usuario «mailing»", "28P01", 1),
        ("Datenbank »cobranca« existiert nicht", "3D000", 1),
        ("o sistema de banco de dados está iniciando", "57P03", 2),
        ("o sistema de banco de dados está desligando", "57P03", 2),
        ('muitas conexões para role "mailing"', "53300", 2),
        ("desculpe, muitos clientes conectados", "53300", 2),
        ("demasiadas conexiones para el rol «mailing»", "53300", 2),
    ],
)
def test_a_refusal_in_the_bytes_of_a_windows_server(rig: Rig, says: str, sqlstate: str, tried: int) -> None:
    """84: before a login a server speaks in its own language and bytes. What passes is tried again."""
    rig.campaigns("alfa")
    rig.settings(PGSSLMODE="disable", RETRY_ATTEMPTS=2)
    with rig.database_line() as line, rig.dialer():
        line.answer_next(refusal(says, sqlstate), connections=9)
        program = rig.run(constants={"PROBE_TIMEOUT_S": 0.2})  # what answers so is no SSH server
        assert program.code == 5
        assert rig.log().count(" retry ") == tried - 1
        assert "senha" in says or says in rig.log(), "it is told in letters that can be read"
        rig.delivered()


# 84: databases without an encoding of their own ----------------------------------------------------------------------


@contextlib.contextmanager
def old_database(rig: Rig) -> Iterator[LocalPostgres]:
    """An SQL_ASCII database that holds LATIN1 bytes, in its columns' names too."""
    with installed(rig, encoding="SQL_ASCII") as database:
        with database.connect() as connection:
            connection.execute("SET client_encoding = 'LATIN1'")
            connection.execute('CREATE TABLE pessoas (telefone text, "situação" text, nome text)')
            connection.execute("INSERT INTO pessoas VALUES ('11980000001', 'ativa', 'João Conceição')")
        yield database


@pytest.mark.parametrize("encoding", ["LATIN1", "win1252"])
def test_latin1_bytes_arrive_as_letters_where_the_settings_say_what_they_are(rig: Rig, encoding: str) -> None:
    """84: those of the query file too."""
    sql = "SET LOCAL work_mem = '8MB';\nSELECT * FROM pessoas WHERE nome = 'João Conceição' -- → ação"
    rig.campaign("alfa", sql=sql, columns="telefone;situação;nome")
    rig.settings(PGCLIENTENCODING=encoding)
    with old_database(rig), rig.dialer() as dialer:
        assert "FAULT" not in checked(rig)
        assert rig.run().code == 0
        rig.delivered("alfa")
        expected = "telefone;situação;nome\r\n11980000001;ativa;João Conceição\r\n"
        assert dialer.record[0].path.read_bytes().decode() == expected


@pytest.mark.parametrize("column", ["nome", '"situação"', "*"])
def test_latin1_bytes_without_a_word_about_them_are_told_as_that(rig: Rig, column: str) -> None:
    """84: and what to set."""
    rig.campaign("alfa", sql=f"SELECT {column} FROM pessoas")
    rig.campaign("beta", sql="SELECT telefone FROM pessoas")
    with old_database(rig), rig.dialer():
        program = rig.run()
        assert program.code == 4
        assert "internal error" not in program.output
        assert column == '"situação"' or "PGCLIENTENCODING" in program.output
        rig.delivered("beta")


@pytest.mark.parametrize("encoding", ["cp1252", "EUC_TW"])
def test_a_client_encoding_that_nobody_knows_is_told_once(rig: Rig, encoding: str) -> None:
    """84."""
    rig.campaign("alfa", sql="SELECT telefone FROM pessoas")
    rig.settings(PGCLIENTENCODING=encoding)
    with old_database(rig), rig.dialer():
        program = rig.run()
        assert program.code in (4, 5)
        assert "internal error" not in program.output and " retry " not in rig.log()
        rig.delivered()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_TW"])
def test_a_client_encoding_spoils_no_database_that_knows_its_own(rig: Rig, encoding: str) -> None:
    """84."""
    rig.campaign("alfa", sql="SELECT 'João ☎' AS nome")
    rig.settings(PGCLIENTENCODING=encoding)
    with rig.dialer() as dialer:
        assert rig.run().code == 0
        assert "WARNING" not in rig.log()
        assert dialer.record[0].path.read_bytes().decode() == "nome\r\nJoão ☎\r\n"


# Limits and ends that others set -------------------------------------------------------------------------------------


def test_a_transaction_timeout_of_the_server_ends_no_mailing(rig: Rig) -> None:
    rig.campaign("alfa", pause_s=1.5)
    rig.campaign("beta", sql="SELECT pg_sleep(1.5);\nSELECT 1 AS n", read_only="no")
    with limited_role(rig, "SET transaction_timeout = '700ms'", "RESET transaction_timeout"), rig.dialer():
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")
        assert " retry " not in rig.log() and "WARNING" not in rig.log()


def test_an_administrators_cancel_is_told_as_that(rig: Rig) -> None:
    rig.campaign("alfa", pause_s=3)
    rig.settings(RETRY_ATTEMPTS=1)
    with rig.dialer():
        program = rig.start()
        rig.stage.execute(f"SELECT pg_cancel_backend({rig.busy_backend()})")
        assert program.wait().code == 4
        assert "canceling statement due to user request (57014)" in rig.log()
        assert "cancelled" in program.output and "took too long" not in program.output
        rig.delivered()


def test_a_query_that_took_too_long_is_told_as_that(rig: Rig) -> None:
    rig.campaign("alfa", pause_s=9, timeout=1)
    rig.settings(RETRY_ATTEMPTS=1)
    with rig.dialer():
        program = rig.run()
        assert program.code == 4
        assert "took too long" in program.output and "cancelled" not in program.output


def test_a_session_that_an_administrator_ended_is_told_as_that(rig: Rig) -> None:
    rig.campaign("alfa", pause_s=3)
    rig.settings(RETRY_ATTEMPTS=1)
    with rig.dialer():
        program = rig.start()
        rig.terminate(rig.busy_backend())
        assert program.wait().code == 4
        assert "terminating connection due to administrator command (57P01)" in rig.log()


# What somebody should know -------------------------------------------------------------------------------------------


def test_a_line_from_another_machine_without_tls_is_told(rig: Rig) -> None:
    """In --check, and once in the log."""
    if not outer_address():
        pytest.skip("this machine has no address but its loopback")
    rig.campaigns("alfa", "beta")
    assert "PGSSLMODE" not in checked(rig)
    with FromOutside(rig.stage.database.port) as line, rig.dialer():
        rig.settings(PGHOST=line.host, PGPORT=line.port)
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")
        assert rig.log().count("PGSSLMODE=verify-full") == 1
        told = checked(rig)
        assert told.count("PGSSLMODE=verify-full") == 1 and "NOTE" in told


def test_a_line_with_tls_is_nothing_to_tell(rig: Rig) -> None:
    if not outer_address():
        pytest.skip("this machine has no address but its loopback")
    rig.campaigns("alfa")
    with installed(rig) as database, rig.dialer():
        write_certificate(database.data)
        rig.stage.execute("ALTER SYSTEM SET ssl = on")
        rig.stage.execute("SELECT pg_reload_conf()")
        with FromOutside(database.port) as line:
            rig.settings(PGHOST=line.host, PGPORT=line.port, PGSSLMODE="require")
            assert rig.run().code == 0
            rig.delivered("alfa")
            assert "NOTE" not in checked(rig) and "PGSSLMODE" not in rig.log()


def test_a_superuser_is_told(rig: Rig) -> None:
    """A role that may do everything is no protection."""
    rig.campaigns("alfa")
    with limited_role(rig, "SUPERUSER", "NOSUPERUSER"), rig.dialer():
        assert rig.run().code == 0
        assert rig.log().count("superuser") == 1
        told = checked(rig)
        assert told.count("superuser") == 1 and "NOTE" in told
