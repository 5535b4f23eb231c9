"""Faults 65 to 71: where the program stands, what surrounds it, what it must not tell, and what it may delete."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from rig.faulty_sftp import ALWAYS
from rig.theatre import Rig
from stage import PROGRAM, clean_environ

pytest_plugins = ["rig.plugin"]

DAY_S = 24 * 3600
TESTS = Path(__file__).parent


def real_process(
    rig: Rig, command: list[str] | str, cwd: Path | None = None, **environ: str
) -> subprocess.CompletedProcess[bytes]:
    """The program as a shell starts it, with the machine's own clock and nothing prepared."""
    rig.settings(RUN_DAYS="mon-sun", RUN_HOURS="00:00-23:59")
    return subprocess.run(
        command,
        cwd=cwd,
        env=clean_environ() | environ,
        capture_output=True,
        timeout=60,
        shell=isinstance(command, str),
        check=False,
    )


def delivered_some_time(rig: Rig, *campaigns: str) -> None:
    """The judge without its hours: a real process sees the machine's own clock."""
    assert rig._dialer is not None
    assert [v for v in rig.violations() if "outside its hours" not in v] == []
    assert sorted(arrival.campaign for arrival in rig._dialer.record) == sorted(campaigns)


# 65 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Cobrança & Cia! (50%)", "mailing ^ %TEMP% 'a'", "percent%20 [x] {y}"])
def test_any_folder_and_any_working_directory(rig: Rig, name: str, tmp_path: Path) -> None:
    """65: the program beside its config.env, found by its own path, started from elsewhere."""
    rig.campaigns("alfa", "beta")
    home = tmp_path / name
    with rig.dialer():
        rig.settings(RUN_DAYS="mon-sun", RUN_HOURS="00:00-23:59")
        shutil.copytree(rig.stage.folder, home)
        shutil.copy(PROGRAM, home)
        rig.stage.output, rig.stage.logs = home / "output", home / "logs"
        done = real_process(rig, [sys.executable, str(home / PROGRAM.name)], cwd=Path("/"))
        assert done.returncode == 0, done.stderr
        delivered_some_time(rig, "alfa", "beta")
    assert (home / "output" / "ledger.sqlite3").exists()
    assert list((home / "logs").iterdir())


def test_a_relative_config_is_found_from_the_working_directory(rig: Rig) -> None:
    """65."""
    rig.campaigns("alfa")
    with rig.dialer():
        done = real_process(rig, [sys.executable, str(PROGRAM), "--config", "config.env"], cwd=rig.stage.folder)
        assert done.returncode == 0, done.stderr
        delivered_some_time(rig, "alfa")


# 66 ------------------------------------------------------------------------------------------------------------------

CONSOLES = {
    "no stdout": ">&-",
    "no stderr": "2>&-",
    "neither": ">&- 2>&-",
    "nothing at all": "<&- >&- 2>&-",
    "stdout is full": "> /dev/full",
    "stdout and stderr are full": "> /dev/full 2>&1",
    "a reader that went away": "| true",
}


@pytest.mark.parametrize(
    ("console", "options"),
    [(console, "--scheduled") for console in CONSOLES.values()]
    + [
        (CONSOLES[name], option)
        for name in ("neither", "stdout is full", "a reader that went away")
        for option in ("", "--json")
    ],
)
def test_without_a_console_everything_is_delivered(rig: Rig, console: str, options: str) -> None:
    """66: what cannot be shown is no reason to fail, least of all between upload and ledger."""
    rig.campaigns("alfa", "beta")
    with rig.dialer():
        command = f"'{sys.executable}' '{PROGRAM}' --config '{rig.stage.config}' {options} {console}"
        done = real_process(rig, command)
        delivered_some_time(rig, "alfa", "beta")
        assert done.returncode == 0, done.stderr
        assert "internal error" not in rig.log()


@pytest.mark.parametrize(("encoding", "language"), [("cp1252", "en"), ("cp850", "pt"), ("ascii", "pt")])
def test_a_console_of_another_encoding(rig: Rig, encoding: str, language: str) -> None:
    """66: with names in the messages that it lacks."""
    rig.campaign("alfa", sql="SELECT '11980000001' AS \"telefone ☎ ação\"", columns="telefone 😀 Ω")
    rig.campaign("beta")
    rig.settings(LANGUAGE=language)
    with rig.dialer():
        done = real_process(rig, rig.stage.command(), PYTHONIOENCODING=encoding, PYTHONUTF8="0")
        assert done.returncode == 4, done.stderr
        assert b"Traceback" not in done.stderr
        delivered_some_time(rig, "beta")


# 67 ------------------------------------------------------------------------------------------------------------------


