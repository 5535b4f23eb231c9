"""The program as a user calls it: options, exit codes, consoles, the working directory."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from local_servers import ParamikoServer, free_port
from stage import NOON, PROGRAM, Result, Stage, clean_environ, forbidden

ONE = "SELECT 1 AS n"
CANARY = "s3cret-Canary"
SFTP_SETTINGS = (
    "SFTP_HOST",
    "SFTP_PORT",
    "SFTP_USER",
    "SFTP_PASSWORD",
    "SFTP_KEY_FILE",
    "SFTP_HOST_KEY",
    "SFTP_BASE_DIR",
)


def without_sftp(stage: Stage) -> None:
    stage.settings(**{key: None for key in SFTP_SETTINGS if key in stage.values})


# ---------------------------------------------------------------------------------------------------------------------
# As a process
# ---------------------------------------------------------------------------------------------------------------------


def test_the_program_does_its_job_as_a_process(stage: Stage) -> None:
    stage.query("10_cobranca_30d", "SELECT telefone, nome FROM contatos", phones="telefone", min_rows=50)
    stage.query("20_preventivo", "SELECT telefone, nome FROM contatos WHERE id > 100")
    with stage.dialer() as dialer:
        result = stage.run()
        assert result.exit_code == 0, result.said
        assert sorted(arrival.campaign for arrival in dialer.record) == ["cobranca_30d", "preventivo"]
    assert "exit code 0" in result.stdout and "exit code 0" in result.log


def test_config_env_lies_beside_the_program(stage: Stage) -> None:
    program = Path(shutil.copy(PROGRAM, stage.folder))
    stage.query("10_a", ONE)
    done = subprocess.run(
        [sys.executable, str(program)], cwd=stage.elsewhere, env=clean_environ(), check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert len(stage.files("a")) == 1 and stage.ledger()
    assert list(stage.elsewhere.iterdir()) == [], "nothing is written into the working directory"


def test_any_folder_name_will_do(stage: Stage) -> None:
    stage.query("10_a", ONE)
    moved = stage.folder.parent / "it's a & b 100%!x! ação 😀"
    stage.folder.rename(moved)
    stage.config = moved / "config.env"
    assert stage.run().exit_code == 0
    assert (moved / "output" / "ledger.sqlite3").exists()


def test_help_and_version_need_nothing(tmp_path: Path) -> None:
    for option, told in (("--help", "exit codes:"), ("--version", "mailing_pipeline ")):
        done = subprocess.run([sys.executable, str(PROGRAM), option], cwd=tmp_path, check=False, capture_output=True)
        assert done.returncode == 0 and told in done.stdout.decode()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [["--nonsense"], ["--dry"], ["--only"], ["--dry-run", "--check"], ["--check", "--status"], ["--config"], ["extra"]],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(stage: Stage, options: list[str]) -> None:
    stage.query("10_a", ONE)
    result = stage.main(options)
    assert result.exit_code == 2 and "usage:" in result.stderr
    assert stage.files("a") == []


def test_without_config_env_the_message_says_what_to_do(stage: Stage) -> None:
    stage.config.unlink()
    result = stage.run()
    assert result.exit_code == 2
    assert "config.env.example" in result.stderr and "Traceback" not in result.stderr


def closed(stage: Stage, redirection: str) -> int:
    """The exit code of a run whose streams are closed or redirected by a shell."""
    command = " ".join(f"'{part}'" for part in stage.command())
    return subprocess.run(
        ["sh", "-c", f"{command} {redirection}"], cwd=stage.elsewhere, env=clean_environ(), check=False, timeout=60
    ).returncode


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell closes the streams")
@pytest.mark.parametrize("redirection", [">&-", ">&- 2>&- <&-"])
def test_closed_streams_do_not_stop_a_delivery(stage: Stage, redirection: str) -> None:
    stage.query("10_a", ONE)
    assert closed(stage, redirection) == 0
    assert len(stage.files("a")) == 1 and "exit code 0" in stage.log()


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell closes the streams")
def test_closed_streams_do_not_hide_a_fault(stage: Stage) -> None:
    stage.query("10_a", "SELECT broken")
    assert closed(stage, ">&- 2>&-") == 4


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_that_lacks_characters_does_not_stop_a_delivery(stage: Stage, encoding: str) -> None:
    stage.query("10_a", "SELECT 'ok' AS n", folder=stage.remote_base / "Ação 漢字")
    stage.query("20_b", "SELECT 1 AS n", columns="número 漢字")
    result = stage.run(PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert result.exit_code == 4, result.said
    assert len(stage.files("a")) == 1 and "exit code 4" in result.stdout


# ---------------------------------------------------------------------------------------------------------------------
# --only, --json, --scheduled
# ---------------------------------------------------------------------------------------------------------------------


def test_only_runs_what_it_names(stage: Stage) -> None:
    for name in ("10_a", "20_b", "30_c"):
        stage.query(name, ONE)
    result = stage.deliver("--only", "c", "--only", "a")
    assert result.verdicts == {"a": "delivered", "c": "delivered"}
    assert stage.files("b") == []


def test_only_with_an_unknown_name_lists_the_known_ones_and_sends_nothing(stage: Stage) -> None:
    stage.query("10_a", ONE)
    stage.query("20_b", ONE, enabled="no")
    result = stage.main(["--only", "a", "--only", "x"])
    assert result.exit_code == 2
    assert "x" in result.stderr and "known: a" in result.stderr
    assert stage.files("a") == [] and stage.ledger() == []


def one_json_object(result: Result) -> dict[str, object]:
    """What --json put on stdout: one object, on one line, and nothing else."""
    assert result.stdout.count("\n") == 1 and result.stdout.endswith("\n")
    found: dict[str, object] = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    "options", [[], ["--dry-run"], ["--check"], ["--status"], ["--scheduled"], ["--resend"]], ids=str
)
def test_json_is_the_only_thing_on_stdout(stage: Stage, options: list[str]) -> None:
    stage.query("10_a", ONE)
    stage.query("20_b", "SELECT broken")
    result = stage.deliver(*options) if options else stage.run("--json")
    found = one_json_object(result)
    if options != ["--status"]:
        assert found["exit_code"] == result.exit_code == 4 or options == ["--check"]


@pytest.mark.parametrize("case", ["settings", "hours", "only"])
def test_json_tells_faults_too(stage: Stage, case: str) -> None:
    stage.query("10_a", ONE)
    options: list[str] = []
    if case == "settings":
        stage.settings(RUN_DAYS="x")
    elif case == "hours":
        stage.settings(RUN_DAYS=None, RUN_HOURS=None)
    else:
        options = ["--only", "x"]
    result = stage.main(["--json", *options], now=NOON.replace(hour=3))
    found = one_json_object(result)
    assert found["exit_code"] == result.exit_code == (7 if case == "hours" else 2)
    assert found["error"] and found["meaning"]


def test_a_scheduled_run_is_plain_text(stage: Stage) -> None:
    stage.query("10_a", ONE)
    result = stage.run("--scheduled", FORCE_COLOR="1", TERM="xterm-256color")
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout + result.stderr + result.log


# ---------------------------------------------------------------------------------------------------------------------
# --dry-run
# ---------------------------------------------------------------------------------------------------------------------


def test_a_dry_run_needs_no_sftp_setting_and_sends_nothing(stage: Stage) -> None:
    without_sftp(stage)
    stage.settings(SFTP_BASE_DIR="/entrada")
    stage.query("10_a", "SELECT telefone, nome FROM contatos", phones="telefone", columns="telefone;nome")
    result = stage.run("--dry-run")
    assert result.exit_code == 0, result.said
    (path,) = (stage.output / "dry-run").iterdir()
    assert path.read_bytes().startswith(b"telefone;nome\r\n11980000001;Pessoa Fict")
    assert re.search(r"a +would be sent +3,000 +0 +\d+\.\d kB +2\b", result.stdout)
    assert f"/entrada/a/{path.name}" in re.sub(r"\s*\n\s*", "", result.stdout)
    assert stage.ledger() == [] and stage.files("a") == []


def test_a_dry_run_makes_no_connection(stage: Stage) -> None:
    stage.query("10_a", ONE)
    before = len(stage.sftp.log_text())
    assert stage.deliver("--dry-run").verdicts == {"a": "would be sent"}
    assert len(stage.sftp.log_text()) == before and stage.files("a") == []


def test_in_a_dry_run_every_guard_gives_its_verdict(stage: Stage) -> None:
    stage.query("10_drop", "SELECT telefone FROM contatos", max_drop="50%")
    stage.deliver(now=NOON)
    without_sftp(stage)
    stage.query("10_drop", "SELECT telefone FROM contatos LIMIT 5", max_drop="50%")
    stage.query("20_few", ONE, min_rows=2)
    stage.query("30_many", "SELECT telefone FROM contatos", max_rows=2)
    stage.query("40_layout", ONE, columns="m")
    stage.query("50_empty", f"{ONE} WHERE false")
    stage.query("60_broken", "SELECT broken")
    stage.query("70_good", ONE)
    result = stage.deliver("--dry-run", now=NOON + timedelta(hours=1))
    assert result.exit_code == 4
    assert result.verdicts == {
        **dict.fromkeys(["drop", "few", "many", "layout"], "held"),
        "empty": "empty",
        "broken": "failed",
        "good": "would be sent",
    }
    assert all(result.campaigns[name]["hint"] for name in ("drop", "few", "many", "layout", "broken"))
    assert len(stage.ledger()) == 1


def test_a_dry_run_may_be_made_at_any_hour(stage: Stage) -> None:
    stage.settings(RUN_DAYS=None, RUN_HOURS=None)
    stage.query("10_a", ONE)
    result = stage.deliver("--dry-run", now=NOON.replace(hour=3))
    assert result.exit_code == 0
    assert "03:0" in result.campaigns["a"]["message"], "it says that a real run would not send now"


def test_a_dry_run_does_not_stand_in_the_way_of_the_real_one(stage: Stage) -> None:
    stage.query("10_a", ONE)
    stage.deliver("--dry-run", now=NOON)
    stage.deliver("--dry-run", now=NOON)
    assert stage.deliver(now=NOON).verdicts == {"a": "delivered"}
    assert stage.files("a") == ["mailing_a_22-12_12-00.csv"]


def test_a_dry_run_tells_an_unreachable_database(stage: Stage) -> None:
    without_sftp(stage)
    stage.settings(PGPORT=free_port(), RETRY_ATTEMPTS=1)
    stage.query("10_a", ONE)
    assert stage.deliver("--dry-run").exit_code == 5


# ---------------------------------------------------------------------------------------------------------------------
# --check
# ---------------------------------------------------------------------------------------------------------------------


def files_of(stage: Stage) -> list[Path]:
    return sorted(path for path in stage.base.rglob("*") if path.is_file())


def check(stage: Stage, *options: str) -> dict[str, dict[str, object]]:
    """The lines of --check, by what they are about; nothing stays behind, whatever it finds."""
    before = files_of(stage)
    result = stage.main(["--check", "--json", *options])
    assert files_of(stage) == before, "--check leaves nothing behind"
    assert stage.ledger() == []
    found = {str(line["what"]): line for line in result.json["checks"]}
    assert (result.exit_code == 0) is all(line["ok"] for line in found.values())
    assert all(line["hint"] for line in found.values() if not line["ok"])
    return found


def faults(found: dict[str, dict[str, object]]) -> list[str]:
    return [what for what, line in found.items() if not line["ok"]]


@pytest.fixture
def ready(stage: Stage) -> Stage:
    """Two campaigns, everything in order."""
    stage.query("10_a", "SELECT telefone, nome FROM contatos", columns="telefone;nome", phones="telefone")
    stage.query("20_b", "SELECT 1 AS n, pg_sleep(300) AS s")  # planned, not run
    return stage


def test_check_finds_everything_in_order_and_sends_nothing(ready: Stage) -> None:
    with ready.dialer(pattern="mailing_*") as dialer, ready.dialer(pattern="*.csv", taken=ready.base / "t") as other:
        found = check(ready)
        assert dialer.record == [] and other.record == []
    assert faults(found) == []
    whats = " ".join(found)
    for part in ("settings", "database", "10_a.sql", "20_b.sql", "host key", "login", f"{ready.remote_base}/a"):
        assert part in whats, part


def test_check_is_a_list_for_a_person_too(ready: Stage) -> None:
    ready.query("20_b", "SELECT 1 AS n", columns="m")
    result = ready.run("--check")
    assert result.exit_code == 4
    assert re.search(r"(?m)^ok .*10_a\.sql", result.stdout)
    assert re.search(r"(?m)^FAULT .*20_b\.sql.*missing m; not expected n", result.stdout)
    assert "-> " in result.stdout


def test_check_finds_a_wrong_column(ready: Stage) -> None:
    ready.query("10_a", "SELECT telefone, cpf FROM contatos", columns="telefone;nome")
    found = check(ready)
    (fault,) = faults(found)
    assert "10_a.sql" in fault and "missing nome; not expected cpf" in str(found[fault]["message"])


def test_check_finds_a_query_that_cannot_run(ready: Stage) -> None:
    ready.query("10_a", "SELECT telefone,\n  nome\nFROM contatos_2")
    found = check(ready)
    (fault,) = faults(found)
    assert "10_a.sql: line 3" in str(found[fault]["message"]) and "contatos_2" in str(found[fault]["message"])


def test_check_finds_a_missing_folder(ready: Stage) -> None:
    ready.drop("a").rmdir()
    found = check(ready)
    (fault,) = faults(found)
    assert f"{ready.remote_base}/a" in fault and "create the folder" in str(found[fault]["hint"])
    assert not ready.drop("a").exists()


def test_check_finds_a_read_only_folder(ready: Stage) -> None:
    if isinstance(ready.sftp, ParamikoServer) or ready.sftp.user == "root":
        pytest.skip("needs an sshd whose user is bound by permission bits")
    with forbidden(ready.drop("b")):
        found = check(ready)
    (fault,) = faults(found)
    assert f"{ready.remote_base}/b" in fault and "write access" in str(found[fault]["hint"])


def test_check_tries_the_staging_folder(ready: Stage) -> None:
    ready.settings(SFTP_STAGING_DIR=ready.remote_base / "staging")
    assert len(faults(check(ready))) == 2
    ready.sftp.make_folder(f"{ready.base.name}/staging")
    assert faults(check(ready)) == []


def test_check_prints_the_host_key_that_it_sees_and_sends_no_password(ready: Stage) -> None:
    ready.settings(SFTP_HOST_KEY=None)
    before = len(ready.sftp.log_text())
    result = ready.main(["--check"])
    assert result.exit_code == 2
    assert f"SFTP_HOST_KEY={ready.sftp.fingerprint}" in result.stdout
    assert "password for" not in ready.sftp.log_text()[before:]


def test_check_finds_another_host_key(ready: Stage) -> None:
    ready.settings(SFTP_HOST_KEY="SHA256:" + "a" * 43)
    (fault,) = faults(check(ready))
    assert "host key" in fault


def test_check_finds_a_wrong_password(ready: Stage, password_server: object) -> None:
    if not ready.sftp.password:
        pytest.skip("needs a server that takes passwords")
    assert password_server is ready.sftp
    ready.settings(SFTP_PASSWORD=CANARY)
    (fault,) = faults(check(ready))
    assert "login" in fault


def test_check_finds_a_wrong_database_password(ready: Stage) -> None:
    ready.settings(PGPASSWORD=CANARY)
    found = check(ready)
    (fault,) = faults(found)
    assert "database" in fault and "PGPASSWORD" in str(found[fault]["hint"])
    assert CANARY not in json.dumps(found)


def test_check_finds_both_servers_down(ready: Stage) -> None:
    ready.settings(PGPORT=free_port(), SFTP_PORT=free_port())
    assert len(faults(check(ready))) == 2


def test_check_of_one_campaign_leaves_out_the_others(ready: Stage) -> None:
    ready.query("10_a", "SELECT broken")
    assert faults(check(ready, "--only", "b")) == []


def test_check_finds_faults_in_settings_and_queries_at_once(ready: Stage) -> None:
    ready.settings(RUN_DAYS="x")
    ready.query("10_a", ONE, min_row=1)
    result = ready.main(["--check"])
    assert result.exit_code == 2 and "RUN_DAYS" in result.stderr and "min_row" in result.stderr


# ---------------------------------------------------------------------------------------------------------------------
# --status
# ---------------------------------------------------------------------------------------------------------------------


def cells_of(line: str) -> list[str]:
    return line.split()[1:]


def test_status_shows_campaigns_down_and_slots_across(stage: Stage) -> None:
    stage.settings(RUN_HOURS="11:00-14:00")
    stage.query("10_a", "SELECT telefone FROM contatos LIMIT 123")
    stage.query("20_b", ONE, min_rows=5)
    stage.query("30_c", ONE, hours="12:00-12:00")
    stage.deliver(now=NOON - timedelta(days=1))
    stage.deliver(now=NOON)
    stage.query("20_b", ONE)
    stage.deliver(now=NOON + timedelta(hours=1))
    now = NOON + timedelta(hours=1, minutes=30)
    shown = {line.split()[0]: cells_of(line) for line in stage.main(["--status"], now).stdout.splitlines() if line}
    assert shown["22/12"] == ["11", "12", "13", "14"]
    assert shown["a"][1:3] == ["123", "123"]
    assert shown["b"][2] == "1" and shown["b"][1] != "1"

    told = stage.main(["--status", "--json"], now).json["campaigns"]
    states = {name: [cell["state"] for cell in cells.values()] for name, cells in told.items()}
    assert list(told["a"]) == [f"2026-12-22 {hour}:00" for hour in (11, 12, 13, 14)]
    assert states["a"] == ["missed", "delivered", "delivered", "still to come"]
    assert states["b"] == ["missed", "held", "delivered", "still to come"]
    assert states["c"][1:3] == ["delivered", "not due"]


def test_status_works_before_the_first_run_and_without_sftp(stage: Stage) -> None:
    without_sftp(stage)
    stage.query("10_a", ONE)
    result = stage.main(["--status"])
    assert result.exit_code == 0 and "\na " in result.stdout
    assert not stage.output.exists()


def test_status_of_a_damaged_ledger_ends_with_2(stage: Stage) -> None:
    stage.query("10_a", ONE)
    stage.output.mkdir()
    (stage.output / "ledger.sqlite3").write_text("no database, but longer than a header of SQLite would be" * 10)
    assert stage.main(["--status"]).exit_code == 2
