"""The program on a real Windows CPython, under Wine, against a real PostgreSQL and a real sshd (issue 6, 4 and 5).

What Wine cannot show, a real PC must: tests/README.md has the list. Where Wine 8 differs from Windows:
- its C library makes a signal of no console event but Ctrl+C, and it has no window to close (see windows/inside.py);
- libpq finds no service file and no password file there, whatever their names (its stat() needs what ntdll lacks).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from local_servers import LocalPostgres, SftpServer, free_port
from stage import PROGRAM, PROJECT, Result, Stage, clean_environ
from windows.cpython import INSIDE, WindowsPython, WindowsStage, wait_for, windows_path

import mailing_pipeline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # the first run makes the interpreter
    pytest.mark.skipif(
        os.environ.get("WINDOWS_PYTHON") != "1",
        reason="asked for with WINDOWS_PYTHON=1: its tests of Ctrl+C and closing the window are not steady yet",
    ),
]

CONTACTS = """
SELECT telefone, nome, cpf, valor,
       CASE id % 500 WHEN 0 THEN 'ele disse "oi"; e foi' WHEN 1 THEN E'linha\\nquebrada' END AS nota
FROM (TABLE contatos UNION ALL SELECT 3000 + id, 'sem', NULL, nome, cpf, valor FROM contatos WHERE id <= 40) AS c
ORDER BY id
"""
LARGE = "SELECT n::text AS telefone, repeat('ação ', 20) AS nota FROM generate_series(1, 60000) AS n ORDER BY n"
QUICK = "SELECT telefone, nome FROM contatos ORDER BY id LIMIT 100"
# 6 MB at once, so that the upload begins, and then a row every 50 ms for as long as a test may take.
ENDLESS = """
SELECT n::text AS telefone, repeat('x', 1000) AS nota, CASE WHEN n > 6000 THEN pg_sleep(0.05)::text END AS pausa
FROM generate_series(1, 20000) AS n
"""


@pytest.fixture(scope="module")
def python() -> Iterator[WindowsPython]:
    made = WindowsPython()
    yield made
    made.stop()


NewStage = Callable[[str], WindowsStage]


@pytest.fixture(scope="module")
def new_stage(
    python: WindowsPython, database: LocalPostgres, sftp: SftpServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NewStage]:
    """Makes a project folder for the Windows Python, with drop folders of its own."""
    made: list[WindowsStage] = []

    def make(name: str) -> WindowsStage:
        made.append(WindowsStage(tmp_path_factory.mktemp(name), database, sftp, python))
        return made[-1]

    yield make
    for stage in made:
        stage.close()


def stay_inside_the_slot(seconds: int) -> None:
    """Wait for the next clock hour if less than that is left of this one: a later slot would deliver again."""
    left_s = 3600 - time.time() % 3600
    if left_s < seconds:
        time.sleep(left_s + 1)


def said(process: subprocess.Popen[bytes], timeout_s: float = 60) -> bytes:
    """What a script on the Windows Python printed; it must end well."""
    stdout, stderr = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, (stdout + stderr).decode(errors="replace")
    return stdout


@contextlib.contextmanager
def held_open(stage: WindowsStage, share: str, *paths: Path) -> Iterator[None]:
    """Another Windows program has these files open, and lets others do only what share says."""
    release = stage.elsewhere / f"release {time.monotonic_ns()}"
    process = stage.python.start(INSIDE, "hold", share, windows_path(release), *map(windows_path, paths))
    assert process.stdout is not None
    if process.stdout.readline().strip() != b"held":
        pytest.fail(said(process).decode())
    try:
        yield
    finally:
        release.touch()
        said(process)


def active_queries(campaigns: list[str], stage: Stage) -> int:
    """How many of these campaigns' queries the server is still working on."""
    with stage.database.connect() as connection:
        sql = "SELECT query FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
        running = [row[0] for row in connection.execute(sql).fetchall()]
    return sum(f"/* {stage.folder} {campaign} */" in query for query in running for campaign in campaigns)


# ---- One day: check, rehearsal, delivery, once more, status ----------------------------------------------------------


