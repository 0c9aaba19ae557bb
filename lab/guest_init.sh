#!/bin/busybox sh
# PID 1 of the lab's guest, all in one file. It
#   - mounts every ext4 disk /dev/vd? at /data/vd?,
#   - writes to them all the time, as a guest in use does (see `writer`),
#   - runs QEMU's guest agent where the machine has a channel for it,
#   - obeys commands on the serial console (see `commands`; the other end is lab/console.py),
#   - powers off cleanly on the ACPI power button.
# On each disk: keep/ holds what commands wrote, ring/ and log what the writer wrote, tick the writer's counter.

RING_FILES=16
LOG_LINES=1024

mount_disk() {
    [ -b "/dev/$1" ] || return 1
    grep -q " /data/$1 " /proc/mounts && return 0
    mkdir -p "/data/$1"
    mount -t ext4 -o noatime "/dev/$1" "/data/$1" 2>/dev/null || { rmdir "/data/$1"; return 1; }
    mkdir -p "/data/$1/keep" "/data/$1/ring"
}

last_tick() {
    cat /data/vd?/tick 2>/dev/null | sort -n | tail -n 1 | sed 's/^0*//'
}

# Every round writes the same growing number to all disks, one disk after the other, each safely on its disk before
# the next: in any one point in time over all disks, the ticks in the order of the disks never increase and differ by
# at most one. A tick is overwritten in place, so it can be read from an image even without replaying the journal.
# All else is bounded (ring of files, log cut now and then): a small disk never fills.
writer() {
    tick=$(last_tick)
    tick=${tick:-0}
    while :; do
        tick=$((tick + 1))
        for disk in /data/vd?; do
            [ -d "$disk/ring" ] && printf '%012d\n' "$tick" | dd of="$disk/tick" bs=13 conv=notrunc,fsync
        done
        for disk in /data/vd?; do
            [ -d "$disk/ring" ] || continue
            [ $((tick % LOG_LINES)) -eq 0 ] && : >"$disk/log"
            echo "tick $tick" >>"$disk/log"
            dd if=/dev/urandom of="$disk/ring/$((tick % RING_FILES))" bs=4k count=8
        done
        usleep 300000
    done >/dev/null 2>&1
}

# A file system that cannot be unmounted (a command still writes to it) must not keep the machine from going down.
power_off() {
    kill -9 "$(cat /run/writer.pid)"
    for try in 1 2 3 4 5 6 7 8 9 10; do
        sync
        busy=0
        for disk in /data/vd?; do
            grep -q " $disk " /proc/mounts || continue
            umount "$disk" || busy=1
        done
        [ "$busy" = 0 ] && break
        usleep 200000
    done 2>/dev/null
    poweroff -f
}

reply() {
    echo "#$token $*"
}

# Answers "ok" or "err", with one line of text: the error or whatever follows the command's success.
attempt() {
    if output=$("$@" 2>&1); then reply ok $output; else reply err $output; fi
}

write_random() {
    file=/data/$1/keep/$2
    dd if=/dev/urandom of="$file" bs=1k count="$3" conv=fsync 2>/tmp/dd || { cat /tmp/dd; return 1; }
    sync
    sha256sum "$file" | cut -d' ' -f1
}

remove() {
    rm "/data/$1/keep/$2" && sync
}

list_sums() {
    cd "/data/$1/keep" 2>/dev/null || { reply err "no file system at /data/$1"; return; }
    for file in *; do
        [ -f "$file" ] && reply = $(sha256sum "$file")
    done
    cd /
    reply ok
}

# A hot-plugged disk takes a moment to appear.
mount_soon() {
    for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        mount_disk "$1" && return 0
        usleep 250000
    done
    echo "cannot mount /dev/$1 as ext4"
    return 1
}

unmount() {
    for try in $(seq 60); do  # the writer may be just inside
        umount "/data/$1" 2>/tmp/umount && rmdir "/data/$1" && return 0
        usleep 50000
    done
    cat /tmp/umount
    return 1
}

