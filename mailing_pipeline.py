"""Feeds a call centre's dialer: SQL in PostgreSQL -> pandas -> CSV -> the SFTP folder of each campaign.

The Windows Task Scheduler starts this program every hour from 08:00 to 20:00, Monday to Saturday. It runs
`queries/*.sql`, turns each result into a timestamped CSV and puts it into the folder that the dialer
watches for that campaign. The dialer sees the file and starts calling people at once, with nobody looking.

Vocabulary
    campaign     one .sql file, and the dialer campaign it feeds    cobranca_30d
    mailing      the rows of one campaign in one run, as a CSV      mailing_cobranca_30d_22-12_10-00.csv
    drop folder  the SFTP folder that the dialer watches            /entrada/cobranca_30d
    slot         the clock hour a run belongs to                    2026-12-22 10:00
    temp name    what a mailing is called until it is whole         .part-5f0c2a91
    final name   what the dialer looks for                          mailing_cobranca_30d_22-12_10-00.csv
    delivered    the complete file has its final name in the drop folder
    held         a guard refused the mailing; nothing was sent
    in doubt     it may have reached the dialer, and nobody can tell yet; never sent again
    ledger       what was delivered, kept across runs and crashes   output/ledger.sqlite3

Promises
    1. Each campaign and slot reaches the dialer at most once, complete, in its own folder, in its hours.
    2. A file is uploaded under a temp name, checked, and only then renamed; a final name is never overwritten.
    3. A lost reply to the rename is settled by looking, in this run or the next, never by sending again.
    4. Every value is the text that PostgreSQL wrote: no number or date of Python's comes near it.
    5. An empty, collapsed, exploded or reshaped mailing is held, and said so.
    6. One campaign's failure never stops the others. One run at a time on a PC.
    7. No password, phone, CPF or row appears in a log or message.

How it is built
    `Run.plan` finds the campaigns that are due. A worker claims one after the other, and takes each mailing from
    its query to its final name, in one straight line, `Line.bring`:

        read, treat, write -> judge -> send, verify -> commit -> publish -> note

    A rename whose reply was lost is settled by looking: `Line.settle`, called by `publish` and, for what an
    earlier run left in doubt, by `settle_leftovers` before anything else. Whatever a worker meets ends in
    `Run._conclude`, as a `State`. At the run's deadline, and at Ctrl+C, `Stop` ends every wait of ours with
    `Stopped`: what is not out by then fails, its temp is removed, and nothing is renamed any more; the
    watchdog breaks the connections of whoever does not notice.

    Workers share four things, each with its own lock inside: the database, the SFTP connection, the ledger,
    the stop. What a campaign is in a run is one record, a `Mailing`. Reports, page, alerts and the exit code
    are computed from these records.

    With LEDGER several PCs share the work: a claim is then held by the PC's session with PostgreSQL. Who finds a
    campaign free settles first what its last holder left of it, and a PC that lost its session notes, and so
    publishes, nothing more of what it held.

Exit codes
    0  everything due was delivered, already delivered, or empty where empty is allowed
    1  a bug (traceback in the log)
    2  settings, ledger or usage wrong, or no usable query file: nothing was started
    3  another run is active
    4  some campaigns failed or were held
    5  database: nothing could be exported
    6  SFTP: nothing could be delivered
    7  manual run outside the hours
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import difflib
import errno
import functools
import hashlib
import importlib.util
import io
import itertools
import json
import logging
import os
import random
import re
import secrets
import signal
import socket
import sqlite3
import statistics
import sys
import threading
import time
import traceback
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Container, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from dataclasses import replace as dataclass_replace
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from enum import IntEnum, StrEnum
from html import escape
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, TypeVar

# psycopg, paramiko, pandas and rich take about a second to import. Each is imported where it is first
# used, so that `--help` and a wrong setting answer at once, and the rest loads while the server works.
if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import paramiko
    import psycopg
    import pyarrow as pa
    from dotenv.parser import Binding
    from psycopg.pq.abc import PGresult
    from rich.console import Console
    from rich.table import Table

__version__ = "1.1.0"
PROGRAM = "mailing_pipeline"
log = logging.getLogger(PROGRAM)
T = TypeVar("T")

# ---------------------------------------------------------------------------------------------------------------------
# Words: what a person is told is a template and its values, in English for the log, in the operator's own language
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Text:
    """A message: a template in English, whose fields the values fill. str() is the English of log and --json.

    Values are filled in and never translated, unless they are Texts themselves; a list of them stands in a
    row. Whole numbers are counts (12,345 or 12.345), times are written as people write them; a port or an
    exit code is given as str.
    """

    template: str
    values: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.told("en")

    def told(self, language: str) -> str:
        """The message in that language: 'en' or 'pt'."""
        template = PORTUGUESE[self.template] if language == "pt" else self.template
        return template.format(**{name: shown(value, language) for name, value in self.values.items()})


def text(template: str, **values: object) -> Text:
    """A message; every template has its Portuguese in PORTUGUESE, with the same fields."""
    return Text(template, values)


def in_a_row(parts: Sequence[Text]) -> Text:
    """Several messages in one line."""
    return functools.reduce(lambda first, then: text("{first}; {then}", first=first, then=then), parts)


def contacts(count: int) -> Text:
    """'1 contact', '4,812 contacts'."""
    if count == 1:
        return text("{count} contact", count=count)
    return text("{count} contacts", count=count)


def shown(value: object, language: str) -> str:
    """A value inside a message."""
    if isinstance(value, Text):
        return value.told(language)
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(item, language) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", "." if language == "pt" else ",")
    if isinstance(value, datetime):
        return f"{value:%d/%m/%Y %H:%M}" if language == "pt" else f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, date):
        return f"{value:%d/%m/%Y}" if language == "pt" else f"{value:%Y-%m-%d}"
    return str(value)


FOREIGN_CHARS = 300


def masked(told: str) -> str:
    """told without runs of eight or more digits (phones, CPFs, contracts), however they are punctuated.

    A moment (2026-12-22 12:00:05) stays.
    """
    moment = r"(?<!\d)(\d{4}-\d\d-\d\d[ T]\d\d:\d\d(?::\d\d)?)(?!\d)"
    return re.sub(rf"{moment}|\d(?:[\s.()/_,;:|‐-―−-]{{0,4}}\d){{7,}}", lambda found: found.group(1) or "…", told)


def foreign(told: object, hidden: Iterable[str] = ()) -> str:
    """A text of a server, a library or a lock file, fit for console, log, ledger and page.

    hidden: this run's secrets. They go, and so do passwords in URLs, unprintable characters (ESC, bidi
    marks, line breaks) and long numbers; what is longer than FOREIGN_CHARS is cut.
    """
    kept = str(told)
    for secret in sorted(filter(None, hidden), key=len, reverse=True):
        # A short one stands in half of all words: it goes where it stands alone.
        pattern = re.escape(secret) if len(secret) > 3 else rf"(?<!\w){re.escape(secret)}(?!\w)"
        kept = re.sub(pattern, "…", kept)
    kept = re.sub(r"://[^\s/@]+@", "://…@", kept[: 20 * FOREIGN_CHARS])
    kept = re.sub(r"(?i)\b(pass\w*|pwd)(\s*[=:]\s*)('[^']*'|[^\s']+)", r"\1\2…", kept)
    kept = "".join(character if character.isprintable() else " " for character in kept)
    kept = masked(" ".join(kept.split()))
    return kept if len(kept) <= FOREIGN_CHARS else kept[:FOREIGN_CHARS] + "…"


def address(host: str, port: object, hidden: Iterable[str] = ()) -> str:
    """host:port of a server; not masked, as an IP address is a long number, but without somebody's password."""
    bare = host.rpartition("@")[2]
    if not re.fullmatch(r"[\w.,:/%-]*", bare):
        bare = foreign(bare, hidden)
    return f"{'…@' if '@' in host else ''}{bare}:{port}"


# ---------------------------------------------------------------------------------------------------------------------
# Errors: what went wrong, whether trying again can help, and what a person should do
# ---------------------------------------------------------------------------------------------------------------------


class ExitCode(IntEnum):
    """How a run ended; `meaning` is the sentence that --help, README and log use."""

    meaning: Text

    def __new__(cls, code: int, meaning: str) -> ExitCode:
        made = int.__new__(cls, code)
        made._value_, made.meaning = code, text(meaning)
        return made

    OK = 0, "everything due was delivered, already delivered, or empty where empty is allowed"
    BUG = 1, "a bug (traceback in the log)"
    USAGE = 2, "settings, ledger or usage wrong, or no usable query file: nothing was started"
    BUSY = 3, "another run is active"
    PARTIAL = 4, "some campaigns failed or were held"
    DATABASE = 5, "database: nothing could be exported"
    SFTP = 6, "SFTP: nothing could be delivered"
    OUTSIDE_HOURS = 7, "manual run outside the hours"


# How many more times an error is worth trying; None: as many as RETRY_ATTEMPTS says.
AGAIN, ONCE_MORE, TWICE_MORE, NEVER = None, 1, 2, 0


class PipelineError(Exception):
    """Something a person can understand.

    message names the culprit (file, line, key, folder), hint says what to do. Severity is two questions:
    tries, how many more times it is worth while (None: as many as RETRY_ATTEMPTS says), and wide, whether it
    reaches beyond one mailing: the server or the login itself, so that it would meet every campaign.
    """

    exit_code = ExitCode.PARTIAL

    scarce = False  # the server has no more sessions or channels, and is not down

    def __init__(
        self, message: Text, hint: Text | None = None, *, tries: int | None = NEVER, wide: bool = False
    ) -> None:
        super().__init__(message)
        self.message, self.hint, self.tries, self.wide = message, hint, tries, wide

    @property
    def lines(self) -> list[Text]:
        """What a person is told, a line each, the hint last."""
        return [self.message, *([text("    -> {hint}", hint=self.hint)] if self.hint else [])]


class SettingsFault(PipelineError):
    """Settings, queries, ledger or usage are wrong: nothing was started.

    `faults` lists every one that was found; `settings` is what could be read all the same, to tell somebody.
    """

    exit_code = ExitCode.USAGE

    def __init__(self, *faults: Text, settings: Settings | None = None) -> None:
        super().__init__(faults[0])
        self.faults, self.settings = faults, settings

    def __str__(self) -> str:
        return "\n".join(map(str, self.faults))

    @property
    def lines(self) -> list[Text]:
        return list(self.faults)


class UsageFault(SettingsFault):
    """The command line asks for something that does not exist."""


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


class ConnectionLost(DeliveryError):
    """The SFTP connection broke: whether the last request was carried out is not known."""


class MayBeOut(DeliveryError):
    """A whole file is gone, and nobody can tell whether the dialer has it: in doubt, never sent again."""


class LocalFault(PipelineError):
    """This PC's own disk or ledger failed."""


class ClaimLost(LocalFault):
    """The session with the shared ledger broke, and with it went what this PC had claimed: others may have it now."""


class Held(PipelineError):
    """A guard refused the mailing."""


class Empty(PipelineError):
    """There is nobody to call, which is allowed."""

    exit_code = ExitCode.OK


class Stopped(PipelineError):
    """The run is being ended: by its deadline or by the operator."""


class Bug(PipelineError):
    """An error that nobody foresaw."""

    exit_code = ExitCode.BUG


def bug(error: Exception) -> Bug:
    """error's type and places go to the log; its text does not, which may quote a row."""
    log.error("a bug: %s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
    message = text("internal error ({kind})", kind=type(error).__name__)
    return Bug(message, text("send the log of today to the developer"))


# ---------------------------------------------------------------------------------------------------------------------
# Time: slots, hours, what stops a run, and the one loop that tries again
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


Span = tuple[clock_time, clock_time]  # the first and the last start of a day
DAYS = (text("mon"), text("tue"), text("wed"), text("thu"), text("fri"), text("sat"), text("sun"))
WEEKDAYS = (
    text("Monday"),
    text("Tuesday"),
    text("Wednesday"),
    text("Thursday"),
    text("Friday"),
    text("Saturday"),
    text("Sunday"),
)


def told_days(days: Iterable[int]) -> Text:
    """Weekdays (0 = Monday) for a person: mon-sat; mon, wed and fri; every day."""
    runs: list[list[int]] = []
    for day in sorted(days):
        if runs and runs[-1][-1] == day - 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    parts: list[Text] = []
    for run in runs:
        first, last = DAYS[run[0]], DAYS[run[-1]]
        parts += [text("{first}-{last}", first=first, last=last)] if len(run) > 2 else [DAYS[day] for day in run]
    if len(runs) == 1 and len(runs[0]) == 7:
        return text("every day")
    return parts[0] if len(parts) == 1 else text("{days} and {last}", days=parts[:-1], last=parts[-1])


def told_span(span: Span) -> str:
    """08:00-20:00"""
    return f"{span[0]:%H:%M}-{span[1]:%H:%M}"


@dataclass(frozen=True, slots=True)
class StartTimes:
    """The first and the last start of a day, as RUN_HOURS has them: usual, and of the weekdays that have their own."""

    usual: Span | None
    own: Mapping[int, Span] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Hours:
    """When mailings may be sent: weekdays (0 = Monday), the first and last starts of each, days off.

    keys are the settings that say so, of the days and of the hours, as messages name them.
    """

    days: frozenset[int]
    starts: StartTimes
    holidays: frozenset[date] = frozenset()
    keys: tuple[str, str] = ("RUN_DAYS", "RUN_HOURS")

    def starts_on(self, weekday: int) -> Span | None:
        """The first and the last start of that weekday (0 = Monday); None: nothing is sent on it."""
        return self.starts.own.get(weekday, self.starts.usual) if weekday in self.days else None

    def slots(self, day: date) -> list[int]:
        """The clock hours whose slots are due on that date; none on a day off."""
        starts = self.starts_on(day.weekday())
        if starts is None or day in self.holidays:
            return []
        return list(range(starts[0].hour, starts[1].hour + 1))

    def inside(self, now: datetime) -> bool:
        """Whether now is inside. The last start names a slot: with 20:00, 20:59 is still inside."""
        starts = self.starts_on(now.weekday())
        if starts is None or now.date() in self.holidays:
            return False
        slot_start = now.time().replace(minute=0, second=0, microsecond=0)
        return starts[0] <= now.time() and slot_start <= starts[1]

    def why_not(self, now: datetime) -> Text | None:
        """Why now is outside: a day off, the weekday, or the hour; None while it is inside."""
        if self.inside(now):
            return None
        if now.date() in self.holidays:
            return text("{day} is a holiday (HOLIDAYS)", day=now.date())
        day, starts = WEEKDAYS[now.weekday()], self.starts_on(now.weekday())
        if starts is None:
            key = self.keys[1] if now.weekday() in self.days else self.keys[0]
            return text("it is {day}: runs {days} ({key})", day=day, days=told_days(self.weekdays), key=key)
        time, hours, key = f"{now:%H:%M}", told_span(starts), self.keys[1]
        return text("it is {time}: runs {hours} on {day} ({key})", time=time, hours=hours, day=day, key=key)

    def told(self) -> Text:
        """For a person: 08:00-20:00 mon-fri, sat 08:00-13:00."""
        same: dict[Span, list[int]] = {}
        for day in range(7):
            if starts := self.starts_on(day):
                same.setdefault(starts, []).append(day)
        spans = sorted(same, key=lambda span: span != self.starts.usual)
        parts = [text("{days} {hours}", days=told_days(same[span]), hours=told_span(span)) for span in spans]
        if spans:
            parts[0] = text("{hours} {days}", hours=told_span(spans[0]), days=told_days(same[spans[0]]))
        return text("{parts}", parts=parts)

    def __str__(self) -> str:
        return str(self.told())

    @property
    def weekdays(self) -> frozenset[int]:
        """The weekdays on which anything is sent."""
        return frozenset(day for day in range(7) if self.starts_on(day))


class Stop:
    """The end of a run: its deadline, and whatever else stops it. Every wait of our own ends here.

    Measured by the wall clock and by the steady one, whichever is further: a PC that slept, or a clock set
    back, must not make an old mailing look young.
    """

    def __init__(self, clock: Clock, minutes: float) -> None:
        self.clock, self.seconds = clock, minutes * 60
        self.passed = text("the run's deadline of {minutes} minutes has passed", minutes=f"{minutes:g}")
        self.start, self._steady_start = clock.now(), clock.steady_s()
        self._event, self._reason = threading.Event(), text("the run was stopped")

    def left_s(self) -> float:
        """Seconds until the run must be over; negative after it."""
        elapsed = max((self.clock.now() - self.start).total_seconds(), self.clock.steady_s() - self._steady_start)
        return self.seconds - elapsed

    def end(self, reason: Text) -> None:
        """End every wait of the run with Stopped(reason)."""
        self._reason = reason
        self._event.set()

    @property
    def error(self) -> Stopped | None:
        """Why the run must not go on; None while it may."""
        if self._event.is_set():
            return Stopped(self._reason, text("the next run starts afresh; nothing old is sent"))
        if self.left_s() > 0:
            return None
        hint = text("see in the log what took so long; RUN_DEADLINE_MINUTES is the limit")
        return Stopped(self.passed, hint)

    def check(self) -> None:
        """Raise Stopped if the run must not go on."""
        if error := self.error:
            raise error

    def sleep(self, seconds: float) -> None:
        """Wait, unless the run is stopped meanwhile (Stopped)."""
        self.clock.wait(self._event, max(0.0, min(seconds, self.left_s())))
        self.check()

    @contextlib.contextmanager
    def turn(self, turns: threading.Semaphore) -> Iterator[None]:
        """One of the turns, as soon as there is one (Stopped)."""
        while not turns.acquire(timeout=0.5):
            self.check()
        try:
            yield
        finally:
            turns.release()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently the one retry loop tries: attempts in all, first and longest pause in seconds."""

    attempts: int
    first_s: float
    max_s: float


RETRY_BUDGET_S = 30  # time for an attempt, at the least


def retry(action: Callable[[], T], policy: RetryPolicy, stop: Stop, who: str) -> T:
    """The result of action, tried again for as long as its PipelineError says that this is worth while.

    Pauses double from first_s to max_s, with jitter. No attempt starts later than attempts * max_s (or
    RETRY_BUDGET_S) after the first failure, nor beyond the deadline. action must be safe to repeat. Raises
    the last error.
    """
    failures, first_failure_s = 0, 0.0
    while True:
        stop.check()
        try:
            return action()
        except PipelineError as error:
            failures += 1
            now_s = stop.clock.steady_s()
            first_failure_s = first_failure_s or now_s
            most = policy.attempts - 1 if error.tries is None else min(error.tries, policy.attempts - 1)
            pause_s = min(policy.max_s, policy.first_s * 2 ** (failures - 1)) * stop.clock.jitter()
            budget_s = policy.attempts * max(policy.max_s, RETRY_BUDGET_S) - (now_s - first_failure_s)
            if failures > most or pause_s > min(budget_s, stop.left_s()):
                error.tries = NEVER  # the budget is spent, also for those who are handed this error afterwards
                raise
            log.warning(
                text(
                    "{who}: retry {number} of {most} in {seconds} s: {reason}",
                    who=who,
                    number=failures,
                    most=most,
                    seconds=f"{pause_s:.1f}",
                    reason=error.message,
                )
            )
            stop.sleep(pause_s)


# ---------------------------------------------------------------------------------------------------------------------
# Settings: config.env and the environment -> Settings, or every fault at once
# ---------------------------------------------------------------------------------------------------------------------

DAY_NAMES = tuple(map(str, DAYS))
ENCODINGS = ("utf-8", "utf-8-sig", "cp1252", "latin-1")
LANGUAGES = ("en", "pt")
# libpq reads these from the environment alone; every other PG* name is one of its connection options.
LIBPQ_ENVIRONMENT = ("PGSERVICEFILE", "PGSYSCONFDIR", "PGTZ")


class Wrong(ValueError):
    """A text that cannot be read; told says what it must be, never what it is."""

    def __init__(self, told: Text) -> None:
        super().__init__(str(told))
        self.told = told


UNSEEN = text("holds a character that cannot be seen; type it anew")


def visible(written: str) -> str:
    """A name without what nobody sees: what came along with it from a web page or a mail."""
    if not written.isprintable():
        raise Wrong(UNSEEN)
    return written


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from low to high."""

    def parse(written: str) -> int:
        if not (written.isascii() and written.isdigit() and low <= int(written) <= high):
            raise Wrong(text("must be a whole number from {low} to {high}", low=str(low), high=str(high)))
        return int(written)

    return parse


def one_of(*choices: str) -> Callable[[str], str]:
    """A parser that takes only these words, in any case."""

    def parse(written: str) -> str:
        if written.lower() not in choices:
            raise Wrong(text("must be one of: {choices}", choices=choices))
        return written.lower()

    return parse


def yes_no(written: str) -> bool:
    """yes or no."""
    return one_of("yes", "no")(written) == "yes"


def one_character(written: str) -> str:
    r"""A CSV delimiter: one ASCII character (or \t)."""
    written = "\t" if written == r"\t" else written
    if len(written) != 1 or not written.isascii() or written.isalnum() or written in '"\r\n ':
        raise Wrong(text(r"must be one character such as ; or , or | or \t"))
    return written


def newline(written: str) -> str:
    """crlf or lf, as the characters themselves."""
    return {"crlf": "\r\n", "lf": "\n"}[one_of("crlf", "lf")(written)]


def weekdays(written: str) -> frozenset[int]:
    """'mon-sat' or 'mon,wed-fri' as weekday numbers, Monday = 0."""
    days: set[int] = set()
    for part in written.lower().split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if first not in DAY_NAMES or last not in DAY_NAMES:
            raise Wrong(text("must be days such as mon-sat or mon,wed,fri"))
        low, high = DAY_NAMES.index(first), DAY_NAMES.index(last)
        if low > high:
            raise Wrong(text("must name its days from Monday to Sunday, such as mon-sat"))
        days.update(range(low, high + 1))
    return frozenset(days)


def start_times(written: str) -> StartTimes:
    """'08:00-20:00, sat 08:00-13:00' as the first and the last starts; a part without days is that of all others."""
    usual: Span | None = None
    own: dict[int, Span] = {}
    for part in re.split(r"(?<=\d)\s*,", written):  # a comma behind an hour ends a part; 'mon,wed 09:00-12:00' is one
        found = re.fullmatch(r"\s*(?:([^\d]*\S)\s+)?(\d\S*)\s*-\s*(\d\S*)\s*", part)
        if not found:
            raise Wrong(text("must be hours such as 08:00-20:00 or 08:00-20:00, sat 08:00-13:00"))
        days, span = found.group(1), (time_of_day(found.group(2)), time_of_day(found.group(3)))
        if span[0] > span[1]:
            raise Wrong(text("must begin before it ends, such as 08:00-20:00"))
        named = weekdays(days) if days else frozenset()
        if named & own.keys() or (not days and usual):
            raise Wrong(text("gives a day its hours twice"))
        usual = usual if days else span
        own |= dict.fromkeys(named, span)
    return StartTimes(usual, own)


def time_of_day(written: str) -> clock_time:
    """'08:00' as a time of day."""
    if not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", written):
        raise Wrong(text("must be hours such as 08:00-20:00 or 08:00-20:00, sat 08:00-13:00"))
    return clock_time.fromisoformat(written)


def idle_hours(hours: Hours) -> Text | None:
    """What is wrong with hours of days on which nothing runs; None if every one of them counts."""
    idle = hours.starts.own.keys() - hours.days
    if idle:
        return text("has hours for {days}, which {key} leaves out", days=told_days(idle), key=hours.keys[0])
    if not hours.weekdays:
        return text("leaves no day on which anything runs, together with {key}", key=hours.keys[0])
    return None


def dates(written: str) -> frozenset[date]:
    """'2026-12-25,2027-01-01' as dates."""
    try:
        return frozenset(date.fromisoformat(part.strip()) for part in written.split(",") if part.strip())
    except ValueError:
        raise Wrong(text("must be dates such as 2026-12-25,2027-01-01")) from None


def remote_path(written: str) -> PurePosixPath:
    """A path on the SFTP server: always with /, never upwards."""
    if "\\" in written or ".." in PurePosixPath(written).parts or not written.isprintable():
        raise Wrong(text("must be a path with / such as /entrada/cobranca_30d, without .. and without a backslash"))
    return PurePosixPath(re.sub("^/+", "/", written))  # two would make another path of the same folder


MAILING_ENDINGS = (".csv", ".txt")
DEVICE_NAMES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\.|$)", re.IGNORECASE)
LEGAL_NAME = re.compile(r'[^\\/:*?"<>|%{}\x00-\x1f]{0,199}[^\\/:*?"<>|%{}\x00-\x1f. ]')


def file_name_pattern(written: str, campaign: str = "campaign") -> str:
    """A file name with {campaign} and strftime's codes that gives a legal name on Windows and everywhere.

    Its ending is what tells a mailing from whatever else may lie in the output folder.
    """
    try:
        sample = render_file_name(visible(written), campaign, datetime(2026, 12, 22, 10, 0).astimezone())
    except ValueError:  # UnicodeError, and on Windows a code that its strftime lacks
        sample = ""
    if not LEGAL_NAME.fullmatch(sample):
        example, without = "mailing_{campaign}_%d-%m_%H-%M.csv", r'\ / : * ? " < > |'
        raise Wrong(
            text(
                "must give a legal file name, such as {example} (no {without}, at most 200 characters)",
                example=example,
                without=without,
            )
        )
    if sample.startswith("."):
        raise Wrong(text("must not begin with a dot: many dialers overlook such files"))
    if DEVICE_NAMES.match(sample):
        raise Wrong(text("gives {name}, which Windows takes for a device; put mailing_ before it", name=sample))
    if not sample.lower().endswith(MAILING_ENDINGS):
        raise Wrong(text("must end in .csv or .txt"))
    if "{campaign}" not in written and "%H" not in written:
        raise Wrong(text("must hold {{campaign}} or the hour (%H), so that two mailings do not share a name"))
    return written


def temp_name_pattern(written: str) -> str:
    """What a mailing is called on the server until it is whole: with {id}, and not as a dialer expects a mailing."""
    sample = visible(written).replace("{id}", "0f1e2d3c")
    if "{id}" not in written:
        raise Wrong(text("must hold {{id}}, which is different for each upload, such as .part-{{id}}"))
    if not LEGAL_NAME.fullmatch(sample):
        raise Wrong(text("must give a legal file name, such as .part-{{id}}"))
    if sample.lower().endswith(MAILING_ENDINGS):
        raise Wrong(text("must not end in .csv or .txt: the dialer would take a file that is not whole"))
    return written


def local_path(written: str) -> str:
    """A file or folder of this PC, relative to config.env or whole."""
    if not written.isprintable() or (os.name == "nt" and Path(written).root and not Path(written).drive):
        raise Wrong(text("is not the path you wrote: quotes change a backslash; write it without quotes, or with /"))
    return written


def fingerprints(written: str) -> tuple[str, ...]:
    """SSH host keys' fingerprints, separated by blanks, as --check and ssh-keygen -l print them; none of an empty text.

    Both add the kind of the key in brackets.
    """
    found = re.sub(r"\([\w@.-]+\)", " ", written).replace(",", " ").split()
    for one in found:
        if not re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}=?", one):
            raise Wrong(text("must look like SHA256: and 43 characters; --check prints the one it sees"))
    return tuple(dict.fromkeys(one.rstrip("=") for one in found))


def connection_string(written: str) -> Mapping[str, str]:
    """libpq's options in a connection string; none of an empty text."""
    from psycopg import ProgrammingError, conninfo

    try:
        return {key: str(value) for key, value in conninfo.conninfo_to_dict(written).items()}
    except ProgrammingError:  # whose text may quote the password
        example = "host=pg dbname=ledger user=ledger password=…"
        raise Wrong(text("must be a libpq connection string such as {example}", example=example)) from None


def setting(default: str, parse: Callable[[str], Any] = str, *, secret: bool = False, key: str = "") -> Any:
    """One line of config.env; its key is the field's name in capitals, unless given. default is text for parse."""
    return field(repr=not secret, metadata={"default": default, "parse": parse, "key": key})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting of config.env, parsed. config.env.example says what each is for."""

    folder: Path  # of config.env: relative paths start here
    libpq: Mapping[str, str] = field(repr=False)  # libpq's connection options, by its own keywords
    libpq_environment: Mapping[str, str] = field(repr=False)

    sftp_host: str = setting("", visible)
    sftp_port: int = setting("22", whole_number(1, 65535))
    sftp_user: str = setting("", visible)
    sftp_password: str = setting("", secret=True)
    sftp_key_file: str = setting("", local_path)
    sftp_key_passphrase: str = setting("", secret=True)
    sftp_host_keys: tuple[str, ...] = setting("", fingerprints, key="SFTP_HOST_KEY")  # any of them
    sftp_base_dir: PurePosixPath = setting("/", remote_path)
    sftp_staging_dir: PurePosixPath | None = setting("", lambda text: remote_path(text) if text else None)
    sftp_temp_name: str = setting(".part-{id}", temp_name_pattern)
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
    run_hours: StartTimes = setting("08:00-20:00", start_times)
    holidays: frozenset[date] = setting("", dates)
    query_workers: int = setting("4", whole_number(1, 32))
    query_timeout_seconds: int = setting("600", whole_number(1, 86400))
    retry_attempts: int = setting("5", whole_number(1, 100))
    retry_first_seconds: int = setting("2", whole_number(0, 3600))
    retry_max_seconds: int = setting("60", whole_number(0, 3600))
    connect_timeout_seconds: int = setting("30", whole_number(1, 300))
    run_deadline_minutes: int = setting("50", whole_number(1, 54))
    pickup_timeout_seconds: int = setting("0", whole_number(0, 3600))
    retention_days: int = setting("7", whole_number(1, 3650))
    ledger: Mapping[str, str] = setting("", connection_string, secret=True)  # of the PostgreSQL that several PCs share
    max_replica_lag_seconds: int = setting("0", whole_number(0, 86400))
    language: str = setting("en", one_of(*LANGUAGES))
    alert_urls: str = setting("", secret=True)
    heartbeat_url: str = setting("", secret=True)

    def local(self, path: str) -> Path:
        """path, relative to the folder of config.env."""
        return self.folder / path

    @property
    def output(self) -> Path:
        return self.local(self.output_dir)

    def output_of(self, options: Options) -> Path:
        """Where mailings are written: those of a rehearsal in a folder of their own."""
        return self.output / "dry-run" if options.dry_run else self.output

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be told, whoever quotes it."""
        password = self.libpq.get("password", "")
        urls = (*self.alert_urls.split(), self.heartbeat_url)
        return (password, self.ledger.get("password", ""), self.sftp_password, self.sftp_key_passphrase, *urls)

    @property
    def ledger_path(self) -> Path:
        return self.output / "ledger.sqlite3"

    @property
    def has_ledger(self) -> bool:
        """Whether there is one to look into."""
        return bool(self.ledger) or self.ledger_path.exists()

    @property
    def hours(self) -> Hours:
        return Hours(self.run_days, self.run_hours, self.holidays)

    @property
    def retry_policy(self) -> RetryPolicy:
        return RetryPolicy(self.retry_attempts, self.retry_first_seconds, self.retry_max_seconds)


SETTING_FIELDS = {item.metadata["key"] or item.name.upper(): item for item in fields(Settings) if item.metadata}


def libpq_options() -> dict[str, str]:
    """libpq's own table: environment name -> connection keyword (PGHOST -> host)."""
    from psycopg import pq

    return {option.envvar.decode(): option.keyword.decode() for option in pq.Conninfo.get_defaults() if option.envvar}


def parse_settings(
    values: Mapping[str, str], folder: Path, source: str, *, sends: bool, knows_host: bool, faults: Iterable[Text] = ()
) -> Settings:
    """Settings from raw texts by key; an empty text is the default.

    sends: whether the run will reach for the SFTP server, so that its settings are needed. knows_host: whether
    SFTP_HOST_KEY is needed as well (--check goes without, to print it). Raises SettingsFault with every fault, those
    found before among them, each with its key and never its value; source is the file to name.
    """
    options = libpq_options()
    parsed, wrong = parse_values(values)
    wrong += unknown_keys(values, options)
    if sends:
        wrong += missing_keys(values, knows_host)
    settings = Settings(
        folder=folder,
        libpq={options[key]: value for key, value in values.items() if key in options and value},
        libpq_environment={key: value for key, value in values.items() if key in LIBPQ_ENVIRONMENT and value},
        **parsed,
    )
    idle = idle_hours(settings.hours)
    if idle and "RUN_DAYS" not in dict(wrong):
        wrong.append(("RUN_HOURS", idle))
    told = [*faults, *(text("{file}: {key}: {fault}", file=source, key=key, fault=fault) for key, fault in wrong)]
    if told:
        raise SettingsFault(*told, settings=settings)
    return settings


def parse_values(values: Mapping[str, str]) -> tuple[dict[str, Any], list[tuple[str, Text]]]:
    """Every setting by its field's name, parsed; and what is wrong, by key. What is wrong has its default."""
    parsed: dict[str, Any] = {}
    wrong: list[tuple[str, Text]] = []
    for key, item in SETTING_FIELDS.items():
        parse, default = item.metadata["parse"], item.metadata["default"]
        try:
            parsed[item.name] = parse(values.get(key) or default)
        except Wrong as error:
            wrong.append((key, error.told))
            parsed[item.name] = parse(default)
    return parsed, wrong


def unknown_keys(values: Iterable[str], options: Iterable[str]) -> list[tuple[str, Text]]:
    """The keys that nobody knows: neither the program nor libpq, whose names are options."""
    known = [*SETTING_FIELDS, *options]
    wrong: list[tuple[str, Text]] = []
    for key in values:
        if key in known or key in LIBPQ_ENVIRONMENT:
            continue
        near = difflib.get_close_matches(key.upper(), known, 1)
        told = text("unknown setting; did you mean {key}?", key=near[0]) if near else text("unknown setting")
        wrong.append((key, told))
    return wrong


def missing_keys(values: Mapping[str, str], knows_host: bool) -> list[tuple[str, Text]]:
    """What the SFTP server cannot be reached without."""
    wrong = [(key, text("missing")) for key in ("SFTP_HOST", "SFTP_USER") if not values.get(key)]
    if knows_host and not values.get("SFTP_HOST_KEY"):
        wrong.append(("SFTP_HOST_KEY", text("missing; run with --check to see the server's fingerprint")))
    if not (values.get("SFTP_PASSWORD") or values.get("SFTP_KEY_FILE")):
        wrong.append(("SFTP_PASSWORD, SFTP_KEY_FILE", text("set one of the two, or both if the server asks for both")))
    return wrong


def decoded(data: bytes) -> str:
    """The text of a file in UTF-8, with or without BOM. Raises Wrong, which says what the file is instead."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or data.count(0) > len(data) / 3:
        raise Wrong(text("is UTF-16, not UTF-8; save the file as UTF-8 in the editor"))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = str(data.count(b"\n", 0, error.start) + 1)
    try:
        ansi = data.decode("cp1252").translate(dict.fromkeys(b"\t\r\n\f", " ")).isprintable()
    except UnicodeDecodeError:
        ansi = False
    if ansi:
        raise Wrong(text("line {line}: not UTF-8 but ANSI; save the file as UTF-8 in the editor", line=line))
    raise Wrong(text("line {line}: not UTF-8; save the file as UTF-8 in the editor", line=line))


def read_utf8(path: Path) -> str:
    """The text of a file, with or without BOM. Raises Wrong."""
    try:
        return decoded(path.read_bytes())
    except OSError as error:
        raise Wrong(text("cannot be read: {why}", why=error.strerror)) from None


def load_settings(path: Path, environ: Mapping[str, str], *, sends: bool, knows_host: bool) -> Settings:
    """Read config.env; a real environment variable of the same name wins. Raises SettingsFault."""
    if not path.exists():
        told = text("{file}: not found; copy config.env.example to config.env and fill it in", file=str(path))
        raise SettingsFault(told)
    try:
        written = read_utf8(path)
    except Wrong as error:
        raise SettingsFault(text("{file}: {fault}", file=str(path), fault=error.told)) from None
    values, faults = parse_env(written, path.name)
    known = {*SETTING_FIELDS, *libpq_options(), *LIBPQ_ENVIRONMENT}
    # LANGUAGE is gettext's own variable too, as 'pt_BR:pt'.
    values |= {
        key: value
        for key, value in environ.items()
        if key in known and value and (key != "LANGUAGE" or value in LANGUAGES)
    }
    folder = path.parent  # not resolve(): on Windows that turns a mapped drive into its share, or fails
    return parse_settings(values, folder, path.name, sends=sends, knows_host=knows_host, faults=faults)


def parse_env(written: str, source: str) -> tuple[dict[str, str], list[Text]]:
    """The values of a config.env by key, as python-dotenv reads them, and the faults of its lines."""
    from dotenv.parser import parse_stream  # what dotenv_values(interpolate=False) reads with; it keeps the lines

    values: dict[str, str] = {}
    faults: list[Text] = []
    for binding in parse_stream(io.StringIO(written)):
        original = binding.original.string
        line = binding.original.line + original[: len(original) - len(original.lstrip())].count("\n")
        named = re.match(r"\s*(?:export\s+)?([\w.-]+)\s*=", original)
        key = named.group(1) if named else ""  # a line without = may be half of a password: it is not quoted
        fault = line_fault(original, binding)
        if binding.key in values:
            fault = fault or text("set twice")
        elif binding.key and binding.value is not None:
            values[binding.key] = binding.value
        if fault and key:
            fault = text("{key}: {fault}", key=key, fault=fault)
        if fault:
            faults.append(text("{file}: line {line}: {fault}", file=source, line=str(line), fault=fault))
    return values, faults


def line_fault(original: str, binding: Binding) -> Text | None:
    """What is wrong with a line of config.env: original as it stands there, binding as dotenv took it; never quoted."""
    key, value = binding.key or "", binding.value or ""
    if binding.error and re.match(r"\s*(?:export\s+)?[\w.-]+\s*=\s*['\"]", original):
        return text(
            r"a quote inside the value ends it, or the last one is missing; inside single quotes write \' for one"
        )
    if binding.error or (key and binding.value is None):
        return text("not of the form KEY=value")
    if "\n" in value and "\n" in original.strip():
        return text("its closing quote is missing on the same line")
    if "PASS" in key and not value.isprintable():
        return text("double quotes change what follows a backslash; put the value between single quotes")
    if "PASS" in key and re.search(r"=\s*[^'\"\s][^\n]*\s#", original):
        return text("what follows ' #' is a comment; put the value between single quotes")
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Campaigns: queries/NN_campaign.sql -> Campaign; what is wrong with a file costs its own campaign only
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


@dataclass(frozen=True, slots=True)
class BrokenQuery:
    """A query file with faults: its campaign fails, the others run."""

    source: str  # the file's name
    name: str  # the campaign that it would feed, as far as can be told
    faults: tuple[Text, ...]  # each with its line, and without the file's name

    @property
    def told(self) -> tuple[Text, ...]:
        """Its faults, each with the file's name."""
        return tuple(text("{file}: {fault}", file=self.source, fault=fault) for fault in self.faults)


class QueryFault(SettingsFault):
    """One query file is wrong; `broken` is what is known of it."""

    def __init__(self, broken: BrokenQuery) -> None:
        super().__init__(*broken.told)
        self.broken = broken


@dataclass(frozen=True, slots=True)
class QueryFiles:
    """What lies in the folder of the query files, each in the order of the files' names."""

    campaigns: tuple[Campaign, ...]  # switched on and sound
    broken: tuple[BrokenQuery, ...] = ()
    notes: tuple[Text, ...] = ()  # what lies there and is not read, and why: a sentence each


AS_GIVEN = {item.name for item in fields(Campaign) if item.default is not MISSING}  # no setting stands in for these