def log_is_a_file(rig: Rig) -> None:
    rig.stage.logs.write_text("")


def log_folder_is_missing_below_a_file(rig: Rig) -> None:
    (rig.stage.folder / "not a folder").write_text("")
    rig.settings(LOG_DIR="not a folder/logs")


def log_file_is_a_folder(rig: Rig) -> None:
    (rig.stage.logs / f"mailing_pipeline_{rig.clock.now():%Y-%m-%d}.log").mkdir(parents=True)


def log_disk_is_full(rig: Rig) -> None:
    rig.stage.logs.mkdir()
    (rig.stage.logs / f"mailing_pipeline_{rig.clock.now():%Y-%m-%d}.log").symlink_to("/dev/full")


@pytest.mark.parametrize(
    "breaks", [log_is_a_file, log_folder_is_missing_below_a_file, log_file_is_a_folder, log_disk_is_full]
)
def test_a_log_that_cannot_be_written_is_found_before_the_first_query(rig: Rig, breaks: Callable[[Rig], None]) -> None:
    """67."""
    rig.campaigns("alfa")
    breaks(rig)
    with rig.database_line() as line, rig.dialer():
        program = rig.run()
        assert program.code == 2
        assert "log" in program.output
        assert line.accepted == 0
        rig.delivered()


def test_a_log_disk_that_fills_up_in_a_run_does_not_stop_it_half_way(rig: Rig) -> None:
    """67: between upload and rename least of all."""
    rig.campaign("alfa", 2_000)
    rig.campaign("beta", pause_s=1)
    with rig.dialer():
        program = rig.start(log_fills_up=True)
        assert program.wait().code == 0
        rig.delivered("alfa", "beta")


# 68 ------------------------------------------------------------------------------------------------------------------


def test_a_missing_config_is_said(rig: Rig) -> None:
    """68."""
    rig.campaigns("alfa")
    rig.stage.config.unlink()
    program = rig.run()
    assert program.code == 2
    assert "config.env.example" in program.output


def test_a_config_with_bom_crlf_and_a_difficult_password(rig: Rig) -> None:
    """68: # and $ and quotes and blanks are the password's own."""
    rig.campaigns("alfa")
    password = "a#b $HOME ${x} 'c\" \\ é%d="
    with rig.stage.database.connect() as connection:
        connection.execute(psycopg.sql.SQL("ALTER ROLE mailing PASSWORD {}").format(password))
    try:
        rig.settings(PGPASSWORD=password)
        text = rig.stage.config.read_text(encoding="utf-8")
        rig.stage.config.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
        with rig.dialer():
            assert rig.run().code == 0
            rig.delivered("alfa")
    finally:
        with rig.stage.database.connect() as connection:
            connection.execute(psycopg.sql.SQL("ALTER ROLE mailing PASSWORD {}").format(rig.stage.database.password))


CONFIGS: dict[str, tuple[bytes, str]] = {
    "cp1252": ("SFTP_USER='João'\n".encode("cp1252"), "UTF-8"),
    "UTF-16": ("SFTP_USER='x'\n".encode("utf-16"), "UTF-8"),
    "unknown key": (b"SFTP_PASWORD=canary-secret\n", "SFTP_PASSWORD"),
    "line without a key": (b"canary-secret\n", "line"),
    "not a number": (b"SFTP_PORT=canary-secret\n", "SFTP_PORT"),
    "unclosed quote": (b"LOG_DIR='canary-secret\n", "line"),
    "NUL": (b"LOG_DIR=a\0b\n", ""),
    "set twice": (b"LOG_DIR=a\nLOG_DIR=b\n", "LOG_DIR"),
}


@pytest.mark.parametrize(("line", "names"), CONFIGS.values(), ids=CONFIGS.keys())
def test_a_broken_config_is_said_with_its_key_or_line_and_never_its_value(rig: Rig, line: bytes, names: str) -> None:
    """68."""
    rig.campaigns("alfa")
    with rig.stage.config.open("ab") as file:
        file.write(line)
    with rig.dialer():
        program = rig.run()
        assert program.code == 2, program.output
        assert names in program.output
        assert "canary-secret" not in program.output
        rig.delivered()


@pytest.mark.parametrize("key", ["SFTP_HOST", "SFTP_USER", "SFTP_PASSWORD", "SFTP_HOST_KEY"])
def test_an_empty_value_counts_as_missing(rig: Rig, key: str) -> None:
    """68."""
    rig.campaigns("alfa")
    rig.settings(**{key: ""})
    program = rig.run()
    assert program.code == 2
    assert key in program.output


