"""Feeds a call centre's dialer: SQL in PostgreSQL -> pandas -> CSV -> the SFTP folder of each campaign.

The Windows Task Scheduler starts this program every hour from 08:00 to 20:00, Monday to Saturday. It runs
`queries/*.sql`, turns each result into a timestamped CSV and puts it into the folder that the dialer watches for that
campaign. The dialer sees the file and starts calling people at once, with nobody looking.

Vocabulary
    campaign     one .sql file, and the dialer campaign it feeds    cobranca_30d
    mailing      the rows of one campaign in one run, as a CSV      mailing_cobranca_30d_22-12_10-00.csv
    drop folder  the SFTP folder that the dialer watches            /entrada/cobranca_30d
    slot         the clock hour a run belongs to                    2026-12-22 10:00
    temp name    what a mailing is called until it is whole         .part-5f0c2a91
    final name   what the dialer looks for                          mailing_cobranca_30d_22-12_10-00.csv
    delivered    the complete file has its final name in the drop folder
    held         a guard refused the mailing; nothing was sent
    ledger       what was delivered, kept across runs and crashes   output/ledger.sqlite3

Promises
    1. Each campaign and slot reaches the dialer at most once, complete, in its own folder, in its hours.
    2. A file is uploaded under a temp name, checked, and only then renamed; a final name is never overwritten.
    3. A lost reply to the rename is settled by looking, in this run or the next, never by sending again.
    4. Every value is the text that PostgreSQL wrote: no number or date of Python's comes near it.
    5. An empty, collapsed, exploded or reshaped mailing is held, and said so.
    6. One campaign's failure never stops the others. One run at a time.
    7. No password, phone, CPF or row appears in a log or message.

Exit codes
    0  everything due was delivered, already delivered, or empty where empty is allowed
    1  a bug (traceback in the log)
    2  settings, queries or usage wrong
    3  another run is active
    4  some campaigns failed or were held
    5  database: nothing could be exported
    6  SFTP: nothing could be delivered
    7  manual run outside the hours
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import difflib
import functools
import hashlib
import io
import itertools
import json
import logging
import os
import random
import re
import secrets
import selectors
import signal
import socket
import sqlite3
import statistics
import sys
import threading
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from dataclasses import replace as dataclass_replace
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from enum import Enum, IntEnum, StrEnum
from html import escape
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

# psycopg, paramiko, pandas and rich take about a second to import. Each is imported where it is first used, so that
# `--help` and a wrong setting answer at once, and so that the rest loads while the server is already working.
if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import paramiko
    import psycopg
    import pyarrow as pa
    from psycopg.pq.abc import PGresult
    from rich.console import Console
    from rich.table import Table

__version__ = "1.0.0"
PROGRAM = "mailing_pipeline"
log = logging.getLogger(PROGRAM)
T = TypeVar("T")

# ---------------------------------------------------------------------------------------------------------------------
# Errors: what went wrong, whether trying again can help, and what a person should do
# ---------------------------------------------------------------------------------------------------------------------


class ExitCode(IntEnum):
    """How a run ended; `meaning` is the sentence that --help, README and log use."""

    OK = 0
    BUG = 1
    USAGE = 2
    BUSY = 3
    PARTIAL = 4
    DATABASE = 5
    SFTP = 6
    OUTSIDE_HOURS = 7

    @property
    def meaning(self) -> str:
        """The sentence of the module's docstring for this code, kept in that one place."""
        found = re.search(rf"^    {self.value}  (.+)$", __doc__ or "", re.MULTILINE)
        return found.group(1) if found else self.name


# How many more times an error is worth trying; None: as many as RETRY_ATTEMPTS says.
AGAIN, ONCE_MORE, TWICE_MORE, NEVER = None, 1, 2, 0


class PipelineError(Exception):
    """Something a person can understand.

    message names the culprit (file, line, key, folder), hint says what to do. retries is how many more times trying is
    worth while (None: as many as RETRY_ATTEMPTS says). fatal: the whole stage fails at once, for every campaign.
    down: the server itself is out of reach, so that the other campaigns need not spend a retry budget of their own.
    """

    exit_code = ExitCode.PARTIAL

    def __init__(
        self, message: str, hint: str = "", *, retries: int | None = NEVER, fatal: bool = False, down: bool = False
    ) -> None:
        super().__init__(message)
        self.message, self.hint, self.retries, self.fatal, self.down = message, hint, retries, fatal, down
        self.language = "en"  # in which an operator is told; the log is English


class SettingsFault(PipelineError):
    """Settings, queries, ledger or usage are wrong: nothing was started.

    `faults` lists every one that was found; `settings` is what could be read all the same, to tell somebody.
    """

    exit_code = ExitCode.USAGE

    def __init__(self, *faults: str, settings: Settings | None = None) -> None:
        super().__init__("\n".join(faults))
        self.faults, self.settings = faults, settings


class Busy(PipelineError):
    """Another run holds the lock."""

    exit_code = ExitCode.BUSY


class OutsideHours(PipelineError):
    """A manual run outside the operating hours."""

    exit_code = ExitCode.OUTSIDE_HOURS


class DatabaseError(PipelineError):
    """PostgreSQL refused, failed or fell silent."""

    exit_code = ExitCode.DATABASE


class DeliveryError(PipelineError):
    """The SFTP server refused, failed or fell silent."""

    exit_code = ExitCode.SFTP


class HostKeyChanged(DeliveryError):
    """The SFTP server is not the one it was, or somebody stands between."""


class LocalFault(PipelineError):
    """This PC's own disk or ledger failed."""


class Held(PipelineError):
    """A guard refused the mailing."""


class Stopped(PipelineError):
    """The run is being ended: by its deadline or by the operator."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the tables that classify foreign errors: by text (or SQLSTATE), for SFTP also by exception class."""

    pattern: str
    retries: int | None
    hint: str
    kind: str = ""
    fatal: bool = False
    dead: bool = False  # the connection is of no use any more


def masked(text: str) -> str:
    """text without runs of eight or more digits (phones, CPFs, contracts), however they are punctuated."""
    return re.sub(r"(?:\d[ .()/-]{0,2}){8,}", "…", text)


# ---------------------------------------------------------------------------------------------------------------------
# Time: slots, hours, the run's deadline
# ---------------------------------------------------------------------------------------------------------------------


class Clock:
    """Where whatever a run decides takes its time and chance from. Tests pass another one."""

    def now(self) -> datetime:
        """The wall clock, local, with its offset."""
        return datetime.now().astimezone()

    def steady_s(self) -> float:
        """Seconds on a clock that nobody sets."""
        return time.monotonic()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Sleep for timeout_s, or until event is set; whether it is. In short waits: on Windows Ctrl+C ends none."""
        until_s = self.steady_s() + timeout_s
        while not event.wait(min(0.5, max(0.0, until_s - self.steady_s()))):
            if self.steady_s() >= until_s:
                return False
        return True

    def jitter(self) -> float:
        """A random factor from 0.5 to 1, so that programs that failed together do not come back together."""
        return random.uniform(0.5, 1.0)


def slot_of(now: datetime) -> str:
    """The clock hour that now belongs to, as the ledger writes it: 10:23 belongs to '2026-12-22 10:00'."""
    return f"{now:%Y-%m-%d %H}:00"


@dataclass(frozen=True, slots=True)
class Hours:
    """When mailings may be sent: weekdays (0 = Monday), the first and last start of a day, days off."""

    days: frozenset[int]
    starts: tuple[clock_time, clock_time]
    holidays: frozenset[date] = frozenset()

    def inside(self, now: datetime) -> bool:
        """Whether now is inside. The last start names a slot: with 20:00, 20:59 is still inside."""
        slot_start = now.time().replace(minute=0, second=0, microsecond=0)
        return (
            now.weekday() in self.days
            and now.date() not in self.holidays
            and self.starts[0] <= now.time()
            and slot_start <= self.starts[1]
        )

    def __str__(self) -> str:
        days = ",".join(DAY_NAMES[day] for day in sorted(self.days))
        return f"{self.starts[0]:%H:%M}-{self.starts[1]:%H:%M} {days}"


class Deadline:
    """The end of a run, and whatever else stops it: every wait of the run ends here.

    Measured by the wall clock and by the steady one, whichever is further: a PC that slept, or a clock set back, must
    not make an old mailing look young.
    """

    def __init__(self, clock: Clock, minutes: float) -> None:
        self.clock, self.seconds = clock, minutes * 60
        self.passed = f"the run's deadline of {minutes:g} minutes has passed"
        self.start, self._steady_start = clock.now(), clock.steady_s()
        self._stop, self._reason = threading.Event(), "the run was stopped"

    def left_s(self) -> float:
        """Seconds until the run must be over; negative after it."""
        elapsed = max((self.clock.now() - self.start).total_seconds(), self.clock.steady_s() - self._steady_start)
        return self.seconds - elapsed

    def stop(self, reason: str) -> None:
        """End every wait of the run with Stopped(reason)."""
        self._reason = reason
        self._stop.set()

    @property
    def ended(self) -> Stopped | None:
        """Why the run must not go on; None while it may."""
        if self._stop.is_set():
            return Stopped(self._reason, "the next run starts afresh; nothing old is sent")
        if self.left_s() > 0:
            return None
        return Stopped(self.passed, "see in the log what took so long; RUN_DEADLINE_MINUTES is the limit")

    def check(self) -> None:
        """Raise Stopped if the run must not go on."""
        if ended := self.ended:
            raise ended

    def sleep(self, seconds: float) -> None:
        """Wait, unless the run is stopped meanwhile (Stopped)."""
        self.clock.wait(self._stop, max(0.0, min(seconds, self.left_s())))
        self.check()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently the one retry loop tries: attempts in all, first and longest pause in seconds."""

    attempts: int
    first_s: float
    max_s: float


RETRY_BUDGET_S = 30  # time for an attempt, at the least


def retry(action: Callable[[], T], policy: RetryPolicy, deadline: Deadline, who: str) -> T:
    """The result of action, tried again for as long as its PipelineError says that this is worth while.

    Pauses double from first_s to max_s, with jitter. No attempt starts later than attempts * max_s (or RETRY_BUDGET_S)
    after the first failure, nor beyond the deadline. action must be safe to repeat. Raises the last error.
    """
    failures, first_failure_s = 0, 0.0
    while True:
        deadline.check()
        try:
            return action()
        except PipelineError as error:
            failures += 1
            now_s = deadline.clock.steady_s()
            first_failure_s = first_failure_s or now_s
            most = policy.attempts - 1 if error.retries is None else min(error.retries, policy.attempts - 1)
            pause_s = min(policy.max_s, policy.first_s * 2 ** (failures - 1)) * deadline.clock.jitter()
            budget_s = policy.attempts * max(policy.max_s, RETRY_BUDGET_S) - (now_s - first_failure_s)
            if error.fatal or failures > most or pause_s > min(budget_s, deadline.left_s()):
                error.retries = NEVER  # the budget is spent, also for those who are handed this error afterwards
                raise
            log.warning("%s: retry %d of %d in %.1f s: %s", who, failures, most, pause_s, error.message)
            deadline.sleep(pause_s)


# ---------------------------------------------------------------------------------------------------------------------
# Settings: config.env and the environment -> Settings, or every fault at once
# ---------------------------------------------------------------------------------------------------------------------

DAY_NAMES = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
ENCODINGS = ("utf-8", "utf-8-sig", "cp1252", "latin-1")
# libpq reads these from the environment alone; every other PG* name is one of its connection options.
LIBPQ_ENVIRONMENT = ("PGSERVICEFILE", "PGSYSCONFDIR", "PGTZ")


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from low to high."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def one_of(*choices: str) -> Callable[[str], str]:
    """A parser that takes only these words, in any case."""

    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"must be one of: {', '.join(choices)}")
        return text.lower()

    return parse


def yes_no(text: str) -> bool:
    """yes or no."""
    return one_of("yes", "no")(text) == "yes"


def one_character(text: str) -> str:
    r"""A CSV delimiter: one ASCII character (or \t)."""
    text = "\t" if text == r"\t" else text
    if len(text) != 1 or not text.isascii() or text.isalnum() or text in '"\r\n ':
        raise ValueError(r"must be one character such as ; or , or | or \t")
    return text


def newline(text: str) -> str:
    """crlf or lf, as the characters themselves."""
    return {"crlf": "\r\n", "lf": "\n"}[one_of("crlf", "lf")(text)]


def weekdays(text: str) -> frozenset[int]:
    """'mon-sat' or 'mon,wed-fri' as weekday numbers, Monday = 0."""
    days: set[int] = set()
    for part in text.lower().split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if first not in DAY_NAMES or last not in DAY_NAMES:
            raise ValueError("must be days such as mon-sat or mon,wed,fri")
        low, high = DAY_NAMES.index(first), DAY_NAMES.index(last)
        if low > high:
            raise ValueError("must name its days from Monday to Sunday, such as mon-sat")
        days.update(range(low, high + 1))
    return frozenset(days)


def day_hours(text: str) -> tuple[clock_time, clock_time]:
    """'08:00-20:00' as the first and the last start of a day."""
    found = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)\s*-\s*([01]\d|2[0-3]):([0-5]\d)", text)
    if not found:
        raise ValueError("must be hours such as 08:00-20:00")
    h1, m1, h2, m2 = map(int, found.groups())
    if (h1, m1) > (h2, m2):
        raise ValueError("must begin before it ends, such as 08:00-20:00")
    return clock_time(h1, m1), clock_time(h2, m2)


def dates(text: str) -> frozenset[date]:
    """'2026-12-25,2027-01-01' as dates."""
    try:
        return frozenset(date.fromisoformat(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError("must be dates such as 2026-12-25,2027-01-01") from None


def remote_path(text: str) -> PurePosixPath:
    """A path on the SFTP server: always with /, never upwards."""
    if "\\" in text or ".." in PurePosixPath(text).parts or not text.isprintable():
        raise ValueError("must be a path with / such as /entrada/cobranca_30d, without .. and without a backslash")
    return PurePosixPath(re.sub("^/+", "/", text))  # two would make another path of the same folder


MAILING_ENDINGS = (".csv", ".txt")
DEVICE_NAMES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\.|$)", re.IGNORECASE)


def file_name_pattern(text: str, campaign: str = "campaign") -> str:
    """A file name with {campaign} and strftime's codes that gives a legal name on Windows and everywhere.

    Its ending is what tells a mailing from whatever else may lie in the output folder.
    """
    try:
        sample = render_file_name(text, campaign, datetime(2026, 12, 22, 10, 0).astimezone())
    except ValueError:
        sample = ""
    legal = re.fullmatch(r'[^\\/:*?"<>|%{}\x00-\x1f]{0,199}[^\\/:*?"<>|%{}\x00-\x1f. ]', sample)
    if not legal or sample.startswith(TEMP_PREFIX):
        example = r'such as mailing_{campaign}_%d-%m_%H-%M.csv (no \ / : * ? " < > |, at most 200 characters)'
        raise ValueError(f"must give a legal file name, {example}")
    if DEVICE_NAMES.match(sample):
        raise ValueError(f"gives {sample}, which Windows takes for a device; put mailing_ before it")
    if not sample.lower().endswith(MAILING_ENDINGS):
        raise ValueError("must end in .csv or .txt")
    if "{campaign}" not in text and "%H" not in text:
        raise ValueError("must hold {campaign} or the hour (%H), so that two mailings do not share a name")
    return text


def local_path(text: str) -> str:
    """A file or folder of this PC, relative to config.env or whole."""
    if not text.isprintable() or (os.name == "nt" and Path(text).root and not Path(text).drive):
        raise ValueError("is not the path you wrote: quotes change a backslash; write it without quotes, or with /")
    return text


def fingerprint(text: str) -> str:
    """An SSH host key's fingerprint as ssh-keygen -l prints it."""
    if not re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}=?", text):
        raise ValueError("must look like SHA256: and 43 characters; --check prints the one it sees")
    return text.rstrip("=")


def setting(default: str, parse: Callable[[str], Any] = str, *, secret: bool = False) -> Any:
    """One line of config.env: its key is the field's name in capitals; default and value are text for parse."""
    return field(repr=not secret, metadata={"default": default, "parse": parse})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting of config.env, parsed. config.env.example says what each is for."""

    folder: Path  # of config.env: relative paths start here
    libpq: Mapping[str, str] = field(repr=False)  # libpq's connection options, by its own keywords
    libpq_environment: Mapping[str, str] = field(repr=False)

    sftp_host: str = setting("")
    sftp_port: int = setting("22", whole_number(1, 65535))
    sftp_user: str = setting("")
    sftp_password: str = setting("", secret=True)
    sftp_key_file: str = setting("", local_path)
    sftp_key_passphrase: str = setting("", secret=True)
    sftp_host_key: str = setting("", lambda text: fingerprint(text) if text else "")
    sftp_base_dir: PurePosixPath = setting("/", remote_path)
    sftp_staging_dir: PurePosixPath | None = setting("", lambda text: remote_path(text) if text else None)
    sftp_compress: bool = setting("no", yes_no)
    sftp_verify: str = setting("size", one_of("size", "hash"))
    queries_dir: str = setting("queries", local_path)
    output_dir: str = setting("output", local_path)
    log_dir: str = setting("logs", local_path)
    file_name: str = setting("mailing_{campaign}_%d-%m_%H-%M.csv", file_name_pattern)
    csv_delimiter: str = setting(";", one_character)
    csv_encoding: str = setting("utf-8", one_of(*ENCODINGS))
    csv_header: bool = setting("yes", yes_no)
    csv_newline: str = setting("crlf", newline)
    run_days: frozenset[int] = setting("mon-sat", weekdays)
    run_hours: tuple[clock_time, clock_time] = setting("08:00-20:00", day_hours)
    holidays: frozenset[date] = setting("", dates)
    query_workers: int = setting("4", whole_number(1, 32))
    query_timeout_seconds: int = setting("600", whole_number(1, 86400))
    retry_attempts: int = setting("5", whole_number(1, 100))
    retry_first_seconds: int = setting("2", whole_number(0, 3600))
    retry_max_seconds: int = setting("60", whole_number(0, 3600))
    run_deadline_minutes: int = setting("50", whole_number(1, 54))
    pickup_timeout_seconds: int = setting("0", whole_number(0, 3600))
    retention_days: int = setting("7", whole_number(1, 3650))
    language: str = setting("en", one_of("en", "pt"))
    alert_urls: str = setting("", secret=True)
    heartbeat_url: str = setting("", secret=True)

    def local(self, path: str) -> Path:
        """path, relative to the folder of config.env."""
        return self.folder / path

    @property
    def output(self) -> Path:
        return self.local(self.output_dir)

    @property
    def ledger_path(self) -> Path:
        return self.output / "ledger.sqlite3"

    @property
    def hours(self) -> Hours:
        return Hours(self.run_days, self.run_hours, self.holidays)

    @property
    def retry_policy(self) -> RetryPolicy:
        return RetryPolicy(self.retry_attempts, self.retry_first_seconds, self.retry_max_seconds)


SETTING_FIELDS = {item.name.upper(): item for item in fields(Settings) if item.metadata}


def libpq_options() -> dict[str, str]:
    """libpq's own table: environment name -> connection keyword (PGHOST -> host)."""
    from psycopg import pq

    return {option.envvar.decode(): option.keyword.decode() for option in pq.Conninfo.get_defaults() if option.envvar}


def parse_settings(
    values: Mapping[str, str], folder: Path, source: str, *, sends: bool, knows_host: bool, faults: Iterable[str] = ()
) -> Settings:
    """Settings from raw texts by key; an empty text is the default.

    sends: whether the run will reach for the SFTP server, so that its settings are needed. knows_host: whether
    SFTP_HOST_KEY is needed as well (--check goes without, to print it). Raises SettingsFault with every fault, those
    found before among them, each with its key and never its value; source is the file to name.
    """
    faults = list(faults)
    options = libpq_options()
    parsed: dict[str, Any] = {}
    for key, item in SETTING_FIELDS.items():
        try:
            parsed[item.name] = item.metadata["parse"](values.get(key) or item.metadata["default"])
        except ValueError as error:
            faults.append(f"{source}: {key}: {error}")
            parsed[item.name] = item.metadata["parse"](item.metadata["default"])
    for key in values:
        if key not in SETTING_FIELDS and key not in options and key not in LIBPQ_ENVIRONMENT:
            near = difflib.get_close_matches(key.upper(), [*SETTING_FIELDS, *options], 1)
            faults.append(f"{source}: {key}: unknown setting" + (f"; did you mean {near[0]}?" if near else ""))
    if sends:
        needed = ["SFTP_HOST", "SFTP_USER"] + ["SFTP_HOST_KEY"] * knows_host
        faults += [
            f"{source}: {key}: missing" + ("; run with --check to see the server's fingerprint" if "KEY" in key else "")
            for key in needed
            if not values.get(key)
        ]
        if bool(values.get("SFTP_PASSWORD")) == bool(values.get("SFTP_KEY_FILE")):
            faults.append(f"{source}: SFTP_PASSWORD, SFTP_KEY_FILE: set one of the two")
    settings = Settings(
        folder=folder,
        libpq={options[key]: value for key, value in values.items() if key in options and value},
        libpq_environment={key: value for key, value in values.items() if key in LIBPQ_ENVIRONMENT and value},
        **parsed,
    )
    if faults:
        raise SettingsFault(*faults, settings=settings)
    return settings