def campaign_name(written: str) -> str:
    """A campaign's name, which becomes part of file names and folders."""
    if not re.fullmatch(r"[a-z0-9_]+", written):
        raise Wrong(text("must have only a-z, 0-9 and _"))
    return written


def names(written: str) -> tuple[str, ...]:
    """Column names, separated by ; or ,"""
    found = tuple(name.strip() for name in re.split("[;,]", written))
    if not all(found):
        raise Wrong(text("must be column names separated by ; or ,"))
    return tuple(map(visible, found))


def percent(written: str) -> int:
    """'70%' as 70."""
    found = re.fullmatch(r"([0-9]{1,2}|100)\s*%", written)
    if not found:
        raise Wrong(text("must be a percentage such as 70%"))
    return int(found.group(1))


class Directive(NamedTuple):
    """A query file's own setting: how its value is read; what one looks like, where the key may be misspelt."""

    parse: Callable[[str], Any]
    looks: str  # a regular expression
    is_guard: bool = False  # whose absence lets a wrong mailing out


SWITCH = r"(yes|no|true|false|sim|n[aã]o|on|off|[01])$"
TWO_NAMES = r"[^\s;,]+\s*([;,]\s*[^\s;,]+\s*)+$"
A_PATH = r"/|\S+/\S*$"
A_NUMBER = r"[0-9][0-9.,_]*\s*%?(\s+\S+)?$"
A_TIME = r"[0-9]+\s*(s|sec\w*|seg\w*|min\w*)?$"
A_SPAN = r"([a-z,\s-]*\s)?[0-9:]+\s*h?\s*(-|–|a|às|to)\s*[0-9]"
A_DAY = r"(mon|tue|wed|thu|fri|sat|sun)(\w*day)?\b|(seg|ter|qua|qui|sex|s[aá]b|dom)(unda|ça|r?ta|nta|ado|ingo)?\b"

# Those whose names are fields of Campaign with a default are handed on as they are; the others stand in for settings.
DIRECTIVES = {
    "campaign": Directive(campaign_name, r"\w*[_0-9]\w*$"),
    "folder": Directive(remote_path, A_PATH),
    "columns": Directive(names, TWO_NAMES),
    "phones": Directive(names, TWO_NAMES),
    "unique": Directive(names, TWO_NAMES),
    "min_rows": Directive(whole_number(0, 100_000_000), A_NUMBER, is_guard=True),
    "max_rows": Directive(whole_number(1, 100_000_000), A_NUMBER, is_guard=True),
    "max_drop": Directive(percent, A_NUMBER, is_guard=True),
    "hours": Directive(start_times, A_SPAN),
    "days": Directive(weekdays, A_DAY),
    "timeout": Directive(whole_number(1, 86400), A_TIME),
    "delimiter": Directive(one_character, r"([^\w\s]|\\t|tab)$"),
    "encoding": Directive(one_of(*ENCODINGS), r"(utf|cp[0-9]|latin|ansi|iso[0-9-]|windows)"),
    "header": Directive(yes_no, SWITCH),
    "newline": Directive(newline, r"(crlf|lf)$"),
    "file_name": Directive(file_name_pattern, r".*(\{|%[dmyYHM]|\.csv$|\.txt$)"),
    "read_only": Directive(yes_no, SWITCH),
    "enabled": Directive(yes_no, SWITCH),
    "pickup": Directive(whole_number(0, 3600), A_TIME),
    "pickup_error_folder": Directive(remote_path, A_PATH),
}

# PostgreSQL's own lexical rules (manual, 4.1; src/backend/parser/scan.l). Its blanks are these six, and every character
# beyond ASCII belongs to a word. Strings apart by a line end are one: also the second half of an E'…' has backslashes.
SQL_TOKEN = re.compile(
    r"""(?P<space>[ \t\n\r\f\v]++)
      | (?P<comment>--[^\n\r]*+)
      | (?P<block>/\*)
      | (?P<quoted>[eE]'(?:[^'\\]|\\.|'')*+
                   (?:'(?:[ \t\f\v]|--[^\n\r]*+)*+[\n\r](?:[ \t\n\r\f\v]|--[^\n\r]*+[\n\r])*+'(?:[^'\\]|\\.|'')*+)*+
                   (?P<end1>'|\Z)
        | '(?:[^']|'')*+(?P<end2>'|\Z) | "(?:[^"]|"")*+(?P<end3>"|\Z))
      | (?P<dollar>\$(?P<tag>(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*+)?)\$
                   .*? (?P<end4>\$(?P=tag)\$|\Z))
      | (?P<word>[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*+)
      | (?P<number>[0-9][A-Za-z0-9_.\x80-\U0010ffff]*+)
      | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
BLOCK_MARK = re.compile(r"/\*|\*/")
LINE_END = re.compile(r"\r\n|\r|\n")  # and no other, for PostgreSQL as for editors


class Token(NamedTuple):
    """A comment or a part of a statement: where it stands in the text, its first and its last line.

    word is what it says in capitals: a string is '', a comment nothing.
    """

    word: str
    begin: int
    end: int
    line: int
    last_line: int


def end_of_block_comment(sql: str, start: int) -> int:
    """Where the comment that begins at start ends; PostgreSQL's nest. -1 if it does not end."""
    depth = 0
    for found in BLOCK_MARK.finditer(sql, start):
        depth += 1 if found.group() == "/*" else -1
        if depth == 0:
            return found.end()
    return -1


def line_ends(sql: str, begin: int, end: int) -> int:
    """How many lines end there."""
    return sql.count("\n", begin, end) + sql.count("\r", begin, end) - sql.count("\r\n", begin, end)


def tokens(sql: str) -> Iterator[Token]:
    """The tokens of an SQL file, its comments among them. Every character is looked at once.

    Raises Wrong with the line of a quote or comment that does not end, and of psql's backslash commands.
    """
    position, line = 0, 1
    while position < len(sql):
        found = SQL_TOKEN.match(sql, position)
        assert found, "every character is a token"
        begin, position, kind = position, found.end(), found.lastgroup
        if found["block"]:
            position = end_of_block_comment(sql, begin)
        if position < 0:
            raise Wrong(text("line {line}: this comment does not end", line=str(line)))
        if "" in (found["end1"], found["end2"], found["end3"], found["end4"]):
            raise Wrong(text("line {line}: this quote does not end", line=str(line)))
        if found["other"] == "\\":
            raise Wrong(text("line {line}: psql's backslash commands are not SQL; remove it", line=str(line)))
        first, line = line, line + line_ends(sql, begin, position)
        if kind in ("comment", "block"):
            yield Token("", begin, position, first, line)
        elif kind != "space":
            yield Token(
                (found["word"] or found["number"] or found["other"] or "''").upper(), begin, position, first, line
            )


class Nesting:
    """Where in a statement a semicolon does not end it: in brackets (CREATE RULE), in a routine's BEGIN ATOMIC … END.

    psql draws the same line (its psqlscan.l).
    """

    def __init__(self) -> None:
        self.brackets: list[int] = []  # the line of each that is open
        self.blocks = 0

    def read(self, words: Sequence[str], line: int) -> None:
        """Take in the last of the statement's words so far."""
        word = words[-1]
        if word == "(":
            self.brackets.append(line)
        elif word == ")" and self.brackets:
            self.brackets.pop()
        elif self.blocks:
            self.blocks += {"CASE": 1, "END": -1}.get(word, 0)
        elif word == "ATOMIC" and words[0] == "CREATE" and words[-2] == "BEGIN":
            self.blocks = 1

    @property
    def open(self) -> bool:
        return bool(self.brackets or self.blocks)


def split_statements(sql: str) -> list[Statement]:
    """The statements of an SQL file, without their semicolons; comments alone are none.

    Raises Wrong with the line of whatever does not end.
    """
    statements: list[Statement] = []
    words: list[str] = []
    start, line, nesting = 0, 0, Nesting()
    for token in tokens(sql):
        if not token.word:
            continue
        if token.word == ";" and not nesting.open:
            if words:
                statements.append(Statement(sql[start : token.begin], line, tuple(words)))
            words, nesting = [], Nesting()
            continue
        if not words:
            start, line = token.begin, token.line
        words.append(token.word)
        nesting.read(words, token.line)
    if nesting.brackets:
        raise Wrong(text("line {line}: this bracket is not closed", line=str(nesting.brackets[-1])))
    if words:
        statements.append(Statement(sql[start:], line, tuple(words)))
    return statements


def statement_faults(statements: Sequence[Statement]) -> list[Text]:
    """What keeps these statements from being a mailing query, each with its line."""
    if not statements:
        return [text("no SQL statement; the last statement must be the SELECT of the mailing")]
    faults = [fault for statement in statements if (fault := statement_fault(statement))]
    last, first = statements[-1], statements[-1].command
    writes = first in ("INSERT", "UPDATE", "DELETE", "MERGE")
    if not faults and first not in ("SELECT", "WITH", "VALUES", "TABLE") and not (writes and "RETURNING" in last.words):
        faults.append(
            text(
                "line {line}: {command}: the last statement must return the mailing's rows (SELECT …)",
                line=str(last.line),
                command=first or "(",
            )
        )
    return faults


def statement_fault(statement: Statement) -> Text | None:
    """Why a statement has no place in a query file, with its line; None if it has."""
    first, line = statement.command, str(statement.line)
    ends = first in ("COMMIT", "ROLLBACK", "END", "ABORT", "BEGIN", "START") and "TO" not in statement.words[:4]
    if ends or statement.words[:2] == ("PREPARE", "TRANSACTION"):
        own = text("remove it; the program opens and ends the transaction itself")
        return text("line {line}: {command}: {fault}", line=line, command=first, fault=own)
    if first == "COPY":
        own = text("remove it and leave the SELECT; the program copies the result itself")
        return text("line {line}: {command}: {fault}", line=line, command=first, fault=own)
    if first == "#":
        return text("line {line}: a comment begins with --, not with #", line=line)
    if not all(word.isprintable() for word in statement.words):
        return text("line {line}: the SQL holds a character that cannot be seen; type the blanks anew", line=line)
    return None


# ----- Directives: the leading comments that are meant for the program, and those that look as if they were


@dataclass(frozen=True, slots=True)
class Comment:
    """A line of a comment: its text, marks included. leads: no SQL stands above it. block: it stands between /* */."""

    text: str
    line: int
    leads: bool
    block: bool


def comment_lines(sql: str) -> Iterator[Comment]:
    """The comments that begin a line, above the SQL also those behind one another; up to whatever does not end."""
    leads, busy_line = True, 0  # the last line with SQL on it
    with contextlib.suppress(Wrong):  # split_statements tells of it
        for token in tokens(sql):
            if token.word:
                leads, busy_line = False, token.last_line
            elif token.line > busy_line:
                block = sql.startswith("/*", token.begin)
                for number, line in enumerate(LINE_END.split(sql[token.begin : token.end]), token.line):
                    yield Comment(line, number, leads, block)


DIRECTIVE = re.compile(r"--\s*([A-Za-z_]+)\s*:(?!:)(.*)")


def parse_directives(sql: str) -> tuple[dict[str, Any], list[Text]]:
    """The leading `-- key: value` lines of a query file, parsed; and what is wrong with them, each with its line."""
    found: dict[str, Any] = {}
    faults: list[Text] = []
    for comment in comment_lines(sql):
        written = DIRECTIVE.fullmatch(comment.text.rstrip())
        key = written.group(1).lower() if written else ""
        if not written or key not in DIRECTIVES or comment.block:
            fault = meant_as_directive(comment, sql)
        elif not comment.leads:
            fault = text("must stand above the first SQL line, or it has no effect")
        elif key in found:
            fault = text("given twice")
        else:
            found[key], fault = parse_directive(key, written.group(2).strip())
        if fault and key in DIRECTIVES and not comment.block:
            fault = text("{key}: {fault}", key=key, fault=fault)
        if fault:
            faults.append(text("line {line}: {fault}", line=str(comment.line), fault=fault))
    return found, faults


def parse_directive(key: str, value: str) -> tuple[Any, Text | None]:
    """What a directive says, or what is wrong with it."""
    if not value:
        return None, text("has no value")
    try:
        return DIRECTIVES[key].parse(value), None
    except Wrong as error:
        return None, error.told


# A comment that somebody may have meant as a directive: a key or what is one typing error away from it, and behind it
# what looks like a value of it. Both, since '-- File name: x.sql' or '-- Phone: 3333-4444' are good comments.
KEY_AND_VALUE = [
    re.compile(
        rf"[\W_]*(?P<key>[^\W_]+(?:[\s._-]+[^\W_]+){{{blanks}}})[\"'`\])}}*_.]*\s*"
        r"(?P<separator>(?:[:：︓﹕꞉∶=>–—-]\s*)*)(?P<value>.*)"
    )
    for blanks in range(4)
]


def meant_as_directive(comment: Comment, sql: str) -> Text | None:
    """What to say of a comment that has no effect and was meant to have one; None of an ordinary comment."""
    bare = "".join(letter if letter.isprintable() else " " for letter in comment.text)
    bare = bare.removesuffix("*/").rstrip() if comment.block else bare.rstrip()
    for pattern in KEY_AND_VALUE:
        found = pattern.fullmatch(bare)
        if not found or found["separator"].startswith("::"):
            continue
        written = re.sub(r"[\s._-]+", "_", found["key"].lower())
        key = near_key(written)
        if key and is_meant(comment, key, found["separator"].strip(), found["value"], written, sql):
            return text("{written}: has no effect so; write '-- {key}: …'", written=found["key"], key=key)
    return None


@functools.lru_cache(maxsize=1000)
def near_key(written: str) -> str | None:
    """The directive that written is, or is one typing error away from."""
    return next((key for key in (written, *DIRECTIVES) if key in DIRECTIVES and one_error_apart(written, key)), None)


def one_error_apart(one: str, other: str) -> bool:
    """Whether two words are the same but for a letter too many, missing, wrong, or two that changed places."""
    if abs(len(one) - len(other)) > 1:
        return False
    while one and one[:1] == other[:1]:
        one, other = one[1:], other[1:]
    swapped = one[:2] == other[1::-1] and one[2:] == other[2:]
    return one[1:] == other[1:] or one[1:] == other or one == other[1:] or swapped


def is_meant(comment: Comment, key: str, separator: str, value: str, written: str, sql: str) -> bool:
    """Whether a comment whose first words are (nearly) key was meant as a directive."""
    looks = bool(re.match(DIRECTIVES[key].looks, value, re.IGNORECASE))
    if key in ("columns", "phones", "unique"):
        listed = looks and (separator != "" or ";" in value)
        columns = (name.upper() for name in re.split(r"\s*[;,]\s*", value) if re.fullmatch(r"\w+", name))
        looks = listed or any(column in words_of(sql) for column in columns)
    if not comment.leads:
        return DIRECTIVES[key].is_guard and looks and separator != ""
    if not separator:  # plain words: only what can hardly be anything else
        return looks and (written == key or "_" in key)
    return looks or (DIRECTIVES[key].is_guard and separator[0] not in "-–—")


@functools.lru_cache(maxsize=1)
def words_of(sql: str) -> frozenset[str]:
    """The words of a file's SQL in capitals, up to whatever does not end."""
    words: set[str] = set()
    with contextlib.suppress(Wrong):
        words.update(token.word for token in tokens(sql))
    return frozenset(words)


# ----- Files


def parse_campaign(source: str, sql: str, settings: Settings) -> Campaign:
    """A query file as a Campaign; source is its file name. Raises QueryFault with every fault and its line."""
    given, faults = parse_directives(sql)
    name = given.get("campaign") or name_in(source)
    hours = campaign_hours(given, settings)
    faults += name_faults(name, given.get("file_name") or settings.file_name)
    faults += [text("hours: {fault}", fault=idle)] if (idle := idle_campaign_hours(hours, given)) else []
    faults += column_faults(given)
    try:
        statements = split_statements(sql)
        faults += statement_faults(statements)
    except Wrong as error:
        faults.append(error.told)
    faults = unreadable(sql) or faults
    if faults:
        raise QueryFault(BrokenQuery(source, fed_name(given.get("campaign"), source), tuple(faults)))

    return Campaign(
        name=name,
        source=source,
        prelude=tuple(statements[:-1]),
        select=statements[-1],
        folder=settings.sftp_base_dir / given.get("folder", name),
        hours=hours,
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


def unreadable(sql: str) -> list[Text]:
    """What makes a file one that no line of can be trusted; nothing else is told of it then."""
    if not sql.strip():
        return [text("the file is empty; its last statement must be the SELECT of the mailing")]
    if "\0" in sql:
        line = str(line_ends(sql, 0, sql.index("\0")) + 1)
        return [text("line {line}: a NUL character; save the file as UTF-8 in the editor", line=line)]
    if "\r" in sql and "\n" not in sql:
        return [text("its lines end in CR alone; save the file with Windows (CRLF) or Unix (LF) line ends")]
    return []


def name_faults(name: str, file_name: str) -> list[Text]:
    """What is wrong with the campaign's name, and with the file name that it gives."""
    faults = []
    try:
        campaign_name(name)
    except Wrong as error:
        faults.append(
            text(
                "the campaign's name '{name}' {fault}; rename the file or add '-- campaign: name'",
                name=name,
                fault=error.told,
            )
        )
    try:
        file_name_pattern(file_name, name)
    except Wrong as error:
        faults.append(text("its file name {fault}", fault=error.told))
    return faults


def column_faults(given: Mapping[str, Any]) -> list[Text]:
    """The columns that phones: and unique: name and columns: does not."""
    columns = given.get("columns") or ()
    return [
        text("{key}: {column} is not one of columns:", key=key, column=column)
        for key in ("phones", "unique")
        for column in given.get(key) or ()
        if columns and column not in columns
    ]


def campaign_hours(given: Mapping[str, Any], settings: Settings) -> Hours:
    """When a campaign runs: what its file says, else what the settings say."""
    days, starts = given.get("days"), given.get("hours")
    keys = "days:" if days else "RUN_DAYS", "hours:" if starts else "RUN_HOURS"
    return Hours(days or settings.run_days, starts or settings.run_hours, settings.holidays, keys)


def idle_campaign_hours(hours: Hours, given: Mapping[str, Any]) -> Text | None:
    """As idle_hours; but RUN_DAYS may leave out a day that a campaign has hours for, and RUN_HOURS know more days."""
    idle = idle_hours(hours)
    return idle if not hours.weekdays or (given.get("days") and given.get("hours")) else None


# How Explorer, OneDrive (the name of the PC), macOS and Linux name a copy. In this order: the first that fits decides.
COPIES = (
    r"(?i)(?:c(?:o\u0301?|ó)pia de|copy of) (.+)",
    r"(?i)(.+?)(?: ?- ?| )(?:c(?:o\u0301?|ó)pia|copy)(?: ?\(?\d+\)?)?",
    r"(.+?) ?\([^()]*\)",
    r"(.+?) \d+",
    r"(.+?)-[A-Z0-9]+(?:-[A-Z0-9]+)*",
)


def original_of(stem: str) -> str:
    """The name that a copy was made from, as its own tells; stem itself if it is no copy's."""
    for pattern in COPIES:
        if found := re.fullmatch(pattern, stem):
            return original_of(found.group(1))
    return stem


def name_in(source: str) -> str:
    """The campaign that a file's name tells."""
    return re.sub(r"^\d+_|\.sql$", "", source, flags=re.IGNORECASE)


def is_query_name(name: str) -> bool:
    """Whether a file of that name is read: in small letters, except on Windows."""
    return (name.lower() if os.name == "nt" else name).endswith(".sql")


def why_not_read(path: Path, names: Collection[str]) -> Text | None:
    """Why a file that looks like a query is not read; None if it is, or does not look like one. names: all of them."""
    name, original = path.name, original_of(path.stem) + path.suffix
    if not re.match(r"\d+_", name) and ".sql" not in name.lower():
        return None
    if name.startswith((".", "~", "#")):
        return text("its name begins with {sign}", sign=name[0])
    if not is_query_name(name):
        return text("only files whose name ends in .sql are, in small letters; rename it if it is a query")
    if path.is_dir():
        return text("it is a folder")
    if original != name and original in names:
        return text("it looks like a copy of {original}; delete it, or give it a name of its own", original=original)
    return None


def read_query(path: Path, source: str, settings: Settings) -> Campaign | None:
    """The campaign of a query file; None if its own line switches it off. Raises QueryFault."""
    data, sql, fault = b"", "", None
    try:
        data = path.read_bytes()
        sql = decoded(data)
    except OSError as error:
        fault = text("cannot be read: {why}", why=error.strerror)
    except Wrong as error:
        fault, sql = error.told, data.decode("latin-1")  # enough for its directives
    given, _ = parse_directives(sql)
    if given.get("enabled") is False:
        return None
    if fault:
        raise QueryFault(BrokenQuery(source, fed_name(given.get("campaign"), source), (fault,)))
    return parse_campaign(source, sql, settings)


def fed_name(given: str | None, source: str) -> str:
    """The campaign that a broken file would feed: the given one, that of its name, of its original, or that name."""
    stem = name_in(source)
    original = original_of(stem)
    return given or (original if re.fullmatch(r"[a-z0-9_]+", original) else stem)


def load_campaigns(folder: Path, settings: Settings) -> QueryFiles:
    """What lies in the folder of the query files. Raises SettingsFault if not one of them can be used."""
    campaigns: list[Campaign] = []
    broken: list[BrokenQuery] = []
    notes: list[Text] = []
    paths = files_in(folder)
    names = {path.name for path in paths}
    for path in paths:
        source = "".join(letter if letter.isprintable() else "?" for letter in path.name)
        why = why_not_read(path, names)
        if not why and is_query_name(path.name):
            try:
                campaign = read_query(path, source, settings)
            except QueryFault as fault:
                broken.append(fault.broken)
                continue
            campaigns += [campaign] if campaign else []
            why = None if campaign else text("its line 'enabled: no' switches it off")
        if why:
            notes.append(text("{file} is not read: {why}", file=source, why=why))
    campaigns, broken = without_clashes(campaigns, broken, settings.sftp_staging_dir)
    if not campaigns:
        nothing = text(
            "{folder}: no query file that can be used; one for each campaign (QUERIES_DIR)", folder=str(folder)
        )
        raise SettingsFault(nothing, *(told for query in broken for told in query.told), *notes)
    return QueryFiles(tuple(campaigns), tuple(broken), tuple(notes))


def files_in(folder: Path) -> list[Path]:
    """What lies in folder, in the order of the names. Raises SettingsFault if it cannot be read."""
    try:
        return sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        told = text("{folder}: cannot be read: {why} (QUERIES_DIR)", folder=str(folder), why=error.strerror)
        raise SettingsFault(told) from None


def without_clashes(
    campaigns: Sequence[Campaign], broken: Sequence[BrokenQuery], staging: PurePosixPath | None
) -> tuple[list[Campaign], list[BrokenQuery]]:
    """The campaigns that share name and folder with no other, and the broken files with the rest among them.

    Both sides are at fault: which of them was meant, nobody knows.
    """
    faults = clashes(campaigns, broken, staging)
    sound = [campaign for campaign in campaigns if campaign.source not in faults]
    found = [BrokenQuery(c.source, c.name, tuple(faults[c.source])) for c in campaigns if c.source in faults]
    found += [dataclass_replace(b, faults=(*b.faults, *faults.get(b.source, ()))) for b in broken]
    return sound, sorted(found, key=lambda query: query.source)


def clashes(
    campaigns: Sequence[Campaign], broken: Sequence[BrokenQuery], staging: PurePosixPath | None
) -> dict[str, list[Text]]:
    """What files have in common that each needs for itself, by file: names, drop folders, the staging folder."""
    names = [(campaign.name, campaign.source) for campaign in campaigns]
    names += [(query.name, query.source) for query in broken]
    folders = [(str(campaign.folder), campaign.source) for campaign in campaigns]
    folders += [(str(staging), "SFTP_STAGING_DIR")] if staging else []
    faults: dict[str, list[Text]] = {}
    for source, name, others in shared(names):
        told = text("the name {name} is used by {others} too; each needs its own", name=name, others=others)
        faults.setdefault(source, []).append(told)
    for source, folder, others in shared(folders):
        told = text("the folder {folder} is used by {others} too; each needs its own", folder=folder, others=others)
        faults.setdefault(source, []).append(told)
    return faults


def shared(uses: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str, list[str]]]:
    """Of (value, user) pairs: each user whose value has others, with the value and those others.

    Without regard to capitals: some SFTP servers (Windows) take /Entrada and /entrada for one folder.
    """
    users: dict[str, list[str]] = {}
    for value, user in uses:
        users.setdefault(value.lower(), []).append(user)
    for value, user in uses:
        if others := [other for other in users[value.lower()] if other != user]:
            yield user, value, others


def choose(files: QueryFiles, only: Sequence[str]) -> QueryFiles:
    """The query files of the campaigns that --only names, or all. Raises UsageFault for an unknown name."""
    known = [campaign.name for campaign in files.campaigns]
    known += [query.name for query in files.broken if query.name not in known]
    unknown = [name for name in only if name not in known]
    if unknown:
        told = text("--only {unknown}: no such campaign; known: {known}", unknown=unknown, known=known)
        raise UsageFault(told)
    if not only:
        return files
    campaigns = tuple(campaign for campaign in files.campaigns if campaign.name in only)
    return QueryFiles(campaigns, tuple(query for query in files.broken if query.name in only), files.notes)


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
# Mailing: what a campaign is in a run. The one record: the ledger stores it, everything else is computed from it
# ---------------------------------------------------------------------------------------------------------------------


class State(StrEnum):
    """A mailing's fate, in the words that the ledger holds and an operator reads."""

    CLAIMED = "claimed"  # before its query
    EXPORTED = "exported"  # whole on this PC's disk
    PUBLISHING = "publishing"  # its rename may have happened
    WITHDRAWING = "withdrawing"  # after a rename without an answer its temp is being removed
    DELIVERED = "delivered"
    IN_DOUBT = "in doubt"  # nobody can tell whether the dialer has it: never sent again
    EMPTY = "empty"
    HELD = "held"
    FAILED = "failed"
    # Of a run's report only: there is nothing to note
    ALREADY = "already delivered"
    READY = "would be sent"
    NOT_DUE = "not due"
    # Of the grid only: read off an entry, or off its absence
    RUNNING = "running"
    NOT_TAKEN = "not taken"  # by the dialer, or refused
    MISSED = "missed"
    COMING = "still to come"

    def told(self, language: str) -> str:
        """Its word, for the operator."""
        return text(self).told(language)

    @property
    def look(self) -> Look:
        """How it is shown."""
        return LOOKS[self]


UNSETTLED = (State.CLAIMED, State.EXPORTED, State.PUBLISHING, State.WITHDRAWING)  # how a killed run leaves them
MAY_BE_OUT = (State.PUBLISHING, State.WITHDRAWING, State.IN_DOUBT)


class Pickup(StrEnum):
    """What the dialer did with a delivered file, where that is watched."""

    UNWATCHED = ""
    TAKEN = "picked up"
    LEFT = "not picked up"
    REFUSED = "refused by the dialer"
    UNKNOWN = "not known whether it was picked up"


UNNOTED = {"noted": False}
FIGURES = (
    "columns",
    "rows",
    "rejected",
    "replaced",
    "size_bytes",
    "sha256",
    "seconds",
)  # of a mailing that is exported
TROUBLED_PICKUPS = (Pickup.LEFT, Pickup.REFUSED, Pickup.UNKNOWN)


@dataclass(slots=True, kw_only=True)
class Mailing:
    """A campaign in a run: where it goes, what it holds, how far it came. Changed by its own worker alone."""

    campaign: str
    slot: str
    state: State
    id: int = 0  # in the ledger; 0: not noted there
    resend: bool = False
    folder: PurePosixPath = PurePosixPath()  # the drop folder
    file: str = ""  # the final name
    temp: str = ""  # the path of its temp names: /entrada/x/.part-{id}
    temp_id: int = 0  # of the first temp that may be on the server; the next one's is one more
    temps: int = 0  # how many may be there
    columns: int = 0
    rows: int = 0
    rejected: int = 0
    replaced: int = 0  # characters that the encoding lacks
    size_bytes: int = 0
    sha256: str = ""
    seconds: float = 0.0
    message: str = ""  # what the operator was told
    hint: str = ""
    pickup: Pickup = Pickup.UNWATCHED
    picked_up: str = ""  # 10:02:45
    pc: str = ""  # which brought it, or settled what became of it
    changed: str = ""  # local time with offset

    # Of the run alone, not noted in the ledger
    error: PipelineError | None = field(default=None, metadata=UNNOTED)
    unanswered: bool = field(default=False, metadata=UNNOTED)  # a rename that the server may still carry out
    began_s: float = field(default=0.0, metadata=UNNOTED)  # on the steady clock
    sent_bytes: int = field(default=0, metadata=UNNOTED)
    is_whole: bool = field(default=False, metadata=UNNOTED)  # its temp, as far as the server has acknowledged
    past_rows: Sequence[int] = field(default=(), metadata=UNNOTED)  # of the last delivered ones, for a rehearsal

    @property
    def final(self) -> PurePosixPath:
        """The whole path of the final name."""
        return self.folder / self.file

    @property
    def temp_paths(self) -> list[PurePosixPath]:
        """The temps that may be on the server, the last one being the mailing itself."""
        numbers = range(self.temp_id, self.temp_id + self.temps)
        return [PurePosixPath(self.temp.replace("{id}", f"{number & 0xFFFFFFFF:08x}")) for number in numbers]

    @property
    def part(self) -> PurePosixPath:
        """The temp that is, or was, to be renamed."""
        return self.temp_paths[-1]

    @property
    def is_trouble(self) -> bool:
        """Whether it needs, or needed, a person."""
        troubled = (State.HELD, State.FAILED, *MAY_BE_OUT)
        return self.state in troubled or self.pickup in TROUBLED_PICKUPS


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRun:
    """How a run ended, in the ledger."""

    id: int
    slot: str
    exit_code: int
    started: bool  # whether it came to its campaigns; else the message says why not
    message: str
    hint: str
    pc: str = ""
    changed: str

    @property
    def is_trouble(self) -> bool:
        """Whether the whole run failed before its campaigns could."""
        return not self.started


# ---------------------------------------------------------------------------------------------------------------------
# Ledger: what was promised before a rename, and what came of it
# ---------------------------------------------------------------------------------------------------------------------

LEDGER_VERSION = 3
PC = socket.gethostname()
LEDGER_SQL = """
CREATE TABLE IF NOT EXISTS mailings (
    id INTEGER PRIMARY KEY,
    slot TEXT NOT NULL,                   -- 2026-12-22 10:00
    campaign TEXT NOT NULL,
    state TEXT NOT NULL,
    resend INTEGER NOT NULL DEFAULT 0,    -- 1: sent although the slot had been delivered (--resend)
    folder TEXT NOT NULL,                 -- the drop folder
    file TEXT NOT NULL,                   -- the final name
    temp TEXT NOT NULL DEFAULT '',        -- the path of its temp names, {id} being eight hexadecimal digits
    temp_id INTEGER NOT NULL DEFAULT 0,   -- the first of them
    temps INTEGER NOT NULL DEFAULT 0,     -- how many may be on the server
    columns INTEGER NOT NULL DEFAULT 0,
    rows INTEGER NOT NULL DEFAULT 0,
    rejected INTEGER NOT NULL DEFAULT 0,
    replaced INTEGER NOT NULL DEFAULT 0,  -- characters that the encoding lacks
    size_bytes INTEGER NOT NULL DEFAULT 0,
    sha256 TEXT NOT NULL DEFAULT '',
    seconds REAL NOT NULL DEFAULT 0,
    message TEXT NOT NULL DEFAULT '',     -- what the operator was told
    hint TEXT NOT NULL DEFAULT '',
    pickup TEXT NOT NULL DEFAULT '',      -- what the dialer did with it
    picked_up TEXT NOT NULL DEFAULT '',   -- when
    pc TEXT NOT NULL DEFAULT '',          -- which brought it
    changed TEXT NOT NULL                 -- local time with offset
);
CREATE UNIQUE INDEX IF NOT EXISTS once ON mailings (campaign, slot)
    WHERE resend = 0 AND state IN ('publishing', 'withdrawing', 'delivered', 'in doubt');
CREATE INDEX IF NOT EXISTS by_file ON mailings (lower(file));
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY,
    slot TEXT NOT NULL,
    exit_code INTEGER NOT NULL,
    started INTEGER NOT NULL,             -- 0: it ended before any campaign had an outcome
    message TEXT NOT NULL,
    hint TEXT NOT NULL,
    pc TEXT NOT NULL DEFAULT '',
    changed TEXT NOT NULL
);
"""
# What version 1 noted: runs were mailings without a campaign, temps stood in one column, a line each.
LEDGER_FROM_1 = """
ALTER TABLE mailings RENAME TO old_mailings;
DROP INDEX IF EXISTS at_most_once;
DROP INDEX IF EXISTS by_file;
"""
LEDGER_FROM_2 = """
ALTER TABLE mailings ADD COLUMN pc TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN pc TEXT NOT NULL DEFAULT '';
"""


class Ledger:
    """The record of deliveries, kept across runs and crashes; what is noted is on the disk before a call returns.

    This is one PC's, in SQLite; SharedLedger is that of several, in PostgreSQL. looks: nothing is to be noted,
    so that a ledger that cannot be written will do. Raises SettingsFault when it is opened, LocalFault afterwards.
    """

    is_shared = False
    has_lost = False  # whatever was held
    _is_ours = "1 = 1"  # in SQL: whether this PC still holds the campaign of an entry

    def __init__(self, path: Path, clock: Clock, looks: bool = False) -> None:
        self.path, self.clock = path, clock
        self._lock = threading.RLock()
        undo = contextlib.ExitStack()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            undo.callback(self._db.close)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA synchronous=FULL")
            sound = self._db.execute("PRAGMA quick_check").fetchone()[0]
            if sound == "ok":
                self._prepare(looks)
        except (sqlite3.Error, OSError) as error:
            sound = foreign(error)
        if sound != "ok":
            undo.close()
            raise SettingsFault(
                text(
                    "{path}: the ledger cannot be used ({reason}); nothing was sent. Free the disk, make the file "
                    "writable and close other programs that hold it; if it is damaged, restore it or move it away "
                    "with the CSVs beside it",
                    path=path,
                    reason=sound,
                )
            )

    def _prepare(self, looks: bool) -> None:
        """Make the tables, or take over those of an older version. A read-only or full disk shows here."""
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        is_new = not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'mailings'").fetchone()
        if is_new:
            self._refuse_beside_mailings()
        if version > LEDGER_VERSION:
            raise SettingsFault(text("{path}: the ledger is of a newer version of this program", path=self.path))
        if looks and not is_new and version == LEDGER_VERSION:
            return
        self._db.execute("BEGIN IMMEDIATE")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]  # another program may have been first
        update = {1: LEDGER_FROM_1, 2: LEDGER_FROM_2}.get(version, "") if not is_new else ""
        for statement in (update + LEDGER_SQL).split(";"):
            self._db.execute(statement)
        if update == LEDGER_FROM_1:
            self._take_over()
        self._db.execute(f"PRAGMA user_version = {LEDGER_VERSION}")
        self._db.execute("COMMIT")

    def _refuse_beside_mailings(self) -> None:
        """A new ledger beside old mailings would know nothing of what this slot has delivered."""
        files = sorted(self.path.parent.iterdir())
        if mailings := [file for file in files if file.suffix.lower() in MAILING_ENDINGS]:
            raise SettingsFault(
                text(
                    "{path}: the ledger is gone, but {folder} holds mailings ({file} …): what this slot has "
                    "delivered is unknown. Restore the file; or, to begin a new one, move those CSVs elsewhere",
                    path=self.path,
                    folder=self.path.parent,
                    file=mailings[0].name,
                )
            )

    def _take_over(self) -> None:
        """Everything that version 1 knew."""
        unused_ids = itertools.count(-1, -1)
        for row in self._db.execute("SELECT * FROM old_mailings ORDER BY id").fetchall():
            if row["campaign"]:
                self._take_over_mailing(row, unused_ids)
            else:
                code = ExitCode.OK if row["state"] == "done" else ExitCode.PARTIAL
                started = row["file"] != "fault"
                told = {name: row[name] for name in ("slot", "message", "hint", "changed")}
                self._insert("runs", told | {"exit_code": code, "started": started})
        self._db.execute("DROP TABLE old_mailings")

    def _take_over_mailing(self, row: sqlite3.Row, unused_ids: Iterator[int]) -> None:
        old = dict(row)
        state = "claimed" if old["state"] == "started" else old["state"]
        pickup = old["pickup"]
        if state == "publishing" and pickup:
            state, pickup = "withdrawing", ""
        kind = next((kind for kind in Pickup if kind and pickup.startswith(kind)), Pickup.UNWATCHED)
        at = pickup.rpartition(" ")[2] if kind is Pickup.TAKEN else ""
        *earlier, last = old["temp"].split("\n")
        kept = ("slot", "campaign", "resend", "folder", "file", "rows", "rejected", "size_bytes", "sha256")
        told = {name: old[name] for name in (*kept, "seconds", "message", "hint", "changed")}
        told["message"] = told["message"] or (pickup if kind in TROUBLED_PICKUPS else "")
        now = told | {"id": old["id"], "state": state, "pickup": kind, "picked_up": at} | temp_columns(last)
        self._insert("mailings", now)
        for temp in earlier:  # one more entry for each, or nobody would ever remove it; of no slot: none shows it
            unseen = {"id": next(unused_ids), "state": State.EMPTY, "slot": "", "file": ""}
            self._insert("mailings", told | unseen | temp_columns(temp))

    def close(self) -> None:
        self._db.close()

    def claim(self, mailing: Mailing) -> None:
        """A new entry."""
        mailing.changed, mailing.pc = self._now(), PC
        values = stored(mailing)
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        held = f"(SELECT CAST(? AS TEXT) AS campaign) AS held WHERE {self._is_ours}"
        sql = f"INSERT INTO mailings ({names}) SELECT {marks} FROM {held} RETURNING id"
        mailing.id = self._if_ours(mailing, sql, (*values.values(), mailing.campaign))

    def hold(self, campaigns: Sequence[str]) -> str:
        """The first of these campaigns that no other PC is at work on: ours until `release`. '': there is none."""
        return campaigns[0]

    def release(self, campaign: str) -> None:
        """Let other PCs have a campaign."""

    @contextlib.contextmanager
    def holding(self, campaign: str) -> Iterator[bool]:
        """Hold a campaign until the block ends; whether no other PC has it."""
        held = self.hold([campaign])
        try:
            yield bool(held)
        finally:
            if held:
                self.release(campaign)

    def probe(self) -> Text | None:
        """For --check: whether entries can be made; what somebody should know."""
        return None

    def still_ours(self, mailing: Mailing) -> None:
        """As late as can be before a request that another PC must not meet: its entry was noted just now.

        Raises ClaimLost if this PC stood still meanwhile.
        """

    def note(self, mailing: Mailing, **values: Any) -> None:
        """Set fields of a mailing, here and in its entry; on the disk when it returns."""
        values["changed"] = self._now()
        columns = ", ".join(f"{name} = ?" for name in values)
        sql = f"UPDATE mailings SET {columns} WHERE id = ? AND {self._is_ours} RETURNING id"
        self._if_ours(mailing, sql, (*values.values(), mailing.id))
        for name, value in values.items():  # not before: the record must not know more than the disk
            setattr(mailing, name, value)

    def _if_ours(self, mailing: Mailing, sql: str, values: Sequence[Any]) -> int:
        """The number of the entry that sql has written. Raises ClaimLost if this PC does not hold its campaign."""
        rows = [] if self.has_lost else self._execute(sql, values)
        if not rows:
            message = text("{campaign}: another PC may be at work on it", campaign=mailing.campaign)
            raise ClaimLost(message, LOST_HINT, wide=True)
        return int(rows[0]["id"])

    def mailings(self, where: str, *values: Any) -> list[Mailing]:
        """The entries for which the SQL condition holds, oldest first."""
        rows = self._execute(f"SELECT * FROM mailings WHERE {where} ORDER BY id", values)
        return [mailing_of(row) for row in rows]

    def unsettled(self, campaign: str = "") -> list[Mailing]:
        """What earlier runs left behind (of that campaign): on its way, in doubt, or with a temp on the server."""
        states = ", ".join(f"'{state}'" for state in UNSETTLED)
        return self.mailings(f"(state IN ({states}) OR temps > 0) AND ? IN ('', campaign)", campaign)

    def in_slot(self, slot: str, campaign: str) -> list[Mailing]:
        """What reached the dialer in this slot, or may have."""
        states = ", ".join(f"'{state}'" for state in (State.DELIVERED, *MAY_BE_OUT))
        return self.mailings(f"slot = ? AND campaign = ? AND state IN ({states})", slot, campaign)

    def settled(self, slot: str) -> set[int]:
        """The numbers of the slot's entries of which it is known what came."""
        states = ", ".join(f"'{state}'" for state in UNSETTLED)
        rows = self._execute(f"SELECT id FROM mailings WHERE slot = ? AND state NOT IN ({states})", (slot,))
        return {row["id"] for row in rows}

    def verdicts_elsewhere(self, slot: str, campaign: str) -> list[Mailing]:
        """That other PCs brought it as far as its guards in this slot, which answers for this PC too."""
        return self.mailings("slot = ? AND campaign = ? AND pc <> ? AND state IN ('held', 'empty')", slot, campaign, PC)

    def past_rows(self, campaign: str) -> list[int]:
        """The rows of the campaign's last ten delivered mailings."""
        sql = "SELECT rows FROM mailings WHERE campaign = ? AND state = 'delivered' ORDER BY id DESC LIMIT 10"
        return [row["rows"] for row in self._execute(sql, (campaign,))]

    def last_delivered(self, campaign: str) -> Mailing | None:
        """The campaign's latest delivered mailing."""
        sql = "campaign = ? AND state = 'delivered' AND id = (SELECT max(id) FROM mailings AS m"
        found = self.mailings(f"{sql} WHERE m.campaign = ? AND m.state = 'delivered')", campaign, campaign)
        return found[0] if found else None

    def knows_file(self, name: str) -> bool:
        """Whether a mailing ever had this name."""
        return bool(self._execute("SELECT 1 FROM mailings WHERE lower(file) = lower(?) LIMIT 1", (name,)))

    def files_before(self, moment: datetime) -> set[str]:
        """The names of the mailings that were last touched before that moment."""
        sql = "SELECT DISTINCT file FROM mailings WHERE changed < ? AND file <> ''"
        return {row["file"] for row in self._execute(sql, (moment.isoformat(),))}

    def note_run(self, slot: str, code: ExitCode, started: bool, message: str, hint: str) -> None:
        """How a whole run ended; started: its campaigns had outcomes of their own."""
        told = {"slot": slot, "exit_code": code, "started": started, "message": message, "hint": hint}
        self._insert("runs", told | {"pc": PC, "changed": self._now()})

    def runs(self, since: str) -> list[PastRun]:
        """The runs that ended after that time, oldest first."""
        rows = self._execute("SELECT * FROM runs WHERE changed > ? ORDER BY id", (since,))
        return [PastRun(**(row | {"started": bool(row["started"])})) for row in rows]

    def _now(self) -> str:
        return self.clock.now().isoformat(timespec="milliseconds")

    def _insert(self, table: str, values: Mapping[str, Any]) -> int:
        marks = ", ".join("?" * len(values))
        sql = f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks}) RETURNING id"
        return int(self._execute(sql, tuple(values.values()))[0]["id"])

    def _execute(self, sql: str, values: Sequence[Any]) -> list[dict[str, Any]]:
        """The one place at which the ledger is asked, in the SQL that both engines speak; ? stands for a value."""
        try:
            with self._lock:
                return list(map(dict, self._db.execute(sql, [as_column(value) for value in values])))
        except sqlite3.IntegrityError:
            raise Held(text("this slot's mailing is out already")) from None  # the index `once`
        except sqlite3.Error as error:
            message = text("{path}: {reason}", path=self.path, reason=foreign(error))
            hint = text("free the disk, and close other programs that hold the ledger")
            raise LocalFault(message, hint) from error


