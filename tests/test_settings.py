"""config.env and the environment: every setting, its default, its faults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import date, datetime, time
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from stage import Stage

import mailing_pipeline
from mailing_pipeline import (
    SETTING_FIELDS,
    Hours,
    Settings,
    SettingsFault,
    Text,
    load_settings,
    shown,
    start_times,
    weekdays,
)

CANARY = "s3cret-Canary"
FINGERPRINT = "SHA256:" + "a" * 43
OTHER = "SHA256:" + "b+/" * 14 + "b"
SENDING = f"SFTP_HOST=sftp.example\nSFTP_USER=discador\nSFTP_PASSWORD={CANARY}\nSFTP_HOST_KEY={FINGERPRINT}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def load(
    folder: Path,
    text: str | bytes,
    environ: Mapping[str, str] | None = None,
    *,
    sends: bool = False,
    knows_host: bool = True,
) -> Settings:
    """The settings that a config.env with this text gives."""
    path = folder / "config.env"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_settings(path, environ or {}, sends=sends, knows_host=knows_host)


def faults(folder: Path, text: str | bytes, environ: Mapping[str, str] | None = None, **how: bool) -> list[str]:
    """What is wrong with a config.env with this text. Each fault has its Portuguese, with other words."""
    with pytest.raises(SettingsFault) as caught:
        load(folder, text, environ, **how)
    for fault in caught.value.lines:
        assert isinstance(fault, Text) and fault.told("pt") != str(fault)
    return list(map(str, caught.value.lines))


# key -> what it is by default, another text, what that means, a text that is a fault
TABLE: dict[str, tuple[Any, str, Any, str | None]] = {
    "SFTP_HOST": ("", "sftp.example", "sftp.example", None),
    "SFTP_PORT": (22, "2222", 2222, "65536"),
    "SFTP_USER": ("", "discador", "discador", None),
    "SFTP_PASSWORD": ("", CANARY, CANARY, None),
    "SFTP_KEY_FILE": ("", "keys/id_ed25519", "keys/id_ed25519", None),
    "SFTP_KEY_PASSPHRASE": ("", CANARY, CANARY, None),
    "SFTP_HOST_KEY": ((), FINGERPRINT + "=", (FINGERPRINT,), "MD5:aa:bb:cc"),
    "SFTP_BASE_DIR": (PurePosixPath("/"), "/entrada", PurePosixPath("/entrada"), "/entrada/../etc"),
    "SFTP_STAGING_DIR": (None, "/area", PurePosixPath("/area"), r"\area"),
    "SFTP_TEMP_NAME": (".part-{id}", "parte_{id}.tmp", "parte_{id}.tmp", "parte.tmp"),
    "SFTP_COMPRESS": (False, "yes", True, "maybe"),
    "SFTP_VERIFY": ("size", "hash", "hash", "md5"),
    "QUERIES_DIR": ("queries", "consultas", "consultas", None),
    "OUTPUT_DIR": ("output", "saida", "saida", None),
    "LOG_DIR": ("logs", "registros", "registros", None),
    "FILE_NAME": ("mailing_{campaign}_%d-%m_%H-%M.csv", "{campaign}_%H.txt", "{campaign}_%H.txt", "a/{campaign}.csv"),
    "CSV_DELIMITER": (";", r"\t", "\t", "ab"),
    "CSV_ENCODING": ("utf-8", "CP1252", "cp1252", "utf-16"),
    "CSV_HEADER": (True, "no", False, "1"),
    "CSV_NEWLINE": ("\r\n", "lf", "\n", "cr"),
    "RUN_DAYS": (frozenset(range(6)), "mon,wed-fri", frozenset({0, 2, 3, 4}), "seg-sex"),
    "RUN_HOURS": (
        {None: (time(8), time(20))},
        "09:30-18:00, sat 08:00-13:00",
        {None: (time(9, 30), time(18)), 5: (time(8), time(13))},
        "18:00-09:00",
    ),
    "HOLIDAYS": (frozenset(), "2026-12-25, 2027-01-01", {date(2026, 12, 25), date(2027, 1, 1)}, "25/12/2026"),
    "QUERY_WORKERS": (4, "1", 1, "0"),
    "QUERY_TIMEOUT_SECONDS": (600, "30", 30, "ten"),
    "RETRY_ATTEMPTS": (5, "1", 1, "many"),
    "RETRY_FIRST_SECONDS": (2, "0", 0, "-1"),
    "RETRY_MAX_SECONDS": (60, "5", 5, "1.5"),
    "CONNECT_TIMEOUT_SECONDS": (30, "5", 5, "301"),
    "RUN_DEADLINE_MINUTES": (50, "20", 20, "000"),
    "PICKUP_TIMEOUT_SECONDS": (0, "30", 30, "x"),
    "RETENTION_DAYS": (7, "30", 30, "-7"),
    "LEDGER": ({}, "host=pg user=ana", {"host": "pg", "user": "ana"}, f"host=pg password={CANARY} and more"),
    "MAX_REPLICA_LAG_SECONDS": (0, "30", 30, "-1"),
    "LANGUAGE": ("en", "PT", "pt", "fr"),
    "ALERT_URLS": ("", "mailto://x", "mailto://x", None),
    "HEARTBEAT_URL": ("", "https://x.example", "https://x.example", None),
}


def value_of(settings: Settings, key: str) -> Any:
    """What a setting says."""
    return getattr(settings, SETTING_FIELDS[key].name)


def test_the_table_of_this_test_has_every_setting() -> None:
    assert list(TABLE) == list(SETTING_FIELDS)


@pytest.mark.parametrize("key", TABLE)
def test_a_setting_has_its_default(key: str, folder: Path) -> None:
    assert value_of(load(folder, ""), key) == TABLE[key][0]


@pytest.mark.parametrize("key", TABLE)
def test_an_empty_value_is_the_default(key: str, folder: Path) -> None:
    assert value_of(load(folder, f"{key}=\n"), key) == TABLE[key][0]


@pytest.mark.parametrize("key", TABLE)
def test_a_setting_is_read_from_the_file(key: str, folder: Path) -> None:
    _, text, meaning, _ = TABLE[key]
    assert value_of(load(folder, f"{key}='{text}'\n"), key) == meaning


@pytest.mark.parametrize("key", TABLE)
def test_an_environment_variable_wins_over_the_file(key: str, folder: Path) -> None:
    _, text, meaning, _ = TABLE[key]
    if key == "LANGUAGE":
        text = text.lower()  # in capitals it might be anything of gettext's
    assert value_of(load(folder, f"{key}=\n", {key: text}), key) == meaning


@pytest.mark.parametrize("key", [key for key, row in TABLE.items() if row[3] is not None])
def test_a_bad_value_is_a_fault_that_names_the_key_and_not_the_value(key: str, folder: Path) -> None:
    bad = TABLE[key][3]
    (fault,) = faults(folder, f"{key}='{bad}'\n")
    assert fault.startswith("config.env: ") and f"{key}: " in fault
    assert f"'{bad}'" not in fault and not fault.endswith(str(bad))


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("SFTP_PORT", "0"),
        ("SFTP_PORT", "2²"),
        ("SFTP_HOST_KEY", "SHA256:short"),
        ("SFTP_BASE_DIR", "C:\\entrada"),
        ("FILE_NAME", "mailing.csv"),
        ("FILE_NAME", "mailing_{campaign}_%H"),
        ("FILE_NAME", "mailing_{campaign}_%H.csv.part"),
        ("RUN_DEADLINE_MINUTES", "55"),
        ("FILE_NAME", "mailing_%d-%m.csv"),
        ("FILE_NAME", "mailing_{campanha}_%H.csv"),
        ("FILE_NAME", "mailing_{campaign}_%H:%M.csv"),
        ("FILE_NAME", ".part-{campaign}"),
        ("FILE_NAME", "{campaign}\\x.csv"),
        ("FILE_NAME", "{campaign}.csv."),
        ("CSV_DELIMITER", '"'),
        ("CSV_DELIMITER", "a"),
        ("CSV_DELIMITER", "é"),
        ("RUN_DAYS", "sat-mon"),
        ("RUN_DAYS", "mon-"),
        ("FILE_NAME", ".{campaign}_%H.csv"),
        ("FILE_NAME", "{campaign}\u200b_%H.csv"),
        ("FILE_NAME", "{campaign}\x1b[31m.csv"),
        ("FILE_NAME", "{campaign}\u202ecsv.csv"),
        ("SFTP_HOST", "sftp.example\u200b"),
        ("SFTP_USER", "discador\u00a0"),
        ("SFTP_TEMP_NAME", "{id}.csv"),
        ("SFTP_TEMP_NAME", "{id}.TXT"),
        ("SFTP_TEMP_NAME", "x/{id}"),
        ("SFTP_TEMP_NAME", "{id}."),
        ("SFTP_TEMP_NAME", "{id}{campaign}"),
        ("SFTP_TEMP_NAME", "%d{id}"),
        ("SFTP_TEMP_NAME", "{id}\u200b"),
        ("SFTP_TEMP_NAME", "x" * 200 + "{id}"),
        ("CONNECT_TIMEOUT_SECONDS", "0"),
        ("SFTP_HOST_KEY", "(ssh-ed25519)x"),
        ("SFTP_HOST_KEY", f"{FINGERPRINT} MD5:aa"),
        ("RUN_HOURS", "08:00-20:00, 09:00-18:00"),
        ("RUN_HOURS", "08:00-20:00, sat 08:00-13:00, fri-sat 08:00-12:00"),
        ("RUN_HOURS", "08:00-20:00, sat"),
        ("RUN_HOURS", "08:00-20:00 sat"),
        ("RUN_HOURS", "08:00-20:00, sab 08:00-13:00"),
        ("RUN_HOURS", "08:00-20:00, sat 13:00-08:00"),
        ("RUN_HOURS", "08:00-20:00, sun 08:00-13:00"),
        ("RUN_HOURS", "08:00-20:00,"),
        ("RUN_HOURS", "sat08:00-13:00"),
        ("RUN_HOURS", "8:00-20:00"),
        ("RUN_HOURS", "08:00-24:00"),
        ("HOLIDAYS", "2026-02-30"),
    ],
)
def test_other_bad_values_are_faults_too(key: str, bad: str, folder: Path) -> None:
    (fault,) = faults(folder, f"{key}='{bad}'\n")
    assert f"{key}: " in fault


@pytest.mark.parametrize("key", ["SFTP_HOST", "OUTPUT_DIR", "FILE_NAME", "SFTP_TEMP_NAME"])
def test_a_character_that_cannot_be_seen_is_told_as_such(key: str, folder: Path) -> None:
    """Else a name that looks right is called illegal."""
    (fault,) = faults(folder, f"{key}='a_{{campaign}}\u200b_{{id}}_%H.csv'\n")
    assert fault == f"config.env: {key}: holds a character that cannot be seen; type it anew"


def test_every_fault_is_reported_at_once_with_its_line_or_key(folder: Path) -> None:
    text = f"# comment\nSFTP_PORT=x\nnonsense\nSFTP_HOTS=a\nCSV_HEADER={CANARY}\nSFTP_PORT=1\nPGHOSTT=b\n"
    found = faults(folder, text, sends=True)
    said = "\n".join(found)
    assert "config.env: line 3: not of the form KEY=value" in said
    assert "line 6: SFTP_PORT: set twice" in said
    assert "SFTP_PORT: must be a whole number" in said
    assert "SFTP_HOTS: unknown setting; did you mean SFTP_HOST?" in said
    assert "PGHOSTT: unknown setting; did you mean PGHOST?" in said
    assert "CSV_HEADER: must be one of: yes, no" in said
    for missing in ("SFTP_HOST: missing", "SFTP_USER: missing", "SFTP_HOST_KEY: missing"):
        assert missing in said
    assert "SFTP_PASSWORD, SFTP_KEY_FILE: set one of the two, or both" in said
    assert len(found) == 10
    assert CANARY not in said


def test_a_key_without_a_value_is_a_fault(folder: Path) -> None:
    (fault,) = faults(folder, "\nLANGUAGE\n")
    assert fault == "config.env: line 2: not of the form KEY=value"


def test_a_password_and_a_key_may_both_be_set(folder: Path) -> None:
    settings = load(folder, SENDING + "SFTP_KEY_FILE=id\n", sends=True)
    assert (settings.sftp_password, settings.sftp_key_file) == (CANARY, "id")


@pytest.mark.parametrize(
    "written",
    [
        f"{FINGERPRINT} (ssh-ed25519)",
        f"{FINGERPRINT}= (ED25519)",
        f" {FINGERPRINT}  (ecdsa-sha2-nistp256) {OTHER} (ssh-rsa)",
        f"{FINGERPRINT} {OTHER}",
        f"{FINGERPRINT}, {OTHER}",
        f"{FINGERPRINT} {FINGERPRINT}",
    ],
)
def test_fingerprints_are_taken_as_they_are_printed_and_several_of_them(written: str, folder: Path) -> None:
    meant = (FINGERPRINT, OTHER) if OTHER in written else (FINGERPRINT,)
    for quotes in ("", "'", '"'):
        assert load(folder, f"SFTP_HOST_KEY={quotes}{written}{quotes}\n").sftp_host_key == meant


def test_a_missing_host_key_points_to_check(folder: Path) -> None:
    without = SENDING.replace(f"SFTP_HOST_KEY={FINGERPRINT}\n", "")
    (fault,) = faults(folder, without, sends=True)
    assert "SFTP_HOST_KEY: missing" in fault and "--check" in fault
    load(folder, without, sends=True, knows_host=False)


def test_a_dry_run_needs_no_sftp_setting(folder: Path) -> None:
    assert load(folder, "PGHOST=db.example\n").sftp_host == ""


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("'a#b'", "a#b"),
        ("'a #b'", "a #b"),
        ("'p$HOME${HOME}'", "p$HOME${HOME}"),
        ("p${HOME}x", "p${HOME}x"),
        (r"'back\slash'", r"back\slash"),
        (r"'it\'s'", "it's"),
        ("' spaces '", " spaces "),
        (r"'\\back'", r"\back"),
        (r'"a\"b\\n"', r'a"b\n'),
        ("ção", "ção"),
        ("a=b", "a=b"),
    ],
)
def test_a_password_arrives_as_it_was_written(written: str, meant: str, folder: Path) -> None:
    assert load(folder, f"SFTP_PASSWORD={written}\n").sftp_password == meant


@pytest.mark.parametrize(
    "line",
    [
        f"SFTP_PASSWORD='it's{CANARY}'",
        f"SFTP_PASSWORD='{CANARY}'x",
        f'SFTP_PASSWORD="{CANARY}"x"',
        f"export SFTP_PASSWORD = '{CANARY}",
        f"SFTP_PASSWORD='{CANARY}\nSFTP_USER='discador'",
    ],
)
def test_a_quote_inside_quotes_is_named_as_the_culprit_with_its_key(line: str, folder: Path) -> None:
    (fault,) = faults(folder, f"\n{line}\n")
    assert fault.startswith("config.env: line 2: SFTP_PASSWORD: a quote inside the value ends it")
    assert CANARY not in fault


def test_a_value_that_runs_on_into_the_next_line_is_a_fault(folder: Path) -> None:
    """It swallowed the setting below it, and nobody knew."""
    (fault,) = faults(folder, f"SFTP_PASSWORD='{CANARY}\nSFTP_USER=discador'\n")
    assert fault.startswith(
        "config.env: line 1: SFTP_PASSWORD: a quote inside the value ends it, or the last is missing"
    )


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("SFTP_PASSWORD", rf'"{CANARY}\tx"'),
        ("SFTP_PASSWORD", rf'"{CANARY}\nx"'),
        ("OUTPUT_DIR", rf'"C:\new{CANARY}"'),
        ("OUTPUT_DIR", rf"'\\servidor\{CANARY}'"),
    ],
)
def test_a_value_that_its_quotes_change_is_a_fault(key: str, written: str, folder: Path) -> None:
    fault = faults(folder, f"{key}={written}\n")[0]
    assert fault.startswith(f"config.env: line 1: {key}: these quotes change") and CANARY not in fault


def test_a_line_that_is_no_setting_is_not_quoted(folder: Path) -> None:
    (fault,) = faults(folder, f"SFTP_HOST=a\n{CANARY}\n")
    assert fault == "config.env: line 2: not of the form KEY=value"


def test_byte_order_mark_and_windows_line_ends_are_no_trouble(folder: Path) -> None:
    settings = load(folder, b"\xef\xbb\xbfSFTP_HOST=a.example\r\nSFTP_USER=b\r\n")
    assert (settings.sftp_host, settings.sftp_user) == ("a.example", "b")


def test_a_file_that_is_not_utf_8_is_a_fault_with_its_line(folder: Path) -> None:
    (fault,) = faults(folder, f"SFTP_HOST=a\nSFTP_PASSWORD={CANARY}ção\n".encode("cp1252"))
    assert "line 2" in fault and "UTF-8" in fault
    assert CANARY not in fault


def test_a_file_in_utf_16_is_called_so(folder: Path) -> None:
    """The editor of old Windows calls it Unicode."""
    (fault,) = faults(folder, f"SFTP_PASSWORD={CANARY}\n".encode("utf-16"))
    assert fault.startswith(f"{folder / 'config.env'}: line 1: not a text in UTF-8") and "UTF-16" in fault


def test_a_missing_file_says_what_to_copy(folder: Path) -> None:
    with pytest.raises(SettingsFault, match=r"config\.env\.example"):
        load_settings(folder / "config.env", {}, sends=False, knows_host=False)


def test_a_folder_in_place_of_the_file_is_a_fault(folder: Path) -> None:
    (folder / "config.env").mkdir()
    with pytest.raises(SettingsFault, match=r"config\.env"):
        load_settings(folder / "config.env", {}, sends=False, knows_host=False)


def test_other_environment_variables_are_left_alone(folder: Path) -> None:
    environ = {"PATH": "/bin", "SFTP_SOMETHING": "x", "LANGUAGE": "pt_BR:pt", "CSV_HEADER": ""}
    settings = load(folder, "CSV_HEADER=no\n", environ)
    assert settings.language == "en" and not settings.csv_header


def test_a_bad_environment_variable_is_a_fault_too(folder: Path) -> None:
    (fault,) = faults(folder, "", {"SFTP_PORT": CANARY})
    assert "SFTP_PORT: " in fault and CANARY not in fault


def test_paths_are_relative_to_the_folder_of_config_env(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(folder, "")
    (folder / "else").mkdir()
    monkeypatch.chdir(folder / "else")
    assert settings.output == folder / "output"
    assert settings.local(settings.queries_dir) == folder / "queries"


def test_every_name_of_libpq_is_a_setting(folder: Path) -> None:
    """libpq's own table of names, from the library itself: a new libpq brings new settings by itself."""
    psycopg = pytest.importorskip("psycopg")
    names = [option.envvar.decode() for option in psycopg.pq.Conninfo.get_defaults() if option.envvar]
    assert {"PGHOST", "PGPORT", "PGSERVICE", "PGSSLMODE", "PGTARGETSESSIONATTRS", "PGLOADBALANCEHOSTS"} <= {*names}
    load(folder, "".join(f"{name}=1\n" for name in names))


