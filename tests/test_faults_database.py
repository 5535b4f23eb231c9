"""Faults 1 to 24: the database. What cannot be read whole is not sent; what failed for a moment is read anew, whole."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from rig.theatre import Rig, until

pytest_plugins = ["rig.plugin"]

PATIENT = {"RETRY_FIRST_SECONDS": 1, "RETRY_MAX_SECONDS": 2}


def until_retrying(rig: Rig) -> None:
    until(lambda: "retry 1 of" in rig.log(), "the program tries again")


def until_rows_flow(rig: Rig, campaign: str = "alfa", size_bytes: int = 1) -> None:
    """Until the local file of a campaign grows."""

    def grows() -> bool:
        return any(path.stat().st_size >= size_bytes for path in rig.stage.output.glob(f"*{campaign}*.part"))

    until(grows, "rows arrive")


# 1 to 6: connecting --------------------------------------------------------------------------------------------------


def test_a_database_that_is_down_costs_the_run_one_budget(rig: Rig) -> None:
    """1."""
    rig.campaigns("alfa", "beta", "gama")
    with rig.database_line() as line, rig.dialer():
        line.refuse()
        program = rig.run()
        assert program.code == 5
        assert "PGHOST" in program.output
        assert rig.log().count(" retry ") == 4
        rig.delivered()


def test_a_database_that_comes_back_meanwhile_is_read(rig: Rig) -> None:
    """1."""
    rig.campaigns("alfa", "beta")
    rig.settings(**PATIENT)
    with rig.database_line() as line, rig.dialer():
        line.refuse()
        program = rig.start()
        until_retrying(rig)
        line.accept()
        assert program.wait().code == 0
        rig.delivered("alfa", "beta")


def test_a_database_that_is_gone_for_a_moment_in_the_middle_of_a_run_is_not_taken_for_a_scarce_one(rig: Rig) -> None:
    """1. Every worker is refused, some of them several times; afterwards they work side by side again."""
    names = [f"c{number}" for number in range(8)]
    for name in names:
        rig.campaign(name, pause_s=1)
    rig.settings(QUERY_WORKERS=4, RETRY_FIRST_SECONDS=1, RETRY_MAX_SECONDS=1)
    with rig.database_line() as line, rig.dialer():
        program = rig.start()
        rig.busy_backend()
        line.refuse()
        line.cut()
        until(lambda: rig.log().count(" retry 2 of") > 1, "they try again, in vain")
        line.accept()
        until(lambda: len(rig.backends()) > 3, "several sessions beside the snapshot's")
        assert program.wait().code == 0
        rig.delivered(*names)
        assert "grants no more" not in rig.log()


def test_a_database_that_dns_does_not_know(rig: Rig) -> None:
    """2."""
    rig.campaigns("alfa")
    rig.settings(PGHOST="database.invalid", RETRY_ATTEMPTS=2)
    with rig.dialer():
        assert rig.run().code == 5
        rig.delivered()


def test_a_database_that_accepts_and_never_says_a_word(rig: Rig) -> None:
    """3. libpq's shortest timeout is two seconds."""
    rig.campaigns("alfa", "beta")
    rig.settings(RETRY_ATTEMPTS=2)
    with rig.database_line() as line, rig.dialer():
        line.keep_silent_on_connect()
        assert rig.run(connect_timeout_s=2).code == 5
        rig.delivered()


def test_a_wrong_database_password_is_tried_once(rig: Rig) -> None:
    """4."""
    rig.campaigns("alfa", "beta")
    rig.settings(PGPASSWORD="wrong-canary")
    with rig.database_line() as line, rig.dialer():
        program = rig.run()
        assert program.code == 5
        assert "PGPASSWORD" in program.output
        assert line.accepted == 1
        rig.delivered()


def test_too_many_connections_is_a_matter_of_time(rig: Rig) -> None:
    """5."""
    rig.campaigns("alfa", "beta")
    rig.settings(**PATIENT)
    rig.stage.execute("ALTER ROLE mailing CONNECTION LIMIT 0")
    try:
        with rig.dialer():
            program = rig.start()
            until_retrying(rig)
            rig.stage.execute("ALTER ROLE mailing CONNECTION LIMIT -1")
            assert program.wait().code == 0
            rig.delivered("alfa", "beta")
    finally:
        rig.stage.execute("ALTER ROLE mailing CONNECTION LIMIT -1")