LEDGER_SESSION_S = 30  # a session that is silent for so long loses its claims: its PC sleeps, hangs, or is cut off
LEDGER_BEAT_S = 10
LEDGER_ANSWER_S = 10
LEDGER_PATIENCE = RetryPolicy(20, 1, 10)  # some three minutes: a server restarts, a replica is promoted
LEDGER_POLL_S = 2  # between two looks at what other PCs hold
CLOCK_TOLERANCE_S = 60
LOST_HINT = text("nothing to do: whichever PC reaches the ledger carries on, and looks first what became of it")
CHECK_LEDGER = text("check LEDGER and the network; is PostgreSQL running, in version 14 or newer?")
# What stands in LEDGER_SQL, as PostgreSQL calls it.
POSTGRES_WORDS = {
    "INTEGER PRIMARY KEY": "INTEGER GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    "INTEGER": "BIGINT",
    "REAL": "DOUBLE PRECISION",
    "TEXT": 'TEXT COLLATE "C"',
}
SHARED_LEDGER_SQL = functools.reduce(
    lambda sql, word: sql.replace(*word),
    POSTGRES_WORDS.items(),
    f"""
SELECT pg_advisory_xact_lock(hashtext('{PROGRAM}')); -- PCs come at the same minute
DO $$ BEGIN IF to_regnamespace('{PROGRAM}') IS NULL THEN CREATE SCHEMA {PROGRAM}; END IF; END $$;
{LEDGER_SQL}
COMMENT ON TABLE mailings IS '{LEDGER_VERSION}';
""",
)


def lock_of(campaign: str) -> str:
    """The key of a campaign's advisory lock, in SQL; one table's keys are no other's."""
    return f"hashtextextended({campaign}, 'mailings'::regclass::oid::bigint)"


class SharedLedger(Ledger):
    """The ledger of several PCs, in the schema mailing_pipeline of a PostgreSQL of its own login.

    A claim is an entry together with an advisory lock on its campaign, which the session holds. The session
    beats; when its PC dies, sleeps, hangs or is cut off, PostgreSQL ends it (idle_session_timeout), the lock is
    free, and whoever takes it settles the entry by looking. A new session, after one that broke, holds nothing.
    """

    is_shared = True
    _is_ours = (
        "EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND objsubid = 1"
        f" AND (classid::bigint << 32 | objid::bigint) = {lock_of('campaign')})"
    )

    def __init__(self, settings: Settings, clock: Clock, looks: bool = False) -> None:
        self.settings, self.clock = settings, clock
        self.where = address(settings.ledger.get("host", "localhost"), settings.ledger.get("port", "5432"))
        self._lock, self._closed = threading.RLock(), threading.Event()
        self._session: psycopg.Connection[dict[str, Any]] | None = None
        self._limit_s = 0.0  # by when PostgreSQL must have answered
        try:
            if self._execute("SELECT to_regclass('mailings') AS table", ())[0]["table"] is None:
                self._execute(SHARED_LEDGER_SQL, ())
            self._check_version()
            if not looks:
                self._check_clock()
        except PipelineError as error:
            self.close()
            fault = SettingsFault(*error.lines)
            fault.tries = error.tries
            raise fault from None
        threading.Thread(target=self._beat, name="ledger", daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            if self._session:
                self._session.close()

    def hold(self, campaigns: Sequence[str]) -> str:
        sql = f"SELECT name FROM unnest(?::text[]) AS name WHERE pg_try_advisory_lock({lock_of('name')}) LIMIT 1"
        found = self._execute(sql, [list(campaigns)])
        return str(found[0]["name"]) if found else ""

    @property
    def has_lost(self) -> bool:  # type: ignore[override]
        return self._session is None or self._session.closed

    def release(self, campaign: str) -> None:
        with contextlib.suppress(LocalFault):  # without its session it is released already
            if not self.has_lost:
                self._execute(f"SELECT pg_advisory_unlock({lock_of('?::text')})", [campaign])

    def probe(self) -> Text | None:
        values = "(slot, campaign, state, folder, file, changed) VALUES ('', '', 'empty', '', '', '')"
        self._execute(f"BEGIN; INSERT INTO mailings {values}; ROLLBACK", ())
        told = text("shared, in PostgreSQL at {where}", where=self.where)
        waits = self._execute("SELECT current_setting('synchronous_standby_names') AS names", ())[0]["names"]
        if "," not in self.settings.ledger.get("host", "") or waits:
            return told
        return in_a_row([told, text("set synchronous_standby_names there, or a failover forgets the last deliveries")])

    def still_ours(self, mailing: Mailing) -> None:
        gone_s = (self.clock.now() - datetime.fromisoformat(mailing.changed)).total_seconds()
        if not -1 < gone_s < LEDGER_SESSION_S / 2:
            message = text("this PC stood still for {seconds} s: others may have its claims", seconds=round(gone_s))
            raise ClaimLost(message, LOST_HINT, wide=True)

    def _check_version(self) -> None:
        version = self._execute("SELECT obj_description('mailings'::regclass) AS version", ())[0]["version"]
        if version != str(LEDGER_VERSION):
            raise SettingsFault(text("{path}: the ledger is of another version of this program", path=self.where))

    def _check_clock(self) -> None:
        """A slot is an hour of this PC's clock: one that is wrong would send a slot's mailings a second time."""
        now, theirs = self.clock.now(), self._execute("SELECT extract(epoch FROM clock_timestamp())::float AS s", ())
        wrong_s = round(now.timestamp() - theirs[0]["s"])
        if abs(wrong_s) > CLOCK_TOLERANCE_S:
            template = "this PC's clock is {seconds} s off that of the ledger's server; nothing was sent. Set the clock"
            raise SettingsFault(text(template, seconds=wrong_s))
        for latest in self.mailings("id = (SELECT max(id) FROM mailings)"):
            then = datetime.fromisoformat(latest.changed)
            if then.utcoffset() != then.astimezone().utcoffset():
                template = "this PC and {pc} have different time zones; nothing was sent. Set the zone"
                raise SettingsFault(text(template, pc=latest.pc))

    def _beat(self) -> None:
        while not self._closed.wait(LEDGER_BEAT_S):
            with self._lock, contextlib.suppress(PipelineError):
                if not self.has_lost:
                    self._execute("SELECT 1", ())

    def _execute(self, sql: str, values: Sequence[Any]) -> list[dict[str, Any]]:
        import psycopg

        given = [as_column(value) for value in values]
        with self._lock:
            try:
                session = self._connected()
                self._limit_s = time.monotonic() + LEDGER_ANSWER_S
                cursor = session.execute(sql.replace("?", "%s").encode(), given or None)
                return cursor.fetchall() if cursor.description else []
            except psycopg.errors.UniqueViolation:
                raise Held(text("this slot's mailing is out already")) from None
            except psycopg.ProgrammingError as error:
                refused = isinstance(error, psycopg.errors.InsufficientPrivilege)
                raise LocalFault(self._told(error), self._cure() if refused else CHECK_LEDGER) from None
            except psycopg.Error as error:  # broken, ended by the server, silent, or a primary no more
                if self._session:
                    self._session.close()
                tries = connect_error(str(error), self.where).tries  # a wrong password stays wrong
                raise ClaimLost(self._told(error), CHECK_LEDGER, tries=tries, wide=True) from None

    def _connected(self) -> psycopg.Connection[dict[str, Any]]:
        """The session; a new one, which holds nothing, where it broke. Raises psycopg.Error."""
        from psycopg.rows import dict_row

        if self._session and not self.has_lost:
            return self._session
        limits = {
            "idle_session_timeout": f"{LEDGER_SESSION_S}s",
            "idle_in_transaction_session_timeout": f"{LEDGER_SESSION_S}s",
            "statement_timeout": f"{LEDGER_ANSWER_S}s",
            "synchronous_commit": "on",
            "search_path": PROGRAM,
        }
        set_up = " ".join(f"-c {name}={value}" for name, value in limits.items())
        options: dict[str, Any] = {
            "connect_timeout": self.settings.connect_timeout_seconds,
            "application_name": f"{PROGRAM} ledger",
            "target_session_attrs": "read-write",  # of several hosts the one that is primary now
            **self.settings.ledger,
            "client_encoding": "UTF8",
            "options": f"{self.settings.ledger.get('options', '')} {set_up}",
        }
        connect = bounded_connection().connect
        self._session = connect(**options, autocommit=True, prepare_threshold=None, row_factory=dict_row)
        self._session.look = self._look  # type: ignore[attr-defined]
        return self._session

    def _look(self) -> None:
        import psycopg

        if time.monotonic() > self._limit_s:
            raise psycopg.OperationalError("no answer in time")

    def _told(self, error: psycopg.Error) -> Text:
        reason = foreign(error.diag.message_primary or error, self.settings.secrets)
        return text("ledger at {where}: {reason}", where=self.where, reason=reason)

    def _cure(self) -> Text:
        sql = f'CREATE SCHEMA {PROGRAM} AUTHORIZATION "{self.settings.ledger.get("user", "")}"'
        return text("let the database administrator run: {sql}", sql=sql)


def open_ledger(settings: Settings, clock: Clock, looks: bool = False) -> Ledger:
    """The ledger that LEDGER names, or this PC's own."""
    return SharedLedger(settings, clock, looks) if settings.ledger else Ledger(settings.ledger_path, clock, looks)


def as_column(value: Any) -> Any:
    """A value as the ledger takes it."""
    if isinstance(value, (bool, IntEnum)):
        return int(value)
    return str(value) if isinstance(value, (PurePosixPath, StrEnum)) else value


def stored(mailing: Mailing) -> dict[str, Any]:
    """A mailing's fields but its number, as the ledger takes them."""
    named = [item.name for item in fields(Mailing) if item.name != "id" and not item.metadata]
    return {name: getattr(mailing, name) for name in named}


def mailing_of(row: Mapping[str, Any]) -> Mailing:
    """An entry of the ledger as the record that it is."""
    typed = {"state": State(row["state"]), "pickup": Pickup(row["pickup"]), "folder": PurePosixPath(row["folder"])}
    return Mailing(**(dict(row) | typed | {"resend": bool(row["resend"])}))


def temp_columns(path: str) -> dict[str, Any]:
    """A temp's whole path, as version 1 noted it, in the columns of today."""
    found = re.fullmatch(r"(.*\.part-)([0-9a-f]{8})", path)
    return {"temp": found[1] + "{id}", "temp_id": int(found[2], 16), "temps": 1} if found else {}


LOCK_CURE = text("make OUTPUT_DIR writable, or delete this file if it is damaged")


def lock_fault(path: Path, error: Exception) -> SettingsFault:
    """The lock's file is of no use."""
    template = "{path}: the lock cannot be used: {reason}; {cure}"
    return SettingsFault(text(template, path=path, reason=foreign(error), cure=LOCK_CURE))


@contextlib.contextmanager
def only_run(path: Path, who: str, clock: Clock, wait_s: float) -> Iterator[None]:
    """One run at a time: SQLite's write lock on a small file, which the system releases when a process dies.

    who describes this run for the one that finds the lock taken. Waits up to wait_s seconds, then raises Busy.
    """
    until_s = clock.steady_s() + wait_s
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, timeout=0, isolation_level=None)
    except (sqlite3.Error, OSError) as error:
        raise lock_fault(path, error) from None
    with contextlib.closing(db):
        holder = ""
        while not take_lock(db, path, who):
            told = holder
            with contextlib.suppress(sqlite3.Error, TypeError):
                holder = foreign(db.execute("SELECT who FROM holder").fetchone()[0])
            if clock.steady_s() >= until_s:
                message = text("another run is active: {holder}", holder=holder or "?")
                raise Busy(message, text("wait until it has ended; it delivers by itself"))
            if not told:
                log.info(text("waiting for another run to end: {holder}", holder=holder))
            clock.wait(threading.Event(), 1)
        yield


def take_lock(db: sqlite3.Connection, path: Path, who: str) -> bool:
    """Whether the lock is now ours.

    Readers may look while the second BEGIN IMMEDIATE holds it, so the name is committed first.
    """
    try:
        db.execute("BEGIN IMMEDIATE")
        db.execute("CREATE TABLE IF NOT EXISTS holder (who TEXT)")
        db.execute("DELETE FROM holder")
        db.execute("INSERT INTO holder VALUES (?)", (who,))
        db.execute("COMMIT")
        db.execute("BEGIN IMMEDIATE")
    except sqlite3.DatabaseError as error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        if "locked" not in str(error):
            raise lock_fault(path, error) from None
        return False
    return True


# ---------------------------------------------------------------------------------------------------------------------
# Database: the sessions of a run and the snapshot that all of them read. The one seam for psycopg
# ---------------------------------------------------------------------------------------------------------------------


class Pool(Generic[T]):
    """Sessions or channels for threads: a free one, a new one or, where the server grants no more, one that comes back.

    Scarce is not down: a server that refuses one more while others are in use is used with those it has.
    """

    def __init__(self, stop: Stop, what: Text) -> None:
        self.stop, self.what = stop, what
        self.changed = threading.Condition(threading.RLock())
        self.made = 0  # in use and free
        self._free: list[T] = []
        self._most = 64  # what the server grants, as far as we know

    def take(self, make: Callable[[], T]) -> T:
        """One for this thread alone, until it gives it back. Raises what make raises when none is there at all."""
        while True:
            with self.changed:
                while not self._free and self.made >= self._most:
                    self.changed.wait(0.5)
                    self.stop.check()
                if self._free:
                    return self._free.pop()
                self.made += 1
            try:
                return make()
            except PipelineError as error:
                self._uncount()
                if not error.scarce or not self.made:
                    raise
                self._most = self.made
                template = "the server grants no more than {count} {what}, mailings take turns: {reason}"
                log.warning(text(template, count=self.made, what=self.what, reason=error.message))
            except BaseException:
                self._uncount()
                raise

    def give_back(self, item: T, sound: bool) -> None:
        """For the next one; what is not sound is forgotten."""
        if not sound:
            return self._uncount()
        with self.changed:
            self._free.append(item)
            self.changed.notify_all()

    def empty(self) -> list[T]:
        """Those that nobody uses, which are not handed out any more."""
        with self.changed:
            free, self._free = self._free, []
            self.made -= len(free)
            return free

    def _uncount(self) -> None:
        with self.changed:
            self.made -= 1
            self.changed.notify_all()


CANCEL_TIMEOUT_S = 3
LOCK_TIMEOUT_S = 30  # a mailing must not queue behind someone's ALTER TABLE until its statement_timeout
GRACE_S = 15  # what a server may take beyond statement_timeout to say so, before it counts as frozen
BLOCK_BYTES = 4 << 20  # pandas takes some 5 ms a block, whatever is in it
PROBE_TIMEOUT_S = 3

ASK_ADMINISTRATOR = text("ask the database administrator")
LATER = text("it is tried again by itself; if it stays so, ask the database administrator")
CHECK_NETWORK = text("check PGHOST, PGPORT and the network; is PostgreSQL running?")
CHECK_LOGIN = text("check PGUSER and PGPASSWORD (or .pgpass)")
WRITES_HINT = text("the query writes; if it must (temp tables), add '-- read_only: no'")
CHECK_SETTINGS = text("check the PG… settings in config.env")
REFUSED = text("the connection was refused")
TIMED_OUT = text("no answer in time")
NAME_UNKNOWN = text("this name is unknown")
PASSWORD_WRONG = text("the password or the user is wrong")


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the tables that classify foreign errors: by text or SQLSTATE, for SFTP also by exception class.

    says: words of our own for what people meet every week; None: the server's or the library's words.
    """

    pattern: str
    tries: int | None
    hint: Text
    says: Text | None = None
    kind: str = ""
    wide: bool = False  # it would meet every campaign
    lost: bool = False  # the connection is of no use any more


# While connecting libpq gives no SQLSTATE, and the text is in the server's language: English and Portuguese
# here. What no rule knows is worth another try: reset, too many connections, starting up, shutting down.
CONNECT_RULES = (
    Rule(r"password|senha|authentication failed", NEVER, CHECK_LOGIN, PASSWORD_WRONG),
    Rule(r'(database|banco de dados) ".*" (does not exist|não existe)', NEVER, text("check PGDATABASE")),
    Rule(r'role ".*" (does not exist|não existe)|not permitted to log in', NEVER, text("check PGUSER")),
    Rule(r"pg_hba", NEVER, text("ask the database administrator to let this PC in (pg_hba.conf)")),
    Rule(
        r"certificate|does not support SSL|invalid .*value|invalid (integer|port|connection)|definition of service",
        NEVER,
        CHECK_SETTINGS,
    ),
    Rule(r"Connection refused|10061|Conexão recusada", AGAIN, CHECK_NETWORK, REFUSED),
    Rule(r"translate host name|getaddrinfo|Name or service not known", AGAIN, CHECK_NETWORK, NAME_UNKNOWN),
    Rule(r"timeout expired|timed out|10060", AGAIN, CHECK_NETWORK, TIMED_OUT),
    Rule(r"", AGAIN, CHECK_NETWORK),
)

# PostgreSQL manual, Appendix A. The first pattern that fits the SQLSTATE decides; the last takes the rest.
SQLSTATE_RULES = (
    Rule(r"28...|3D000", NEVER, text("check PGUSER, PGPASSWORD and PGDATABASE"), wide=True),
    Rule(r"08(000|001|003|006)|40001|40P01|40003|53000|53300|57P0[1235]|25P03|72000", AGAIN, LATER),
    Rule(r"55P03", AGAIN, text("another session locks a table of this query; ask who changes it at this hour")),
    Rule(r"57014", ONCE_MORE, text("the query took too long: see its plan, or raise '-- timeout:' (seconds)")),
    Rule(r"53100|53200|55006|58030|XX000", ONCE_MORE, ASK_ADMINISTRATOR),
    Rule(r"25006", NEVER, WRITES_HINT),
    Rule(r"42501", NEVER, text("ask for SELECT on that table for this PGUSER")),
    Rule(r"42...|0A...", NEVER, text("correct the query; --check tries it without sending")),
    Rule(r"22...", NEVER, text("a value does not fit; run the query in an SQL tool (values are not logged)")),
    Rule(r"", NEVER, text("run the query in an SQL tool to see more; ask the database administrator")),
)

LAG_HINT = text("the next run reads again; if it stays so, ask the database administrator")
# Seconds that a replica is behind. One that has replayed all it received is not behind while somebody sends.
LAG_SQL = """SELECT CASE WHEN NOT pg_is_in_recovery() THEN 0
  WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() AND EXISTS (SELECT FROM pg_stat_wal_receiver) THEN 0
  ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float END"""

# A server, a role or a pooler that has no session left, in libpq's words or PostgreSQL's.
SCARCE = re.compile(r"too many|connection limit|connection slots|max_client_conn|muitas conexões|demais", re.IGNORECASE)

# Messages of these classes name tables, columns, limits and servers; others may quote a row, and only the
# name of their class is told. Those of the second list quote one too when they come from inside a function
# or a cast (to_tsquery(name), name::regclass, RAISE): only what speaks of the query's own text is told.
TELLING_CLASSES = ("08", "25", "28", "3D", "40", "53", "55", "57")
TELLING_OF_THE_QUERY = ("0A", "42", "54")


def connect_error(told: str, where: str, hidden: Iterable[str] = ()) -> DatabaseError:
    """What libpq said while connecting to `where`, classified."""
    rule = next(rule for rule in CONNECT_RULES if re.search(rule.pattern, told, re.IGNORECASE))
    reason = rule.says or foreign(told, hidden)
    message = text("database at {where}: {reason}", where=where, reason=reason)
    error = DatabaseError(message, rule.hint, tries=rule.tries, wide=True)
    error.scarce = bool(SCARCE.search(told))
    return error


def lost_in(where: Text | str) -> DatabaseError:
    """The connection broke in the middle of a query."""
    message = text("{where}: the connection to the database was lost", where=where)
    return DatabaseError(message, text("check the network, and whether PostgreSQL was restarted"), tries=AGAIN)


def place_in(source: str, line: int) -> Text | str:
    """A query file and, where it is known, the line."""
    return text("{file}: line {line}", file=source, line=str(line)) if line else source


def quotes_only(told: str, sql: str) -> bool:
    """Whether all that a message quotes stands in the query's own text, and so in no row."""
    return all(quoted in sql for quoted in re.findall(r"[\"«»“”„]([^\"«»“”„]+)[\"«»“”„]", told))


def query_error(
    sqlstate: str, told: str, where: Text | str, own: bool, inside: bool, hidden: Iterable[str] = ()
) -> DatabaseError:
    """An error of the server inside a query file, classified; without a SQLSTATE the connection was lost.

    own: it speaks of the query's own text. inside: it comes from within a function or a cast, whose text and
    whose code are anybody's: it may quote a row, or mean another server.
    """
    from psycopg import errors

    if not sqlstate:
        return lost_in(where)
    rule = next(rule for rule in SQLSTATE_RULES if re.match(rule.pattern, sqlstate))
    group = sqlstate[:2]
    if inside or not (group in TELLING_CLASSES or (own and group in TELLING_OF_THE_QUERY)):
        try:
            told = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", errors.lookup(sqlstate).__name__).lower()
        except KeyError:
            told = "error"
    message = text("{where}: {reason} ({code})", where=where, reason=foreign(told, hidden), code=sqlstate)
    return DatabaseError(message, rule.hint, tries=rule.tries, wide=rule.wide and not inside)


def greeting(host: str, port: int, question: bytes = b"") -> bytes:
    """The first bytes that whatever listens there says, after question; empty if it says nothing."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), PROBE_TIMEOUT_S) as sock:
        sock.settimeout(PROBE_TIMEOUT_S)
        sock.sendall(question)
        return sock.recv(4)
    return b""


@functools.cache
def bounded_connection() -> type[psycopg.Connection[Any]]:
    """psycopg's Connection, whose every wait looks at `look` each time that psycopg comes round (every 0.1 s).

    A frozen backend ignores statement_timeout, and on Windows closing the socket from another thread wakes
    nobody: this ends any wait, on every system, while execute and copy are used as everybody uses them.
    """
    import psycopg

    class BoundedConnection(psycopg.Connection[Any]):
        look: Callable[[], None] = staticmethod(lambda: None)

        def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
            return super().wait(self._looking(gen), *args, **options)

        def _looking(self, gen: Any) -> Generator[Any, Any, Any]:
            try:
                wanted = next(gen)
                while True:
                    ready = yield wanted
                    self.look()
                    wanted = gen.send(ready)
            except StopIteration as end:
                return end.value

    return BoundedConnection


class Session:
    """A connection inside a campaign's transaction. After any error it must be closed, not used again."""

    def __init__(self, connection: psycopg.Connection[Any], stop: Stop, hidden: Iterable[str]) -> None:
        self.connection, self.stop, self.hidden = connection, stop, hidden
        self.source, self.timeout_s, self._limit_s = "", 30, 0.0
        connection.look = self._look  # type: ignore[attr-defined]

    def close(self) -> None:
        """Close the connection; a query that is under way is cancelled, or the server would go on with it."""
        import psycopg

        if self.connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
            with contextlib.suppress(psycopg.Error):
                self.connection.cancel_safe(timeout=CANCEL_TIMEOUT_S)
        self.connection.close()

    def begin(self, campaign: Campaign) -> None:
        """Open the campaign's transaction. BEGIN goes out alone: behind Pgpool-II what is sent with it goes astray."""
        self.source, self.timeout_s = campaign.source, campaign.timeout_s
        self.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" if campaign.read_only else "BEGIN READ WRITE")

    def prepare(self, campaign: Campaign) -> None:
        """Everything that the mailing's statement needs before it."""
        limits = {
            "statement_timeout": f"{campaign.timeout_s}s",
            "lock_timeout": f"{min(LOCK_TIMEOUT_S, campaign.timeout_s)}s",
            "idle_in_transaction_session_timeout": "0",  # one that writes stays open until its mailing is out
            "DateStyle": "ISO",
            "standard_conforming_strings": "on",  # a role may have it off
        }
        self.run("SELECT " + ", ".join(f"set_config('{name}', '{value}', true)" for name, value in limits.items()))
        for statement in campaign.prelude:
            self.run(statement.text, statement.line)
            # Whatever it set, the texts that follow are UTF-8 and are read as they were written.
            self.run("SET LOCAL client_encoding = 'UTF8'; SET LOCAL standard_conforming_strings = on")

    def run(self, sql: str, line: int = 0) -> psycopg.Cursor[Any]:
        """The last result of sql, which stands in the source from that line on."""
        with self._asking(sql, line):
            return self.connection.execute(sql.encode())

    def columns(self, select: Statement) -> tuple[str, ...]:
        """The names of the columns that the mailing's statement would return; the server plans nothing yet."""
        from psycopg import generators

        with self._asking(select.text, select.line):
            pgconn = self.connection.pgconn
            pgconn.send_prepare(b"", select.text.encode())
            self._ended(self.connection.wait(generators.execute(pgconn)))
            pgconn.send_describe_prepared(b"")
            described = self._ended(self.connection.wait(generators.execute(pgconn)))
        names = [described.fname(index) or b"" for index in range(described.nfields)]
        return tidy_names([name.decode("utf-8", "replace") for name in names])

    @contextlib.contextmanager
    def copy(self, select: Statement) -> Iterator[Iterator[bytearray]]:
        """The mailing's rows as the server's own text (COPY, text format), in blocks of whole rows.

        The query is under way when the block begins, so that the server works while pandas is imported.
        """
        sql = f"COPY ({select.text}\n) TO STDOUT (ENCODING 'UTF8')"
        with self._asking(sql, select.line), self.connection.cursor() as cursor, cursor.copy(sql.encode()) as copy:
            yield self._blocks(copy)

    def _blocks(self, copy: psycopg.Copy) -> Iterator[bytearray]:
        """copy.read() waits for a row; what is there is taken from libpq: `for row in copy` takes twice as long."""
        from psycopg import generators

        pgconn, block, size = self.connection.pgconn, bytearray(), 0
        handed_s = time.monotonic()
        while row := copy.read():
            block += row
            is_fresh = True
            while len(block) < BLOCK_BYTES:
                size, arrived = pgconn.get_copy_data(1)
                if size > 0:
                    block += arrived
                    is_fresh = True
                elif size == 0 and is_fresh:  # what has come to the socket meanwhile needs no wait either
                    pgconn.consume_input()
                    is_fresh = False
                else:
                    break
            if size < 0:  # libpq has seen the end, which copy.read() would ask for in vain
                self._ended(self.connection.wait(generators.fetch_many(pgconn)))
                break
            # A query that trickles shows what it has, once a second.
            if len(block) >= BLOCK_BYTES or time.monotonic() - handed_s > 1:
                self._look()
                yield block
                block, handed_s = bytearray(), time.monotonic()
        if block:
            yield block

    @staticmethod
    def _ended(results: Sequence[PGresult]) -> PGresult:
        """The last result of a request of libpq's. Raises psycopg.Error."""
        from psycopg import errors, pq

        if results[-1].status == pq.ExecStatus.FATAL_ERROR:
            raise errors.error_from_result(results[-1])
        return results[-1]

    @contextlib.contextmanager
    def _asking(self, sql: str, line: int) -> Iterator[None]:
        """The seam: psycopg's errors -> DatabaseError, with the line of the query file."""
        import psycopg

        self._limit_s = self.stop.clock.steady_s() + self.timeout_s + GRACE_S
        try:
            yield
        except psycopg.Error as error:
            position = int(error.diag.statement_position or 0)
            line += sql[: position - 1].count("\n") if position and line else 0
            where, told = place_in(self.source, line), error.diag.message_primary or ""
            own, inside = bool(position) or quotes_only(told, sql), bool(error.diag.context)
            raise query_error(error.sqlstate or "", told, where, own, inside, self.hidden) from None

    def _look(self) -> None:
        """Whether the wait under way may go on. Raises Stopped or DatabaseError."""
        self.stop.check()
        if self.stop.clock.steady_s() > self._limit_s:
            hint = text("the server neither answers nor ends the query; ask the database administrator")
            message = text("{where}: the database fell silent", where=self.source)
            raise DatabaseError(message, hint, tries=ONCE_MORE)