@dataclass(frozen=True)
class Day:
    stage: WindowsStage
    check: Result
    rehearsal: Result
    delivery: Result
    again: Result
    status: Result
    arrivals: list[Any]
    linux: dict[str, bytes]  # the CSV of each campaign as Linux' Python writes it
    rejected: dict[str, tuple[bytes, bytes]]  # the rejected rows, on Windows and on Linux


def day_queries(stage: Stage) -> None:
    stage.query("10_cobranca", CONTACTS, phones="telefone", unique="cpf", min_rows=50)
    stage.query("20_grande", LARGE)
    stage.query(
        "30_antiga", "SELECT 1 AS telefone, 'ação; € 名' AS nome", encoding="cp1252", newline="lf", delimiter="|"
    )
    stage.query("40_bom", QUICK, encoding="utf-8-sig", unique="telefone, nome")
    stage.query("50_vazia", "SELECT 1 AS telefone WHERE false")


@pytest.fixture(scope="module")
def day(new_stage: NewStage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    stage = new_stage("day")
    day_queries(stage)
    linux = Stage(tmp_path_factory.mktemp("linux"), stage.database, stage.sftp)
    day_queries(linux)
    rehearsed = linux.main(["--dry-run"])
    assert rehearsed.exit_code == 0, rehearsed.said
    stay_inside_the_slot(40)
    check = stage.run("--check")
    rehearsal = stage.run("--dry-run", "--json")
    with stage.dialer() as dialer:
        delivery = stage.run("--json")
        again = stage.run("--json")
        arrivals = dialer.record
    status = stage.run("--status")

    def files(folder: Path, rejected: bool) -> dict[str, bytes]:
        paths = [path for path in folder.glob("mailing_*.csv") if path.stem.endswith("_rejected") == rejected]
        return {path.name.split("_")[1]: path.read_bytes() for path in paths}

    on_windows, on_linux = files(stage.output, True), files(linux.output / "dry-run", True)
    assert on_windows.keys() == on_linux.keys()
    yield Day(
        stage,
        check,
        rehearsal,
        delivery,
        again,
        status,
        arrivals,
        files(linux.output / "dry-run", False),
        {name: (on_windows[name], on_linux[name]) for name in on_linux},
    )
    linux.close()


DELIVERED = ["antiga", "bom", "cobranca", "grande"]


def test_the_main_job_delivers_every_mailing_once(day: Day) -> None:
    assert day.delivery.exit_code == 0, day.delivery.said
    assert day.delivery.verdicts == {**dict.fromkeys(DELIVERED, "delivered"), "vazia": "empty"}
    assert sorted(arrival.campaign for arrival in day.arrivals) == DELIVERED
    assert not [name for campaign in day.stage.drops for name in day.stage.files(campaign)]


@pytest.mark.parametrize("campaign", DELIVERED)
def test_the_dialer_gets_the_very_bytes_that_linux_makes(day: Day, campaign: str) -> None:
    (arrival,) = [arrival for arrival in day.arrivals if arrival.campaign == campaign]
    assert arrival.path.read_bytes() == day.linux[campaign]
    assert arrival.size_bytes == len(day.linux[campaign])  # at the first instant: never half a file


def test_the_rejected_rows_are_the_same_bytes_too(day: Day) -> None:
    on_windows, on_linux = day.rejected["cobranca"]
    assert on_windows == on_linux
    assert on_windows.count(b"no valid phone") == 40


def test_a_second_run_in_the_slot_sends_nothing(day: Day) -> None:
    assert day.again.exit_code == 0, day.again.said
    assert {day.again.verdicts[name] for name in DELIVERED} == {"already delivered"}
    assert len(day.arrivals) == len(DELIVERED)


def test_the_rehearsal_exports_and_sends_nothing(day: Day) -> None:
    assert day.rehearsal.exit_code == 0, day.rehearsal.said
    assert {day.rehearsal.verdicts[name] for name in DELIVERED} == {"would be sent"}
    assert len(list((day.stage.output / "dry-run").glob("mailing_*.csv"))) == len(DELIVERED) + 2  # vazia, rejected


def test_the_check_finds_everything_in_order(day: Day) -> None:
    assert day.check.exit_code == 0, day.check.said
    assert "FAULT" not in day.check.stdout
    assert day.check.stdout.count("exists, can write, can rename") == 5


def test_the_status_shows_what_was_delivered(day: Day) -> None:
    assert day.status.exit_code == 0, day.status.said
    assert re.search(r"^grande .* 60k *$", day.status.stdout, re.MULTILINE), day.status.stdout
    assert re.search(r"^vazia .* 0 *$", day.status.stdout, re.MULTILINE)


def test_the_ledger_tells_the_truth_in_remote_paths_with_slashes(day: Day) -> None:
    delivered = [entry for entry in day.stage.ledger() if entry["state"] == "delivered"]
    assert sorted(entry["campaign"] for entry in delivered) == DELIVERED
    for entry in delivered:
        (arrival,) = [arrival for arrival in day.arrivals if arrival.campaign == entry["campaign"]]
        assert entry["folder"] == str(day.stage.remote_base / entry["campaign"])
        assert (entry["file"], entry["size_bytes"], entry["sha256"]) == (
            arrival.name,
            arrival.size_bytes,
            arrival.sha256,
        )
        assert "\\" not in entry["temp"]


def test_time_is_local_with_its_offset(day: Day) -> None:
    lines = [line for line in day.stage.log().splitlines() if re.match(r"\d{4}-", line)]
    assert lines
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}-03:00 ", line) for line in lines), lines
    local = datetime.fromisoformat(day.delivery.json["start"])
    assert local.utcoffset() == timedelta(hours=-3)
    assert abs(local.timestamp() - time.time()) < 600
    assert day.delivery.json["slot"] == f"{local:%Y-%m-%d %H}:00"
    assert all(f"{local:%d-%m_%H-%M}" in arrival.name for arrival in day.arrivals)


