"""A PostgreSQL and its streaming replica, which may lag, be promoted, and outlive it."""

from __future__ import annotations

from local_servers import LocalPostgres

REPLICATING = "wal_level = replica\nmax_wal_senders = 4\n"


class Primary(LocalPostgres):
    """A server that others may replicate."""

    def _create(self) -> None:
        super()._create()
        with (self._data / "postgresql.conf").open("a", encoding="ascii") as conf:
            conf.write(REPLICATING)

    def wait_for_standby(self) -> None:
        """From now on a commit is told only when the standby has it too."""
        with self.connect() as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")


class Standby(LocalPostgres):
    """A streaming replica of a primary that runs."""

    def __init__(self, primary: Primary) -> None:
        super().__init__()
        self.primary, self.password, self._admin_password = primary, primary.password, primary._admin_password

    def _create(self) -> None:
        super()._create()
        self._command("pg_basebackup", "-D", f"{self._data}-copy", "-R", "-c", "fast", "-d", self._source())
        self._data.rename(f"{self._data}-empty")
        (self._home / "data-copy").rename(self._data)

    def _create_database(self) -> None:
        """It has what the primary has."""

    def _source(self) -> str:
        primary = self.primary
        return f"host={primary.host} port={primary.port} user={primary.admin} password={primary._admin_password}"

    def promote(self) -> None:
        """It is a primary from now on."""
        self._pg_ctl("promote", "-w")
