"""AsyncSSH as a server of one folder, for sftp_servers.py: port folder host_key version asks user password."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import asyncssh


def login_of(asks: str, user: str, password: str) -> type[asyncssh.SSHServer]:
    """A login that takes the password as such, or keyboard-interactive only (with `code`: a second question)."""

    class Login(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:  # noqa: ARG002
            return True

        def password_auth_supported(self) -> bool:
            return asks == "password"

        def validate_password(self, username: str, given: str) -> bool:
            return (username, given) == (user, password)

        def kbdint_auth_supported(self) -> bool:
            return asks != "password"

        def get_kbdint_challenge(self, username: str, lang: str, submethods: str) -> Any:  # noqa: ARG002
            questions = [("Password: ", False)] + ([("One-time code: ", False)] if asks == "code" else [])
            return "Login", "", "en", questions

        def validate_kbdint_response(self, username: str, responses: Any) -> bool:
            return username == user and list(responses) == [password]

    return Login


async def main(port: str, folder: str, host_key: str, version: str, asks: str, user: str, password: str) -> None:
    """Serve until killed."""

    def files(channel: Any) -> asyncssh.SFTPServer:
        return asyncssh.SFTPServer(channel, chroot=folder.encode())

    await asyncssh.create_server(
        login_of(asks, user, password),
        "127.0.0.1",
        int(port),
        server_host_keys=[host_key],
        sftp_factory=files,
        sftp_version=int(version),
    )
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