def test_an_empty_value_of_a_setting_with_a_default_is_the_default(rig: Rig) -> None:
    """68."""
    rig.campaigns("alfa")
    rig.settings(CSV_DELIMITER="", QUERY_WORKERS="", PGSSLMODE="")
    with rig.dialer():
        assert rig.run().code == 0
        rig.delivered("alfa")


# 69 ------------------------------------------------------------------------------------------------------------------

PATHS = {
    "folder with ..": ("20_beta", {"folder": "../alfa"}),
    "folder with .. inside": ("20_beta", {"folder": "/entrada/../alfa"}),
    "folder with a backslash": ("20_beta", {"folder": "entrada\\beta"}),
    "name in upper case": ("20_Beta", {}),
    "name with a blank": ("20_be ta", {}),
    "name with an accent": ("20_cobrança", {}),
    "name with dots": ("20_..", {}),
    "a file name that is a path": ("20_beta", {"file_name": "../alfa/mailing_{campaign}_%H.csv"}),
    "a file name like a temp's": ("20_beta", {"file_name": ".part-{campaign}_%H"}),
    "one file name for all": ("20_beta", {"file_name": "mailing.csv"}),
}


@pytest.mark.parametrize(("name", "directives"), PATHS.values(), ids=PATHS.keys())
def test_a_campaign_cannot_leave_its_place(rig: Rig, name: str, directives: dict[str, str]) -> None:
    """69: told before any query runs, and nothing is sent for it; the others are delivered."""
    rig.campaign("alfa")
    rig.stage.query(name, "SELECT '11980000001' AS telefone", drop=False, **directives)
    with rig.dialer():
        program = rig.run()
        assert program.code == 4, program.output
        assert f"{name}.sql" in program.output
        assert rig.log().index(f"{name}.sql") < rig.log().index("alfa: exported")
        rig.delivered("alfa")


SHARED = {
    "name": {"campaign": "alfa"},
    "folder": {"folder": "alfa"},
    "folder, otherwise written": {"folder": "./alfa/"},
    "folder in capitals": {"folder": "ALFA"},
}


@pytest.mark.parametrize("directives", SHARED.values(), ids=SHARED.keys())
def test_two_campaigns_in_one_place_are_a_fault_of_both(rig: Rig, directives: dict[str, str]) -> None:
    """69: nobody can tell which of them is right; without a third there is nothing to run."""
    rig.campaign("alfa")
    rig.stage.query("20_beta", "SELECT '11980000001' AS telefone", drop=False, **directives)
    with rig.database_line() as line:
        program = rig.run()
        assert program.code == 2, program.output
        assert "01_alfa.sql" in program.output and "20_beta.sql" in program.output
        assert line.accepted == 0 and rig.leftovers() == []
        rig.campaign("gama")
        with rig.dialer():
            assert rig.run().code == 4
            rig.delivered("gama")


# 70 ------------------------------------------------------------------------------------------------------------------
# Every test with a rig ends by looking for passwords, phones and CPFs in all that its programs wrote (rig/plugin.py):
# so each fault of every file is proved for its secrets as well. These are the errors that quote a row by themselves.

PHONE, CPF = "11980001234", "90000012345"


def raising(using: str) -> str:
    return f"DO $$ BEGIN RAISE EXCEPTION 'cliente {PHONE}' USING {using}; END $$; SELECT 1 AS telefone"


QUOTING = {
    "cast of a phone": f"SELECT ('{PHONE}x')::bigint AS telefone",
    "cast inside": f"SELECT t::int AS telefone FROM (VALUES ('{PHONE}')) AS v(t)",
    "date of a CPF": f"SELECT ('{CPF}')::date AS telefone",
    "json": f"SELECT ('{{\"cpf\": {CPF}')::json AS telefone",
    "RAISE": raising(f"DETAIL = '{CPF}', HINT = '{PHONE}'"),
    "RAISE with another class": raising("ERRCODE = '42999'"),
    "RAISE of a lost connection": raising("ERRCODE = '08006'"),
    "NOTICE and WARNING": f"DO $$ BEGIN RAISE NOTICE '{PHONE}'; RAISE WARNING '{CPF}'; END $$; SELECT 1 AS telefone",
    "syntax error beside a phone": f"SELECT '{PHONE}' AS telefone FROM FROM",
    "unknown column named like a phone": f'SELECT "{PHONE}"',
    "division in a row": f"SELECT 1 / ('{PHONE}'::bigint - {PHONE}) AS telefone",
    "regular expression": f"SELECT '{PHONE}' ~ '{PHONE}(' AS telefone",
    "column named like a phone": f'SELECT 1 AS "{PHONE}", 2 AS "{PHONE}"',
    "held by its rows": f"SELECT '{PHONE}' AS telefone",
    "number that is a phone": f"SELECT {PHONE}::int AS telefone",
}