def test_a_large_mailing_is_uploaded_while_it_grows_and_then_renamed(day: Day) -> None:
    """Its .part is opened by the courier again and again; an open file could not be renamed on Windows."""
    assert len(day.linux["grande"]) > mailing_pipeline.BLOCK_BYTES
    assert not list(day.stage.output.rglob("*.part"))


def test_no_secret_reaches_log_page_or_ledger(day: Day) -> None:
    written = day.stage.everything_written() + "".join(
        result.said for result in (day.check, day.rehearsal, day.delivery, day.again, day.status)
    )
    assert day.stage.values["PGPASSWORD"] not in written
    assert day.stage.sftp.password is None or day.stage.sftp.password not in written
    assert not re.search(r"1198\d{7}|9000000\d{4}", written)


# ---- Consoles --------------------------------------------------------------------------------------------------------

CONSOLES = {
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "cp850": {"PYTHONIOENCODING": "cp850"},
    "utf-8": {"PYTHONUTF8": "1"},
    "own": {},
}


@pytest.mark.parametrize("console", CONSOLES)
def test_every_console_encoding_takes_table_help_and_messages(day: Day, console: str) -> None:
    encoding = "cp1252" if console == "own" else console
    missing = windows_path(day.stage.folder / "não há 名.env")
    calls = {
        "status": ["--config", windows_path(day.stage.config), "--status"],
        "help": ["--help"],
        "fault": ["--config", missing],
    }
    started = {name: day.stage.python.start(PROGRAM, *call, **CONSOLES[console]) for name, call in calls.items()}
    ended = {name: process.communicate(timeout=60) for name, process in started.items()}
    out = {name: (stdout + stderr).decode(encoding) for name, (stdout, stderr) in ended.items()}
    assert {name: process.returncode for name, process in started.items()} == {"status": 0, "help": 0, "fault": 2}, out
    assert "grande" in out["status"] and ("✓" if console == "utf-8" else "+") + " delivered 4" in out["status"]
    assert "exit codes:" in out["help"]
    assert "Área de trabalho\\não há " in out["fault"]
    assert "Traceback" not in "".join(out.values())


