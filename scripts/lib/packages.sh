# shellcheck shell=bash
# The distribution's packages. The names are the same on Debian 12, Debian 13 and Ubuntu 24.04.

PACKAGES=(
  qemu-system-x86 qemu-utils                                     # the VMs; qemu-img, qemu-nbd
  libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients
  libvirt-dev gcc pkg-config python3-dev                         # libvirt-python is built from source
  python3 python3-venv
  python3-libnbd libnbd-bin                                      # the `nbd` module is not on PyPI; nbdinfo, nbdcopy
  postgresql postgresql-client
  busybox-static cpio zstd xz-utils                              # the demo guest's initramfs
  e2fsprogs util-linux                                           # mkfs, fsck; setpriv, flock
  tini                                                           # a parent for processes that nobody waits for
  ca-certificates
)
TEST_PACKAGES=(
  nbdkit                                                         # a NAS that is slow or fails
  ovmf swtpm swtpm-tools                                         # UEFI and a TPM, for what is saved of them
  chromium                                                       # the page (Ubuntu: it installs the snap)
)
# For `nasbackup files`: about a hundred small packages, which only that command needs. It says so where they are missing.
FILES_PACKAGES=(python3-guestfs libguestfs-xfs)

ensure_packages() {
  command -v apt-get >/dev/null ||
    die "needs a Debian or Ubuntu system (apt-get was not found)."
  local missing
  mapfile -t missing < <(_missing_packages)
  ((${#missing[@]})) || return 0
  step "Installing ${#missing[@]} packages" "$VAR/log/packages.log" \
    "check the network and the package sources (Ubuntu needs 'universe'), then run it again" \
    _install_packages "${missing[@]}"
}

_missing_packages() {
  local installed name
  # dpkg-query fails when it doesn't know a name: that name is then missing, which is what we ask.
  installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${PACKAGES[@]}" 2>/dev/null) || true
  for name in "${PACKAGES[@]}"; do
    grep -qxF "$name installed" <<<"$installed" || printf '%s\n' "$name"
  done
}

_install_packages() {
  export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
  local apt=(apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o Dpkg::Use-Pty=0)
  # A fresh cloud machine updates itself while it boots, and apt does not wait for the lock of its lists.
  # An update that fails for another reason (one broken source) is left to the install to judge.
  local try
  for try in 1 2 3; do
    "${apt[@]}" update && break
    ((try == 3)) || sleep 10
  done
  _without_main_cluster "${apt[@]}" install --no-install-recommends "$@"
}

# Debian's PostgreSQL creates a cluster `main` on port 5432 at its first installation and starts it. Ours is
# under var/, so on a machine that had no PostgreSQL nobody asked for that one: it is switched off while the
# package installs, through the drop-in directory made for this, and nothing of it stays.
_without_main_cluster() {
  local dir=/etc/postgresql-common/createcluster.d
  if ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then
    # shellcheck disable=SC2064 # as it is now
    trap "rm -f $dir/nasbackup.conf; rmdir --ignore-fail-on-non-empty $dir" EXIT # of step's subshell
    mkdir -p "$dir"
    echo 'create_main_cluster = false' >"$dir/nasbackup.conf"
  fi
  "$@"
}

# promtool, for tests of the metrics and alert rules, is in the package prometheus, which would start a server when it is
# installed. The one program is taken out of it, and nothing is installed.
ensure_promtool() {
  [[ ! -x $VAR/promtool ]] || return 0
  step "Fetching promtool" "$VAR/log/packages.log" \
    "check the network and the package sources (Ubuntu needs 'universe'), then run it again" _fetch_promtool
}

_fetch_promtool() {
  local dir
  dir=$(mktemp -d)
  # shellcheck disable=SC2064 # as it is now
  trap "rm -rf '$dir'" EXIT # of step's subshell
  chmod 755 "$dir"
  cd "$dir"
  apt-get -q -o Acquire::Retries=3 download prometheus ||
    { apt-get -q -o Acquire::Retries=3 update && apt-get -q -o Acquire::Retries=3 download prometheus; }
  dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xO ./usr/bin/promtool >"$VAR/promtool.new"
  chmod 755 "$VAR/promtool.new"
  mv "$VAR/promtool.new" "$VAR/promtool"
}
