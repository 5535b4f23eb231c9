"""Inetd's part, for sftp_servers.py: a command for each connection, with the connection as its stdin and stdout."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys


def main(port: int, command: list[str]) -> None:
    """Serve until killed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                subprocess.Popen(command, stdin=connection, stdout=connection)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