# ---- Two at once, kill and rerun -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(new_stage: NewStage) -> SimpleNamespace:
    """A run in the middle of an upload; a second one beside it; the first is killed, and the job started again."""
    stage = new_stage("killed")
    stage.query("10_pronta", QUICK)
    lenta = stage.query("20_lenta", ENDLESS)
    stay_inside_the_slot(40)
    with stage.dialer() as dialer:
        first = stage.start("--json")
        wait_for("an upload", lambda: stage.files("lenta") and len(dialer.record) == 1)
        second = stage.run("--json")
        found = re.search(r"process (\d+), started", second.json["error"])
        number = found[1] if found else "0"
        taskkill = ["wine", "taskkill", "/f", "/pid", number]
        environment = clean_environ() | stage.python.environment
        subprocess.run(taskkill, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        reported = first.communicate(timeout=30)[0]
        left = stage.files("lenta")
        ledger = stage.ledger()
        lenta.write_text(QUICK)
        third = stage.run("--json")
        arrivals = dialer.record
    return SimpleNamespace(
        stage=stage, second=second, reported=reported, left=left, ledger=ledger, third=third, arrivals=arrivals
    )


def test_a_second_run_beside_it_ends_with_3_and_names_the_holder(killed: SimpleNamespace) -> None:
    assert killed.second.exit_code == 3, killed.second.said
    assert re.search(r"process \d+, started \d{4}-\d\d-\d\d \d\d:\d\d:\d\d by hand", killed.second.json["error"])


def test_a_killed_run_leaves_nothing_that_the_dialer_takes(killed: SimpleNamespace) -> None:
    assert killed.reported == ""
    assert [name for name in killed.left if not name.startswith(".part-")] == []
    assert len(killed.left) == 1
    assert {entry["campaign"]: entry["state"] for entry in killed.ledger} == {"pronta": "delivered", "lenta": "started"}


def test_the_run_after_a_kill_gets_the_lock_and_delivers_only_what_is_missing(killed: SimpleNamespace) -> None:
    assert killed.third.exit_code == 0, killed.third.said
    assert killed.third.verdicts == {"pronta": "already delivered", "lenta": "delivered"}
    assert sorted(arrival.campaign for arrival in killed.arrivals) == ["lenta", "pronta"]
    assert killed.stage.files("lenta") == []  # the temp of the killed run is gone
    states = [entry["state"] for entry in killed.stage.ledger() if entry["campaign"] == "lenta"]
    assert states == ["failed", "delivered"]


# ---- Ctrl+C, Ctrl+Break, the window's cross --------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["ctrl_c", "ctrl_break", "close"])
def test_stopping_it_cancels_the_queries_and_leaves_nothing_partial(new_stage: NewStage, key: str) -> None:
    stage = new_stage(key)
    stage.query("10_pronta", QUICK)
    lenta = stage.query("20_lenta", f"{ENDLESS} /* {stage.folder} lenta */")
    dorme = stage.query("30_dorme", f"SELECT pg_sleep(60)::text AS telefone /* {stage.folder} dorme */")
    slow = ["lenta", "dorme"]
    stay_inside_the_slot(40)
    go = stage.elsewhere / "go"
    with stage.dialer() as dialer:
        command = [windows_path(PROGRAM), "--config", windows_path(stage.config)]
        presser = stage.python.start(INSIDE, "press", key, windows_path(go), *command)
        wait_for("an upload", lambda: stage.files("lenta") and len(dialer.record) == 1)
        wait_for("the queries", lambda: active_queries(slow, stage) == 2)
        go.touch()
        result = json.loads(said(presser))
        left = active_queries(slow, stage)
        assert [arrival.campaign for arrival in dialer.record] == ["pronta"]
        assert stage.files("lenta") == [], result
        assert not list(stage.output.glob("*.part"))
        assert {entry["campaign"]: entry["state"] for entry in stage.ledger()} == {
            "pronta": "delivered",
            "lenta": "failed",
            "dorme": "failed",
        }
        assert result["code"] == 4, result
        assert result["seconds"] < 5  # what Windows gives a program whose window is closed
        assert "exit code 4" in stage.log() and "stopped by the operator" in stage.log()
        assert left == 0, "a query goes on in the server"
        if key == "ctrl_c":
            lenta.write_text(QUICK)
            dorme.write_text(QUICK)
            again = stage.run("--json")
            assert again.verdicts == {"pronta": "already delivered", "lenta": "delivered", "dorme": "delivered"}
            assert sorted(arrival.campaign for arrival in dialer.record) == ["dorme", "lenta", "pronta"]


def test_ctrl_c_in_a_retry_pause_is_heard_at_once(new_stage: NewStage) -> None:
    stage = new_stage("pause")
    stage.query("10_pronta", QUICK)
    stage.settings(SFTP_PORT=free_port(), RETRY_FIRST_SECONDS=30, RETRY_MAX_SECONDS=60)
    go = stage.elsewhere / "go"
    command = [windows_path(PROGRAM), "--config", windows_path(stage.config)]
    presser = stage.python.start(INSIDE, "press", "ctrl_c", windows_path(go), *command)
    wait_for("a retry", lambda: " retry 1 of" in stage.log())
    go.touch()
    result = json.loads(said(presser))
    assert result["code"] == 4, result
    assert result["seconds"] < 12  # the pause is one of 15 seconds at least
    assert [entry["state"] for entry in stage.ledger()] == ["failed"]


# ---- Files that another program holds open ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held(new_stage: NewStage) -> SimpleNamespace:
    """Runs while a browser, an editor, a spreadsheet and a backup program hold the program's files."""
    stage = new_stage("held")
    stage.settings(FILE_NAME="mailing_{campaign}.csv")
    stage.query("10_alfa", QUICK)
    stage.query("20_beta", QUICK)
    stay_inside_the_slot(60)
    first = stage.run("--dry-run", "--json")
    ledger = stage.output / "ledger.sqlite3"
    (stage.output / "status.html").write_text("yesterday's")
    with contextlib.closing(mailing_pipeline.Ledger(ledger, mailing_pipeline.Clock())) as made:
        old = made.start("2020-01-01 10:00", "alfa", mailing_pipeline.PurePosixPath("/"), "mailing_old.csv")
        made.update(old, state="delivered", rows=100)
    with contextlib.closing(sqlite3.connect(ledger)) as db, db:
        db.execute("UPDATE mailings SET changed = '2020-01-01T10:00:00.000-03:00'")
    (stage.output / "mailing_old.csv").write_text("old")
    (log,) = stage.logs.glob("*.log")
    with (
        stage.dialer() as dialer,
        held_open(stage, "reading and writing", log),
        held_open(stage, "reading", stage.output / "status.html", stage.output / "mailing_old.csv"),
        held_open(stage, "reading", stage.output / "dry-run" / "mailing_beta.csv"),
    ):
        delivery = stage.run("--json")
        rehearsal = stage.run("--dry-run", "--json")
        arrivals = dialer.record
    page_while_held = (stage.output / "status.html").read_text()
    old_while_held = (stage.output / "mailing_old.csv").exists()
    with held_open(stage, "nothing", ledger):
        locked = stage.run("--json", "--resend")
    with held_open(stage, "nothing", log):
        unwritable = stage.run("--json", "--resend")
    released = stage.run("--json")
    return SimpleNamespace(**locals())


def test_an_open_page_log_or_old_mailing_keeps_nothing_from_being_delivered(held: SimpleNamespace) -> None:
    assert held.first.exit_code == 0, held.first.said
    assert held.delivery.exit_code == 0, held.delivery.said
    assert held.delivery.verdicts == {"alfa": "delivered", "beta": "delivered"}
    assert sorted(arrival.campaign for arrival in held.arrivals) == ["alfa", "beta"]


def test_an_open_log_goes_on_being_written(held: SimpleNamespace) -> None:
    assert "alfa: delivered: mailing_alfa.csv: 100 contacts" in held.delivery.log


def test_an_open_page_is_left_as_it_is_said_so_and_written_next_time(held: SimpleNamespace) -> None:
    assert held.page_while_held == "yesterday's"
    assert "the status page was not written" in held.delivery.log
    assert held.released.exit_code == 0, held.released.said
    assert (held.stage.output / "status.html").read_text() != "yesterday's"
    assert not list(held.stage.output.glob("*.part"))


def test_an_old_mailing_that_is_open_is_deleted_next_time(held: SimpleNamespace) -> None:
    assert held.old_while_held
    assert re.search(r"mailing_old\.csv: too old, but cannot be deleted", held.delivery.log)
    assert not (held.stage.output / "mailing_old.csv").exists()


def test_a_csv_that_is_open_in_a_spreadsheet_fails_its_campaign_alone(held: SimpleNamespace) -> None:
    assert held.rehearsal.exit_code == 4, held.rehearsal.said
    assert held.rehearsal.verdicts == {"alfa": "would be sent", "beta": "failed"}
    assert "close programs that hold the file open" in held.rehearsal.campaigns["beta"]["hint"]


def test_a_ledger_that_is_locked_stops_the_run_before_any_query(held: SimpleNamespace) -> None:
    assert held.locked.exit_code == 2, held.locked.said
    assert "ledger.sqlite3" in held.locked.json["error"] and "close other programs" in held.locked.json["error"]
    assert len(held.arrivals) == 2


def test_a_log_that_cannot_be_opened_is_said_on_the_console(held: SimpleNamespace) -> None:
    assert held.unwritable.exit_code in (0, 2), held.unwritable.said
    if held.unwritable.exit_code == 2:
        assert held.log.name in held.unwritable.json["error"]
    assert "Traceback" not in held.unwritable.said


# ---- Paths of config.env ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paths(new_stage: NewStage) -> Iterator[SimpleNamespace]:
    """Settings on drive C:, queries and key on Z:, spaces and accents everywhere."""
    stage = new_stage("paths")
    stage.query("10_alfa", QUICK)
    place = stage.python.prefix / "drive_c" / f"Mala Direta & Cobrança {time.monotonic_ns()}"
    place.mkdir()
    keys = stage.folder / "Chave do usuário"
    keys.mkdir()
    shutil.copy(stage.sftp.key_file, keys / "chave ação.pem")
    values = {key: value for key, value in stage.values.items() if key != "SFTP_PASSWORD"}
    values |= {
        "PGHOST": "localhost",
        "SFTP_KEY_FILE": windows_path(keys / "chave ação.pem"),
        "QUERIES_DIR": windows_path(stage.queries),
        "OUTPUT_DIR": r"saída\de hoje",
        "LOG_DIR": r"C:\logs da mala direta",
    }
    lines = [f"{key}='" + value.replace("'", "\\'") + "'" for key, value in values.items()]
    (place / "config.env").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode())
    shutil.copy(PROGRAM, place)
    process = stage.python.start(place / PROGRAM.name, "--check", PYTHONUTF8="1")
    ended = [part.decode() for part in process.communicate(timeout=60)]
    logs = stage.python.prefix / "drive_c" / "logs da mala direta"
    yield SimpleNamespace(place=place, code=process.returncode, said="\n".join(ended), logs=logs)
    shutil.rmtree(place)
    shutil.rmtree(logs, ignore_errors=True)


