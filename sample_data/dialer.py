"""A small dialer: it watches drop folders, and whatever matches is a mailing that it starts at once.

The demo's audience, and the tests' judge. So it runs in a process of its own, which no busy thread of a test can hold
up, looks every 2 ms, and on Linux has the kernel report every name that appears, however short it stands. `Dialer` is
its handle; run as a program, this file is the process. Standard library only, so that it starts quickly.
"""

from __future__ import annotations

import ctypes
import fnmatch
import hashlib
import json
import os
import queue
import select
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from typing import Self

GONE = -1
WINDOWS = sys.platform == "win32"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A file as the dialer found it, at the first instant it could be seen."""

    campaign: str  # name of its drop folder
    name: str
    size_bytes: int  # GONE: its name was seen, and it was gone before it could be looked at
    sha256: str  # of those bytes; empty if it was gone before it could be read
    at: float  # time.time()
    path: Path  # where the dialer has put it, or left it


class Dialer:
    """Watches drop folders until the end of its with block.

    Args:
        folders: the drop folders; a folder's name is its campaign. One that is missing is looked for all the time.
        pattern: the names it takes; `*` is a dialer that takes any file.
        take: take each file away, into `taken`/<campaign>; False leaves it where it is.
        delete: take it away by deleting it.
        taken: where the files go, on the same disk; default a folder `taken` beside the first drop folder.
        on_take: called with each Arrival, in order, in a thread of the dialer's.
        poll_s: pause between two looks.

    Size and hash are those of the first instant: a file that is still growing is recorded as short as it was. A file
    that was overwritten by a rename is a second arrival.

    Leaving the with block raises RuntimeError if the watching or `on_take` failed: a blind judge must not acquit.
    """

    def __init__(
        self,
        folders: Iterable[Path],
        pattern: str = "mailing_*.csv",
        take: bool = True,
        delete: bool = False,
        taken: Path | None = None,
        on_take: Callable[[Arrival], None] | None = None,
        poll_s: float = 0.002,
    ) -> None:
        self.folders = [Path(folder).absolute() for folder in folders]
        self.taken = (taken or self.folders[0].parent / "taken").absolute()
        self._settings = {
            "folders": [str(folder) for folder in self.folders],
            "pattern": pattern,
            "take": take,
            "delete": delete,
            "taken": str(self.taken),
            "poll_s": poll_s,
        }
        self._on_take = on_take
        self._arrivals: list[Arrival] = []
        self._looks_wanted = 0
        self._looks_done = 0
        self._ended = True
        self._fault: Exception | None = None
        self._changed = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread(target=self._read, name="dialer", daemon=True)

    def __enter__(self) -> Self:
        command = [sys.executable, str(Path(__file__).resolve()), json.dumps(self._settings)]
        flags = 0
        if sys.platform == "win32":
            flags = subprocess.CREATE_NEW_PROCESS_GROUP
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, encoding="ascii", bufsize=1, creationflags=flags
        )
        self._ended = False
        self._reader.start()
        self.look()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.close()  # it looks once more, and ends
        self._reader.join()  # which closes the other pipe
        code = self._process.wait()
        if error is None and (code != 0 or self._fault is not None):
            raise RuntimeError(f"The dialer failed (exit code {code}); its record is not complete.") from self._fault

    @property
    def record(self) -> list[Arrival]:
        """Every arrival so far, in order, with the files that stand there at this very moment."""
        self.look()
        with self._changed:
            return list(self._arrivals)

    def look(self) -> None:
        """Return when the dialer has taken a look, the whole of it after this call, and its result is in the record."""
        with self._changed:
            if self._ended:
                return
            assert self._process is not None and self._process.stdin is not None
            self._looks_wanted += 1
            wanted = self._looks_wanted
            self._process.stdin.write("look\n")
            self._changed.wait_for(lambda: self._ended or self._looks_done >= wanted)

    def wait_for(self, count: int, timeout_s: float = 10.0) -> list[Arrival]:
        """The record, as soon as it holds `count` arrivals, or after `timeout_s` whatever it holds."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._arrivals) >= count, timeout_s)
        return self.record

    def _read(self) -> None:
        """Take over what the process finds; the thread's whole life."""
        assert self._process is not None and self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                said = json.loads(line)
                arrival = Arrival(**said | {"path": Path(said["path"])}) if said else None
                if arrival is not None and self._on_take is not None:
                    try:
                        self._on_take(arrival)
                    except Exception as error:  # raised by __exit__, in the thread of who waits
                        self._fault = error
                with self._changed:
                    if arrival is None:
                        self._looks_done += 1
                    else:
                        self._arrivals.append(arrival)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


# ---------------------------------------------------------------------------------------------------------------------
# The process
# ---------------------------------------------------------------------------------------------------------------------


