# shellcheck shell=bash
# What a stack is made of before anything runs: its directories, port, secrets and environment.

# stack_select NAME: the stack that the functions below speak of.
stack_select() {
  [[ $1 =~ ^[a-z][a-z0-9]*$ ]] || die "'$1' is no name for a stack: use small letters and digits."
  STACK=$1
  STACK_DIR=$VAR/$STACK
  # Sockets live here because a socket's path must be short (107 bytes) and a checkout's may be long.
  RUN_DIR=/run/nasbackup-$CHECKOUT_ID-$STACK
  PG_SOCKETS=$RUN_DIR/pg
}

stack_prepare() {
  install -d -m 0755 "$STACK_DIR" "$STACK_DIR/log"
  install -d -m 0700 "$STACK_DIR/secrets"
  # Only root and postgres may enter: this is what guards the database's socket.
  install -d -m 0750 -o root -g postgres "$RUN_DIR"
  install -d -m 0700 -o postgres -g postgres "$PG_SOCKETS"
  _write_secrets
  # Read by Airflow while it parses the DAGs. Its owner may change it; a missing one would be an import error.
  [[ -f $STACK_DIR/fleet.yaml ]] || cp "$ROOT/lab/stack/fleet.$STACK.yaml" "$STACK_DIR/fleet.yaml"
  _choose_port
  _write_env
}

# Generated once: a restart must read the connections that the last start encrypted.
_write_secrets() {
  local dir=$STACK_DIR/secrets
  [[ ! -s $dir/keys || ! -s $dir/passwords.json ]] || return 0
  (
    umask 077
    "$SYSTEM_PYTHON" - "$dir" <<'PY'
import base64, json, pathlib, secrets, sys

directory = pathlib.Path(sys.argv[1])
fernet = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
(directory / "keys").write_text(f"{fernet} {secrets.token_urlsafe(32)} {secrets.token_urlsafe(64)}\n")
passwords = {user: secrets.token_urlsafe(9) for user in ("admin", "viewer")}
(directory / "passwords.json").write_text(json.dumps(passwords) + "\n")
PY
  )
}

# The stack's port of old if it is free (or ours), else the next free one that no other stack claims.
_choose_port() {
  PORT=$(cat "$STACK_DIR/port" 2>/dev/null) || true
  if [[ $PORT ]] && stack_answers; then return 0; fi
  local first=8080
  [[ $STACK == demo ]] || first=18080
  exec 7>/run/nasbackup.lock
  flock 7
  rm -f "$RUN_DIR/port"
  PORT=$("$SYSTEM_PYTHON" - "${NASBACKUP_BIND:-127.0.0.1}" "${PORT:-$first}" "$first" <<'PY'
import glob, itertools, pathlib, socket, sys

bind, wanted, first = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
claimed = {int(pathlib.Path(f).read_text()) for f in glob.glob("/run/nasbackup-*/port")}
for port in itertools.chain([wanted], range(first, first + 1000)):
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((bind, port))
        except OSError:
            continue
    if port not in claimed:
        print(port)
        break
PY
  )
  [[ $PORT ]] || die "no free TCP port on ${NASBACKUP_BIND:-127.0.0.1} from $first up: is NASBACKUP_BIND an address of this machine?"
  echo "$PORT" >"$RUN_DIR/port" # the claim: the port itself is taken only when the api-server is up
  exec 7>&-
  echo "$PORT" >"$STACK_DIR/port"
}

