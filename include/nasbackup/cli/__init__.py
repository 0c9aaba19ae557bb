"""The command line ``nasbackup``: it needs the catalog and the NAS, not Airflow."""

from nasbackup.cli.main import main

__all__ = ["main"]