@pytest.mark.parametrize(
    ("sqlstate", "says"),
    [
        ("57P03", "the database system is starting up"),
        ("57P03", "the database system is shutting down"),
        ("53300", "sorry, too many clients already"),
    ],
)
def test_a_database_that_is_starting_up_is_waited_for(rig: Rig, sqlstate: str, says: str) -> None:
    """5, 6. Said by the proxy in the server's words, since a real one starts too quickly to be met."""
    rig.campaigns("alfa")
    rig.settings(PGSSLMODE="disable")
    fields = b"".join(
        kind + text.encode() + b"\0"
        for kind, text in ((b"S", "FATAL"), (b"V", "FATAL"), (b"C", sqlstate), (b"M", says))
    )
    with rig.database_line() as line, rig.dialer():
        line.answer_next(b"E" + struct.pack(">I", len(fields) + 5) + fields + b"\0", connections=2)
        assert rig.run().code == 0
        assert says in rig.log()
        rig.delivered("alfa")


# 7 to 14: in the middle of a query -----------------------------------------------------------------------------------


def test_a_backend_that_is_terminated_in_a_query_is_replaced(rig: Rig) -> None:
    """7."""
    rig.campaign("alfa", pause_s=0.7)
    rig.campaign("beta")
    with rig.dialer():
        program = rig.start()
        rig.terminate(rig.busy_backend())
        assert program.wait().code == 0
        rig.delivered("alfa", "beta")


@pytest.mark.parametrize("victim", ["the query's", "the snapshot's", "every"])
def test_a_backend_that_is_terminated_after_many_rows_begins_its_mailing_anew(rig: Rig, victim: str) -> None:
    """8: the half file is thrown away, also where its upload had begun."""
    rig.campaign("alfa", 120_000)
    rig.campaign("beta", pause_s=1)
    with rig.database_line() as line, rig.dialer():
        line.limit(12_000_000, "down")
        program = rig.start()
        until_rows_flow(rig, size_bytes=4_000_000)
        backends = rig.backends()
        chosen = {"the query's": "active", "the snapshot's": "idle in transaction"}.get(victim)
        for pid, state in backends:
            if chosen in (None, state):
                rig.terminate(pid)
        line.limit(0)
        assert program.wait().code == 0
        rig.delivered("alfa", "beta")
        assert rig.leftovers() == []


def test_an_error_after_many_rows_sends_nothing_of_them(rig: Rig) -> None:
    """9."""
    rig.campaign(
        "alfa", sql="SELECT 11980000000 + n AS telefone, 1 / (n - 100001) AS x FROM generate_series(1, 200000) AS n"
    )
    rig.campaign("beta")
    with rig.dialer():
        assert rig.run().code == 4
        rig.delivered("beta")
        assert rig.states()["alfa"] == "failed"
        assert rig.leftovers() == []
    assert [path.name for path in rig.stage.output.glob("*alfa*")] == []


def test_a_query_that_takes_too_long_is_tried_once_more_and_holds_up_nobody(rig: Rig) -> None:
    """10."""
    rig.campaign("alfa", pause_s=30, timeout=1)
    rig.campaign("beta")
    with rig.dialer():
        program = rig.run()
        assert program.code == 4
        assert "timeout" in program.output
        assert rig.log().count("alfa: retry") == 1
        rig.delivered("beta")


def test_a_table_that_is_locked_is_waited_for(rig: Rig) -> None:
    """11."""
    rig.campaign("alfa", sql="SELECT telefone, nome FROM contatos LIMIT 7")
    rig.campaign("beta")
    with rig.stage.database.connect(autocommit=False) as locker, rig.dialer():
        locker.execute("LOCK TABLE contatos IN ACCESS EXCLUSIVE MODE")
        program = rig.start(constants={"LOCK_TIMEOUT_S": 1})
        until_retrying(rig)
        locker.rollback()
        assert program.wait().code == 0
        rig.delivered("alfa", "beta")


def test_a_backend_that_is_frozen_is_given_up(rig: Rig) -> None:
    """12: statement_timeout does not work in a process that stands still; the program's own limit does."""
    rig.campaign("alfa", pause_s=2, timeout=3)
    rig.campaign("beta", timeout=3)  # on a busy machine it may be this one that is frozen
    with rig.dialer():
        program = rig.start(constants={"GRACE_S": 1})
        with rig.frozen(rig.busy_backend()):
            assert program.wait().code == 0
        assert "fell silent" in rig.log()
        rig.delivered("alfa", "beta")


