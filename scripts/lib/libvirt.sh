# shellcheck shell=bash
# libvirt's daemons, and the one directory that QEMU writes to. The distribution's qemu.conf stays untouched.

BACKUP_STATE=/var/lib/nasbackup # sockets (run/) and scratch files (scratch/) of backup jobs

ensure_libvirt() {
  _kvm_device
  _swtpm_authority
  _libvirt_ready || step "Starting libvirt" "$VAR/log/libvirt.log" \
    "start libvirtd and virtlogd by hand to see why they don't" _start_libvirt
  _backup_state
  _apparmor_rule
}

# What udev's rule does for this device, where no udev runs. As root:root 0600 libvirt sees KVM when it probes
# QEMU but not for QEMU's user, takes its cached capabilities for outdated, and probes again in every call (5-10 s).
_kvm_device() {
  [[ -c /dev/kvm && ! -e /run/udev/control ]] || return 0
  if ! getent group kvm >/dev/null; then return 0; fi
  [[ $(stat -c %G:%a /dev/kvm) == kvm:660 ]] || { chown root:kvm /dev/kvm && chmod 0660 /dev/kvm; }
}

# A libvirtd that was up before swtpm's user came (the package makes it) runs swtpm_setup as root, and the certificate
# authority that root makes on first use is closed to that user, as whom the next libvirtd runs it: no VM with a TPM
# would start any more. The directory's owner is the package's; what root left in it becomes his too.
_swtpm_authority() {
  local authority=/var/lib/swtpm-localca
  [[ ! -d $authority ]] || find "$authority" -mindepth 1 -user root -exec chown --reference="$authority" -- {} +
}

_libvirt_ready() {
  timeout 20 virsh -q -c qemu:///system uri >/dev/null 2>&1 </dev/null || return 1
  # virtlogd writes the VMs' consoles: without it a VM does not start. systemd starts it by its socket.
  [[ -d /run/systemd/system ]] || [[ $(_daemon_pid virtlogd) ]]
}

_start_libvirt() {
  if [[ -d /run/systemd/system ]]; then
    # Theirs to keep: socket activated, and libvirtd leaves by itself when idle.
    if systemctl cat libvirtd.socket >/dev/null 2>&1; then
      systemctl start virtlogd.socket libvirtd.socket
    else # newer distributions: one daemon per driver
      systemctl start virtlogd.socket virtqemud.socket
    fi
  else
    local hypervisor=libvirtd
    command -v libvirtd >/dev/null || hypervisor=virtqemud
    # Several checkouts may do this at the same moment.
    exec 7>/run/nasbackup.lock
    flock 7
    _start_daemon virtlogd
    _start_daemon "$hypervisor"
    exec 7>&-
  fi
  local try
  for ((try = 0; try < 20; try++)); do
    if _libvirt_ready; then return 0; fi
    sleep 0.5
  done
  echo "libvirt does not answer on qemu:///system"
  return 1
}