class Database:
    """The sessions of one run, and the snapshot that all its queries read.

    One session, the holder, exports the snapshot and stays open; the others import it. They all go to the
    host that the holder reached, since a snapshot lives on one server.
    """

    def __init__(self, settings: Settings, stop: Stop) -> None:
        self.settings, self.stop = settings, stop
        self.down: PipelineError | None = None  # once a whole retry budget was spent on it
        self._lock = threading.RLock()
        self._sessions: Pool[Session] = Pool(stop, text("database sessions"))
        self._holder: Session | None = None
        self._snapshot = ""
        self._lag: PipelineError | None = None  # of the snapshot
        self._pin: dict[str, str] = {}

    def open(self) -> None:
        """Connect the holder and export the snapshot. Raises DatabaseError."""
        with self._lock:
            if self.down:
                raise self.down
            if self._holder:
                return
            self._pin = {}
            holder = self._connect()
            pgconn = holder.connection.pgconn
            named = {"host": pgconn.host, "hostaddr": pgconn.hostaddr, "port": pgconn.port}
            self._pin = {key: value.decode() for key, value in named.items() if value}
            self._holder, self._snapshot = holder, ""
            try:
                self._lag = self._lag_objection(holder)
                self._snapshot = self._export(holder)
            except DatabaseError as error:
                if error.tries == AGAIN:
                    self._holder = None
                    holder.close()
                    raise
                template = "this server exports no snapshot, each query sees its own: {reason}"
                log.warning(text(template, reason=error.message))

    @staticmethod
    def _export(holder: Session) -> str:
        holder.source = "snapshot"
        holder.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # An idle transaction is what the holder is: a server-wide limit must not end it.
        keep = "set_config('idle_in_transaction_session_timeout', '0', true)"
        row = holder.run(f"SELECT pg_export_snapshot(), {keep}").fetchone()
        return str(row[0]) if row else ""

    def _lag_objection(self, session: Session) -> Held | None:
        """Why what this session reads is too old to call people by; None if it is not."""
        most_s = self.settings.max_replica_lag_seconds
        row = session.run(LAG_SQL).fetchone() if most_s else (0,)
        lag_s = row[0] if row else None
        if lag_s is None:
            return Held(text("the database is a replica, and nobody knows how far it is behind"), LAG_HINT)
        if lag_s <= most_s:
            return None
        template = "the database is a replica and {seconds} s behind (MAX_REPLICA_LAG_SECONDS={most})"
        return Held(text(template, seconds=round(lag_s), most=str(most_s)), LAG_HINT)

    @contextlib.contextmanager
    def session(self, campaign: Campaign) -> Iterator[Session]:
        """A session inside the campaign's transaction, on the run's snapshot. What is not committed is rolled back."""
        self.open()
        session, sound = self._sessions.take(self._connect_or_release), False
        try:
            session.begin(campaign)
            if campaign.read_only:
                self._import(session)
            session.prepare(campaign)
            shares = self._snapshot and campaign.read_only
            if lag := self._lag if shares else self._lag_objection(session):
                raise lag
            yield session
            with contextlib.suppress(PipelineError):  # the rows are here: a session that is gone costs nobody anything
                session.run("ROLLBACK")
                session.run("DISCARD ALL")  # PREPARE, SET, temp tables and locks outlive a ROLLBACK
                sound = True
        finally:
            if not sound:
                session.close()
            self._sessions.give_back(session, sound)

    def _connect_or_release(self) -> Session:
        """A new session; where the server grants a single one, that of the snapshot is given up for it."""
        try:
            return self._connect()
        except DatabaseError as error:
            with self._lock:
                if self._sessions.made > 1 or not error.scarce or not self._snapshot:
                    raise
                log.warning(text("the server grants one database session only: each query sees its own snapshot"))
                self._snapshot = ""
                if self._holder:
                    self._holder.close()
            return self._connect()

    def close(self) -> None:
        """Close every idle session; those in use are closed by their users."""
        for session in self._sessions.empty():
            session.close()
        self._forget()

    def _import(self, session: Session) -> None:
        """Make the session see the run's snapshot; where that cannot be, the next try sees another one, or its own."""
        if not (snapshot := self._snapshot):
            return
        try:
            session.run(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        except DatabaseError as error:
            if error.tries == AGAIN:
                raise
            self._give_up(snapshot)
            message = text("{file}: the shared snapshot cannot be read any more", file=session.source)
            raise DatabaseError(message, LATER, tries=AGAIN) from None

    def _give_up(self, snapshot: str) -> None:
        """Forget a snapshot: it went with the holder, or this session came to another server than the holder."""
        with self._lock:
            if not self._holder or self._snapshot != snapshot:
                return
            try:
                self._holder.run("SELECT 1")
            except PipelineError:
                self._forget()
                return
            log.warning(text("several servers behind one address share no snapshot: each query sees its own"))
            self._snapshot = ""

    def _forget(self) -> None:
        with self._lock:
            if self._holder:
                self._holder.close()
                self._holder = None

    def _connect(self) -> Session:
        """A new session. Raises DatabaseError."""
        import psycopg

        settings = self.settings
        defaults: dict[str, Any] = {
            "connect_timeout": settings.connect_timeout_seconds,
            "application_name": PROGRAM,
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 60_000,
        }
        os.environ.update(settings.libpq_environment)  # libpq reads these nowhere else
        options = defaults | dict(settings.libpq) | self._pin | {"client_encoding": "UTF8"}
        try:
            connection = bounded_connection().connect(**options, autocommit=True, prepare_threshold=None)
        except psycopg.Error as error:
            if "," in settings.libpq.get("host", ""):  # another host may serve: then with a snapshot of its own
                self._forget()
            raise self._fault(str(error)) from None
        return Session(connection, self.stop, settings.secrets)

    def _fault(self, told: str) -> DatabaseError:
        """Why no connection came about; an SSH server on that port is told as that."""
        settings = self.settings
        host, port = settings.libpq.get("host", ""), settings.libpq.get("port", "5432")
        where = address(host or "localhost", port, settings.secrets)
        error = connect_error(told, where, settings.secrets)
        if error.tries == AGAIN and port.isdigit() and greeting(host or "localhost", int(port)) == b"SSH-":
            message = text("database at {where}: an SSH (SFTP) server answers there, not PostgreSQL", where=where)
            return DatabaseError(message, text("check PGPORT: PostgreSQL's port is mostly 5432"), wide=True)
        return error


# ---------------------------------------------------------------------------------------------------------------------
# Treatment: blocks of COPY text -> DataFrame of strings -> phones, unique -> CSV bytes
# ---------------------------------------------------------------------------------------------------------------------

CONTROL_BYTES = rb"[\x01-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]"  # C0, DEL, C1, U+2028, U+2029 in UTF-8
CONTROLS_INSIDE = rb" *(?:%s)(?: |%s)*" % (CONTROL_BYTES, CONTROL_BYTES)
BYTE_ORDER_MARK = "\ufeff".encode()


def tidy_names(names: Sequence[str]) -> tuple[str, ...]:
    """Column names, tidied as cells are: stripped, line breaks and control characters inside are one space."""
    if not names:
        return ()
    joined = re.sub("[\t\n]", "\x01", "\0".join(names)).encode()
    return tuple(name.strip() for name in re.sub(CONTROLS_INSIDE, b" ", joined).decode().split("\0"))


def to_frame(block: bytes | bytearray, columns: Sequence[str]) -> pd.DataFrame:
    r"""A block of COPY text as a DataFrame of strings, one column per name; no value is interpreted, NULL is missing.

    Cells are stripped; line breaks and control characters inside a cell become one space. COPY writes a tab, a line
    feed or a backslash of the data as \t, \n and \\, so that tabs part cells and line feeds rows, and NULL as \N
    (PostgreSQL manual, COPY, Text Format).
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    if pc.match_substring_regex(pa.array([block], pa.binary()), r"\\[^N]")[0].as_py():
        # A backslash of the data becomes NUL for now, which never occurs in PostgreSQL's text.
        block = re.sub(rb"\\[bfnrtv]", b"\x01", block.replace(b"\\\\", b"\0"))
    tidy = looks_tidy(block, len(columns))
    if not tidy:  # RE2: a sixth of the time of Python's re, and outside the interpreter lock
        block = pc.replace_substring_regex(pa.array([block], pa.binary()), CONTROLS_INSIDE, b" ")[0].as_py()
    frame: pd.DataFrame = read_cells(block, len(columns)).to_pandas(types_mapper=pd.ArrowDtype)
    if b"\0" in block:
        frame = frame.apply(lambda column: column.str.replace("\0", "\\", regex=False))
    if not tidy:
        frame = frame.apply(lambda column: column.str.strip())
    frame.columns = pd.Index(columns)  # names may be any text, and come twice
    return frame


def read_cells(block: bytes | bytearray, columns: int) -> pa.Table:
    r"""The cells between tabs and line feeds, as they stand there; \N is NULL."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    if block.startswith(BYTE_ORDER_MARK):
        block = BYTE_ORDER_MARK + block  # Arrow drops one; what the server wrote is data
    numbered = [str(index) for index in range(columns)]
    return pa_csv.read_csv(
        pa.BufferReader(block),
        pa_csv.ReadOptions(column_names=numbered, block_size=len(block) + 1, use_threads=False),
        pa_csv.ParseOptions(delimiter="\t", quote_char=False, escape_char=False, ignore_empty_lines=False),
        pa_csv.ConvertOptions(
            column_types=dict.fromkeys(numbered, pa.string()),
            null_values=[r"\N"],
            strings_can_be_null=True,
            check_utf8=False,
        ),
    )


# Phones. A number is never made up: a cell is one phone as people write it, or it is none. Only in a cell that is one
# for certain are the digits looked at by themselves.

# Anatel, Plano Geral de Códigos Nacionais: the area codes in use.
AREA_CODES = "1[1-9]|2[12478]|3[1-578]|4[1-9]|5[1345]|6[1-9]|7[134579]|8[1-9]|9[1-9]"
# Anatel, Resolução 749/2022: mobile numbers have nine digits beginning with 9, fixed ones eight beginning with 2 to 5.
PHONE = rf"(?P<number>(?:{AREA_CODES})(?:9\d{{8}}|[2-5]\d{{7}}))"
# Carriers that are dialled before an area code (0 21 11 …), and how forms leave the choice open (0xx11 …).
CARRIERS = "1[245]|2[1-35]|31|4[13]|[56]5|99|(?i:xx)"

# Blanks and dashes in all their Unicode shapes, and the invisible characters that messengers copy along with a phone.
BLANK = r"\p{Zs}\p{Cf}"
DASH = rf"{BLANK}\p{{Pd}}\x{{2212}}."  # between the digits of a number
GAP = rf"{DASH}/()\[\]"  # around an area code, and around what is dialled before it


def dialled_before(gap: str) -> str:
    """What may stand before an area code: +55, 0055 or 55; 0 or 90 (a collect call), with or without a carrier."""
    country = rf"(?:(?:\+|00)?{gap}55{gap})?"
    return rf"{country}(?:(?:0|90){gap}(?:(?:{CARRIERS}){gap})?)?"


# A number apart from its area code, (11) 98 765-4321, may be divided anywhere but before its last digit; one that is
# written together with it only as in 1198765-4321. `93234-5678 1` lacks an area code, and is nobody's phone in 93.
APART = rf"[{GAP}]+(?:9(?:[{DASH}]*\d){{7}}\d|[2-5](?:[{DASH}]*\d){{6}}\d)"
TOGETHER = rf"9\d{{3}}[{DASH}]*\d[{DASH}]*\d{{4}}|[2-5]\d{{3}}[{DASH}]*\d{{4}}"
OPENED, CLOSED = rf"""[{BLANK}'"(\[]*""", rf"""[{GAP},;:'"]*"""
WRITTEN = f"^{OPENED}{dialled_before(f'[{GAP}]*')}(?:{AREA_CODES})(?:{APART}|{TOGETHER}){CLOSED}$"
DIALLED = f"^{dialled_before('')}{PHONE}$"  # a phone's digits can be read in one way only
# What may stand before a phone: its kind, in words. What may stand behind it: an extension; the zero of a
# column that was numeric once.
EXTENSION = rf"(?i:ramal|ram|ext|r|x|#)[{BLANK}.:-]*\d{{1,6}}[{BLANK})\]]*$"
KIND = rf"^{OPENED}(?i:telefone|tel|celular|cel|fone|fixo|whatsapp|whats|zap|residencial|comercial)[{BLANK}.:-]+"
WAS_A_FLOAT = r"^(\d+)[.,]00?$"


def clean_phones(cells: pd.Series[str]) -> pd.Series[str]:
    """Brazilian phone numbers as area code and number, digits only; what is none for certain becomes empty."""
    import pandas as pd
    import pyarrow.compute as pc

    phones = texts(cells)
    others = pc.invert(pc.match_substring_regex(phones, f"^{PHONE}?$"))  # few: looking costs a fifth of reading
    phones = pc.replace_with_mask(phones, others, read_phones(phones.filter(others)))
    return pd.Series(pd.arrays.ArrowExtensionArray(phones), index=cells.index)


def read_phones(cells: pa.StringArray) -> pa.StringArray:
    """The phones that people wrote."""
    import pyarrow.compute as pc

    cells = pc.replace_substring_regex(cells, f"{WAS_A_FLOAT}|{EXTENSION}|{KIND}", r"\1")
    is_phone = pc.match_substring_regex(cells, WRITTEN)
    numbers = pc.struct_field(pc.extract_regex(digits_only(cells), DIALLED), "number")  # null where there is none
    return pc.if_else(is_phone, pc.fill_null(numbers, ""), "")


def reachable(frame: pd.DataFrame, phones: Sequence[str]) -> np.ndarray[Any, Any]:
    """Which rows have a phone, once phones are clean; every row of a campaign that names no phone column."""
    import numpy as np

    if not phones:
        return np.ones(len(frame), bool)
    some: np.ndarray[Any, Any] = np.any([frame[name].array != "" for name in phones], axis=0)
    return some


class SeenKeys:
    """The keys seen so far in a mailing, as sorted 64-bit hashes: 8 bytes a key, so that memory hardly grows with rows.

    Two keys of one mailing collide once in about 10 million mailings of 2 million rows; a collision rejects one row.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        import numpy as np

        self.columns = columns
        self._hashes = np.array([np.iinfo(np.int64).max])  # so that every key has a place before the end

    def repeated(self, frame: pd.DataFrame, among: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Which rows among those have a key that a row before them had; an empty key is nobody's."""
        import numpy as np
        import pandas as pd
        import pyarrow.compute as pc

        if not self.columns:
            return np.zeros(len(frame), bool)
        keys = pc.binary_join_element_wise(*[texts(frame[name]) for name in self.columns], "\x1f")
        filled = pc.not_equal(keys, "\x1f" * (len(self.columns) - 1)).to_numpy(zero_copy_only=False)
        repeated: np.ndarray[Any, Any] = among & filled
        hashes = pd.Series(np.fromiter(map(hash, keys.to_pylist()), np.int64, len(keys)))
        firsts = hashes[repeated].drop_duplicates().sort_values()  # in this block
        places = np.searchsorted(self._hashes, firsts)
        new = self._hashes[places] != firsts
        self._hashes = np.insert(self._hashes, places[new], firsts[new])
        repeated[firsts.index[new]] = False
        return repeated


REASON = text("reason")  # the name of the column that says why a row was rejected


class Treatment:
    """What happens to every row of one mailing once its cells are tidy, in this order: phones, unique."""

    def __init__(self, campaign: Campaign, language: str = "en") -> None:
        self.phones, self.language = campaign.phones, language
        self.no_phone = text("no valid phone")
        self.duplicate = text("duplicate {columns}", columns=", ".join(campaign.unique))
        self._seen = SeenKeys(campaign.unique)

    def apply(self, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
        """The rows to send; and those rejected, as they came, with a last column that says why, a frame a reason."""
        treated = frame.copy(deep=False)
        for name in self.phones:
            treated[name] = clean_phones(frame[name])
        called = reachable(treated, self.phones)
        repeated = self._seen.repeated(treated, among=called)
        refused = ((~called, self.no_phone), (repeated, self.duplicate))
        rejected = [self._rejected(frame[rows], reason) for rows, reason in refused if rows.any()]
        kept = called & ~repeated
        return treated if kept.all() else treated[kept], rejected

    def _rejected(self, rows: pd.DataFrame, reason: Text) -> pd.DataFrame:
        """Rows with a last column that says why; the query may have a column of that name too."""
        told = rows.copy(deep=False)
        told.insert(rows.shape[1], REASON.told(self.language), reason.told(self.language), allow_duplicates=True)
        return told


def to_csv(frame: pd.DataFrame, form: CsvFormat) -> bytes:
    """A treated block as CSV text in UTF-8, RFC 4180 with minimal quoting, without the header line.

    The bytes are those of DataFrame.to_csv, in a tenth of its time. Arrow's own CSV writer is as fast as this, but
    writes no quotes or quotes everything.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if frame.empty:
        return b""
    columns = [quoted(texts(cells), form.delimiter, lone=frame.shape[1] == 1) for _, cells in frame.items()]
    lines = pc.binary_join_element_wise(*columns, form.delimiter)
    (joined,) = pc.binary_join(pa.ListArray.from_arrays([0, len(lines)], lines), form.newline)
    return b"".join((joined.as_buffer(), form.newline.encode()))


def header_line(columns: Sequence[str], form: CsvFormat) -> bytes:
    """The CSV's first line, quoted like any other."""
    line = io.StringIO()
    csv.writer(line, delimiter=form.delimiter, lineterminator=form.newline).writerow(columns)  # as pandas does it
    return line.getvalue().encode()


ACCENTED = re.compile("[^\\W\\d_][\u0300-\u036f]+")  # a letter and the accents that combine with it


def encoded(utf8: bytes, encoding: str) -> tuple[bytes, int]:
    """utf8 in the campaign's encoding, and how many characters it lacks, which became '?'.

    Encodings of one byte have no combining accents: a + ~ is written as ã there. UTF-8 stays as the server wrote it.
    """
    if encoding in ("utf-8", "utf-8-sig"):
        return utf8, 0
    characters = utf8.decode()
    if b"\xcc" in utf8:  # begins U+0300 to U+033F in UTF-8, and nothing else; rare, and looking costs nothing
        characters = ACCENTED.sub(lambda found: unicodedata.normalize("NFC", found[0]), characters)
    data = characters.encode(encoding, "replace")
    return data, data.count(b"?") - utf8.count(b"?")


# For speed: whole blocks and columns as bytes in a row. Done plainly, the treatment of the benchmark's rows takes 2.5
# times as long: 1.2 without looks_tidy, 1.5 with cells asked for quotes one by one, 1.7 with pandas' own methods for
# texts, 1.04 with a regular expression for digits_only.


def looks_tidy(block: bytes | bytearray, columns: int) -> bool:
    """Whether no cell of a block of COPY text can need stripping; False may be a false alarm.

    No control character but the tabs and line feeds of the format, no blank beside one of those, and none of the bytes
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


def texts(cells: pd.Series[str]) -> pa.StringArray:
    """A column as Arrow's own array, NULL as the empty text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = pa.array(cells.array)
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return pc.fill_null(pc.cast(array, pa.string()), "")


def quoted(column: pa.StringArray, delimiter: str, lone: bool) -> pa.StringArray:
    """The column with quotes around the cells that need them. A lone empty one does, or its line would be empty."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    data, places = flat(column)
    if not lone and not any(mark in data.tobytes() for mark in (b'"', delimiter.encode())):
        return column
    special = np.flatnonzero((data == ord('"')) | (data == ord(delimiter)))
    needs = (np.diff(places) == 0) & lone
    needs[np.searchsorted(places, special, "right") - 1] = True
    doubled = pc.replace_substring(column.filter(pa.array(needs)), '"', '""')
    return pc.replace_with_mask(column, pa.array(needs), pc.binary_join_element_wise('"', doubled, '"', ""))


def digits_only(cells: pa.StringArray) -> pa.StringArray:
    """The cells without anything but 0 to 9."""
    import numpy as np
    import pyarrow as pa

    data, places = flat(cells)
    digit = data - np.uint8(ord("0")) <= 9  # what is less than "0" wraps around
    kept_before = np.concatenate([[0], np.cumsum(digit)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(cells), pa.py_buffer(kept_before[places]), pa.py_buffer(data[digit]))


def flat(cells: pa.StringArray) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The bytes of all cells in a row, and where each cell begins in them and the last one ends."""
    import numpy as np

    _, offsets, data = cells.buffers()
    places = np.frombuffer(offsets, np.int32)[cells.offset : cells.offset + len(cells) + 1]
    return np.frombuffer(data or b"", np.uint8)[places[0] : places[-1]], places - places[0]


# ---------------------------------------------------------------------------------------------------------------------
# This PC's disk: a file appears under its name only when it is whole
# ---------------------------------------------------------------------------------------------------------------------


class LocalFile:
    """A file that appears under its name only when it is whole: written as .part, flushed to disk, renamed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = path.with_name(path.name + ".part")  # where it stands now
        self.size_bytes, self.sha256 = 0, hashlib.sha256()
        with local_faults(self.place):
            self._file = open(self.place, "wb", buffering=0)  # noqa: SIM115 (closed by keep or discard)

    def write(self, data: bytes) -> None:
        """Append data."""
        with local_faults(self.place):
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        self.sha256.update(data)
        self.size_bytes += len(data)

    def keep(self) -> None:
        """Bring every byte to the disk, and give the file its name."""
        with local_faults(self.place):
            os.fsync(self._file.fileno())
            self._file.close()
            patient_replace(self.place, self.path)
        self.place = self.path

    def discard(self) -> None:
        """Remove what was written."""
        self._file.close()
        with contextlib.suppress(OSError):
            self.place.unlink(missing_ok=True)


class MailingFiles:
    """A mailing's CSV and, beside it, its rejected rows, while they are written; the figures go into its record.

    Left without `keep`, nothing stays behind.
    """

    def __init__(self, folder: Path, mailing: Mailing, columns: Sequence[str], form: CsvFormat) -> None:
        self.folder, self.mailing, self.columns, self.form = folder, mailing, columns, form
        mailing.columns, mailing.rows, mailing.rejected, mailing.replaced = len(columns), 0, 0, 0
        self._file = LocalFile(folder / mailing.file)
        self._rejects: LocalFile | None = None

    def __enter__(self) -> MailingFiles:
        if self.form.encoding == "utf-8-sig":
            self._file.write("\ufeff".encode())
        if self.form.header:
            self._write(self._file, header_line(self.columns, self.form))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind:
            self._file.discard()
            if self._rejects:
                self._rejects.discard()

    def write(self, kept: pd.DataFrame, rejected: Sequence[pd.DataFrame]) -> None:
        """A treated block."""
        self._write(self._file, to_csv(kept, self.form))
        for rows in rejected:
            if not self._rejects:
                self._rejects = LocalFile(self.folder / rejected_name(self.mailing.file))
                head = header_line(list(rows.columns), self.form)
                self._rejects.write(encoded(head, self.form.encoding)[0])
            self._rejects.write(encoded(to_csv(rows, self.form), self.form.encoding)[0])
            self.mailing.rejected += len(rows)
        self.mailing.rows += len(kept)

    def keep(self) -> None:
        """Both files whole, under their names; the mailing's size and SHA-256 are known."""
        if self._rejects:
            self._rejects.keep()
        self._file.keep()
        self.mailing.size_bytes, self.mailing.sha256 = self._file.size_bytes, self._file.sha256.hexdigest()

    def _write(self, file: LocalFile, csv_lines: bytes) -> None:
        data, lacking = encoded(csv_lines, self.form.encoding)
        file.write(data)
        self.mailing.replaced += lacking


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
        reason = text("the disk is full") if error.errno == errno.ENOSPC else foreign(error.strerror or error)
        hint = text("free space on this PC's disk, and close programs that hold the file open")
        raise LocalFault(text("{path}: {reason}", path=path, reason=reason), hint) from error


# ---------------------------------------------------------------------------------------------------------------------
# Drop folders: one SFTP login, a channel for each worker. The one seam for paramiko
# ---------------------------------------------------------------------------------------------------------------------

SFTP_TIMEOUT_S = 60  # a request without any reply for so long means a dead connection
CLOSE_TIMEOUT_S = 300  # some servers scan a file, or copy it elsewhere, before they answer its CLOSE
CHUNK_BYTES = 1 << 20
IN_FLIGHT = 64  # writes without an answer yet, as OpenSSH's own client has them
# The longest write that OpenSSH's sftp-server takes (sftp-common.h, SFTP_MAX_MSG_LENGTH, less 1 KB): with it
# an upload takes two thirds of the time. Others get a write that goes out in one SSH packet of 32 KB: ProFTPD mixes
# the halves of what two channels send. Some take 16 KB, or less.
OPENSSH_WRITE_BYTES, WRITE_BYTES, SHORTEST_WRITE_BYTES = 255 << 10, 31 << 10, 4 << 10
LOOK_PAUSES_S = (0.2, 0.5, 1.3, 0)  # servers that show a file, or its size, a little after its CLOSE
SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"  # PostgreSQL answers it with S or N

NETWORK = text("check SFTP_HOST, SFTP_PORT and the network; is the SFTP server running?")
DISK = text("see whether the server's disk is full or its quota used up")
CHECK_SFTP_LOGIN = text(
    "check SFTP_USER and SFTP_PASSWORD or SFTP_KEY_FILE (old servers refuse RSA keys: make an ed25519 key)"
)
HUNG_UP = text(
    "check the network, SFTP_USER and SFTP_PASSWORD: some servers hang up on a wrong password, "
    "or where SFTP is not allowed"
)
NEW_PASSWORD = text("the server wants a new password: set one there, then SFTP_PASSWORD")
UNATTENDED = text("ask the server's administrator for a login that needs nothing else")
NO_SFTP = text("ask the server's administrator whether this user may use SFTP (subsystem, shell, owner of the home)")
OLD_SERVER = text("the server offers only outdated algorithms (SHA-1); its administrator must update it")
NO_FOLDER = text("create the folder on the server, or correct '-- folder:' or SFTP_STAGING_DIR")
NO_ACCESS = text("ask the server's administrator for write access to the folder")
NO_TEMP = text(
    "ask the server's administrator for write access to the folder; if it is there, set another SFTP_TEMP_NAME"
)
NO_RENAME = text("ask the server's administrator to let this user rename files there")
NO_MOVE = text("is SFTP_STAGING_DIR on the same disk as the drop folder, and may this user rename files there?")
LET_READ = text("let this user read the file")
LET_LIST = text("let this user list the folder, or look at its files")
LACKS = text("the server lacks this operation")
CONNECTION_LOST = text("the connection was lost")
LOGIN_WRONG = text("the user, the password or the key is wrong")
NOT_THERE, NOT_ALLOWED = text("no such file or folder"), text("no permission")

# Measured with paramiko 5: login errors are SSHExceptions; OpenSSH tells disk full, quota, exists and
# cross-device alike as OSError("Failure") without an errno. The first row that fits decides.
SFTP_RULES = (
    Rule(r"(?i)timeout", AGAIN, NETWORK, TIMED_OUT, kind="AuthenticationException", lost=True),
    Rule(r"(?i)shut down|EOF", ONCE_MORE, HUNG_UP, kind="AuthenticationException", lost=True),
    Rule(r"", NEVER, CHECK_SFTP_LOGIN, LOGIN_WRONG, kind="AuthenticationException", lost=True),
    Rule(r"", NEVER, OLD_SERVER, kind="IncompatiblePeer", lost=True),
    Rule(r"info request", NEVER, NEW_PASSWORD, text("the password has expired"), kind="SSHException", lost=True),
    Rule(r"", NEVER, NO_FOLDER, NOT_THERE, kind="FileNotFoundError"),
    Rule(r"", NEVER, NO_ACCESS, NOT_ALLOWED, kind="PermissionError"),
    Rule(r"(?i)unsupported|not supported", NEVER, LACKS, kind="OSError"),
    Rule(r"", AGAIN, NETWORK, REFUSED, kind="ConnectionRefusedError", lost=True),
    Rule(r"", AGAIN, NETWORK, TIMED_OUT, kind="TimeoutError", lost=True),
    Rule(r"", AGAIN, NETWORK, NAME_UNKNOWN, kind="gaierror", lost=True),
    Rule(r"", AGAIN, NETWORK, CONNECTION_LOST, kind="EOFError", lost=True),
    Rule(r"", AGAIN, NETWORK, CONNECTION_LOST, kind="ConnectionError", lost=True),
    Rule(r"", AGAIN, NETWORK, kind="SSHException", lost=True),
    Rule(r"", AGAIN, NETWORK, kind="SFTPError", lost=True),
    Rule(r"(?i)socket|closed|\[(Errno|WinError)", AGAIN, NETWORK, kind="OSError", lost=True),
    Rule(r"", TWICE_MORE, DISK, kind="OSError"),
)


def is_answer(error: Exception) -> bool:
    """Whether the server said no, or what nobody understands, over a line that is sound."""
    return type(error).__name__ in ("OSError", "PermissionError", "FileNotFoundError", "SFTPError")


def sftp_error(
    error: Exception, doing: Text, hidden: Iterable[str] = (), where: str = "", refused: Text | None = None
) -> DeliveryError:
    """error while doing something on the server, classified.

    where: the server itself, if it is about that; refused: what to do where the server's answer was no.
    """
    kinds = {kind.__name__ for kind in type(error).__mro__}
    rule = next(rule for rule in SFTP_RULES if rule.kind in kinds and re.search(rule.pattern, str(error)))
    reason = rule.says or foreign(error, hidden) or type(error).__name__
    server = text("SFTP at {where}", where=where) if where else "SFTP"
    message = text("{server}: {doing}: {reason}", server=server, doing=doing, reason=reason)
    kind = ConnectionLost if rule.lost else DeliveryError
    hint = refused if refused and type(error) in (OSError, PermissionError) and not rule.lost else rule.hint
    return kind(message, hint, tries=rule.tries, wide=bool(where))


# ----- The connection: dialled, its host key a pinned one, logged in

WEAK = {"ciphers": ["3des-cbc"], "macs": ["hmac-md5", "hmac-md5-96", "hmac-sha1-96"]}  # are not offered
OUTDATED = re.compile("sha1$|^ssh-(rsa|dss)$|cbc|arcfour|md5|^hmac-sha1")
# What both sides must have in common, in the words of OpenSSH's settings, and paramiko's name for what we know of it.
ALGORITHMS = {
    "KexAlgorithms": ("kex_algo_list", "preferred_kex"),
    "HostKeyAlgorithms": ("server_key_algo_list", "preferred_keys"),
    "Ciphers": ("server_encrypt_algo_list", "preferred_ciphers"),
    "MACs": ("server_mac_algo_list", "preferred_macs"),
}


@functools.cache
def transport_class() -> type[Any]:
    """paramiko's Transport, that asks for the service of logging in once, and tells what the server offers.

    The plain one asks for the service again before each method, which some servers refuse.
    """
    import paramiko
    from paramiko.common import cMSG_SERVICE_REQUEST

    usual: Any = paramiko.Transport

    class Transport(paramiko.ServiceRequestingTransport):  # type: ignore[name-defined, misc]
        curve = "curve25519-sha256"  # by the name of RFC 8731
        _kex_info = usual._kex_info | {curve: usual._kex_info[f"{curve}@libssh.org"]}
        _preferred_kex = (curve, *usual._preferred_kex)
        # GCM first: it spares the separate MAC.
        _preferred_ciphers = tuple(sorted(usual._preferred_ciphers, key=lambda name: "gcm" not in name))
        offers: Mapping[str, Sequence[str]] = {}

        def _really_parse_kex_init(self, *message: Any, **how: Any) -> Mapping[str, Sequence[str]]:
            self.offers = super()._really_parse_kex_init(*message, **how)
            return self.offers

        def ensure_session(self) -> None:
            """paramiko's own waits for ever for a server that does not answer, or is gone."""
            if self._service_userauth_accepted:
                return
            request = paramiko.Message()
            request.add_byte(cMSG_SERVICE_REQUEST)
            request.add_string("ssh-userauth")
            self._send_message(request)
            until_s = time.monotonic() + self.auth_timeout
            while not self._service_userauth_accepted:
                if not self.is_active():
                    raise EOFError
                if time.monotonic() > until_s:
                    raise TimeoutError
                time.sleep(0.01)
            self.auth_handler = auth_handler_class()(self)

    return Transport


@functools.cache
def auth_handler_class() -> type[Any]:
    """paramiko's, which makes the event that it waits for after it has asked: an answer that is quicker was lost."""
    from paramiko.auth_handler import AuthOnlyHandler

    class AuthHandler(AuthOnlyHandler):
        def __init__(self, transport: Any) -> None:
            self._answered = threading.Event()
            super().__init__(transport)

        @property
        def auth_event(self) -> threading.Event:
            return self._answered

        @auth_event.setter
        def auth_event(self, _event: object) -> None:
            pass

        def send_auth_request(self, *values: Any) -> list[str]:
            self._answered.clear()
            return super().send_auth_request(*values)

    return AuthHandler


class SftpLogin:
    """The connection that all workers share: dialled by its first use, and again after it broke.

    Callers hold a lock of theirs, but for `close` and `shut`, which are safe from another thread.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.where = address(settings.sftp_host, settings.sftp_port, settings.secrets)
        self.transport: Any = None
        self._is_over = False

    @property
    def is_up(self) -> bool:
        return bool(self.transport and self.transport.is_active())

    def dialled(self) -> Any:
        """The connection, whose host key is a pinned one; no password has been sent yet."""
        if self._is_over:
            raise ConnectionLost(text("the run is over"))
        if not self.is_up:
            with self._closed_after_errors():
                self._dial()
        return self.transport

    def logged_in(self) -> Any:
        """The connection, logged in."""
        transport = self.dialled()
        if not transport.is_authenticated():
            with self._closed_after_errors():
                log_in(transport, self.settings, self.where)
        return transport

    def close(self) -> None:
        """Close the connection at once, whatever state it is in. The next use dials again."""
        transport, self.transport = self.transport, None
        if transport:
            with contextlib.suppress(OSError):
                transport.sock.shutdown(socket.SHUT_RDWR)
            transport.close()

    def shut(self) -> None:
        """Close the connection for good: every request from now on fails at once."""
        self._is_over = True
        self.close()

    @contextlib.contextmanager
    def _closed_after_errors(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _dial(self) -> None:
        """Ask for the server's host keys, kind by kind, until one is pinned."""
        seen: dict[str, str] = {}
        kinds: Sequence[str] = ()
        while not seen or kinds:
            self._connect(kinds)
            key = self.transport.get_remote_server_key()
            seen[key.get_name()] = key.fingerprint
            if self._is_pinned(key):
                return
            kinds = [
                kind
                for kind in self.transport.preferred_keys
                if kind in self.transport.offers["server_key_algo_list"]
                and re.sub("^rsa-.*", "ssh-rsa", kind) not in seen
            ]
        keys = ", ".join(f"{fingerprint} ({kind})" for kind, fingerprint in seen.items())
        template = "SFTP at {where}: the server shows another host key than SFTP_HOST_KEY: {keys}"
        hint = text("do not go on: ask the server's administrator whether the key was changed; no password was sent")
        raise DeliveryError(text(template, where=self.where, keys=keys), hint, wide=True)

    def _is_pinned(self, key: paramiko.PKey) -> bool:
        pinned = self.settings.sftp_host_keys
        return not pinned or any(secrets.compare_digest(key.fingerprint, one) for one in pinned)

    def _connect(self, kinds: Sequence[str]) -> None:
        """A new connection; kinds: of host keys to ask for, if not any."""
        import paramiko

        self.close()
        settings, limit_s = self.settings, self.settings.connect_timeout_seconds
        sock = socket.create_connection((settings.sftp_host, settings.sftp_port), limit_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small requests would wait for Nagle's algorithm
        self.transport = transport = transport_class()(sock, disabled_algorithms=WEAK)
        transport.banner_timeout = transport.auth_timeout = limit_s
        transport.use_compression(settings.sftp_compress)
        if kinds:
            transport.get_security_options().key_types = kinds
        try:
            transport.start_client(timeout=limit_s)  # returns silently after its timeout
        except paramiko.SSHException as error:
            self._explain(transport, error)
            raise

    def _explain(self, transport: Any, error: Exception) -> None:
        """Raise what paramiko does not know: another server's port, or the algorithms that the server offers."""
        settings = self.settings
        if "banner" in str(error) and greeting(settings.sftp_host, settings.sftp_port, SSL_REQUEST) in (b"S", b"N"):
            message = text("SFTP at {where}: PostgreSQL answers there, not an SFTP server", where=self.where)
            raise DeliveryError(message, text("check SFTP_PORT: SFTP's port is mostly 22"), wide=True)
        for name, (theirs, ours) in ALGORITHMS.items():
            offered, known = transport.offers.get(theirs, ()), getattr(transport, ours)
            if offered and not set(offered) & set(known):
                template = "SFTP at {where}: no {name} in common; the server offers {offered}"
                message = text(template, where=self.where, name=name, offered=foreign(", ".join(offered)))
                is_old = all(map(OUTDATED.search, offered))
                hint = (
                    OLD_SERVER
                    if is_old
                    else text("its administrator can allow one of: {known}", known=", ".join(known))
                )
                raise DeliveryError(message, hint, wide=True)


def log_in(transport: Any, settings: Settings, where: str) -> None:
    """Log in by what config.env has, each method once, as the server asks for them. Some want two of them."""
    import paramiko

    user, password = settings.sftp_user, settings.sftp_password
    ways: dict[str, Callable[[], Sequence[str]]] = {}
    if settings.sftp_key_file:
        ways["publickey"] = lambda: transport.auth_publickey(user, load_key(settings))
    if password:
        ways["password"] = lambda: transport.auth_password(user, password, fallback=False)
        answers = functools.partial(answer, password, where, [])
        ways["keyboard-interactive"] = lambda: transport.auth_interactive(user, answers)
    wanted: Sequence[str] = ()
    while not transport.is_authenticated():
        method = next((method for method in ways if not wanted or method in wanted), None)
        if not method:
            raise wants_more(where, ", ".join(wanted))
        was_asked_for, way = method in wanted, ways.pop(method)
        try:
            wanted = way()
        except paramiko.BadAuthenticationType as error:
            wanted = error.allowed_types
            if not was_asked_for:
                ways[method] = way  # not now, perhaps later


def answer(
    password: str, where: str, asked: list[str], _title: str, _instructions: str, fields: Sequence[tuple[str, bool]]
) -> list[str]:
    """What a server that asks questions gets: the password to the first one. Raises DeliveryError for a second one."""
    asked += [question for question, _ in fields]
    if len(asked) > 1:  # a one-time code, or a new password in place of one that has expired
        raise wants_more(where, asked[-1])
    return [password] * len(fields)


def wants_more(where: str, what: str) -> DeliveryError:
    """A login that cannot be served unattended, or lacks a setting."""
    message = text("SFTP at {where}: login: the server also wants {what}", where=where, what=foreign(what))
    return DeliveryError(message, UNATTENDED, wide=True)


def load_key(settings: Settings) -> paramiko.PKey:
    """The private key of SFTP_KEY_FILE. Raises DeliveryError, which reaches every campaign."""
    import paramiko

    path, passphrase = settings.local(settings.sftp_key_file), settings.sftp_key_passphrase.encode() or None
    try:
        return paramiko.PKey.from_path(path, passphrase)  # type: ignore[arg-type]  # paramiko wants bytes
    except FileNotFoundError:
        reason, hint = text("not found"), text("correct SFTP_KEY_FILE")
    except OSError as error:
        reason, hint = text("cannot be read: {reason}", reason=foreign(error.strerror)), LET_READ
    except (paramiko.SSHException, ValueError, TypeError) as error:  # what cryptography says of a passphrase varies
        asks = bool(passphrase) or "pass" in str(error).lower()
        reason, hint = what_no_key_is(path.read_bytes(), asks)
    raise DeliveryError(text("SFTP_KEY_FILE: {path}: {reason}", path=path, reason=reason), hint, wide=True)


def what_no_key_is(content: bytes, asks_for_passphrase: bool) -> tuple[Text, Text]:
    """What a file holds that is not a private key which can be used, and what to do."""
    if content.startswith(b"PuTTY-User-Key-File"):
        return text("is a key of PuTTY"), text("in PuTTYgen: Conversions, Export OpenSSH key")
    if content.startswith((b"ssh-", b"ecdsa-", b"---- BEGIN SSH2 PUBLIC KEY")):
        return text("is the public half of a key"), text("name the private key: the file without .pub")
    if asks_for_passphrase and b"PRIVATE KEY" in content:
        return text("the passphrase does not open it"), text("check SFTP_KEY_PASSPHRASE")
    return text("is no private key that paramiko knows"), text("make one with: ssh-keygen -t ed25519")


def break_off(channel: Any) -> None:
    """Close a channel whose connection may be broken, too."""
    with contextlib.suppress(OSError, EOFError):
        channel.close()


def start_sftp(transport: Any, limit_s: float) -> Any:
    """A new channel, and SFTP on it."""
    channel = transport.open_session(timeout=limit_s)
    # invoke_subsystem() has no timeout: it waits for ever for a server that stays silent.
    limit = threading.Timer(limit_s, break_off, [channel])
    limit.daemon = True
    limit.start()
    try:
        channel.settimeout(limit_s)
        channel.invoke_subsystem("sftp")
        client = client_class()(channel)
        channel.settimeout(SFTP_TIMEOUT_S)
        return client
    finally:
        limit.cancel()


# ----- What is asked of the server


@functools.cache
def client_class() -> type[Any]:
    """paramiko's SFTPClient, which no reply of a server breaks.

    Texts and names are read leniently ("não encontrado" in cp1252). A reply that is cut short is an SFTPError:
    paramiko's own fills it up with zeros, for hours if it says that it holds four billion attributes.
    """
    import paramiko

    class Reply(paramiko.Message):
        def get_text(self) -> str:
            return self.get_string().decode("utf-8", "replace")

    class WholeReply(Reply):
        def get_bytes(self, n: int) -> bytes:
            data = self.packet.read(n)
            if len(data) < n:
                raise paramiko.SFTPError("a reply was cut short")
            return data

    class Client(paramiko.SFTPClient):
        def _request(self, kind: int, *values: Any) -> tuple[int, paramiko.Message]:
            kind, message = super()._request(kind, *values)  # type: ignore[misc]
            return kind, WholeReply(message.get_remainder())

        def _convert_status(self, msg: paramiko.Message) -> None:
            super()._convert_status(Reply(msg.get_remainder()))  # type: ignore[misc]

    return Client


def told(client: Any, path: PurePosixPath) -> paramiko.SFTPAttributes | None:
    """What the server tells of a name, where anything may be lacking; None if it is not there.

    Some servers refuse to tell, or refuse it of a name that is not there: then the folder's list does.
    """
    try:
        return client.stat(str(path))  # type: ignore[no-any-return]
    except FileNotFoundError:
        return None
    except Exception as refused:
        if not is_answer(refused):
            raise
        try:
            entries = client.listdir_attr(str(path.parent))
        except Exception as error:
            raise (refused if is_answer(error) else error) from None
    return next((entry for entry in entries if entry.filename == path.name), None)


def create(client: Any, path: PurePosixPath) -> bytes:
    """The handle of a new file. Where the server knows no exclusive creation, the random name is the guard."""
    import paramiko
    from paramiko import sftp

    flags, nothing = sftp.SFTP_FLAG_WRITE | sftp.SFTP_FLAG_CREATE, paramiko.SFTPAttributes()
    try:
        _, reply = client._request(sftp.CMD_OPEN, str(path), flags | sftp.SFTP_FLAG_EXCL, nothing)
    except OSError as refused:
        if type(refused) is not OSError or told(client, path):
            raise
        _, reply = client._request(sftp.CMD_OPEN, str(path), flags | sftp.SFTP_FLAG_TRUNC, nothing)
    handle: bytes = reply.get_binary()
    return handle


def close_file(client: Any, handle: bytes) -> None:
    """The server's answer to CLOSE, which may take a while: some scan a file first, or copy it elsewhere."""
    from paramiko.sftp import CMD_CLOSE

    channel = client.get_channel()
    channel.settimeout(CLOSE_TIMEOUT_S)
    client._request(CMD_CLOSE, handle)
    channel.settimeout(SFTP_TIMEOUT_S)


class Writer:
    """Writes into an open file, IN_FLIGHT requests at a time; takes the status of each by its number.

    Servers may answer in another order (threaded ones do). paramiko's own pipelined file waits for its
    answers in order, throws the others away and then waits for ever for what it threw away.
    """

    def __init__(self, client: Any, handle: bytes, longest: int) -> None:
        self.client, self.handle, self.longest = client, handle, longest
        self.sent, self._waiting = 0, 0
        self._refused: Exception | None = None

    def write(self, data: bytes) -> None:
        """Send data, in pieces that the server takes. Raises what an earlier piece was answered with."""
        from paramiko.sftp import CMD_WRITE, int64

        for start in range(0, len(data), self.longest):
            piece = data[start : start + self.longest]
            self.client._async_request(self, CMD_WRITE, self.handle, int64(self.sent), piece)
            self.sent += len(piece)
            self._waiting += 1
            self._take(IN_FLIGHT)

    def finish(self) -> None:
        """Wait for every answer. Raises the first refusal."""
        self._take(0)
        if self._refused:
            raise self._refused

    def _take(self, most: int) -> None:
        while self._waiting > most:
            self.client._read_response()
        if self._refused and most:
            self.finish()

    def _async_response(self, _kind: int, message: paramiko.Message, _number: int) -> None:
        """paramiko's client hands over the answer to one of our requests."""
        self._waiting -= 1
        try:
            self.client._convert_status(message)
        except (OSError, EOFError) as error:
            self._refused = self._refused or error


class DropFolders:
    """The SFTP server's folders, over one login and a channel for each thread that asks at the same time.

    Knows nothing of retrying: every method raises DeliveryError, classified; ConnectionLost says that nobody
    knows whether the request was carried out.
    """

    def __init__(self, settings: Settings, stop: Stop) -> None:
        self.settings, self.stop = settings, stop
        self.down: PipelineError | None = None  # once a whole retry budget was spent on it
        self._login = SftpLogin(settings)
        self.close, self.shut = self._login.close, self._login.shut
        self._channels: Pool[Any] = Pool(stop, text("SFTP channels"))
        self._longest_write = 0  # of this server; 0: not known yet

    def open(self) -> None:
        """Dial and log in, unless that was done."""
        with self._client():
            pass

    def host_key(self) -> str:
        """The host key that the server shows, with its kind; no password is sent."""
        with self._channels.changed, self._translated(text("asking for the host key"), self._login.where):
            key = self._login.dialled().get_remote_server_key()
            return f"{key.fingerprint} ({key.get_name()})"

    def size(self, path: PurePosixPath) -> int | None:
        """The size of a file in bytes, None if there is none."""
        with self._client() as client, self._translated(text("looking for {path}", path=path), refused=LET_LIST):
            found = told(client, path)
        if found and found.st_size is None:
            return self.read_back(path)[0]
        return found.st_size if found else None

    def check_folder(self, folder: PurePosixPath) -> None:
        """Raise DeliveryError unless folder is a directory. Never created: a misspelt one would be fed for ever."""
        doing = text("drop folder {path}", path=folder)
        with self._client() as client, self._translated(doing, refused=NO_FOLDER):
            try:
                mode = client.stat(str(folder)).st_mode or 0
            except Exception as error:
                if not is_answer(error):
                    raise
                client.listdir(str(folder))
                mode = 0
        if mode & 0o170000 not in (0, 0o040000):  # some servers tell no type
            message = text("drop folder {path}: is not a folder", path=folder)
            raise DeliveryError(message, text("correct '-- folder:' in the query file"))

    def send(self, temp: PurePosixPath, chunks: Iterable[bytes]) -> None:
        """Write chunks into a new file, every write acknowledged, and close it.

        Whether it stands there is for `see` to tell: a refused or lost CLOSE says nothing about that.
        """
        acknowledged = False
        try:
            with self._client() as client:
                with self._translated(text("creating {path}", path=temp), refused=NO_TEMP):
                    handle = create(client, temp)
                with self._translated(text("writing {path}", path=temp)):
                    self._write(client, handle, chunks)
                    acknowledged = True
                with self._translated(text("closing {path}", path=temp)):
                    close_file(client, handle)
        except DeliveryError as error:
            if not acknowledged:
                raise
            template = "the last byte was acknowledged, looking what is there: {reason}"
            log.warning(text(template, reason=error.message))

    def see(self, temp: PurePosixPath, size_bytes: int) -> None:
        """A file that was acknowledged whole stands there in its whole size: now, or a little later.

        Raises MayBeOut if it is gone: a dialer or server that takes files of any name has it.
        """
        for pause_s in LOOK_PAUSES_S:
            size = self.size(temp)
            if size == size_bytes:
                return
            self.stop.sleep(pause_s)
        if size is None:
            message = text("{path} was whole and is gone: it may have been activated", path=temp)
            raise MayBeOut(message, text("set SFTP_STAGING_DIR: something takes files of any name"))
        message = text("{path}: {sent} bytes sent, {arrived} arrived", path=temp, sent=size_bytes, arrived=size)
        raise DeliveryError(message, DISK, tries=TWICE_MORE)

    def read_back(self, path: PurePosixPath, most: int = 1 << 62) -> tuple[int, str]:
        """The size and SHA-256 of a file as it stands on the server, up to most bytes of it."""
        digest, size = hashlib.sha256(), 0
        doing = text("reading {path} back", path=path)
        with self._client() as client, self._translated(doing, refused=LET_READ), client.open(str(path), "rb") as file:
            if most < 1 << 62:
                file.prefetch(most, IN_FLIGHT)
            while size < most and (chunk := file.read(min(CHUNK_BYTES, most - size))):
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()

    def rename(self, temp: PurePosixPath, final: PurePosixPath) -> None:
        """Plain rename, which OpenSSH refuses where final exists. posix_rename would overwrite it.

        Never over a connection that is dialled for it: that takes time, and what was judged before is judged anew then.
        """
        doing = text("renaming {path} to {name}", path=temp, name=final.name)
        refused = NO_MOVE if self.settings.sftp_staging_dir else NO_RENAME
        try:
            with self._client(dial=False) as client, self._translated(doing, refused=refused):
                client.rename(str(temp), str(final))
        except DeliveryError as error:
            if isinstance(error.__cause__, PermissionError):
                error.tries = TWICE_MORE  # a virus scanner on the server may hold the file for some seconds
            raise

    def remove(self, path: PurePosixPath) -> bool:
        """Remove a file; whether it was there."""
        with self._client() as client, self._translated(text("removing {path}", path=path)):
            try:
                client.remove(str(path))
            except FileNotFoundError:
                return False
        return True

    def clear(self, path: PurePosixPath) -> None:
        """See that no such file is there, whether there was one or not."""
        try:
            self.remove(path)
        except ConnectionLost:
            raise
        except DeliveryError:
            if self.size(path) is not None:
                raise

    def _write(self, client: Any, handle: bytes, chunks: Iterable[bytes]) -> None:
        """Every byte acknowledged. A server that fails gets shorter writes from then on."""
        from paramiko.sftp import CMD_CLOSE

        longest = self._longest_write or self._usual_write()
        writer = Writer(client, handle, longest)
        try:
            for chunk in chunks:
                writer.write(chunk)
            writer.finish()
        except BaseException as error:
            shorter = WRITE_BYTES if longest > WRITE_BYTES else longest // 2
            self._longest_write = max(SHORTEST_WRITE_BYTES, shorter)
            if not isinstance(error, (TimeoutError, EOFError)):
                # Only told: closing for an answer would wait for the same silent server.
                client._async_request(type(None), CMD_CLOSE, handle)
            raise

    def _usual_write(self) -> int:
        transport = self._login.transport
        return OPENSSH_WRITE_BYTES if transport and "OpenSSH" in transport.remote_version else WRITE_BYTES

    @contextlib.contextmanager
    def _client(self, dial: bool = True) -> Iterator[Any]:  # paramiko's stubs know only half of its client
        """A channel of this thread's own, until the block ends; one that broke is not used again."""
        client = self._take(dial)
        sound = True
        try:
            yield client
        except DeliveryError as error:
            sound = not isinstance(error, ConnectionLost)
            raise
        except BaseException:
            sound = False  # in the middle of a request, for all we know
            raise
        finally:
            self._give_back(client, sound)

    def _take(self, dial: bool) -> Any:
        """A channel on the connection of this moment; dial: make one where there is none."""
        with self._channels.changed:  # one thread dials, the others wait
            if not dial and not self._login.is_up:
                message = text("SFTP at {where}: the connection was lost", where=self._login.where)
                raise ConnectionLost(message, NETWORK)
            if self.down:
                raise self.down
            if not self._login.is_up:
                self._channels.empty()
            with self._translated(text("login"), self._login.where):
                transport = self._login.logged_in()
        try:
            return self._channels.take(lambda: self._open_channel(transport))
        except DeliveryError:
            self._close_unused()
            raise

    def _give_back(self, client: Any, sound: bool) -> None:
        channel = client.get_channel()
        transport = channel.get_transport() if channel else None
        sound = sound and channel is not None and transport is self._login.transport and not channel.closed
        self._channels.give_back(client, sound)
        if not sound and channel:
            break_off(channel)
            self._close_unused()

    def _close_unused(self) -> None:
        """After trouble the connection is given up, unless others are using it."""
        with self._channels.changed:
            self._channels.empty()
            if not self._channels.made:
                self.close()

    @contextlib.contextmanager
    def _translated(self, doing: Text, where: str = "", refused: Text | None = None) -> Iterator[None]:
        """The seam for paramiko: its exceptions -> DeliveryError."""
        import paramiko

        try:
            yield
        except (OSError, EOFError, paramiko.SSHException, paramiko.SFTPError) as error:
            raise sftp_error(error, doing, self.settings.secrets, where, refused) from error

    def _open_channel(self, transport: Any) -> Any:
        """A new channel with SFTP on it. A refusal leaves the connection sound: the server has no more of them."""
        try:
            with self._translated(text("logged in, but SFTP does not start"), self._login.where):
                return start_sftp(transport, self.settings.connect_timeout_seconds)
        except ConnectionLost as error:
            error.hint, error.tries = NO_SFTP, ONCE_MORE
            if not transport.is_active():
                raise
            fault = DeliveryError(error.message, NO_SFTP, tries=ONCE_MORE, wide=True)
            fault.scarce = True
            raise fault from error


# ---------------------------------------------------------------------------------------------------------------------
# Guards: whether a mailing may be sent. Values in, an objection out
# ---------------------------------------------------------------------------------------------------------------------

MANY_REJECTED = 0.1  # of all rows: from there on it is told beside the result
CHECK_QUERY = text("check the query and the data; if the number is right, change the guard in the query file")
CHECK_COLUMNS = text("correct the query's column names, or its 'columns:' line if the dialer's layout really changed")
NOT_LATE = text("nothing to do: it is not sent late")


def layout_objection(columns: Sequence[str], campaign: Campaign) -> Held | None:
    """Why columns are not what the dialer expects; None if they are."""
    if not columns:
        return Held(text("the query returns no columns"), CHECK_COLUMNS)
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        return Held(text("column {name} comes twice", name=foreign(twice[0])), CHECK_COLUMNS)
    if campaign.columns is not None and tuple(columns) != campaign.columns:
        return Held(
            text("the columns changed: {what}", what=in_a_row(changed_columns(columns, campaign.columns))),
            CHECK_COLUMNS,
        )
    absent = [name for name in (*campaign.phones, *campaign.unique) if name not in columns]
    if absent:
        template = "phones: or unique: names the column {name}, which the query does not return"
        return Held(text(template, name=foreign(absent[0])), CHECK_COLUMNS)
    return None


def changed_columns(columns: Sequence[str], expected: Sequence[str]) -> list[Text]:
    """What differs, in words."""
    missing = [foreign(name) for name in expected if name not in columns]
    extra = [foreign(name) for name in columns if name not in expected]
    found = [text("missing {names}", names=missing)] if missing else []
    found += [text("not expected {names}", names=extra)] if extra else []
    return found or [text("another order: {names}", names=[foreign(name) for name in columns])]


def rows_objection(rows: int, rejected: int, campaign: Campaign, past_rows: Sequence[int]) -> PipelineError | None:
    """Why that many rows are not sent: Held, or Empty; None if they may be.

    past_rows: of the last delivered mailings. max_rows is not among these: an export that grows beyond it is
    stopped then and there.
    """
    if not rows and rejected:
        message = text("every row was rejected ({rows})", rows=rejected)
        return Held(message, text("see in the _rejected.csv why; check the phones: and unique: lines and the query"))
    if rows < (campaign.min_rows or 0):
        template = "{contacts}, fewer than min_rows {least}"
        return Held(text(template, contacts=contacts(rows), least=campaign.min_rows), CHECK_QUERY)
    usual = statistics.median(past_rows) if past_rows else 0
    most = campaign.max_drop
    if most is not None and usual and (not rows or rows * 100 < usual * (100 - most)):
        message = text(
            "{contacts}, {share} below the usual {usual} (max_drop {most}%)",
            contacts=contacts(rows),
            share=f"{1 - rows / usual:.0%}",
            usual=round(usual),
            most=campaign.max_drop,
        )
        return Held(message, CHECK_QUERY)
    return None if rows else Empty(text("nobody to call"))


def time_objection(campaign: Campaign, stop: Stop, ignore_hours: bool) -> PipelineError | None:
    """Why it is too late (or too early) to publish a mailing of this run now; None if it is not."""
    reason = None if ignore_hours else campaign.hours.why_not(stop.clock.now())
    return Held(reason, NOT_LATE) if reason else stop.error


# ---------------------------------------------------------------------------------------------------------------------
# Bring: one mailing's way from its query to its final name, in one straight line
# ---------------------------------------------------------------------------------------------------------------------

WITHDRAWN = text("not known whether it was picked up: it was being withdrawn when the connection failed")
GONE = text("its temp is gone, and what stands under its final name is not it")
IN_DOUBT_HINT = text("the next run looks whether the dialer got it, and never sends it twice")
UPLOADS = 2  # at a time: beside one that waits for its server's answers, another uses the line
NOT_OVERWRITTEN = text("somebody else puts files there, or the dialer does not take them; nothing was overwritten")
NEVER_AGAIN = text("ask who runs the dialer whether it has the file; it is not sent again in this slot")


@dataclass(frozen=True, slots=True)
class Options:
    """What kind of run the command line asks for."""

    dry_run: bool = False
    scheduled: bool = False
    only: tuple[str, ...] = ()
    resend: bool = False
    ignore_hours: bool = False


class Line:
    """The straight line, which every worker walks with one mailing at a time, and the four things they share.

    Four things: the database, the drop folders, the ledger, the stop. In a --dry-run the line ends before
    anything is sent, and there is no ledger to note anything in.
    """

    def __init__(self, settings: Settings, options: Options, stop: Stop, ledger: Ledger | None) -> None:
        self.settings, self.options, self.stop, self.ledger = settings, options, stop, ledger
        self.slot = slot_of(stop.start)
        self.database, self.drops = Database(settings, stop), DropFolders(settings, stop)
        self._first_contact = {id(self.database): threading.Lock(), id(self.drops): threading.Lock()}
        self._reached: set[int] = set()
        self._uploads = threading.Semaphore(UPLOADS)

    # The line itself

    def bring(self, campaign: Campaign, mailing: Mailing, query_turn: contextlib.ExitStack) -> None:
        """A claimed mailing from its query to its final name.

        A guard that needs the whole mailing belongs into `rows_objection`, one of the clock into
        `time_objection`, one of the layout into `layout_objection`.

        query_turn is given back as soon as the query is read. Raises PipelineError, Held and Empty among
        them; a mailing whose state is PUBLISHING or WITHDRAWING then is in doubt, and is never sent again.
        """
        with contextlib.ExitStack() as writing:  # the session of a query that writes, until the mailing is out
            with query_turn:  # read, treat, write
                session = self._retry(lambda: self.read(campaign, mailing, writing), campaign.name)
            self.note_exported(mailing)
            self.judge(campaign, mailing)
            if self.options.dry_run:
                mailing.state = State.READY
                return
            with self.stop.turn(self._uploads):  # send, verify: under a temp name
                self._retry(lambda: self.send(mailing), campaign.name)
            remarks = self.remarks(campaign, mailing)
            if session:
                self.judge_moment(campaign)
                session.run("COMMIT")
            try:
                self.publish(campaign, mailing, remarks)
            except PipelineError as error:
                raise (with_changes_kept(error) if session else error) from None

    def read(self, campaign: Campaign, mailing: Mailing, writing: contextlib.ExitStack) -> Session | None:
        """The query's rows, treated and written: the whole mailing on this PC's disk. One attempt.

        Returns the session of a query that writes, which stays open in `writing`; else None.
        """
        self._reach(self.database, "database")
        with contextlib.ExitStack() as reading:
            session = reading.enter_context(self.database.session(campaign))
            columns = session.columns(campaign.select)
            if objection := layout_objection(columns, campaign):
                raise objection
            with session.copy(campaign.select) as blocks:
                self.write(campaign, mailing, columns, blocks)
            if campaign.read_only:
                return None
            writing.push(reading.pop_all())
            return session

    def write(
        self, campaign: Campaign, mailing: Mailing, columns: tuple[str, ...], blocks: Iterable[bytearray]
    ) -> None:
        """Every block through treatment into the CSV, the rejected rows into one beside it."""
        with MailingFiles(self.settings.output_of(self.options), mailing, columns, campaign.csv) as files:
            treatment = Treatment(campaign, self.settings.language)
            for block in blocks:
                kept, rejected = treatment.apply(to_frame(block, columns))
                files.write(kept, rejected)
                if campaign.max_rows is not None and mailing.rows > campaign.max_rows:
                    raise Held(text("more than max_rows {most} contacts", most=campaign.max_rows), CHECK_QUERY)
            files.keep()

    def note_exported(self, mailing: Mailing) -> None:
        """What the mailing holds, in the ledger before it is anywhere else: settling a doubt needs it."""
        log.info(text("{campaign}: exported {figures}", campaign=mailing.campaign, figures=figures_of(mailing)))
        if self.ledger:
            figures = {name: getattr(mailing, name) for name in FIGURES}
            self.ledger.note(mailing, state=State.EXPORTED, **figures)

    def judge(self, campaign: Campaign, mailing: Mailing) -> None:
        """The guards that needed the whole mailing. Raises Held, Empty or Stopped."""
        past_rows = self.ledger.past_rows(campaign.name) if self.ledger else mailing.past_rows
        if objection := rows_objection(mailing.rows, mailing.rejected, campaign, past_rows):
            raise objection
        if not self.options.dry_run:
            self.judge_moment(campaign)

    def judge_moment(self, campaign: Campaign) -> None:
        """Still inside the campaign's hours and before the run's deadline. Raises Held or Stopped."""
        if objection := time_objection(campaign, self.stop, self.options.ignore_hours):
            raise objection

    def send(self, mailing: Mailing) -> None:
        """The mailing whole under a temp name, seen there and checked. One attempt.

        A failed one leaves no temp behind, unless the connection is lost: then it goes at the end, or in the
        next run. A temp that was acknowledged whole is looked for, never sent again blindly.
        """
        self._reach(self.drops, "SFTP")
        if not mailing.is_whole:
            self.drops.check_folder(mailing.folder)
            if self.drops.size(mailing.final) is not None:
                raise Held(text("{path} is already there", path=mailing.final), NOT_OVERWRITTEN)
            self._note_new_temp(mailing)
        try:
            if not mailing.is_whole:
                self.drops.send(mailing.part, self._chunks(mailing))
                mailing.is_whole = True
            self.drops.see(mailing.part, mailing.size_bytes)
            if self.settings.sftp_verify == "hash":
                self.verify(mailing)
        except ConnectionLost:
            raise
        except BaseException:
            mailing.is_whole = False
            self.drop_temps(mailing)
            raise

    def verify(self, mailing: Mailing) -> None:
        """What stands on the server is what was sent, byte by byte."""
        try:
            arrived = self.drops.read_back(mailing.part, mailing.size_bytes)
        except DeliveryError:
            self.drops.see(mailing.part, mailing.size_bytes)  # taken meanwhile: MayBeOut
            raise
        if arrived != (mailing.size_bytes, mailing.sha256):
            message = text("{path}: what arrived is not what was sent (SHA-256)", path=mailing.part)
            raise DeliveryError(message, DISK, tries=TWICE_MORE)

    def publish(self, campaign: Campaign, mailing: Mailing, remarks: Sequence[Text]) -> None:
        """The rename, noted before and after. From here on it may be out: a lost reply is settled by looking."""
        assert self.ledger
        self.judge_moment(campaign)  # as late as can be: the PC may have slept since the last look at the clock
        try:
            self._rename(mailing)
        except DeliveryError as error:
            template = "{campaign}: the rename is in doubt, looking: {reason}"
            log.warning(text(template, campaign=mailing.campaign, reason=error.message))
            self.settle(mailing, lambda: self.too_late(mailing, campaign), error)
        told = "; ".join(remark.told(self.settings.language) for remark in remarks)
        left = mailing.temps - 1  # of earlier tries; the last one has become the mailing
        self.ledger.note(mailing, state=State.DELIVERED, message=told, temps=mailing.temps if left else 0)

    # What became of a rename that nobody saw

    def settle(self, mailing: Mailing, why_late: Callable[[], PipelineError | None], error: PipelineError) -> None:
        """Find out whether a mailing was published by looking, and publish it if nothing else happened.

        Returns if it was. Raises why not (error itself, if nothing better is known) with the entry
        `exported` again; or, with the entry as it is, what keeps the program from knowing.
        """
        assert self.ledger
        try:
            published = self._retry(lambda: self._look(mailing, why_late()), mailing.campaign)
        except DeliveryError as refused:
            if isinstance(refused, (ConnectionLost, MayBeOut)) or refused.wide:
                raise
            error = refused
            published = mailing.state is not State.EXPORTED and self._withdraw(mailing)
        if not published:
            self.ledger.note(mailing, state=State.EXPORTED)
            raise error

    def _look(self, mailing: Mailing, late: PipelineError | None) -> bool:
        """Whether the mailing was published.

        Only the temp there: it was not, and is renamed now unless late. Neither there: it was, and the
        dialer has taken it, unless we had begun to withdraw it. A leftover temp beside the final name is
        OpenSSH's link without its unlink.
        """
        final_size, temp_size = self.drops.size(mailing.final), self.drops.size(mailing.part)
        if temp_size is None:
            was_asked_for = mailing.state is State.PUBLISHING
            if final_size == mailing.size_bytes or (final_size is None and was_asked_for):
                return True
            raise MayBeOut(WITHDRAWN if mailing.state is State.WITHDRAWING else GONE, NEVER_AGAIN)
        if final_size == mailing.size_bytes:
            self.drops.clear(mailing.part)
            return True
        if final_size is not None or late or mailing.state is State.WITHDRAWING:
            return self._withdraw(mailing)
        self._rename(mailing)
        return True

    def _rename(self, mailing: Mailing) -> None:
        """Ask for the rename. Raises DeliveryError; the ledger then says `exported` if certainly nothing happened.

        Certain is: every rename of this mailing was answered by a refusal, and its temp can still be read.
        """
        assert self.ledger
        self.stop.check()
        self.ledger.note(mailing, state=State.PUBLISHING)
        self.ledger.still_ours(mailing)
        try:
            self.drops.rename(mailing.part, mailing.final)
        except DeliveryError as error:
            mailing.unanswered |= isinstance(error, ConnectionLost) or error.wide
            with contextlib.suppress(DeliveryError):
                if not mailing.unanswered and self._is_untouched(mailing):
                    self.ledger.note(mailing, state=State.EXPORTED)
            raise

    def _is_untouched(self, mailing: Mailing) -> bool:
        """Whether the temp is no other file yet. Read, not looked at: rclone tells the size of a file that is gone."""
        if self.drops.size(mailing.final) == mailing.size_bytes:
            return False
        return self.drops.read_back(mailing.part, 1)[0] == 1

    def _withdraw(self, mailing: Mailing) -> bool:
        """Take the temp away, so that no request still under way can publish it; whether one did before."""
        assert self.ledger
        before = mailing.state
        self.ledger.note(mailing, state=State.WITHDRAWING)  # or a lost reply would look as if the dialer had taken it
        self.ledger.still_ours(mailing)
        try:
            removed = self.drops.remove(mailing.part)
        except DeliveryError as error:
            if error.tries == NEVER and not isinstance(error, ConnectionLost):  # not allowed to: nothing was removed
                self.ledger.note(mailing, state=before)
            raise
        if not removed and before is not State.WITHDRAWING:
            return True
        published = self.drops.size(mailing.final) == mailing.size_bytes
        if not published and not removed:
            raise MayBeOut(WITHDRAWN, NEVER_AGAIN)
        return published

    def too_late(self, mailing: Mailing, campaign: Campaign | None) -> PipelineError | None:
        """Why a rename may not be done now; None if it may."""
        if campaign is None:
            return Held(text("its campaign is gone"))
        if campaign.folder != mailing.folder:
            return Held(text("its campaign has another drop folder now"))
        if mailing.slot != self.slot:
            return Held(text("its slot {slot} is over", slot=datetime.fromisoformat(mailing.slot)))
        return time_objection(campaign, self.stop, self.options.ignore_hours)

    def settle_leftovers(self, campaigns: Mapping[str, Campaign]) -> None:
        """What an earlier run left, before anything else. Raises DeliveryError if the server is out of reach."""
        assert self.ledger
        for name in dict.fromkeys(mailing.campaign for mailing in self.ledger.unsettled()):
            with self.ledger.holding(name) as ours:
                if ours:
                    self.settle_campaign(name, campaigns.get(name))

    def settle_campaign(self, name: str, campaign: Campaign | None) -> None:
        """What earlier runs left of a campaign that we hold. Raises DeliveryError if the server is out of reach."""
        assert self.ledger
        leftovers = self.ledger.unsettled(name)
        if leftovers:
            self._reach(self.drops, "SFTP")
        for mailing in leftovers:
            try:
                self._settle_leftover(mailing, campaign)
            except PipelineError as error:
                template = "{campaign}: {file} stays in doubt: {reason}"
                log.error(text(template, campaign=mailing.campaign, file=mailing.file, reason=error.message))
                if error.wide or isinstance(error, Stopped):
                    raise
            except Exception as error:  # nothing about one entry ends a run
                bug(error)

    def _settle_leftover(self, mailing: Mailing, campaign: Campaign | None) -> None:
        assert self.ledger
        if mailing.state in (State.PUBLISHING, State.WITHDRAWING):
            mailing.unanswered = True
            late = self.too_late(mailing, campaign)
            error = late or Held(text("its rename was refused"))
            try:
                self.settle(mailing, lambda: late, error)
                self._conclude_leftover(mailing, State.DELIVERED)
            except MayBeOut as unknown:
                self._conclude_leftover(mailing, State.IN_DOUBT, unknown)
            except (Held, DeliveryError) as refused:
                if mailing.state in MAY_BE_OUT:
                    raise
                told = text("not published: {reason}", reason=refused.message)
                self._conclude_leftover(mailing, State.FAILED, PipelineError(told, refused.hint))
        elif mailing.state in (State.CLAIMED, State.EXPORTED):
            told = text("the run was interrupted before publishing")
            self._conclude_leftover(mailing, State.FAILED, PipelineError(told))
        self.drop_temps(mailing)

    def _conclude_leftover(self, mailing: Mailing, state: State, error: PipelineError | None = None) -> None:
        assert self.ledger
        template = "{campaign}: {file} of an earlier run: {outcome}"
        outcome = error.message if error else text(state)
        log.warning(text(template, campaign=mailing.campaign, file=mailing.file, outcome=outcome))
        self.ledger.note(mailing, state=state, pc=PC, **as_told(error, self.settings.language))

    # Temps on the server

    def _note_new_temp(self, mailing: Mailing) -> None:
        """In the ledger before it is on the server, so that a killed run's temp is found and removed."""
        assert self.ledger
        folder = self.settings.sftp_staging_dir or mailing.folder
        first = mailing.temp_id or secrets.randbits(32)
        temp = str(folder / self.settings.sftp_temp_name)
        self.ledger.note(mailing, temp=temp, temp_id=first, temps=mailing.temps + 1)

    def drop_temps(self, mailing: Mailing) -> None:
        """Remove a mailing's temps; what cannot be removed now, the next run removes."""
        assert self.ledger
        if not mailing.temps or self.drops.down:
            return
        try:
            for temp in mailing.temp_paths:
                self.drops.clear(temp)
            # The next one gets a name that none of these had: a late request must not meet it.
            self.ledger.note(mailing, temp_id=mailing.temp_id + mailing.temps, temps=0)
        except PipelineError as error:
            template = "{campaign}: a temp file may stay until the next run: {reason}"
            log.warning(text(template, campaign=mailing.campaign, reason=error.message))

    # Small steps

    def _retry(self, action: Callable[[], T], who: str) -> T:
        return retry(action, self.settings.retry_policy, self.stop, who)

    def _reach(self, server: Database | DropFolders, who: str) -> None:
        """First contact with a server: one retry budget for all campaigns, whoever comes first."""
        with self._first_contact[id(server)]:
            if server.down:
                raise server.down
            if id(server) not in self._reached:
                try:
                    self._retry(server.open, who)
                except PipelineError as error:
                    server.down = error
                    raise
                self._reached.add(id(server))

    def _chunks(self, mailing: Mailing) -> Iterator[bytes]:
        """The mailing's bytes from the local disk, which somebody may have changed since they were written."""
        path, mailing.sent_bytes, digest = self.settings.output / mailing.file, 0, hashlib.sha256()
        with local_faults(path), open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                self.stop.check()
                digest.update(chunk)
                yield chunk
                mailing.sent_bytes += len(chunk)
        if digest.hexdigest() != mailing.sha256:
            message = text("{path} was changed on this PC before it was sent", path=path)
            raise LocalFault(message, text("leave the files in the output folder alone while a run is on"))

    def remarks(self, campaign: Campaign, mailing: Mailing) -> list[Text]:
        """What is worth a word although the mailing is sent."""
        assert self.ledger
        remarks = mailing_remarks(campaign, mailing)
        last = self.ledger.last_delivered(campaign.name) if campaign.pickup_s else None
        with contextlib.suppress(DeliveryError):  # a remark costs no mailing
            if last and self.drops.size(last.final) is not None:
                remarks.insert(0, text("the dialer has not taken the previous mailing {file}", file=last.file))
        for remark in remarks:
            log.warning(text("{campaign}: {message}", campaign=campaign.name, message=remark))
        return remarks


def with_changes_kept(error: PipelineError) -> PipelineError:
    """The error of a mailing whose query has committed what it wrote: who is marked as sent was not called."""
    told = copy.copy(error)  # the original may be told of others too
    told.message = text("{reason}; what its query wrote is kept all the same", reason=error.message)
    return told


def mailing_remarks(campaign: Campaign, mailing: Mailing) -> list[Text]:
    """What treatment did to a mailing that somebody should know."""
    remarks = []
    if mailing.replaced:
        template = "{count} characters are not in {encoding} and became '?'"
        remarks.append(text(template, count=mailing.replaced, encoding=campaign.csv.encoding))
    total = mailing.rows + mailing.rejected
    if mailing.rejected and mailing.rejected >= MANY_REJECTED * total:
        template = "{rejected} of {total} rows were rejected: see {file}"
        remarks.append(text(template, rejected=mailing.rejected, total=total, file=rejected_name(mailing.file)))
    return remarks


def as_told(error: PipelineError | None, language: str) -> dict[str, str]:
    """An error as the ledger keeps it: what the operator was told."""
    hint = error.hint if error else None
    return {"message": error.message.told(language) if error else "", "hint": hint.told(language) if hint else ""}


# ---------------------------------------------------------------------------------------------------------------------
# Report: exit code, table and JSON, computed from the mailings of a run
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did."""

    slot: str
    start: datetime
    seconds: float
    mailings: tuple[Mailing, ...]
    folder: Path | None = None  # of the CSVs of a rehearsal

    @property
    def exit_code(self) -> ExitCode:
        """The code of the whole run: 5 and 6 only when a stage failed and nothing got through it."""
        errors = [mailing.error for mailing in self.mailings if mailing.error]
        codes = {error.exit_code for error in errors} - {ExitCode.OK}
        if ExitCode.BUG in codes or not codes:
            return ExitCode.BUG if codes else ExitCode.OK
        states = {mailing.state for mailing in self.mailings}
        stages = {error.exit_code for error in errors if error.wide}
        exported = {State.DELIVERED, State.READY, State.EMPTY, State.HELD}
        if ExitCode.DATABASE in stages and not states & exported:
            return ExitCode.DATABASE
        if ExitCode.SFTP in stages and State.DELIVERED not in states:
            return ExitCode.SFTP
        return ExitCode.PARTIAL

    @property
    def totals(self) -> Text:
        """'5 delivered, 1 held'."""
        tally = Counter(mailing.state for mailing in self.mailings)
        counted = [text("{count} {state}", count=count, state=text(state)) for state, count in tally.items()]
        return text("{counts}", counts=counted) if counted else text("nothing due")

    def as_json(self) -> dict[str, Any]:
        """The report as what --json prints."""
        shown = ("folder", "file", *FIGURES, "message", "hint", "pickup", "picked_up")
        return {
            "slot": self.slot,
            "start": self.start.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 3),
            "exit_code": self.exit_code.value,
            "meaning": str(self.exit_code.meaning),
            **({"folder": str(self.folder)} if self.folder else {}),
            "campaigns": [
                {"campaign": mailing.campaign, "verdict": mailing.state}
                | {name: as_column(getattr(mailing, name)) for name in shown}
                for mailing in self.mailings
            ],
        }


def report_now(stop: Stop, mailings: Iterable[Mailing], folder: Path | None = None) -> Report:
    """The report of a run that ends now."""
    seconds = (stop.clock.now() - stop.start).total_seconds()
    return Report(slot_of(stop.start), stop.start, seconds, tuple(mailings), folder)


def decimal(value: float, language: str) -> str:
    """1.53 as '1.5' or '1,5'."""
    return f"{value:.1f}".replace(".", "," if language == "pt" else ".")


def human_size(size_bytes: float, language: str) -> str:
    """1536 as '1.5 KB' or '1,5 KB'."""
    size = float(size_bytes)
    if size < 999.5:
        return f"{size:.0f} B"
    for unit in ("KB", "MB"):
        size /= 1000
        if size < 999.95:
            return f"{decimal(size, language)} {unit}"
    return f"{decimal(size / 1000, language)} GB"


def print_report(report: Report, console: Console, language: str) -> None:
    """The table of results, then every problem with what to do, those of several campaigns once."""
    slot = text("Slot {slot}", slot=datetime.fromisoformat(report.slot))
    tell(console, slot.told(language), style="italic")
    table, has_paths = fitting_table(report, console, language)
    console.print(table)
    if not has_paths:
        width = max(len(mailing.campaign) for mailing in report.mailings)
        for mailing in report.mailings:
            tell(console, f"{mailing.campaign:<{width}}  {shown_path(report, mailing)}")
        tell(console, "")
    problems = []
    for mailing in report.mailings:
        if mailing.message:
            problems.append((mailing.campaign, mailing.state.told(language), mailing.message, mailing.hint))
    print_problems(console, problems)
    if report.folder:
        tell(console, text("the CSVs are in {folder}", folder=report.folder).told(language))
    tell(console, closing_line(report.exit_code).told(language))


def print_problems(console: Console, problems: Iterable[tuple[str, str, str, str]]) -> None:
    """Each problem (who has it, what it is, message, hint) once, with all who have it."""
    together: dict[tuple[str, str, str], list[str]] = {}
    for who, *problem in problems:
        what, message, hint = problem
        together.setdefault((what, message, hint), []).append(who)
    for (what, message, hint), everybody in together.items():
        tell(console, ": ".join(filter(None, (", ".join(everybody), what, message))), hint)


def is_rehearsal(report: Report) -> bool:
    """Whether the report is that of a --dry-run, which tells what each mailing would be called."""
    return any(mailing.state is State.READY for mailing in report.mailings)


def shown_path(report: Report, mailing: Mailing) -> str:
    """Where the mailing went; after a rehearsal where it would go, and under which name."""
    name = mailing.file if is_rehearsal(report) else ""
    return str(PurePosixPath(mailing.folder) / name)


# What a terminal too narrow for the whole table does without, step by step; paths then go below it.
NARROWER = (set[str](), {"air"}, {"air", "path"}, {"air", "path", "seconds"})


def fitting_table(report: Report, console: Console, language: str) -> tuple[Table, bool]:
    """The widest result table that fits the console, and whether the paths are in it."""
    endless = console.options.update(max_width=10_000)
    for left_out in NARROWER:
        table = result_table(report, language, left_out)
        if console.measure(table, options=endless).maximum <= console.width:
            break
    return table, "path" not in left_out


def result_table(report: Report, language: str, left_out: Container[str] = ()) -> Table:
    """A line per campaign, whose name alone may break. Brackets in a name are no markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text as Styled

    dry = is_rehearsal(report)
    watched = any(mailing.pickup for mailing in report.mailings)
    figure = {"justify": "right", "no_wrap": True}
    word = {"no_wrap": True}
    columns: list[tuple[bool, Text, dict[str, Any], Callable[[Mailing], str]]] = [
        (True, text("campaign"), {"overflow": "fold"}, lambda mailing: mailing.campaign),
        (True, text("result"), word, lambda mailing: mailing.state.told(language)),
        (True, text("contacts"), figure, lambda mailing: shown(mailing.rows, language)),
        (True, text("rejected"), figure, lambda mailing: shown(mailing.rejected, language)),
        (dry, text("columns"), figure, lambda mailing: shown(mailing.columns, language)),
        (True, text("size"), figure, lambda mailing: human_size(mailing.size_bytes, language)),
        ("seconds" not in left_out, text("seconds"), figure, lambda mailing: decimal(mailing.seconds, language)),
        (watched, text("picked up"), word, lambda mailing: mailing.picked_up),
        ("path" not in left_out, text("remote path") if dry else text("drop folder"), word,
         lambda mailing: shown_path(report, mailing)),
    ]  # fmt: skip
    kept = [column[1:] for column in columns if column[0]]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0 if "air" in left_out else 1, 0, 0), pad_edge=False)
    for head, how, _ in kept:
        table.add_column(Styled(head.told(language)), **how)
    for mailing in report.mailings:
        cells = [Styled(cell(mailing)) for _, _, cell in kept]
        cells[1].stylize(mailing.state.look.style)
        table.add_row(*cells)
    return table


def tell(console: Console, sentence: str, hint: str = "", style: str = "") -> None:
    """A sentence for a person, and below it what to do. Brackets and colons are no markup."""
    from rich.text import Text as Styled

    console.print(Styled(sentence, style), soft_wrap=True)
    if hint:
        console.print(Styled(f"    -> {hint}"), soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Step:
    """What a campaign is at, and for how many seconds; None: it waits, or is over."""

    campaign: str
    doing: Text
    gone_s: float | None = None


def step_of(mailing: Mailing, upload_s: float, now_s: float, language: str) -> Step:
    """What a campaign is at: its outcome, once it has one; else the upload, the query, or nothing yet."""
    name, gone_s = mailing.campaign, now_s - mailing.began_s
    if mailing.state not in UNSETTLED:
        return Step(name, text(mailing.state))
    if not mailing.began_s:
        return Step(name, text("waiting"))
    if mailing.sent_bytes:
        return Step(name, sending(mailing.sent_bytes, mailing.size_bytes, upload_s, language), gone_s)
    return Step(name, text("ready") if mailing.size_bytes else reading(mailing.rows), gone_s)


def reading(rows: int) -> Text:
    """What is said of a query that has brought so many rows so far."""
    if not rows:
        return text("the query is running")
    return text("reading, {contacts}", contacts=contacts(rows))


def sending(sent_bytes: int, size_bytes: int, seconds: float, language: str) -> Text:
    """What is said of an upload that has brought so many bytes in so many seconds."""
    sent, size = human_size(sent_bytes, language), human_size(size_bytes, language)
    rate = human_size(sent_bytes / max(seconds, 0.5), language)
    return text("sending {sent} of {size}, {rate}/s", sent=sent, size=size, rate=rate)


def progress_table(steps: Sequence[Step], width: int, height: int, language: str) -> Table:
    """A line per campaign with the time gone; where not all have room, those at work stand first."""
    from rich.table import Table
    from rich.text import Text as Styled

    if len(steps) > height - 2:
        steps = sorted(steps, key=lambda step: step.gone_s is None)
    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True, overflow="ellipsis", max_width=width // 3)
    lines.add_column(no_wrap=True, justify="right")
    lines.add_column(no_wrap=True, overflow="ellipsis")
    for step in steps[: height - 2]:
        minutes, seconds = divmod(int(step.gone_s or 0), 60)
        gone = "" if step.gone_s is None else f"{minutes}:{seconds:02}"
        lines.add_row(Styled(step.campaign), gone, Styled(step.doing.told(language)))
    return lines


@contextlib.contextmanager
def live_progress(console: Console | None, mailings: Sequence[Mailing], language: str, clock: Clock) -> Iterator[None]:
    """On a terminal, a line per campaign that shows what is going on, until the block ends. Without one, nothing."""
    if console is None or not console.is_terminal or not mailings:
        yield
        return
    from rich.live import Live

    uploads: dict[str, float] = {}  # when the upload of a campaign was first seen

    def current(mailing: Mailing) -> Step:
        now_s = clock.steady_s()
        upload_s = now_s - uploads.setdefault(mailing.campaign, now_s) if mailing.sent_bytes else 0.0
        return step_of(mailing, upload_s, now_s, language)

    def table() -> Table:
        return progress_table([current(mailing) for mailing in mailings], console.width, console.height, language)

    with Live(get_renderable=table, console=console, refresh_per_second=4, transient=True):
        yield


# ---------------------------------------------------------------------------------------------------------------------
# Run: workers over the campaigns that are due, and an end to everything
# ---------------------------------------------------------------------------------------------------------------------

PICKUP_POLL_S = 2
INTERRUPT_GRACE_S = 1.5  # Windows ends a process 5 s after its window is closed
STOP_GRACE_S = 20  # what the run may take after its deadline to end by itself
MOST_LOSSES = 5  # of a claim, for a ledger that breaks again and again
OURS = contextlib.nullcontext(True)
BROKEN_HINT = text("correct the file, and try it with --check")
SEE_PAGE = text("the status page shows what came of it")
BY_OPERATOR = text("stopped by the operator")
START_AGAIN = text("start the program again; it sends only what is missing")


class Run:
    """The mailings of one run and the workers that bring them."""

    def __init__(self, line: Line, files: QueryFiles) -> None:
        self.line, self.files = line, files
        self.mailings: list[Mailing] = []
        self._waiting: list[tuple[Campaign, int]] = []  # and where its mailing stands in `mailings`
        self._taking, self._naming = threading.Lock(), threading.Lock()
        self._query_turns = threading.Semaphore(line.settings.query_workers)
        self._names: set[str] = set()  # of this run's mailings
        self._settled: set[int] = set()  # entries of this slot of which it was known before this run what came
        self._losses: Counter[str] = Counter()  # claims of a campaign that were lost
        self._error: PipelineError | None = None  # why what waits is not taken

    def plan(self) -> None:
        """A mailing for each campaign: due ones wait for a worker to claim them, the others have their outcome.

        What other PCs have under way is no outcome yet: who holds the campaign decides.
        """
        ledger = self.line.ledger
        if ledger:
            look = functools.partial(ledger.settled, self.line.slot)
            self._settled = retry(look, LEDGER_PATIENCE, self.line.stop, "ledger")
        first_look = self._undecided if ledger and ledger.is_shared else self._outcome_before_start
        for campaign in self.files.campaigns:
            mailing = first_look(campaign)
            if mailing.state is State.CLAIMED:
                self._waiting.append((campaign, len(self.mailings)))
            self.mailings.append(mailing)
        for broken in self.files.broken:
            self._fail_broken(broken)

    def work(self) -> None:
        """Everything that waits to its outcome, by QUERY_WORKERS workers and two who upload meanwhile."""
        line = self.line
        if not self._waiting:
            return
        count = min(line.settings.query_workers + UPLOADS, len(self._waiting))
        workers = [threading.Thread(target=self._work, name=f"worker-{n}", daemon=True) for n in range(count)]
        if line.ledger:  # log in while the first query runs
            workers.append(threading.Thread(target=self._log_in, name="login", daemon=True))
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                while worker.is_alive():
                    worker.join(0.5)
        except KeyboardInterrupt:
            line.stop.end(BY_OPERATOR)
            self._let_end(workers)

    def end(self) -> None:
        """What no worker could bring to an end gets its outcome from what is noted; connections are closed."""
        error = self.line.stop.error or self._error or Stopped(text("the run was stopped"))
        for campaign, at in self._waiting:
            self._give_up(campaign, at, error)
        for mailing in self.mailings:
            if mailing.state in UNSETTLED:
                with contextlib.suppress(ClaimLost):
                    self._conclude(mailing, error)
        if self.line.ledger and self.line.ledger.is_shared:
            with contextlib.suppress(PipelineError):
                self._look_again()
        self.line.database.close()
        self.line.drops.close()

    def _undecided(self, campaign: Campaign) -> Mailing:
        return Mailing(campaign=campaign.name, slot=self.line.slot, state=State.CLAIMED, folder=campaign.folder)

    def _outcome_before_start(self, campaign: Campaign) -> Mailing:
        """A mailing that is due, or that has its outcome already."""
        line, options = self.line, self.line.options
        mailing = self._undecided(campaign)
        before = line.ledger.in_slot(line.slot, campaign.name) if line.ledger else []
        resend = options.resend and all(entry.id in self._settled for entry in before)
        if any(entry.state in MAY_BE_OUT for entry in before):
            mailing.state = State.IN_DOUBT
            message = text("the server does not tell what became of this slot's mailing")
            mailing.error = DeliveryError(message, IN_DOUBT_HINT, wide=line.drops.down is not None)
        elif before and not resend:
            latest = before[-1]
            mailing = dataclass_replace(latest, state=State.ALREADY, message="", hint="", id=0)
        elif (reason := self._why_not_due(campaign)) and not before:
            mailing.state, mailing.message = State.NOT_DUE, reason.told(line.settings.language)
        elif before:
            mailing.resend = True
        elif verdict := self._verdict_elsewhere(campaign):
            return verdict
        if mailing.error:
            mailing.message, mailing.hint = as_told(mailing.error, line.settings.language).values()
        return mailing

    def _why_not_due(self, campaign: Campaign) -> Text | None:
        """Why a campaign does not run now; a rehearsal runs it all the same, and says so afterwards."""
        if self.line.options.ignore_hours or self.line.options.dry_run:
            return None
        return campaign.hours.why_not(self.line.stop.start)

    def _verdict_elsewhere(self, campaign: Campaign) -> Mailing | None:
        """What another PC's guards said of it; for a manual run, since it began."""
        line, verdict, entries = self.line, None, list[Mailing]()
        if line.ledger and line.ledger.is_shared:
            entries = line.ledger.verdicts_elsewhere(line.slot, campaign.name)
        for entry in entries:
            if line.options.scheduled or entry.id not in self._settled:
                verdict = dataclass_replace(entry, id=0)  # that PC notes it
        if verdict and verdict.state is State.HELD:
            verdict.error = Held(text("{message}", message=verdict.message))
        return verdict

    def _begin(self, campaign: Campaign, at: int) -> Mailing | None:
        """The mailing of a campaign that we hold, claimed; None if another PC has brought it meanwhile."""
        line, ledger = self.line, self.line.ledger
        if ledger and ledger.is_shared:
            line.settle_campaign(campaign.name, campaign)
            if not ledger.unsettled(campaign.name):
                line.drop_temps(self.mailings[at])  # what we were sending while we lost it
            self.mailings[at] = self._outcome_before_start(campaign)
        mailing = self.mailings[at]
        if mailing.state is not State.CLAIMED:
            if mailing.pc:
                template = "{campaign}: {state} ({pc})"
                log.info(text(template, campaign=campaign.name, state=text(mailing.state), pc=mailing.pc))
            return None
        if mailing.resend:
            template = "{campaign}: was delivered in this slot; is to be sent again (--resend)"
            log.warning(text(template, campaign=campaign.name))
        with self._naming:
            name = render_file_name(campaign.file_name, campaign.name, line.stop.start)
            mailing.file = free_file_name(name, self._is_used)
            self._names |= {mailing.file.lower(), rejected_name(mailing.file).lower()}
        if ledger:
            ledger.claim(mailing)
        return mailing

    def _is_used(self, name: str) -> bool:
        """In any case, as Windows has it; a mailing's rejected rows need a name too."""
        ours = {name.lower(), rejected_name(name).lower()} & self._names
        return bool(ours) or (self.line.ledger is not None and self.line.ledger.knows_file(name))

    def _fail_broken(self, broken: BrokenQuery) -> None:
        """A query file with faults fails, as a campaign does."""
        ledger, error = self.line.ledger, PipelineError(in_a_row(broken.told), BROKEN_HINT)
        mailing = Mailing(campaign=broken.name, slot=self.line.slot, state=State.CLAIMED)
        self.mailings.append(mailing)
        with contextlib.suppress(ClaimLost), ledger.holding(broken.name) if ledger else OURS as ours:
            if ledger and ours:
                ledger.claim(mailing)
            self._conclude(mailing, error)

    def _next(self) -> tuple[Campaign, int, contextlib.ExitStack] | None:
        """The next campaign in file order that no other PC holds, with its turn to query; None if there is none."""
        stop = self.line.stop
        with self._taking:
            while self._waiting and not self._error:
                with contextlib.ExitStack() as turn:
                    turn.enter_context(stop.turn(self._query_turns))
                    if (place := self._hold()) is not None:
                        return *self._waiting.pop(place), turn.pop_all()
                stop.sleep(LEDGER_POLL_S)
        return None

    def _hold(self) -> int | None:
        """Which of those that wait is ours now; None if other PCs hold them all."""
        ledger, names = self.line.ledger, [campaign.name for campaign, _ in self._waiting]
        if not ledger:
            return 0
        held = retry(lambda: ledger.hold(names), LEDGER_PATIENCE, self.line.stop, "ledger")
        return names.index(held) if held else None

    def _work(self) -> None:
        """A worker's life: one mailing after the other. Whatever happens to one, the others go on."""
        try:
            while taken := self._next():
                self._bring(*taken)
        except PipelineError as error:
            self._error = error  # what waits is concluded at the run's end

    def _bring(self, campaign: Campaign, at: int, turn: contextlib.ExitStack) -> None:
        """A campaign that we hold, to its outcome; to the end of the queue again if we lose it meanwhile."""
        lost = False
        try:
            with turn:
                if mailing := self._begin(campaign, at):
                    self._bring_mailing(campaign, mailing, turn)
        except ClaimLost as error:
            log.warning(text("{campaign}: {message}", campaign=campaign.name, message=error.message))
            self._losses[campaign.name] += 1
            lost = self._losses[campaign.name] < MOST_LOSSES
            if not lost:
                self._conclude_unnoted(at, error)
        except PipelineError as error:
            self._conclude_unnoted(at, error)
        except Exception as error:
            self._conclude_unnoted(at, bug(error))
        if self.line.ledger:
            self.line.ledger.release(campaign.name)
        if lost:  # not before it is released, or another worker of ours may hold it by then
            self._waiting.append((campaign, at))

    def _bring_mailing(self, campaign: Campaign, mailing: Mailing, turn: contextlib.ExitStack) -> None:
        """The ladder: everything that may go wrong with a mailing ends here. Raises ClaimLost alone."""
        line, clock = self.line, self.line.stop.clock
        mailing.began_s = clock.steady_s()
        try:
            if line.drops.down:
                raise line.drops.down
            line.bring(campaign, mailing, turn)
            self._conclude(mailing, None)
        except ClaimLost:
            raise
        except PipelineError as error:
            for kind, server in ((DatabaseError, line.database), (DeliveryError, line.drops)):
                if error.wide and isinstance(error, kind):
                    server.down = error
            # At the deadline it is the watchdog that breaks the connection.
            ended = line.stop.error if isinstance(error, ConnectionLost) else None
            self._conclude(mailing, ended or error)
        except Exception as error:
            self._conclude(mailing, bug(error))

    def _give_up(self, campaign: Campaign, at: int, error: PipelineError) -> None:
        """What nobody took up before this run's end; another PC may still be at work on it."""
        ledger = self.line.ledger
        try:
            if isinstance(self._error, ClaimLost):
                raise self._error  # not once more for each campaign
            with ledger.holding(campaign.name) if ledger else OURS as ours:
                if ours:
                    if mailing := self._begin(campaign, at):
                        self._conclude(mailing, error)
                    return
            error = Stopped(text("another PC was still at work on it when this run ended"), SEE_PAGE)
        except PipelineError as fault:
            self._error = fault
        self._conclude_unnoted(at, error)

    def _conclude_unnoted(self, at: int, error: PipelineError) -> None:
        """The outcome of what could not be claimed (again); an earlier entry of it is for others to conclude."""
        self.mailings[at].id = 0
        self._conclude(self.mailings[at], error)

    def _look_again(self) -> None:
        """What did not come through here another PC may have brought meanwhile."""
        for at, mailing in enumerate(self.mailings):
            if self.line.ledger and mailing.state in (State.FAILED, State.IN_DOUBT):
                found = self.line.ledger.in_slot(mailing.slot, mailing.campaign)
                if found and found[-1].state is State.DELIVERED:
                    self.mailings[at] = dataclass_replace(found[-1], state=State.ALREADY, message="", hint="", id=0)

    def _conclude(self, mailing: Mailing, error: PipelineError | None) -> None:
        """A mailing's outcome, in record, ledger and log. Raises ClaimLost alone: it is others' then."""
        line, language = self.line, self.line.settings.language
        if error and mailing.state is State.DELIVERED:
            template = "{campaign}: after its delivery: {reason}"
            log.warning(text(template, campaign=mailing.campaign, reason=error.message))
            error = None
        if error:
            mailing.error, mailing.state = error, state_after(mailing, error)
        if mailing.began_s:
            mailing.seconds = round(line.stop.clock.steady_s() - mailing.began_s, 3)
        if error:
            mailing.message, mailing.hint = as_told(error, language).values()
        try:
            if line.ledger and mailing.id:
                self._note_outcome(mailing, error)
        except ClaimLost:
            raise
        except PipelineError as fault:
            template = "{campaign}: the ledger could not note it, the next run looks: {reason}"
            log.error(text(template, campaign=mailing.campaign, reason=fault.message))
        log_outcome(mailing, error)

    def _note_outcome(self, mailing: Mailing, error: PipelineError | None) -> None:
        """Where a rename may have happened the entry says so still: the next run settles it first."""
        assert self.line.ledger
        values = as_told(error, self.line.settings.language) if error else {}
        values |= {name: getattr(mailing, name) for name in FIGURES}
        if mailing.state is not State.IN_DOUBT or isinstance(error, MayBeOut):
            values["state"] = mailing.state
            self.line.drop_temps(mailing)
        self.line.ledger.note(mailing, **values)

    def _log_in(self) -> None:
        try:
            self.line._reach(self.line.drops, "SFTP")
        except PipelineError as error:
            log.error(error.message)
        except Exception as error:
            self.line.drops.down = bug(error)

    def _let_end(self, workers: Sequence[threading.Thread]) -> None:
        """After Ctrl+C: a rename that is under way may end, and no more."""
        wait_for_all(workers, INTERRUPT_GRACE_S)
        self.line.drops.shut()
        wait_for_all(workers, INTERRUPT_GRACE_S)


def wait_for_all(threads: Iterable[threading.Thread], seconds: float) -> None:
    """Until every thread has ended, for that time at the most."""
    until_s = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, until_s - time.monotonic()))