def test_settings_beside_the_program_may_have_drive_letters_backslashes_spaces_and_accents(
    paths: SimpleNamespace,
) -> None:
    assert paths.code == 0, paths.said
    assert "settings and queries: 1 campaigns" in paths.said
    assert "can rename" in paths.said  # and so the key was found


def test_relative_and_absolute_local_paths_go_where_they_say(paths: SimpleNamespace) -> None:
    assert (paths.place / "saída" / "de hoje" / "ledger.sqlite3").exists(), paths.said
    assert list(paths.logs.glob("mailing_pipeline_*.log"))


def test_a_project_folder_beyond_260_characters_works_where_windows_allows_it(new_stage: NewStage) -> None:
    stage = new_stage("long")
    stage.query("10_alfa", QUICK)
    deep = stage.folder / ("Área de trabalho " * 6) / ("b" * 100) / ("c" * 100)
    deep.parent.mkdir(parents=True)
    shutil.copytree(stage.folder / "queries", deep / "queries")
    shutil.copy(stage.config, deep)
    stage.config = deep / "config.env"
    result = stage.run("--json")
    assert result.exit_code == 0, result.said
    assert stage.files("alfa")
    assert len(str(deep)) > 260


# ---- The program's own functions, one by one (windows/inside.py) -----------------------------------------------------