def test_no_secret_is_in_the_settings_repr(folder: Path) -> None:
    text = f"SFTP_PASSWORD={CANARY}\nSFTP_KEY_PASSPHRASE={CANARY}\nPGPASSWORD={CANARY}\n"
    text += f"ALERT_URLS=mailto://{CANARY}\nHEARTBEAT_URL=https://{CANARY}\n"
    settings = load(folder, text)
    assert CANARY not in repr(settings) and CANARY not in str(settings)


def test_a_fault_in_settings_ends_with_2_and_shows_no_value(stage: Stage) -> None:
    stage.settings(SFTP_PORT=CANARY, RUN_DAYS="seg-sex", PGPASWORD=CANARY)
    stage.query("10_a", "SELECT 1 AS um")
    result = stage.run()
    assert result.exit_code == 2
    for key in ("SFTP_PORT", "RUN_DAYS", "PGPASWORD"):
        assert f"{key}: " in result.stderr
    assert "did you mean PGPASSWORD?" in result.stderr
    assert "exit code 2" in result.stderr
    assert CANARY not in result.said


def test_settings_and_queries_are_faulted_together(stage: Stage) -> None:
    stage.settings(SFTP_PORT="x")
    stage.query("10_a", "SELECT 1", min_row=5)
    result = stage.main()
    assert result.exit_code == 2
    assert "SFTP_PORT: " in result.stderr and "10_a.sql: line 1: min_row" in result.stderr