def test_a_network_that_falls_silent_in_mid_result_is_given_up(rig: Rig) -> None:
    """13."""
    rig.campaign("alfa", 120_000, timeout=3)
    with rig.database_line() as line, rig.dialer():
        line.limit(12_000_000, "down")
        program = rig.start(constants={"GRACE_S": 1})
        until_rows_flow(rig, size_bytes=4_000_000)
        line.silence()
        until_retrying(rig)
        line.limit(0)
        line.speak()
        assert program.wait().code == 0
        rig.delivered("alfa")


@pytest.mark.parametrize("after", [300, 2_000, 100_000, 4_500_000])
def test_a_network_that_is_cut_at_any_byte_of_the_results(rig: Rig, after: int) -> None:
    """13: in the greeting, the login, the snapshot, the rows."""
    rig.campaign("alfa", 60_000)
    with rig.database_line() as line, rig.dialer():
        line.cut_after(after, "down")
        assert rig.run().code == 0
        rig.delivered("alfa")


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_database_that_is_restarted_between_two_queries(rig: Rig, mode: Any) -> None:
    """14: everything that was open is gone, the shared snapshot too."""
    rig.campaign("alfa")
    rig.campaign("beta", pause_s=1)
    rig.campaign("gama")
    rig.settings(QUERY_WORKERS=1, RETRY_ATTEMPTS=8, **PATIENT)
    with rig.dialer() as dialer:
        program = rig.start()
        dialer.wait_for(1)
        rig.stage.database.restart(mode)
        assert program.wait().code == 0
        rig.delivered("alfa", "beta", "gama")


# 15 to 21: the data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guard", "state", "code"), [({}, "empty", 0), ({"min_rows": 0}, "empty", 0), ({"min_rows": 1}, "held", 4)]
)
def test_an_empty_mailing_never_arrives(rig: Rig, guard: dict[str, Any], state: str, code: int) -> None:
    """15."""
    rig.campaign("alfa", 0, **guard)
    rig.campaign("beta")
    with rig.dialer():
        assert rig.run().code == code
        assert rig.states()["alfa"] == state
        rig.delivered("beta")


@pytest.mark.parametrize(("rows", "state"), [(10, "held"), (29, "held"), (30, "delivered")])
def test_a_mailing_that_collapsed_is_held(rig: Rig, rows: int, state: str) -> None:
    """16: against the median of the last mailings."""
    rig.campaign("alfa", 100, max_drop="70%")
    with rig.dialer() as dialer:
        for _ in range(3):
            assert rig.run().code == 0
            rig.clock.jump(3600, steady_too=True)
        rig.stage.query(
            "01_alfa", rig.stage.queries.joinpath("01_alfa.sql").read_text().replace("1, 100)", f"1, {rows})")
        )
        rig.run()
        assert rig.states()["alfa"] == state
        assert len(dialer.record) == 3 + (state == "delivered")
        assert rig.violations() == []


def test_a_mailing_that_exploded_is_held(rig: Rig) -> None:
    """17: ×20, before it has been read to the end."""
    rig.campaign("alfa", 100_000, max_rows=5_000)
    rig.campaign("beta", 100, max_rows=100)
    with rig.dialer():
        assert rig.run().code == 4
        assert rig.states() == {"alfa": "held", "beta": "delivered"}
        rig.delivered("beta")
        assert rig.leftovers() == []


COLUMNS = {
    "renamed": "SELECT '11980000001' AS fone, 'Ana' AS nome",
    "missing": "SELECT '11980000001' AS telefone",
    "one more": "SELECT '11980000001' AS telefone, 'Ana' AS nome, 1 AS extra",
    "reordered": "SELECT 'Ana' AS nome, '11980000001' AS telefone",
    "duplicated": "SELECT '11980000001' AS telefone, 'Ana' AS nome, 'Ana' AS nome",
    "in capitals": "SELECT '11980000001' AS \"Telefone\", 'Ana' AS nome",
    "none at all": "SELECT",
}


@pytest.mark.parametrize("sql", COLUMNS.values(), ids=COLUMNS.keys())
def test_another_layout_is_held(rig: Rig, sql: str) -> None:
    """18: a dialer reads columns by their place."""
    rig.campaign("alfa", sql=sql, columns="telefone;nome")
    rig.campaign("beta")
    with rig.dialer():
        assert rig.run().code == 4
        assert rig.states()["alfa"] == "held"
        rig.delivered("beta")