@pytest.fixture(scope="module")
def probe(new_stage: NewStage) -> dict[str, Any]:
    stage = new_stage("probe")
    stage.query("10_alfa", QUICK)
    stage.settings(SFTP_PORT=stage.sftp.port)
    folder = stage.folder / "probes"
    folder.mkdir()
    arguments = [windows_path(path) for path in (PROJECT, stage.config, folder)]
    process = stage.python.start(INSIDE, "probe", *arguments, PYTHONUTF8="1")
    found: dict[str, Any] = json.loads(said(process, 120).splitlines()[-1])
    return found


def test_it_is_windows(probe: dict[str, Any]) -> None:
    assert probe["platform"] == ["nt", "3.13", "\\"]


GOOD_NAMES = ["mailing_{campaign}_%d-%m_%H-%M.csv", "ação_ção_{campaign}.csv", "mailing_con_{campaign}.csv"]
NAMES_THAT_WINDOWS_LACKS = ["{campaign}_%-d.csv", "{campaign}_%P.csv", "{campaign}_%s.csv", "{campaign}_%k.csv"]
NAMES_THAT_WINDOWS_LACKS += ["{campaign}_%5d.csv", "{campaign}_%"]
ILLEGAL_NAMES = ["{campaign}_%X.csv", "C:{campaign}.csv", "{campaign}.csv:hidden", "{campaign}.csv.", "{campaign}.csv "]
ILLEGAL_NAMES += ["pasta\\{campaign}.csv"]