def state_after(mailing: Mailing, error: PipelineError) -> State:
    """The state that an error leaves a mailing in. What is out stays out, whatever fails afterwards."""
    if mailing.state is State.DELIVERED:
        return State.DELIVERED
    if mailing.state in MAY_BE_OUT or isinstance(error, MayBeOut):
        return State.IN_DOUBT
    if isinstance(error, (Held, Empty)):
        return State.HELD if isinstance(error, Held) else State.EMPTY
    return State.FAILED


def figures_of(mailing: Mailing) -> Text:
    """What a mailing holds, for the log."""
    file, size, some = mailing.file, mailing.size_bytes, contacts(mailing.rows)
    if not mailing.rejected:
        return text("{file}: {contacts}, {size} bytes", file=file, contacts=some, size=size)
    template = "{file}: {contacts}, {rejected} rejected, {size} bytes"
    return text(template, file=file, contacts=some, rejected=mailing.rejected, size=size)


def log_outcome(mailing: Mailing, error: PipelineError | None) -> None:
    """One line in the log."""
    parts: list[Text] = [figures_of(mailing)] if mailing.size_bytes else []
    if error:
        parts += [part for part in (error.message, error.hint) if part]
    level = logging.ERROR if error and error.exit_code else logging.INFO
    who, state = mailing.campaign, text(mailing.state)
    if parts:
        log.log(level, text("{campaign}: {state}: {what}", campaign=who, state=state, what=in_a_row(parts)))
    else:
        log.log(level, text("{campaign}: {state}", campaign=who, state=state))


