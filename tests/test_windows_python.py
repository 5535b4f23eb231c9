"""The program on a real Windows CPython, under Wine, against a real PostgreSQL and a real sshd.

A start of the program takes seconds there: so each story is played once, what can goes side by side, and the tests read
what came of it. They wait for what happens, with all the patience of a busy machine; bounded in seconds are only
promises of the program itself. Where Wine's own server dies, the story is played again.

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
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from local_servers import Dialer, LocalPostgres, SftpServer, free_port
from rig.proxy import Proxy
from stage import PROGRAM, PROJECT, Result, Stage
from windows import needs, wine

import mailing_pipeline

# Here, and not in a fixture: what is missing is told once, not for each test. cpython.py itself needs Linux.
needs.shared_file(PROJECT.parent / "shared" / "windows" / "setup.sh")
needs.programs(*wine.PROGRAMS, packages=wine.PACKAGES)

from windows.cpython import INSIDE, WindowsPython, WindowsStage, replayed, windows_path  # noqa: E402

pytestmark = pytest.mark.timeout(900)  # the first run makes the interpreter

CONTACTS = """
SELECT telefone, nome, cpf, valor,
       CASE id % 500 WHEN 0 THEN 'ele disse "oi"; e foi' WHEN 1 THEN E'linha\\nquebrada' END AS nota
FROM (TABLE contatos UNION ALL SELECT 3000 + id, 'sem', NULL, nome, cpf, valor FROM contatos WHERE id <= 40) AS c
ORDER BY id
"""
LARGE = "SELECT n::text AS telefone, repeat('ação ', 20) AS nota FROM generate_series(1, 60000) AS n ORDER BY n"
QUICK = "SELECT telefone, nome FROM contatos ORDER BY id LIMIT 100"
# 43 MB: an upload that lasts, on a line as slow as an office's or slower.
HUGE = "SELECT n::text AS telefone, repeat('ação ', 20) AS nota FROM generate_series(1, 300000) AS n ORDER BY n"
LINE, BROAD_LINE, TRICKLE = 1 << 20, 4 << 20, 50 << 10  # bytes a second


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
    python.end_all()  # or what still runs would hold a stage's pipes open
    for stage in made:
        stage.close()


@pytest.fixture(scope="module")
def afterwards() -> Iterator[contextlib.ExitStack]:
    """What a story leaves to be done when all tests have read what came of it."""
    with contextlib.ExitStack() as stack:
        yield stack


@contextlib.contextmanager
def held_open(stage: WindowsStage, shares: dict[Path, str]) -> Iterator[None]:
    """Another Windows program has these files open, and lets others do only what the share of each says."""
    number = time.monotonic_ns()
    held, release = (stage.elsewhere / f"{word} {number}" for word in ("held", "release"))
    words = [word for path, share in shares.items() for word in (share, windows_path(path))]
    process = stage.python.start(INSIDE, "hold", windows_path(held), windows_path(release), *words)
    stage.python.wait_for("the files to be held", lambda: held.exists() or process.poll() is not None)
    try:
        yield
    finally:
        release.touch()
        stage.python.said(process)


@contextlib.contextmanager
def slow_line(stage: Stage) -> Iterator[Proxy]:
    """The stage reaches its SFTP server over a line of an office's breadth."""
    with Proxy(stage.sftp.port) as line:
        line.limit(LINE, "up")
        stage.settings(SFTP_PORT=line.port)
        yield line


def is_uploading(stage: Stage, dialer: Dialer, line: Proxy) -> bool:
    """Whether `pronta` is out and `lenta` is on its way; that then takes as long as the test does."""
    if not (stage.files("lenta") and len(dialer.record) == 1):
        return False
    line.limit(TRICKLE, "up")
    return True


def asleep(stage: Stage, campaign: str) -> str:
    """A query that works for ten minutes without a row."""
    return f"SELECT pg_sleep(600)::text AS telefone /* {stage.folder} {campaign} */"