def read_utf8(path: Path, name: str) -> str:
    """The text of a file, with or without BOM. Raises SettingsFault; name is what the message calls the file."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise SettingsFault(f"{name}: line {line}: not UTF-8; save the file as UTF-8 in the editor") from None
    except OSError as error:
        raise SettingsFault(f"{name}: cannot be read: {error.strerror}") from None


def load_settings(path: Path, environ: Mapping[str, str], *, sends: bool, knows_host: bool) -> Settings:
    """Read config.env; a real environment variable of the same name wins. Raises SettingsFault."""
    from dotenv.parser import parse_stream  # what dotenv_values(interpolate=False) reads with; it keeps the lines

    if not path.exists():
        raise SettingsFault(f"{path}: not found; copy config.env.example to config.env and fill it in")
    values: dict[str, str] = {}
    faults: list[str] = []
    for binding in parse_stream(io.StringIO(read_utf8(path, str(path)))):
        text, key = binding.original.string, binding.key
        where = f"{path.name}: line {binding.original.line + text[: len(text) - len(text.lstrip())].count(chr(10))}"
        if binding.error or (key and binding.value is None):
            faults.append(f"{where}: not of the form KEY=value")
        elif key in values:
            faults.append(f"{where}: {key}: set twice")
        elif key and "PASS" in key and re.search(r"=\s*[^'\"\s][^\n]*\s#", text):
            faults.append(f"{where}: {key}: what follows ' #' is a comment; put the value between single quotes")
        elif key:
            values[key] = binding.value or ""
    known = {*SETTING_FIELDS, *libpq_options(), *LIBPQ_ENVIRONMENT}
    # LANGUAGE is gettext's own variable too, as 'pt_BR:pt'.
    values |= {
        key: value
        for key, value in environ.items()
        if key in known and value and (key != "LANGUAGE" or value in ("en", "pt"))
    }
    folder = path.parent  # not resolve(): on Windows that turns a mapped drive into its share, or fails
    return parse_settings(values, folder, path.name, sends=sends, knows_host=knows_host, faults=faults)


# ---------------------------------------------------------------------------------------------------------------------
# Campaigns: queries/NN_campaign.sql -> Campaign, or every fault at once
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CsvFormat:
    """How a mailing is written."""

    delimiter: str
    encoding: str
    header: bool
    newline: str


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL statement of a file: its text, its first line, its words outside quotes and comments, in capitals."""

    text: str
    line: int
    words: tuple[str, ...]

    @property
    def command(self) -> str:
        """Its first word, also inside brackets."""
        return next((word for word in self.words if word != "("), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """One query file, ready to run. None among the guards means that the guard is off."""

    name: str
    source: str  # the file's name, for messages
    prelude: tuple[Statement, ...]
    select: Statement
    folder: PurePosixPath
    hours: Hours
    timeout_s: int
    csv: CsvFormat
    file_name: str
    columns: tuple[str, ...] | None = None
    phones: tuple[str, ...] = ()
    unique: tuple[str, ...] = ()
    min_rows: int | None = None
    max_rows: int | None = None
    max_drop: int | None = None  # per cent
    read_only: bool = True
    enabled: bool = True
    pickup_s: int = 0
    pickup_error_folder: PurePosixPath | None = None


AS_GIVEN = {item.name for item in fields(Campaign) if item.default is not MISSING}  # no setting stands in for these


def campaign_name(text: str) -> str:
    """A campaign's name, which becomes part of file names and folders."""
    if not re.fullmatch(r"[a-z0-9_]+", text):
        raise ValueError("must have only a-z, 0-9 and _")
    return text


def names(text: str) -> tuple[str, ...]:
    """Column names, separated by ; or ,"""
    found = tuple(name.strip() for name in re.split("[;,]", text))
    if not all(found):
        raise ValueError("must be column names separated by ; or ,")
    return found


def percent(text: str) -> int:
    """'70%' as 70."""
    found = re.fullmatch(r"(\d{1,2}|100)\s*%", text)
    if not found:
        raise ValueError("must be a percentage such as 70%")
    return int(found.group(1))


DIRECTIVES: dict[str, Callable[[str], Any]] = {
    "campaign": campaign_name,
    "folder": remote_path,
    "columns": names,
    "phones": names,
    "unique": names,
    "min_rows": whole_number(0, 100_000_000),
    "max_rows": whole_number(1, 100_000_000),
    "max_drop": percent,
    "hours": day_hours,
    "days": weekdays,
    "timeout": whole_number(1, 86400),
    "delimiter": one_character,
    "encoding": one_of(*ENCODINGS),
    "header": yes_no,
    "newline": newline,
    "file_name": file_name_pattern,
    "read_only": yes_no,
    "enabled": yes_no,
    "pickup": whole_number(0, 3600),
    "pickup_error_folder": remote_path,
}

SQL_TOKEN = re.compile(
    r"""(?P<space>\s+ | --[^\n]*)
      | (?P<block>/\*)
      | (?P<quoted>[eE]'(?:[^'\\]|\\.|'')*(?P<end1>'|\Z) | '(?:[^']|'')*(?P<end2>'|\Z) | "(?:[^"]|"")*(?P<end3>"|\Z))
      | (?P<dollar>\$(?P<tag>(?:[^\W\d]\w*)?)\$ .*? (?P<end4>\$(?P=tag)\$|\Z))
      | (?P<word>[^\W\d][\w$]*)
      | (?P<number>\d[\w.]*)
      | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)


def end_of_block_comment(text: str, start: int) -> int:
    """Where the comment that begins at start ends; PostgreSQL's nest. -1 if it does not end."""
    depth = 0
    for found in re.finditer(r"/\*|\*/", text[start:]):
        depth += 1 if found.group() == "/*" else -1
        if depth == 0:
            return start + found.end()
    return -1


def split_statements(text: str) -> list[Statement]:
    """The statements of an SQL file, without their semicolons; comments alone are none.

    Knows quotes, E-strings, dollar quotes and nested comments (PostgreSQL manual, 4.1 Lexical Structure). Raises
    ValueError('line 3: …') for a quote or comment that does not end and for psql's backslash commands.
    """
    statements: list[Statement] = []
    words: list[str] = []
    start: int | None = None  # of the statement's first token
    position = 0

    def line_of(index: int) -> int:
        return text.count("\n", 0, index) + 1

    while position < len(text):
        found = SQL_TOKEN.match(text, position)
        assert found, "every character is a token"
        begin, position = position, found.end()
        if found["space"]:
            continue
        if found["block"]:
            position = end_of_block_comment(text, begin)
            if position < 0:
                raise ValueError(f"line {line_of(begin)}: this comment does not end")
            continue
        if "" in (found["end1"], found["end2"], found["end3"], found["end4"]):
            raise ValueError(f"line {line_of(begin)}: this quote does not end")
        if found["other"] == "\\":
            raise ValueError(f"line {line_of(begin)}: psql's backslash commands are not SQL; remove it")
        if found["other"] == ";":
            if start is not None:
                statements.append(Statement(text[start:begin], line_of(start), tuple(words)))
            start, words = None, []
            continue
        start = begin if start is None else start
        words.append((found["word"] or found["other"] or "''").upper())
    if start is not None:
        statements.append(Statement(text[start:], line_of(start), tuple(words)))
    return statements


def statement_faults(statements: Sequence[Statement]) -> list[str]:
    """What keeps these statements from being a mailing query, each with its line."""
    if not statements:
        return ["no SQL statement; the last statement must be the SELECT of the mailing"]
    faults = []
    for statement in statements:
        first = statement.command
        ends = first in ("COMMIT", "ROLLBACK", "END", "ABORT", "BEGIN", "START")
        if (ends and "TO" not in statement.words[:4]) or statement.words[:2] == ("PREPARE", "TRANSACTION"):
            faults.append(
                f"line {statement.line}: {first}: remove it; the program opens and ends the transaction itself"
            )
        elif first == "COPY":
            faults.append(
                f"line {statement.line}: COPY: remove it and leave the SELECT; the program copies the result itself"
            )
    last, first = statements[-1], statements[-1].command
    writes = first in ("INSERT", "UPDATE", "DELETE", "MERGE")
    if not faults and first not in ("SELECT", "WITH", "VALUES", "TABLE") and not (writes and "RETURNING" in last.words):
        faults.append(f"line {last.line}: {first or '('}: the last statement must return the mailing's rows (SELECT …)")
    return faults


def parse_directives(text: str) -> tuple[dict[str, Any], list[str]]:
    """The leading `-- key: value` lines of a query file, parsed, and what is wrong with them, each with its line."""
    found: dict[str, Any] = {}
    faults: list[str] = []
    leading = True
    for number, line in enumerate(text.splitlines(), 1):
        leading = leading and (not line.strip() or line.lstrip().startswith("--"))
        comment = re.match(r"\s*--\s*([A-Za-z_-]+)\s*:(?!:)(.*)", line)
        if not comment:
            continue
        key, value = comment.group(1).lower(), comment.group(2).strip()
        if not leading:
            if key in DIRECTIVES:
                faults.append(f"line {number}: {key}: must stand above the first SQL line, or it has no effect")
        elif key not in DIRECTIVES:
            near = difflib.get_close_matches(key.replace("-", "_"), DIRECTIVES, 1, 0.7)
            faults += [f"line {number}: {key}: unknown; did you mean {near[0]}?"] if near else []
        elif key in found:
            faults.append(f"line {number}: {key}: given twice")
        else:
            try:
                if not value:
                    raise ValueError("has no value")
                found[key] = DIRECTIVES[key](value)
            except ValueError as error:
                faults.append(f"line {number}: {key}: {error}")
                found[key] = None
    return found, faults


def parse_campaign(source: str, text: str, settings: Settings) -> Campaign:
    """A query file as a Campaign; source is its file name. Raises SettingsFault with every fault and its line."""
    given, faults = parse_directives(text)
    name = given.get("campaign") or re.sub(r"^\d+_", "", source.removesuffix(".sql"))
    try:
        campaign_name(name)
    except ValueError as error:
        faults.append(f"the campaign's name '{name}' {error}; rename the file or add '-- campaign: name'")
    try:
        file_name_pattern(given.get("file_name") or settings.file_name, name)
    except ValueError as error:
        faults.append(f"its file name {error}")
    columns = given.get("columns")
    for key in ("phones", "unique"):
        absent = [column for column in given.get(key) or () if columns and column not in columns]
        faults += [f"{key}: {column} is not one of columns:" for column in absent]
    try:
        statements = split_statements(text)
        faults += statement_faults(statements)
    except ValueError as error:
        faults.append(str(error))
    if faults:
        raise SettingsFault(*(f"{source}: {fault}" for fault in faults))

    return Campaign(
        name=name,
        source=source,
        prelude=tuple(statements[:-1]),
        select=statements[-1],
        folder=settings.sftp_base_dir / given.get("folder", name),
        hours=Hours(given.get("days", settings.run_days), given.get("hours", settings.run_hours), settings.holidays),
        timeout_s=given.get("timeout", settings.query_timeout_seconds),
        csv=CsvFormat(
            given.get("delimiter", settings.csv_delimiter),
            given.get("encoding", settings.csv_encoding),
            given.get("header", settings.csv_header),
            given.get("newline", settings.csv_newline),
        ),
        file_name=given.get("file_name", settings.file_name),
        pickup_s=given.get("pickup", settings.pickup_timeout_seconds),
        **{key: value for key, value in given.items() if key in AS_GIVEN},
    )


def shared_place_faults(campaigns: Sequence[Campaign], staging: PurePosixPath | None) -> list[str]:
    """Campaigns that share a name or a folder, or a drop folder that is also the staging folder."""
    faults = []
    taken: dict[tuple[str, str], str] = {("folder", str(staging).lower()): "SFTP_STAGING_DIR"} if staging else {}
    for campaign in campaigns:
        # Lower case, because some SFTP servers (Windows) take /Entrada and /entrada for one folder.
        for what, value in (("name", campaign.name), ("folder", str(campaign.folder))):
            other = taken.setdefault((what, value.lower()), campaign.source)
            if other != campaign.source:
                faults.append(f"{campaign.source}: the {what} {value} is used by {other} too; each needs its own")
    return faults


def load_campaigns(folder: Path, settings: Settings) -> list[Campaign]:
    """The enabled campaigns of folder, in the order of their file names. Raises SettingsFault with every fault."""
    campaigns: list[Campaign] = []
    faults: list[str] = []
    paths = sorted(folder.glob("*.sql"))
    if not paths:
        faults.append(f"{folder}: no .sql file; put one query per campaign there (QUERIES_DIR)")
    for path in paths:
        try:
            campaigns.append(parse_campaign(path.name, read_utf8(path, path.name), settings))
        except SettingsFault as error:
            faults += error.faults
    enabled = [campaign for campaign in campaigns if campaign.enabled]
    faults += shared_place_faults(enabled, settings.sftp_staging_dir)
    if faults:
        raise SettingsFault(*faults)
    return enabled


def choose(campaigns: Sequence[Campaign], only: Sequence[str]) -> list[Campaign]:
    """The campaigns that --only names, or all. Raises SettingsFault for an unknown name."""
    known = [campaign.name for campaign in campaigns]
    unknown = [name for name in only if name not in known]
    if unknown:
        raise SettingsFault(f"--only {', '.join(unknown)}: no such campaign; known: {', '.join(known)}")
    return [campaign for campaign in campaigns if not only or campaign.name in only]


def render_file_name(pattern: str, campaign: str, start: datetime) -> str:
    """The final name: strftime's codes and {campaign} filled in."""
    return start.strftime(pattern.replace("{campaign}", campaign))


def rejected_name(name: str) -> str:
    """The file beside a mailing that keeps its rejected rows."""
    return f"{PurePosixPath(name).stem}_rejected.csv"


def free_file_name(name: str, used: Callable[[str], bool]) -> str:
    """name, or name-2, name-3 … before the extension: the first that was never used."""
    stem, dot, extension = name.rpartition(".") if "." in name else (name, "", "")
    candidates = (name if n == 1 else f"{stem}-{n}{dot}{extension}" for n in range(1, 10_000))
    return next(candidate for candidate in candidates if not used(candidate))


# ---------------------------------------------------------------------------------------------------------------------
# Export: one place opens the database; blocks of COPY text -> DataFrame of strings -> treatment -> CSV bytes
# ---------------------------------------------------------------------------------------------------------------------

CONNECT_TIMEOUT_S = 15
CANCEL_TIMEOUT_S = 3
LOCK_TIMEOUT_S = 30  # a mailing must not queue behind someone's ALTER TABLE until its statement_timeout
GRACE_S = 15  # what a server may take beyond statement_timeout to say so, before it counts as frozen
BLOCK_BYTES = 4 << 20  # pandas takes some 5 ms a block, whatever is in it
# At a time from the server, where there is so much: a tenth less processor time than libpq's 16 KB.
READ_BYTES = 64 << 10

ASK_ADMINISTRATOR = "ask the database administrator"
LATER = "it is tried again by itself; if it stays so, ask the database administrator"


# While connecting libpq gives no SQLSTATE, and the text is in the server's language: English and Portuguese here. What
# no rule knows is worth another try: refused, DNS, timeout, reset, too many connections, starting up, shutting down.
CONNECT_RULES = (
    Rule(r"password|senha|authentication failed", NEVER, "check PGUSER and PGPASSWORD (or .pgpass)", fatal=True),
    Rule(r'(database|banco de dados) ".*" (does not exist|não existe)', NEVER, "check PGDATABASE", fatal=True),
    Rule(r'role ".*" (does not exist|não existe)|not permitted to log in', NEVER, "check PGUSER", fatal=True),
    Rule(r"pg_hba", NEVER, "ask the database administrator to let this PC in (pg_hba.conf)", fatal=True),
    Rule(
        r"certificate|does not support SSL|invalid .*value|invalid (integer|port|connection)|definition of service",
        NEVER,
        "check the PG… settings in config.env",
        fatal=True,
    ),
    Rule(r"", AGAIN, "check PGHOST, PGPORT and the network; is PostgreSQL running?"),
)

# PostgreSQL manual, Appendix A. The first pattern that fits the SQLSTATE decides; the last takes the rest.
SQLSTATE_RULES = (
    Rule(r"28...|3D000", NEVER, "check PGUSER, PGPASSWORD and PGDATABASE", fatal=True),
    Rule(r"08(000|001|003|006)|40001|40P01|40003|53000|53300|57P0[1235]|25P03|72000", AGAIN, LATER),
    Rule(r"55P03", AGAIN, "another session locks a table of this query; ask who changes it at this hour"),
    Rule(r"57014", ONCE_MORE, "the query took too long: see its plan, or raise '-- timeout:' (seconds)"),
    Rule(r"53100|53200|55006|58030|XX000", ONCE_MORE, ASK_ADMINISTRATOR),
    Rule(r"25006", NEVER, "the query writes; if it must (temp tables), add '-- read_only: no'"),
    Rule(r"42501", NEVER, "ask for SELECT on that table for this PGUSER"),
    Rule(r"42...|0A...", NEVER, "correct the query; --check tries it without sending"),
    Rule(r"22...", NEVER, "a value does not fit; run the query in an SQL tool (values are not logged)"),
    Rule(r"", NEVER, "run the query in an SQL tool to see more; " + ASK_ADMINISTRATOR),
)

# Messages of these classes name tables, columns, limits and servers. Others may quote a row: only their name is told.
TELLING_CLASSES = ("08", "0A", "25", "28", "3D", "40", "42", "53", "54", "55", "57")


def connect_error(text: str) -> DatabaseError:
    """What libpq said while connecting, classified."""
    rule = next(rule for rule in CONNECT_RULES if re.search(rule.pattern, text, re.IGNORECASE))
    told = " ".join(text.split())
    return DatabaseError(f"database: {told}", rule.hint, retries=rule.retries, fatal=rule.fatal, down=True)


def query_error(sqlstate: str, text: str, source: str, line: int | None) -> DatabaseError:
    """An error of the server inside a query file, classified; without a SQLSTATE the connection was lost."""
    from psycopg import errors

    where = f"{source}: line {line}" if line else source
    if not sqlstate:
        hint = "check the network, and whether PostgreSQL was restarted"
        return DatabaseError(f"{where}: the connection to the database was lost", hint, retries=AGAIN)
    rule = next(rule for rule in SQLSTATE_RULES if re.match(rule.pattern, sqlstate))
    if sqlstate[:2] not in TELLING_CLASSES:
        try:
            text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", errors.lookup(sqlstate).__name__).lower()
        except KeyError:
            text = "error"
    return DatabaseError(f"{where}: {masked(text)} ({sqlstate})", rule.hint, retries=rule.retries, fatal=rule.fatal)


class Session:
    """One database connection whose every wait ends: at the query's limit, or when the run stops.

    Speaks through psycopg.pq, libpq's asynchronous interface: a frozen backend ignores statement_timeout, and on
    Windows nothing else would ever end the wait. After any error the session must be closed, not used again.
    """

    def __init__(self, connection: psycopg.Connection[Any], deadline: Deadline) -> None:
        self.connection, self.pgconn, self.deadline = connection, connection.pgconn, deadline
        self._timeout_s, self._limit_s = CONNECT_TIMEOUT_S, 0.0  # of a statement; of this one, on the steady clock
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.pgconn.socket, selectors.EVENT_READ)

    def close(self) -> None:
        """Close the connection; a query that is still under way is cancelled, or the server would go on with it."""
        import psycopg

        self._selector.close()
        if self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
            with contextlib.suppress(psycopg.Error):
                self.connection.cancel_safe(timeout=CANCEL_TIMEOUT_S)
        self.connection.close()

    def begin(self, campaign: Campaign, snapshot: str | None) -> None:
        """Open the campaign's transaction."""
        self._timeout_s = campaign.timeout_s
        lines = ["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" if campaign.read_only else "BEGIN"]
        lines += [f"SET TRANSACTION SNAPSHOT '{snapshot}'"] if snapshot and campaign.read_only else []
        lines += [
            f"SET LOCAL statement_timeout = '{campaign.timeout_s}s'",
            f"SET LOCAL lock_timeout = '{min(LOCK_TIMEOUT_S, campaign.timeout_s)}s'",
            "SET LOCAL DateStyle = 'ISO'",
        ]
        self.run("; ".join(lines), campaign.source)

    def run(self, sql: str, source: str, line: int = 0) -> PGresult:
        """The last result of sql, which stands in source from that line on."""
        self._send(source, self.pgconn.send_query, sql.encode())
        return self._results(sql, source, line)

    def columns(self, campaign: Campaign) -> tuple[str, ...]:
        """The names of the columns that the mailing's statement would return; the server plans nothing yet."""
        select = campaign.select
        self._send(campaign.source, self.pgconn.send_prepare, b"", select.text.encode())
        self._results(select.text, campaign.source, select.line)
        self._send(campaign.source, self.pgconn.send_describe_prepared, b"")
        described = self._results(select.text, campaign.source, select.line)
        return tuple((described.fname(index) or b"").decode() for index in range(described.nfields))

    def copy(self, campaign: Campaign) -> Iterator[bytearray]:
        """The mailing's rows as the server's own text (COPY, text format), in blocks of whole rows.

        The query is under way when this returns, so that the server works while pandas is still being imported.
        """
        select = campaign.select
        self.run(f"COPY ({select.text}\n) TO STDOUT (ENCODING 'UTF8')", campaign.source, select.line)
        return self._blocks(campaign)

    def _blocks(self, campaign: Campaign) -> Iterator[bytearray]:
        block, drained, next_row = bytearray(), 0, self.pgconn.get_copy_data
        while True:
            # psycopg's Copy object does the same, at 1.7 times the processor time a row.
            size, row = next_row(1)
            if size > 0:
                block += row
            elif size < 0:
                break
            else:  # libpq's buffer is drained; it has 16 KB at first, and doubles when it is read into while it is full
                reads = 2 if len(block) - drained < READ_BYTES else 1
                if len(block) >= BLOCK_BYTES:
                    yield block
                    block = bytearray()
                drained = len(block)
                self._wait(campaign.source, reads)
        self._results(campaign.select.text, campaign.source, campaign.select.line)
        if block:
            yield block

    def _send(self, source: str, send: Callable[..., None], *what: bytes) -> None:
        from psycopg import OperationalError

        try:
            send(*what)
        except OperationalError:  # libpq has seen the end of the connection already
            raise query_error("", "", source, None) from None

    def _results(self, sql: str, source: str, line: int = 0) -> PGresult:
        from psycopg import pq

        last: PGresult | None = None
        self._limit_s = self.deadline.clock.steady_s() + self._timeout_s + GRACE_S
        while True:
            while (self.pgconn.status == pq.ConnStatus.OK and self.pgconn.flush()) or self.pgconn.is_busy():
                self._wait(source)
            result = self.pgconn.get_result()
            if result is None:
                assert last is not None
                return last
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise self._error(result, sql, source, line)
            last = result
            if result.status in (pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_IN):
                return result

    def _error(self, result: PGresult, sql: str, source: str, line: int) -> DatabaseError:
        from psycopg.pq import DiagnosticField as Field

        def told(item: Field) -> str:
            return (result.error_field(item) or b"").decode("utf-8", "replace")

        position = told(Field.STATEMENT_POSITION)
        line += sql[: int(position) - 1].count("\n") if position and line else 0
        return query_error(told(Field.SQLSTATE), told(Field.MESSAGE_PRIMARY), source, line)

    def _wait(self, source: str, reads: int = 1) -> None:
        """Take what has arrived, or return after half a second, so that a stop is noticed in time."""
        from psycopg import OperationalError, pq

        self.deadline.check()
        if self.deadline.clock.steady_s() > self._limit_s:
            hint = "the server neither answers nor ends the query; " + ASK_ADMINISTRATOR
            raise DatabaseError(f"{source}: the database fell silent", hint, retries=ONCE_MORE)
        if self.pgconn.status == pq.ConnStatus.BAD:
            raise query_error("", "", source, None)
        if self._selector.select(timeout=0.5):
            with contextlib.suppress(OperationalError):  # what came before the end may say why; then the status is bad
                for _ in range(reads):
                    self.pgconn.consume_input()


class Database:
    """The connections of one run, and the snapshot that all its queries read.

    One connection, the holder, exports the snapshot and stays open; the others import it. They all go to the host that
    the holder reached, since a snapshot lives on one server.
    """

    def __init__(self, settings: Settings, deadline: Deadline) -> None:
        self.settings, self.deadline = settings, deadline
        self.down: PipelineError | None = None  # once a whole retry budget was spent on it
        self._lock = threading.RLock()
        self._idle: list[Session] = []
        self._holder: Session | None = None
        self._snapshot: str | None = None
        self._pin: dict[str, str] = {}

    def connect(self) -> Session:
        """A new session. Raises DatabaseError."""
        import psycopg

        defaults: dict[str, Any] = {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": PROGRAM,
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 60_000,
        }
        os.environ.update(self.settings.libpq_environment)  # libpq reads these nowhere else
        options = defaults | dict(self.settings.libpq) | self._pin | {"client_encoding": "UTF8"}
        try:
            connection = psycopg.connect(**options, autocommit=True, prepare_threshold=None)
        except psycopg.Error as error:
            if "," in self.settings.libpq.get("host", ""):  # another host may serve: then with a snapshot of its own
                self._forget(self._snapshot)
            raise connect_error(str(error)) from None
        return Session(connection, self.deadline)

    def open(self) -> None:
        """Connect the holder and export the snapshot. Raises DatabaseError."""
        with self._lock:
            if self._holder:
                return
            self._pin = {}
            holder = self.connect()
            host, hostaddr, port = holder.pgconn.host, holder.pgconn.hostaddr, holder.pgconn.port
            named = {"host": host.decode(), "hostaddr": hostaddr.decode(), "port": port.decode()}
            self._pin = {key: value for key, value in named.items() if value}
            self._holder, self._snapshot = holder, None
            try:
                holder.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "snapshot")
                # An idle transaction is what the holder is: a server-wide limit must not end it.
                keep = "set_config('idle_in_transaction_session_timeout', '0', true)"
                result = holder.run(f"SELECT pg_export_snapshot(), {keep}", "snapshot")
                self._snapshot = (result.get_value(0, 0) or b"").decode()
            except DatabaseError as error:
                if error.retries == AGAIN:
                    self._holder = None
                    holder.close()
                    raise
                log.warning("this server exports no snapshot, each query sees its own: %s", error.message)

    @contextlib.contextmanager
    def session(self, campaign: Campaign) -> Iterator[Session]:
        """A session inside the campaign's transaction, on the run's snapshot."""
        self.open()
        with self._lock:
            session = self._idle.pop() if self._idle else None
            snapshot = self._snapshot
        session = session or self.connect()
        try:
            try:
                session.begin(campaign, snapshot)
            except DatabaseError as error:
                if not snapshot or error.retries == AGAIN:
                    raise
                self._forget(snapshot)  # 22023 or, since PostgreSQL 18, 42704: it went with the holder's connection
                message = "the shared snapshot was lost with its connection; a new one is taken"
                raise DatabaseError(f"{campaign.source}: {message}", LATER, retries=AGAIN) from None
            for statement in campaign.prelude:
                session.run(statement.text, campaign.source, statement.line)
            yield session
            session.run("ROLLBACK" if campaign.read_only else "COMMIT", campaign.source)
        except BaseException:
            session.close()
            raise
        if not campaign.read_only:  # its SETs and temp tables outlive the transaction
            session.close()
            return
        with self._lock:
            self._idle.append(session)

    def _forget(self, snapshot: str | None) -> None:
        with self._lock:
            if self._holder and self._snapshot == snapshot:
                self._holder.close()
                self._holder = None

    def close(self) -> None:
        """Close every idle connection; those in use are closed by their users."""
        with self._lock:
            for session in [*self._idle, *([self._holder] if self._holder else [])]:
                session.close()
            self._idle, self._holder = [], None


