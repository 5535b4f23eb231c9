"""Faults on request: a TCP proxy, an SFTP server that misbehaves, programs started in milliseconds, and the judge."""