def test_a_column_that_comes_twice_is_held_without_any_contract(rig: Rig) -> None:
    """18."""
    rig.campaign("alfa", sql="SELECT '11980000001' AS telefone, 'Ana' AS nome, 'Ana' AS nome")
    with rig.dialer():
        assert rig.run().code == 4
        rig.delivered()


def test_garbage_in_a_phone_column_calls_nobody(rig: Rig) -> None:
    """19."""
    garbage = "VALUES ('abc', 'Ana'), ('', 'Bia'), (NULL, 'Caio'), ('00000000000', 'Davi'), ('11980000001', 'Eva')"
    rig.campaign("alfa", sql=f"SELECT * FROM ({garbage}) AS v(telefone, nome)", phones="telefone")
    rig.campaign(
        "beta", sql="SELECT 'abc' AS telefone, 'Ana' AS nome FROM generate_series(1, 50)", phones="telefone", min_rows=1
    )
    with rig.dialer() as dialer:
        assert rig.run().code == 4
        rig.delivered("alfa")
        assert dialer.record[0].path.read_bytes() == b"telefone;nome\r\n11980000001;Eva\r\n"
        assert rig.states()["beta"] == "held"


def test_nobody_is_called_twice(rig: Rig) -> None:
    """20: duplicates over block boundaries as well."""
    columns = "'119' || 80000000 + n % 5000 AS telefone, rpad('x', 90) || n AS nome"
    rig.campaign("alfa", sql=f"SELECT {columns} FROM generate_series(1, 100000) AS n", unique="telefone")
    with rig.dialer() as dialer:
        assert rig.run().code == 0
        rig.delivered("alfa")
        phones = [line.split(b";")[0] for line in dialer.record[0].path.read_bytes().splitlines()[1:]]
        assert len(phones) == len(set(phones)) == 5000


def test_a_character_that_the_encoding_lacks_becomes_a_question_mark(rig: Rig) -> None:
    """21: and does not cost the mailing."""
    rig.campaign("alfa", sql="SELECT 'João 😀 ☎' AS nome, 'Ω' AS \"título\"", encoding="latin-1")
    with rig.dialer() as dialer:
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert dialer.record[0].path.read_bytes() == "nome;título\r\nJoão ? ?;?\r\n".encode("latin-1")
        assert "3 characters" in str(rig.ledger[0]["message"])


# 22 to 24: the query files -------------------------------------------------------------------------------------------

ROW = "SELECT 'a' AS x, '100%' AS y"
GOOD = {
    "percent signs": b"SELECT 'a' AS x, '100%' AS y WHERE 'abc' LIKE '%b%' AND 5 % 3 = 2",
    "trailing semicolon": f"{ROW};".encode(),
    "semicolons and blanks": f"{ROW} ; \n ; \n".encode(),
    "trailing comment": f"{ROW} -- the end".encode(),
    "comment after the semicolon": f"{ROW}; -- the end\n/* really */".encode(),
    "BOM": b"\xef\xbb\xbf" + ROW.encode(),
    "CRLF": f"-- min_rows: 1\r\n{ROW}\r\n;\r\n".encode(),
    "several statements": f"SET LOCAL work_mem = '8MB'; SELECT 1; {ROW}".encode(),
    "a semicolon in a string": b"SELECT 'a' AS x, '100%' AS y WHERE ';' = $$;$$ /* ; /* ; */ */",
    "WITH": b"WITH t AS (SELECT 'a' AS x, '100%' AS y) SELECT * FROM t",
    "VALUES": b"SELECT * FROM (VALUES ('a', '100%')) AS v(x, y)",
    "in brackets": f"({ROW})".encode(),
    "INSERT in a string": b"SELECT 'a' AS x, '100%' AS y WHERE 'COMMIT; COPY x FROM y' <> ''",
}
BAD = {
    "comments only": b"-- just a note\n/* nothing */\n",
    "empty": b"",
    "COPY inside": f"COPY ({ROW}) TO STDOUT".encode(),
    "COPY before": f"COPY (SELECT 1) TO STDOUT; {ROW}".encode(),
    "COMMIT inside": f"COMMIT; {ROW}".encode(),
    "ROLLBACK after": f"{ROW}; ROLLBACK".encode(),
    "ends with a SET": f"{ROW}; SET LOCAL work_mem = '8MB'".encode(),
    "quote without end": b"SELECT 'a AS x",
    "not UTF-8": "SELECT 'ção' AS x".encode("latin-1"),
}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD.keys())
def test_a_query_file_may_be_written_like_this(rig: Rig, text: bytes) -> None:
    """22."""
    rig.campaign("alfa").write_bytes(text)
    with rig.dialer() as dialer:
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert dialer.record[0].path.read_bytes() == b"x;y\r\na;100%\r\n"


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_a_query_file_like_this_is_a_fault_before_anything_runs(rig: Rig, text: bytes) -> None:
    """22: alone, there is nothing to run; beside others it fails alone."""
    rig.campaign("alfa").write_bytes(text)
    with rig.database_line() as line:
        alone = rig.run()
        assert alone.code == 2
        assert "01_alfa.sql" in alone.output
        assert line.accepted == 0 and rig.leftovers() == []
        rig.campaign("beta")
        with rig.dialer():
            program = rig.run()
            assert program.code == 4
            assert "01_alfa.sql" in program.output
            assert rig.log().rindex("01_alfa.sql") < rig.log().index("beta: exported")
            rig.delivered("beta")