def active_queries(stage: Stage, mark: str = "") -> int:
    """How many of this stage's slow queries, or of those marked so, the server is still working on."""
    with stage.database.connect() as connection:
        sql = "SELECT query FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
        found = connection.execute(sql).fetchall()
        return sum(f"/* {mark or stage.folder} " in str(query) for (query,) in found)


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
@replayed
def day(
    new_stage: NewStage,
    python: WindowsPython,  # noqa: ARG001 (replayed asks for it)
    tmp_path_factory: pytest.TempPathFactory,
    afterwards: contextlib.ExitStack,
) -> Day:
    stage = new_stage("day")
    day_queries(stage)
    linux = Stage(tmp_path_factory.mktemp("linux"), stage.database, stage.sftp)
    afterwards.callback(linux.close)
    day_queries(linux)
    rehearsed = linux.main(["--dry-run"])
    assert rehearsed.exit_code == 0, rehearsed.said
    looking, rehearsing = stage.start("--check"), stage.start("--dry-run", "--json")
    check, rehearsal = stage.end(looking), stage.end(rehearsing)
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
    return Day(
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
    assert re.search(r"^grande .* 60k\b", day.status.stdout, re.MULTILINE), day.status.stdout
    assert re.search(r"^vazia .* 0\b", day.status.stdout, re.MULTILINE)


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
    offset = day.stage.python.utc_offset
    stamps = [re.match(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\S+) ", line) for line in lines]
    assert all(stamp and datetime.fromisoformat(stamp[1]).utcoffset() == offset for stamp in stamps), lines
    local = datetime.fromisoformat(day.delivery.json["start"])
    assert local.utcoffset() == offset
    assert abs(local.timestamp() - time.time()) < 1200
    assert day.delivery.json["slot"] == f"{local:%Y-%m-%d %H}:00"
    assert all(f"{local:%d-%m_%H-%M}" in arrival.name for arrival in day.arrivals)


def test_a_mailing_of_several_blocks_leaves_no_part_of_it_behind(day: Day) -> None:
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
@replayed
def test_every_console_encoding_takes_table_help_and_messages(day: Day, python: WindowsPython, console: str) -> None:
    encoding = "cp1252" if console == "own" else console
    missing = windows_path(day.stage.folder / "não há 名.env")
    calls = {
        "status": ["--config", windows_path(day.stage.config), "--status"],
        "help": ["--help"],
        "fault": ["--config", missing],
    }
    started = {name: python.start(PROGRAM, *call, **CONSOLES[console]) for name, call in calls.items()}
    ended = {name: python.printed(process) for name, process in started.items()}
    out = {name: (stdout + stderr).decode(encoding) for name, (stdout, stderr) in ended.items()}
    assert {name: process.returncode for name, process in started.items()} == {"status": 0, "help": 0, "fault": 2}, out
    assert "grande" in out["status"] and "+ delivered 4" in out["status"]
    assert "exit codes:" in out["help"]
    assert "Área de trabalho\\não há " in out["fault"]
    assert "Traceback" not in "".join(out.values())


# ---- Two at once, kill and rerun -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
@replayed
def killed(new_stage: NewStage, python: WindowsPython) -> SimpleNamespace:
    """A run in the middle of an upload; a second one beside it; the first is killed, and the job started again."""
    stage = new_stage("killed")
    stage.query("10_pronta", QUICK)
    lenta = stage.query("20_lenta", HUGE)
    with slow_line(stage) as line, stage.dialer() as dialer:
        first = stage.start("--json")
        python.wait_for("an upload", lambda: is_uploading(stage, dialer, line))
        second = stage.run("--json")
        found = re.search(r"process (\d+), started", second.json["error"])
        number = found[1] if found else "0"
        python.taskkill(number)
        reported = python.printed(first)[0]
        left = stage.files("lenta")
        ledger = stage.ledger()
        lenta.write_text(QUICK)
        line.limit(0)
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
    assert {entry["campaign"]: entry["state"] for entry in killed.ledger} == {
        "pronta": "delivered",
        "lenta": "exported",
    }


def test_the_run_after_a_kill_gets_the_lock_and_delivers_only_what_is_missing(killed: SimpleNamespace) -> None:
    assert killed.third.exit_code == 0, killed.third.said
    assert killed.third.verdicts == {"pronta": "already delivered", "lenta": "delivered"}
    assert sorted(arrival.campaign for arrival in killed.arrivals) == ["lenta", "pronta"]
    assert killed.stage.files("lenta") == []  # the temp of the killed run is gone
    states = [entry["state"] for entry in killed.stage.ledger() if entry["campaign"] == "lenta"]
    assert states == ["failed", "delivered"]


# ---- Ctrl+C, Ctrl+Break, the window's cross --------------------------------------------------------------------------


class Stoppable:
    """A run on a console of its own, where `key` is pressed when the test says so."""

    def __init__(self, stage: WindowsStage, key: str, *options: str) -> None:
        self.stage, self.go = stage, stage.elsewhere / "go"
        command = [windows_path(PROGRAM), "--config", windows_path(stage.config), *options]
        self.presser = stage.python.start(INSIDE, "press", key, windows_path(self.go), *command)

    def press(self) -> None:
        """Press the key and see how the program ends."""
        self.go.touch()
        ended = json.loads(self.stage.python.said(self.presser))
        self.code, self.seconds, self.said = ended["code"], ended["seconds"], ended["said"]
        self.queries_left = active_queries(self.stage)


KEYS = ["ctrl_c", "ctrl_break", "close"]


@pytest.fixture(scope="module")
@replayed
def stopped(new_stage: NewStage, python: WindowsPython) -> dict[str, SimpleNamespace]:
    """By key, a run that is stopped when one mailing is out, one is half uploaded and one query has not said a word.

    After Ctrl+C the job is started again.
    """

    def start(key: str) -> SimpleNamespace:
        stage = new_stage(key)
        stage.query("10_pronta", QUICK)
        stage.query("20_lenta", HUGE)
        stage.query("30_dorme", asleep(stage, "dorme"))
        line, dialer = around.enter_context(slow_line(stage)), around.enter_context(stage.dialer())
        return SimpleNamespace(stage=stage, line=line, dialer=dialer, run=Stoppable(stage, key))

    def are_ready() -> bool:
        uploads = [is_uploading(run.stage, run.dialer, run.line) for run in runs.values()]
        return all(uploads) and all(active_queries(run.stage) == 1 for run in runs.values())

    def stop(started: SimpleNamespace) -> None:
        stage, dialer = started.stage, started.dialer
        started.line.limit(BROAD_LINE)
        started.run.press()
        started.ledger = {entry["campaign"]: entry["state"] for entry in stage.ledger()}
        started.arrived = [arrival.campaign for arrival in dialer.record]
        started.drop, started.parts = stage.files("lenta"), list(stage.output.glob("*.part"))

    with contextlib.ExitStack() as around:
        runs = {key: start(key) for key in KEYS}
        python.wait_for("the uploads and queries", are_ready)
        for started in runs.values():
            stop(started)
        once_more = runs["ctrl_c"]
        for name in ("20_lenta", "30_dorme"):
            once_more.stage.query(name, QUICK, drop=False)
        once_more.line.limit(0)
        once_more.again = once_more.stage.run("--json")
        once_more.arrived_in_the_end = [arrival.campaign for arrival in once_more.dialer.record]
    return runs


@pytest.mark.parametrize("key", KEYS)
def test_stopping_it_ends_it_in_order_and_the_exit_code_says_so(stopped: dict[str, SimpleNamespace], key: str) -> None:
    """Within the five seconds that Windows gives a program whose window is closed."""
    run = stopped[key].run
    assert run.code == 4, run.said
    assert run.seconds < 5, run.said
    log = stopped[key].stage.log()
    assert "exit code 4" in log and "stopped by the operator" in log


@pytest.mark.parametrize("key", KEYS)
def test_stopping_it_cancels_the_queries_in_the_server(stopped: dict[str, SimpleNamespace], key: str) -> None:
    assert stopped[key].run.queries_left == 0


@pytest.mark.parametrize("key", KEYS)
def test_stopping_it_leaves_nothing_partial(stopped: dict[str, SimpleNamespace], key: str) -> None:
    run = stopped[key]
    assert run.arrived == ["pronta"]
    assert (run.drop, run.parts) == ([], []), run.run.said


@pytest.mark.parametrize("key", KEYS)
def test_the_ledger_of_a_stopped_run_is_true(stopped: dict[str, SimpleNamespace], key: str) -> None:
    assert stopped[key].ledger == {"pronta": "delivered", "lenta": "failed", "dorme": "failed"}


@replayed
def test_ctrl_c_while_python_itself_starts_ends_it_before_anything_has_begun(
    new_stage: NewStage,
    python: WindowsPython,  # noqa: ARG001 (replayed asks for it)
) -> None:
    """Python has its own words for that, and its own exit codes; Wine's default handler ends a program with 0.

    A key that comes too early for Python stops nothing; one that comes too late finds the program itself.
    """
    stages = [new_stage(f"early {number}") for number in range(3)]
    for stage in stages:
        stage.query("10_pronta", QUICK)
    runs = [Stoppable(stage, "ctrl_c") for stage in stages]
    for run in runs:
        time.sleep(0.4)
        run.go.touch()
    for stage, run in zip(stages, runs, strict=True):
        run.press()
        has_begun = stage.output.exists()
        assert run.code in ((0, 4) if has_begun else (0, 1, 4, 0xC000013A)), run.said
        assert run.code != 4 or "stopped by the operator" in run.said
        assert len(stage.files("pronta")) == int(has_begun and run.code == 0)


@replayed
def test_two_processes_append_to_one_log_and_no_line_is_lost_or_broken(
    new_stage: NewStage, python: WindowsPython
) -> None:
    """Python appends in two steps on Windows; the program's log keeps others out meanwhile."""
    stage = new_stage("log")
    log, go = stage.elsewhere / "day.log", stage.elsewhere / "go"
    places = [windows_path(log), windows_path(go)]
    writers = [python.start(INSIDE, "log", windows_path(PROJECT), name, *places) for name in ("one", "two")]
    python.wait_for("both to be ready", lambda: len(list(stage.elsewhere.glob("go.*"))) == 2)
    go.touch()
    for writer in writers:
        python.said(writer)
    lines = log.read_text().splitlines()
    assert sorted(lines) == sorted(f"{name} {n:04} {'x' * 100}" for name in ("one", "two") for n in range(1000))


def test_the_run_after_ctrl_c_delivers_only_what_is_missing(stopped: dict[str, SimpleNamespace]) -> None:
    run = stopped["ctrl_c"]
    assert run.again.verdicts == {"pronta": "already delivered", "lenta": "delivered", "dorme": "delivered"}
    assert sorted(run.arrived_in_the_end) == ["dorme", "lenta", "pronta"]


@pytest.fixture(scope="module")
@replayed
def stopped_elsewhere(new_stage: NewStage, python: WindowsPython) -> dict[str, Any]:
    """Ctrl+C in a rehearsal's query, in the pause before another try, and in an upload over a line that trickles; there
    the job is started again."""
    stages = {name: new_stage(name) for name in ("rehearsal", "pause", "trickle")}
    stages["rehearsal"].query("10_dorme", asleep(stages["rehearsal"], "dorme"))
    stages["pause"].query("10_pronta", QUICK)
    stages["pause"].settings(SFTP_PORT=free_port(), RETRY_FIRST_SECONDS=60, RETRY_MAX_SECONDS=60)
    upload = stages["trickle"]
    upload.query("10_pronta", QUICK)
    upload.query("20_lenta", HUGE)
    with slow_line(upload) as line, upload.dialer() as dialer:
        rehearsal = Stoppable(stages["rehearsal"], "ctrl_c", "--dry-run")
        pause = Stoppable(stages["pause"], "ctrl_c")
        trickle = Stoppable(upload, "ctrl_c")
        python.wait_for("a retry", lambda: " retry 1 of" in pause.stage.log())
        pause.press()
        python.wait_for("an upload", lambda: is_uploading(upload, dialer, line))
        trickle.press()
        left = upload.files("lenta")
        python.wait_for("the rehearsal's query", lambda: active_queries(rehearsal.stage) == 1)
        rehearsal.press()
        line.limit(0)
        again = upload.run("--json")
        arrived = sorted(arrival.campaign for arrival in dialer.record)
    return {
        "rehearsal": rehearsal,
        "pause": pause,
        "trickle": SimpleNamespace(run=trickle, left=left, again=again, arrived=arrived),
    }


def test_ctrl_c_in_a_retry_pause_is_heard_at_once(stopped_elsewhere: dict[str, Any]) -> None:
    pause = stopped_elsewhere["pause"]
    assert pause.code == 4, pause.said
    assert pause.seconds < 12  # the pause is one of 30 seconds at least
    assert [entry["state"] for entry in pause.stage.ledger()] == ["failed"]


def test_ctrl_c_in_a_rehearsal_cancels_its_query_and_leaves_nothing_partial(stopped_elsewhere: dict[str, Any]) -> None:
    rehearsal = stopped_elsewhere["rehearsal"]
    assert rehearsal.code == 4, rehearsal.said
    assert rehearsal.seconds < 5, rehearsal.said
    assert "stopped by the operator" in rehearsal.stage.log()
    assert rehearsal.queries_left == 0
    assert not list(rehearsal.stage.output.rglob("*.part"))


def test_ctrl_c_in_an_upload_over_a_line_that_trickles_ends_in_time_and_the_next_run_clears_up(
    stopped_elsewhere: dict[str, Any],
) -> None:
    """Its temp cannot be removed in the seconds that a closed window has; no dialer takes it meanwhile."""
    trickle = stopped_elsewhere["trickle"]
    assert trickle.run.code == 4, trickle.run.said
    assert trickle.run.seconds < 5, trickle.run.said
    assert all(name.startswith(".part-") for name in trickle.left)
    assert trickle.again.verdicts == {"pronta": "already delivered", "lenta": "delivered"}, trickle.again.said
    assert trickle.arrived == ["lenta", "pronta"]
    assert trickle.run.stage.files("lenta") == []


# ---- Several workers; a server that falls silent ---------------------------------------------------------------------


@pytest.fixture(scope="module")
@replayed
def workers(new_stage: NewStage, python: WindowsPython) -> SimpleNamespace:
    """Eight campaigns for four workers; meanwhile a run of two, of whose backends one is frozen in its query."""
    eight, frozen = new_stage("eight"), new_stage("frozen")
    for number in range(8):
        slow = "SELECT pg_sleep(2)::text || telefone AS telefone, nome FROM contatos ORDER BY id LIMIT 1"
        eight.query(f"{number}0_c{number}", f"{slow} /* {eight.folder} */")
    frozen.query("10_alfa", f"SELECT pg_sleep(4)::text || '11999887766' AS telefone /* {frozen.folder} */", timeout=5)
    frozen.query("20_beta", QUICK)
    with eight.dialer() as dialer, frozen.dialer() as other:
        running, freezing = eight.start("--json"), frozen.start("--json")
        python.wait_for("four queries at once", lambda: active_queries(eight) == 4)
        python.wait_for("the query to be frozen", lambda: active_queries(frozen) == 1)
        with frozen_backend(frozen):
            with_one_frozen = frozen.end(freezing)
        several = eight.end(running)
        arrivals, others = dialer.record, other.record
    return SimpleNamespace(**locals())


@contextlib.contextmanager
def frozen_backend(stage: Stage) -> Iterator[None]:
    """PostgreSQL's process that works on this stage's slow query neither answers nor ends."""
    with stage.database.connect() as connection:
        sql = "SELECT pid, query FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
        (number,) = [pid for pid, query in connection.execute(sql).fetchall() if f"/* {stage.folder} " in str(query)]
    os.kill(number, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(number, signal.SIGCONT)


def test_a_run_with_several_workers_delivers_every_mailing_once(workers: SimpleNamespace) -> None:
    names = [f"c{number}" for number in range(8)]
    assert workers.several.exit_code == 0, workers.several.said
    assert workers.several.verdicts == dict.fromkeys(names, "delivered")
    assert sorted(arrival.campaign for arrival in workers.arrivals) == names


def test_a_frozen_backend_is_given_up_at_its_limit_and_its_query_asked_once_more(workers: SimpleNamespace) -> None:
    """Within the query's five seconds and the grace that a server has to say that they are over; then both arrive."""
    run = workers.with_one_frozen
    assert "the database fell silent" in run.log
    assert run.verdicts == {"alfa": "delivered", "beta": "delivered"}, run.said
    assert sorted(arrival.campaign for arrival in workers.others) == ["alfa", "beta"]
    assert run.campaigns["alfa"]["seconds"] < 2 * (5 + mailing_pipeline.GRACE_S)


# ---- Files that another program holds open ---------------------------------------------------------------------------


def stage_with_log(new_stage: NewStage, name: str) -> tuple[WindowsStage, Path]:
    """A stage with two quick campaigns and a ledger, and the path of today's log, which is there already."""
    stage = new_stage(name)
    stage.settings(FILE_NAME="mailing_{campaign}.csv")
    stage.query("10_alfa", QUICK)
    stage.query("20_beta", QUICK)
    for folder in (stage.output / "dry-run", stage.logs):
        folder.mkdir(parents=True)
    mailing_pipeline.Ledger(stage.output / "ledger.sqlite3", mailing_pipeline.Clock()).close()
    today = datetime.now(timezone(stage.python.utc_offset))
    log = stage.logs / f"mailing_pipeline_{today:%Y-%m-%d}.log"
    log.write_text("yesterday's last line\n")
    return stage, log


def add_old_mailing(stage: Stage) -> Path:
    """A mailing that was delivered years ago, and whose file nobody has deleted."""
    ledger = stage.output / "ledger.sqlite3"
    with contextlib.closing(mailing_pipeline.Ledger(ledger, mailing_pipeline.Clock())) as made:
        state = mailing_pipeline.State.DELIVERED
        old = mailing_pipeline.Mailing(campaign="alfa", slot="2020-01-01 10:00", state=state, rows=100)
        old.file = "mailing_old.csv"
        made.claim(old)
    with contextlib.closing(sqlite3.connect(ledger)) as db, db:
        db.execute("UPDATE mailings SET changed = '2020-01-01T10:00:00.000-03:00'")
    (stage.output / "mailing_old.csv").write_text("old")
    return stage.output / "mailing_old.csv"


@pytest.fixture(scope="module")
@replayed
def held(new_stage: NewStage, python: WindowsPython) -> SimpleNamespace:
    """Runs while a browser, an editor, a spreadsheet and a backup program hold the program's files; then once more,
    with a delivered mailing open in the spreadsheet."""
    stage, log = stage_with_log(new_stage, "held")
    page, old = stage.output / "status.html", add_old_mailing(stage)
    page.write_text("yesterday's")
    sheet, _ = stage_with_log(new_stage, "sheet")
    sheet_csv = sheet.output / "dry-run" / "mailing_beta.csv"
    sheet_csv.write_text("yesterday's")
    ledger_held, _ = stage_with_log(new_stage, "ledger")
    log_held, unwritable_log = stage_with_log(new_stage, "log")
    shares = {log: "reading and writing", page: "reading", old: "reading", sheet_csv: "reading"}
    shares |= {ledger_held.output / "ledger.sqlite3": "nothing", unwritable_log: "nothing"}
    with stage.dialer() as dialer, ledger_held.dialer() as other, log_held.dialer() as another:
        with held_open(stage, shares):
            started = [stage.start("--json"), sheet.start("--dry-run", "--json")]
            started += [ledger_held.start("--json"), log_held.start("--json")]
            places = [stage, sheet, ledger_held, log_held]
            ended = [place.end(process) for place, process in zip(places, started, strict=True)]
            page_while_held, old_while_held = page.read_text(), old.exists()
        delivery, rehearsal, locked, unwritable = ended
        with held_open(stage, {stage.output / "mailing_alfa.csv": "reading"}):
            released = stage.run("--json", "--resend")
        arrivals, strays = dialer.record, [*other.record, *another.record]
    return SimpleNamespace(**locals())


def test_an_open_page_log_or_old_mailing_keeps_nothing_from_being_delivered(held: SimpleNamespace) -> None:
    assert held.delivery.exit_code == 0, held.delivery.said
    assert held.delivery.verdicts == {"alfa": "delivered", "beta": "delivered"}
    assert sorted(arrival.campaign for arrival in held.arrivals[:2]) == ["alfa", "beta"]


def test_an_open_log_goes_on_being_written(held: SimpleNamespace) -> None:
    assert [*held.stage.logs.iterdir()] == [held.log]
    assert held.delivery.log.startswith("yesterday's last line\n")
    assert "alfa: delivered: mailing_alfa.csv: 100 contacts" in held.delivery.log


def test_an_open_page_is_left_as_it_is_said_so_and_written_next_time(held: SimpleNamespace) -> None:
    assert held.page_while_held == "yesterday's"
    assert "the status page was not written" in held.delivery.log
    assert held.released.exit_code == 0, held.released.said
    assert held.page.read_text() != "yesterday's"
    assert not list(held.stage.output.glob("*.part"))


def test_an_old_mailing_that_is_open_is_deleted_next_time(held: SimpleNamespace) -> None:
    assert held.old_while_held
    assert re.search(r"mailing_old\.csv: too old, but cannot be deleted", held.delivery.log)
    assert not held.old.exists()


def test_a_delivered_csv_that_is_open_in_a_spreadsheet_is_sent_again_under_another_name(held: SimpleNamespace) -> None:
    assert held.released.verdicts == {"alfa": "delivered", "beta": "delivered"}, held.released.said
    again = [arrival.name for arrival in held.arrivals[2:]]
    assert len(again) == 2 and not {"mailing_alfa.csv", "mailing_beta.csv"} & set(again)


def test_a_csv_that_is_open_in_a_spreadsheet_fails_its_campaign_alone(held: SimpleNamespace) -> None:
    assert held.rehearsal.exit_code == 4, held.rehearsal.said
    assert held.rehearsal.verdicts == {"alfa": "would be sent", "beta": "failed"}
    assert "close programs that hold the file open" in held.rehearsal.campaigns["beta"]["hint"]
    assert held.sheet_csv.read_text() == "yesterday's"


def test_a_ledger_that_is_locked_stops_the_run_before_any_query(held: SimpleNamespace) -> None:
    assert held.locked.exit_code == 2, held.locked.said
    assert "ledger.sqlite3" in held.locked.json["error"] and "close other programs" in held.locked.json["error"]
    assert held.strays == []


def test_a_log_that_cannot_be_opened_is_said_on_the_console(held: SimpleNamespace) -> None:
    assert held.unwritable.exit_code == 2, held.unwritable.said
    assert held.unwritable_log.name in held.unwritable.json["error"]
    assert "Traceback" not in held.unwritable.said


# ---- Paths of config.env ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
@replayed
def paths(new_stage: NewStage, python: WindowsPython, afterwards: contextlib.ExitStack) -> SimpleNamespace:
    """A check with settings on drive C:, queries and key on Z:, spaces and accents everywhere; and a delivery from a
    project folder far below all others."""
    stage, far = new_stage("paths"), new_stage("far")
    stage.query("10_alfa", QUICK)
    far.query("10_alfa", QUICK)
    deep = far.folder / ("Área de trabalho " * 6) / ("b" * 100) / ("c" * 100)
    deep.parent.mkdir(parents=True)
    shutil.copytree(far.queries, deep / "queries")
    shutil.copy(far.config, deep)
    far.config = deep / "config.env"
    delivering = far.start("--json")
    number = time.monotonic_ns()
    place = python.prefix / "drive_c" / f"Mala Direta & Cobrança {number}"
    logs = python.prefix / "drive_c" / f"logs da mala direta {number}"
    place.mkdir()
    for folder in (place, logs):
        afterwards.callback(shutil.rmtree, folder, ignore_errors=True)
    keys = stage.folder / "Chave do usuário"
    keys.mkdir()
    shutil.copy(stage.sftp.key_file, keys / "chave ação.pem")
    values = {key: value for key, value in stage.values.items() if key != "SFTP_PASSWORD"}
    values |= {
        "PGHOST": "localhost",
        "SFTP_KEY_FILE": windows_path(keys / "chave ação.pem"),
        "QUERIES_DIR": windows_path(stage.queries),
        "OUTPUT_DIR": r"saída\de hoje",
        "LOG_DIR": "C:\\" + logs.name,
    }
    lines = [f"{key}='" + value.replace("'", "\\'") + "'" for key, value in values.items()]
    (place / "config.env").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode())
    shutil.copy(PROGRAM, place)
    process = python.start(place / PROGRAM.name, "--check", PYTHONUTF8="1")
    ended = [part.decode() for part in python.printed(process)]
    delivery = far.end(delivering)
    return SimpleNamespace(
        place=place, code=process.returncode, said="\n".join(ended), logs=logs, far=far, deep=deep, delivery=delivery
    )


def test_settings_beside_the_program_may_have_drive_letters_backslashes_spaces_and_accents(
    paths: SimpleNamespace,
) -> None:
    assert paths.code == 0, paths.said
    assert "ok    queries: 1 campaigns" in paths.said
    assert "can rename" in paths.said  # and so the key was found


def test_relative_and_absolute_local_paths_go_where_they_say(paths: SimpleNamespace) -> None:
    assert (paths.place / "saída" / "de hoje" / "ledger.sqlite3").exists(), paths.said
    assert list(paths.logs.glob("mailing_pipeline_*.log"))


def test_a_project_folder_beyond_260_characters_works_where_windows_allows_it(paths: SimpleNamespace) -> None:
    assert len(str(paths.deep)) > 260
    assert paths.delivery.exit_code == 0, paths.delivery.said
    assert (paths.deep / "output" / "ledger.sqlite3").exists()
    assert paths.far.files("alfa")


# ---- The program's own functions, one by one (windows/inside.py) -----------------------------------------------------


@pytest.fixture(scope="module")
@replayed
def probe(new_stage: NewStage, python: WindowsPython) -> dict[str, Any]:
    stage = new_stage("probe")
    stage.query("10_alfa", QUICK)
    stage.settings(SFTP_PORT=stage.sftp.port)
    folder = stage.folder / "probes"
    for path, mode in ((folder, 0o755), (folder / "own", 0o700), (folder / "shared", 0o755)):
        path.mkdir(mode)
        path.chmod(mode)
    arguments = [windows_path(path) for path in (PROJECT, stage.config, folder)]
    process = python.start(INSIDE, "probe", *arguments, PYTHONUTF8="1")
    found: dict[str, Any] = json.loads(python.said(process).splitlines()[-1])
    return found | {"queries_left": active_queries(stage, "probe")}


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
    return isinstance(found, dict) and "file name" in found["message"] and found["raised"] in ("Wrong", "SettingsFault")


@pytest.mark.parametrize("pattern", NAMES_THAT_WINDOWS_LACKS)
def test_a_time_code_that_windows_lacks_is_a_fault_and_no_crash(probe: dict[str, Any], pattern: str) -> None:
    assert is_a_clear_fault(probe["file_names"][pattern]), probe["file_names"][pattern]


def test_such_a_code_is_a_fault_of_its_setting_or_of_its_query_file_alone(probe: dict[str, Any]) -> None:
    found = probe["a_code_that_windows_lacks"]
    assert found["setting"]["raised"] == "SettingsFault" and "FILE_NAME" in found["setting"]["message"], found
    assert found["campaigns and broken"] == [["beta"], ["alfa"]]


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
    assert isinstance(found, list) and len(set(found)) == 2, found


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


@pytest.mark.parametrize("asks", ["execute", "copy"])
@pytest.mark.parametrize(
    ("ends", "raised", "told"),
    [
        ("stop", "Stopped", "stopped by the operator"),
        ("deadline", "Stopped", "deadline"),
        ("limit", "DatabaseError", "the database fell silent"),
    ],
)
def test_every_wait_for_a_silent_database_ends(
    probe: dict[str, Any], asks: str, ends: str, raised: str, told: str
) -> None:
    found = probe["waits"][f"{asks} {ends}"]
    assert found["raised"] == raised and told in found["message"], found
    assert 0.9 < found["seconds"] < 10  # and not pg_sleep's 60; six at a time, and the query's cancel is part of it


def test_a_wait_that_ends_cancels_its_query_in_the_server(probe: dict[str, Any]) -> None:
    assert probe["queries_left"] == 0


def test_a_silent_server_is_left_when_the_connection_is_dropped(probe: dict[str, Any]) -> None:
    found = probe["a_silent_sftp_server"]
    assert found["result"]["raised"] == "ConnectionLost", found
    assert found["seconds"] < 10  # and not CONNECT_TIMEOUT_SECONDS' 30


@pytest.mark.parametrize("which", ["target 1", "source 1"])
def test_a_rename_waits_for_a_file_that_is_held_for_a_second(probe: dict[str, Any], which: str) -> None:
    found = probe["replace"][which]
    assert (found["result"], found["target"]) == (None, ".part"), found
    assert found["seconds"] > 0.9


def test_a_rename_gives_up_after_three_seconds(probe: dict[str, Any]) -> None:
    found = probe["replace"]["target inf"]
    assert found["result"]["raised"] == "PermissionError", found
    assert 2.5 < found["seconds"] < 9


def test_a_file_has_its_name_only_when_it_is_whole(probe: dict[str, Any]) -> None:
    found = probe["a_growing_file"]
    assert found == {"growing": ["given up.csv.part", "kept.csv.part"], "left": ["kept.csv"], "kept": "ação"}


def test_files_ledger_and_lock_work_beyond_260_characters(probe: dict[str, Any]) -> None:
    found = probe["long_path"]
    assert found["length"] > 260
    assert (found["file"], found["ledger"]) == ("1", [1])
    assert found["lock"] == "another run is active: me"


def test_clock_and_timers_keep_their_promises(probe: dict[str, Any], python: WindowsPython) -> None:
    found = probe["times"]
    offset = "-03:30" if python.utc_offset % timedelta(hours=1) else "-03:00"
    assert found["now"].endswith(offset) and f"{offset} INFO said" in found["log"]
    assert found["waited"]["result"] is False
    assert 0.6 < found["waited"]["seconds"] < 10
    assert 0.6 < found["steady"] < 10


def test_a_folder_that_others_may_open_and_one_on_the_network_are_known(probe: dict[str, Any]) -> None:
    """Wine makes Windows' rights of those that Linux has; it knows no drive of another computer."""
    expected = {"own": False, "shared": True, "C:\\": False, r"\\servidor\mala": True}
    assert probe["folders_of_this_pc"] == expected


def test_remote_paths_have_slashes_and_a_backslash_is_a_fault(probe: dict[str, Any]) -> None:
    good, absolute, backslash = probe["remote_paths"]
    assert (good, absolute) == ("/entrada/alfa", "/outra/pasta")
    assert "must be a path with /" in backslash


def test_it_runs_without_standard_streams(probe: dict[str, Any]) -> None:
    assert probe["without_streams"] == [0, 0, 2, 0]