@pytest.mark.parametrize("pattern", GOOD_NAMES)
def test_a_legal_file_name_is_taken(probe: dict[str, Any], pattern: str) -> None:
    assert re.fullmatch(r"(mailing|ação_ção)_(con_)?alfa.*\.csv", probe["file_names"][pattern])


def test_codes_that_windows_knows_are_taken(probe: dict[str, Any]) -> None:
    assert re.fullmatch(r"alfa_\d\d?_[ \d]\d\.csv", probe["file_names"]["{campaign}_%#d_%e.csv"])


def is_a_clear_fault(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and "file name" in found["message"]
        and found["raised"] in ("ValueError", "SettingsFault")
    )


@pytest.mark.parametrize("pattern", NAMES_THAT_WINDOWS_LACKS)
def test_a_time_code_that_windows_lacks_is_a_fault_and_no_crash(probe: dict[str, Any], pattern: str) -> None:
    assert is_a_clear_fault(probe["file_names"][pattern]), probe["file_names"][pattern]


@pytest.mark.parametrize("pattern", ILLEGAL_NAMES)
def test_a_name_that_windows_does_not_allow_is_a_fault(probe: dict[str, Any], pattern: str) -> None:
    assert is_a_clear_fault(probe["file_names"][pattern]), probe["file_names"][pattern]


def test_a_file_name_with_a_colon_only_at_run_time_is_a_fault(probe: dict[str, Any]) -> None:
    found = probe["file_names"]["{campaign}_%H%:z.csv"]
    assert is_a_clear_fault(found) or ":" not in found


def test_a_file_name_that_no_disk_takes_is_a_fault(probe: dict[str, Any]) -> None:
    assert is_a_clear_fault(probe["file_names"]["{campaign}" + "x" * 250])


@pytest.mark.parametrize("pattern", ["con.{campaign}.csv", "nul.%H.csv", "COM1 .{campaign}"])
def test_a_reserved_name_is_a_fault(probe: dict[str, Any], pattern: str) -> None:
    assert isinstance(probe["file_names"][pattern], dict), probe["file_names"][pattern]


@pytest.mark.parametrize("campaign", ["con", "nul", "aux", "prn", "com1", "lpt9"])
def test_a_campaign_called_as_a_device_needs_a_prefix_in_its_file_name(probe: dict[str, Any], campaign: str) -> None:
    found = probe["reserved_campaigns"]
    assert found["mailing_{campaign}.csv"][campaign] == campaign
    assert isinstance(found["{campaign}.csv"][campaign], dict), "it would be written into the device"
    assert campaign in found["{campaign}.csv"][campaign]["message"]


def test_two_file_names_that_differ_in_capitals_are_two_files(probe: dict[str, Any]) -> None:
    found = probe["same_name_in_capitals"]
    assert isinstance(found, dict) or len(set(found)) == 2, found