def test_the_folders_of_queries_output_and_logs_can_be_elsewhere(stage: Stage) -> None:
    stage.query("10_a", "SELECT 1 AS um")
    (stage.folder / "outro lugar").mkdir()
    stage.queries.rename(stage.folder / "outro lugar" / "consultas")
    stage.settings(QUERIES_DIR="outro lugar/consultas", OUTPUT_DIR="saída", LOG_DIR=stage.elsewhere / "log")
    assert stage.main().exit_code == 0
    assert stage.files("a")
    assert (stage.folder / "saída" / "ledger.sqlite3").exists()
    assert list((stage.elsewhere / "log").glob("*.log"))
    assert not stage.output.exists() and not stage.logs.exists()


def test_the_database_is_chosen_by_libpqs_own_settings(stage: Stage) -> None:
    """A service file, which libpq itself reads, names server, database, user and password."""
    names = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER", "password": "PGPASSWORD"}
    service = stage.folder / "pg_service.conf"
    service.write_text("[casa]\n" + "".join(f"{key}={stage.values[name]}\n" for key, name in names.items()))
    stage.settings(**dict.fromkeys(names.values()), PGSERVICE="casa", PGSERVICEFILE=service)
    stage.query("10_a", "SELECT current_user AS quem")
    try:
        assert stage.main().exit_code == 0
    finally:
        os.environ.pop("PGSERVICEFILE", None)
    assert stage.cells("a") == [["quem"], ["mailing"]]


