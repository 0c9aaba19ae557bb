# shellcheck shell=bash
# A stack is a PostgreSQL cluster and Airflow's four components, run by supervisord under var/<stack>/.
# stack_up, stack_down, stack_remove and stack_status take its name; each may be called in any state.
# For what needs PostgreSQL alone `stack_up NAME catalog` leaves Airflow out, or stops it; stack_airflow then starts it.

LIB=$ROOT/scripts/lib
# shellcheck source=scripts/lib/stack_env.sh
. "$LIB/stack_env.sh"
# shellcheck source=scripts/lib/postgres.sh
. "$LIB/postgres.sh"

SUPERVISOR_CONF=$ROOT/lab/stack/supervisord.conf

stack_up() {
  stack_select "$1"
  local log=$STACK_DIR/log/setup.log look="look into ${STACK_DIR#"$ROOT"/}/log/, then run it again"
  if [[ -f $RUN_DIR/session ]] && ! stack_answers; then # supervisord was killed, and left ports taken
    step "Clearing up after an earlier $STACK stack" "$log" "$look" _sweep
  fi
  stack_prepare
  postgres_select
  if _stack_is_current; then
    step "Migrating the catalog" "$log" "$look" _migrate_catalog
    if [[ ${2:-} == catalog ]]; then
      step "Stopping Airflow, for a while" "$log" "$look" _ctl stop 'airflow:*'
    else
      say "  The $STACK stack is up: $(stack_url)"
    fi
    return 0
  fi
  if stack_answers; then
    step "Stopping the $STACK stack, whose code or settings changed" "$log" "$look" _stop
  fi
  step "Starting PostgreSQL" "$log" "$look" _start_postgres
  step "Migrating Airflow's database" "$log" "$look" _migrate_airflow
  step "Migrating the catalog" "$log" "$look" _migrate_catalog
  [[ ${2:-} == catalog ]] || stack_airflow
}

stack_airflow() {
  local log=$STACK_DIR/log/setup.log look="look into ${STACK_DIR#"$ROOT"/}/log/, then run it again"
  step "Starting Airflow" "$log" "$look" _start_airflow
  _fingerprint >"$RUN_DIR/fingerprint"
  say "  The $STACK stack is up: $(stack_url)"
}

stack_down() { # stops it; data and logs stay
  stack_select "$1"
  [[ -d $RUN_DIR ]] || return 0
  mkdir -p "$STACK_DIR/log"
  step "Stopping the $STACK stack" "$STACK_DIR/log/setup.log" "end its processes by hand" _stop
  rm -rf "$RUN_DIR"
}

stack_remove() { # stops it and removes all that is its own
  stack_down "$1"
  # A NAS that is still mounted in there is not ours to empty.
  rm -rf --one-file-system "$STACK_DIR"
}

stack_status() {
  stack_select "$1"
  if [[ -f $STACK_DIR/env ]] && stack_answers; then
    say "The $STACK stack: $(stack_url)"
    _ctl status || true # supervisorctl fails when a process is not running, which its table says better
  else
    say "The $STACK stack is down."
  fi
}

stack_url() { (stack_env && echo "$NASBACKUP_AIRFLOW_URL"); }

# stack_use NAME: the environment of a stack that is up, for a command to run in.
stack_use() {
  stack_select "$1"
  local up="scripts/demo"
  [[ $STACK != test ]] || up="scripts/test --keep-stack"
  [[ -f $STACK_DIR/env && -S $PG_SOCKETS/.s.PGSQL.5432 ]] || die "the $STACK stack is not up: run $up first."
  stack_env
}

# --- the parts ------------------------------------------------------------------------------------------

_ctl() { (stack_env && exec "$VENV/bin/supervisorctl" -c "$SUPERVISOR_CONF" "$@" </dev/null); }

stack_answers() { [[ -S $RUN_DIR/supervisor.sock ]] && _ctl pid >/dev/null 2>&1; }

# All that a running process holds in memory: settings, the package, plugins. (DAG files are read anew.)
_fingerprint() {
  {
    cat "$STACK_DIR/env" "$SUPERVISOR_CONF" "$ROOT/uv.lock"
    printf '%s\n' "$NASBACKUP_PG_COMMAND"
    find "$ROOT/include" "$ROOT/plugins" "$ROOT/lab/stack" -type f ! -name '*.pyc' -print0 | sort -z | xargs -0r sha256sum
  } | sha256sum
}

_stack_is_current() {
  [[ $(cat "$RUN_DIR/fingerprint" 2>/dev/null) == "$(_fingerprint)" ]] && stack_answers && _health 0 >/dev/null
}

_start_postgres() {
  postgres_init
  stack_env
  cd /
  "$VENV/bin/supervisord" -c "$SUPERVISOR_CONF"
  local try
  for ((try = 0; try < 100; try++)); do
    if stack_answers; then break; fi
    sleep 0.1
  done
  # supervisord leads a session of its own: this is how _sweep finds whom it leaves behind.
  cp "$RUN_DIR/supervisord.pid" "$RUN_DIR/session"
  postgres_wait
  postgres_databases
}

_migrate_airflow() {
  local version
  version=$(grep -A1 -x 'name = "apache-airflow-core"' "$ROOT/uv.lock" | tail -n 1)
  [[ $(cat "$STACK_DIR/airflow/migrated" 2>/dev/null) != "$version" ]] || return 0
  (stack_env && cd / && "$VENV/bin/airflow" db migrate)
  printf '%s\n' "$version" >"$STACK_DIR/airflow/migrated"
}

_migrate_catalog() { (stack_env && cd / && exec "$VENV/bin/nasbackup" catalog migrate); }

_start_airflow() {
  _ctl start 'airflow:*'
  _health 240
}

_health() { (stack_env && exec "$SYSTEM_PYTHON" -I "$LIB/health.py" "$NASBACKUP_AIRFLOW_API" "$1"); }

_stop() {
  _ctl shutdown || true # not running: nothing to stop
  local try
  for ((try = 0; try < 600; try++)); do
    stack_answers || break
    sleep 0.1
  done
  _sweep
}

# Whoever is left of the stack: children of a component or a supervisord that was killed.
_sweep() {
  local session pids try
  session=$(cat "$RUN_DIR/session" 2>/dev/null) || return 0
  for ((try = 0; try < 100; try++)); do
    mapfile -t pids < <(_session_members "$session")
    ((${#pids[@]})) || break
    if ((try == 0)); then
      kill -TERM "${pids[@]}" 2>/dev/null || true
    elif ((try == 40)); then
      kill -KILL "${pids[@]}" 2>/dev/null || true
    fi
    sleep 0.1
  done
  rm -f "$RUN_DIR/session" "$RUN_DIR/fingerprint" "$RUN_DIR"/supervisor*
}

_session_members() {
  # The number is ours while one of our processes has it. A leader that is not our supervisord took it later
  # (a dead one that nobody has waited for has no command line any more).
  local leader
  leader=$(tr '\0' ' ' <"/proc/$1/cmdline") 2>/dev/null || true
  [[ ! $leader || $leader == *"$SUPERVISOR_CONF"* ]] || return 0
  # pid (name) state parent group session …, where the name may hold anything
  sed -nE "s/^([0-9]+) \(.*\) [^Z] [0-9]+ [0-9]+ $1 .*/\1/p" /proc/[0-9]*/stat 2>/dev/null || true
}