class Watch:
    """The watching itself; prints each arrival as a line of JSON, and {} after each look that was asked for."""

    def __init__(self, folders: list[str], pattern: str, take: bool, delete: bool, taken: str, poll_s: float) -> None:
        self.folders = [Path(folder) for folder in folders]
        self.pattern = pattern
        self.take = take
        self.delete = delete
        self.taken = Path(taken)
        self.poll_s = poll_s
        self.standing: dict[Path, int] = {}  # the inode of each file that is recorded and still in its folder
        self.events = Events()
        self.found_first: Counter[Path] = Counter()  # arrivals found by a look, whose event is still to come

    def run(self, orders: TextIO) -> None:
        """Look every `poll_s` seconds, and at every event, until `orders` ends; then once more."""
        asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        threading.Thread(target=_pass_on, args=(orders, asked), daemon=True).start()
        going_on = True
        while going_on:
            answers = 0
            while not asked.empty():  # asked before this look began
                going_on = asked.get()
                answers += going_on
            self.look()
            for _ in range(answers):
                print("{}", flush=True)
            self.events.wait(self.poll_s)

    def look(self) -> None:
        for path in self.events.appeared():
            if self.found_first[path] > 0:
                self.found_first[path] -= 1
            elif fnmatch.fnmatchcase(path.name, self.pattern):
                self.see(path)
        here = set()
        for folder in self.folders:
            without_event = set() if self.events.watches(folder) else set(self.matching(folder))
            self.events.watch(folder)
            for path in self.matching(folder):
                here.add(path)
                if self.see(path) and path not in without_event:
                    self.found_first[path] += self.events.watches(folder)
        for path in self.standing.keys() - here:
            del self.standing[path]

    def matching(self, folder: Path) -> list[Path]:
        try:
            return [folder / name for name in os.listdir(folder) if fnmatch.fnmatchcase(name, self.pattern)]
        except (FileNotFoundError, NotADirectoryError, PermissionError):  # a test has taken the folder away
            return []

    def see(self, path: Path) -> bool:
        """Take a file and record it, unless it was recorded before; whether it was recorded now.

        One that cannot be taken yet is recorded all the same, and taken by a later look.
        """
        at = time.time()
        try:
            found = os.stat(path)
        except FileNotFoundError:  # somebody was faster; but its name was there, and a real dialer might have been
            if path in self.standing:
                return False
            tell(path, GONE, "", at, path)
            return True
        recorded = self.standing.get(path) == found.st_ino
        if not stat.S_ISREG(found.st_mode) or (recorded and not self.take):
            return False
        now_at = self.move(path) if self.take else path
        if now_at == path:
            self.standing[path] = found.st_ino
        if not recorded:
            tell(path, found.st_size, hash_of(now_at, found.st_size), at, now_at)
        if self.delete and now_at != path:
            now_at.unlink()
        return not recorded

    def move(self, path: Path) -> Path:
        """Take a file away; its new path, or the old one if somebody else has it open (Windows) or was faster."""
        target = self.taken / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        again = 1
        while target.exists():
            again += 1
            target = target.with_name(f"{path.name}~{again}")
        try:
            return path.rename(target)
        except FileNotFoundError:
            return path
        except PermissionError:
            if not WINDOWS:
                raise
            return path


class Events:
    """What appears in the watched folders, as Linux's inotify reports it; elsewhere nothing, and looking must do."""

    HEADER = struct.Struct("iIII")
    APPEARS = 0x100 | 0x80  # IN_CREATE, IN_MOVED_TO
    IGNORED = 0x8000  # the folder is gone

    def __init__(self) -> None:
        self._folders: dict[int, Path] = {}
        self._descriptor = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)

    def watch(self, folder: Path) -> None:
        """Watch a folder from now on, unless it is watched already or missing."""
        if self._descriptor >= 0 and not self.watches(folder):
            number = self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), self.APPEARS)
            if number >= 0:
                self._folders[number] = folder

    def watches(self, folder: Path) -> bool:
        return folder in self._folders.values()

    def wait(self, seconds: float) -> None:
        """Wait for the next event, at most so long."""
        if self._descriptor < 0:
            time.sleep(seconds)
        else:
            select.select([self._descriptor], [], [], seconds)

    def appeared(self) -> list[Path]:
        """What appeared since the last call, a name as often as it appeared."""
        paths: list[Path] = []
        while self._descriptor >= 0:
            try:
                data = os.read(self._descriptor, 65536)
            except BlockingIOError:
                break
            while data:
                number, mask, _, length = self.HEADER.unpack_from(data)
                name, data = data[self.HEADER.size : self.HEADER.size + length], data[self.HEADER.size + length :]
                if mask & self.IGNORED:
                    self._folders.pop(number, None)
                elif mask & self.APPEARS and number in self._folders:
                    paths.append(self._folders[number] / os.fsdecode(name.rstrip(b"\0")))
        return paths


def tell(path: Path, size_bytes: int, sha256: str, at: float, now_at: Path) -> None:
    arrival = Arrival(path.parent.name, path.name, size_bytes, sha256, at, now_at)
    print(json.dumps(asdict(arrival) | {"path": str(now_at)}), flush=True)


def hash_of(path: Path, size_bytes: int) -> str:
    """SHA-256 of the first bytes of a file; empty if it is gone."""
    try:
        with path.open("rb") as file:
            return hashlib.sha256(file.read(size_bytes)).hexdigest()
    except FileNotFoundError:
        return ""


def _pass_on(orders: TextIO, asked: queue.SimpleQueue[bool]) -> None:
    for _ in orders:
        asked.put(True)
    asked.put(False)  # its parent closed the pipe, or is no more


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl+C is for its parent, which then closes the pipe
    Watch(**json.loads(sys.argv[1])).run(sys.stdin)