def test_of_several_hosts_the_one_that_answers_is_taken(stage: Stage) -> None:
    from local_servers import free_port

    stage.settings(PGHOST="127.0.0.1,127.0.0.1", PGPORT=f"{free_port()},{stage.values['PGPORT']}")
    stage.query("10_a", "SELECT 1 AS um")
    stage.query("20_b", "SELECT 1 AS um")
    assert stage.deliver().verdicts == {"a": "delivered", "b": "delivered"}


def test_two_slashes_at_the_beginning_make_no_other_folder() -> None:
    """POSIX keeps them apart, the SFTP server does not: two campaigns would share one drop folder unseen."""
    assert mailing_pipeline.remote_path("//entrada/a") == mailing_pipeline.remote_path("/entrada/a")


# ---------------------------------------------------------------------------------------------------------------------
# Hours
# ---------------------------------------------------------------------------------------------------------------------

CHRISTMAS = frozenset({date(2026, 12, 25)})  # a Friday


def hours(starts: str, days: str = "mon-sat") -> Hours:
    return Hours(weekdays(days), start_times(starts), CHRISTMAS)


BY_DAY = hours("08:00-20:00, sat 08:30-13:00, mon,wed 09:00-12:00")
BY_DAY_TOLD = (
    "mon 09:00-12:00, tue 08:00-20:00, wed 09:00-12:00, thu-fri 08:00-20:00, sat 08:30-13:00",
    "segunda 09:00-12:00, terça 08:00-20:00, quarta 09:00-12:00, de quinta a sexta 08:00-20:00, sábado 08:30-13:00",
)


