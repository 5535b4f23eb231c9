"""An SFTP server that commits faults on request: in a login, a session, or at any single SFTP request.

server.commits("rename", "do, then cut")             # once; then the server is sound again
server.commits("write", "refuse", at_byte=40_000)    # the request that carries this byte
server.commits("stat", "forbid", times=ALWAYS, path="mailing_")
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import local_servers
import paramiko
from paramiko import sftp as codes

from .proxy import reset

ALWAYS = 1_000_000
REQUESTS = {
    codes.CMD_OPEN: "open",
    codes.CMD_CLOSE: "close",
    codes.CMD_READ: "read",
    codes.CMD_WRITE: "write",
    codes.CMD_REMOVE: "remove",
    codes.CMD_RENAME: "rename",
    codes.CMD_STAT: "stat",
    codes.CMD_LSTAT: "lstat",
    codes.CMD_FSTAT: "fstat",
    codes.CMD_OPENDIR: "list",
}
WITH_PATH = {"open", "remove", "rename", "stat", "lstat", "list"}
STATUS = {
    "refuse": codes.SFTP_FAILURE,  # what OpenSSH says for disk full, quota, exists and cross-device alike
    "forbid": codes.SFTP_PERMISSION_DENIED,
    "not support": codes.SFTP_OP_UNSUPPORTED,
    "pretend": codes.SFTP_OK,
}


@dataclass(frozen=True)
class Request:
    """One request of a client: what it asks, of which path, and for a write which bytes."""

    name: str
    path: str = ""
    offset: int = 0
    data: bytes = b""
    exclusive: bool = False  # open: only if there is no such file
    number: int = 0

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


@dataclass
class Fault:
    """What happens instead of a request, so many times.

    does: refuse · forbid · not support · pretend (say OK and do nothing) · cut (the connection, nothing done) · ignore
    (this request gets no answer) · hang (neither this nor any later one of the session is answered or done) · do, then
    cut, ignore, hang or refuse · flip (a byte of the data) · store less · store, then cut · overwrite (a rename that
    replaces its target) · or a function of (session, request, proceed).
    skip: so many requests that fit are spared first.
    """

    request: str
    does: str | Callable[[FaultySession, Request, Callable[[], None]], None]
    times: int
    path: str
    at_byte: int | None
    skip: int = 0

    def fits(self, request: Request) -> bool:
        """Whether this request is the one."""
        here = self.at_byte is None or request.offset <= self.at_byte < request.end
        fits = self.times > 0 and self.request == request.name and self.path in request.path and here
        if fits and self.skip:
            self.skip -= 1
            return False
        return fits


class FaultyServer(local_servers.ParamikoServer):
    """A ParamikoServer with `commits`; everything else is as good as it gets."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, login_class=FaultyLogin)
        logging.getLogger("local_servers").setLevel(logging.CRITICAL)  # paramiko tells of every broken line
        self.faults: list[Fault] = []
        self.committed = 0
        self.requests: list[Request] = []  # without the data
        self.handled = threading.Condition()
        self.over = threading.Event()
        self.kex: tuple[str, ...] = ()  # key exchanges to offer, instead of paramiko's
        self.passwords_seen = 0
        self.banner = ""  # to show, instead of paramiko's

    def commits(self, request: str, does: Any, times: int = 1, path: str = "", at_byte: int | None = None) -> None:
        """From now on. Besides SFTP requests, `request` may be password, key, session, subsystem or
        init; a login's faults are refuse, cut, hang up, hang and end the older."""
        self.faults.append(Fault(request, does, times, path, at_byte))

    def recovers(self) -> None:
        """No faults from now on; sessions that hang stay so."""
        self.faults.clear()

    def fault_for(self, request: Request) -> Fault | None:
        """The fault that this request meets, counted as committed."""
        with self.handled:
            self.requests.append(Request(request.name, request.path, request.offset))
            found = next((fault for fault in self.faults if fault.fits(request)), None)
            if found:
                found.times -= 1
                self.committed += 1
            self.handled.notify_all()
            return found

    def cut_sockets(self, but: int = 0) -> None:
        """Reset every connection but the latest so many, also from within one of their own threads."""
        with self._guard:
            transports = self._transports[: len(self._transports) - but]
        for transport in transports:
            reset(transport.sock)  # type: ignore[arg-type]

    def hang_up(self) -> None:
        """End every connection in order, also from within one of their own threads."""
        with self._guard:
            transports = list(self._transports)
        for transport in transports:
            with contextlib.suppress(OSError):
                transport.sock.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self.over.set()
        super().stop()

    def start(self) -> None:
        self.over.clear()
        super().start()

    def _serve(self, listener: Any, client: Any, host_key: paramiko.PKey) -> None:
        """As the sound server does, with our session and, if wanted, other key exchanges."""
        transport = paramiko.Transport(client)
        transport.set_log_channel("local_servers.sftp")
        if self.banner:
            transport.local_version = self.banner
        if self.kex:
            transport._preferred_kex = self.kex  # type: ignore[attr-defined]
        with self._guard:
            if self._listener is not listener:
                transport.close()
                return
            self._transports = [other for other in self._transports if other.is_active()] + [transport]
        transport.add_server_key(host_key)
        transport.set_subsystem_handler("sftp", FaultySession, self.files_class, self)
        try:
            transport.start_server(server=self.login_class(self))
        except (paramiko.SSHException, EOFError, OSError) as error:
            self.note(f"Connection ended: {error}")
            transport.close()