CONTROL_BYTES = rb"[\x01-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]"  # C0, DEL, C1, U+2028, U+2029 in UTF-8
CONTROLS_INSIDE = rb" *(?:%s)(?: |%s)*" % (CONTROL_BYTES, CONTROL_BYTES)


def looks_tidy(block: bytes | bytearray, columns: int) -> bool:
    """Whether no cell of a block of COPY text can need stripping; False may be a false alarm.

    One look at bytes, outside the interpreter lock, in a fifth of the time that tidying every cell takes: no
    control character but the tabs and line feeds of the format, no blank beside one of those, and none of the bytes
    that begin (or are) DEL, C1 and Unicode's other blanks.
    """
    import numpy as np

    data = np.frombuffer(block, np.uint8)
    blanks = np.flatnonzero(data == ord(" "))
    return bool(
        np.count_nonzero(data < ord(" ")) == np.count_nonzero(data == ord("\n")) * columns
        and (data[blanks - 1] > ord(" ")).all()
        and (data[blanks + 1] > ord(" ")).all()
        and not any(byte in block for byte in (b"\x7f", b"\xe1", b"\xe2", b"\xe3"))
        and (b"\xc2" not in block or (data[np.flatnonzero(data == 0xC2) + 1] > 0xA0).all())
    )


def to_frame(block: bytes | bytearray, columns: Sequence[str]) -> pd.DataFrame:
    r"""A block of COPY text as a DataFrame of strings, one column per name; no value is interpreted, NULL is missing.

    Cells are stripped; line breaks and control characters inside a cell become one space. COPY writes a tab, a line
    feed or a backslash of the data as \t, \n and \\, so that tabs part cells and line feeds rows, and NULL as \N
    (PostgreSQL manual, COPY, Text Format).
    """
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as pa_csv

    data = np.frombuffer(block, np.uint8)
    if (data[np.flatnonzero(data == ord("\\")) + 1] != ord("N")).any():
        # A backslash of the data becomes NUL for now, which never occurs in PostgreSQL's text.
        block = re.sub(rb"\\[bfnrtv]", b"\x01", block.replace(b"\\\\", b"\0"))
    tidy = looks_tidy(block, len(columns))
    if not tidy:
        # RE2: a sixth of the time of Python's re, and outside the interpreter lock
        block = pc.replace_substring_regex(pa.array([block], pa.binary()), CONTROLS_INSIDE, b" ")[0].as_py()
    numbered = [str(index) for index in range(len(columns))]  # names may be any text: they are set afterwards
    table = pa_csv.read_csv(
        pa.BufferReader(block),
        read_options=pa_csv.ReadOptions(column_names=numbered, block_size=len(block) + 1, use_threads=False),
        parse_options=pa_csv.ParseOptions(
            delimiter="\t", quote_char=False, escape_char=False, ignore_empty_lines=False
        ),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(numbered, pa.string()),
            null_values=[r"\N"],
            strings_can_be_null=True,
            check_utf8=False,
        ),
    )
    frame: pd.DataFrame = table.to_pandas(types_mapper=pd.ArrowDtype)
    if b"\0" in block:
        frame = frame.apply(lambda column: column.str.replace("\0", "\\", regex=False))
    if not tidy:
        frame = frame.apply(lambda column: column.str.strip())
    frame.columns = pd.Index(columns)
    return frame


def texts(cells: pd.Series[str]) -> pa.StringArray:
    """A column as Arrow's own array, NULL as the empty text: a third of what pandas' methods would take for a block."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = pa.array(cells.array)
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return pc.fill_null(pc.cast(array, pa.string()), "")


def flat(cells: pa.StringArray) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The bytes of all cells in a row, and where each cell begins in them and the last one ends."""
    import numpy as np

    _, offsets, data = cells.buffers()
    places = np.frombuffer(offsets, np.int32)[cells.offset : cells.offset + len(cells) + 1]
    return np.frombuffer(data or b"", np.uint8)[places[0] : places[-1]], places - places[0]