# A QEMU that ended is a zombie until the init of this machine asks for its status, and libvirt waits for that: a
# second or more with an init that looks now and then, for ever with one that never does (a container's often).
# As their parent, tini asks at once. It stays until the daemon ends, which keeps the log that it has with -d.
_start_daemon() { # remembers what we started, so that --down stops nothing else
  [[ ! $(_daemon_pid "$1") ]] || return 0
  local log=/var/log/libvirt/$1.log
  (umask 077 && mkdir -p "${log%/*}" && : >>"$log")
  (cd / && exec setsid tini -s -- "$1" </dev/null >>"$log" 2>&1 7>&- 8>&- 9>&-) &
  local pid='' try
  for ((try = 0; try < 20 && ${#pid} == 0; try++)); do
    sleep 0.1
    pid=$(_daemon_pid "$1")
  done
  mkdir -p "$VAR/started"
  printf '%s %s\n' "$pid" "$(_started_at "$pid")" >"$VAR/started/$1"
}

_daemon_pid() { # libvirt's daemons keep a pid file however they were started
  local pid
  pid=$(cat "/run/$1.pid" 2>/dev/null) && [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$1" ]] || return 0
  printf '%s' "$pid"
}

_started_at() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; } # tells a reused pid apart

# Stops the daemons that this checkout started, unless somebody else uses them by now.
stop_libvirt() {
  local record daemon pid started vms others
  compgen -G "$VAR/started/*" >/dev/null || return 0
  vms=$(timeout 20 virsh -q -c qemu:///system list --name 2>/dev/null </dev/null | paste -sd' ' -) || true
  others=$(compgen -G '/run/nasbackup-*' | paste -sd' ' -) || true
  if [[ ${vms// /} || $others ]]; then
    say "  libvirt stays up, it is in use: ${vms:-} ${others:-}"
    return 0
  fi
  for daemon in libvirtd virtqemud virtlogd; do
    record=$VAR/started/$daemon
    [[ -f $record ]] || continue
    read -r pid started <"$record"
    if [[ $(_daemon_pid "$daemon") == "$pid" && $(_started_at "$pid") == "$started" ]]; then
      kill "$pid"
      local try
      for ((try = 0; try < 100; try++)); do
        [[ -e /proc/$pid ]] || break
        sleep 0.1
      done
      say "  $daemon stopped"
    fi
    rm -f "$record"
  done
}

# The backup job's NBD socket and scratch files are created by QEMU itself, so its user must own the place.
_backup_state() {
  local user group dir
  user=$(_qemu_user)
  group=kvm
  getent group kvm >/dev/null || group=$(id -gn "$user")
  install -d -m 0755 "$BACKUP_STATE"
  for dir in run scratch; do
    install -d -m 0770 -o "$user" -g "$group" "$BACKUP_STATE/$dir"
  done
}

_qemu_user() {
  local user
  user=$(sed -nE 's/^[[:space:]]*user[[:space:]]*=[[:space:]]*"?\+?([^"[:space:]]+).*/\1/p' /etc/libvirt/qemu.conf \
    2>/dev/null | tail -n 1)
  if [[ ! $user ]]; then
    user=libvirt-qemu
    getent passwd "$user" >/dev/null || user=qemu
  fi
  getent passwd "$user" >/dev/null ||
    die "the user '$user', as which QEMU runs, does not exist: check \`user\` in /etc/libvirt/qemu.conf."
  getent passwd "$user" | cut -d: -f1
}

# AppArmor confines each VM's QEMU to its disks; libvirt adds the scratch files by itself, but not the socket.
# The rule goes where the distribution keeps local additions, and holds for VMs started from then on.
_apparmor_rule() {
  [[ $(cat /sys/module/apparmor/parameters/enabled 2>/dev/null) == Y ]] || return 0
  local base=/etc/apparmor.d/abstractions/libvirt-qemu file rule="$BACKUP_STATE/** rwk,"
  [[ -f $base ]] || return 0
  if grep -q 'include.*abstractions/libvirt-qemu\.d' "$base"; then # Debian 13, Ubuntu 24.04
    file=$base.d/nasbackup
  elif grep -q 'include.*local/abstractions/libvirt-qemu' "$base"; then # Debian 12
    file=/etc/apparmor.d/local/abstractions/libvirt-qemu
  else
    say "  AppArmor: $base includes no local file: add '$rule' to it if backup jobs end with 'Permission denied'."
    return 0
  fi
  if [[ -f $file ]] && grep -qF "$rule" "$file"; then return 0; fi
  install -d "$(dirname "$file")"
  printf '\n# Sockets and scratch files of backup jobs (nasbackup)\n%s\n' "$rule" >>"$file"
  say "  AppArmor: allowed QEMU to use $BACKUP_STATE ($file); a VM that runs already needs a restart to see it."
}
