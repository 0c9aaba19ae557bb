#!/usr/bin/python3 -I
"""The commands `airflow` and `nasbackup` of the image: the secrets' files become settings, then the real one runs.

A container gets only the secrets that docker-compose.yaml gives its service, and `docker compose exec` gets the
same settings as the service itself. What a process was started with is readable by its own user alone; it is in
neither the image, nor the compose file, nor `docker inspect`.
"""

import os
import sys
from pathlib import Path
from urllib.parse import quote

SECRETS = Path("/run/secrets")
SETTINGS = {
    "fernet_key": "AIRFLOW__CORE__FERNET_KEY",
    "api_secret_key": "AIRFLOW__API__SECRET_KEY",
    "jwt_secret": "AIRFLOW__API_AUTH__JWT_SECRET",
}
# A password is the one part of these addresses that is secret.
DATABASES = {
    "airflow_db_password": ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql+psycopg2://airflow:{}@postgres/airflow"),
    "nasbackup_db_password": ("AIRFLOW_CONN_NAS_BACKUP_CATALOG", "postgresql://nasbackup:{}@postgres/nasbackup"),
}
# Airflow's simple auth manager opens its passwords for writing, which a secret's file does not allow.
LOGINS = "passwords.json"
LOGINS_COPY = Path("/tmp/passwords.json")  # noqa: S108 # a tmpfs of this container


def main() -> None:
    for name, variable in SETTINGS.items():
        if secret := read(name):
            os.environ[variable] = secret
    for name, (variable, address) in DATABASES.items():
        if secret := read(name):
            os.environ[variable] = address.format(quote(secret, safe=""))
    if (logins := read(LOGINS)) and not LOGINS_COPY.exists():
        with open(LOGINS_COPY, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as copy:
            copy.write(logins)
    command = Path(sys.argv[0]).name
    os.execv(f"/opt/nasbackup/venv/bin/{command}", [command, *sys.argv[1:]])  # noqa: S606


def read(name: str) -> str:
    """The secret without the newline that editors add; empty when this service does not get it."""
    try:
        return (SECRETS / name).read_text().strip()
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    main()