def digits_only(cells: pa.StringArray) -> pa.StringArray:
    """The cells without anything but 0 to 9, in a sixth of the time of a regular expression."""
    import numpy as np
    import pyarrow as pa

    data, places = flat(cells)
    digit = data - np.uint8(ord("0")) <= 9  # what is less than "0" wraps around
    kept_before = np.concatenate([[0], np.cumsum(digit)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(cells), pa.py_buffer(kept_before[places]), pa.py_buffer(data[digit]))


# Anatel, Plano Geral de Códigos Nacionais: the area codes in use.
AREA_CODES = "1[1-9]|2[12478]|3[1-578]|4[1-9]|5[1345]|6[1-9]|7[134579]|8[1-9]|9[1-9]"
# Anatel, Resolução 749/2022: mobile numbers have nine digits beginning with 9, fixed ones eight beginning with 2 to 5.
PHONE = rf"(?P<number>(?:{AREA_CODES})(?:9\d{{8}}|[2-5]\d{{7}}))"


def clean_phones(cells: pd.Series[str]) -> pd.Series[str]:
    """Brazilian phone numbers as area code and number, digits only; what is none becomes empty."""
    import pandas as pd
    import pyarrow.compute as pc

    phones = texts(cells)
    others = pc.invert(pc.match_substring_regex(phones, f"^{PHONE}?$"))  # few: looking costs a fifth of cleaning
    found = pc.extract_regex(digits_only(phones.filter(others)), f"^(?:55)?0?{PHONE}$")  # null where there is none
    phones = pc.replace_with_mask(phones, others, pc.fill_null(pc.struct_field(found, "number"), ""))
    return pd.Series(pd.arrays.ArrowExtensionArray(phones), index=cells.index)


SHORT_KEY_BYTES = 32


def key_hashes(keys: pa.StringArray) -> np.ndarray[Any, Any]:
    """A 64-bit hash of each key. Short keys are hashed as machine words: a fifth of what Python strings would take."""
    import numpy as np
    import pandas as pd
    import pyarrow.compute as pc

    is_long = pc.greater(pc.binary_length(keys), SHORT_KEY_BYTES)
    padded = pc.ascii_rpad(pc.if_else(is_long, "", keys), SHORT_KEY_BYTES, padding="\0")
    words = flat(padded)[0].view(np.uint64).reshape(len(keys), -1)
    hashes: np.ndarray[Any, Any] = pd.util.hash_pandas_object(pd.DataFrame(words), index=False).to_numpy(copy=True)
    if pc.any(is_long).as_py():
        long = keys.filter(is_long).to_numpy(zero_copy_only=False)
        hashes[is_long.to_numpy(zero_copy_only=False)] = pd.util.hash_array(long, categorize=False)
    return hashes


class SeenKeys:
    """The keys seen so far in a mailing, as sorted 64-bit hashes: 8 bytes a key, so that memory hardly grows with rows.

    Two keys of one mailing collide once in about 10 million mailings of 2 million rows; a collision rejects one row.
    """

    def __init__(self) -> None:
        import numpy as np

        # The latest stand apart until they are a quarter, so that not every block moves all that came before it. Each
        # ends with the largest number, so that every key finds a place.
        self._old = self._late = np.array([np.iinfo(np.uint64).max])

    def first(self, keys: Sequence[pa.StringArray]) -> np.ndarray[Any, Any]:
        """Which rows are the first with their key, of one column or several; an empty key is never a duplicate."""
        import numpy as np
        import pandas as pd
        import pyarrow.compute as pc

        joined = pc.binary_join_element_wise(*keys, "\x1f")
        hashes = key_hashes(joined)
        order = np.argsort(hashes)  # in order, one look-up finds in the cache what the last one fetched: 5 times faster
        ranked = hashes[order]
        known = np.zeros(len(hashes), bool)
        for seen in (self._old, self._late):
            known[order] |= seen[np.searchsorted(seen, ranked)] == ranked
        filled = pc.not_equal(joined, "\x1f" * (len(keys) - 1)).to_numpy(zero_copy_only=False)
        new = filled & ~known & ~pd.Series(hashes).duplicated().to_numpy()
        self._late = merged(self._late, ranked[new[order]])
        if len(self._late) > len(self._old) // 4:
            self._old, self._late = merged(self._old, self._late[:-1]), self._late[-1:]
        first: np.ndarray[Any, Any] = new | ~filled
        return first


def merged(numbers: np.ndarray[Any, Any], more: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Two sorted arrays as one."""
    import numpy as np

    return np.insert(numbers, np.searchsorted(numbers, more), more)


def with_reason(rows: pd.DataFrame, reason: str) -> pd.DataFrame:
    """Rejected rows with a last column that says why; the query may have a column of that name too."""
    told = rows.copy(deep=False)
    told.insert(rows.shape[1], "reason", reason, allow_duplicates=True)
    return told


class Treatment:
    """What happens to every row of one mailing once its cells are tidy, in this order: phones, unique."""

    def __init__(self, campaign: Campaign) -> None:
        self.phones, self.unique = list(campaign.phones), list(campaign.unique)
        self._seen = SeenKeys()

    def apply(self, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
        """The rows to send; and those rejected as they came, with a last column `reason`, one frame for each reason."""
        import numpy as np
        import pyarrow as pa

        came, kept, refused = frame, np.ones(len(frame), bool), {}
        if self.phones:
            frame = frame.copy(deep=False)
            for column in self.phones:
                frame[column] = clean_phones(frame[column])
            kept = np.any([frame[column].array != "" for column in self.phones], axis=0)
            refused["no valid phone"] = ~kept
        if self.unique and kept.any():
            repeated = np.zeros(len(frame), bool)
            repeated[kept] = ~self._seen.first([texts(frame[column]).filter(pa.array(kept)) for column in self.unique])
            refused[f"duplicate {', '.join(self.unique)}"] = repeated
            kept &= ~repeated
        rejected = [with_reason(came[rows], reason) for reason, rows in refused.items() if rows.any()]
        return frame if kept.all() else frame[kept], rejected


def to_csv(frame: pd.DataFrame, form: CsvFormat) -> bytes:
    """A treated block as CSV text in UTF-8, RFC 4180 with minimal quoting, without the header line.

    The bytes are those of DataFrame.to_csv, in a tenth of its time. Arrow's own CSV writer is as fast as this, but
    writes no quotes or quotes everything.
    """
    import pyarrow.compute as pc

    if frame.empty:
        return b""
    columns = [quoted(texts(cells), form.delimiter, lone=frame.shape[1] == 1) for _, cells in frame.items()]
    columns[-1] = pc.binary_join_element_wise(columns[-1], form.newline, "")
    lines, _ = flat(pc.binary_join_element_wise(*columns, form.delimiter))
    return lines.tobytes()


def quoted(column: pa.StringArray, delimiter: str, lone: bool) -> pa.StringArray:
    """The column with quotes around the cells that need them. A lone empty one does, or its line would be empty."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    data, places = flat(column)  # looking through all cells at once costs a fifth of asking each of them
    special = np.flatnonzero((data == ord('"')) | (data == ord(delimiter)))
    if not lone and not special.size:
        return column
    needs = (np.diff(places) == 0) & lone
    needs[np.searchsorted(places, special, "right") - 1] = True
    doubled = pc.replace_substring(column.filter(pa.array(needs)), '"', '""')
    return pc.replace_with_mask(column, pa.array(needs), pc.binary_join_element_wise('"', doubled, '"', ""))


def header_line(columns: Sequence[str], form: CsvFormat) -> bytes:
    """The CSV's first line, quoted like any other."""
    line = io.StringIO()
    csv.writer(line, delimiter=form.delimiter, lineterminator=form.newline).writerow(columns)  # as pandas does it
    return line.getvalue().encode()


def encoded(utf8: bytes, encoding: str) -> tuple[bytes, int]:
    """utf8 in the campaign's encoding, and how many characters it lacks, which became '?'."""
    if encoding in ("utf-8", "utf-8-sig"):
        return utf8, 0
    data = utf8.decode().encode(encoding, "replace")
    return data, data.count(b"?") - utf8.count(b"?")


@dataclass(frozen=True, slots=True)
class Mailing:
    """A whole mailing on this PC's disk."""

    path: Path
    columns: tuple[str, ...]
    rows: int
    rejected: int
    replaced: int  # characters that the encoding lacks
    size_bytes: int
    sha256: str


class LocalFile:
    """A file that appears under its name only when it is whole: written as .part, flushed to disk, renamed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = path.with_name(path.name + ".part")  # where it stands now
        self.size_bytes, self.sha256 = 0, hashlib.sha256()
        with local_faults(self.place):
            self._file = open(self.place, "wb", buffering=0)  # noqa: SIM115 (closed by finish or discard)

    def write(self, data: bytes) -> None:
        """Append data."""
        with local_faults(self.place):
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        self.sha256.update(data)
        self.size_bytes += len(data)

    def finish(self) -> None:
        """Bring every byte to the disk; nothing is written after it."""
        with local_faults(self.place):
            os.fsync(self._file.fileno())
            self._file.close()

    def keep(self) -> None:
        """Give the finished file its name."""
        with local_faults(self.path):
            patient_replace(self.place, self.path)
        self.place = self.path

    def discard(self) -> None:
        """Remove what was written."""
        self._file.close()
        with contextlib.suppress(OSError):
            self.place.unlink(missing_ok=True)


def patient_replace(source: Path, target: Path) -> None:
    """os.replace, patient for three seconds with a target or source that another Windows program holds open."""
    for pause_s in (0.1, 0.2, 0.4, 0.8, 1.5, None):
        try:
            return os.replace(source, target)
        except OSError as error:
            if pause_s is None or getattr(error, "winerror", None) not in (5, 32, 33):
                raise
            time.sleep(pause_s)


@contextlib.contextmanager
def local_faults(path: Path) -> Iterator[None]:
    """The seam for this PC's disk: OSError -> LocalFault."""
    try:
        yield
    except OSError as error:
        hint = "free space on this PC's disk, and close programs that hold the file open"
        raise LocalFault(f"{path}: {error.strerror or error}", hint) from error


class Export:
    """One campaign's mailing while it comes into being: a worker writes, the courier follows.

    `mailing` or `error` is set once, at the end. `attempt` counts the tries: a new one begins a new file, and whatever
    was sent of the old one is worthless.
    """

    def __init__(self, campaign: Campaign, path: Path, changed: threading.Condition) -> None:
        self.campaign, self.path, self.changed = campaign, path, changed
        self.attempt, self.rows, self.entry_id = 0, 0, 0
        self.file: LocalFile | None = None
        self.mailing: Mailing | None = None
        self.error: PipelineError | None = None
        self.start_s = self.seconds = 0.0

    @property
    def done(self) -> bool:
        """Whether the mailing is whole, or will never be."""
        return self.mailing is not None or self.error is not None

    @property
    def whole_mailing(self) -> Mailing:
        """The mailing, once it is whole."""
        assert self.mailing is not None
        return self.mailing

    @property
    def size_bytes(self) -> int:
        """What stands on this PC's disk so far."""
        file = self.file
        return file.size_bytes if file else 0

    def read(self, attempt: int, offset: int, size: int) -> bytes | None:
        """Up to size bytes that attempt has written so far, from offset; None if that attempt was given up."""
        with self.changed:  # opened and closed under the lock: on Windows an open file cannot be renamed
            if attempt != self.attempt or self.file is None:
                return None
            size = min(size, self.file.size_bytes - offset)
            if size <= 0:
                return b""
            with local_faults(self.file.place), open(self.file.place, "rb") as reader:
                reader.seek(offset)
                return reader.read(size)

    def run(self, database: Database, policy: RetryPolicy) -> None:
        """Fill the mailing, or set error; never raises."""
        clock = database.deadline.clock
        self.start_s = clock.steady_s()
        error: PipelineError | None = None
        mailing: Mailing | None = None
        try:
            mailing = retry(lambda: self._once(database), policy, database.deadline, self.campaign.name)
        except PipelineError as found:
            error = found
            if isinstance(found, DatabaseError) and found.down:
                database.down = found
        except Exception as found:
            error = bug(found)
        with self.changed:
            self.seconds = round(clock.steady_s() - self.start_s, 3)
            self.mailing, self.error = mailing, error
            self.changed.notify_all()

    def _once(self, database: Database) -> Mailing:
        """One attempt, from BEGIN to a named file."""
        if database.down:
            raise database.down
        campaign = self.campaign
        with database.session(campaign) as session:
            columns = session.columns(campaign)
            if objection := layout_objection(columns, campaign):
                raise Held(*objection)
            blocks = session.copy(campaign)
            with self.changed:
                self.attempt, self.rows, self.file = self.attempt + 1, 0, LocalFile(self.path)
            try:
                return self._write(self.file, columns, blocks)
            except BaseException:
                with self.changed:
                    self.file.discard()
                    self.file = None
                raise

    def _write(self, file: LocalFile, columns: tuple[str, ...], blocks: Iterable[bytearray]) -> Mailing:
        """Every block through treatment into the CSV, the rejected rows into one beside it."""
        campaign, form = self.campaign, self.campaign.csv
        treatment, refusals, replaced = Treatment(campaign), 0, 0
        rejects: LocalFile | None = None
        try:
            if form.encoding == "utf-8-sig":
                file.write("\ufeff".encode())
            if form.header:
                header, replaced = encoded(header_line(columns, form), form.encoding)
                file.write(header)
            for block in blocks:
                kept, rejected = treatment.apply(to_frame(block, columns))
                data, lacking = encoded(to_csv(kept, form), form.encoding)
                file.write(data)
                replaced += lacking
                for refused in rejected:
                    refusals += len(refused)
                    if rejects is None:
                        rejects = LocalFile(self.path.with_name(rejected_name(self.path.name)))
                        rejects.write(encoded(header_line([*columns, "reason"], form), form.encoding)[0])
                    rejects.write(encoded(to_csv(refused, form), form.encoding)[0])
                with self.changed:
                    self.rows += len(kept)
                    self.changed.notify_all()
                if campaign.max_rows is not None and self.rows > campaign.max_rows:
                    raise Held(f"more than max_rows {campaign.max_rows:,} contacts", CHECK_QUERY)
            if rejects:
                rejects.finish()
                rejects.keep()
            file.finish()
            with self.changed:  # the courier reads under this lock
                file.keep()
        except BaseException:
            if rejects:
                rejects.discard()
            raise
        return Mailing(self.path, columns, self.rows, refusals, replaced, file.size_bytes, file.sha256.hexdigest())


def bug(error: Exception) -> PipelineError:
    """An error that nobody foresaw: its type and its places go to the log, not its text, which may quote a row."""
    log.error("a bug: %s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
    fault = PipelineError(f"internal error ({type(error).__name__})", "send the log of today to the developer")
    fault.exit_code = ExitCode.BUG
    return fault


# ---------------------------------------------------------------------------------------------------------------------
# Guards: whether a mailing may be sent. Values in, an objection out
# ---------------------------------------------------------------------------------------------------------------------

CHECK_QUERY = "check the query and the data; if the number is right, change the guard in the query file"


def layout_objection(columns: Sequence[str], campaign: Campaign) -> tuple[str, str] | None:
    """Why columns are not what the dialer expects, with a hint; None if they are."""
    hint = "correct the query's column names, or its 'columns:' line if the dialer's layout really changed"
    if not columns:
        return "the query returns no columns", hint
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        return masked(f"column {twice[0]} comes twice"), hint
    if campaign.columns is not None and tuple(columns) != campaign.columns:
        missing = [name for name in campaign.columns if name not in columns]
        extra = [name for name in columns if name not in campaign.columns]
        parts = [f"missing {', '.join(missing)}"] if missing else []
        parts += [f"not expected {', '.join(extra)}"] if extra else []
        return masked(f"the columns changed: {'; '.join(parts) or 'another order: ' + ', '.join(columns)}"), hint
    absent = [name for name in (*campaign.phones, *campaign.unique) if name not in columns]
    if absent:
        return f"phones: or unique: names the column {absent[0]}, which the query does not return", hint
    return None


def rows_objection(rows: int, campaign: Campaign, past_rows: Sequence[int]) -> tuple[str, str] | None:
    """Why that many rows are not sent, with a hint; None if they may be. past_rows: of the last delivered mailings.

    max_rows is not among these: an export that grows beyond it is stopped then and there.
    """
    if rows < (campaign.min_rows or 0):
        return f"{rows:,} contacts, fewer than min_rows {campaign.min_rows:,}", CHECK_QUERY
    usual = statistics.median(past_rows) if past_rows else 0
    if campaign.max_drop is not None and rows * 100 < usual * (100 - campaign.max_drop):
        fallen = f"{1 - rows / usual:.0%} below the usual {usual:,.0f} (max_drop {campaign.max_drop}%)"
        return f"{rows:,} contacts, {fallen}", CHECK_QUERY
    return None


def time_objection(campaign: Campaign, deadline: Deadline, ignore_hours: bool) -> tuple[str, str] | None:
    """Why it is too late (or too early) to publish a mailing of this run now; None if it is not."""
    now = deadline.clock.now()
    if not ignore_hours and not campaign.hours.inside(now):
        return f"{now:%H:%M} is outside the campaign's hours {campaign.hours}", "nothing to do: it is not sent late"
    return (ended.message, ended.hint) if (ended := deadline.ended) else None


# ---------------------------------------------------------------------------------------------------------------------
# Delivery: one SFTP session; upload under a temp name, check, rename; a rename in doubt is settled by looking
# ---------------------------------------------------------------------------------------------------------------------

TEMP_PREFIX = ".part-"  # matches neither a dialer's prefix pattern nor its extension pattern
SFTP_TIMEOUT_S = 60  # a request without any reply for so long means a dead connection
CHUNK_BYTES = 1 << 20
# The longest write that OpenSSH's sftp-server takes (sftp-common.h, SFTP_MAX_MSG_LENGTH, less 1 KB). With it an upload
# takes two thirds of the time and half of the processor time of paramiko's 32 KB, which suit any server.
OPENSSH_WRITE_BYTES = 255 << 10


NETWORK = "check SFTP_HOST, SFTP_PORT and the network; is the SFTP server running?"
DISK = "see whether the server's disk is full or its quota used up"
HUNG_UP = "check the network, then SFTP_USER and SFTP_PASSWORD: some servers hang up on a wrong password"
OLD_SERVER = "the server offers only outdated algorithms (SHA-1); its administrator must update it"
# Measured with paramiko 5: login errors are SSHExceptions; OpenSSH tells disk full, quota, exists and cross-device
# alike as OSError("Failure") without an errno. The first row that fits decides.
SFTP_RULES = (
    Rule(r"(?i)timeout", AGAIN, NETWORK, kind="AuthenticationException", dead=True),
    Rule(r"(?i)shut down|EOF", ONCE_MORE, HUNG_UP, kind="AuthenticationException", dead=True),
    Rule(r"", NEVER, "check SFTP_USER and SFTP_PASSWORD or SFTP_KEY_FILE", kind="AuthenticationException", fatal=True),
    Rule(r"", NEVER, OLD_SERVER, kind="IncompatiblePeer", fatal=True),
    Rule(r"", NEVER, "create the folder on the server, or correct '-- folder:'", kind="FileNotFoundError"),
    Rule(r"", NEVER, "ask the server's administrator for write access to the folder", kind="PermissionError"),
    Rule(r"(?i)unsupported|not supported", NEVER, "the server lacks this operation", kind="OSError"),
    Rule(r"", AGAIN, NETWORK, kind="EOFError", dead=True),
    Rule(r"", AGAIN, NETWORK, kind="TimeoutError", dead=True),
    Rule(r"", AGAIN, NETWORK, kind="ConnectionError", dead=True),
    Rule(r"", AGAIN, NETWORK, kind="gaierror", dead=True),
    Rule(r"", AGAIN, NETWORK, kind="SSHException", dead=True),
    Rule(r"", AGAIN, NETWORK, kind="SFTPError", dead=True),
    Rule(r"(?i)socket|closed|\[(Errno|WinError)", AGAIN, NETWORK, kind="OSError", dead=True),
    Rule(r"", TWICE_MORE, DISK, kind="OSError"),
)


def temp_in(folder: PurePosixPath) -> PurePosixPath:
    """A new temp name in folder, which nobody else will choose."""
    return folder / f"{TEMP_PREFIX}{secrets.token_hex(4)}"


def sftp_error(error: Exception, doing: str) -> tuple[DeliveryError, bool]:
    """error while doing something on the server, classified; and whether the session is dead."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    rule = next(rule for rule in SFTP_RULES if rule.kind in kinds and re.search(rule.pattern, str(error)))
    told = masked(" ".join(str(error).split())) or type(error).__name__
    dead = rule.dead or rule.fatal
    return DeliveryError(f"{doing}: {told}", rule.hint, retries=rule.retries, fatal=rule.fatal, down=dead), dead


class DictionaryKeepingCompressor:
    """paramiko's own forgets what it has seen after every packet of 32 KB (Z_FULL_FLUSH): a tenth more to send.

    RFC 4253, 6.2, asks for a partial flush.
    """

    def __init__(self) -> None:
        self._zlib = zlib.compressobj()

    def __call__(self, data: bytes) -> bytes:
        return self._zlib.compress(data) + self._zlib.flush(zlib.Z_PARTIAL_FLUSH)


class DropFolders:
    """The SFTP server's folders over one session, dialled by its first use and again after a broken connection.

    Knows nothing of retrying: every method raises DeliveryError, classified.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.round_trip_s = 0.0  # about, as the last login saw it
        self._long_writes = True  # until a server has failed at one
        self._transport: paramiko.Transport | None = None
        self._client: paramiko.SFTPClient | None = None

    def connect(self) -> None:
        """Dial and log in, unless that was done."""
        with self._session("login"):
            pass

    def seen_fingerprint(self) -> str:
        """The host key that the server shows now, with its kind; no password is sent."""
        with self._translated("asking for the host key"):
            transport = self._dial()
            key = transport.get_remote_server_key()
            self.close()
            return f"{key.fingerprint} ({key.get_name()})"

    def close(self) -> None:
        """Close the connection at once, whatever state it is in; safe from another thread."""
        transport, self._transport, self._client = self._transport, None, None
        if transport:
            with contextlib.suppress(OSError):
                transport.sock.shutdown(socket.SHUT_RDWR)
            transport.close()

    def size(self, path: PurePosixPath) -> int | None:
        """The size of a file in bytes, None if there is none."""
        with self._session(f"looking for {path}") as client:
            try:
                return client.stat(str(path)).st_size or 0
            except FileNotFoundError:
                return None

    def check_folder(self, folder: PurePosixPath) -> None:
        """Raise DeliveryError unless folder is a directory. Never created: a misspelt one would be fed for ever."""
        with self._session(f"drop folder {folder}") as client:
            mode = client.stat(str(folder)).st_mode
        if mode is not None and mode & 0o170000 != 0o040000:
            raise DeliveryError(f"drop folder {folder}: is not a folder", "correct '-- folder:' in the query file")

    def send(self, temp: PurePosixPath, chunks: Iterable[bytes]) -> int:
        """Write chunks into a new file; the bytes that arrived. Raises DeliveryError, also if a write was refused.

        paramiko reads the replies of pipelined writes only when a later write is not pipelined: so the last byte goes
        like that, and raises for all before it. Nobody else may use the session meanwhile: they would swallow this
        file's replies.
        """
        sent, waiting = 0, b""
        with self._session(f"creating {temp}") as client:
            file = client.open(str(temp), "wx")
            if self._long_writes and self._transport and "OpenSSH" in self._transport.remote_version:
                file.MAX_REQUEST_SIZE = OPENSSH_WRITE_BYTES
        with self._session(f"writing {temp}"):
            try:
                file.set_pipelined(True)
                for chunk in chunks:
                    file.write(waiting)
                    waiting, sent = chunk, sent + len(chunk)
                file.write(waiting[:-1])
                file.set_pipelined(False)
                file.write(waiting[-1:])
                arrived = file.stat().st_size
            except BaseException as error:
                self._long_writes = False
                # Else closing would wait: for the same silent server, or for the rest of a half request.
                if not isinstance(error, (TimeoutError, KeyboardInterrupt)):
                    file.close()
                raise
            file.close()
        if not sent == arrived == self.size(temp):
            raise DeliveryError(f"{temp}: {sent:,} bytes sent, {arrived:,} arrived", DISK, retries=TWICE_MORE)
        return sent

    def sha256(self, path: PurePosixPath) -> str:
        """The SHA-256 of a file, read back from the server."""
        digest = hashlib.sha256()
        with self._session(f"reading {path} back") as client, client.open(str(path), "rb") as file:
            file.prefetch(file.stat().st_size)
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def rename(self, temp: PurePosixPath, final: PurePosixPath) -> None:
        """Plain rename, which OpenSSH refuses where final exists. posix_rename would overwrite it."""
        with self._session(f"renaming {temp} to {final.name}") as client:
            client.rename(str(temp), str(final))

    def remove(self, path: PurePosixPath) -> bool:
        """Remove a file; whether it was there."""
        with self._session(f"removing {path}") as client:
            try:
                client.remove(str(path))
            except FileNotFoundError:
                return False
        return True

    @contextlib.contextmanager
    def _session(self, doing: str) -> Iterator[paramiko.SFTPClient]:
        with self._translated(doing):
            if self._client is None:
                self._client = self._log_in(self._dial())
            yield self._client

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """The seam for paramiko: its exceptions -> DeliveryError; a dead session is dropped."""
        import paramiko

        try:
            yield
        except (OSError, EOFError, paramiko.SSHException, paramiko.SFTPError) as error:
            fault, dead = sftp_error(error, f"SFTP: {doing}")
            if dead:
                self.close()
            raise fault from error
        except KeyboardInterrupt:
            self.close()  # a request may be half sent or its reply half read: the next one would wait in vain
            raise

    def _dial(self) -> paramiko.Transport:
        """A connection whose host key is the pinned one; nothing secret has been sent yet."""
        import paramiko

        settings = self.settings
        sock = socket.create_connection((settings.sftp_host, settings.sftp_port), CONNECT_TIMEOUT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small requests would wait for Nagle's algorithm
        self._transport = transport = paramiko.Transport(sock)
        transport.banner_timeout = transport.auth_timeout = CONNECT_TIMEOUT_S
        transport.use_compression(settings.sftp_compress)
        if settings.sftp_compress:
            known = transport._compression_info  # type: ignore[attr-defined]
            ours = dict.fromkeys(("zlib", "zlib@openssh.com"), (DictionaryKeepingCompressor, known["zlib"][1]))
            transport._compression_info = known | ours  # type: ignore[attr-defined]
        security = transport.get_security_options()
        security.ciphers = sorted(security.ciphers, key=lambda name: "gcm" not in name)  # GCM spares the separate MAC
        transport.start_client(timeout=CONNECT_TIMEOUT_S)  # returns silently after its timeout
        key = transport.get_remote_server_key()
        seen: str = key.fingerprint
        if settings.sftp_host_key and not secrets.compare_digest(seen, settings.sftp_host_key):
            self.close()
            raise HostKeyChanged(
                f"SFTP: {settings.sftp_host} shows another host key than SFTP_HOST_KEY: {seen} ({key.get_name()})",
                "do not go on: ask the server's administrator whether the key was changed; no password was sent",
                fatal=True,
            )
        return transport

    def _log_in(self, transport: paramiko.Transport) -> paramiko.SFTPClient:
        import paramiko

        settings = self.settings
        if settings.sftp_key_file:
            transport.auth_publickey(settings.sftp_user, load_key(settings))
        else:
            transport.auth_password(settings.sftp_user, settings.sftp_password)
        # open_sftp() and invoke_subsystem() have no timeout: they wait for ever for a server that stays silent.
        limit = threading.Timer(CONNECT_TIMEOUT_S, transport.close)
        limit.daemon = True
        limit.start()
        try:
            channel = transport.open_session(timeout=CONNECT_TIMEOUT_S)
            channel.settimeout(SFTP_TIMEOUT_S)
            asked_s = time.monotonic()  # of all the steps of a login this one is a round trip and nothing else
            channel.invoke_subsystem("sftp")
            self.round_trip_s = time.monotonic() - asked_s
            return paramiko.SFTPClient(channel)
        finally:
            limit.cancel()


def load_key(settings: Settings) -> paramiko.PKey:
    """The private key of SFTP_KEY_FILE. Raises DeliveryError, fatal."""
    import paramiko

    path, passphrase = settings.local(settings.sftp_key_file), settings.sftp_key_passphrase.encode() or None
    try:
        return paramiko.PKey.from_path(path, passphrase)  # type: ignore[arg-type]  # paramiko wants bytes
    except FileNotFoundError:
        message, hint = "not found", "correct SFTP_KEY_FILE"
    except OSError as error:
        message, hint = f"cannot be read: {error.strerror}", "let this user read the file"
    except (paramiko.SSHException, ValueError, TypeError) as error:  # what cryptography says of a passphrase varies
        encrypted = (passphrase or "pass" in str(error).lower()) and b"PRIVATE KEY" in path.read_bytes()
        message = "the passphrase does not open it" if encrypted else "is no private key that paramiko knows"
        hint = "check SFTP_KEY_PASSPHRASE" if encrypted else "make one with: ssh-keygen -t ed25519"
    raise DeliveryError(f"SFTP_KEY_FILE: {path}: {message}", hint, fatal=True)


# ---------------------------------------------------------------------------------------------------------------------
# Ledger: what was promised before a rename, and what came of it
# ---------------------------------------------------------------------------------------------------------------------


class State(StrEnum):
    """How far a mailing came. `publishing` is the moment of doubt: its rename may have happened."""

    STARTED = "started"
    EXPORTED = "exported"
    PUBLISHING = "publishing"
    DELIVERED = "delivered"
    EMPTY = "empty"
    HELD = "held"
    FAILED = "failed"
    DONE = "done"  # of a whole run, which has an entry of its own with an empty campaign


LEDGER_SQL = """
CREATE TABLE IF NOT EXISTS mailings (
    id INTEGER PRIMARY KEY,
    slot TEXT NOT NULL,                  -- 2026-12-22 10:00
    campaign TEXT NOT NULL,
    state TEXT NOT NULL,
    resend INTEGER NOT NULL DEFAULT 0,   -- 1: sent although the slot had been delivered (--resend)
    folder TEXT NOT NULL,                -- the drop folder
    file TEXT NOT NULL,                  -- the final name
    temp TEXT NOT NULL DEFAULT '',       -- the temps that may be on the server, one a line, the current one last
    rows INTEGER NOT NULL DEFAULT 0,
    rejected INTEGER NOT NULL DEFAULT 0,
    size_bytes INTEGER NOT NULL DEFAULT 0,
    sha256 TEXT NOT NULL DEFAULT '',
    seconds REAL NOT NULL DEFAULT 0,
    message TEXT NOT NULL DEFAULT '',
    hint TEXT NOT NULL DEFAULT '',
    pickup TEXT NOT NULL DEFAULT '',     -- what the dialer did with it
    changed TEXT NOT NULL                -- local time with offset
);
CREATE UNIQUE INDEX IF NOT EXISTS at_most_once ON mailings (campaign, slot)
    WHERE resend = 0 AND state IN ('publishing', 'delivered');
CREATE INDEX IF NOT EXISTS by_file ON mailings (file);
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger."""

    id: int
    slot: str
    campaign: str
    state: State
    resend: bool
    folder: PurePosixPath
    file: str
    temp: str
    rows: int
    rejected: int
    size_bytes: int
    sha256: str
    seconds: float
    message: str
    hint: str
    pickup: str
    changed: str

    @property
    def final(self) -> PurePosixPath:
        """The whole path of the final name."""
        return self.folder / self.file

    @property
    def last_temp(self) -> PurePosixPath:
        """The temp that was to be renamed; earlier ones may be left over."""
        return PurePosixPath(self.temp.rpartition("\n")[2])


class Ledger:
    """The record of deliveries, kept across runs and crashes: one SQLite table, on the disk before a call returns.

    The only class that knows SQLite, so that the ledger can move into PostgreSQL when a second PC stands by. looks:
    nothing is to be noted, so that a ledger that cannot be written will do. Raises SettingsFault.
    """

    def __init__(self, path: Path, clock: Clock, looks: bool = False) -> None:
        self.path, self.clock = path, clock
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = threading.RLock()
            self._db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA synchronous=FULL")
            sound = self._db.execute("PRAGMA quick_check").fetchone()[0]
            is_new = not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'mailings'").fetchone()
            files = sorted(path.parent.iterdir()) if is_new else []
            if mailings := [file for file in files if file.suffix.lower() in MAILING_ENDINGS]:
                raise SettingsFault(
                    f"{path}: the ledger is gone, but {path.parent} holds mailings ({mailings[0].name} …): what this "
                    "slot has delivered is unknown. Restore the file; or, to begin a new one, move those CSVs elsewhere"
                )
            if is_new or not looks:
                self._db.executescript(LEDGER_SQL)
                self._db.execute("PRAGMA user_version = 1")  # a real write: read-only and full disks show here
        except (sqlite3.Error, OSError) as error:
            sound = str(error)
        if sound != "ok":
            raise SettingsFault(
                f"{path}: the ledger cannot be used ({sound}); nothing was sent. Free the disk, make the file writable "
                "and close other programs that hold it; if it is damaged, restore it or move it "
                "away with the CSVs beside it"
            )

    def close(self) -> None:
        self._db.close()

    def start(self, slot: str, campaign: str, folder: PurePosixPath, file: str, resend: bool = False) -> int:
        """A new entry; its id. The campaign of a whole run's entry is empty."""
        columns = (slot, campaign, State.STARTED, resend, str(folder), file, self._now())
        sql = "INSERT INTO mailings (slot, campaign, state, resend, folder, file, changed) VALUES (?, ?, ?, ?, ?, ?, ?)"
        with self._lock:
            self._execute(sql, columns)
            return int(self._execute("SELECT last_insert_rowid()", ())[0][0])

    def update(self, entry_id: int, **values: Any) -> None:
        """Set columns of an entry; on the disk when it returns."""
        values["changed"] = self._now()
        columns = ", ".join(f"{name} = ?" for name in values)
        self._execute(f"UPDATE mailings SET {columns} WHERE id = ?", (*values.values(), entry_id))

    def entries(self, where: str, *values: Any) -> list[Entry]:
        """The entries for which the SQL condition holds, oldest first."""
        rows = self._execute(f"SELECT * FROM mailings WHERE {where} ORDER BY id", values)
        return [
            Entry(**{**dict(row), "state": State(row["state"]), "folder": PurePosixPath(row["folder"])}) for row in rows
        ]

    def entry(self, entry_id: int) -> Entry:
        """The entry with this id."""
        return self.entries("id = ?", entry_id)[0]

    def past_rows(self, campaign: str) -> list[int]:
        """The rows of the campaign's last ten delivered mailings."""
        sql = "SELECT rows FROM mailings WHERE campaign = ? AND state = 'delivered' ORDER BY id DESC LIMIT 10"
        return [row["rows"] for row in self._execute(sql, (campaign,))]

    def knows_file(self, name: str) -> bool:
        """Whether a mailing ever had this name."""
        sql = "SELECT 1 FROM mailings WHERE lower(file) = lower(?) LIMIT 1"
        return bool(self._execute(sql, (name,)))

    def _now(self) -> str:
        return self.clock.now().isoformat(timespec="milliseconds")

    def _execute(self, sql: str, values: Sequence[Any]) -> list[sqlite3.Row]:
        try:
            with self._lock:
                return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            hint = "free the disk, and close other programs that hold the ledger"
            raise LocalFault(f"{self.path}: {error}", hint) from error


LOCK_CURE = "make OUTPUT_DIR writable, or delete this file if it is damaged"


@contextlib.contextmanager
def only_run(path: Path, who: str, clock: Clock, wait_s: float) -> Iterator[None]:
    """One run at a time: SQLite's write lock on a small file, which the operating system releases when a process dies.

    who describes this run for the one that finds the lock taken. Waits up to wait_s seconds, then raises Busy.
    """
    until_s = clock.steady_s() + wait_s
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, timeout=0, isolation_level=None)
    except (sqlite3.Error, OSError) as error:
        raise SettingsFault(f"{path}: the lock cannot be used: {error}; {LOCK_CURE}") from None
    with contextlib.closing(db):
        holder, told = "another run", False
        while True:
            try:
                # Readers may look while the second BEGIN IMMEDIATE holds the lock, so the name is committed first.
                db.execute("BEGIN IMMEDIATE")
                db.execute("CREATE TABLE IF NOT EXISTS holder (who TEXT)")
                db.execute("DELETE FROM holder")
                db.execute("INSERT INTO holder VALUES (?)", (who,))
                db.execute("COMMIT")
                db.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.DatabaseError as error:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                if "locked" not in str(error):
                    raise SettingsFault(f"{path}: the lock cannot be used: {error}; {LOCK_CURE}") from None
            with contextlib.suppress(sqlite3.Error, TypeError):
                holder = db.execute("SELECT who FROM holder").fetchone()[0]
            if clock.steady_s() >= until_s:
                raise Busy(f"another run is active: {holder}", "wait until it has ended; it delivers by itself")
            if not told:
                log.info("waiting for %s to end", holder)
                told = True
            clock.wait(threading.Event(), 1)
        yield


# ---------------------------------------------------------------------------------------------------------------------
# Report: one outcome per campaign; exit code, table and JSON are computed from them
# ---------------------------------------------------------------------------------------------------------------------


class Verdict(StrEnum):
    """What became of a campaign in this run."""

    DELIVERED = "delivered"
    ALREADY = "already delivered"
    READY = "would be sent"
    EMPTY = "empty"
    NOT_DUE = "not due"
    HELD = "held"
    FAILED = "failed"
    UNKNOWN = "unknown"


VERDICT_STYLES = dict.fromkeys(Verdict, "default") | {
    Verdict.DELIVERED: "green",
    Verdict.READY: "green",
    Verdict.HELD: "yellow",
    Verdict.FAILED: "red",
    Verdict.UNKNOWN: "red",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A campaign's verdict with its figures; message and hint say why and what to do."""

    campaign: str
    verdict: Verdict
    folder: str = ""
    file: str = ""
    columns: int = 0
    rows: int = 0
    rejected: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    message: str = ""
    hint: str = ""
    pickup: str = ""
    exit_code: ExitCode = ExitCode.OK
    stage: bool = False  # the whole database or SFTP stage failed, not this campaign alone


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did."""

    slot: str
    start: datetime
    seconds: float
    outcomes: tuple[Outcome, ...]

    @property
    def exit_code(self) -> ExitCode:
        """The code of the whole run: 5 and 6 only when a stage failed and nothing got through it."""
        codes = [outcome.exit_code for outcome in self.outcomes if outcome.exit_code]
        if ExitCode.BUG in codes or not codes:
            return ExitCode.BUG if codes else ExitCode.OK
        verdicts = {outcome.verdict for outcome in self.outcomes}
        stages = {outcome.exit_code for outcome in self.outcomes if outcome.stage}
        if ExitCode.DATABASE in stages and not verdicts & {
            Verdict.DELIVERED,
            Verdict.READY,
            Verdict.EMPTY,
            Verdict.HELD,
        }:
            return ExitCode.DATABASE
        if ExitCode.SFTP in stages and Verdict.DELIVERED not in verdicts:
            return ExitCode.SFTP
        return ExitCode.PARTIAL

    @property
    def totals(self) -> str:
        """'5 delivered, 1 held'."""
        tally = Counter(outcome.verdict.value for outcome in self.outcomes)
        return ", ".join(f"{count} {verdict}" for verdict, count in tally.items()) or "nothing due"

    def as_json(self) -> dict[str, Any]:
        """The report as what --json prints."""
        shown = [item.name for item in fields(Outcome)][:-2]  # exit code and stage are for the run's own code
        return {
            "slot": self.slot,
            "start": self.start.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 3),
            "exit_code": self.exit_code.value,
            "meaning": self.exit_code.meaning,
            "campaigns": [{name: getattr(outcome, name) for name in shown} for outcome in self.outcomes],
        }


def report_now(deadline: Deadline, outcomes: Iterable[Outcome]) -> Report:
    """The report of a run that ends now."""
    seconds = (deadline.clock.now() - deadline.start).total_seconds()
    return Report(slot_of(deadline.start), deadline.start, seconds, tuple(outcomes))


def outcome_of_error(base: Outcome, error: PipelineError) -> Outcome:
    """base with the verdict that error means."""
    return dataclass_replace(
        base,
        verdict=Verdict.HELD if isinstance(error, Held) else Verdict.FAILED,
        message=error.message,
        hint=error.hint,
        exit_code=error.exit_code,
        stage=error.fatal or error.down,
    )


def human_size(size_bytes: int) -> str:
    """1536 as '1.5 KB'."""
    size = float(size_bytes)
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def print_report(report: Report, console: Console, language: str) -> None:
    """The table of results, then every problem with what to do, those of several campaigns once."""

    def say(text: str) -> str:
        return translate(text, language)

    console.print(say(f"Slot {report.slot}"), style="italic", highlight=False)
    console.print(result_table(report, say, narrow=console.width < 100))
    problems: dict[tuple[str, str, str], list[str]] = {}
    for outcome in report.outcomes:
        if outcome.message:
            problems.setdefault((outcome.verdict, outcome.message, outcome.hint), []).append(outcome.campaign)
    for (verdict, message, hint), campaigns in problems.items():
        tell(console, f"{', '.join(campaigns)}: {say(verdict)}: {say(message)}", say(hint))
    tell(console, say(f"exit code {report.exit_code.value}: {report.exit_code.meaning}"))


def result_table(report: Report, say: Callable[[str], str], narrow: bool) -> Table:
    """A line per campaign. Only the path may break; a narrow terminal gives up the seconds for the time of pickup."""
    from rich import box
    from rich.table import Table

    dry = any(outcome.verdict is Verdict.READY for outcome in report.outcomes)
    watched = any(outcome.pickup for outcome in report.outcomes)
    word, number, path = {"no_wrap": True}, {"no_wrap": True, "justify": "right"}, {"overflow": "fold"}
    columns: list[tuple[bool, str, dict[str, Any], Callable[[Outcome], str]]] = [
        (True, say("campaign"), word, lambda outcome: outcome.campaign),
        (True, say("result"), word, lambda outcome: f"[{VERDICT_STYLES[outcome.verdict]}]{say(outcome.verdict)}[/]"),
        (True, say("contacts"), number, lambda outcome: say(f"{outcome.rows:,}")),
        (True, say("rejected"), number, lambda outcome: say(f"{outcome.rejected:,}")),
        (dry, say("columns"), number, lambda outcome: str(outcome.columns)),
        (True, say("size"), number, lambda outcome: say(human_size(outcome.size_bytes))),
        (not (watched and narrow), say("seconds"), number, lambda outcome: say(f"{outcome.seconds:.1f}")),
        (watched, say("picked up"), word, lambda outcome: outcome.pickup.partition(PICKED_UP)[2]),
        (not dry, say("drop folder"), path, lambda outcome: outcome.folder),
        (dry, say("remote path"), path, lambda outcome: f"{PurePosixPath(outcome.folder) / outcome.file}"),
    ]
    shown = [column[1:] for column in columns if column[0]]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name, how, _ in shown:
        table.add_column(name, **how)
    for outcome in report.outcomes:
        table.add_row(*(cell(outcome) for _, _, cell in shown))
    return table


def tell(console: Console, text: str, hint: str = "") -> None:
    """A sentence for a person, and below it what to do."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    if hint:
        console.print(f"    -> {hint}", markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def live_progress(
    console: Console | None, exports: Sequence[Export], language: str, dispatch: Dispatch | None = None
) -> Iterator[None]:
    """On a terminal, a line per campaign that shows what is going on, until the block ends. Without one, nothing."""
    if console is None or not console.is_terminal or not exports:
        yield
        return
    from rich.live import Live
    from rich.table import Table

    clock_s = time.monotonic
    began: dict[str, float] = {}

    def doing(export: Export) -> str:
        name = export.campaign.name
        if dispatch and name in dispatch.outcomes:
            return f"{dispatch.outcomes[name].verdict}"
        sent = dispatch.sent.get(name, 0) if dispatch else 0
        if sent:
            rate = sent / max(clock_s() - began.setdefault(name, clock_s() - 0.5), 0.5)
            return f"sending {human_size(sent)} of {human_size(export.size_bytes)}, {human_size(int(rate))}/s"
        if export.done:
            return "ready" if export.mailing else "failed"
        return f"reading, {export.rows:,} contacts" if export.start_s else "waiting"

    def table() -> Table:
        lines = Table.grid(padding=(0, 2))
        for export in exports:
            lines.add_row(export.campaign.name, translate(doing(export), language))
        return lines

    with Live(get_renderable=table, console=console, refresh_per_second=4, transient=True):
        yield


# ---------------------------------------------------------------------------------------------------------------------
# Run: settle what is in doubt, export several at a time, deliver each as it is ready
# ---------------------------------------------------------------------------------------------------------------------

PICKUP_POLL_S = 2
FOLLOW_BYTES = 1 << 20  # an upload begins beside the export once so much is there; a small mailing is sent when whole
# A second SFTP session is worth its login once whole mailings have been waiting for so long, or at once where a round
# trip takes longer than FAR_S: a mailing costs eight of them, on which the link is idle.
ASSIST_AFTER_S, FAR_S = 1, 0.03
ASSIST_GRACE_S = 1.5  # Windows ends a process 5 s after its window is closed
BY_OPERATOR = "stopped by the operator"
STOP_GRACE_S = 20  # what the run may take after its deadline to end by itself
WITHDRAWN = "not known whether it was picked up: it was being withdrawn when the connection failed"
IN_DOUBT = "the next run looks whether the dialer got it, and never sends it twice"
PICKED_UP, REFUSED_PICKUP = "picked up at ", "refused by the dialer"


class Superseded(Exception):
    """The export that was being followed began anew, or others are to go first."""


@dataclass(frozen=True, slots=True)
class Options:
    """What kind of run the command line asks for."""

    dry_run: bool = False
    scheduled: bool = False
    only: tuple[str, ...] = ()
    resend: bool = False
    ignore_hours: bool = False


def base_outcome(export: Export) -> Outcome:
    """The figures of an outcome; the verdict is still to come."""
    campaign, mailing = export.campaign, export.mailing
    base = Outcome(
        campaign=campaign.name,
        verdict=Verdict.FAILED,
        folder=str(campaign.folder),
        file=export.path.name,
        seconds=export.seconds,
    )
    if mailing is None:
        return base
    return dataclass_replace(
        base, columns=len(mailing.columns), rows=mailing.rows, rejected=mailing.rejected, size_bytes=mailing.size_bytes
    )


def refusal(export: Export, past_rows: Sequence[int]) -> Outcome | None:
    """The outcome of a mailing that is done but must not be sent: failed, empty or held. None if it may be sent."""
    mailing, base = export.mailing, base_outcome(export)
    if mailing is None:
        assert export.error is not None
        return outcome_of_error(base, export.error)
    if mailing.rows == 0 and not export.campaign.min_rows:
        return dataclass_replace(base, verdict=Verdict.EMPTY)
    objection = rows_objection(mailing.rows, export.campaign, past_rows)
    return outcome_of_error(base, Held(*objection)) if objection else None


class Dispatch:
    """The mailings of one run: which are still to be delivered, and what became of the others.

    What the couriers share. An entry's way into `publishing`, and its end, are noted under `guard`: once the run is
    being concluded no rename begins any more.
    """

    def __init__(self, settings: Settings, options: Options, deadline: Deadline, ledger: Ledger) -> None:
        self.settings, self.options, self.deadline, self.ledger = settings, options, deadline, ledger
        self.slot = slot_of(deadline.start)
        self.outcomes: dict[str, Outcome] = {}
        self.sent: dict[str, int] = {}  # campaign -> bytes of the upload under way
        self.watched: list[Campaign] = []  # delivered, and the dialer is to take it
        self.temps: dict[int, list[str]] = {}  # entry in the ledger -> temps that may still be on the server
        self.down: PipelineError | None = None  # the SFTP stage, once a whole retry budget was spent on it
        self.alone = False  # the second session could not be opened, or was lost
        self.guard, self._over, self._line = threading.RLock(), False, threading.Lock()
        self._pending: list[Export] = []
        self._taken: set[Export] = set()  # those among them that a courier has in hand

    def due(self, campaigns: Sequence[Campaign]) -> list[Campaign]:
        """The campaigns to run now; the others get their outcome."""
        due = []
        for campaign in campaigns:
            name, delivered = campaign.name, self._delivered_in_slot(campaign)
            sql = "slot = ? AND campaign = ? AND state = 'publishing'"
            if self.ledger.entries(sql, self.slot, name):
                self.outcomes[name] = Outcome(
                    campaign=name,
                    verdict=Verdict.UNKNOWN,
                    folder=str(campaign.folder),
                    message="the server does not tell what became of this slot's mailing",
                    hint=IN_DOUBT,
                    exit_code=ExitCode.SFTP,
                    stage=self.down is not None,
                )
            elif delivered and not self.options.resend:
                entry = delivered[-1]
                self.outcomes[name] = Outcome(
                    campaign=name,
                    verdict=Verdict.ALREADY,
                    folder=str(entry.folder),
                    file=entry.file,
                    rows=entry.rows,
                    rejected=entry.rejected,
                    size_bytes=entry.size_bytes,
                )
            elif not self.options.ignore_hours and not campaign.hours.inside(self.deadline.start):
                message = f"runs {campaign.hours}"
                self.outcomes[name] = Outcome(campaign=name, verdict=Verdict.NOT_DUE, message=message)
            else:
                due.append(campaign)
        return due

    def expect(self, export: Export) -> None:
        """Register a mailing that an export worker will write."""
        campaign, resend = export.campaign, bool(self._delivered_in_slot(export.campaign))
        export.entry_id = self.ledger.start(self.slot, campaign.name, campaign.folder, export.path.name, resend)
        self._pending.append(export)
        if resend:
            log.warning("%s: was delivered in this slot; is to be sent again (--resend)", campaign.name)

    @property
    def left(self) -> int:
        """How many mailings are still to be delivered; none while the server is down."""
        return 0 if self.down else len(self._pending)

    def whole(self) -> list[Export]:
        """The mailings that are done and that no courier has in hand."""
        with self.guard:
            return [export for export in self._pending if export.done and export not in self._taken]

    def take(self, follows: bool) -> Export | None:
        """A mailing for one courier: a whole one or, if follows, one that grows; None if there is none."""
        with self.guard:
            large = [export for export in self._pending if follows and export.size_bytes > FOLLOW_BYTES]
            for export in [*self.whole(), *large]:
                if export not in self._taken:
                    self._taken.add(export)
                    return export
        return None

    def put_back(self, export: Export) -> None:
        """Its export began anew while it was followed, or others are to go first."""
        with self.guard:
            self._taken.discard(export)

    @contextlib.contextmanager
    def line(self) -> Iterator[None]:
        """The line to the server, for one whole mailing at a time. Raises Stopped.

        Two that share it would be published later, both, and then wait for the server's answers at the same time.
        """
        while not self._line.acquire(timeout=0.5):
            self.deadline.check()
        try:
            yield
        finally:
            self._line.release()

    def wait(self) -> None:
        """A fifth of a second, or until something happens to the mailings."""
        for export in self._pending[:1]:
            with export.changed:
                export.changed.wait(0.2)

    def refusal(self, export: Export) -> Outcome | None:
        """Why a mailing that is done is not sent now; None if it may be."""
        if refused := refusal(export, self.ledger.past_rows(export.campaign.name)):
            return refused
        objection = self.time_objection(export.campaign)
        return outcome_of_error(base_outcome(export), Held(*objection)) if objection else None

    def time_objection(self, campaign: Campaign) -> tuple[str, str] | None:
        """Why it is too late (or too early) to publish now, with a hint; None if it is not."""
        return time_objection(campaign, self.deadline, self.options.ignore_hours)

    def too_late(self, entry: Entry, campaign: Campaign | None) -> str:
        """Why a leftover may not be published now; empty if it may."""
        if campaign is None or entry.slot != self.slot:
            return f"its slot {entry.slot} is over" if campaign else "its campaign is gone"
        objection = self.time_objection(campaign)
        return objection[0] if objection else ""

    def begin_publishing(self, entry: Entry) -> None:
        """Note that a rename is about to be asked for. Raises Stopped once the run is being concluded."""
        with self.guard:
            if self._over:
                raise Stopped("the run is over")
            self.ledger.update(entry.id, state=State.PUBLISHING)

    def conclude(self, export: Export, outcome: Outcome) -> None:
        """Note the outcome in report, ledger and log; Ctrl+C may fall between any two lines."""
        states = {Verdict.DELIVERED: State.DELIVERED, Verdict.EMPTY: State.EMPTY, Verdict.HELD: State.HELD}
        state = states.get(outcome.verdict, State.FAILED)
        with self.guard:
            if export not in self._pending:  # the run's end came first
                return
            try:
                noted = self.ledger.entry(export.entry_id).state
                if noted is State.DELIVERED and state is not noted:  # the run was stopped just after it
                    outcome, state = dataclass_replace(base_outcome(export), verdict=Verdict.DELIVERED), noted
                elif noted is State.PUBLISHING and state is not State.DELIVERED:
                    outcome, state = dataclass_replace(outcome, verdict=Verdict.UNKNOWN, hint=IN_DOUBT), noted
                self.outcomes[outcome.campaign] = outcome
                self.ledger.update(
                    export.entry_id,
                    state=state,
                    rows=outcome.rows,
                    rejected=outcome.rejected,
                    size_bytes=outcome.size_bytes,
                    seconds=outcome.seconds,
                    message=outcome.message,
                    hint=outcome.hint,
                )
            except LocalFault as error:
                log.error("%s: the ledger could not note it, the next run looks: %s", outcome.campaign, error.message)
            self.outcomes[outcome.campaign] = outcome
            self._pending.remove(export)
        figures = f"{outcome.file}: {outcome.rows} contacts, {outcome.size_bytes} bytes" if outcome.size_bytes else ""
        told = "; ".join(text for text in (figures, outcome.message, outcome.hint) if text)
        level = logging.ERROR if outcome.exit_code else logging.INFO
        log.log(level, "%s: %s: %s", outcome.campaign, outcome.verdict, told)

    def conclude_all(self, error: PipelineError | None) -> None:
        """The run's end: what has no outcome yet gets one, and no rename begins any more."""
        with self.guard:
            self._over = True
            for export in [export for export in self._pending if export.campaign.name not in self.outcomes]:
                reason = export.error or self.down or error or Stopped("the run was stopped")
                self.conclude(export, outcome_of_error(base_outcome(export), reason))

    def _delivered_in_slot(self, campaign: Campaign) -> list[Entry]:
        return self.ledger.entries("slot = ? AND campaign = ? AND state = 'delivered'", self.slot, campaign.name)


class Courier:
    """Takes mailings to the dialer over one SFTP session, the whole ones first, or follows one that still grows."""

    def __init__(self, dispatch: Dispatch, drops: DropFolders) -> None:
        self.dispatch, self.drops = dispatch, drops
        self.settings, self.deadline, self.ledger = dispatch.settings, dispatch.deadline, dispatch.ledger
        self._unanswered: set[int] = set()  # entries with a rename that the server may still carry out

    def settle_leftovers(self, campaigns: Mapping[str, Campaign]) -> None:
        """What a killed run left in doubt, before anything else: look what became of its renames, remove its temps."""
        doubtful = self.ledger.entries("state IN ('started', 'exported', 'publishing') OR temp <> ''")
        if doubtful:
            self._retry(self.drops.connect, "SFTP")
        for entry in doubtful:
            if entry.state is State.PUBLISHING and not self._settle_leftover(entry, campaigns.get(entry.campaign)):
                continue
            if entry.state in (State.STARTED, State.EXPORTED):
                message = "the run was interrupted before publishing"
                self.ledger.update(entry.id, state=State.FAILED, message=message)
            self.dispatch.temps[entry.id] = entry.temp.split("\n") if entry.temp else []
            self._drop_temps(entry.id)

    def work(self, assistant: Courier) -> None:
        """Deliver every expected mailing; returns when each has its outcome. Raises Stopped at the run's end."""
        dispatch = self.dispatch
        if dispatch.left:
            try:
                self._retry(self.drops.connect, "SFTP")  # while the queries run
            except DeliveryError as error:
                dispatch.down = error
        is_far = self.drops.round_trip_s > FAR_S
        with assistance(assistant, 0 if is_far else ASSIST_AFTER_S):  # now that a login has succeeded
            while dispatch.left:
                if export := dispatch.take(follows=not dispatch.alone):
                    self._deliver(export, self._attempt)
                else:
                    dispatch.wait()
                self.deadline.check()

    def assist(self, over: threading.Event, patience_s: float) -> None:
        """Deliver whole mailings beside the first courier, once one has waited for patience_s, until over is set.

        They would wait for a slow line, or while the first courier follows one that grows. Raises nothing.
        """
        dispatch, clock, ready, waits_since_s = self.dispatch, self.deadline.clock, False, 0.0
        try:
            while not over.is_set() and not dispatch.alone and dispatch.left > 1:
                now_s = clock.steady_s()
                waits_since_s = (waits_since_s or now_s) if dispatch.whole() else 0.0
                if not ready and (not patience_s or (waits_since_s and now_s - waits_since_s > patience_s)):
                    self.drops.connect()
                    ready = True
                if ready and (export := dispatch.take(follows=False)):
                    self._deliver(export, self._spare_attempt)
                else:
                    dispatch.wait()
                self.deadline.check()
        except HostKeyChanged as error:
            dispatch.down = error
        except DeliveryError as error:
            self._leave(error)
        except Stopped:
            pass  # the first courier says so
        except Exception as error:
            dispatch.down = bug(error)

    def watch_pickups(self) -> None:
        """After everything is published: wait until the dialer has taken each file whose campaign asks for it."""
        watched, began_s = self.dispatch.watched, self.deadline.clock.steady_s()
        while watched:
            for campaign in list(watched):
                outcome = self.dispatch.outcomes[campaign.name]
                try:
                    pickup = self._pickup(campaign, outcome.file)
                except DeliveryError as error:
                    pickup = f"not known whether it was picked up: {error.message}"
                if not pickup and self.deadline.clock.steady_s() > began_s + campaign.pickup_s:
                    pickup = f"not picked up within {campaign.pickup_s} s"
                if pickup:
                    watched.remove(campaign)
                    self._note_pickup(outcome, pickup)
            if watched:
                self.deadline.sleep(PICKUP_POLL_S)

    def finish(self, error: PipelineError | None) -> None:
        """Give what is still pending its outcome, and remove temps that could not be removed before."""
        self.dispatch.conclude_all(error)
        for entry_id in list(self.dispatch.temps):
            self._drop_temps(entry_id, at_the_end=True)

    def _leave(self, error: DeliveryError) -> None:
        """Trouble of the second session is no trouble: the first one does it all."""
        self.dispatch.alone = True
        log.warning("from now on mailings are sent over one session: %s", error.message)

    def _retry(self, action: Callable[[], T], who: str) -> T:
        return retry(action, self.settings.retry_policy, self.deadline, who)

    def _deliver(self, export: Export, attempt: Callable[[Export], Outcome | None]) -> None:
        """Bring one mailing to its outcome, unless it is to be taken up again: then it stays pending."""
        try:
            outcome = self._retry(lambda: attempt(export), export.campaign.name)
        except PipelineError as error:
            if isinstance(error, DeliveryError) and (error.down or error.fatal):
                self.dispatch.down = error
                error = self.deadline.ended or error  # at the deadline it is the watchdog that breaks the connection
            outcome = outcome_of_error(base_outcome(export), error)
        except Exception as error:
            outcome = outcome_of_error(base_outcome(export), bug(error))
            self.drops.close()  # in the middle of a request, for all we know
        if outcome:
            self.dispatch.conclude(export, outcome)
        else:
            self.dispatch.put_back(export)
        with export.changed:
            export.changed.notify_all()

    def _spare_attempt(self, export: Export) -> Outcome | None:
        """The second session's: when that is lost it does not dial again, as some servers end the older session."""
        try:
            return self._attempt(export)
        except DeliveryError as error:
            if not error.down:
                raise
            self._leave(error)
            return None

    def _attempt(self, export: Export) -> Outcome | None:
        """One try: upload under a temp name, ask the guards, check, publish. None if it is to be taken up again."""
        if export.done and (outcome := self.dispatch.refusal(export)):
            return outcome
        folder = export.campaign.folder
        self.drops.check_folder(folder)
        if self.drops.size(folder / export.path.name) is not None:
            hint = "somebody else puts files there, or the dialer does not take them; nothing was overwritten"
            raise Held(f"{folder / export.path.name} is already there", hint)
        temp = temp_in(self.settings.sftp_staging_dir or folder)
        self._note_temp(export.entry_id, temp)
        try:
            with contextlib.closing(self._follow(export)) as chunks:
                sent = self.drops.send(temp, chunks)
            outcome = self.dispatch.refusal(export)
            if not outcome:
                self._verify(export, temp, sent)
                note = self._previous_not_taken(export.campaign)
        except BaseException as error:
            if not (isinstance(error, DeliveryError) and error.down):  # else at the run's end
                self._drop_temps(export.entry_id)
            if isinstance(error, Superseded):
                return None
            raise
        if outcome:
            self._drop_temps(export.entry_id)
            return outcome
        return self._publish(export, note)

    def _follow(self, export: Export) -> Generator[bytes]:
        """The mailing's bytes as they reach the local disk."""
        attempt, offset = export.attempt, 0
        with self.dispatch.line() if export.done else contextlib.nullcontext():
            while True:
                self.deadline.check()
                done = export.done
                if not done and self.dispatch.alone and self.dispatch.whole():
                    raise Superseded  # nobody else could take them meanwhile
                chunk = export.read(attempt, offset, CHUNK_BYTES)
                if chunk is None:
                    raise Superseded
                if chunk:
                    offset += len(chunk)
                    self.dispatch.sent[export.campaign.name] = offset
                    yield chunk
                elif done:
                    return
                else:
                    with export.changed:
                        export.changed.wait(0.2)

    def _verify(self, export: Export, temp: PurePosixPath, sent: int) -> None:
        """Step 5's second half: the whole mailing was sent; with SFTP_VERIFY=hash it is read back."""
        mailing = export.whole_mailing
        if sent != mailing.size_bytes:
            raise DeliveryError(f"{temp}: {sent:,} of {mailing.size_bytes:,} bytes sent", DISK, retries=TWICE_MORE)
        if self.settings.sftp_verify == "hash" and self.drops.sha256(temp) != mailing.sha256:
            raise DeliveryError(f"{temp}: what arrived is not what was sent (SHA-256)", DISK, retries=TWICE_MORE)

    def _publish(self, export: Export, note: str) -> Outcome:
        """Steps 6 to 9. From the ledger's `publishing` on the mailing may be out: no DeliveryError leaves this."""
        campaign, mailing, entry_id = export.campaign, export.whole_mailing, export.entry_id
        base = base_outcome(export)
        self.ledger.update(
            entry_id,
            state=State.EXPORTED,
            rows=mailing.rows,
            rejected=base.rejected,
            size_bytes=mailing.size_bytes,
            sha256=mailing.sha256,
        )
        if objection := self.dispatch.time_objection(campaign):
            self._drop_temps(entry_id)
            return outcome_of_error(base, Held(*objection))
        # Ctrl+C may fall between any two lines, and the run's end then clears from the ledger what is in temps: so
        # nothing of this entry is in there while a rename may be under way.
        temps = self.dispatch.temps.pop(entry_id)
        entry = self.ledger.entry(entry_id)
        try:
            self._rename(entry)
        except DeliveryError as error:
            log.warning("%s: the rename is in doubt, looking: %s", campaign.name, error.message)
            try:
                refused, published = self._settle(entry, lambda: self.dispatch.too_late(entry, campaign))
            except PipelineError as unknown:
                if isinstance(unknown, DeliveryError) and (unknown.down or unknown.fatal):
                    self.dispatch.down = unknown
                return outcome_of_error(base, unknown)  # conclude() sees whether it is in doubt
            if not published:
                self.ledger.update(entry_id, state=State.EXPORTED, pickup="")
                self.dispatch.temps[entry_id] = temps
                self._drop_temps(entry_id)
                return outcome_of_error(base, refused or error)
        self.ledger.update(entry_id, state=State.DELIVERED, pickup="", temp="\n".join(temps[:-1]))
        self.dispatch.temps[entry_id] = temps[:-1]
        if campaign.pickup_s:
            self.dispatch.watched.append(campaign)
        lost = f"{mailing.replaced:,} characters are not in {campaign.csv.encoding} and became '?'"
        message = "; ".join(text for text in (note, lost if mailing.replaced else "") if text)
        return dataclass_replace(base, verdict=Verdict.DELIVERED, message=message)

    def _rename(self, entry: Entry) -> None:
        """Steps 7 and 8. Raises DeliveryError; the ledger then says `exported` if it is certain that nothing happened.

        Certain is: every rename of this entry was answered by a refusal, and the temp still stands there.
        """
        self.dispatch.begin_publishing(entry)
        try:
            self.drops.rename(entry.last_temp, entry.final)
        except DeliveryError as error:
            if error.down or error.fatal:
                self._unanswered.add(entry.id)
            with contextlib.suppress(DeliveryError):
                answered, final_size = entry.id not in self._unanswered, self.drops.size(entry.final)
                if answered and final_size != entry.size_bytes and self.drops.size(entry.last_temp) is not None:
                    self.ledger.update(entry.id, state=State.EXPORTED)
            raise

    def _settle(self, entry: Entry, late: Callable[[], str]) -> tuple[DeliveryError | None, bool]:
        """Find out what became of a rename: the last error if there was one, and whether the mailing was published.

        late says why it may not be published now. Raises PipelineError while the server is out of reach.
        """
        try:
            return None, self._retry(lambda: self._look(entry, late()), entry.campaign)
        except DeliveryError as error:
            if error.down or error.fatal:
                raise
            in_doubt = self.ledger.entry(entry.id).state is State.PUBLISHING
            return error, in_doubt and self._withdraw(entry)

    def _settle_leftover(self, entry: Entry, campaign: Campaign | None) -> bool:
        """Settle a rename that an earlier run left in doubt; False if it stays so."""
        self._unanswered.add(entry.id)
        late = self.dispatch.too_late(entry, campaign)
        try:
            error, published = self._settle(entry, lambda: late)
            told = "delivered" if published else f"not published: {late or error}"
        except DeliveryError as unknown:
            if unknown.down or unknown.fatal:
                raise
            if entry.slot == self.dispatch.slot or unknown.message != WITHDRAWN:
                log.error("%s: %s stays in doubt: %s", entry.campaign, entry.file, unknown.message)
                return False
            told, published = unknown.message, False
        log.warning("%s: %s was in doubt: %s", entry.campaign, entry.file, told)
        state = State.DELIVERED if published else State.FAILED
        self.ledger.update(entry.id, state=state, message="" if published else told, pickup="")
        return True

    def _look(self, entry: Entry, late: str) -> bool:
        """Whether the mailing was published.

        Only the temp there: it was not, and is renamed now unless late. Neither there: it was, and the dialer has
        taken it, unless we had begun to withdraw it. A leftover temp beside the final name is OpenSSH's link without
        its unlink.
        """
        final_size, temp_size = self.drops.size(entry.final), self.drops.size(entry.last_temp)
        if temp_size is None:
            if final_size not in (None, entry.size_bytes):
                log.warning("%s: %s has %s bytes, not ours", entry.campaign, entry.final, final_size)
            elif final_size is None and self.ledger.entry(entry.id).pickup == WITHDRAWN:
                raise DeliveryError(WITHDRAWN, IN_DOUBT)
            return True
        if final_size == entry.size_bytes:
            self.drops.remove(entry.last_temp)
            return True
        if final_size is not None or late:
            return self._withdraw(entry)
        self._rename(entry)
        return True

    def _withdraw(self, entry: Entry) -> bool:
        """Take the temp away, so that no request still under way can publish it; whether one did before."""
        again = self.ledger.entry(entry.id).pickup == WITHDRAWN
        self.ledger.update(entry.id, pickup=WITHDRAWN)  # or a lost reply would look as if the dialer had taken it
        try:
            removed = self.drops.remove(entry.last_temp)
        except DeliveryError as error:
            if error.retries == NEVER and not again:  # not allowed to, or not even asked: nothing was removed
                self.ledger.update(entry.id, pickup="")
            raise
        if not removed and not again:
            return True
        published = self.drops.size(entry.final) == entry.size_bytes
        if not published and not removed:
            raise DeliveryError(WITHDRAWN, IN_DOUBT)
        return published

    def _note_temp(self, entry_id: int, temp: PurePosixPath) -> None:
        """On the ledger before it is on the server, so that a killed run's temp is found and removed."""
        temps = self.dispatch.temps.setdefault(entry_id, [])
        temps.append(str(temp))
        self.ledger.update(entry_id, temp="\n".join(temps))

    def _drop_temps(self, entry_id: int, *, at_the_end: bool = False) -> None:
        """Remove an entry's temps, now, at the run's end or, while the server is out of reach, in the next run."""
        try:
            if not self.dispatch.down and (at_the_end or not self.deadline.ended):
                for temp in self.dispatch.temps.get(entry_id, []):
                    self.drops.remove(PurePosixPath(temp))
                self.dispatch.temps.pop(entry_id, None)
                self.ledger.update(entry_id, temp="")
        except PipelineError as error:
            log.warning("a temp file stays on the server until the next run: %s", error.message)

    def _pickup(self, campaign: Campaign, file: str) -> str:
        """What the dialer has done with a published file; empty while it still stands there."""
        errors = campaign.pickup_error_folder
        if errors and self.drops.size(self.settings.sftp_base_dir / errors / file) is not None:
            return REFUSED_PICKUP
        gone = self.drops.size(campaign.folder / file) is None
        return f"{PICKED_UP}{self.deadline.clock.now():%H:%M:%S}" if gone else ""

    def _note_pickup(self, outcome: Outcome, pickup: str) -> None:
        if pickup.startswith(PICKED_UP):
            outcome = dataclass_replace(outcome, pickup=pickup)
            log.info("%s: %s: %s", outcome.campaign, outcome.file, pickup)
        else:
            hint = "see in the dialer why; the file is complete, and is not sent again"
            code = ExitCode.PARTIAL if pickup == REFUSED_PICKUP else ExitCode.OK
            outcome = dataclass_replace(outcome, pickup=pickup, message=pickup, hint=hint, exit_code=code)
            log.error("%s: %s: %s", outcome.campaign, outcome.file, pickup)
        self.dispatch.outcomes[outcome.campaign] = outcome
        try:
            for entry in self.ledger.entries("file = ? AND state = 'delivered'", outcome.file):
                self.ledger.update(entry.id, pickup=pickup)
        except LocalFault as error:
            log.error("%s: the ledger could not note it: %s", outcome.campaign, error.message)

    def _previous_not_taken(self, campaign: Campaign) -> str:
        """A note if the campaign's previous file still stands in the drop folder, where pickups are watched."""
        last = self.ledger.entries("campaign = ? AND state = 'delivered'", campaign.name)[-1:]
        if not campaign.pickup_s or not last or self.drops.size(last[0].final) is None:
            return ""
        log.warning("%s: the dialer has not taken the previous mailing %s", campaign.name, last[0].file)
        return f"the dialer has not taken the previous mailing {last[0].file}"


@contextlib.contextmanager
def exporting(exports: Sequence[Export], settings: Settings, deadline: Deadline) -> Iterator[None]:
    """Fill the exports in the background, QUERY_WORKERS at a time, started in order; stopped when the block ends."""
    waiting, lock, opened = iter(exports), threading.Lock(), threading.Event()
    database = Database(settings, deadline)

    def work(first: bool) -> None:
        if first:  # one retry budget for a server that is down, before anything else asks for it
            try:
                retry(database.open, settings.retry_policy, deadline, "database")
            except PipelineError as error:
                database.down = error
            except Exception as error:
                database.down = bug(error)
            opened.set()
        opened.wait()
        while True:
            with lock:
                export = next(waiting, None)
            if export is None:
                return
            export.run(database, settings.retry_policy)

    workers = [
        threading.Thread(target=work, args=(number == 0,), name=f"export-{number}", daemon=True)
        for number in range(min(settings.query_workers, len(exports)))
    ]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        if not all(export.done for export in exports):
            deadline.stop("the run is over")
        for worker in workers:
            worker.join(timeout=STOP_GRACE_S)
        database.close()


@contextlib.contextmanager
def watchdog(deadline: Deadline, *sessions: DropFolders) -> Iterator[None]:
    """End a hung run: at the deadline break its SFTP connections, STOP_GRACE_S later the process.

    Every wait of the program has an end of its own; this is for the waits of others (a driver, a library, a disk).
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1):
            if deadline.left_s() > 0:
                continue
            log.error("the run's deadline has passed: ending it")
            deadline.stop(deadline.passed)
            for session in sessions:
                session.close()
            if not over.wait(STOP_GRACE_S):
                log.critical("exit code 4: the run did not end by itself %d s after its deadline", STOP_GRACE_S)
                logging.shutdown()
                os._exit(ExitCode.PARTIAL)
            return

    threading.Thread(target=watch, name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def new_exports(
    campaigns: Sequence[Campaign], folder: Path, start: datetime, used: Callable[[str], bool]
) -> list[Export]:
    """An export for each campaign, to a file in folder whose name was never used."""
    changed, exports = threading.Condition(), list[Export]()
    taken: set[str] = set()

    def is_used(name: str) -> bool:  # in any case, as Windows has it; a mailing's rejected rows need a name too
        return name.lower() in taken or rejected_name(name).lower() in taken or used(name)

    for campaign in campaigns:
        name = free_file_name(render_file_name(campaign.file_name, campaign.name, start), is_used)
        taken |= {name.lower(), rejected_name(name).lower()}
        exports.append(Export(campaign, folder / name, changed))
    return exports


def run(
    settings: Settings, campaigns: Sequence[Campaign], options: Options, clock: Clock, console: Console | None = None
) -> Report:
    """Deliver every campaign that is due in this slot. Raises PipelineError only before anything was exported."""
    deadline = Deadline(clock, settings.run_deadline_minutes)
    who = f"process {os.getpid()}, started {deadline.start:%Y-%m-%d %H:%M:%S}"
    who += " by the Task Scheduler" if options.scheduled else " by hand"
    wait_s = deadline.left_s() if options.scheduled else 0
    first, second = DropFolders(settings), DropFolders(settings)
    with (
        only_run(settings.output / "run.lock", who, clock, wait_s),
        contextlib.closing(Ledger(settings.ledger_path, clock)) as ledger,
        contextlib.closing(first),
        contextlib.closing(second),
        watchdog(deadline, first, second),
    ):
        dispatch = Dispatch(settings, options, deadline, ledger)
        courier, assistant = Courier(dispatch, first), Courier(dispatch, second)
        remove_old_files(settings, ledger, clock)
        chosen = choose(campaigns, options.only)
        try:
            courier.settle_leftovers({campaign.name: campaign for campaign in campaigns})
        except DeliveryError as error:
            dispatch.down = error  # nothing can be delivered: no query runs
        due = dispatch.due(chosen)
        exports = new_exports(due, settings.output, deadline.start, ledger.knows_file)
        for export in exports:
            dispatch.expect(export)
        with (
            exporting([] if dispatch.down else exports, settings, deadline),
            live_progress(console, exports, settings.language, dispatch),
        ):
            deliver_all(dispatch, courier, assistant)
        return report_now(deadline, [dispatch.outcomes[campaign.name] for campaign in chosen])


def deliver_all(dispatch: Dispatch, courier: Courier, assistant: Courier) -> None:
    """Every expected mailing to its outcome, also when the run is stopped by its deadline or by Ctrl+C."""
    error: PipelineError | None = None
    try:
        courier.work(assistant)
        courier.watch_pickups()
    except Stopped as found:
        error = found
    except KeyboardInterrupt:
        error = Stopped(BY_OPERATOR, "start the program again; it sends only what is missing")
        dispatch.deadline.stop(error.message)
    courier.finish(error)


@contextlib.contextmanager
def assistance(assistant: Courier, patience_s: float) -> Iterator[None]:
    """A second courier at work until the block ends; then it may end a rename that is under way, and no more."""
    over = threading.Event()
    thread = threading.Thread(target=assistant.assist, args=(over, patience_s), name="assistant", daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        assistant.deadline.stop(BY_OPERATOR)
        raise
    finally:
        over.set()
        thread.join(ASSIST_GRACE_S)
        assistant.drops.close()
        thread.join(ASSIST_GRACE_S)


def rehearse(
    settings: Settings, campaigns: Sequence[Campaign], options: Options, clock: Clock, console: Console | None = None
) -> Report:
    """The --dry-run: everything but SFTP and ledger; the CSVs go to output/dry-run."""
    deadline = Deadline(clock, settings.run_deadline_minutes)
    folder = settings.output / "dry-run"
    with local_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
    past: dict[str, list[int]] = {}
    exports = new_exports(choose(campaigns, options.only), folder, deadline.start, lambda _: False)
    if settings.ledger_path.exists():
        with contextlib.closing(Ledger(settings.ledger_path, clock, looks=True)) as ledger:
            past = {campaign.name: ledger.past_rows(campaign.name) for campaign in campaigns}
    outcomes = []
    with watchdog(deadline), exporting(exports, settings, deadline), live_progress(console, exports, settings.language):
        for export in exports:
            with export.changed:
                while not export.done:
                    export.changed.wait(0.5)
            objection = time_objection(export.campaign, deadline, options.ignore_hours)
            message = f"not at this hour: {objection[0]}" if objection else ""
            ready = dataclass_replace(base_outcome(export), verdict=Verdict.READY, message=message)
            outcomes.append(refusal(export, past.get(export.campaign.name, [])) or ready)
    return report_now(deadline, outcomes)


def remove_old_files(settings: Settings, ledger: Ledger, clock: Clock) -> None:
    """Delete local CSVs, which hold personal data, after RETENTION_DAYS; only files that this program wrote."""
    oldest = clock.now() - timedelta(days=settings.retention_days)
    stale: list[Path] = []
    for entry in ledger.entries("campaign <> '' AND changed < ?", oldest.isoformat()):
        for name in (entry.file, rejected_name(entry.file)):
            stale += [settings.output / name, settings.output / f"{name}.part"]
    for path in (settings.output / "dry-run").glob("*"):
        with contextlib.suppress(OSError):  # it may go at this moment
            is_mailing = path.name.lower().removesuffix(".part").endswith(MAILING_ENDINGS)
            stale += [path] if is_mailing and path.stat().st_mtime < oldest.timestamp() else []
    for path in stale:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: too old, but cannot be deleted: %s", path, error.strerror)


# ---------------------------------------------------------------------------------------------------------------------
# Check: looking without sending
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the --check list."""

    what: str
    message: str
    hint: str = ""
    exit_code: ExitCode = ExitCode.OK


def finding(what: str, action: Callable[[], str | None]) -> Finding:
    """What action says, or the error that it raised."""
    try:
        return Finding(what, action() or "ok")
    except PipelineError as error:
        return Finding(what, error.message, error.hint, error.exit_code)


def check_query(database: Database, campaign: Campaign) -> str:
    """Plan a campaign's query without running it, and compare its columns with what the dialer expects."""
    with database.session(campaign) as session:
        columns = session.columns(campaign)
        if objection := layout_objection(columns, campaign):
            raise Held(*objection)
        session.run(f"EXPLAIN {campaign.select.text}", campaign.source, campaign.select.line)
    return f"{len(columns)} columns" + (
        "" if campaign.columns else f", no 'columns:' line: {masked(';'.join(columns))}"
    )


def check_folder(drops: DropFolders, folder: PurePosixPath, staging: PurePosixPath | None) -> str:
    """Write, rename and remove a probe, under names that no dialer's pattern matches."""
    drops.check_folder(folder)
    first, second = temp_in(staging or folder), temp_in(folder)
    try:
        drops.send(first, [b"probe of mailing_pipeline --check; may be deleted\r\n"])
        drops.rename(first, second)
    finally:
        for probe in (first, second):
            with contextlib.suppress(DeliveryError):
                drops.remove(probe)
    return "exists, can write, can rename"


def check(settings: Settings, campaigns: Sequence[Campaign], clock: Clock) -> list[Finding]:
    """Everything that a run needs, one by one; nothing is sent, and nothing stays behind."""
    deadline = Deadline(clock, settings.run_deadline_minutes)
    found = [Finding("settings and queries", f"{len(campaigns)} campaigns")]
    found.append(finding("ledger", lambda: Ledger(settings.ledger_path, clock).close()))
    database, drops = Database(settings, deadline), DropFolders(settings)
    with contextlib.closing(database), contextlib.closing(drops), watchdog(deadline, drops):
        found.append(finding("database login", database.open))
        for campaign in campaigns if not found[-1].exit_code else ():
            found.append(finding(f"query {campaign.source}", functools.partial(check_query, database, campaign)))
        key = finding("SFTP host key", drops.seen_fingerprint)
        if not key.exit_code and not settings.sftp_host_key:
            hint = f"if the server's administrator confirms it, set SFTP_HOST_KEY={key.message.partition(' ')[0]}"
            key = Finding(key.what, f"the server shows {key.message}", hint, ExitCode.USAGE)
        found.append(key)
        if not key.exit_code:
            found.append(finding("SFTP login", drops.connect))
        for campaign in campaigns if not found[-1].exit_code else ():
            probe = functools.partial(check_folder, drops, campaign.folder, settings.sftp_staging_dir)
            found.append(finding(f"folder {campaign.folder}", probe))
    return found


def print_findings(findings: Sequence[Finding], console: Console, language: str) -> None:
    """The --check list."""
    for line in findings:
        mark, style = ("FAULT", "red") if line.exit_code else ("ok", "green")
        console.print(f"[{style}]{translate(mark, language):5}[/]", end=" ")
        told = f"{translate(line.what, language)}: {translate(line.message, language)}"
        tell(console, told, translate(line.hint, language))


def worst(findings: Sequence[Finding]) -> ExitCode:
    """The exit code of a --check."""
    codes = {line.exit_code for line in findings if line.exit_code}
    return codes.pop() if len(codes) == 1 else ExitCode.PARTIAL if codes else ExitCode.OK


# ---------------------------------------------------------------------------------------------------------------------
# Status: today's grid and two weeks of trends, for the terminal, a browser and monitoring systems
# ---------------------------------------------------------------------------------------------------------------------

PAGE_DAYS = 14
PROBLEMS_SHOWN = 10
OVERDUE_MINUTES = 20  # a slot that nothing came of is overdue so long after its start
OVERDUE = "The slot {} is overdue: nothing was delivered. Double-click run_pipeline.bat to run now"
WORKED = (State.DONE, State.DELIVERED, State.EMPTY)
FAULT = "fault"  # in a run's own entry: it ended before any campaign had an outcome


class Mark(Enum):
    """What became of a campaign in a slot; how terminal and page show it, the page in light and in dark."""

    DELIVERED = ("delivered", "✓", "+", "green", "#14532d", "#a5e0b2")
    EMPTY = ("empty", "○", "0", "cyan", "#0b5563", "#a0dbe6")
    HELD = ("held", "‖", "H", "yellow", "#6b4500", "#f5d67b")
    FAILED = ("failed", "✗", "X", "bold red", "#a10d0d", "#ffb0b0")
    NOT_TAKEN = ("not taken", "↯", "T", "bold yellow", "#8a3a00", "#ffc08a")  # by the dialer, or refused
    UNKNOWN = ("unknown", "?", "?", "bold magenta", "#6a1bb0", "#dcbcff")
    RUNNING = ("running", "▸", ">", "blue", "#0b4fa0", "#a9d0ff")
    MISSED = ("missed", "!", "!", "bold red", "#a10d0d", "#ffb0b0")
    COMING = ("still to come", "·", ".", "dim", "#57606a", "#a3abb5")
    NOT_DUE = ("not due", "–", "-", "dim", "#57606a", "#a3abb5")

    def __init__(self, word: str, sign: str, ascii_sign: str, style: str, light: str, dark: str) -> None:
        self.word, self.sign, self.ascii_sign, self.style = word, sign, ascii_sign, style
        self.light, self.dark = light, dark


@dataclass(frozen=True, slots=True)
class DayGrid:
    """Today: campaigns down, slots across. served: the latest slot that worked; overdue: one that should have."""

    now: datetime
    slots: tuple[str, ...]
    cells: Mapping[str, tuple[tuple[Mark, Entry | None], ...]]
    last_success: Entry | None
    served: str
    overdue: str

    @property
    def tally(self) -> dict[Mark, int]:
        """How often each mark occurs, in the order of Mark."""
        counts = Counter(mark for cells in self.cells.values() for mark, _ in cells)
        return {mark: counts[mark] for mark in Mark if counts[mark]}


def recent(ledger: Ledger, now: datetime) -> list[Entry]:
    """The ledger's entries of the last PAGE_DAYS, oldest first, the runs' own among them."""
    return ledger.entries("changed > ?", (now - timedelta(days=PAGE_DAYS)).isoformat())


def is_not_taken(pickup: str) -> bool:
    """Whether that is the pickup of a mailing that the dialer left or refused."""
    return pickup.startswith(("not", "refused"))


def is_trouble(entry: Entry) -> bool:
    """Whether an entry of the ledger needed a person."""
    if not entry.campaign:
        return entry.state is State.FAILED and entry.file == FAULT
    return entry.state in (State.HELD, State.FAILED, State.PUBLISHING) or is_not_taken(entry.pickup)


def mark_of(entry: Entry, now: datetime) -> Mark:
    """The mark of a ledger entry. What a killed run left behind counts as failed after an hour."""
    if entry.state in (State.STARTED, State.EXPORTED):
        return Mark.RUNNING if now - datetime.fromisoformat(entry.changed) < timedelta(hours=1) else Mark.FAILED
    if entry.state is State.PUBLISHING:
        return Mark.UNKNOWN
    return Mark.NOT_TAKEN if entry.state is State.DELIVERED and is_trouble(entry) else Mark[entry.state.name]


def last_due_slot(hours: Hours, now: datetime) -> str:
    """The latest slot of the last two weeks that should be done by now, or ''. The page's script does the same."""
    moments = (now - timedelta(minutes=OVERDUE_MINUTES, hours=n) for n in range(PAGE_DAYS * 24))
    return next((slot_of(moment) for moment in moments if hours.inside(moment.replace(minute=59))), "")


def day_grid(entries: Sequence[Entry], campaigns: Sequence[Campaign], hours: Hours, now: datetime) -> DayGrid:
    """Today's grid from the ledger's entries of the last PAGE_DAYS, oldest first, the runs' own among them.

    A past slot without an entry was missed only if the campaign has an earlier entry: what is new, or is run by
    another PC, has missed nothing. Slots outside the operating hours appear where something was sent in them.
    """
    today, current, due = f"{now:%Y-%m-%d}", slot_of(now), last_due_slot(hours, now)
    best: dict[tuple[str, str], Entry] = {}
    first: dict[str, str] = {}
    rank = {State.DELIVERED: 2, State.PUBLISHING: 1}  # what reached the dialer, then what may have, then the latest
    for entry in entries:
        first.setdefault(entry.campaign, entry.slot)
        other = best.setdefault((entry.campaign, entry.slot), entry)
        if rank.get(entry.state, 0) >= rank.get(other.state, 0):
            best[entry.campaign, entry.slot] = entry
    sent_today = [(name, slot) for name, slot in best if name and slot.startswith(today)]
    regular = {f"{today} {hour:02}:00" for hour in range(hours.starts[0].hour, hours.starts[1].hour + 1)}
    slots = tuple(sorted(regular | {slot for _, slot in sent_today}))
    own_hours = {campaign.name: campaign.hours for campaign in campaigns}

    def cell(name: str, slot: str) -> tuple[Mark, Entry | None]:
        if entry := best.get((name, slot)):
            return mark_of(entry, now), entry
        end = datetime.fromisoformat(slot).replace(minute=59)
        inside = name in own_hours and hours.inside(end) and own_hours[name].inside(end)
        if not inside or (slot < current and first.get(name, current) > slot):
            return Mark.NOT_DUE, None
        return Mark.MISSED if slot < current else Mark.COMING, None

    names = dict.fromkeys([*own_hours, *(name for name, _ in sent_today)])
    cells = {name: tuple(cell(name, slot) for slot in slots) for name in names}
    runs = [entry for entry in entries if entry.state is State.DONE]
    served = max((entry.slot for entry in entries if entry.state in WORKED), default="")
    return DayGrid(now, slots, cells, runs[-1] if runs else None, served, due if entries and served < due else "")


def status_json(grid: DayGrid) -> dict[str, Any]:
    """The grid for monitoring systems; its words are English in every language."""

    def told(mark: Mark, entry: Entry | None) -> dict[str, Any]:
        facts = ("rows", "changed", "message", "hint", "pickup")
        return {"state": mark.word} | ({key: getattr(entry, key) for key in facts} if entry else {})

    return {
        "now": grid.now.isoformat(timespec="seconds"),
        "last_successful_run": grid.last_success and grid.last_success.changed,
        "overdue_slot": grid.overdue or None,
        "tally": {mark.word: count for mark, count in grid.tally.items()},
        "campaigns": {
            name: {slot: told(*cell) for slot, cell in zip(grid.slots, cells, strict=True)}
            for name, cells in grid.cells.items()
        },
    }


def number(value: float, language: str) -> str:
    """4812 as 4,812 or 4.812."""
    return f"{value:,.0f}".replace(",", "." if language == "pt" else ",")


def short_number(value: float, language: str) -> str:
    """4812 as 4.8k, 48120 as 48k, 1481200 as 1.5M: four characters at the most."""
    unit, scale = ("", 1) if value < 1000 else ("k", 1e3) if value < 999_500 else ("M", 1e6)
    text = f"{value / scale:.1f}" if unit and value / scale < 9.95 else f"{value / scale:.0f}"
    return text.replace(".", "," if language == "pt" else ".") + unit


def local_time(iso: str, language: str) -> str:
    """A time of the ledger, for a person."""
    return translate(f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M}", language)


def headline(grid: DayGrid, language: str) -> tuple[str, str]:
    """When the last successful run was, and what is overdue ('' if nothing is), in words."""
    last, late = grid.last_success, grid.overdue
    text = f"Last successful run: {local_time(last.changed, language)}" if last else "No successful run yet"
    told = translate(OVERDUE, language).format(local_time(late, language)) if late else ""
    return translate(text, language), told


def print_status(grid: DayGrid, console: Console, language: str) -> None:
    """The grid in 80 columns, what its signs mean, and the last successful run."""
    from rich.table import Table
    from rich.text import Text

    def sign(mark: Mark, entry: Entry | None) -> str:
        if entry and mark is Mark.DELIVERED:
            return short_number(entry.rows, language)
        return mark.sign if console.encoding.startswith("utf") else mark.ascii_sign

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(f"{grid.now:%d/%m}", overflow="fold")
    for slot in grid.slots:
        table.add_column(slot[11:13], justify="right", no_wrap=True)
    for name, cells in grid.cells.items():
        table.add_row(name, *(Text(sign(mark, entry), mark.style) for mark, entry in cells))
    console.print(table)
    legend = (f"{sign(mark, None)} {translate(mark.word, language)} {count}" for mark, count in grid.tally.items())
    last_run, overdue = headline(grid, language)
    console.print("\n" + "   ".join(legend), last_run, sep="\n", markup=False, highlight=False)
    if overdue:
        console.print(overdue, style="bold red", highlight=False)


# light-dark() and color-mix(): where an old browser lacks them, the page is plain but whole.
PAGE_STYLE = """
:root{color-scheme:light dark;--bg:light-dark(#fff,#14171a);--text:light-dark(#1b1f24,#e4e8ec);
 --soft:light-dark(#57606a,#a3abb5);--line:light-dark(#d0d7de,#3a4149)}
*{box-sizing:border-box}ul{list-style:none;padding:0}small{font-size:.8rem}.soft{color:var(--soft)}p{margin:.3rem 0}
body{max-width:84rem;margin:auto;padding:1rem;background:var(--bg);color:var(--text);overflow-wrap:anywhere;
 font:15px/1.45 system-ui,sans-serif}
h1,h2{font-size:1.35rem;margin:0}h2{font-size:1.05rem;margin:1.8rem 0 .5rem}
#run{border:1px solid;border-left-width:.4rem;border-radius:.4rem;padding:.6rem .8rem;margin:.6rem 0;font-weight:600}
.box{overflow-x:auto;border:1px solid var(--line);border-radius:.4rem}
table{border-spacing:0;width:100%;font-size:.85rem;line-height:1.25;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .4rem;border:solid var(--line);border-width:0 0 1px 1px;text-align:center;white-space:nowrap}
tr:last-child>*{border-bottom:0}thead th{border-bottom:1px solid var(--line)!important}
th:first-child{position:sticky;left:0;border-left:0;background:var(--bg);text-align:left;white-space:normal;
 min-width:clamp(6.5rem,30vw,10.5rem)}
.signs{display:flex;flex-wrap:wrap;gap:.4rem}.chip{padding:.05rem .5rem;border-radius:1rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));gap:.6rem}
.cards li,.problems li{border:1px solid var(--line);border-radius:.4rem;padding:.5rem .7rem}.problems li{margin:.5rem 0}
svg{display:block;width:100%;height:2.2rem;fill:none;stroke:var(--soft)}.rows{stroke-width:1.8}
path{vector-effect:non-scaling-stroke;stroke-linecap:round}path.DELIVERED{stroke:currentColor}
td,.chip{background:color-mix(in srgb,currentColor 13%,var(--bg))}td.COMING{background:none}
""" + "".join(f".{mark.name}{{color:light-dark({mark.light},{mark.dark})}}\n" for mark in Mark)

# The page is static: the reader's clock tells how old it is, and whether a slot is overdue by now.
PAGE_SCRIPT = """
const get = id => document.getElementById(id), lang = document.documentElement.lang;
const two = n => String(n).padStart(2, "0");
const [time, served, words, days, holidays, first, last, grace] = JSON.parse(get("run").dataset.facts);
const day = t => `${t.getFullYear()}-${two(t.getMonth() + 1)}-${two(t.getDate())}`;
const inside = t => days.includes((t.getDay() + 6) % 7) && !holidays.includes(day(t)) && t.getHours() >= first &&
  t.getHours() <= last;
const age = (Date.now() - new Date(time)) / 6e4, unit = age < 90 ? "minute" : age < 2880 ? "hour" : "day";
const ago = Math.round(-age / {minute: 1, hour: 60, day: 1440}[unit]);
get("ago").textContent = time && ` (${new Intl.RelativeTimeFormat(lang).format(ago, unit)})`;
let due = new Date(Date.now() - grace * 6e4);
for (let n = 0; !inside(due) && n < 336; n++) due = new Date(due - 36e5);
const slot = `${day(due)} ${two(due.getHours())}:00`, overdue = served !== null && inside(due) && served < slot;
get("run").className = overdue ? "FAILED" : time ? "DELIVERED" : "COMING";
const told = lang === "en" ? slot : due.toLocaleDateString(lang) + slot.slice(10);
get("late").textContent = overdue ? words.replace("{}", told) : "";
setTimeout(() => location.reload(), 3e5);
"""


def sparkline(name: str, rows: Mapping[str, int], now: datetime, language: str) -> str:
    """A campaign's rows by slot over two weeks as an SVG line, broken where nothing was delivered; median dashed."""
    if not rows:
        return f'<br><small class="soft">{escape(translate("nothing delivered in two weeks", language))}</small>'
    top, median, hours = max(1, *rows.values()), statistics.median(rows.values()), [int(slot[11:13]) for slot in rows]
    low, width = min(hours), max(hours) - min(hours) + 2
    path, last_x = "", -2
    for (slot, count), hour in zip(rows.items(), hours, strict=True):
        days_ago = (now.date() - datetime.fromisoformat(slot).date()).days
        x, y = (PAGE_DAYS - 1 - days_ago) * width + hour - low, round(40 - 38 * count / top)
        path += f"L{x} {y}" if x == last_x + 1 else f"M{x} {y}h0"
        last_x = x
    figures = f"latest {number(count, language)}, median {number(median, language)}"
    told = escape(translate(figures, language))
    return (
        f'<br><small class="soft">{told}</small><svg role="img" viewBox="-1 0 {PAGE_DAYS * width} 42" '
        f'preserveAspectRatio="none"><title>{escape(name)}: {told}</title><path stroke-dasharray="3 4" '
        f'd="M0 {round(40 - 38 * median / top)}H{PAGE_DAYS * width}"/>'
        f'<path class="rows DELIVERED" d="{path}"/></svg>'
    )


def status_page(
    entries: Sequence[Entry], campaigns: Sequence[Campaign], hours: Hours, now: datetime, language: str
) -> str:
    """One self-contained HTML page from the ledger's entries of the last PAGE_DAYS, oldest first. Counts and names."""
    grid = day_grid(entries, campaigns, hours, now)

    def say(text: str) -> str:
        return escape(translate(text, language))

    def chip(mark: Mark, more: str = "") -> str:
        return f'<li><b class="chip {mark.name}">{mark.sign} {say(mark.word)}{more}</b>'

    def cell(mark: Mark, entry: Entry | None) -> str:
        time = f"{datetime.fromisoformat(entry.changed):%H:%M}" if entry else ""
        sent = f" {number(entry.rows, language)}" if entry and entry.state is State.DELIVERED else ""
        word = say(mark.word)
        below = time if mark is Mark.DELIVERED else "" if mark in (Mark.COMING, Mark.NOT_DUE) else word
        small = f"<br><small>{below}</small>" if below else ""
        return f'<td class="{mark.name}" title="{word} {time}"><b>{mark.sign}{sent}</b>{small}'

    def problem(entry: Entry) -> str:
        again = say("works again") if worked.get(entry.campaign, 0) > entry.id else ""
        hint = f"<p>→ {say(entry.hint)}</p>" if entry.hint else ""
        return (
            f"{chip(mark_of(entry, now))} <b>{escape(entry.campaign) or say('the whole run')}</b> "
            f'<small class="soft">{local_time(entry.changed, language)} {again}</small>'
            f"<p>{say(entry.message or entry.pickup)}</p>{hint}"
        )

    worked = {entry.campaign: entry.id for entry in entries if entry.state in WORKED and not is_trouble(entry)}
    trends: dict[str, dict[str, int]] = {name: {} for name in grid.cells}
    for entry in entries:
        if entry.state is State.DELIVERED and entry.campaign in trends:
            trends[entry.campaign][entry.slot] = entry.rows
    heads = "".join(f'<th scope="col">{slot[11:]}' for slot in grid.slots)
    breaking = {name: escape(name).replace("_", "_<wbr>") for name in grid.cells}
    lines = (f'<tr><th scope="row">{breaking[n]}{"".join(cell(*c) for c in row)}\n' for n, row in grid.cells.items())
    cards = (f"<li><b>{escape(name)}</b>{sparkline(name, rows, now, language)}\n" for name, rows in trends.items())
    problems = [problem(entry) for entry in entries if is_trouble(entry)][: -PROBLEMS_SHOWN - 1 : -1]
    last, served, (last_run, overdue) = grid.last_success, grid.served if entries else None, headline(grid, language)
    calendar = [sorted(hours.days), sorted(map(str, hours.holidays)), *(start.hour for start in hours.starts)]
    facts = json.dumps([last and last.changed, served, translate(OVERDUE, language), *calendar, OVERDUE_MINUTES])
    return f"""<!DOCTYPE html>
<html lang="{"pt-BR" if language == "pt" else "en"}"><head><meta charset="utf-8"><title>{say("Mailings")}</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">
<style>{PAGE_STYLE}</style></head><body><header><h1>{say("Mailings")}</h1>
<p id="run" class="{"FAILED" if overdue else "DELIVERED" if last else "COMING"}" data-facts="{escape(facts)}">
{escape(last_run)}<span id="ago"></span><br>
<span id="late">{escape(overdue)}</span></p></header><main>
<h2>{say("Today")}, {now:%d/%m}</h2>
<ul class="signs">{"".join(chip(mark, f" {count}") for mark, count in grid.tally.items())}</ul>
<div class="box" tabindex="0" role="region" aria-label="{say("Today")}"><table>
<thead><tr><th scope="col">{say("campaign")}{heads}</thead><tbody>{"".join(lines)}</tbody></table></div>
<h2>{say("Contacts delivered in two weeks")}</h2><ul class="cards">{"".join(cards)}</ul>
<h2>{say("Latest problems")}</h2>
<ul class="problems">{"".join(problems) or "<li>" + say("none in two weeks")}</ul>
</main><p class="soft">{say("Generated")} {local_time(now.isoformat(), language)} · {PROGRAM} {__version__}</p>
<script>{PAGE_SCRIPT}</script></body></html>
"""


# ---------------------------------------------------------------------------------------------------------------------
# Aftermath: the page, alerts and the heartbeat, for those who are not looking. Nothing here can fail a run
# ---------------------------------------------------------------------------------------------------------------------

ALERT_AGAIN = timedelta(hours=4)  # the same trouble is told when it begins, then this often, then when it is over
TELL_TIMEOUT_S = 20


def alert_lines(
    before: Sequence[Entry], troubles: Mapping[str, tuple[str, str]], good: Iterable[str], now: datetime
) -> tuple[list[str], list[str]]:
    """Which troubles (message and hint by campaign, '' for the whole run) are told now, and what works again.

    before: the ledger's entries from before this run. A trouble is told when it begins and once in every ALERT_AGAIN.
    """
    told, recovered = [], []
    for name, (message, hint) in troubles.items():
        past = [entry for entry in before if entry.campaign == name]
        streak = list(itertools.takewhile(is_trouble, reversed(past)))
        if streak:
            began, last = (datetime.fromisoformat(streak[at].changed) for at in (-1, 0))
            if (now - began) // ALERT_AGAIN == (last - began) // ALERT_AGAIN:
                continue
        told.append(f"{name}: {message}" if name else message)
        told += [f"    -> {hint}"] if hint else []
    for name in good:
        past = [entry for entry in before if entry.campaign == name]
        if past and is_trouble(past[-1]):
            recovered.append(f"{name}: works again" if name else "the program works again")
    return told, recovered


def missed_slots(before: Sequence[Entry], hours: Hours, now: datetime) -> list[str]:
    """The slots since the last run in which one should have started: the PC was off, or the task disabled."""
    runs = [entry for entry in before if not entry.campaign]
    missed = []
    if runs:
        slot = datetime.fromisoformat(runs[-1].slot) + timedelta(hours=1)
        while f"{slot:%Y-%m-%d %H:%M}" < slot_of(now):
            missed += [f"{slot:%d/%m %H:%M}"] if hours.inside(slot.replace(minute=59)) else []
            slot += timedelta(hours=1)
    return missed


def send_alert(urls: str, title: str, body: str) -> None:
    """One message to every apprise URL; waits TELL_TIMEOUT_S at the most, and logs what went wrong without the URLs."""

    def send() -> None:
        try:
            import apprise

            logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
            done.append(bool(apprise.Apprise(urls.split()).notify(title=title, body=body)))
        except ImportError:
            log.error("ALERT_URLS is set, but the package apprise is missing: python -m pip install apprise")
        except Exception as error:
            bug(error)

    done: list[bool] = []
    thread = threading.Thread(target=send, name="alert", daemon=True)
    thread.start()
    thread.join(TELL_TIMEOUT_S)
    if not any(done):
        log.error("the alert could not be sent: check ALERT_URLS")


def fetch_heartbeat(url: str) -> None:
    """Tell a monitor that this run ended well."""
    import http.client
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=TELL_TIMEOUT_S):
            pass
    except (OSError, ValueError, http.client.HTTPException) as error:  # whose text may quote the URL
        log.warning("HEARTBEAT_URL could not be fetched: %s", type(error).__name__)


def aftermath(settings: Settings, campaigns: Sequence[Campaign], end: Report | PipelineError, clock: Clock) -> None:
    """After a run, however it ended: its own entry in the ledger, the page, alerts, the heartbeat."""
    now = clock.now()
    start = end.start if isinstance(end, Report) else now
    before: list[Entry] = []
    try:
        with contextlib.closing(Ledger(settings.ledger_path, clock)) as ledger:
            before = [entry for entry in recent(ledger, now) if entry.changed <= start.isoformat()]
            note_run(ledger, end, start)
            write_page(settings, status_page(recent(ledger, now), campaigns, settings.hours, now, settings.language))
    except PipelineError as error:
        log.warning("the status page was not written: %s", error.message)
    except Exception as error:
        bug(error)
    alert(settings, end, before, now)
    if settings.heartbeat_url and end.exit_code == ExitCode.OK:
        fetch_heartbeat(settings.heartbeat_url)


def note_run(ledger: Ledger, end: Report | PipelineError, start: datetime) -> None:
    """The run's own entry in the ledger, whose campaign is empty."""
    message, hint, file = (end.totals, "", "") if isinstance(end, Report) else (end.message, end.hint, FAULT)
    entry_id = ledger.start(slot_of(start), "", PurePosixPath(), file)
    ledger.update(entry_id, state=State.FAILED if end.exit_code else State.DONE, message=message, hint=hint)


def write_page(settings: Settings, page: str) -> None:
    """The status page, whole or not at all."""
    file = LocalFile(settings.output / "status.html")
    file.write(page.encode())
    file.finish()
    file.keep()


def alert(settings: Settings, end: Report | PipelineError, before: Sequence[Entry], now: datetime) -> None:
    """Tell of trouble that begins, goes on or is over; before: the ledger's entries from before this run."""
    told, recovered = alert_lines(before, *troubles_of(end), now)
    if missed := missed_slots(before, settings.hours, now):
        told.append(f"no run in the slots {', '.join(missed)}")
        log.warning("%s", told[-1])
    if not settings.alert_urls or not (told or recovered):
        return
    title = "mailings need a person" if told else "mailings work again"
    told += ["the next hourly run tries again by itself; nothing is ever sent twice"] if told else []
    body = "\n".join(translate(line, settings.language) for line in told + recovered)
    send_alert(settings.alert_urls, f"{PROGRAM}: {translate(title, settings.language)}", body)


def troubles_of(end: Report | PipelineError) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """What needs a person after this run (message and hint by campaign), and which campaigns went well."""
    if isinstance(end, PipelineError):
        return {"": (end.message, end.hint)}, []
    bad = [o for o in end.outcomes if o.exit_code or is_not_taken(o.pickup)]
    good = [o.campaign for o in end.outcomes if o not in bad and o.verdict in (Verdict.DELIVERED, Verdict.EMPTY)]
    return {o.campaign: (f"{o.verdict}: {o.message}", o.hint) for o in bad}, ["", *good]


# ---------------------------------------------------------------------------------------------------------------------
# Phrases: what an operator meets, in Portuguese
# ---------------------------------------------------------------------------------------------------------------------

PORTUGUESE: dict[str, str] = {
    # How things are put together; the more words of its own a form has, the earlier it is tried
    "{}: {}": "{}: {}",
    "    -> {}": "    -> {}",
    "line {}": "linha {}",
    "exit code {}: {}": "código de saída {}: {}",
    "{} mon,tue,wed,thu,fri": "{} de segunda a sexta",
    "{} mon,tue,wed,thu,fri,sat": "{} de segunda a sábado",
    "{} mon,tue,wed,thu,fri,sat,sun": "{} todos os dias",
    # How a run ended
    "everything due was delivered, already delivered, or empty where empty is allowed": (
        "tudo o que estava previsto foi entregue, já estava entregue ou veio vazio onde isso é permitido"
    ),
    "a bug (traceback in the log)": "um erro do programa (detalhes no log)",
    "settings, queries or usage wrong": "configuração, consultas ou modo de uso com erro",
    "another run is active": "outra execução está em andamento",
    "some campaigns failed or were held": "algumas campanhas falharam ou foram retidas",
    "database: nothing could be exported": "banco de dados: nada pôde ser exportado",
    "SFTP: nothing could be delivered": "SFTP: nada pôde ser entregue",
    "manual run outside the hours": "execução manual fora do horário",
    # Time
    "the run was stopped": "a execução foi interrompida",
    "the run is over": "a execução terminou",
    "stopped by the operator": "execução interrompida pelo operador",
    "start the program again; it sends only what is missing": "inicie o programa de novo; ele envia só o que falta",
    "the next run starts afresh; nothing old is sent": "a próxima execução começa do zero; nada antigo é enviado",
    "the run's deadline of {} minutes has passed": "o prazo de {} minutos da execução se esgotou",
    "see in the log what took so long; RUN_DEADLINE_MINUTES is the limit": (
        "veja no log o que demorou tanto; RUN_DEADLINE_MINUTES é o limite"
    ),
    "{} is outside the campaign's hours {}": "{} está fora do horário da campanha: {}",
    "{} is outside the operating hours {}": "{} está fora do horário de funcionamento: {}",
    "nothing to do: it is not sent late": "nada a fazer: o mailing não é enviado com atraso",
    "wait, or use --ignore-hours if you really want to start calls now": (
        "espere, ou use --ignore-hours se quiser mesmo iniciar as chamadas agora"
    ),
    # Settings
    "must be a whole number from {} to {}": "deve ser um número inteiro de {} a {}",
    "must be one of: {}": "deve ser um destes valores: {}",
    r"must be one character such as ; or , or | or \t": r"deve ser um caractere como ; ou , ou | ou \t",
    "must be days such as mon-sat or mon,wed,fri": "deve ter dias como mon-sat ou mon,wed,fri (em inglês)",
    "must name its days from Monday to Sunday, such as mon-sat": (
        "deve citar os dias na ordem de segunda a domingo, como mon-sat (em inglês)"
    ),
    "must be hours such as 08:00-20:00": "deve ser um horário como 08:00-20:00",
    "must begin before it ends, such as 08:00-20:00": "deve começar antes de terminar, como 08:00-20:00",
    "must be dates such as 2026-12-25,2027-01-01": "deve ter datas como 2026-12-25,2027-01-01",
    "must be a path with / such as /entrada/cobranca_30d, without .. and without a backslash": (
        "deve ser um caminho com / como /entrada/cobranca_30d, sem .. e sem barra invertida"
    ),
    "must give a legal file name, such as {} (no {}, at most 200 characters)": (
        "deve resultar em um nome de arquivo válido, como {} (sem {}, no máximo 200 caracteres)"
    ),
    "gives {}, which Windows takes for a device; put mailing_ before it": (
        "resulta em {}, que o Windows toma por um dispositivo; ponha mailing_ na frente"
    ),
    "must end in .csv or .txt": "deve terminar em .csv ou .txt",
    "must hold {campaign} or the hour (%H), so that two mailings do not share a name": (
        "deve conter {{campaign}} ou a hora (%H), para que dois mailings não tenham o mesmo nome"
    ),
    "is not the path you wrote: quotes change a backslash; write it without quotes, or with /": (
        "não é o caminho que você escreveu: aspas alteram a barra invertida; escreva sem aspas, ou com /"
    ),
    "must look like SHA256: and 43 characters; --check prints the one it sees": (
        "deve ser SHA256: e mais 43 caracteres; --check mostra a que o servidor apresenta"
    ),
    "unknown setting": "configuração desconhecida",
    "{}; did you mean {}?": "{}; você quis dizer {}?",
    "{}: missing": "{}: não definido",
    "{}: missing; run with --check to see the server's fingerprint": (
        "{}: não definido; execute com --check para ver a impressão digital do servidor"
    ),
    "set one of the two": "defina um dos dois",
    "set twice": "definido duas vezes",
    "not UTF-8; save the file as UTF-8 in the editor": "não está em UTF-8; salve o arquivo como UTF-8 no editor",
    "not of the form KEY=value": "não está na forma CHAVE=valor",
    "what follows ' #' is a comment; put the value between single quotes": (
        "o que vem depois de ' #' é comentário; ponha o valor entre aspas simples"
    ),
    "not found; copy config.env.example to config.env and fill it in": (
        "não encontrado; copie config.env.example para config.env e preencha"
    ),
    "cannot be read: {}": "não pode ser lido: {}",
    "{}: cannot be written: {}; make LOG_DIR writable": (
        "{}: não é possível gravar: {}; permita a gravação em LOG_DIR"
    ),
    # Query files
    "must have only a-z, 0-9 and _": "deve ter apenas a-z, 0-9 e _",
    "must be column names separated by ; or ,": "deve ter nomes de colunas separados por ; ou ,",
    "must be a percentage such as 70%": "deve ser uma porcentagem como 70%",
    "this comment does not end": "este comentário não termina",
    "this quote does not end": "estas aspas não se fecham",
    "psql's backslash commands are not SQL; remove it": ("os comandos do psql com barra invertida não são SQL; remova"),
    "no SQL statement; the last statement must be the SELECT of the mailing": (
        "nenhum comando SQL; o último comando deve ser o SELECT do mailing"
    ),
    "remove it; the program opens and ends the transaction itself": (
        "remova; o próprio programa abre e encerra a transação"
    ),
    "remove it and leave the SELECT; the program copies the result itself": (
        "remova e deixe o SELECT; o próprio programa copia o resultado"
    ),
    "the last statement must return the mailing's rows (SELECT …)": (
        "o último comando deve retornar as linhas do mailing (SELECT …)"
    ),
    "must stand above the first SQL line, or it has no effect": (
        "deve ficar acima da primeira linha de SQL, ou não tem efeito"
    ),
    "{}: unknown; did you mean {}?": "{}: chave desconhecida; você quis dizer {}?",
    "given twice": "aparece duas vezes",
    "has no value": "está sem valor",
    "the campaign's name '{}' {}; rename the file or add '-- campaign: name'": (
        "o nome da campanha '{}' {}; renomeie o arquivo ou acrescente '-- campaign: nome'"
    ),
    "its file name {}": "o nome do arquivo {}",
    "{} is not one of columns:": "{} não está em columns:",
    "the name {} is used by {} too; each needs its own": ("o nome {} já é usado por {}; cada campanha precisa do seu"),
    "the folder {} is used by {} too; each needs its own": (
        "a pasta {} já é usada por {}; cada campanha precisa da sua"
    ),
    "no .sql file; put one query per campaign there (QUERIES_DIR)": (
        "nenhum arquivo .sql; ponha aqui uma consulta por campanha (QUERIES_DIR)"
    ),
    "--only {}: no such campaign; known: {}": "--only {}: campanha inexistente; as conhecidas são: {}",
    # Database
    "database: {}": "banco de dados: {}",
    "the connection to the database was lost": "a conexão com o banco de dados foi perdida",
    "the database fell silent": "o banco de dados parou de responder",
    "the shared snapshot was lost with its connection; a new one is taken": (
        "o snapshot comum se perdeu com a conexão; um novo é criado"
    ),
    "ask the database administrator": "fale com o administrador do banco de dados",
    "it is tried again by itself; if it stays so, ask the database administrator": (
        "a tentativa se repete sozinha; se continuar assim, fale com o administrador do banco de dados"
    ),
    "check PGUSER and PGPASSWORD (or .pgpass)": "confira PGUSER e PGPASSWORD (ou .pgpass)",
    "check PGDATABASE": "confira PGDATABASE",
    "check PGUSER": "confira PGUSER",
    "ask the database administrator to let this PC in (pg_hba.conf)": (
        "peça ao administrador do banco de dados que autorize este PC (pg_hba.conf)"
    ),
    "check the PG… settings in config.env": "confira as configurações PG… em config.env",
    "check PGHOST, PGPORT and the network; is PostgreSQL running?": (
        "confira PGHOST, PGPORT e a rede; o PostgreSQL está no ar?"
    ),
    "check PGUSER, PGPASSWORD and PGDATABASE": "confira PGUSER, PGPASSWORD e PGDATABASE",
    "another session locks a table of this query; ask who changes it at this hour": (
        "outra sessão bloqueia uma tabela desta consulta; veja quem a altera neste horário"
    ),
    "the query took too long: see its plan, or raise '-- timeout:' (seconds)": (
        "a consulta demorou demais: veja o plano de execução, ou aumente '-- timeout:' (segundos)"
    ),
    "the query writes; if it must (temp tables), add '-- read_only: no'": (
        "a consulta grava dados; se for preciso (tabelas temporárias), acrescente '-- read_only: no'"
    ),
    "ask for SELECT on that table for this PGUSER": "peça permissão de SELECT nessa tabela para este PGUSER",
    "correct the query; --check tries it without sending": "corrija a consulta; --check a testa sem enviar nada",
    "a value does not fit; run the query in an SQL tool (values are not logged)": (
        "há um valor que não cabe; execute a consulta em uma ferramenta SQL (o log não guarda valores)"
    ),
    "run the query in an SQL tool to see more; ask the database administrator": (
        "execute a consulta em uma ferramenta SQL para ver mais; fale com o administrador do banco de dados"
    ),
    "check the network, and whether PostgreSQL was restarted": ("confira a rede, e se o PostgreSQL foi reiniciado"),
    "the server neither answers nor ends the query; ask the database administrator": (
        "o servidor não responde nem encerra a consulta; fale com o administrador do banco de dados"
    ),
    "free space on this PC's disk, and close programs that hold the file open": (
        "libere espaço no disco deste PC, e feche os programas que mantêm o arquivo aberto"
    ),
    "internal error ({})": "erro interno ({})",
    "send the log of today to the developer": "envie o log de hoje ao desenvolvedor",
    # Guards
    "check the query and the data; if the number is right, change the guard in the query file": (
        "confira a consulta e os dados; se o número estiver certo, ajuste o limite no arquivo da consulta"
    ),
    "correct the query's column names, or its 'columns:' line if the dialer's layout really changed": (
        "corrija os nomes das colunas na consulta, ou a linha 'columns:' se o layout do discador mudou mesmo"
    ),
    "the query returns no columns": "a consulta não retorna nenhuma coluna",
    "column {} comes twice": "a coluna {} aparece duas vezes",
    "the columns changed: {}": "as colunas mudaram: {}",
    "missing {}": "falta {}",
    "not expected {}": "não prevista: {}",
    "missing {}; not expected {}": "falta {}; não prevista: {}",
    "another order: {}": "outra ordem: {}",
    "phones: or unique: names the column {}, which the query does not return": (
        "phones: ou unique: cita a coluna {}, que a consulta não retorna"
    ),
    "{} contacts, fewer than min_rows {}": "{} contatos, menos que min_rows {}",
    "more than max_rows {} contacts": "mais que max_rows {} contatos",
    "{} contacts, {} below the usual {} (max_drop {}%)": "{} contatos, {} abaixo dos {} habituais (max_drop {}%)",
    # SFTP
    "check SFTP_HOST, SFTP_PORT and the network; is the SFTP server running?": (
        "confira SFTP_HOST, SFTP_PORT e a rede; o servidor SFTP está no ar?"
    ),
    "see whether the server's disk is full or its quota used up": (
        "veja se o disco do servidor está cheio ou a cota esgotada"
    ),
    "the server offers only outdated algorithms (SHA-1); its administrator must update it": (
        "o servidor só oferece algoritmos ultrapassados (SHA-1); o administrador precisa atualizá-lo"
    ),
    "check SFTP_USER and SFTP_PASSWORD or SFTP_KEY_FILE": "confira SFTP_USER e SFTP_PASSWORD ou SFTP_KEY_FILE",
    "check the network, then SFTP_USER and SFTP_PASSWORD: some servers hang up on a wrong password": (
        "confira a rede, depois SFTP_USER e SFTP_PASSWORD: há servidores que desligam quando a senha está errada"
    ),
    "create the folder on the server, or correct '-- folder:'": "crie a pasta no servidor, ou corrija '-- folder:'",
    "ask the server's administrator for write access to the folder": (
        "peça ao administrador do servidor permissão de gravação na pasta"
    ),
    "the server lacks this operation": "o servidor não oferece esta operação",
    "asking for the host key": "leitura da chave do servidor",
    "looking for {}": "busca por {}",
    "drop folder {}": "pasta de entrega {}",
    "creating {}": "criação de {}",
    "writing {}": "gravação de {}",
    "reading {} back": "releitura de {} no servidor",
    "renaming {} to {}": "troca do nome de {} para {}",
    "removing {}": "remoção de {}",
    "is not a folder": "não é uma pasta",
    "correct '-- folder:' in the query file": "corrija '-- folder:' no arquivo da consulta",
    "{} bytes sent, {} arrived": "{} bytes enviados, {} recebidos",
    "{} of {} bytes sent": "{} de {} bytes enviados",
    "what arrived is not what was sent (SHA-256)": "o que chegou não é o que foi enviado (SHA-256)",
    "SFTP: {} shows another host key than SFTP_HOST_KEY: {} ({})": (
        "SFTP: {} apresenta uma chave diferente de SFTP_HOST_KEY: {} ({})"
    ),
    "do not go on: ask the server's administrator whether the key was changed; no password was sent": (
        "não prossiga: pergunte ao administrador do servidor se a chave foi trocada; nenhuma senha foi enviada"
    ),
    "not found": "não encontrado",
    "correct SFTP_KEY_FILE": "corrija SFTP_KEY_FILE",
    "let this user read the file": "permita que este usuário leia o arquivo",
    "the passphrase does not open it": "a senha da chave não a abre",
    "is no private key that paramiko knows": "não é uma chave privada que o paramiko conheça",
    "check SFTP_KEY_PASSPHRASE": "confira SFTP_KEY_PASSPHRASE",
    "make one with: ssh-keygen -t ed25519": "crie uma com: ssh-keygen -t ed25519",
    # Ledger and lock
    (
        "{}: the ledger is gone, but {} holds mailings ({} …): what this slot has delivered is unknown. "
        "Restore the file; or, to begin a new one, move those CSVs elsewhere"
    ): (
        "{}: o registro de entregas sumiu, mas {} contém mailings ({} …): não se sabe o que este horário já entregou. "
        "Restaure o arquivo; ou, para começar um novo, mova esses CSVs para outro lugar"
    ),
    (
        "{}: the ledger cannot be used ({}); nothing was sent. Free the disk, make the file writable and close other "
        "programs that hold it; if it is damaged, restore it or move it away with the CSVs beside it"
    ): (
        "{}: o registro de entregas não pode ser usado ({}); nada foi enviado. Libere espaço no disco, permita a "
        "gravação do arquivo e feche outros programas que o usem; se estiver danificado, restaure-o ou mova-o dali com "
        "os CSVs ao lado dele"
    ),
    "free the disk, and close other programs that hold the ledger": (
        "libere espaço no disco, e feche outros programas que usem o registro de entregas"
    ),
    "the lock cannot be used: {}; {}": "a trava não pode ser usada: {}; {}",
    "make OUTPUT_DIR writable, or delete this file if it is damaged": (
        "permita a gravação em OUTPUT_DIR, ou apague este arquivo se estiver danificado"
    ),
    "another run is active: {}": "outra execução está em andamento: {}",
    "another run": "outra execução",
    "process {}, started {}": "processo {}, iniciado em {}",
    "{} by hand": "{} manualmente",
    "{} by the Task Scheduler": "{} pelo Agendador de Tarefas",
    "wait until it has ended; it delivers by itself": "espere até ela terminar; ela faz a entrega sozinha",
    # Delivery
    "the run was interrupted before publishing": "a execução foi interrompida antes da publicação",
    "not published: {}": "não publicado: {}",
    "its campaign is gone": "a campanha não existe mais",
    "its slot {} is over": "o horário dele, {}, já passou",
    "runs {}": "horário da campanha: {}",
    "somebody else puts files there, or the dialer does not take them; nothing was overwritten": (
        "alguém mais põe arquivos lá, ou o discador não os coleta; nada foi sobrescrito"
    ),
    "{} is already there": "{} já está lá",
    "the server does not tell what became of this slot's mailing": (
        "o servidor não informa o que aconteceu com o mailing deste horário"
    ),
    "the next run looks whether the dialer got it, and never sends it twice": (
        "a próxima execução verifica se o discador o recebeu, e nunca o envia duas vezes"
    ),
    "{} characters are not in {} and became '?'": "{} caracteres não existem em {} e viraram '?'",
    "the dialer has not taken the previous mailing {}": "o discador ainda não coletou o mailing anterior {}",
    "picked up at {}": "coletado às {}",
    "not picked up within {} s": "não coletado em {} s",
    "not known whether it was picked up: {}": "não se sabe se foi coletado: {}",
    "it was being withdrawn when the connection failed": "estava sendo retirado quando a conexão falhou",
    "refused by the dialer": "recusado pelo discador",
    "see in the dialer why; the file is complete, and is not sent again": (
        "veja o motivo no discador; o arquivo está completo e não é enviado de novo"
    ),
    "not at this hour: {}": "não neste horário: {}",
    # Results and progress
    "Slot {}": "Horário {}",
    "campaign": "campanha",
    "result": "resultado",
    "contacts": "contatos",
    "rejected": "rejeit.",
    "columns": "colunas",
    "size": "tamanho",
    "seconds": "seg.",
    "remote path": "caminho remoto",
    "picked up": "coletado",
    "drop folder": "pasta de entrega",
    "waiting": "aguardando",
    "reading, {} contacts": "lendo, {} contatos",
    "sending {} of {}, {}/s": "enviando {} de {}, {}/s",
    "ready": "pronto",
    # --check
    "ok": "ok",
    "FAULT": "FALHA",
    "settings and queries": "configuração e consultas",
    "{} campaigns": "{} campanhas",
    "ledger": "registro de entregas",
    "database login": "login no banco de dados",
    "query {}": "consulta {}",
    "{} columns": "{} colunas",
    "{} columns, no 'columns:' line: {}": "{} colunas, sem a linha 'columns:': {}",
    "SFTP host key": "chave do servidor SFTP",
    "the server shows {}": "o servidor apresenta {}",
    "if the server's administrator confirms it, set SFTP_HOST_KEY={}": (
        "se o administrador do servidor a confirmar, defina SFTP_HOST_KEY={}"
    ),
    "SFTP login": "login no SFTP",
    "folder {}": "pasta {}",
    "exists, can write, can rename": "existe, permite gravar e renomear",
    # What became of a campaign
    "delivered": "entregue",
    "already delivered": "já entregue",
    "would be sent": "seria enviado",
    "empty": "vazio",
    "held": "retido",
    "failed": "falhou",
    "not taken": "não coletado",
    "unknown": "em dúvida",
    "running": "em andamento",
    "missed": "perdido",
    "still to come": "a seguir",
    "not due": "não previsto",
    "delivered: {}": "entregue: {}",
    "held: {}": "retido: {}",
    "failed: {}": "falhou: {}",
    "unknown: {}": "em dúvida: {}",
    # The page and --status
    "No successful run yet": "Nenhuma execução com êxito até agora",
    "Last successful run: {}": "Última execução com êxito: {}",
    "The slot {} is overdue: nothing was delivered. Double-click run_pipeline.bat to run now": (
        "O horário {} está atrasado: nada foi entregue. Dê dois cliques em run_pipeline.bat para executar agora"
    ),
    "Mailings": "Mailings",
    "Today": "Hoje",
    "Contacts delivered in two weeks": "Contatos entregues em duas semanas",
    "latest {}, median {}": "último {}, mediana {}",
    "nothing delivered in two weeks": "nada entregue em duas semanas",
    "Latest problems": "Últimos problemas",
    "none in two weeks": "nenhum em duas semanas",
    "the whole run": "a execução inteira",
    "works again": "já normalizado",
    "Generated": "Gerado em",
    # Alerts
    "mailings need a person": "os mailings precisam de atenção",
    "mailings work again": "os mailings voltaram ao normal",
    "the program works again": "o programa voltou ao normal",
    "no run in the slots {}": "nenhuma execução nos horários {}",
    "the next hourly run tries again by itself; nothing is ever sent twice": (
        "a próxima execução tenta de novo sozinha; nada é enviado duas vezes"
    ),
}


@functools.cache
def phrase_patterns() -> list[tuple[re.Pattern[str], str]]:
    """PORTUGUESE as patterns; the templates with the most words of their own first."""
    ordered = sorted(PORTUGUESE, key=lambda english: -len(english.replace("{}", "")))
    patterns = (re.compile("(.*?)".join(map(re.escape, english.split("{}")))) for english in ordered)
    return [(pattern, PORTUGUESE[english]) for pattern, english in zip(patterns, ordered, strict=True)]


def translate(text: str, language: str) -> str:
    """text as an operator reads it, line by line: its phrase in PORTUGUESE, whose {} stand for what the text has there.

    What stands there is translated too, unless it is one word: then it is a name. Numbers and times become local.
    """
    if language != "pt":
        return text
    if "\n" in text:
        return "\n".join(translate(line, language) for line in text.split("\n"))
    if re.fullmatch(r"\d{1,3}(,\d{3})+|\d+\.\d( [KMG]B)?", text):
        return text.translate(str.maketrans(",.", ".,"))
    if found := re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)( [\d:]+)?", text):
        return f"{found[3]}/{found[2]}/{found[1]}{found[4] or ''}"
    for pattern, portuguese in phrase_patterns():
        if found := pattern.fullmatch(text):
            parts = (part if part.isidentifier() else translate(part, language) for part in found.groups())
            return portuguese.format(*parts)
    return text


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The options, in the words of --help and README."""
    codes = "\n".join(f"  {code.value}  {code.meaning}" for code in ExitCode)
    made = argparse.ArgumentParser(
        prog=f"{PROGRAM}.py",
        description="Run queries/*.sql in PostgreSQL and deliver each result as a CSV to its campaign's SFTP folder.",
        epilog=f"exit codes:\n{codes}",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=20, width=100),
        allow_abbrev=False,
    )
    mode = made.add_mutually_exclusive_group()
    mode.add_argument(
        "--dry-run", action="store_true", help="export and judge everything, send nothing (output/dry-run)"
    )
    mode.add_argument("--check", action="store_true", help="test settings, queries, logins and folders; send nothing")
    mode.add_argument("--status", action="store_true", help="show what was delivered today")
    made.add_argument(
        "--scheduled", action="store_true", help="started by the Task Scheduler: plain output, quiet outside the hours"
    )
    made.add_argument(
        "--only", action="append", default=[], metavar="CAMPAIGN", help="only this campaign (may be repeated)"
    )
    made.add_argument(
        "--resend", action="store_true", help="also what this slot has delivered already, under a new name"
    )
    made.add_argument("--ignore-hours", action="store_true", help="run by hand outside the operating hours")
    made.add_argument(
        "--config", type=Path, metavar="FILE", help="the settings (default: config.env beside the program)"
    )
    made.add_argument("--json", action="store_true", help="the report as one JSON object on stdout")
    made.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    return made


class LocalTimeFormatter(logging.Formatter):
    """Local time with its offset, and one line per fact."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002
        return datetime.fromtimestamp(record.created).astimezone().isoformat(" ", "milliseconds")


def open_log(settings: Settings, clock: Clock, *, console: bool) -> None:
    """Log to one file a day, by name: renaming a log that is open elsewhere fails on Windows. Raises SettingsFault."""
    path = settings.local(settings.log_dir) / f"{PROGRAM}_{clock.now():%Y-%m-%d}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(LocalTimeFormatter("%(asctime)s %(levelname)s %(message)s"))
        started = log.makeRecord(PROGRAM, logging.INFO, "", 0, f"{PROGRAM} {__version__} started", (), None)
        if file.stream:  # a full disk shows here; logging itself would swallow it
            file.stream.write(file.format(started) + "\n")
            file.stream.flush()
    except OSError as error:
        raise SettingsFault(f"{path}: cannot be written: {error.strerror}; make LOG_DIR writable") from None
    handlers: list[logging.Handler] = [file]
    if console and sys.stderr:
        handlers.append(logging.StreamHandler(sys.stderr))
        handlers[1].setFormatter(file.formatter)
    log.handlers, log.propagate = handlers, False
    log.setLevel(logging.INFO)
    logging.raiseExceptions = False  # a full log disk must not stop a delivery half-way
    logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)  # it reports by exceptions; its log may quote


def make_console(arguments: argparse.Namespace) -> Console:
    """Standard output for a person; plain text where nobody looks, or where it has gone."""
    from rich.console import Console

    stream = sys.stdout
    if stream is None or arguments.json:
        stream = io.StringIO()
    elif isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # a cp1252 console must not stop a run
    if arguments.scheduled or not stream.isatty():
        return Console(file=stream, force_terminal=False, no_color=True, width=120)
    return Console(file=stream)


@contextlib.contextmanager
def showing() -> Iterator[None]:
    """What cannot be shown (a full disk behind stdout, a reader that went away) changes nothing of what was done."""
    with contextlib.suppress(OSError, ValueError):
        yield
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream:
                stream.flush()
        except (OSError, ValueError):
            log.warning("not everything could be shown: standard output cannot be written")
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)  # or Python itself would end with 120


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout, in ASCII so that every console and reader takes it."""
    if sys.stdout:
        print(json.dumps(value))


def load(arguments: argparse.Namespace, environ: Mapping[str, str]) -> tuple[Settings, list[Campaign]]:
    """Settings and campaigns. Raises SettingsFault with every fault of both."""
    path = (arguments.config or Path(__file__).absolute().parent / "config.env").absolute()
    sends = not (arguments.dry_run or arguments.status)
    campaigns: list[Campaign] = []
    faults: list[str] = []
    try:
        settings = load_settings(path, environ, sends=sends, knows_host=not arguments.check)
    except SettingsFault as error:
        if error.settings is None:
            raise
        settings, faults = error.settings, [*error.faults]
    try:
        campaigns = load_campaigns(settings.local(settings.queries_dir), settings)
        choose(campaigns, arguments.only)
    except SettingsFault as error:
        faults += error.faults
    if faults:
        raise SettingsFault(*faults, settings=settings)
    return settings, campaigns


def look(arguments: argparse.Namespace, settings: Settings, campaigns: Sequence[Campaign], clock: Clock) -> ExitCode:
    """--status and --check."""
    console = make_console(arguments)
    if arguments.status:
        now = clock.now()
        entries: list[Entry] = []
        if settings.ledger_path.exists():
            with contextlib.closing(Ledger(settings.ledger_path, clock, looks=True)) as ledger:
                entries = recent(ledger, now)
        grid = day_grid(entries, campaigns, settings.hours, now)
        with showing():
            if arguments.json:
                print_json(status_json(grid))
            print_status(grid, console, settings.language)
        return ExitCode.OK
    findings = check(settings, choose(campaigns, arguments.only), clock)
    code = worst(findings)
    with showing():
        if arguments.json:
            lines = [
                {"what": line.what, "ok": not line.exit_code, "message": line.message, "hint": line.hint}
                for line in findings
            ]
            print_json({"exit_code": code.value, "meaning": code.meaning, "checks": lines})
        print_findings(findings, console, settings.language)
    return code


def deliver(arguments: argparse.Namespace, settings: Settings, campaigns: Sequence[Campaign], clock: Clock) -> ExitCode:
    """A run, or its rehearsal. Raises PipelineError."""
    options = Options(
        arguments.dry_run, arguments.scheduled, tuple(arguments.only), arguments.resend, arguments.ignore_hours
    )
    inside = settings.hours.inside(clock.now()) or options.ignore_hours or options.dry_run
    if not inside and options.scheduled:
        log.info("outside the hours %s: nothing to do", settings.hours)
        return ExitCode.OK
    if not inside:
        message = f"{clock.now():%H:%M} is outside the operating hours {settings.hours}"
        raise OutsideHours(message, "wait, or use --ignore-hours if you really want to start calls now")
    console = make_console(arguments)
    report = (rehearse if options.dry_run else run)(settings, campaigns, options, clock, console)
    code = report.exit_code
    log.info("slot %s: %s in %.1f s; exit code %d: %s", report.slot, report.totals, report.seconds, code, code.meaning)
    if not options.dry_run:
        aftermath(settings, campaigns, report, clock)
    with showing():
        if arguments.json:
            print_json(report.as_json())
        print_report(report, console, settings.language)
    return code


def act(arguments: argparse.Namespace, environ: Mapping[str, str], clock: Clock) -> ExitCode:
    """The one thing that the options ask for. Raises PipelineError."""
    looks = arguments.check or arguments.status
    settings: Settings | None = None
    campaigns: list[Campaign] = []
    try:
        settings, campaigns = load(arguments, environ)
        if not arguments.status:
            open_log(settings, clock, console=not sys.stdout or not sys.stdout.isatty())
        return (look if looks else deliver)(arguments, settings, campaigns, clock)
    except PipelineError as found:
        fault = found
    except KeyboardInterrupt:
        fault = Stopped(BY_OPERATOR)
    except Exception as found:
        fault = bug(found)
    settings = settings or (fault.settings if isinstance(fault, SettingsFault) else None)
    by_hand = isinstance(fault, (Busy, OutsideHours)) and not arguments.scheduled
    if settings and not (looks or arguments.dry_run or by_hand):
        if not log.handlers:
            with contextlib.suppress(SettingsFault):
                open_log(settings, clock, console=False)
        aftermath(settings, campaigns, fault, clock)
    fault.language = settings.language if settings else "en"
    raise fault


def main(
    argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None, clock: Clock | None = None
) -> int:
    """Run the program; returns its exit code. Nothing is raised but argparse's SystemExit (code 2 for wrong usage)."""
    arguments = parser().parse_args(argv)
    try:
        return act(arguments, os.environ if environ is None else environ, clock or Clock())
    except PipelineError as error:
        fault = error
    except KeyboardInterrupt:  # after the run itself, beside the page or the alerts
        fault = Stopped(BY_OPERATOR)
    code = fault.exit_code
    lines = [*fault.message.splitlines(), *([f"    -> {fault.hint}"] if fault.hint else [])]
    lines.append(f"exit code {code.value}: {code.meaning}")
    if log.handlers:
        for line in lines:
            log.error(line)
    with showing():
        if isinstance(sys.stderr, io.TextIOWrapper):
            sys.stderr.reconfigure(errors="replace")
        if sys.stderr and not any(getattr(handler, "stream", None) is sys.stderr for handler in log.handlers):
            print("\n".join(translate(line, fault.language) for line in lines), file=sys.stderr)
        if arguments.json:
            print_json({"exit_code": code.value, "meaning": code.meaning, "error": fault.message, "hint": fault.hint})
    return code


CLOSE_GRACE_S = 4.5


def interrupt(*_: object) -> None:
    """Ended from outside: as with Ctrl+C."""
    raise KeyboardInterrupt


def heed_closing_window() -> object:
    """On Windows, end the run in order when the console window is closed; what it returns must be kept until the end.

    Windows ends a process 5 s after the close (learn.microsoft.com, HandlerRoutine), or at once when the handler
    returns, as that of the C runtime does after raising SIGBREAK: so ours waits for the run to be over.
    """
    import _thread
    import ctypes

    def closing(event: int) -> int:
        if event == 0:  # Ctrl+C, which Python handles itself; 1 break, 2 close, 5 log-off, 6 shutdown
            return 0
        _thread.interrupt_main()
        time.sleep(CLOSE_GRACE_S)
        return 1

    handler = ctypes.WINFUNCTYPE(ctypes.c_int, ctypes.c_uint)(closing)  # type: ignore[attr-defined,unused-ignore]
    ctypes.WinDLL("kernel32").SetConsoleCtrlHandler(handler, 1)  # type: ignore[attr-defined,unused-ignore]
    return handler


def end(code: int) -> NoReturn:
    """End the process with code at once: an interpreter that takes itself apart first needs another 80 ms for it."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # `showing` has said so
            if stream:
                stream.flush()
    os._exit(code)


if __name__ == "__main__":
    # numpy's linear algebra, which nothing here uses, starts a thread per core: a tenth of a short run's CPU time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, interrupt)
    kept = heed_closing_window() if os.name == "nt" else None
    end(main())