@pytest.mark.parametrize(
    ("moment", "inside"),
    [
        ("2026-12-22 07:59", False),  # Tuesday
        ("2026-12-22 08:00", True),
        ("2026-12-22 20:00", True),
        ("2026-12-22 20:59", True),  # the last start names a slot
        ("2026-12-22 21:00", False),
        ("2026-12-21 08:30", False),  # Monday
        ("2026-12-21 12:59", True),
        ("2026-12-21 13:00", False),
        ("2026-12-26 08:29", False),  # Saturday
        ("2026-12-26 08:30", True),
        ("2026-12-26 13:59", True),
        ("2026-12-26 14:00", False),
        ("2026-12-27 10:00", False),  # Sunday
        ("2026-12-25 10:00", False),  # a holiday
    ],
)
def test_hours_may_differ_by_weekday(moment: str, inside: bool) -> None:
    now = datetime.fromisoformat(moment)
    assert BY_DAY.inside(now) is inside
    assert (BY_DAY.why_not(now) is None) is inside


@pytest.mark.parametrize(
    ("day", "slots"),
    [
        ("2026-12-21", [9, 10, 11, 12]),
        ("2026-12-22", [*range(8, 21)]),
        ("2026-12-26", [*range(8, 14)]),
        ("2026-12-27", []),
        ("2026-12-25", []),
    ],
)
def test_the_slots_of_a_day_are_the_hours_that_are_inside_at_some_minute(day: str, slots: list[int]) -> None:
    assert BY_DAY.slots(date.fromisoformat(day)) == [f"{day} {hour:02}:00" for hour in slots]
    found = [hour for hour in range(24) if BY_DAY.inside(datetime.fromisoformat(f"{day} {hour:02}:59"))]
    assert found == slots