@contextlib.contextmanager
def watchdog(stop: Stop, drops: DropFolders) -> Iterator[None]:
    """End a hung run: at the deadline break its SFTP connection, STOP_GRACE_S later the process.

    Every wait of our own looks at the stop; this is for those of others (a driver, a library, a disk).
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1):
            if stop.left_s() > 0:
                continue
            log.error(text("the run's deadline has passed: ending it"))
            stop.end(stop.passed)
            drops.shut()
            if not over.wait(STOP_GRACE_S):
                template = "exit code 4: the run did not end by itself {seconds} s after its deadline"
                log.critical(text(template, seconds=STOP_GRACE_S))
                logging.shutdown()
                os._exit(ExitCode.PARTIAL)
            return

    threading.Thread(target=watch, name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def run(
    settings: Settings, files: QueryFiles, options: Options, clock: Clock, console: Console | None = None
) -> Report:
    """Deliver every campaign that is due in this slot. Raises PipelineError only before anything was exported."""
    stop = Stop(clock, settings.run_deadline_minutes)
    who = f"process {os.getpid()}, started {stop.start:%Y-%m-%d %H:%M:%S}"
    who += " by the Task Scheduler" if options.scheduled else " by hand"
    with (
        only_run(settings.output / "run.lock", who, clock, stop.left_s() if options.scheduled else 0),
        contextlib.closing(retry(lambda: open_ledger(settings, clock), LEDGER_PATIENCE, stop, "ledger")) as ledger,
    ):
        line = Line(settings, options, stop, ledger)
        this = Run(line, choose(files, options.only))
        with watchdog(stop, line.drops):
            remove_old_files(settings, ledger, clock)
            try:
                line.settle_leftovers({campaign.name: campaign for campaign in files.campaigns})
            except (DeliveryError, Stopped) as error:
                line.drops.down = error  # nothing can be delivered: no query runs
            except ClaimLost as error:  # they are settled before anything else is done with their campaigns
                log.warning(error.message)
            this.plan()
            with live_progress(console, this.mailings, settings.language, clock):
                this.work()
                if not stop.error:
                    watch_pickups(line, this)
            this.end()
        return report_now(stop, this.mailings)


def rehearse(
    settings: Settings, files: QueryFiles, options: Options, clock: Clock, console: Console | None = None
) -> Report:
    """The --dry-run: the same line up to its last steps, without SFTP and ledger; the CSVs go to output/dry-run."""
    stop = Stop(clock, settings.run_deadline_minutes)
    folder = settings.output_of(options)
    with local_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
    line = Line(settings, options, stop, None)
    this = Run(line, choose(files, options.only))
    this.plan()
    delivered = look_back(settings, clock, this.mailings)
    with watchdog(stop, line.drops), live_progress(console, this.mailings, settings.language, clock):
        this.work()
        this.end()
    for campaign in this.files.campaigns:
        mailing = next(mailing for mailing in this.mailings if mailing.campaign == campaign.name)
        if mailing.state is State.READY:
            remarks = rehearsal_remarks(campaign, mailing, stop, options, mailing.campaign in delivered)
            mailing.message = "; ".join(remark.told(settings.language) for remark in remarks)
    return report_now(stop, this.mailings, folder)


def look_back(settings: Settings, clock: Clock, mailings: Sequence[Mailing]) -> set[str]:
    """What a rehearsal takes from the ledger: the usual rows, and which campaigns this slot has delivered already."""
    delivered: set[str] = set()
    if settings.has_ledger:
        with contextlib.closing(open_ledger(settings, clock, looks=True)) as ledger:
            for mailing in mailings:
                mailing.past_rows = ledger.past_rows(mailing.campaign)
                delivered |= {mailing.campaign} if ledger.in_slot(mailing.slot, mailing.campaign) else set()
    return delivered


def rehearsal_remarks(
    campaign: Campaign, mailing: Mailing, stop: Stop, options: Options, delivered: bool
) -> list[Text]:
    """What would keep a rehearsed mailing from being sent now, and what treatment did to it."""
    remarks = mailing_remarks(campaign, mailing)
    if delivered and not options.resend:
        remarks.insert(0, text("this slot has been delivered already: a run would not send it again"))
    if objection := time_objection(campaign, stop, options.ignore_hours):
        remarks.insert(0, text("not at this hour: {reason}", reason=objection.message))
    return remarks


def watch_pickups(line: Line, this: Run) -> None:
    """After everything is published: wait until the dialer has taken each file whose campaign asks for it."""
    watched = [
        (campaign, mailing)
        for campaign in this.files.campaigns
        for mailing in this.mailings
        if campaign.pickup_s and mailing.campaign == campaign.name and mailing.state is State.DELIVERED
    ]
    began_s = line.stop.clock.steady_s()
    try:
        while watched:
            waited_s = line.stop.clock.steady_s() - began_s
            watched = [pair for pair in watched if not settle_pickup(line, *pair, waited_s)]
            if watched:
                line.stop.sleep(PICKUP_POLL_S)
    except Stopped as error:
        log.warning(text("pickups are not watched any more: {reason}", reason=error.message))
    except KeyboardInterrupt:
        line.stop.end(BY_OPERATOR)


def settle_pickup(line: Line, campaign: Campaign, mailing: Mailing, waited_s: float) -> bool:
    """Whether it is known what the dialer did with a mailing; then it is noted."""
    language = line.settings.language
    errors = campaign.pickup_error_folder
    try:
        if errors and line.drops.size(line.settings.sftp_base_dir / errors / mailing.file) is not None:
            pickup, told_why = Pickup.REFUSED, text("refused by the dialer")
        elif line.drops.size(mailing.final) is None:
            pickup, told_why = Pickup.TAKEN, text("picked up")
        elif waited_s > campaign.pickup_s:
            pickup, told_why = Pickup.LEFT, text("not picked up within {seconds} s", seconds=campaign.pickup_s)
        else:
            return False
    except DeliveryError as error:
        if waited_s <= campaign.pickup_s:
            return False
        template = "not known whether it was picked up: {reason}"
        pickup, told_why = Pickup.UNKNOWN, text(template, reason=error.message)
    note_pickup(line, mailing, pickup, told_why, language)
    return True


def note_pickup(line: Line, mailing: Mailing, pickup: Pickup, told_why: Text, language: str) -> None:
    """In ledger, report and log; a file that the dialer refused makes the run partial."""
    assert line.ledger
    values: dict[str, Any] = {"pickup": pickup}
    if pickup is Pickup.TAKEN:
        values["picked_up"] = f"{line.stop.clock.now():%H:%M:%S}"
        template = "{campaign}: {file}: picked up at {time}"
        log.info(text(template, campaign=mailing.campaign, file=mailing.file, time=values["picked_up"]))
    else:
        hint = text("see in the dialer why; the file is complete, and is not sent again")
        values |= {"message": told_why.told(language), "hint": hint.told(language)}
        mailing.error = PipelineError(told_why, hint) if pickup is Pickup.REFUSED else mailing.error
        template = "{campaign}: {file}: {reason}"
        log.error(text(template, campaign=mailing.campaign, file=mailing.file, reason=told_why))
    try:
        with line.ledger.holding(mailing.campaign):
            line.ledger.note(mailing, **values)
    except LocalFault as error:
        template = "{campaign}: the ledger could not note it: {reason}"
        log.error(text(template, campaign=mailing.campaign, reason=error.message))


def remove_old_files(settings: Settings, ledger: Ledger, clock: Clock) -> None:
    """Delete local CSVs, which hold personal data, after RETENTION_DAYS; only files that this program wrote."""
    oldest = clock.now() - timedelta(days=settings.retention_days)
    ours = ledger.files_before(oldest)
    ours |= {rejected_name(name) for name in ours}
    stale = [path for path in settings.output.glob("*") if path.name.removesuffix(".part") in ours]
    for path in (settings.output / "dry-run").glob("*"):
        with contextlib.suppress(OSError):  # it may go at this moment
            is_mailing = path.name.lower().removesuffix(".part").endswith(MAILING_ENDINGS)
            stale += [path] if is_mailing and path.stat().st_mtime < oldest.timestamp() else []
    for path in stale:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            template = "{path}: too old, but cannot be deleted: {reason}"
            log.warning(text(template, path=path, reason=foreign(error.strerror)))


# ---------------------------------------------------------------------------------------------------------------------
# Check: looking without sending
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the --check list; error: what is wrong."""

    what: Text
    told: Text
    error: PipelineError | None = None
    is_note: bool = False  # nothing is wrong, but somebody should know

    @property
    def hint(self) -> Text | None:
        return self.error.hint if self.error else None


def finding(what: Text, action: Callable[[], Text | None]) -> Finding:
    """What action says, or the error that it raised."""
    try:
        return Finding(what, action() or text("ok"))
    except SettingsFault as error:
        return Finding(what, in_a_row(error.faults), error)
    except PipelineError as error:
        return Finding(what, error.message, error)


WRITES = re.compile(r"^\s*(->\s*)?(Insert|Update|Delete|Merge) on |^\s*(->\s*)?LockRows\b", re.MULTILINE)


def check_query(database: Database, campaign: Campaign) -> Text:
    """Plan a campaign's query without running it, and compare its columns with what the dialer expects."""
    with database.session(campaign) as session:
        columns = session.columns(campaign.select)
        if objection := layout_objection(columns, campaign):
            raise objection
        rows = session.run(f"EXPLAIN {campaign.select.text}", campaign.select.line).fetchall()
    plan, words = "\n".join(str(row[0]) for row in rows), campaign.select.words
    calls = any(word in ("NEXTVAL", "SETVAL") and then == "(" for word, then in itertools.pairwise(words))
    if campaign.read_only and (WRITES.search(plan) or calls):
        where = place_in(campaign.source, campaign.select.line)
        message = text("{where}: the query writes or locks, in a read-only transaction", where=where)
        raise DatabaseError(message, WRITES_HINT)
    if campaign.columns:
        return text("{count} columns", count=len(columns))
    shown_names = foreign(";".join(columns))
    return text("{count} columns, no 'columns:' line: {names}", count=len(columns), names=shown_names)


PROBE = b"probe of mailing_pipeline --check; may be deleted\r\n"


def check_folder(line: Line, folder: PurePosixPath) -> Text:
    """Whatever a delivery asks of the server, with a probe under names that no dialer's pattern matches.

    With a staging folder all of it happens there: the dialer takes any name.
    """
    drops, settings = line.drops, line.settings
    drops.check_folder(folder)
    names = [settings.sftp_temp_name.replace("{id}", secrets.token_hex(4)) for _ in range(2)]
    probe, renamed = ((settings.sftp_staging_dir or folder) / name for name in names)
    try:
        drops.size(renamed)  # of a file that is not there
        drops.send(probe, [PROBE])
        drops.see(probe, len(PROBE))
        if settings.sftp_verify == "hash":
            drops.read_back(probe)
        drops.rename(probe, renamed)
    except BaseException:
        remove_probes(drops, probe, renamed)
        raise
    if left := remove_probes(drops, probe, renamed):
        return text("exists, can write, can rename, but not remove: {path} stays there", path=left)
    if settings.sftp_staging_dir:
        return text("exists; SFTP_STAGING_DIR takes files and renames; the move into this folder was not tried")
    return text("exists, can write, can rename")


def remove_probes(drops: DropFolders, *probes: PurePosixPath) -> PurePosixPath | None:
    """One that may not be removed is said, not hidden."""
    left = None
    for probe in probes:
        try:
            drops.clear(probe)
        except DeliveryError as error:
            left = probe
            log.warning(text("{path} may stay on the server: {reason}", path=probe, reason=error.message))
    return left


def check(settings: Settings, files: QueryFiles, clock: Clock) -> list[Finding]:
    """Everything that a run needs, one by one; nothing is sent, and nothing stays behind."""
    stop = Stop(clock, settings.run_deadline_minutes)
    line = Line(settings, Options(), stop, None)
    found = [Finding(text("settings"), text("ok"))]
    found += check_files(files)
    found.append(finding(text("ledger"), functools.partial(check_ledger, settings, clock)))
    with contextlib.closing(line.database), contextlib.closing(line.drops), watchdog(stop, line.drops):
        found.append(finding(text("database login"), line.database.open))
        for campaign in () if found[-1].error else files.campaigns:
            what = text("query {file}", file=campaign.source)
            found.append(finding(what, functools.partial(check_query, line.database, campaign)))
        found += check_sftp(line, files.campaigns)
    return found


def check_ledger(settings: Settings, clock: Clock) -> Text | None:
    """Open it as a run does, and write into it what does not stay."""
    with contextlib.closing(open_ledger(settings, clock)) as ledger:
        return ledger.probe()


def check_files(files: QueryFiles) -> list[Finding]:
    """What is wrong with query files, and what lies there and is not read."""
    found = [Finding(text("queries"), text("{count} campaigns", count=len(files.campaigns)))]
    for broken in files.broken:
        error = PipelineError(in_a_row(broken.faults))
        found.append(Finding(text("query {file}", file=broken.source), error.message, error))
    return found + [Finding(text("queries"), note, is_note=True) for note in files.notes]


def check_sftp(line: Line, campaigns: Sequence[Campaign]) -> list[Finding]:
    """Host key, login and each drop folder."""
    key = finding(text("SFTP host key"), lambda: text("{key}", key=line.drops.host_key()))
    if not key.error and not line.settings.sftp_host_keys:
        seen = str(key.told)
        hint = text("if the server's administrator confirms it, set SFTP_HOST_KEY={key}", key=seen.partition(" ")[0])
        missing = text("the server shows {key}", key=seen)
        fault = SettingsFault(missing)
        fault.hint = hint
        key = Finding(key.what, missing, fault)
    found = [key]
    if not key.error:
        found.append(finding(text("SFTP login"), line.drops.open))
    for campaign in () if found[-1].error else campaigns:
        what = text("folder {path}", path=campaign.folder)
        found.append(finding(what, functools.partial(check_folder, line, campaign.folder)))
    return found


def print_findings(findings: Sequence[Finding], console: Console, language: str) -> None:
    """The --check list."""
    for line in findings:
        mark, style = (text("NOTE"), "yellow") if line.is_note else (text("ok"), "green")
        if line.error:
            mark, style = text("FAULT"), "red"
        console.print(f"[{style}]{mark.told(language):5}[/]", end=" ")
        hint = line.hint.told(language) if line.hint else ""
        tell(console, text("{what}: {told}", what=line.what, told=line.told).told(language), hint)


def check_code(findings: Sequence[Finding]) -> ExitCode:
    """The exit code that a run with the same faults would have."""
    errors = [line.error for line in findings if line.error]
    codes = {error.exit_code for error in errors}
    for code in (ExitCode.BUG, ExitCode.USAGE):
        if code in codes:
            return code
    wide = {error.exit_code for error in errors if error.wide}
    for code in (ExitCode.DATABASE, ExitCode.SFTP):
        if code in wide:
            return code
    return ExitCode.PARTIAL if codes else ExitCode.OK


# ---------------------------------------------------------------------------------------------------------------------
# Status: today's grid and two weeks of trends, for the terminal, a browser and monitoring systems
# ---------------------------------------------------------------------------------------------------------------------

PAGE_DAYS = 14
PROBLEMS_SHOWN = 10
NAMES_SHOWN = 6  # of the campaigns that need attention, in the banner
OVERDUE_MINUTES = 20  # a slot that nothing came of is overdue so long after its start


@dataclass(frozen=True, slots=True)
class Look:
    """How terminal and page show a state: signs, rich's style, the page's colours in light and in dark."""

    sign: str
    ascii_sign: str
    style: str
    light: str = "#57606a"
    dark: str = "#a3abb5"

    def shown(self, plain: bool) -> str:
        """Its sign; plain: where only ASCII can be shown."""
        return self.ascii_sign if plain else self.sign


LOOKS = dict.fromkeys(State, Look("·", ".", "default")) | {
    State.DELIVERED: Look("✓", "+", "green", "#14532d", "#a5e0b2"),
    State.READY: Look("✓", "+", "green", "#14532d", "#a5e0b2"),
    State.EMPTY: Look("○", "0", "cyan", "#0b5563", "#a0dbe6"),
    State.HELD: Look("‖", "H", "yellow", "#6b4500", "#f5d67b"),
    State.FAILED: Look("✗", "X", "bold red", "#a10d0d", "#ffb0b0"),
    State.NOT_TAKEN: Look("↯", "T", "bold yellow", "#8a3a00", "#ffc08a"),
    State.IN_DOUBT: Look("?", "?", "bold magenta", "#6a1bb0", "#dcbcff"),
    State.RUNNING: Look("▸", ">", "blue", "#0b4fa0", "#a9d0ff"),
    State.MISSED: Look("!", "!", "bold red", "#a10d0d", "#ffb0b0"),
    State.COMING: Look("·", ".", "dim"),
    State.NOT_DUE: Look("–", "-", "dim"),
}
NEED_A_PERSON = (State.HELD, State.FAILED, State.NOT_TAKEN, State.IN_DOUBT)
Cell = tuple[State, Mailing | None]


@dataclass(frozen=True, slots=True)
class DayGrid:
    """Today: campaigns down, slots across; only slots in which something was due, or happened.

    due: the slots after the latest that was served, for two weeks; overdue: the one among them that
    should have been by now, or ''. lost: the last run failed as a whole.
    """

    now: datetime
    slots: tuple[str, ...]
    cells: Mapping[str, tuple[Cell, ...]]
    last_run: PastRun | None
    last_success: PastRun | None
    lost: bool
    due: tuple[str, ...]
    overdue: str

    @property
    def tally(self) -> dict[State, int]:
        """How often each state occurs, in the order of State."""
        counts = Counter(state for cells in self.cells.values() for state, _ in cells)
        return {state: counts[state] for state in State if counts[state]}

    @property
    def attention(self) -> dict[str, State]:
        """The campaigns that need a person: the ledger's latest of today on them is trouble."""
        latest = {}
        for name, cells in self.cells.items():
            for state, entry in cells:
                if entry and state is not State.RUNNING:
                    latest[name] = state
        return {name: state for name, state in latest.items() if state in NEED_A_PERSON}

    @property
    def look(self) -> State:
        """The banner's colour: green only if the last run ended well and no campaign needs a person."""
        if self.overdue or self.lost:
            return State.FAILED
        well = self.last_run and self.last_run.exit_code == 0 and not self.attention
        return State.DELIVERED if well else State.HELD


@dataclass(frozen=True, slots=True)
class Past:
    """The ledger of the last PAGE_DAYS: mailings and runs, oldest first."""

    mailings: Sequence[Mailing] = ()
    runs: Sequence[PastRun] = ()

    def of(self, name: str) -> Sequence[Mailing | PastRun]:
        """The entries of a campaign; those of whole runs for the name WHOLE_RUN."""
        return self.runs if name == WHOLE_RUN else [entry for entry in self.mailings if entry.campaign == name]


WHOLE_RUN = ""


def recent(ledger: Ledger, now: datetime) -> Past:
    """What the ledger knows of the last PAGE_DAYS."""
    since = (now - timedelta(days=PAGE_DAYS)).isoformat()
    return Past(ledger.mailings("changed > ?", since), ledger.runs(since))


def told_pickup(entry: Mailing | PastRun, language: str) -> str:
    """What the dialer did with a mailing, for the operator."""
    pickup = entry.pickup if isinstance(entry, Mailing) else Pickup.UNWATCHED
    return text(pickup).told(language) if pickup else ""


def state_in_grid(entry: Mailing, now: datetime) -> State:
    """An entry's state as the grid shows it. What a killed run left behind counts as failed after an hour."""
    if entry.state in (State.CLAIMED, State.EXPORTED):
        is_young = now - datetime.fromisoformat(entry.changed) < timedelta(hours=1)
        return State.RUNNING if is_young else State.FAILED
    if entry.state in MAY_BE_OUT:
        return State.IN_DOUBT
    return State.NOT_TAKEN if entry.state is State.DELIVERED and entry.is_trouble else entry.state


def overdue_at(slot: str) -> datetime:
    """When a slot that nothing came of is overdue: local, without offset, as browsers read it."""
    return datetime.fromisoformat(slot) + timedelta(minutes=OVERDUE_MINUTES)


def slots_of(hours: Hours, day: date) -> set[str]:
    """The slots of a day, as the ledger writes them."""
    return {f"{day} {hour:02}:00" for hour in hours.slots(day)}


def due_after(served: str, hours: Hours, now: datetime) -> list[str]:
    """The slots due after the one that was served, in the weeks before now and those to come."""
    slots = set[str]()
    for offset in range(-PAGE_DAYS, PAGE_DAYS + 1):
        slots |= slots_of(hours, now.date() + timedelta(days=offset))
    return sorted(slot for slot in slots if slot > served)


def telling_entries(entries: Iterable[Mailing]) -> dict[tuple[str, str], Mailing]:
    """The entry that tells of each campaign and slot.

    What reached the dialer comes before what may have, and that before the latest.
    """
    rank = {State.DELIVERED: 2} | dict.fromkeys(MAY_BE_OUT, 1)
    best: dict[tuple[str, str], Mailing] = {}
    for entry in entries:
        other = best.setdefault((entry.campaign, entry.slot), entry)
        if rank.get(entry.state, 0) >= rank.get(other.state, 0):
            best[entry.campaign, entry.slot] = entry
    return best


def is_lost(run: PastRun, mailings: Iterable[Mailing]) -> bool:
    """Whether a run failed as a whole: before any campaign had an outcome, or with none that came through."""
    states = {entry.state for entry in mailings if entry.slot == run.slot}
    return run.exit_code != 0 and (run.is_trouble or states <= {State.FAILED, *MAY_BE_OUT})


def day_grid(past: Past, campaigns: Sequence[Campaign], hours: Hours, now: datetime) -> DayGrid:
    """Today's grid from what the ledger knows of the last PAGE_DAYS."""
    slots, cells = day_cells(past.mailings, campaigns, hours, now)
    good = [run for run in past.runs if run.exit_code == 0]
    last_run = past.runs[-1] if past.runs else None
    # A held mailing was served too: its run took place, and another would not help.
    served = [run.slot for run in good] + [entry.slot for entry in past.mailings if entry.state in SERVED]
    due = due_after(max(served, default=""), hours, now) if past.mailings or past.runs else []
    late = [slot for slot in due if overdue_at(slot) <= now.replace(tzinfo=None)]
    return DayGrid(
        now=now,
        slots=slots,
        cells=cells,
        last_run=last_run,
        last_success=good[-1] if good else None,
        lost=last_run is not None and is_lost(last_run, past.mailings),
        due=tuple(due),
        overdue=late[-1] if late else "",
    )


SERVED = (State.DELIVERED, State.EMPTY, State.HELD)


def day_cells(
    mailings: Sequence[Mailing], campaigns: Sequence[Campaign], hours: Hours, now: datetime
) -> tuple[tuple[str, ...], dict[str, tuple[Cell, ...]]]:
    """The slots of today, and the cells of each campaign.

    A past slot without an entry was missed only if the campaign has an earlier entry: what is new,
    or is run by another PC, has missed nothing. Slots outside the operating hours appear where
    something was sent in them.
    """
    current, telling = slot_of(now), telling_entries(mailings)
    regular = slots_of(hours, now.date())
    due = {campaign.name: slots_of(campaign.hours, now.date()) & regular for campaign in campaigns}
    sent_today = [(name, slot) for name, slot in telling if slot.startswith(f"{now:%Y-%m-%d}")]
    first = {entry.campaign: entry.slot for entry in reversed(mailings)}

    def cell(name: str, slot: str) -> Cell:
        if entry := telling.get((name, slot)):
            return state_in_grid(entry, now), entry
        if slot not in due.get(name, ()) or (slot < current and first.get(name, current) > slot):
            return State.NOT_DUE, None
        return (State.MISSED if slot < current else State.COMING), None

    names = dict.fromkeys([*due, *(name for name, _ in sent_today)])
    every_slot = sorted(regular | {slot for _, slot in sent_today})
    columns = {slot: {name: cell(name, slot) for name in names} for slot in every_slot}
    empty = dict.fromkeys(names, (State.NOT_DUE, None))
    slots = tuple(slot for slot in every_slot if columns[slot] != empty)
    return slots, {name: tuple(columns[slot][name] for slot in slots) for name in names}


def status_json(grid: DayGrid) -> dict[str, Any]:
    """The grid for monitoring systems; its words are English in every language."""

    def told(state: State, entry: Mailing | None) -> dict[str, Any]:
        facts = ("rows", "changed", "message", "hint", "pickup", "picked_up")
        return {"state": state} | ({key: getattr(entry, key) for key in facts} if entry else {})

    return {
        "now": grid.now.isoformat(timespec="seconds"),
        "last_run": grid.last_run and grid.last_run.changed,
        "last_successful_run": grid.last_success and grid.last_success.changed,
        "overdue_slot": grid.overdue or None,
        "attention": grid.attention,
        "tally": grid.tally,
        "campaigns": {
            name: {slot: told(*cell) for slot, cell in zip(grid.slots, cells, strict=True)}
            for name, cells in grid.cells.items()
        },
    }


