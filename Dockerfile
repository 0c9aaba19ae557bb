# Two images from one Debian: `postgres`, and `nasbackup` for all of Airflow's components.
# PostgreSQL is Debian's package here, so that one base image is all that has to be fetched.
ARG DEBIAN=debian:12

# --- PostgreSQL -----------------------------------------------------------------------------------------------
FROM ${DEBIAN} AS postgres
ENV LC_ALL=C.UTF-8
# The user comes first, with a number that no later package changes: it owns the data volume. The packaged
# cluster `main` is switched off; ours is made by docker/postgres/run in the volume.
RUN groupadd --gid 50001 postgres \
 && useradd --uid 50001 --gid postgres --home-dir /var/lib/postgresql --shell /bin/bash postgres \
 && mkdir -p /etc/postgresql-common \
 && echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf \
 && export DEBIAN_FRONTEND=noninteractive \
 && apt-get -q update \
 && apt-get -q -y install --no-install-recommends postgresql-15 \
 && rm -rf /var/lib/apt/lists/* \
 && install -d -o postgres -g postgres -m 0700 /var/lib/postgresql/data
COPY docker/postgres/run /usr/local/bin/run-postgres
VOLUME /var/lib/postgresql/data
USER 50001:50001
# PostgreSQL's fast shutdown: it does not wait for clients.
STOPSIGNAL SIGINT
CMD ["run-postgres"]

# --- what nasbackup needs of the distribution at run time -------------------------------------------------------
FROM ${DEBIAN} AS system
ENV LC_ALL=C.UTF-8
# python3-libnbd: the `nbd` module is not on PyPI. util-linux: setpriv. libvirt0: what libvirt-python binds to.
RUN export DEBIAN_FRONTEND=noninteractive \
 && apt-get -q update \
 && apt-get -q -y install --no-install-recommends \
      ca-certificates libvirt0 python3 python3-libnbd qemu-utils tzdata util-linux \
 && rm -rf /var/lib/apt/lists/*

# --- the locked Python environment, built with tools that stay behind -------------------------------------------
FROM system AS build
RUN export DEBIAN_FRONTEND=noninteractive \
 && apt-get -q update \
 && apt-get -q -y install --no-install-recommends gcc libc6-dev libvirt-dev pkg-config python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
# The distribution's list of authorities, to which a base image may have added one's own.
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
WORKDIR /src
# The version of uv that scripts/ use.
COPY scripts/lib/python.sh python.sh
RUN python3 -m venv /opt/uv \
 && /opt/uv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check \
      "uv==$(sed -n 's/^UV_VERSION=//p' python.sh)"
ENV UV_PROJECT_ENVIRONMENT=/opt/nasbackup/venv \
    UV_PYTHON_DOWNLOADS=never \
    UV_NO_CACHE=1 \
    UV_LINK_MODE=copy \
    UV_COMPILE_BYTECODE=1
# The dependencies are a layer of their own: they change less often than our code.
COPY pyproject.toml uv.lock ./
RUN python3 -m venv --without-pip --system-site-packages /opt/nasbackup/venv \
 && /opt/uv/bin/uv sync --frozen --no-dev --no-install-project --no-progress --python /usr/bin/python3
COPY include include
RUN /opt/uv/bin/uv sync --frozen --no-dev --no-editable --no-progress --python /usr/bin/python3 \
 && /opt/nasbackup/venv/bin/python -c 'import airflow, libvirt, nbd, nasbackup, psycopg2'

# --- Airflow's components ---------------------------------------------------------------------------------------
FROM system AS nasbackup
# The logs are written by the scheduler, which runs as a user of the host's, and read by the api-server: the
# volume is shared through the group, and so is that of the copies of fleet.yaml. An airflow.cfg must exist, or
# each start writes one; settings are environment variables (docker-compose.yaml).
RUN groupadd --gid 50000 nasbackup \
 && useradd --uid 50000 --gid nasbackup --home-dir /opt/airflow --no-create-home --shell /usr/sbin/nologin nasbackup \
 && install -d /opt/airflow /opt/nasbackup \
 && install -m 0644 /dev/null /opt/airflow/airflow.cfg \
 && install -d -o nasbackup -g nasbackup -m 2775 /opt/airflow/logs /opt/airflow/nasbackup
ENV AIRFLOW_HOME=/opt/airflow PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
COPY docker/command.py /usr/local/bin/airflow
COPY docker/command.py /usr/local/bin/nasbackup
COPY docker/healthy.py /usr/local/bin/healthy
COPY --from=build /opt/nasbackup/venv /opt/nasbackup/venv
COPY dags /opt/nasbackup/dags
# There may be no plugins: COPY wants to find something, and Airflow reads nothing but Python files there.
COPY pyproject.toml plugin[s] /opt/nasbackup/plugins/
VOLUME /opt/airflow/logs /opt/airflow/nasbackup
WORKDIR /opt/airflow
USER 50000:50000
CMD ["airflow", "version"]
