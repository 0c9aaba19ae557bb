# shellcheck shell=bash
# The stack's own PostgreSQL cluster: data in var/<stack>/postgres, a Unix socket and no TCP port.

postgres_select() { # the newest installed version, or the one that made the data
  local data=$STACK_DIR/postgres version
  if [[ -f $data/PG_VERSION ]]; then
    version=$(<"$data/PG_VERSION")
  else
    version=$(compgen -G '/usr/lib/postgresql/*/bin/postgres' | cut -d/ -f5 | sort -V | tail -n 1)
  fi
  PG_BIN=/usr/lib/postgresql/$version/bin
  [[ -x $PG_BIN/postgres ]] ||
    die "the data in ${data#"$ROOT"/} need PostgreSQL $version, which is not installed: remove that directory, or install it."

  # PostgreSQL refuses to run as root. If the checkout lies below a directory that the user postgres may not
  # enter (/root is 0700), that user is given the one capability that lets it: CAP_DAC_READ_SEARCH passes
  # directories and reads, it writes nothing.
  AS_POSTGRES=(setpriv --reuid=postgres --regid=postgres --init-groups)
  if ! "${AS_POSTGRES[@]}" test -e "$STACK_DIR/."; then
    AS_POSTGRES+=(--inh-caps=+dac_read_search --ambient-caps=+dac_read_search)
    "${AS_POSTGRES[@]}" test -e "$STACK_DIR/." 2>/dev/null ||
      die "the user postgres cannot enter $ROOT: move the checkout, or let others enter its parent directories."
  fi

  local options=(-D "$data" -k "$PG_SOCKETS" -c listen_addresses=)
  # Tests throw the data away: they need not survive a power cut. A killed process loses nothing without fsync.
  [[ $STACK != test ]] || options+=(-c fsync=off -c full_page_writes=off -c synchronous_commit=off)
  NASBACKUP_PG_COMMAND=
  local word
  # shellcheck disable=SC2089,SC2090 # the quotes are for supervisord, which splits it
  for word in "${AS_POSTGRES[@]}" "$PG_BIN/postgres" "${options[@]}"; do
    NASBACKUP_PG_COMMAND+="\"$word\" "
  done
  # shellcheck disable=SC2090
  export NASBACKUP_PG_COMMAND
}

postgres_init() {
  local data=$STACK_DIR/postgres
  [[ ! -f $data/PG_VERSION ]] || return 0
  rm -rf "$data" "$data.new" # of a start that was interrupted
  install -d -m 0700 -o postgres -g postgres "$data.new"
  cd /
  "${AS_POSTGRES[@]}" "$PG_BIN/initdb" --pgdata="$data.new" --username=postgres --encoding=UTF8 --locale=C.UTF-8 \
    --auth=peer --no-instructions
  # Who connects is asked of the kernel (peer), and only root and postgres exist for this cluster.
  echo 'local all all peer map=stack' >"$data.new/pg_hba.conf"
  cat >"$data.new/pg_ident.conf" <<'CONF'
stack postgres postgres
stack root     postgres
stack root     airflow
stack root     nasbackup
CONF
  mv "$data.new" "$data"
}

postgres_answers() { "$PG_BIN/pg_isready" -q -h "$PG_SOCKETS" -U postgres -d postgres; }

postgres_wait() {
  local try
  for ((try = 0; try < 300; try++)); do
    if postgres_answers; then return 0; fi
    sleep 0.1
  done
  echo "PostgreSQL does not answer on $PG_SOCKETS; see $STACK_DIR/log/postgres.log"
  return 1
}

# Two databases, each of a role of its own, and closed to everybody else's.
postgres_databases() {
  "$PG_BIN/psql" -X -q -v ON_ERROR_STOP=1 -h "$PG_SOCKETS" -U postgres -d postgres <<'SQL'
SELECT format('CREATE ROLE %I LOGIN', r) FROM unnest(ARRAY['airflow', 'nasbackup']) AS r
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r) \gexec
SELECT format('CREATE DATABASE %I OWNER %I', r, r) FROM unnest(ARRAY['airflow', 'nasbackup']) AS r
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = r) \gexec
REVOKE ALL ON DATABASE airflow, nasbackup FROM PUBLIC;
SQL
}