def short_number(value: float, language: str) -> str:
    """4812 as 4.8k, 48120 as 48k, 1481200 as 1.5M: four characters at the most."""
    unit, scale = ("", 1) if value < 1000 else ("k", 1e3) if value < 999_500 else ("M", 1e6)
    short = unit and value / scale < 9.95
    return (decimal(value / scale, language) if short else f"{value / scale:.0f}") + unit


def run_lines(grid: DayGrid, language: str) -> list[str]:
    """When the last run was; if it did not end well, also how, and when the last good one was."""
    last, good = grid.last_run, grid.last_success
    lines = []
    if last and last is not good:
        when = text("Last run: {time}", time=datetime.fromisoformat(last.changed))
        lines += [when.told(language), last.message.partition("\n")[0]]
    success = text("No successful run yet")
    if good:
        success = text("Last successful run: {time}", time=datetime.fromisoformat(good.changed))
    return [*lines, success.told(language)]


def attention_line(grid: DayGrid, language: str) -> str:
    """Which campaigns need a person, and why; '' if none does."""
    marks = grid.attention
    told: list[object] = [f"{name} ({state.told(language)})" for name, state in marks.items()]
    if not told:
        return ""
    if (more := len(told) - NAMES_SHOWN) > 1:
        told[NAMES_SHOWN:] = [text("{count} more", count=more)]
    line = text("{count} campaigns need attention: {campaigns}", count=len(marks), campaigns=told)
    if len(marks) == 1:
        line = text("{count} campaign needs attention: {campaigns}", count=1, campaigns=told)
    return line.told(language)


def overdue_line(slot: object) -> Text:
    """What is said of a slot that is overdue."""
    return text(
        "The slot {slot} is overdue: nothing was delivered. Double-click run_pipeline.bat to run now", slot=slot
    )


def print_status(grid: DayGrid, console: Console, language: str) -> None:
    """The grid, what its signs mean, how the last runs went, and the reason of each trouble."""
    from rich.text import Text as Styled

    plain = not console.encoding.startswith("utf")
    for table in grid_tables(grid, console.width, language, plain):
        console.print(table)
    if not grid.slots:
        tell(console, text("Nothing is due today").told(language))
    legend = [f"{state.look.shown(plain)} {state.told(language)} {n}" for state, n in grid.tally.items()]
    console.print(Styled("\n" + "   ".join(legend)))
    for line in run_lines(grid, language):
        tell(console, line)
    if grid.overdue:
        overdue = overdue_line(datetime.fromisoformat(grid.overdue))
        tell(console, overdue.told(language), style="bold red")
    if problems := list(todays_problems(grid, language)):
        tell(console, "")
        print_problems(console, problems)


def grid_tables(grid: DayGrid, width: int, language: str, plain: bool) -> Iterator[Table]:
    """The grid; where its slots do not fit beside each other, as several tables below each other."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text as Styled

    def shown_cell(state: State, entry: Mailing | None) -> Styled:
        if entry and state is State.DELIVERED:
            return Styled(short_number(entry.rows, language), state.look.style)
        return Styled(state.look.shown(plain), state.look.style)

    lines = {name: [shown_cell(*cell) for cell in cells] for name, cells in grid.cells.items()}
    name_width = min(max([5, *map(cell_len, lines)]), max(width - 32, width // 2))
    columns = zip(*lines.values(), strict=True)
    sizes = [max(2, *(cell.cell_len for cell in column)) + 1 for column in columns]
    for part in parts(sizes, width - name_width):
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column(f"{grid.now:%d/%m}", overflow="fold", width=name_width)
        for at in part:
            table.add_column(grid.slots[at][11:13], justify="right", no_wrap=True)
        for name, line in lines.items():
            table.add_row(Styled(name), *(line[at] for at in part))
        yield table


def parts(sizes: Sequence[int], most: int) -> Iterator[range]:
    """The indices of sizes, in ranges of which each adds up to `most` or holds one alone."""
    first, used = 0, 0
    for at, size in enumerate(sizes):
        if at > first and used + size > most:
            yield range(first, at)
            first, used = at, 0
        used += size
    if sizes:
        yield range(first, len(sizes))


def todays_problems(grid: DayGrid, language: str) -> Iterator[tuple[str, str, str, str]]:
    """The last run's trouble, and each campaign's latest of today: who, what, message, hint."""

    def told(entry: Mailing | PastRun) -> tuple[str, str]:
        return entry.message or told_pickup(entry, language), entry.hint

    if grid.last_run and grid.last_run.is_trouble:
        yield text("the whole run").told(language), State.FAILED.told(language), *told(grid.last_run)
    for name, cells in grid.cells.items():
        for slot, (state, entry) in reversed(list(zip(grid.slots, cells, strict=True))):
            if entry and state in NEED_A_PERSON:
                again = "" if name in grid.attention else f" ({text('works again').told(language)})"
                yield name, f"{slot[11:]} {state.told(language)}{again}", *told(entry)
                break


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
.cards li,.problems li{border:1px solid var(--line);border-radius:.4rem;padding:.5rem .7rem}
.problems li{margin:.5rem 0}.problems p{white-space:pre-line}
svg{display:block;width:100%;height:2.6rem;fill:none;stroke:var(--soft);overflow:visible}
path{vector-effect:non-scaling-stroke;stroke-linecap:round;stroke-linejoin:round}path.DELIVERED{stroke:currentColor}
.rows{stroke-width:1.8}.dots{stroke-width:5}
#run.HELD{border-color:light-dark(#c98500,#f5d67b)}
td,.chip,#run{background:color-mix(in srgb,currentColor 13%,var(--bg))}td.COMING,td.NOT_DUE{background:none}
""" + "".join(f".{state.name}{{color:light-dark({look.light},{look.dark})}}\n" for state, look in LOOKS.items())

# The page is static: the reader's clock tells how old it is, and which of the moments written here have come.
PAGE_SCRIPT = """
const get = id => document.getElementById(id), lang = document.documentElement.lang;
const [time, words, due] = JSON.parse(get("run").dataset.facts);
const age = (Date.now() - new Date(time)) / 6e4, unit = age < 90 ? "minute" : age < 2880 ? "hour" : "day";
const ago = Math.round(-age / {minute: 1, hour: 60, day: 1440}[unit]);
get("ago").textContent = time && ` (${new Intl.RelativeTimeFormat(lang).format(ago, unit)})`;
const late = due.filter(([, moment]) => Date.now() >= new Date(moment)).pop();
if (late) get("run").className = "FAILED";
get("late").textContent = late ? words.replace("{slot}", late[0]) : "";
const box = document.querySelector(".box"), hour = document.querySelector("[aria-current]");
if (hour) {  // the last column that a narrow screen shows, after as many whole ones as fit
  const [name, ...heads] = document.querySelectorAll("thead th");
  const first = hour.offsetLeft + hour.offsetWidth - (box.clientWidth - name.offsetWidth);
  box.scrollLeft = (heads.find(head => head.offsetLeft >= first) || hour).offsetLeft - name.offsetWidth;
}
setTimeout(() => location.reload(), 3e5);
"""


def sparkline(name: str, rows: Mapping[str, int], now: datetime, language: str) -> str:
    """A campaign's rows by slot over two weeks as an SVG line, broken where nothing was delivered; median dashed."""
    if not rows:
        return f'<br><small class="soft">{escape(text("nothing delivered in two weeks").told(language))}</small>'
    hours = [int(slot[11:13]) for slot in rows]
    width = max(hours) - min(hours) + 2
    height = heights(rows.values())
    strokes: list[list[tuple[int, int]]] = []
    for (slot, count), hour in zip(rows.items(), hours, strict=True):
        days_ago = (now.date() - date.fromisoformat(slot[:10])).days
        x = (PAGE_DAYS - 1 - days_ago) * width + hour - min(hours)
        if not strokes or strokes[-1][-1][0] != x - 1:
            strokes.append([])
        strokes[-1].append((x, height(count)))
    lone = [stroke[0] for stroke in strokes[:-1] if len(stroke) == 1]
    line = "".join("M" + "L".join(f"{x} {y}" for x, y in stroke) for stroke in strokes)
    dots = "".join(f"M{x} {y}h0" for x, y in [*lone, strokes[-1][-1]])
    median = statistics.median(rows.values())
    figures = text("latest {latest}, median {median}", latest=count, median=round(median)).told(language)
    return (
        f'<br><small class="soft">{escape(figures)}</small><svg role="img" viewBox="-1 0 {PAGE_DAYS * width} 42" '
        f'preserveAspectRatio="none"><title>{escape(name)}: {escape(figures)}</title><path stroke-dasharray="3 4" '
        f'd="M0 {height(median)}H{PAGE_DAYS * width - 1}"/>'
        f'<path class="rows DELIVERED" d="{line}"/><path class="dots DELIVERED" d="{dots}"/></svg>'
    )


def heights(counts: Collection[int]) -> Callable[[float], int]:
    """How far down a count stands in a drawing 42 high: the lowest of counts near its foot, the highest near its head.

    What varies by less than a fifth uses a part of the height only: a quiet campaign must not look like a wild one.
    """
    low, high = min(counts), max(counts)
    span = max(high - low, high / 5, 1)
    foot = (low + high - span) / 2
    return lambda count: round(38 - 34 * (count - foot) / span)


def status_page(past: Past, campaigns: Sequence[Campaign], hours: Hours, now: datetime, language: str) -> str:
    """One self-contained HTML page from the ledger's entries of the last PAGE_DAYS, oldest first. Counts and names."""
    grid = day_grid(past, campaigns, hours, now)
    first, *others = (escape(line) for line in run_lines(grid, language))
    attention = escape(attention_line(grid, language))
    more = "".join(f"<br>{line}" for line in (*others, attention) if line)
    overdue = overdue_line(datetime.fromisoformat(grid.overdue)).told(language) if grid.overdue else ""
    chips = "".join(chip(state, language, f" {shown(count, language)}") for state, count in grid.tally.items())
    cards = (
        f"<li><b>{escape(name)}</b>{sparkline(name, rows, now, language)}\n"
        for name, rows in trends(past.mailings, grid).items()
    )
    title, today = (escape(word.told(language)) for word in (text("Mailings"), text("Today")))
    trend, latest = text("Contacts delivered in two weeks"), text("Latest problems")
    generated = text("Generated {time}", time=now).told(language)
    return f"""<!DOCTYPE html>
<html lang="{"pt-BR" if language == "pt" else "en"}"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">
<style>{PAGE_STYLE}</style></head><body><header><h1>{title}</h1>
<p id="run" class="{grid.look.name}" data-facts="{escape(page_facts(grid, language))}">
{first}<span id="ago"></span>{more}<br>
<span id="late">{escape(overdue)}</span></p></header><main>
<h2>{today}, {now:%d/%m}</h2>
<ul class="signs">{chips}</ul>
{page_table(grid, language, today)}
<h2>{escape(trend.told(language))}</h2><ul class="cards">{"".join(cards)}</ul>
<h2>{escape(latest.told(language))}</h2>
<ul class="problems">{page_problems(past, now, language)}</ul>
</main><p class="soft">{escape(generated)} · {PROGRAM} {__version__}</p>
<script>{PAGE_SCRIPT}</script></body></html>
"""


def page_facts(grid: DayGrid, language: str) -> str:
    """What the page's script compares with the clock: the last run, and when which slot will be overdue, in words."""
    last = grid.last_run
    due = [
        (shown(datetime.fromisoformat(slot), language), f"{overdue_at(slot):%Y-%m-%dT%H:%M}")
        for slot in grid.due
        if slot >= grid.overdue
    ]
    return json.dumps([last and last.changed, overdue_line("{slot}").told(language), due])


def chip(state: State, language: str, more: str = "") -> str:
    """A state with its word, as an item of a list."""
    return f'<li><b class="chip {state.name}">{state.look.sign} {escape(state.told(language))}{more}</b>'


def page_table(grid: DayGrid, language: str, label: str) -> str:
    """Today's grid. The slot of now is marked: a narrow screen opens there."""
    if not grid.slots:
        return f"<p>{escape(text('Nothing is due today').told(language))}</p>"
    current = max([slot for slot in grid.slots if slot <= slot_of(grid.now)], default=grid.slots[0])
    heads = "".join(
        f'<th scope="col"{" aria-current=time" if slot == current else ""}>{slot[11:]}' for slot in grid.slots
    )
    lines = []
    for name, cells in grid.cells.items():
        breaking = escape(name).replace("_", "_<wbr>")
        lines.append(f'<tr><th scope="row">{breaking}{"".join(page_cell(*cell, language) for cell in cells)}\n')
    return (
        f'<div class="box" tabindex="0" role="region" aria-label="{label}"><table>\n<thead><tr><th scope="col">'
        f"{escape(text('campaign').told(language))}{heads}</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def page_cell(state: State, entry: Mailing | None, language: str) -> str:
    """A cell of the grid: sign and rows, below them the time or the word."""
    time = f"{datetime.fromisoformat(entry.changed):%H:%M}" if entry else ""
    sent = f" {shown(entry.rows, language)}" if entry and entry.state is State.DELIVERED else ""
    word = escape(state.told(language))
    below = "" if state in (State.COMING, State.NOT_DUE) else word
    if state is State.DELIVERED:
        below = time
    small = f"<br><small>{below}</small>" if below else ""
    return f'<td class="{state.name}" title="{word} {time}"><b>{state.look.sign}{sent}</b>{small}'


def trends(entries: Iterable[Mailing], grid: DayGrid) -> dict[str, dict[str, int]]:
    """The rows that each campaign of the grid delivered, by slot."""
    rows: dict[str, dict[str, int]] = {name: {} for name in grid.cells}
    for entry in entries:
        if entry.state is State.DELIVERED and entry.campaign in rows:
            rows[entry.campaign][entry.slot] = entry.rows
    return rows


def page_problems(past: Past, now: datetime, language: str) -> str:
    """The latest troubles of two weeks, newest first, with what to do."""
    whole = text("the whole run").told(language)
    troubles: list[tuple[tuple[str, int], str]] = []
    for name in [WHOLE_RUN, *dict.fromkeys(entry.campaign for entry in past.mailings)]:
        entries = past.of(name)
        worked = max((entry.changed for entry in entries if has_worked(entry)), default="")
        for entry in entries:
            if entry.is_trouble:
                state = state_in_grid(entry, now) if isinstance(entry, Mailing) else State.FAILED
                again = text("works again").told(language) if worked > entry.changed else ""
                troubles.append(((entry.changed, entry.id), page_problem(name or whole, state, entry, again, language)))
    items = [item for _, item in sorted(troubles, reverse=True)[:PROBLEMS_SHOWN]]
    return "".join(items) or f"<li>{escape(text('none in two weeks').told(language))}"


def has_worked(entry: Mailing | PastRun) -> bool:
    """Whether an entry shows that what troubled earlier ones is over."""
    if isinstance(entry, PastRun):
        return entry.exit_code == 0
    return entry.state in (State.DELIVERED, State.EMPTY) and not entry.is_trouble


def page_problem(name: str, state: State, entry: Mailing | PastRun, again: str, language: str) -> str:
    """An entry that needed a person; again: that it works again."""
    time = shown(datetime.fromisoformat(entry.changed), language)
    message = entry.message or told_pickup(entry, language)
    hint = f"<p>→ {escape(entry.hint)}</p>" if entry.hint else ""
    return (
        f"{chip(state, language)} <b>{escape(name)}</b> "
        f'<small class="soft">{time} {escape(again)}</small>'
        f"<p>{escape(message)}</p>{hint}"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Aftermath: the page, alerts and the heartbeat, for those who are not looking. Nothing here can fail a run
# ---------------------------------------------------------------------------------------------------------------------

ALERT_AGAIN = timedelta(hours=4)  # the same trouble is told when it begins, then this often, then when it is over
TELL_TIMEOUT_S = 20


def before_run(past: Past, end: Report | PipelineError, start: datetime) -> Past:
    """What was there before a run that began at start; of other PCs, what was there before its own entries."""
    moment = start.isoformat()
    own = {mailing.campaign: mailing.id for mailing in end.mailings if mailing.id} if isinstance(end, Report) else {}

    def was_there(entry: Mailing | PastRun) -> bool:
        return entry.changed <= moment or entry.pc not in ("", PC)

    earlier = [entry for entry in past.mailings if entry.id < own.get(entry.campaign, entry.id + 1)]
    return Past(list(filter(was_there, earlier)), list(filter(was_there, past.runs)))


def alert_lines(
    before: Past, troubles: Mapping[str, Sequence[Text]], good: Iterable[str], now: datetime
) -> tuple[list[Text], list[Text]]:
    """Which troubles (by campaign, WHOLE_RUN for the run) are told now, and what works again.

    before: from before this run. A trouble is told when it begins and once in every ALERT_AGAIN.
    """
    told_now: list[Text] = []
    for name, lines in troubles.items():
        streak = list(itertools.takewhile(lambda entry: entry.is_trouble, reversed(before.of(name))))
        if streak:
            began, last = (datetime.fromisoformat(streak[at].changed) for at in (-1, 0))
            if (now - began) // ALERT_AGAIN == (last - began) // ALERT_AGAIN:
                continue
        first, *more = lines
        told_now += [text("{campaign}: {message}", campaign=name, message=first) if name else first, *more]
    recovered = []
    for name in good:
        if (past := before.of(name)) and past[-1].is_trouble:
            again = text("the program works again")
            recovered.append(text("{campaign}: works again", campaign=name) if name else again)
    return told_now, recovered


def missed_slots(before: Past, hours: Hours, now: datetime) -> list[str]:
    """The slots since the last run in which one should have started: the PC was off, or the task disabled."""
    missed = []
    if before.runs:
        slot = datetime.fromisoformat(before.runs[-1].slot) + timedelta(hours=1)
        while f"{slot:%Y-%m-%d %H:%M}" < slot_of(now):
            missed += [f"{slot:%d/%m %H:%M}"] if hours.inside(slot.replace(minute=59)) else []
            slot += timedelta(hours=1)
    return missed


def send_alert(urls: str, title: str, body: str) -> None:
    """One message in plain text to every apprise URL, in TELL_TIMEOUT_S at the most; no URL is ever logged."""

    def send() -> None:
        try:
            import apprise

            logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
            plain = apprise.NotifyFormat.TEXT
            done.append(bool(apprise.Apprise(urls.split()).notify(title=title, body=body, body_format=plain)))
        except ImportError:
            log.error(text("ALERT_URLS is set, but the package apprise is missing: python -m pip install apprise"))
        except Exception as error:
            bug(error)

    done: list[bool] = []
    in_time(send, "alert")
    if not any(done):
        log.error(text("the alert could not be sent: check ALERT_URLS"))


def fetch_heartbeat(url: str) -> None:
    """Tell a monitor that this run ended well."""
    import http.client
    import urllib.request

    def fetch() -> None:
        try:
            with urllib.request.urlopen(url, timeout=TELL_TIMEOUT_S):
                done.append(True)
        except (OSError, ValueError, http.client.HTTPException) as error:  # whose text may quote the URL
            log.warning(text("HEARTBEAT_URL could not be fetched: {reason}", reason=type(error).__name__))
            done.append(False)

    done: list[bool] = []
    in_time(fetch, "heartbeat")
    if not done:
        log.warning(text("HEARTBEAT_URL could not be fetched: {reason}", reason=TIMED_OUT))


def in_time(action: Callable[[], None], name: str) -> None:
    """Do it, and wait TELL_TIMEOUT_S for it at the most, whatever the other side trickles."""
    thread = threading.Thread(target=action, name=name, daemon=True)
    thread.start()
    thread.join(TELL_TIMEOUT_S)


def aftermath(settings: Settings, files: QueryFiles, end: Report | PipelineError, clock: Clock) -> None:
    """After a run, however it ended: its own entry in the ledger, the page, alerts, the heartbeat."""
    now = clock.now()
    start = end.start if isinstance(end, Report) else now
    before = Past()
    try:
        with contextlib.closing(open_ledger(settings, clock)) as ledger:
            before = before_run(recent(ledger, now), end, start)
            note_run(ledger, end, start, settings.language)
            page = status_page(recent(ledger, now), files.campaigns, settings.hours, now, settings.language)
            write_page(settings, page)
    except PipelineError as error:
        log.warning(text("the status page was not written: {reason}", reason=error.message))
    except Exception as error:
        bug(error)
    alert(settings, end, before, now)
    if settings.heartbeat_url and end.exit_code == ExitCode.OK:
        fetch_heartbeat(settings.heartbeat_url)


def note_run(ledger: Ledger, end: Report | PipelineError, start: datetime, language: str) -> None:
    """How the run ended, in the ledger."""
    if isinstance(end, Report):
        ledger.note_run(slot_of(start), end.exit_code, True, end.totals.told(language), "")
        return
    *lines, last = [line.told(language) for line in end.lines]
    lines, hint = (lines, end.hint.told(language)) if end.hint else ([*lines, last], "")
    ledger.note_run(slot_of(start), end.exit_code, False, "\n".join(lines), hint)


def write_page(settings: Settings, page: str) -> None:
    """The status page, whole or not at all."""
    file = LocalFile(settings.output / "status.html")
    file.write(page.encode())
    file.keep()


def alert(settings: Settings, end: Report | PipelineError, before: Past, now: datetime) -> None:
    """Tell of trouble that begins, goes on or is over; before: what the ledger knew before this run."""
    ours = Past(before.mailings, [run for run in before.runs if run.pc in ("", PC)])  # a PC has its own run's troubles
    told_now, recovered = alert_lines(ours, *troubles_of(end), now)
    if missed := missed_slots(before, settings.hours, now):
        told_now.append(text("no run in the slots {slots}", slots=missed))
        log.warning(told_now[-1])
    if not settings.alert_urls or not (told_now or recovered):
        return
    title = text("mailings need a person") if told_now else text("mailings work again")
    if told_now:
        told_now.append(text("the next hourly run tries again by itself; nothing is ever sent twice"))
    body = "\n".join(line.told(settings.language) for line in told_now + recovered)
    send_alert(settings.alert_urls, f"{PROGRAM}: {title.told(settings.language)}", body)


def troubles_of(end: Report | PipelineError) -> tuple[dict[str, Sequence[Text]], list[str]]:
    """What needs a person after this run, by campaign, and which campaigns went well."""
    if isinstance(end, PipelineError):
        return {WHOLE_RUN: end.lines}, []
    troubles: dict[str, Sequence[Text]] = {}
    good = [WHOLE_RUN]
    for mailing in end.mailings:
        if mailing.pc not in ("", PC):
            continue  # that PC tells it
        if (mailing.error and mailing.error.exit_code) or mailing.pickup in TROUBLED_PICKUPS:
            told_why = text("{message}", message=mailing.message)
            lines = mailing.error.lines if mailing.error else [told_why]
            state = text("{state}: {message}", state=text(mailing.state), message=lines[0])
            troubles[mailing.campaign] = [state, *lines[1:]]
        elif mailing.state in (State.DELIVERED, State.EMPTY):
            good.append(mailing.campaign)
    return troubles, good


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def early_language(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    """The operator's language before the settings are read: for --help, wrong usage, settings with faults."""
    named = [value for option, value in itertools.pairwise(argv) if option == "--config"]
    named += [option.partition("=")[2] for option in argv if option.startswith("--config=")]
    path = Path(named[-1]) if named else Path(__file__).absolute().parent / "config.env"
    written = environ.get("LANGUAGE", "")
    if written not in LANGUAGES:
        with contextlib.suppress(OSError):
            lines = path.read_bytes().decode("utf-8-sig", "replace")
            found = re.search(r"(?m)^\s*LANGUAGE\s*=\s*['\"]?(\w+)", lines)
            written = found[1].lower() if found else ""
    return written if written in LANGUAGES else "en"


def parser(language: str = "en") -> argparse.ArgumentParser:
    """The options, in the words of --help and README."""

    def say(template: str) -> str:
        return text(template).told(language)

    words = ARGPARSE_PORTUGUESE if language == "pt" else {}
    argparse._ = lambda message: words.get(message, message)  # type: ignore[attr-defined]  # as gettext would
    codes = "\n".join(f"  {code.value}  {code.meaning.told(language)}" for code in ExitCode)
    made = argparse.ArgumentParser(
        prog=f"{PROGRAM}.py",
        description=say(
            "Run queries/*.sql in PostgreSQL and deliver each result as a CSV to its campaign's SFTP folder."
        ),
        epilog=f"{say('exit codes:')}\n{codes}",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=20, width=100),
        allow_abbrev=False,
    )
    mode = made.add_mutually_exclusive_group()
    switch = {"action": "store_true"}
    campaigns = {"action": "append", "default": [], "metavar": "CAMPAIGN"}
    options: tuple[tuple[Any, str, dict[str, Any], str], ...] = (
        (mode, "--dry-run", switch, say("export and judge everything, send nothing (output/dry-run)")),
        (mode, "--check", switch, say("test settings, queries, logins and folders; send nothing")),
        (mode, "--status", switch, say("show what was delivered today")),
        (made, "--scheduled", switch, say("started by the Task Scheduler: plain output, quiet outside the hours")),
        (made, "--only", campaigns, say("only this campaign (may be repeated)")),
        (made, "--resend", switch, say("also what this slot has delivered already, under a new name")),
        (made, "--ignore-hours", switch, say("run by hand outside the operating hours")),
        (
            made,
            "--config",
            {"type": Path, "metavar": "FILE"},
            say("the settings (default: config.env beside the program)"),
        ),
        (made, "--json", switch, say("the report as one JSON object on stdout")),
    )
    for group, option, how, meaning in options:
        group.add_argument(option, help=meaning, **how)
    version = f"{PROGRAM} {__version__}"
    made.add_argument(
        "--version", action="version", version=version, help=say("show program's version number and exit")
    )
    return made


class LineFormatter(logging.Formatter):
    """Local time with its offset, and one line per fact; English in the file, the operator's language on stderr."""

    def __init__(self, language: str = "en") -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self.language = language

    def formatMessage(self, record: logging.LogRecord) -> str:
        if isinstance(record.msg, Text):
            record.message = record.msg.told(self.language)
        return super().formatMessage(record)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002
        return datetime.fromtimestamp(record.created).astimezone().isoformat(" ", "milliseconds")


def open_log(settings: Settings, clock: Clock, *, console: bool) -> None:
    """Log to one file a day, by name: renaming a log that is open elsewhere fails on Windows. Raises SettingsFault."""
    path = settings.local(settings.log_dir) / f"{PROGRAM}_{clock.now():%Y-%m-%d}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(LineFormatter())
        started = log.makeRecord(PROGRAM, logging.INFO, "", 0, f"{PROGRAM} {__version__} started", (), None)
        if file.stream:  # a full disk shows here; logging itself would swallow it
            file.stream.write(file.format(started) + "\n")
            file.stream.flush()
    except OSError as error:
        reason = foreign(error.strerror)
        fault = text("{path}: cannot be written: {reason}; make LOG_DIR writable", path=path, reason=reason)
        raise SettingsFault(fault) from None
    handlers: list[logging.Handler] = [file]
    if console and sys.stderr:
        handlers.append(logging.StreamHandler(sys.stderr))
        handlers[1].setFormatter(LineFormatter(settings.language))
    log.handlers, log.propagate = handlers, False
    log.setLevel(logging.INFO)
    logging.raiseExceptions = False  # a full log disk must not stop a delivery half-way
    logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)  # it reports by exceptions; its log may quote


def make_console(arguments: argparse.Namespace) -> Console:
    """Standard output for a person; plain text where nobody looks, or where it has gone."""
    from rich.console import Console

    class PatientConsole(Console):
        def on_broken_pipe(self) -> None:  # rich would end the program with 1
            raise BrokenPipeError

    stream = sys.stdout
    if stream is None or arguments.json:
        stream = io.StringIO()
    elif isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # a cp1252 console must not stop a run
    if arguments.scheduled or not stream.isatty():
        return PatientConsole(file=stream, force_terminal=False, no_color=True, width=120)
    return PatientConsole(file=stream)


@contextlib.contextmanager
def showing() -> Iterator[None]:
    """What cannot be shown (a full disk behind stdout, a reader that went away) changes nothing of what was done."""
    lost = set()  # what is longer than the buffer fails here, and the flush below finds nothing more to write
    try:
        yield
    except OSError:
        lost.add(1)
    except ValueError as error:
        if "closed file" not in str(error):
            raise
        lost.add(1)
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream:
                stream.flush()
        except (OSError, ValueError):
            lost.add(number)
        if number in lost:
            log.warning(text("not everything could be shown: standard output cannot be written"))
            if number == 1 and sys.stderr and not log.handlers:
                print("standard output cannot be written", file=sys.stderr)
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)  # or Python itself would end with 120


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout, in ASCII so that every console and reader takes it."""
    if sys.stdout:
        print(json.dumps(value))


def missing_packages() -> list[str]:
    """The packages that this Python lacks, by the names that pip knows."""
    needed = {"psycopg": "psycopg[binary]", "dotenv": "python-dotenv"}
    needed |= {name: name for name in ("paramiko", "pandas", "pyarrow", "rich")}
    return [package for module, package in needed.items() if importlib.util.find_spec(module) is None]


def load(arguments: argparse.Namespace, environ: Mapping[str, str]) -> tuple[Settings, QueryFiles]:
    """Settings and query files. Raises SettingsFault with every fault of both."""
    if missing := missing_packages():
        message = text("this Python ({path}) lacks the packages {names}", path=sys.executable, names=missing)
        raise SettingsFault(
            message, text("    -> start run_pipeline.bat, or: python -m pip install -r requirements.txt")
        )
    path = (arguments.config or Path(__file__).absolute().parent / "config.env").absolute()
    sends = not (arguments.dry_run or arguments.status)
    faults: list[Text] = []
    files = QueryFiles((), (), ())
    try:
        settings = load_settings(path, environ, sends=sends, knows_host=not arguments.check)
    except SettingsFault as error:
        if error.settings is None:
            raise
        settings, faults = error.settings, [*error.faults]
    try:
        files = load_campaigns(settings.local(settings.queries_dir), settings)
        choose(files, arguments.only)
    except UsageFault as error:
        raise UsageFault(*faults, *error.faults, settings=settings) from None
    except SettingsFault as error:
        faults += error.faults
    if faults:
        faults += [fault for broken in files.broken for fault in broken.told]
        raise SettingsFault(*faults, settings=settings)
    return settings, files


def show_status(arguments: argparse.Namespace, settings: Settings, files: QueryFiles, clock: Clock) -> ExitCode:
    """--status."""
    console, now, past = make_console(arguments), clock.now(), Past()
    if settings.has_ledger:
        with contextlib.closing(open_ledger(settings, clock, looks=True)) as ledger:
            past = recent(ledger, now)
    grid = day_grid(past, files.campaigns, settings.hours, now)
    with showing():
        if arguments.json:
            print_json(status_json(grid))
        print_status(grid, console, settings.language)
    return ExitCode.OK


def show_check(arguments: argparse.Namespace, settings: Settings, files: QueryFiles, clock: Clock) -> ExitCode:
    """--check."""
    console, chosen = make_console(arguments), choose(files, arguments.only)
    findings = check(settings, chosen, clock)
    code = check_code(findings)
    with showing():
        if arguments.json:
            lines = [
                {"what": str(line.what), "ok": not line.error, "message": str(line.told), "hint": str(line.hint or "")}
                for line in findings
            ]
            print_json({"exit_code": code.value, "meaning": str(code.meaning), "checks": lines})
        print_findings(findings, console, settings.language)
        tell(console, closing_line(code).told(settings.language))
    return code


def closing_line(code: ExitCode) -> Text:
    """The last thing that every call says."""
    return text("exit code {code}: {meaning}", code=str(code.value), meaning=code.meaning)


def deliver(arguments: argparse.Namespace, settings: Settings, files: QueryFiles, clock: Clock) -> ExitCode:
    """A run, or its rehearsal. Raises PipelineError."""
    options = Options(
        arguments.dry_run, arguments.scheduled, tuple(arguments.only), arguments.resend, arguments.ignore_hours
    )
    reason = settings.hours.why_not(clock.now())
    if reason and not (options.ignore_hours or options.dry_run):
        if options.scheduled:
            log.info(text("outside the hours, nothing to do: {reason}", reason=reason))
            return ExitCode.OK
        raise OutsideHours(reason, text("wait, or use --ignore-hours if you really want to start calls now"))
    for note in files.notes:
        log.info(note)
    console = make_console(arguments)
    report = (rehearse if options.dry_run else run)(settings, files, options, clock, console)
    code = report.exit_code
    log.info(
        text(
            "slot {slot}: {totals} in {seconds} s; {outcome}",
            slot=datetime.fromisoformat(report.slot),
            totals=report.totals,
            seconds=f"{report.seconds:.1f}",
            outcome=closing_line(code),
        )
    )
    if not options.dry_run:
        aftermath(settings, files, report, clock)
    with showing():
        if arguments.json:
            print_json(report.as_json())
        print_report(report, console, settings.language)
    return code


def act(arguments: argparse.Namespace, environ: Mapping[str, str], clock: Clock, language: str) -> ExitCode:
    """The one thing that the options ask for: its exit code. An error that stops all of it is told here.

    language: the operator's, as far as it is known before the settings are.
    """
    settings: Settings | None = None
    files = QueryFiles((), (), ())
    looks = arguments.check or arguments.status
    try:
        settings, files = load(arguments, environ)
        if not arguments.status:
            open_log(settings, clock, console=not sys.stdout or not sys.stdout.isatty())
        action = show_status if arguments.status else show_check if arguments.check else deliver
        return action(arguments, settings, files, clock)
    except PipelineError as found:
        fault = found
    except KeyboardInterrupt:
        fault = Stopped(BY_OPERATOR, START_AGAIN)
    except Exception as found:
        fault = bug(found)
    settings = settings or (fault.settings if isinstance(fault, SettingsFault) else None)
    by_hand = isinstance(fault, (Busy, OutsideHours, UsageFault)) and not arguments.scheduled
    if settings and not (looks or arguments.dry_run or by_hand):
        if not log.handlers:
            with contextlib.suppress(SettingsFault):
                open_log(settings, clock, console=False)
        aftermath(settings, files, fault, clock)
    tell_fault(fault, settings.language if settings else language, arguments.json)
    return fault.exit_code


def tell_fault(fault: PipelineError, language: str, as_json: bool) -> None:
    """What stopped everything: in the log in English, on standard error in the operator's language."""
    lines = [*fault.lines, closing_line(fault.exit_code)]
    if log.handlers:
        for line in lines:
            log.error(line)
    with showing():
        if isinstance(sys.stderr, io.TextIOWrapper):
            sys.stderr.reconfigure(errors="replace")
        if sys.stderr and not any(getattr(handler, "stream", None) is sys.stderr for handler in log.handlers):
            print("\n".join(line.told(language) for line in lines), file=sys.stderr)
        if as_json:
            code = fault.exit_code
            error = "\n".join(map(str, fault.lines[:-1] if fault.hint else fault.lines))
            told = {"error": error, "hint": str(fault.hint or "")}
            print_json({"exit_code": code.value, "meaning": str(code.meaning)} | told)


def main(
    argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None, clock: Clock | None = None
) -> int:
    """Run the program; returns its exit code. Nothing is raised but argparse's SystemExit (code 2 for wrong usage)."""
    environ = os.environ if environ is None else environ
    language = early_language(sys.argv[1:] if argv is None else argv, environ)
    arguments = parser(language).parse_args(argv)
    try:
        return act(arguments, environ, clock or Clock(), language)
    except KeyboardInterrupt:  # after the run itself, beside the page or the alerts
        tell_fault(Stopped(BY_OPERATOR), language, arguments.json)
        return ExitCode.PARTIAL


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


# ---------------------------------------------------------------------------------------------------------------------
# Portuguese: what an operator meets, template by template
# ---------------------------------------------------------------------------------------------------------------------

ARGPARSE_PORTUGUESE = {
    "usage: ": "uso: ",
    "options": "opções",
    "show this help message and exit": "mostra esta ajuda e termina",
    "%(prog)s: error: %(message)s\n": "%(prog)s: erro: %(message)s\n",
    "argument %(argument_name)s: %(message)s": "opção %(argument_name)s: %(message)s",
    "unrecognized arguments: %s": "opções desconhecidas: %s",
    "expected one argument": "falta o valor",
    "not allowed with argument %s": "não pode ser usada junto com %s",
    "ignored explicit argument %r": "não aceita um valor",
}