# The port's name is in sysfs; the links in /dev/virtio-ports would be udev's work.
agent_port() {
    for port in /sys/class/virtio-ports/*; do
        [ "$(cat "$port/name")" = org.qemu.guest_agent.0 ] && echo "/dev/${port##*/}"
    done 2>/dev/null
}

agent() {
    pid=$(cat /run/agent.pid 2>/dev/null)
    case $1 in
    start)
        port=$(agent_port)
        [ -n "$port" ] || { echo "this machine has no channel for a guest agent"; return 1; }
        # Its state (is anything frozen?) is in /run: a new agent knows what the one before it did.
        qemu-ga -m virtio-serial -p "$port" -t /run -F/etc/freeze-hook </dev/null >/tmp/agent.log 2>&1 &
        echo $! >/run/agent.pid
        ;;
    stop) kill -9 "$pid" && rm /run/agent.pid ;;
    hang) kill -STOP "$pid" ;;
    slow) : >/run/slow-freeze ;;
    resume) rm -f /run/slow-freeze && kill -CONT "$pid" ;;
    *) echo "agent start, stop, hang, slow or resume"; return 1 ;;
    esac
}

# Is the file system frozen? A write to it shows: a frozen one makes it wait until the thaw, and nothing can end that
# wait, not even SIGKILL. So the write is left behind in the background (and finds its end some time).
is_frozen() {
    [ -d "/data/$1/keep" ] || { echo "no file system at /data/$1"; return 1; }
    done=/tmp/written-$token
    { : >"/data/$1/probe-$token" && : >"$done"; rm -f "/data/$1/probe-$token"; } </dev/null >/dev/null 2>&1 &
    for try in 1 2 3 4 5 6 7 8 9 10; do
        [ -e "$done" ] && { rm "$done"; echo no; return 0; }
        usleep 50000
    done
    echo yes
}

# One command a line: `#<token> <command> <arguments>`, answered by `#<token> ok|err <text>`, before which come any
# number of `#<token> = <item>`. What stands before the last `#` is noise (half a line from before the boot).
commands() {
    while IFS= read -r line; do
        case $line in *"#"*) ;; *) continue ;; esac
        set -- ${line##*#}
        token=$1 command=$2
        shift 2 || continue
        case $command in
        ping) reply ok ;;
        write) attempt write_random "$@" ;;
        sums) list_sums "$@" ;;
        rm) attempt remove "$@" ;;
        sync) attempt sync ;;
        mount) attempt mount_soon "$@" ;;
        umount) attempt unmount "$@" ;;
        agent) attempt agent "$@" ;;
        frozen) attempt is_frozen "$@" ;;
        tick) attempt cat "/data/$1/tick" ;;
        poweroff) reply ok; power_off ;;
        *) reply err "unknown command $command" ;;
        esac
    done
}

start() {
    /bin/busybox mkdir -p /proc /sys /dev /data /run /tmp /etc/acpi/PWRF
    /bin/busybox mount -t proc proc /proc
    /bin/busybox --install -s /bin
    mount -t sysfs sysfs /sys
    mount -t devtmpfs devtmpfs /dev
    dmesg -n 1  # only a panic may write into the answers on the console
    exec </dev/ttyS0 >/dev/ttyS0 2>/dev/null
    stty -echo -onlcr
    for module in /modules/*.ko; do
        insmod "$module"
    done
    for device in /dev/vd?; do
        mount_disk "${device#/dev/}"
    done

    printf '#!/bin/sh\nexec /init poweroff\n' >/etc/acpi/PWRF/00000080
    chmod +x /etc/acpi/PWRF/00000080
    acpid -l /dev/null

    # What the agent runs before a freeze and after a thaw; a database would be flushed here.
    printf '#!/bin/sh\n[ "$1" = freeze ] && [ -e /run/slow-freeze ] && sleep 3\nexit 0\n' >/etc/freeze-hook
    chmod +x /etc/freeze-hook
    agent start >/dev/null
    writer &
    echo $! >/run/writer.pid
    echo "READY $(uname -r)"
    while :; do  # PID 1 must not end
        commands
        sleep 1
    done
}

export PATH=/bin
case $1 in
poweroff) power_off ;;
*) start ;;
esac