def test_a_weekday_has_its_first_and_last_start_or_none() -> None:
    assert BY_DAY.starts_on(0) == (time(9), time(12))
    assert BY_DAY.starts_on(1) == (time(8), time(20))
    assert BY_DAY.starts_on(6) is None
    only = hours("mon-fri 08:00-20:00")
    assert only.starts_on(4) == (time(8), time(20)) and only.starts_on(5) is None


@pytest.mark.parametrize(
    ("moment", "english", "portuguese"),
    [
        ("2026-12-25 10:00", "2026-12-25 is a holiday (HOLIDAYS)", "25/12/2026 é feriado (HOLIDAYS)"),
        (
            "2026-12-27 10:00",
            f"it is sun 10:00: runs {BY_DAY_TOLD[0]} (RUN_DAYS)",
            f"hoje é domingo, 10:00: o horário é {BY_DAY_TOLD[1]} (RUN_DAYS)",
        ),
        (
            "2026-12-26 14:05",
            f"it is sat 14:05: runs {BY_DAY_TOLD[0]} (RUN_HOURS)",
            f"hoje é sábado, 14:05: o horário é {BY_DAY_TOLD[1]} (RUN_HOURS)",
        ),
        (
            "2026-12-22 07:12",
            f"it is tue 07:12: runs {BY_DAY_TOLD[0]} (RUN_HOURS)",
            f"hoje é terça, 07:12: o horário é {BY_DAY_TOLD[1]} (RUN_HOURS)",
        ),
    ],
)
def test_why_nothing_runs_is_told_in_both_languages(moment: str, english: str, portuguese: str) -> None:
    why = BY_DAY.why_not(datetime.fromisoformat(moment))
    assert why and (str(why), why.told("pt")) == (english, portuguese)