PORTUGUESE: dict[str, str] = {
    "{first}; {then}": "{first}; {then}",
    "{count} contact": "{count} contato",
    "{count} contacts": "{count} contatos",
    "everything due was delivered, already delivered, or empty where empty is allowed": (
        "tudo o que estava previsto foi entregue, já estava entregue ou veio vazio onde isso é permitido"
    ),
    "a bug (traceback in the log)": "um erro do programa (detalhes no log)",
    "settings, ledger or usage wrong, or no usable query file: nothing was started": (
        "configuração, registro de entregas ou modo de uso com erro, ou nenhuma consulta utilizável: nada foi iniciado"
    ),
    "another run is active": "outra execução está em andamento",
    "some campaigns failed or were held": "algumas campanhas falharam ou foram retidas",
    "database: nothing could be exported": "banco de dados: nada pôde ser exportado",
    "SFTP: nothing could be delivered": "SFTP: nada pôde ser entregue",
    "manual run outside the hours": "execução manual fora do horário",
    "    -> {hint}": "    -> {hint}",
    "internal error ({kind})": "erro interno ({kind})",
    "send the log of today to the developer": "envie o log de hoje ao desenvolvedor",
    "mon": "segunda",
    "tue": "terça",
    "wed": "quarta",
    "thu": "quinta",
    "fri": "sexta",
    "sat": "sábado",
    "sun": "domingo",
    "Monday": "segunda-feira",
    "Tuesday": "terça-feira",
    "Wednesday": "quarta-feira",
    "Thursday": "quinta-feira",
    "Friday": "sexta-feira",
    "Saturday": "sábado",
    "Sunday": "domingo",
    "{first}-{last}": "de {first} a {last}",
    "every day": "todos os dias",
    "{days} and {last}": "{days} e {last}",
    "{day} is a holiday (HOLIDAYS)": "{day} é feriado (HOLIDAYS)",
    "it is {day}: runs {days} ({key})": "hoje é {day}: funciona {days} ({key})",
    "it is {time}: runs {hours} on {day} ({key})": "são {time}: o horário de {day} é {hours} ({key})",
    "{days} {hours}": "{days} {hours}",
    "{hours} {days}": "{hours} {days}",
    "{parts}": "{parts}",
    "the run's deadline of {minutes} minutes has passed": "o prazo de {minutes} minutos da execução se esgotou",
    "the run was stopped": "a execução foi interrompida",
    "the next run starts afresh; nothing old is sent": "a próxima execução começa do zero; nada antigo é enviado",
    "see in the log what took so long; RUN_DEADLINE_MINUTES is the limit": (
        "veja no log o que demorou tanto; RUN_DEADLINE_MINUTES é o limite"
    ),
    "{who}: retry {number} of {most} in {seconds} s: {reason}": (
        "{who}: nova tentativa {number} de {most} em {seconds} s: {reason}"
    ),
    "holds a character that cannot be seen; type it anew": "contém um caractere invisível; digite de novo",
    "must be a whole number from {low} to {high}": "deve ser um número inteiro de {low} a {high}",
    "must be one of: {choices}": "deve ser um destes valores: {choices}",
    "must be one character such as ; or , or | or \\t": "deve ser um caractere como ; ou , ou | ou \\t",
    "must be days such as mon-sat or mon,wed,fri": "deve ter dias como mon-sat ou mon,wed,fri (em inglês)",
    "must name its days from Monday to Sunday, such as mon-sat": (
        "deve citar os dias na ordem de segunda a domingo, como mon-sat (em inglês)"
    ),
    "must be hours such as 08:00-20:00 or 08:00-20:00, sat 08:00-13:00": (
        "deve ser um horário como 08:00-20:00 ou 08:00-20:00, sat 08:00-13:00 (dias em inglês)"
    ),
    "must begin before it ends, such as 08:00-20:00": "deve começar antes de terminar, como 08:00-20:00",
    "gives a day its hours twice": "dá dois horários ao mesmo dia",
    "has hours for {days}, which {key} leaves out": "tem horário para {days}, fora dos dias de {key}",
    "leaves no day on which anything runs, together with {key}": (
        "junto com {key}, não deixa nenhum dia para executar"
    ),
    "must be dates such as 2026-12-25,2027-01-01": "deve ter datas como 2026-12-25,2027-01-01",
    "must be a path with / such as /entrada/cobranca_30d, without .. and without a backslash": (
        "deve ser um caminho com / como /entrada/cobranca_30d, sem .. e sem barra invertida"
    ),
    "must give a legal file name, such as {example} (no {without}, at most 200 characters)": (
        "deve resultar em um nome de arquivo válido, como {example} (sem {without}, no máximo 200 caracteres)"
    ),
    "must not begin with a dot: many dialers overlook such files": (
        "não pode começar com ponto: muitos discadores não enxergam esses arquivos"
    ),
    "gives {name}, which Windows takes for a device; put mailing_ before it": (
        "resulta em {name}, que o Windows toma por um dispositivo; ponha mailing_ na frente"
    ),
    "must end in .csv or .txt": "deve terminar em .csv ou .txt",
    "must hold {{campaign}} or the hour (%H), so that two mailings do not share a name": (
        "deve conter {{campaign}} ou a hora (%H), para que dois mailings não tenham o mesmo nome"
    ),
    "must hold {{id}}, which is different for each upload, such as .part-{{id}}": (
        "deve conter {{id}}, que muda a cada envio, como .part-{{id}}"
    ),
    "must give a legal file name, such as .part-{{id}}": (
        "deve resultar em um nome de arquivo válido, como .part-{{id}}"
    ),
    "must not end in .csv or .txt: the dialer would take a file that is not whole": (
        "não pode terminar em .csv ou .txt: o discador pegaria um arquivo incompleto"
    ),
    "is not the path you wrote: quotes change a backslash; write it without quotes, or with /": (
        "não é o caminho que você escreveu: aspas alteram a barra invertida; escreva sem aspas, ou com /"
    ),
    "must look like SHA256: and 43 characters; --check prints the one it sees": (
        "deve ser SHA256: e mais 43 caracteres; --check mostra a que o servidor apresenta"
    ),
    "must be a libpq connection string such as {example}": "deve ser uma connection string da libpq, como {example}",
    "{file}: {key}: {fault}": "{file}: {key}: {fault}",
    "unknown setting; did you mean {key}?": "configuração desconhecida; você quis dizer {key}?",
    "unknown setting": "configuração desconhecida",
    "missing": "não definido",
    "missing; run with --check to see the server's fingerprint": (
        "não definido; execute com --check para ver a impressão digital do servidor"
    ),
    "set one of the two, or both if the server asks for both": (
        "defina um dos dois, ou os dois se o servidor pedir ambos"
    ),
    "is UTF-16, not UTF-8; save the file as UTF-8 in the editor": (
        "está em UTF-16, não em UTF-8; salve o arquivo como UTF-8 no editor"
    ),
    "line {line}: not UTF-8 but ANSI; save the file as UTF-8 in the editor": (
        "linha {line}: está em ANSI, não em UTF-8; salve o arquivo como UTF-8 no editor"
    ),
    "line {line}: not UTF-8; save the file as UTF-8 in the editor": (
        "linha {line}: não está em UTF-8; salve o arquivo como UTF-8 no editor"
    ),
    "cannot be read: {why}": "não pode ser lido: {why}",
    "{file}: not found; copy config.env.example to config.env and fill it in": (
        "{file}: não encontrado; copie config.env.example para config.env e preencha"
    ),
    "{file}: {fault}": "{file}: {fault}",
    "set twice": "definido duas vezes",
    "{key}: {fault}": "{key}: {fault}",
    "{file}: line {line}: {fault}": "{file}: linha {line}: {fault}",
    ("a quote inside the value ends it, or the last one is missing; inside single quotes write \\' for one"): (
        "uma aspa dentro do valor o encerra, ou falta a última; entre aspas simples escreva \\' para uma"
    ),
    "not of the form KEY=value": "não está na forma CHAVE=valor",
    "its closing quote is missing on the same line": "falta fechar as aspas na mesma linha",
    "double quotes change what follows a backslash; put the value between single quotes": (
        "aspas duplas alteram o que vem depois da barra invertida; ponha o valor entre aspas simples"
    ),
    "what follows ' #' is a comment; put the value between single quotes": (
        "o que vem depois de ' #' é comentário; ponha o valor entre aspas simples"
    ),
    "must have only a-z, 0-9 and _": "deve ter apenas a-z, 0-9 e _",
    "must be column names separated by ; or ,": "deve ter nomes de colunas separados por ; ou ,",
    "must be a percentage such as 70%": "deve ser uma porcentagem como 70%",
    "line {line}: this comment does not end": "linha {line}: este comentário não termina",
    "line {line}: this quote does not end": "linha {line}: estas aspas não se fecham",
    "line {line}: psql's backslash commands are not SQL; remove it": (
        "linha {line}: os comandos do psql com barra invertida não são SQL; remova"
    ),
    "line {line}: this bracket is not closed": "linha {line}: este parêntese não se fecha",
    "no SQL statement; the last statement must be the SELECT of the mailing": (
        "nenhum comando SQL; o último comando deve ser o SELECT do mailing"
    ),
    "line {line}: {command}: the last statement must return the mailing's rows (SELECT …)": (
        "linha {line}: {command}: o último comando deve retornar as linhas do mailing (SELECT …)"
    ),
    "remove it; the program opens and ends the transaction itself": (
        "remova; o próprio programa abre e encerra a transação"
    ),
    "line {line}: {command}: {fault}": "linha {line}: {command}: {fault}",
    "remove it and leave the SELECT; the program copies the result itself": (
        "remova e deixe o SELECT; o próprio programa copia o resultado"
    ),
    "line {line}: a comment begins with --, not with #": "linha {line}: um comentário começa com --, não com #",
    "line {line}: the SQL holds a character that cannot be seen; type the blanks anew": (
        "linha {line}: o SQL contém um caractere invisível; digite os espaços de novo"
    ),
    "must stand above the first SQL line, or it has no effect": (
        "deve ficar acima da primeira linha de SQL, ou não tem efeito"
    ),
    "given twice": "aparece duas vezes",
    "line {line}: {fault}": "linha {line}: {fault}",
    "has no value": "está sem valor",
    "{written}: has no effect so; write '-- {key}: …'": "{written}: não tem efeito assim; escreva '-- {key}: …'",
    "hours: {fault}": "hours: {fault}",
    "the file is empty; its last statement must be the SELECT of the mailing": (
        "o arquivo está vazio; o último comando deve ser o SELECT do mailing"
    ),
    "line {line}: a NUL character; save the file as UTF-8 in the editor": (
        "linha {line}: um caractere NUL; salve o arquivo como UTF-8 no editor"
    ),
    "its lines end in CR alone; save the file with Windows (CRLF) or Unix (LF) line ends": (
        "as linhas terminam só com CR; salve o arquivo com fim de linha do Windows (CRLF) ou do Unix (LF)"
    ),
    "the campaign's name '{name}' {fault}; rename the file or add '-- campaign: name'": (
        "o nome da campanha '{name}' {fault}; renomeie o arquivo ou acrescente '-- campaign: nome'"
    ),
    "its file name {fault}": "o nome do arquivo {fault}",
    "{key}: {column} is not one of columns:": "{key}: {column} não está em columns:",
    "its name begins with {sign}": "o nome começa com {sign}",
    "only files whose name ends in .sql are, in small letters; rename it if it is a query": (
        "só são lidos arquivos cujo nome termina em .sql, em minúsculas; renomeie se for uma consulta"
    ),
    "it is a folder": "é uma pasta",
    "it looks like a copy of {original}; delete it, or give it a name of its own": (
        "parece uma cópia de {original}; apague, ou dê um nome próprio"
    ),
    "its line 'enabled: no' switches it off": "a linha 'enabled: no' o desativa",
    "{file} is not read: {why}": "{file} não é lido: {why}",
    "{folder}: no query file that can be used; one for each campaign (QUERIES_DIR)": (
        "{folder}: nenhum arquivo de consulta que possa ser usado; ponha um por campanha (QUERIES_DIR)"
    ),
    "{folder}: cannot be read: {why} (QUERIES_DIR)": "{folder}: não pode ser lida: {why} (QUERIES_DIR)",
    "the name {name} is used by {others} too; each needs its own": (
        "o nome {name} também é usado por {others}; cada campanha precisa do seu"
    ),
    "the folder {folder} is used by {others} too; each needs its own": (
        "a pasta {folder} também é usada por {others}; cada campanha precisa da sua"
    ),
    "--only {unknown}: no such campaign; known: {known}": (
        "--only {unknown}: campanha inexistente; as conhecidas são: {known}"
    ),
    "claimed": "em andamento",
    "exported": "exportado",
    "publishing": "em publicação",
    "withdrawing": "em retirada",
    "delivered": "entregue",
    "in doubt": "em dúvida",
    "empty": "vazio",
    "held": "retido",
    "failed": "falhou",
    "already delivered": "já entregue",
    "would be sent": "seria enviado",
    "not due": "não previsto",
    "running": "em andamento",
    "not taken": "não coletado",
    "missed": "perdido",
    "still to come": "a seguir",
    "picked up": "coletado",
    "not picked up": "não coletado",
    "refused by the dialer": "recusado pelo discador",
    "not known whether it was picked up": "não se sabe se foi coletado",
    (
        "{path}: the ledger cannot be used ({reason}); nothing was sent. Free the disk, make the file "
        "writable and close other programs that hold it; if it is damaged, restore it or move it away "
        "with the CSVs beside it"
    ): (
        "{path}: o registro de entregas não pode ser usado ({reason}); nada foi enviado. Libere espaço "
        "no disco, permita a gravação do arquivo e feche outros programas que o usem; se estiver "
        "danificado, restaure-o ou mova-o dali com os CSVs ao lado dele"
    ),
    "{path}: the ledger is of a newer version of this program": (
        "{path}: o registro de entregas é de uma versão mais nova deste programa"
    ),
    (
        "{path}: the ledger is gone, but {folder} holds mailings ({file} …): what this slot has "
        "delivered is unknown. Restore the file; or, to begin a new one, move those CSVs elsewhere"
    ): (
        "{path}: o registro de entregas sumiu, mas {folder} contém mailings ({file} …): não se sabe o "
        "que este horário já entregou. Restaure o arquivo; ou, para começar um novo, mova esses CSVs "
        "para outro lugar"
    ),
    "{campaign}: another PC may be at work on it": "{campaign}: outro computador pode estar cuidando dela",
    "this slot's mailing is out already": "o mailing deste horário já saiu",
    "{path}: {reason}": "{path}: {reason}",
    "free the disk, and close other programs that hold the ledger": (
        "libere espaço no disco, e feche outros programas que usem o registro de entregas"
    ),
    "nothing to do: whichever PC reaches the ledger carries on, and looks first what became of it": (
        "nada a fazer: o computador que alcançar o registro de entregas continua, e antes verifica o que aconteceu"
    ),
    "check LEDGER and the network; is PostgreSQL running, in version 14 or newer?": (
        "confira LEDGER e a rede; o PostgreSQL está no ar, na versão 14 ou mais nova?"
    ),
    "make OUTPUT_DIR writable, or delete this file if it is damaged": (
        "permita a gravação em OUTPUT_DIR, ou apague este arquivo se estiver danificado"
    ),
    "{path}: the lock cannot be used: {reason}; {cure}": "{path}: a trava não pode ser usada: {reason}; {cure}",
    "{file}: {contacts}, {rejected} rejected, {size} bytes": (
        "{file}: {contacts}, {rejected} rejeitados, {size} bytes"
    ),
    "SFTP at {where}: the server shows another host key than SFTP_HOST_KEY: {keys}": (
        "SFTP em {where}: o servidor apresenta outra chave que a de SFTP_HOST_KEY: {keys}"
    ),
    "phones: or unique: names the column {name}, which the query does not return": (
        "phones: ou unique: cita a coluna {name}, que a consulta não retorna"
    ),
    "{contacts}, fewer than min_rows {least}": "{contacts}, menos que min_rows {least}",
    "{campaign}: {file} of an earlier run: {outcome}": "{campaign}: {file} de uma execução anterior: {outcome}",
    "{count} characters are not in {encoding} and became '?'": (
        "{count} caracteres não existem em {encoding} e viraram '?'"
    ),
    "{rejected} of {total} rows were rejected: see {file}": (
        "{rejected} de {total} linhas foram rejeitadas: veja {file}"
    ),
    "{campaign}: {file}: picked up at {time}": "{campaign}: {file}: coletado às {time}",
    "{campaign}: {file}: {reason}": "{campaign}: {file}: {reason}",
    "{campaign}: after its delivery: {reason}": "{campaign}: depois da entrega: {reason}",
    "not known whether it was picked up: {reason}": "não se sabe se foi coletado: {reason}",
    "{campaign}: the ledger could not note it: {reason}": (
        "{campaign}: o registro de entregas não pôde anotar: {reason}"
    ),
    "SFTP at {where}: no {name} in common; the server offers {offered}": (
        "SFTP em {where}: nada em comum em {name}; o servidor oferece {offered}"
    ),
    "the last byte was acknowledged, looking what is there: {reason}": (
        "o último byte foi confirmado; verificando o que está lá: {reason}"
    ),
    "{campaign}: the rename is in doubt, looking: {reason}": (
        "{campaign}: a troca do nome está em dúvida, verificando: {reason}"
    ),
    "{campaign}: a temp file may stay until the next run: {reason}": (
        "{campaign}: um arquivo temporário pode ficar até a próxima execução: {reason}"
    ),
    "{campaign}: the ledger could not note it, the next run looks: {reason}": (
        "{campaign}: o registro de entregas não pôde anotar; a próxima execução verifica: {reason}"
    ),
    "exit code 4: the run did not end by itself {seconds} s after its deadline": (
        "código de saída 4: a execução não terminou sozinha {seconds} s depois do prazo"
    ),
    "{path}: too old, but cannot be deleted: {reason}": "{path}: antigo demais, mas não pode ser apagado: {reason}",
    "the server grants no more than {count} {what}, mailings take turns: {reason}": (
        "o servidor não concede mais que {count} {what}, os mailings se revezam: {reason}"
    ),
    "this server exports no snapshot, each query sees its own: {reason}": (
        "este servidor não exporta um snapshot; cada consulta vê o seu: {reason}"
    ),
    "the database is a replica, and nobody knows how far it is behind": (
        "o banco de dados é uma réplica, e não se sabe quanto está atrasada"
    ),
    "the database is a replica and {seconds} s behind (MAX_REPLICA_LAG_SECONDS={most})": (
        "o banco de dados é uma réplica atrasada {seconds} s (MAX_REPLICA_LAG_SECONDS={most})"
    ),
    "{campaign}: {file} stays in doubt: {reason}": "{campaign}: {file} continua em dúvida: {reason}",
    "{campaign}: was delivered in this slot; is to be sent again (--resend)": (
        "{campaign}: já foi entregue neste horário; será enviado de novo (--resend)"
    ),
    "another run is active: {holder}": "outra execução está em andamento: {holder}",
    "wait until it has ended; it delivers by itself": "espere até ela terminar; ela faz a entrega sozinha",
    "waiting for another run to end: {holder}": "aguardando outra execução terminar: {holder}",
    "ask the database administrator": "fale com o administrador do banco de dados",
    "it is tried again by itself; if it stays so, ask the database administrator": (
        "a tentativa se repete sozinha; se continuar assim, fale com o administrador do banco de dados"
    ),
    "check PGHOST, PGPORT and the network; is PostgreSQL running?": (
        "confira PGHOST, PGPORT e a rede; o PostgreSQL está no ar?"
    ),
    "check PGUSER and PGPASSWORD (or .pgpass)": "confira PGUSER e PGPASSWORD (ou .pgpass)",
    "the query writes; if it must (temp tables), add '-- read_only: no'": (
        "a consulta grava dados; se for preciso (tabelas temporárias), acrescente '-- read_only: no'"
    ),
    "check the PG… settings in config.env": "confira as configurações PG… em config.env",
    "the connection was refused": "a conexão foi recusada",
    "no answer in time": "sem resposta a tempo",
    "ledger at {where}: {reason}": "registro de entregas em {where}: {reason}",
    "this name is unknown": "este nome é desconhecido",
    "the password or the user is wrong": "a senha ou o usuário está errado",
    "check PGDATABASE": "confira PGDATABASE",
    "check PGUSER": "confira PGUSER",
    "ask the database administrator to let this PC in (pg_hba.conf)": (
        "peça ao administrador do banco de dados que autorize este PC (pg_hba.conf)"
    ),
    "check PGUSER, PGPASSWORD and PGDATABASE": "confira PGUSER, PGPASSWORD e PGDATABASE",
    "another session locks a table of this query; ask who changes it at this hour": (
        "outra sessão bloqueia uma tabela desta consulta; veja quem a altera neste horário"
    ),
    "the query took too long: see its plan, or raise '-- timeout:' (seconds)": (
        "a consulta demorou demais: veja o plano de execução, ou aumente '-- timeout:' (segundos)"
    ),
    "ask for SELECT on that table for this PGUSER": "peça permissão de SELECT nessa tabela para este PGUSER",
    "correct the query; --check tries it without sending": "corrija a consulta; --check a testa sem enviar nada",
    "a value does not fit; run the query in an SQL tool (values are not logged)": (
        "há um valor que não cabe; execute a consulta em uma ferramenta SQL (o log não guarda valores)"
    ),
    "run the query in an SQL tool to see more; ask the database administrator": (
        "execute a consulta em uma ferramenta SQL para ver mais; fale com o administrador do banco de dados"
    ),
    "the next run reads again; if it stays so, ask the database administrator": (
        "a próxima execução lê de novo; se continuar assim, fale com o administrador do banco"
    ),
    "database at {where}: {reason}": "banco de dados em {where}: {reason}",
    "{where}: the connection to the database was lost": "{where}: a conexão com o banco de dados foi perdida",
    "check the network, and whether PostgreSQL was restarted": "confira a rede, e se o PostgreSQL foi reiniciado",
    "{file}: line {line}": "{file}: linha {line}",
    "{where}: {reason} ({code})": "{where}: {reason} ({code})",
    "the server neither answers nor ends the query; ask the database administrator": (
        "o servidor não responde nem encerra a consulta; fale com o administrador do banco de dados"
    ),
    "{where}: the database fell silent": "{where}: o banco de dados parou de responder",
    "database sessions": "sessões de banco de dados",
    "the server grants one database session only: each query sees its own snapshot": (
        "o servidor concede uma única sessão de banco: cada consulta vê o seu próprio snapshot"
    ),
    "{file}: the shared snapshot cannot be read any more": "{file}: o snapshot comum não pode mais ser lido",
    "several servers behind one address share no snapshot: each query sees its own": (
        "vários servidores atrás de um endereço não compartilham um snapshot: cada consulta vê o seu"
    ),
    "database at {where}: an SSH (SFTP) server answers there, not PostgreSQL": (
        "banco de dados em {where}: quem responde ali é um servidor SSH (SFTP), não o PostgreSQL"
    ),
    "check PGPORT: PostgreSQL's port is mostly 5432": "confira PGPORT: a porta do PostgreSQL costuma ser 5432",
    "reason": "motivo",
    "no valid phone": "nenhum telefone válido",
    "duplicate {columns}": "repetição de {columns}",
    "the disk is full": "o disco está cheio",
    "free space on this PC's disk, and close programs that hold the file open": (
        "libere espaço no disco deste PC, e feche os programas que mantêm o arquivo aberto"
    ),
    "check SFTP_HOST, SFTP_PORT and the network; is the SFTP server running?": (
        "confira SFTP_HOST, SFTP_PORT e a rede; o servidor SFTP está no ar?"
    ),
    "see whether the server's disk is full or its quota used up": (
        "veja se o disco do servidor está cheio ou a cota esgotada"
    ),
    ("check SFTP_USER and SFTP_PASSWORD or SFTP_KEY_FILE (old servers refuse RSA keys: make an ed25519 key)"): (
        "confira SFTP_USER e SFTP_PASSWORD ou SFTP_KEY_FILE (servidores antigos recusam chaves RSA: crie uma ed25519)"
    ),
    (
        "check the network, SFTP_USER and SFTP_PASSWORD: some servers hang up on a wrong password, or "
        "where SFTP is not allowed"
    ): (
        "confira a rede, SFTP_USER e SFTP_PASSWORD: alguns servidores desligam diante de senha errada, "
        "ou onde o SFTP não é permitido"
    ),
    "the server wants a new password: set one there, then SFTP_PASSWORD": (
        "o servidor exige uma senha nova: defina-a lá e depois em SFTP_PASSWORD"
    ),
    "ask the server's administrator for a login that needs nothing else": (
        "peça ao administrador do servidor um acesso que não exija mais nada"
    ),
    ("ask the server's administrator whether this user may use SFTP (subsystem, shell, owner of the home)"): (
        "pergunte ao administrador do servidor se este usuário pode usar SFTP (subsistema, shell, dono "
        "da pasta pessoal)"
    ),
    "the server offers only outdated algorithms (SHA-1); its administrator must update it": (
        "o servidor só oferece algoritmos ultrapassados (SHA-1); o administrador precisa atualizá-lo"
    ),
    "create the folder on the server, or correct '-- folder:' or SFTP_STAGING_DIR": (
        "crie a pasta no servidor, ou corrija '-- folder:' ou SFTP_STAGING_DIR"
    ),
    "ask the server's administrator for write access to the folder": (
        "peça ao administrador do servidor permissão de gravação na pasta"
    ),
    ("ask the server's administrator for write access to the folder; if it is there, set another SFTP_TEMP_NAME"): (
        "peça ao administrador do servidor acesso de gravação à pasta; se já houver, defina outro SFTP_TEMP_NAME"
    ),
    "ask the server's administrator to let this user rename files there": (
        "peça ao administrador do servidor que deixe este usuário renomear arquivos ali"
    ),
    "is SFTP_STAGING_DIR on the same disk as the drop folder, and may this user rename files there?": (
        "SFTP_STAGING_DIR está no mesmo disco que a pasta de entrega, e este usuário pode renomear arquivos ali?"
    ),
    "let this user read the file": "permita que este usuário leia o arquivo",
    "let this user list the folder, or look at its files": (
        "deixe este usuário listar a pasta, ou consultar os arquivos dela"
    ),
    "the server lacks this operation": "o servidor não oferece esta operação",
    "the connection was lost": "a conexão caiu",
    "the user, the password or the key is wrong": "o usuário, a senha ou a chave está errada",
    "no such file or folder": "arquivo ou pasta inexistente",
    "no permission": "sem permissão",
    "the password has expired": "a senha expirou",
    "SFTP at {where}": "SFTP em {where}",
    "{server}: {doing}: {reason}": "{server}: {doing}: {reason}",
    "the run is over": "a execução terminou",
    "do not go on: ask the server's administrator whether the key was changed; no password was sent": (
        "não prossiga: pergunte ao administrador do servidor se a chave foi trocada; nenhuma senha foi enviada"
    ),
    "SFTP at {where}: PostgreSQL answers there, not an SFTP server": (
        "SFTP em {where}: quem responde ali é o PostgreSQL, não um servidor SFTP"
    ),
    "check SFTP_PORT: SFTP's port is mostly 22": "confira SFTP_PORT: a porta do SFTP costuma ser 22",
    "its administrator can allow one of: {known}": "o administrador dele pode permitir um destes: {known}",
    "SFTP at {where}: login: the server also wants {what}": "SFTP em {where}: login: o servidor exige também {what}",
    "not found": "não encontrado",
    "correct SFTP_KEY_FILE": "corrija SFTP_KEY_FILE",
    "cannot be read: {reason}": "não pode ser lido: {reason}",
    "SFTP_KEY_FILE: {path}: {reason}": "SFTP_KEY_FILE: {path}: {reason}",
    "is a key of PuTTY": "é uma chave do PuTTY",
    "in PuTTYgen: Conversions, Export OpenSSH key": "no PuTTYgen: Conversions, Export OpenSSH key",
    "is the public half of a key": "é a metade pública de uma chave",
    "name the private key: the file without .pub": "indique a chave privada: o arquivo sem .pub",
    "the passphrase does not open it": "a senha da chave não a abre",
    "check SFTP_KEY_PASSPHRASE": "confira SFTP_KEY_PASSPHRASE",
    "is no private key that paramiko knows": "não é uma chave privada que o paramiko conheça",
    "make one with: ssh-keygen -t ed25519": "crie uma com: ssh-keygen -t ed25519",
    "SFTP channels": "canais SFTP",
    "asking for the host key": "leitura da chave do servidor",
    "looking for {path}": "busca por {path}",
    "drop folder {path}": "pasta de entrega {path}",
    "drop folder {path}: is not a folder": "pasta de entrega {path}: não é uma pasta",
    "correct '-- folder:' in the query file": "corrija '-- folder:' no arquivo da consulta",
    "creating {path}": "criação de {path}",
    "writing {path}": "gravação de {path}",
    "closing {path}": "fechamento de {path}",
    "{path} was whole and is gone: it may have been activated": (
        "{path} estava completo e sumiu: pode ter sido ativado"
    ),
    "set SFTP_STAGING_DIR: something takes files of any name": (
        "defina SFTP_STAGING_DIR: algo coleta arquivos de qualquer nome"
    ),
    "{path}: {sent} bytes sent, {arrived} arrived": "{path}: {sent} bytes enviados, {arrived} recebidos",
    "reading {path} back": "releitura de {path} no servidor",
    "renaming {path} to {name}": "troca do nome de {path} para {name}",
    "removing {path}": "remoção de {path}",
    "SFTP at {where}: the connection was lost": "SFTP em {where}: a conexão caiu",
    "login": "login",
    "logged in, but SFTP does not start": "login feito, mas o SFTP não inicia",
    "check the query and the data; if the number is right, change the guard in the query file": (
        "confira a consulta e os dados; se o número estiver certo, ajuste o limite no arquivo da consulta"
    ),
    "correct the query's column names, or its 'columns:' line if the dialer's layout really changed": (
        "corrija os nomes das colunas na consulta, ou a linha 'columns:' se o layout do discador mudou mesmo"
    ),
    "nothing to do: it is not sent late": "nada a fazer: o mailing não é enviado com atraso",
    "the query returns no columns": "a consulta não retorna nenhuma coluna",
    "column {name} comes twice": "a coluna {name} aparece duas vezes",
    "the columns changed: {what}": "as colunas mudaram: {what}",
    "missing {names}": "falta {names}",
    "not expected {names}": "não prevista: {names}",
    "another order: {names}": "outra ordem: {names}",
    "every row was rejected ({rows})": "todas as linhas foram rejeitadas ({rows})",
    "see in the _rejected.csv why; check the phones: and unique: lines and the query": (
        "veja o motivo no _rejected.csv; confira as linhas phones: e unique: e a consulta"
    ),
    "{contacts}, {share} below the usual {usual} (max_drop {most}%)": (
        "{contacts}, {share} abaixo dos {usual} habituais (max_drop {most}%)"
    ),
    "nobody to call": "ninguém para ligar",
    "not known whether it was picked up: it was being withdrawn when the connection failed": (
        "não se sabe se foi coletado: estava sendo retirado quando a conexão falhou"
    ),
    "its temp is gone, and what stands under its final name is not it": (
        "o arquivo temporário sumiu, e o que está com o nome final não é ele"
    ),
    "the next run looks whether the dialer got it, and never sends it twice": (
        "a próxima execução verifica se o discador o recebeu, e nunca o envia duas vezes"
    ),
    "somebody else puts files there, or the dialer does not take them; nothing was overwritten": (
        "alguém mais põe arquivos lá, ou o discador não os coleta; nada foi sobrescrito"
    ),
    "ask who runs the dialer whether it has the file; it is not sent again in this slot": (
        "pergunte a quem cuida do discador se ele tem o arquivo; não é enviado de novo neste horário"
    ),
    "more than max_rows {most} contacts": "mais que max_rows {most} contatos",
    "{campaign}: exported {figures}": "{campaign}: exportado {figures}",
    "{path} is already there": "{path} já está lá",
    "{path}: what arrived is not what was sent (SHA-256)": "{path}: o que chegou não é o que foi enviado (SHA-256)",
    "its campaign is gone": "a campanha não existe mais",
    "its campaign has another drop folder now": "a campanha agora tem outra pasta de entrega",
    "its slot {slot} is over": "o horário dele, {slot}, já passou",
    "its rename was refused": "a troca do nome foi recusada",
    "not published: {reason}": "não publicado: {reason}",
    "the run was interrupted before publishing": "a execução foi interrompida antes da publicação",
    "{path} was changed on this PC before it was sent": "{path} foi alterado neste PC antes de ser enviado",
    "leave the files in the output folder alone while a run is on": (
        "não mexa nos arquivos da pasta output durante uma execução"
    ),
    "the dialer has not taken the previous mailing {file}": "o discador ainda não coletou o mailing anterior {file}",
    "{campaign}: {message}": "{campaign}: {message}",
    "{reason}; what its query wrote is kept all the same": "{reason}; o que a consulta gravou fica mesmo assim",
    "{count} {state}": "{count} {state}",
    "{counts}": "{counts}",
    "nothing due": "nada previsto",
    "Slot {slot}": "Horário {slot}",
    "the CSVs are in {folder}": "os CSVs estão em {folder}",
    "campaign": "campanha",
    "result": "resultado",
    "contacts": "contatos",
    "rejected": "rejeit.",
    "columns": "colunas",
    "size": "tamanho",
    "seconds": "seg.",
    "remote path": "caminho remoto",
    "drop folder": "pasta de entrega",
    "waiting": "aguardando",
    "ready": "pronto",
    "the query is running": "consulta em execução",
    "reading, {contacts}": "lendo, {contacts}",
    "sending {sent} of {size}, {rate}/s": "enviando {sent} de {size}, {rate}/s",
    "the status page shows what came of it": "a página de situação mostra o que aconteceu",
    "stopped by the operator": "execução interrompida pelo operador",
    "start the program again; it sends only what is missing": "inicie o programa de novo; ele envia só o que falta",
    "the server does not tell what became of this slot's mailing": (
        "o servidor não informa o que aconteceu com o mailing deste horário"
    ),
    "correct the file, and try it with --check": "corrija o arquivo, e teste-o com --check",
    "another PC was still at work on it when this run ended": (
        "outro computador ainda cuidava dela quando esta execução terminou"
    ),
    "{file}: {contacts}, {size} bytes": "{file}: {contacts}, {size} bytes",
    "{campaign}: {state}: {what}": "{campaign}: {state}: {what}",
    "{campaign}: {state}": "{campaign}: {state}",
    "the run's deadline has passed: ending it": "o prazo da execução se esgotou: encerrando",
    "this slot has been delivered already: a run would not send it again": (
        "este horário já foi entregue: uma execução não o enviaria de novo"
    ),
    "not at this hour: {reason}": "não neste horário: {reason}",
    "pickups are not watched any more: {reason}": "a coleta não é mais acompanhada: {reason}",
    "not picked up within {seconds} s": "não coletado em {seconds} s",
    "see in the dialer why; the file is complete, and is not sent again": (
        "veja o motivo no discador; o arquivo está completo e não é enviado de novo"
    ),
    "ok": "ok",
    "{where}: the query writes or locks, in a read-only transaction": (
        "{where}: a consulta grava ou bloqueia dados, em uma transação somente de leitura"
    ),
    "{count} columns": "{count} colunas",
    "{count} columns, no 'columns:' line: {names}": "{count} colunas, sem a linha 'columns:': {names}",
    "exists, can write, can rename, but not remove: {path} stays there": (
        "existe, grava, renomeia, mas não apaga: {path} fica lá"
    ),
    "exists; SFTP_STAGING_DIR takes files and renames; the move into this folder was not tried": (
        "existe; SFTP_STAGING_DIR permite gravar e renomear; a passagem para esta pasta não foi testada"
    ),
    "exists, can write, can rename": "existe, permite gravar e renomear",
    "{path} may stay on the server: {reason}": "{path} pode ficar no servidor: {reason}",
    "settings": "configuração",
    "ledger": "registro de entregas",
    "shared, in PostgreSQL at {where}": "compartilhado, no PostgreSQL em {where}",
    "set synchronous_standby_names there, or a failover forgets the last deliveries": (
        "defina synchronous_standby_names lá, ou um failover esquece as últimas entregas"
    ),
    "this PC stood still for {seconds} s: others may have its claims": (
        "este computador ficou parado por {seconds} s: outro pode ter assumido as suas campanhas"
    ),
    "{path}: the ledger is of another version of this program": (
        "{path}: o registro de entregas é de outra versão deste programa"
    ),
    "this PC's clock is {seconds} s off that of the ledger's server; nothing was sent. Set the clock": (
        "o relógio deste computador difere {seconds} s do relógio do servidor do registro de entregas; nada foi "
        "enviado. Acerte o relógio"
    ),
    "this PC and {pc} have different time zones; nothing was sent. Set the zone": (
        "este computador e {pc} têm fusos horários diferentes; nada foi enviado. Acerte o fuso"
    ),
    "let the database administrator run: {sql}": "peça ao administrador do banco que execute: {sql}",
    "database login": "login no banco de dados",
    "query {file}": "consulta {file}",
    "queries": "consultas",
    "{count} campaigns": "{count} campanhas",
    "SFTP host key": "chave do servidor SFTP",
    "{key}": "{key}",
    "if the server's administrator confirms it, set SFTP_HOST_KEY={key}": (
        "se o administrador do servidor a confirmar, defina SFTP_HOST_KEY={key}"
    ),
    "the server shows {key}": "o servidor apresenta {key}",
    "SFTP login": "login no SFTP",
    "folder {path}": "pasta {path}",
    "NOTE": "AVISO",
    "FAULT": "FALHA",
    "{what}: {told}": "{what}: {told}",
    "Last run: {time}": "Última execução: {time}",
    "No successful run yet": "Nenhuma execução com êxito até agora",
    "Last successful run: {time}": "Última execução com êxito: {time}",
    "{count} more": "mais {count}",
    "{count} campaigns need attention: {campaigns}": "{count} campanhas precisam de atenção: {campaigns}",
    "{count} campaign needs attention: {campaigns}": "{count} campanha precisa de atenção: {campaigns}",
    "The slot {slot} is overdue: nothing was delivered. Double-click run_pipeline.bat to run now": (
        "O horário {slot} está atrasado: nada foi entregue. Dê dois cliques em run_pipeline.bat para executar agora"
    ),
    "Nothing is due today": "Não há nada previsto para hoje",
    "the whole run": "a execução inteira",
    "works again": "já normalizado",
    "nothing delivered in two weeks": "nada entregue em duas semanas",
    "latest {latest}, median {median}": "último {latest}, mediana {median}",
    "Mailings": "Mailings",
    "Today": "Hoje",
    "Contacts delivered in two weeks": "Contatos entregues em duas semanas",
    "Latest problems": "Últimos problemas",
    "Generated {time}": "Gerado em {time}",
    "none in two weeks": "nenhum em duas semanas",
    "the program works again": "o programa voltou ao normal",
    "{campaign}: works again": "{campaign}: já normalizado",
    "ALERT_URLS is set, but the package apprise is missing: python -m pip install apprise": (
        "ALERT_URLS está definida, mas falta o pacote apprise: python -m pip install apprise"
    ),
    "the alert could not be sent: check ALERT_URLS": "o alerta não pôde ser enviado: confira ALERT_URLS",
    "HEARTBEAT_URL could not be fetched: {reason}": "HEARTBEAT_URL não pôde ser acessada: {reason}",
    "the status page was not written: {reason}": "a página de status não foi gravada: {reason}",
    "no run in the slots {slots}": "nenhuma execução nos horários {slots}",
    "mailings need a person": "os mailings precisam de atenção",
    "mailings work again": "os mailings voltaram ao normal",
    "the next hourly run tries again by itself; nothing is ever sent twice": (
        "a próxima execução tenta de novo sozinha; nada é enviado duas vezes"
    ),
    "{message}": "{message}",
    "{campaign}: {state} ({pc})": "{campaign}: {state} ({pc})",
    "{state}: {message}": "{state}: {message}",
    ("Run queries/*.sql in PostgreSQL and deliver each result as a CSV to its campaign's SFTP folder."): (
        "Executa queries/*.sql no PostgreSQL e entrega cada resultado como CSV na pasta SFTP da campanha."
    ),
    "exit codes:": "códigos de saída:",
    "export and judge everything, send nothing (output/dry-run)": (
        "exporta e avalia tudo, não envia nada (output/dry-run)"
    ),
    "test settings, queries, logins and folders; send nothing": (
        "testa configuração, consultas, logins e pastas; não envia nada"
    ),
    "show what was delivered today": "mostra o que foi entregue hoje",
    "started by the Task Scheduler: plain output, quiet outside the hours": (
        "iniciado pelo Agendador de Tarefas: saída simples, sem aviso fora do horário"
    ),
    "only this campaign (may be repeated)": "só esta campanha (pode ser repetida)",
    "also what this slot has delivered already, under a new name": (
        "também o que este horário já entregou, com outro nome"
    ),
    "run by hand outside the operating hours": "execução manual fora do horário de funcionamento",
    "the settings (default: config.env beside the program)": (
        "a configuração (padrão: config.env ao lado do programa)"
    ),
    "the report as one JSON object on stdout": "o relatório como um objeto JSON na saída padrão",
    "show program's version number and exit": "mostra a versão do programa e termina",
    "{path}: cannot be written: {reason}; make LOG_DIR writable": (
        "{path}: não é possível gravar: {reason}; permita a gravação em LOG_DIR"
    ),
    "not everything could be shown: standard output cannot be written": (
        "nem tudo pôde ser mostrado: a saída padrão não pode ser gravada"
    ),
    "this Python ({path}) lacks the packages {names}": "a este Python ({path}) faltam os pacotes {names}",
    "    -> start run_pipeline.bat, or: python -m pip install -r requirements.txt": (
        "    -> inicie run_pipeline.bat, ou: python -m pip install -r requirements.txt"
    ),
    "exit code {code}: {meaning}": "código de saída {code}: {meaning}",
    "outside the hours, nothing to do: {reason}": "fora do horário, nada a fazer: {reason}",
    "wait, or use --ignore-hours if you really want to start calls now": (
        "espere, ou use --ignore-hours se quiser mesmo iniciar as chamadas agora"
    ),
    "slot {slot}: {totals} in {seconds} s; {outcome}": "horário {slot}: {totals} em {seconds} s; {outcome}",
}


if __name__ == "__main__":
    # numpy's linear algebra, which nothing here uses, starts a thread per core: a tenth of a short run's CPU time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, interrupt)
    kept = heed_closing_window() if os.name == "nt" else None
    end(main())