class FaultyLogin(local_servers._Login):
    """Login and session requests that may be refused, cut, or never answered."""

    _server: FaultyServer

    def check_auth_password(self, username: str, password: str) -> int:
        self._server.passwords_seen += 1
        verdict = super().check_auth_password(username, password)
        return int(self._met("password", verdict, paramiko.common.AUTH_FAILED))

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        verdict = super().check_auth_publickey(username, key)
        return int(self._met("key", verdict, paramiko.common.AUTH_FAILED))

    def check_channel_request(self, kind: str, chanid: int) -> int:
        verdict = super().check_channel_request(kind, chanid)
        return int(self._met("session", verdict, paramiko.common.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED))

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        if not self._met("subsystem", True, False):
            return False
        return super().check_channel_subsystem_request(channel, name)

    def _met(self, name: str, good: Any, refused: Any) -> Any:
        server = self._server
        fault = server.fault_for(Request(name))
        if fault is None:
            return good
        if fault.does == "hang":
            server.over.wait()
        elif fault.does == "cut":
            server.cut_sockets()
        elif fault.does == "end the older":
            server.cut_sockets(but=1)
            return good
        elif fault.does == "hang up":
            server.hang_up()
        return refused


class FaultySession(paramiko.SFTPServer):
    """One SFTP session, which asks before each request whether a fault is due."""

    _send_status: Callable[..., None]  # paramiko's stubs leave out what is private

    def __init__(self, channel: Any, name: str, server: Any, files_class: Any, faulty: FaultyServer) -> None:
        super().__init__(channel, name, server, files_class, faulty)
        self.faulty = faulty
        self.muted = False  # replies are lost
        self.hung = False

    def start_subsystem(self, name: str, transport: paramiko.Transport, channel: paramiko.Channel) -> None:
        fault = self.faulty.fault_for(Request("init"))
        if fault and fault.does == "hang":
            self.faulty.over.wait()
        elif fault:
            self.sock = channel
            self.cut()
        else:
            super().start_subsystem(name, transport, channel)

    def cut(self) -> None:
        """Lose the connection, with everything that is under way."""
        self.muted = self.hung = True
        reset(self.sock.get_transport().sock)  # type: ignore[union-attr, arg-type]

    def _send_packet(self, kind: int, packet: Any) -> None:
        if not self.muted:
            super()._send_packet(kind, packet)  # type: ignore[misc]

    def _process(self, kind: int, number: int, message: paramiko.Message) -> None:
        if self.hung:
            return
        request = self._describe(kind, message)
        fault = self.faulty.fault_for(request)

        def proceed() -> None:
            super(FaultySession, self)._process(kind, number, message)  # type: ignore[misc]

        if fault is None:
            proceed()
        elif callable(fault.does):
            fault.does(self, replace(request, number=number), proceed)
        elif fault.does == "know no exclusive creation":
            if request.exclusive:
                self._send_status(number, codes.SFTP_OP_UNSUPPORTED)
            else:
                proceed()
        else:
            self._commit(fault, request, number, message, proceed)

    def _commit(
        self, fault: Fault, request: Request, number: int, message: paramiko.Message, proceed: Callable[[], None]
    ) -> None:
        does = str(fault.does)
        if does in STATUS:
            self._send_status(number, STATUS[does])
        elif does in ("cut", "hang", "ignore"):
            self._fall_silent(does)
        elif does.startswith("do, then "):
            self.muted = True
            proceed()
            self.muted = False
            if does == "do, then refuse":
                self._send_status(number, codes.SFTP_FAILURE)
            else:
                self._fall_silent(does.removeprefix("do, then "))
        elif does == "overwrite":
            self.server.posix_rename(message.get_text(), message.get_text())
            self._send_status(number, codes.SFTP_OK)
        else:
            self._write_wrongly(does, fault, request, number, message)

    def _fall_silent(self, how: str) -> None:
        if how == "cut":
            self.cut()
        elif how == "hang":
            self.hung = True

    def _write_wrongly(self, does: str, fault: Fault, request: Request, number: int, message: paramiko.Message) -> None:
        """Store something else than the client sent, and say OK, or cut."""
        handle = self.file_table[message.get_binary()]
        kept = (fault.at_byte if fault.at_byte is not None else request.offset) - request.offset
        data = request.data
        if does == "flip":
            data = data[:kept] + bytes([data[kept] ^ 1]) + data[kept + 1 :]
        elif does in ("store less", "store, then cut"):
            data = data[:kept]
        else:
            raise ValueError(f"no such fault: {does}")
        if data:
            handle.write(request.offset, data)
        if does == "store, then cut":
            self.cut()
        else:
            self._send_status(number, codes.SFTP_OK)

    def _describe(self, kind: int, message: paramiko.Message) -> Request:
        """The request, without moving the message's position."""
        name = REQUESTS.get(kind, str(kind))
        copy = paramiko.Message(message.get_remainder())
        if name in WITH_PATH:
            path = copy.get_text()
            return Request(name, path, exclusive=name == "open" and bool(copy.get_int() & codes.SFTP_FLAG_EXCL))
        if name not in ("write", "close", "fstat", "read"):
            return Request(name)
        handle = self.file_table.get(copy.get_binary())
        path = getattr(handle, "path", "")
        if name != "write":
            return Request(name, path)
        with contextlib.suppress(Exception):
            return Request(name, path, copy.get_int64(), copy.get_binary())
        return Request(name, path)