def test_the_setting_that_says_so_is_named() -> None:
    sunday, saturday = datetime(2026, 12, 27, 10), datetime(2026, 12, 26, 10)
    own = Hours(weekdays("mon-fri"), start_times("08:00-20:00"), keys=("days:", "hours:"))
    assert str(own.why_not(sunday)) == "it is sun 10:00: runs mon-fri 08:00-20:00 (days:)"
    named = hours("mon-fri 08:00-20:00").why_not(saturday)
    assert str(named) == "it is sat 10:00: runs mon-fri 08:00-20:00 (RUN_HOURS)"


@pytest.mark.parametrize(
    ("starts", "days", "english", "portuguese"),
    [
        ("08:00-20:00", "mon-sat", "mon-sat 08:00-20:00", "de segunda a sábado 08:00-20:00"),
        ("08:00-20:00", "mon-sun", "mon-sun 08:00-20:00", "de segunda a domingo 08:00-20:00"),
        ("08:00-20:00", "sun", "sun 08:00-20:00", "domingo 08:00-20:00"),
        (
            "08:00-20:00",
            "mon,wed-fri,sun",
            "mon 08:00-20:00, wed-fri 08:00-20:00, sun 08:00-20:00",
            "segunda 08:00-20:00, de quarta a sexta 08:00-20:00, domingo 08:00-20:00",
        ),
        (
            "08:00-20:00, sat 08:00-13:00",
            "mon-sat",
            "mon-fri 08:00-20:00, sat 08:00-13:00",
            "de segunda a sexta 08:00-20:00, sábado 08:00-13:00",
        ),
        (
            "sat 08:00-13:00, mon,tue 09:00-10:00, 08:00-20:00",
            "mon-sat",
            "mon-tue 09:00-10:00, wed-fri 08:00-20:00, sat 08:00-13:00",
            "de segunda a terça 09:00-10:00, de quarta a sexta 08:00-20:00, sábado 08:00-13:00",
        ),
        ("sat 08:00-13:00", "mon-sat", "sat 08:00-13:00", "sábado 08:00-13:00"),
    ],
)
def test_hours_are_told_in_both_languages(starts: str, days: str, english: str, portuguese: str) -> None:
    told = hours(starts, days).told()
    assert (shown(told, "en"), shown(told, "pt")) == (english, portuguese)


@pytest.mark.parametrize(
    "written",
    ["08:00-20:00,sat 08:00-13:00", " 08:00 - 20:00 ,  SAT  08:00 -13:00 ", "sat 08:00-13:00,mon-fri 08:00-20:00"],
)
def test_hours_by_weekday_may_be_spaced_and_ordered_freely(written: str) -> None:
    assert shown(hours(written).told(), "en") == "mon-fri 08:00-20:00, sat 08:00-13:00"


def test_hours_on_a_day_that_is_left_out_are_a_fault(folder: Path) -> None:
    (fault,) = faults(folder, "RUN_DAYS=mon-fri\nRUN_HOURS=08:00-20:00, sat-sun 08:00-13:00\n")
    assert fault == "config.env: RUN_HOURS: has hours for sat, sun, which RUN_DAYS leaves out"


def test_hours_are_not_held_against_days_that_are_themselves_wrong(folder: Path) -> None:
    (fault,) = faults(folder, "RUN_DAYS=seg-dom\nRUN_HOURS=08:00-20:00, sun 08:00-13:00\n")
    assert "RUN_DAYS: " in fault
