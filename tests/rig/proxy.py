"""A TCP proxy between the program and a server, whose line a test may delay, cut, silence, half-close or slow down."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from typing import Self

Direction = Literal["up", "down"]  # up: from the program to the server
LOOPBACK = "127.0.0.1"
CHUNK_BYTES = 16384


@dataclass
class Line:
    """How one direction behaves from now on; shared by every connection."""

    delay_s: float = 0.0
    rate_bytes_per_s: float = 0.0
    cut_after: int | None = None  # bytes of one connection; the connection that reaches it is cut, once
    flowing: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """Listens on `port` and passes everything on to `target_port`, as far as the test allows.

    Every method may be called from any thread and takes effect at once, for the connections of this moment and those to
    come. Leave the with block to close everything.
    """

    def __init__(self, target_port: int, host: str = LOOPBACK) -> None:
        self.target_port, self.host = target_port, host
        self.port = 0
        self.accepted = 0  # connections so far
        self.cuts = 0
        self.lines: dict[Direction, Line] = {"up": Line(), "down": Line()}
        self._answering = threading.Event()
        self._guard = threading.Lock()
        self._open: set[Connection] = set()
        self._listener: socket.socket | None = None
        self._close_next = self._answer_next = 0
        self._answer = b""
        self.speak()
        self.answer()

    def __enter__(self) -> Self:
        self.accept()
        return self

    def __exit__(self, *exc: object) -> None:
        self.refuse()
        self.speak()
        self.answer()
        self.cut()

    # What a test says ---------------------------------------------------------------------------------------------

    def delay(self, seconds: float, direction: Direction | None = None) -> None:
        """Each byte arrives so much later (latency, not a lower rate)."""
        for line in self._chosen(direction):
            line.delay_s = seconds

    def limit(self, bytes_per_s: float, direction: Direction | None = None) -> None:
        """A slow line; 0 is as fast as it goes."""
        for line in self._chosen(direction):
            line.rate_bytes_per_s = bytes_per_s

    def cut_after(self, size_bytes: int, direction: Direction) -> None:
        """Cut, once, the connection that has carried exactly so many bytes in this direction."""
        self.lines[direction].cut_after = size_bytes

    def cut(self) -> int:
        """Reset every connection of this moment; what is still on its way is lost. Returns how many."""
        with self._guard:
            connections = list(self._open)
        for connection in connections:
            connection.cut()
        self.cuts += len(connections)
        return len(connections)

    def half_close(self, direction: Direction) -> None:
        """End one direction of every connection; the other goes on."""
        with self._guard:
            connections = list(self._open)
        for connection in connections:
            connection.half_close(direction)

    def silence(self, direction: Direction | None = None) -> None:
        """Nothing passes any more; the connections stay open."""
        for line in self._chosen(direction):
            line.flowing.clear()

    def speak(self, direction: Direction | None = None) -> None:
        """End of silence: what was held back passes."""
        for line in self._chosen(direction):
            line.flowing.set()

    def keep_silent_on_connect(self) -> None:
        """Accept new connections and never say a word."""
        self._answering.clear()

    def answer(self) -> None:
        """End of keep_silent_on_connect."""
        self._answering.set()

    def close_next(self, connections: int = 1) -> None:
        """Accept the next connections and close them at once."""
        self._close_next = connections

    def answer_next(self, data: bytes, connections: int = 1) -> None:
        """Accept the next connections, say this to their first words in the server's place, and close them."""
        self._answer, self._answer_next = data, connections

    def refuse(self) -> None:
        """Connection refused, as if the server were down; those that exist stay."""
        listener, self._listener = self._listener, None
        if listener:
            listener.close()

    def accept(self) -> None:
        """Listen (again, on the same port)."""
        if self._listener:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        listener.listen(50)
        listener.settimeout(0.05)
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), name="proxy", daemon=True).start()

    def connected(self) -> int:
        """The port of the server that the next client gets."""
        return self.target_port

    def altered(self, data: bytes) -> bytes:
        """What arrives of some bytes; a proxy that lies overrides this."""
        return data

    # What it does -------------------------------------------------------------------------------------------------

    def _chosen(self, direction: Direction | None) -> list[Line]:
        return [line for name, line in self.lines.items() if direction in (None, name)]

    def _accept(self, listener: socket.socket) -> None:
        while self._listener is listener:
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            self.accepted += 1
            if self._close_next:
                self._close_next -= 1
                client.close()
                continue
            if self._answer_next:
                self._answer_next -= 1
                client.settimeout(5)
                client.recv(CHUNK_BYTES)
                client.sendall(self._answer)
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), name="proxy", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._answering.wait()
        try:
            server = socket.create_connection((LOOPBACK, self.connected()), timeout=10)
        except OSError:
            reset(client)
            return
        connection = Connection(self, client, server)
        with self._guard:
            self._open.add(connection)
        connection.run()
        with self._guard:
            self._open.discard(connection)


class Connection:
    """One connection through the proxy: two threads that carry bytes, each with a queue of its own for the delay."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy = proxy
        for sock in (client, server):
            sock.settimeout(None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client, self.server = client, server
        self.dead = threading.Event()

    def run(self) -> None:
        """Carry until both directions have ended."""
        down = threading.Thread(target=self._carry, args=("down", self.server, self.client), daemon=True)
        down.start()
        self._carry("up", self.client, self.server)
        down.join()
        self.client.close()
        self.server.close()

    def cut(self) -> None:
        self.dead.set()
        reset(self.client)
        reset(self.server)

    def half_close(self, direction: Direction) -> None:
        with contextlib.suppress(OSError):
            (self.server if direction == "up" else self.client).shutdown(socket.SHUT_WR)

    def _carry(self, direction: Direction, source: socket.socket, target: socket.socket) -> None:
        line, carried = self.proxy.lines[direction], 0
        try:
            while data := source.recv(CHUNK_BYTES):
                if line.delay_s:
                    self.dead.wait(line.delay_s)
                if line.rate_bytes_per_s:
                    self.dead.wait(len(data) / line.rate_bytes_per_s)
                while not line.flowing.wait(0.05):
                    if self.dead.is_set():
                        return
                if self.dead.is_set():
                    return
                limit = line.cut_after
                if limit is not None and carried + len(data) >= limit:
                    line.cut_after = None
                    self._pass_on_and_cut(target, data[: max(0, limit - carried)])
                    return
                target.sendall(self.proxy.altered(data))
                carried += len(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            self.cut()

    def _pass_on_and_cut(self, target: socket.socket, data: bytes) -> None:
        """Let the last bytes arrive: a reset would overtake them."""
        if data:
            target.sendall(data)
            time.sleep(0.05)
        self.proxy.cuts += 1
        self.cut()


def reset(sock: socket.socket) -> None:
    """Close so that the other side sees a reset, and wake whoever waits on it here."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RD)
    with contextlib.suppress(OSError):
        sock.close()