class AnotherOrder:
    """A fault of writes: each is done, and the answers of so many at a time are sent in an order of chance.

    server.commits("write", AnotherOrder(16), times=ALWAYS). What is left of a batch goes out once no write has come for
    a moment: a client that waits for it would wait for ever.
    """

    PAUSE_S = 0.1

    def __init__(self, batch: int, chance: random.Random | None = None) -> None:
        self.batch, self.chance = batch, chance or random.Random(1)
        self.displaced = 0  # answers that were overtaken by that of a later request
        self._guard = threading.Lock()
        self._held: dict[FaultySession, list[tuple[int, Any]]] = {}
        self._timers: dict[FaultySession, threading.Timer] = {}

    def __call__(self, session: FaultySession, _request: Request, proceed: Callable[[], None]) -> None:
        held = self._held.setdefault(session, [])
        with self._guard:
            session._send_packet = lambda kind, packet: held.append((kind, packet))  # type: ignore[method-assign]
            try:
                proceed()
            finally:
                del session._send_packet
        if session in self._timers:
            self._timers[session].cancel()
        if len(held) >= self.batch:
            self._answer(session)
            return
        self._timers[session] = threading.Timer(self.PAUSE_S, self._answer, [session])
        self._timers[session].start()

    def _answer(self, session: FaultySession) -> None:
        with self._guard:
            held = self._held[session]
            order = self.chance.sample(range(len(held)), len(held))
            for at, number in enumerate(order):
                self.displaced += any(later > number for later in order[:at])
                session._send_packet(*held[number])
            held.clear()