_write_env() {
  local bind=${NASBACKUP_BIND:-127.0.0.1} here=127.0.0.1 seen fernet api jwt
  # `here` is how the stack's own processes reach the api-server, `seen` how a browser does.
  [[ $bind == 127.0.0.1 || $bind == 0.0.0.0 ]] || here=$bind
  seen=$here
  [[ $bind != 0.0.0.0 ]] || seen=$(hostname -f 2>/dev/null || hostname)
  read -r fernet api jwt <"$STACK_DIR/secrets/keys"

  local timings=(AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME=0.5)
  # Tests wait for what Airflow notices by looking now and then: it looks more often than in production. That of the
  # heartbeat is how long the supervisor of a task sleeps that has failed or was skipped, before it says so (Airflow 3.3
  # misses the end of a process whose sockets close first); and 15 beats have to fail before a task is taken for dead.
  [[ $STACK != test ]] || timings=(
    AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME=0.1
    AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT=15
    AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL=2
    AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL=10
    AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL=1
  )

  # nas_sla_watch looks as soon as Airflow is up: a host of fleet.yaml without a Connection is an alert to it.
  local connections=()
  [[ $STACK != demo ]] || connections=(
    AIRFLOW_CONN_KVM_DEMO='{"conn_type": "libvirt", "extra": {"uri": "qemu:///system"}}'
  )

  # shellcheck disable=SC2054 # the commas belong to the values
  local env=(
    NASBACKUP_ROOT="$ROOT"
    NASBACKUP_VENV="$VENV"
    NASBACKUP_STACK="$STACK"
    NASBACKUP_STACK_DIR="$STACK_DIR"
    NASBACKUP_RUN_DIR="$RUN_DIR"
    NASBACKUP_FLEET="$STACK_DIR/fleet.yaml"
    NASBACKUP_AIRFLOW_URL="http://$seen:$PORT"
    NASBACKUP_AIRFLOW_API="http://$here:$PORT"
    NASBACKUP_AIRFLOW_PASSWORDS="$STACK_DIR/secrets/passwords.json"

    AIRFLOW_HOME="$STACK_DIR/airflow"
    AIRFLOW__CORE__EXECUTOR=LocalExecutor
    AIRFLOW__CORE__PARALLELISM=8
    AIRFLOW__CORE__DAGS_FOLDER="$ROOT/dags"
    AIRFLOW__CORE__PLUGINS_FOLDER="$ROOT/plugins"
    AIRFLOW__CORE__LOAD_EXAMPLES=False
    AIRFLOW__CORE__TEST_CONNECTION=Enabled
    AIRFLOW__CORE__FERNET_KEY="$fernet"
    AIRFLOW__CORE__EXECUTION_API_SERVER_URL="http://$here:$PORT/execution/"
    AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS=admin:admin,viewer:viewer
    AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE="$STACK_DIR/secrets/passwords.json"
    AIRFLOW__DATABASE__SQL_ALCHEMY_CONN="postgresql+psycopg2://airflow@/airflow?host=$PG_SOCKETS"
    AIRFLOW__API__HOST="$bind"
    AIRFLOW__API__PORT="$PORT"
    AIRFLOW__API__BASE_URL="http://$seen:$PORT"
    AIRFLOW__API__WORKERS=1
    AIRFLOW__API__SECRET_KEY="$api"
    AIRFLOW__API_AUTH__JWT_SECRET="$jwt"
    AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL=10
    AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL=20
    AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES=1
    AIRFLOW__LOGGING__COLORED_CONSOLE_LOG=False
    "${timings[@]}"
    # The directory as a percent-encoded host: libpq, psycopg2 and Airflow's Connection (`.host`) all read it.
    AIRFLOW_CONN_NAS_BACKUP_CATALOG="postgresql://nasbackup@${PG_SOCKETS//\//%2F}/nasbackup"
    "${connections[@]}"

    LC_ALL=C.UTF-8
  )
  (
    umask 077
    local entry value
    for entry in "${env[@]}"; do
      value=${entry#*=}
      printf '%s=%s\n' "${entry%%=*}" "${value@Q}" # quoted for the shell that reads it
    done >"$STACK_DIR/env.new"
    mv "$STACK_DIR/env.new" "$STACK_DIR/env"
  )
}

# stack_env: exports the stack's environment, and nothing that the caller's shell happens to carry beside it.
stack_env() {
  local name
  for name in "${!AIRFLOW@}" "${!PYTHON@}" "${!PG@}" "${!LIBVIRT_@}" VIRTUAL_ENV; do
    # PG_BIN and PG_SOCKETS are ours
    [[ $name == PG_* ]] || unset "$name"
  done
  set -a
  # shellcheck source=/dev/null
  . "$STACK_DIR/env"
  set +a
  # Tasks call the api-server on this machine, never through a proxy.
  export NO_PROXY="127.0.0.1,localhost,$AIRFLOW__API__HOST${NO_PROXY:+,$NO_PROXY}"
  export no_proxy=$NO_PROXY
}
