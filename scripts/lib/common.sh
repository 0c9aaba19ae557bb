# shellcheck shell=bash disable=SC2034 # others use what is set here
# What every script here needs: paths, progress on long steps, errors that say what to do, one lock.
# Source it after `set -euo pipefail`.

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
VAR=$ROOT/var
SELF=scripts/$(basename -- "$0")
VENV=$VAR/venv
# Two checkouts on one machine must not meet: everything outside the checkout carries this.
CHECKOUT_ID=$(printf %s "$ROOT" | sha256sum | cut -c1-8)

PATH=$PATH:/usr/sbin:/sbin # libvirtd, runuser: not on the PATH of every non-interactive shell
export HOME=${HOME:-/root} # a CI shell may lack it, and uv's cache needs it
export LC_ALL=C.UTF-8

say() { printf '%s\n' "$*" >&2; }

die() { # says it once, also from within $(…), where only the subshell ends here
  trap - ERR
  say "$SELF: $*"
  ((BASH_SUBSHELL == 0)) || exit "$SAID"
  exit 1
}
SAID=97

# --- the user -------------------------------------------------------------------------------------------

# libvirt's system daemon, apt and the postgres user need root; a person with sudo gets it for this script.
need_root() {
  ((EUID == 0)) && return
  command -v sudo >/dev/null || die "needs root, and sudo is not installed: run it as root."
  say "$SELF: continuing as root through sudo (packages, libvirt and PostgreSQL need it)."
  local keep
  keep=$(compgen -e | grep -E '^(CI|STACK|NASBACKUP_|UV_|PIP_|SSL_CERT_|(https?|no|all)_proxy$|(HTTPS?|NO|ALL)_PROXY$)' |
    paste -sd, -) || true
  exec sudo ${keep:+--preserve-env="$keep"} -- "${BASH:-bash}" "$ROOT/$SELF" "$@"
}

# --- steps ----------------------------------------------------------------------------------------------

STEP='' STEP_LOG='' STEP_HINT=''

on_error() {
  local rc=$1 line=$2
  ((BASH_SUBSHELL == 0)) || exit "$rc" # the main shell speaks
  trap - ERR
  ((rc != SAID)) || exit 1
  if [[ $STEP ]]; then
    local last
    last=$(grep -v '^[[:space:]]*$' "$ROOT/$STEP_LOG" | tail -n 1 | cut -c1-200) || true
    say "$SELF: '$STEP' failed: $STEP_HINT (details: $STEP_LOG, which ends with: $last)"
  else
    say "$SELF: stopped at line $line with exit code $rc: run it as \`bash -x $SELF\` to see why."
  fi
  exit 1
}
set -E
trap 'on_error $? $LINENO' ERR

_tick() { # a living progress line on a terminal, a line each half minute elsewhere
  local title=$1 start=$SECONDS
  trap '' INT
  while sleep 1 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
    if [[ -t 2 ]]; then
      printf '\r  %s … %d s ' "$title" $((SECONDS - start)) >&2
    elif (((SECONDS - start) % 30 == 0)); then
      say "  $title … $((SECONDS - start)) s"
    fi
  done
}

# step TITLE LOG HINT COMMAND…: runs COMMAND with its output in LOG and its progress on the terminal.
# Don't call it in a condition (`if`, `||`): bash would then ignore failures inside COMMAND.
step() {
  local title=$1 log=$2 hint=$3 start=$SECONDS ticker rc
  shift 3
  mkdir -p "$(dirname -- "$log")"
  printf '\n### %s %s\n' "$(date -u +%FT%TZ)" "$title" >>"$log"
  _tick "$title" 8>&- 9>&- &
  ticker=$!
  trap - ERR
  set +e
  # No stdin to wait for, none of the caller's output kept open, none of our locks: COMMAND may start daemons.
  (set -e; "$@") </dev/null >>"$log" 2>&1 8>&- 9>&-
  rc=$?
  set -e
  kill "$ticker" 2>/dev/null || true
  wait "$ticker" 2>/dev/null || true
  trap 'on_error $? $LINENO' ERR
  [[ ! -t 2 ]] || printf '\r\033[K' >&2
  STEP=$title STEP_LOG=${log#"$ROOT"/} STEP_HINT=$hint
  ((rc == 0)) || on_error "$rc" "$LINENO"
  STEP=''
  say "  $title: done ($((SECONDS - start)) s)"
}

# --- one at a time --------------------------------------------------------------------------------------

lock_setup() {
  mkdir -p "$VAR"
  exec 9>"$VAR/setup.lock"
  if ! flock -n 9; then
    say "  waiting: another script is setting up this checkout …"
    flock 9
  fi
}

unlock_setup() { exec 9>&-; }
