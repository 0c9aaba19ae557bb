# shellcheck shell=bash
# The locked Python environment: var/tools holds uv, var/venv everything in uv.lock.

UV_VERSION=0.13.9
UV=$VAR/tools/bin/uv
# python3-libnbd is built for the distribution's own Python, so the environment is made from that one,
# whatever `python3` means on the caller's PATH.
SYSTEM_PYTHON=/usr/bin/python3

ensure_python() {
  local stamp
  stamp=$(_python_stamp)
  [[ $(cat "$VENV/.nasbackup-stamp" 2>/dev/null) != "$stamp" ]] || return 0
  ensure_uv
  step "Installing the locked Python environment" "$VAR/log/python.log" \
    "check the network and that this system's Python is 3.11 to 3.13, then run it again" _make_venv
  printf '%s\n' "$stamp" >"$VENV/.nasbackup-stamp"
}

# All that decides what the environment holds; the path because installed commands carry it.
_python_stamp() {
  {
    printf '%s\n' "$ROOT" "$UV_VERSION"
    "$SYSTEM_PYTHON" --version
    cat "$ROOT/uv.lock" "$ROOT/pyproject.toml"
  } | sha256sum | cut -d' ' -f1
}

ensure_uv() {
  [[ $("$UV" --version 2>/dev/null) != "uv $UV_VERSION"* ]] || return 0
  step "Installing uv $UV_VERSION" "$VAR/log/python.log" "check the network, then run it again" _make_tools
}

_make_tools() {
  "$SYSTEM_PYTHON" -m venv --clear "$VAR/tools"
  "$VAR/tools/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
}

_make_venv() {
  unset VIRTUAL_ENV CONDA_PREFIX PYTHONPATH PYTHONHOME
  _venv_fits || "$SYSTEM_PYTHON" -m venv --clear --without-pip --system-site-packages "$VENV"
  UV_PROJECT_ENVIRONMENT=$VENV UV_PYTHON_DOWNLOADS=never \
    "$UV" sync --frozen --no-progress --project "$ROOT" --python "$SYSTEM_PYTHON"
  "$VENV/bin/python" -c 'import airflow, libvirt, nbd, nasbackup, psycopg2'
}

# Made from this Python, with its site packages, at this path? (A copied or moved checkout brings a wrong one.)
_venv_fits() {
  local version
  version=$("$SYSTEM_PYTHON" -c 'import platform; print(platform.python_version())')
  [[ -x $VENV/bin/python ]] &&
    grep -qx "version = $version" "$VENV/pyvenv.cfg" &&
    grep -qx 'include-system-site-packages = true' "$VENV/pyvenv.cfg" &&
    grep -qF -- " $VENV" "$VENV/pyvenv.cfg"
}

# requirements.txt for people without uv: what uv.lock says, with hashes.
export_requirements() {
  "$UV" export --frozen --quiet --project "$ROOT" --python "$SYSTEM_PYTHON" \
    --no-dev --no-emit-project --no-header --format requirements-txt
}