def test_query_files_run_in_the_order_of_their_names(probe: dict[str, Any]) -> None:
    assert probe["query_files"] == ["alfa", "beta"]


@pytest.mark.parametrize("what", ["unc in single quotes", "double quotes"])
def test_a_path_that_its_quotes_have_mangled_is_a_fault(probe: dict[str, Any], what: str) -> None:
    found = probe["mangled_paths"][what]
    assert isinstance(found, dict) and "OUTPUT_DIR" in found["message"], found


def test_a_path_that_is_written_right_stays_as_it_is(probe: dict[str, Any]) -> None:
    found = {what: str(path).rstrip("\\") for what, path in probe["mangled_paths"].items()}
    assert found["unc without quotes"] == found["unc with slashes"] == r"\\servidor\pasta"
    assert found["single quotes"] == r"C:\nova\tabela"
    assert found["without quotes"] == r"C:\nova pasta\tabela"


@pytest.mark.parametrize("number", [10038, 10050, 10051, 10052, 10053, 10054, 10060, 10061, 10064, 10065])
def test_every_winsock_error_means_the_connection(probe: dict[str, Any], number: int) -> None:
    retries, dead, hint = probe["winsock_errors"][str(number)]
    assert (retries, dead, "network" in hint) == (mailing_pipeline.AGAIN, True, True)


@pytest.mark.parametrize(("server", "code"), [("database", 5), ("sftp", 6)])
def test_a_refused_connection_is_tried_again_and_has_its_exit_code(
    probe: dict[str, Any], server: str, code: int
) -> None:
    assert probe["refused_connections"][server][:3] == [code, mailing_pipeline.AGAIN, True]


def test_libpqs_service_file_is_looked_for_where_the_settings_say(probe: dict[str, Any]) -> None:
    assert r"Z:\sem\nada.conf" in probe["service_file"]


def test_a_query_is_given_up_when_the_run_ends(probe: dict[str, Any]) -> None:
    found = probe["a_stopped_query"]
    assert found["result"]["raised"] == "Stopped", found
    assert found["seconds"] < 3


def test_a_silent_server_is_left_when_the_connection_is_dropped(probe: dict[str, Any]) -> None:
    found = probe["a_silent_sftp_server"]
    assert found["result"]["raised"] == "DeliveryError", found
    assert found["seconds"] < 5


@pytest.mark.parametrize("which", ["target 1", "source 1"])
def test_a_rename_waits_for_a_file_that_is_held_for_a_second(probe: dict[str, Any], which: str) -> None:
    found = probe["replace"][which]
    assert (found["result"], found["target"]) == (None, ".part"), found
    assert 0.9 < found["seconds"] < 3


def test_a_rename_gives_up_after_three_seconds(probe: dict[str, Any]) -> None:
    found = probe["replace"]["target 5"]
    assert found["result"]["raised"] == "PermissionError", found
    assert 2.5 < found["seconds"] < 4.9


def test_a_mailing_can_be_read_while_it_grows_and_then_takes_its_name(probe: dict[str, Any]) -> None:
    assert probe["a_followed_file"] == ["one", "onetwo", "two", "onetwo", "False"]


def test_files_ledger_and_lock_work_beyond_260_characters(probe: dict[str, Any]) -> None:
    found = probe["long_path"]
    assert found["length"] > 260
    assert (found["file"], found["ledger"]) == ("1", [1])
    assert found["lock"] == "another run is active: me"


def test_clock_and_timers_keep_their_promises(probe: dict[str, Any]) -> None:
    found = probe["times"]
    assert found["now"].endswith("-03:00") and found["log"].endswith("-03:00")
    assert found["waited"]["result"] is False
    assert 0.6 < found["waited"]["seconds"] < 2
    assert 0.6 < found["steady"] < 2


def test_remote_paths_have_slashes_and_a_backslash_is_a_fault(probe: dict[str, Any]) -> None:
    good, absolute, backslash = probe["remote_paths"]
    assert (good, absolute) == ("/entrada/alfa", "/outra/pasta")
    assert "must be a path with /" in backslash


def test_it_runs_without_standard_streams(probe: dict[str, Any]) -> None:
    assert probe["without_streams"] == [0, 0, 2, 0]