WRITING = {
    "INSERT … RETURNING": "INSERT INTO escrita VALUES ('x') RETURNING nota",
    "in a WITH": "WITH w AS (INSERT INTO escrita VALUES ('x') RETURNING nota) SELECT nota FROM w",
    "before the SELECT": "INSERT INTO escrita VALUES ('x'); SELECT 'a' AS x",
    "through a COMMIT in DO": "DO $$ BEGIN INSERT INTO escrita VALUES ('x'); COMMIT; END $$; SELECT 'a' AS x",
}


@pytest.mark.parametrize("sql", WRITING.values(), ids=WRITING.keys())
def test_a_query_that_writes_fails_alone_and_has_written_nothing(rig: Rig, sql: str) -> None:
    """23."""
    with rig.stage.database.connect() as connection:
        connection.execute("DELETE FROM escrita")  # another test may have been allowed to write
    rig.campaign("alfa", sql=sql)
    rig.campaign("beta")
    with rig.dialer():
        assert rig.run().code == 4
        rig.delivered("beta")
    with rig.stage.database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM escrita").fetchone() == (0,)


GOLDEN_SQL = r"""
SELECT * FROM (VALUES
    (NULL::bigint, '011999887766', 1.10::numeric, true, date '0044-03-15 BC', 'infinity'::timestamp, 'a;b', 'say "no"'),
    (5, '', 0.00, NULL, 'infinity', NULL, E'two\nlines', E'tab\there'),
    (9007199254740993, 'NA', 'NaN', false, '2026-12-22', '2026-12-22 10:00:00.5', E'back\\slash', ' blanks '),
    (-1, '=1+1', 12345678901234567890.123456789, false, NULL, NULL, '', E'caf\u00e9 \u2028 \\N')
) AS v(inteiro, telefone, valor, ativo, data, momento, texto, outro)
"""
GOLDEN = (
    "inteiro;telefone;valor;ativo;data;momento;texto;outro\r\n"
    ';011999887766;1.10;t;0044-03-15 BC;infinity;"a;b";"say ""no"""\r\n'
    "5;;0.00;;infinity;;two lines;tab here\r\n"
    "9007199254740993;NA;NaN;f;2026-12-22;2026-12-22 10:00:00.5;back\\slash;blanks\r\n"
    "-1;=1+1;12345678901234567890.123456789;f;;;;café \\N\r\n"
)


def test_every_byte_of_a_mailing_is_as_the_server_wrote_it(rig: Rig) -> None:
    """24."""
    rig.campaign("alfa", sql=GOLDEN_SQL)
    with rig.dialer() as dialer:
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert dialer.record[0].path.read_bytes().decode() == GOLDEN


@pytest.mark.parametrize("workers", [4, 6])
def test_sessions_that_idle_and_break_with_a_query_s_cost_it_no_try(rig: Rig, workers: int) -> None:
    """One cut, and the database can be reached all the time."""
    names = [f"c{number}" for number in range(workers - 1)]
    rig.settings(QUERY_WORKERS=workers)
    rig.campaign("lenta", pause_s=2)
    for name in names:
        rig.campaign(name, pause_s=0.5)
    with rig.database_line() as line, rig.dialer():
        program = rig.start()
        until(lambda: list(rig.states().values()).count("delivered") == len(names), "the others are out")
        line.cut()
        assert program.wait().code == 0, rig.log()
        rig.delivered("lenta", *names)