@pytest.mark.parametrize("sql", QUOTING.values(), ids=QUOTING.keys())
def test_no_error_of_a_query_tells_a_phone_or_a_cpf(rig: Rig, sql: str) -> None:
    """70: judged at the end of the test, by the rig."""
    rig.campaign("alfa", sql=sql, min_rows=2)
    with rig.dialer():
        assert rig.run(f"--{'json' if len(sql) % 2 else 'scheduled'}").code == 4
        rig.run("--dry-run")
        rig.run("--check")
        rig.delivered()
    assert rig.ledger[0]["message"]


def test_no_error_of_an_sftp_server_tells_a_password(rig: Rig) -> None:
    """70: also a server that answers with what it was sent."""
    rig.campaigns("alfa")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("password", "refuse", ALWAYS)
        assert rig.run().code == 6
        assert rig.run("--check").code == 6
        assert server.committed == 2
        rig.delivered()


def test_no_bug_tells_a_row(rig: Rig) -> None:
    """70: an error that nobody foresaw, with a phone in its text, in the middle of a mailing."""
    rig.campaign("alfa", 10)
    with rig.dialer():
        program = rig.run(bug=f"cannot convert {PHONE} of {CPF} (119) 8000-1234")
        assert program.code == 1
        assert "a bug: RuntimeError" in rig.log()
        rig.delivered()


def test_a_bug_in_the_delivery_of_one_campaign_stops_no_other(rig: Rig) -> None:
    """70: also where it falls on the connection that all of them share."""
    rig.campaigns("alfa", "beta", "gama")
    with rig.dialer():
        program = rig.run(bug_in_delivery="beta")
        assert program.code == 1
        assert "a bug: RuntimeError" in rig.log()
        rig.delivered("alfa", "gama")
        assert rig.run().code == 0
        rig.delivered("alfa", "beta", "gama")
        assert rig.leftovers() == []


def test_ctrl_c_ends_the_run_and_the_next_one_sends_the_rest(rig: Rig) -> None:
    """70, 64: an operator's interrupt is no traceback."""
    rig.campaign("alfa")
    rig.campaign("beta", pause_s=5)
    with rig.dialer() as dialer:
        program = rig.start()
        dialer.wait_for(1)
        program.send(signal.SIGINT)
        assert program.wait(20).code == 4
        assert "Traceback" not in program.output
        rig.campaign("beta")
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")


# 71 ------------------------------------------------------------------------------------------------------------------


def test_retention_deletes_only_its_own_files(rig: Rig) -> None:
    """71: by the ledger, not by a pattern; a file that a person put there stays, however old."""
    bad = "VALUES ('11980000001', 'Ana'), ('x', 'Bia')"
    rig.campaign("alfa", sql=f"SELECT * FROM ({bad}) AS v(telefone, nome)", phones="telefone")
    rig.settings(RETENTION_DAYS=7)
    with rig.dialer():
        assert rig.run().code == 0
        rig.run("--dry-run")
        old = set(rig.stage.output.rglob("*.csv"))
        assert len(old) == 4, old
        foreign = [
            rig.stage.output / name
            for name in ("mailing_manual.csv", "mailing_alfa_22-12_10-05 (copia).csv", "notas.txt")
        ]
        for path in foreign:
            path.write_text("keep")
        ancient = time.time() - 400 * DAY_S
        for path in [*rig.stage.output.rglob("*.csv"), *foreign]:
            os.utime(path, (ancient, ancient))
        rig.clock.jump(6 * DAY_S)
        rig.run()
        assert old & set(rig.stage.output.glob("*.csv"))
        rig.clock.jump(2 * DAY_S)
        rig.run()
        left = {path.name for path in rig.stage.output.rglob("*")}
        assert {path.name for path in foreign} <= left
        assert "mailing_alfa_22-12_10-05.csv" not in left
        assert "mailing_alfa_22-12_10-05_rejected.csv" not in left
        assert rig.violations() == []


# The table -----------------------------------------------------------------------------------------------------------


def test_every_fault_of_the_list_has_its_test() -> None:
    """README.md's table names all 90, those that have none yet among them, and only tests that exist."""
    readme = (TESTS / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| \d.*$", readme, re.M)
    open_ones = re.findall(r"\d+", "".join(re.findall(r"^Without a test of their own yet: (.*)$", readme, re.M)))
    assert sorted(int(number) for number in [*(line.split()[1] for line in table), *open_ones]) == list(range(1, 91))
    existing = {
        name
        for path in TESTS.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.M)
    }
    for line in table:
        named = set(re.findall(r"`(test_\w+)`", line))
        assert named, line
        assert named <= existing, named - existing
