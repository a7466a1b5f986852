#!/bin/sh
# Installs the collector in a systemd guest, or into the file tree of a guest image.
set -eu

usage() {
    cat <<'END'
usage: install.sh [--root DIR] [--quiet-agent] [--uninstall]

Without options: install on this machine, check what the collector needs, and start it.

  --root DIR    install into the file tree of an image: copy and enable only; nothing is checked or started
  --quiet-agent also keep out of the guest's log what the guest agent writes there whenever the host reads a file
                (three lines each time), by a drop-in for its service
  --uninstall   stop the collector and remove everything that was installed
END
}

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

root='' offline='' quiet='' uninstall=''
while [ $# -gt 0 ]; do
    case $1 in
        --root)
            [ $# -ge 2 ] || fail "--root needs a directory"
            [ -d "$2" ] || fail "no such directory: $2"
            root=${2%/} offline=yes
            shift
            ;;
        --quiet-agent) quiet=yes ;;
        --uninstall) uninstall=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        *)
            usage >&2
            exit 2
            ;;
    esac
    shift
done

source=$(cd -- "$(dirname -- "$0")" && pwd)
unit=qmpalloc-collector.service
library=$root/usr/local/lib/qmpalloc
units=$root/etc/systemd/system
wants=$units/multi-user.target.wants
agent=qemu-guest-agent.service
drop_in=$units/$agent.d/qmpalloc-quiet.conf

# ------------------------------------------------------------------------------------------------------------- checks
problems=0
problem() {
    echo "  missing: $*" >&2
    problems=$((problems + 1))
}

# What the collector cannot do without. It would say the same itself, but one thing at a time.
check_guest() {
    release=$(uname -r)
    [ "$(id -u)" = 0 ] || fail "run it as root"
    [ -d /run/systemd/system ] || fail "this guest does not run systemd; README.md tells how to start the collector"
    if [ ! -x /usr/bin/python3 ]; then
        problem "/usr/bin/python3 (apt-get install python3)"
    elif ! /usr/bin/python3 -I -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        problem "Python 3.11 or later in /usr/bin/python3"
    elif ! /usr/bin/python3 -I -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("bcc"))'; then
        problem "bcc for /usr/bin/python3 (apt-get install python3-bpfcc; dnf install python3-bcc)"
    fi
    [ -d "/lib/modules/$release/build" ] || [ -e /sys/kernel/kheaders.tar.xz ] ||
        problem "headers of the running kernel (apt-get install linux-headers-$release; dnf install kernel-devel-$release)"
    [ -e /sys/kernel/btf/vmlinux ] || problem "type information in the kernel (CONFIG_DEBUG_INFO_BTF=y)"
    [ "$problems" = 0 ] || fail "nothing was installed"
}

# How the host reads the file. Not having it yet is no reason not to install.
check_agent() {
    if ! command -v qemu-ga >/dev/null && [ ! -x /usr/sbin/qemu-ga ]; then
        echo "note: install the guest agent too (apt-get install qemu-guest-agent); the host reads the counters through it"
        return
    fi
    [ -e /dev/virtio-ports/org.qemu.guest_agent.0 ] ||
        echo "note: this guest has no agent port; give its QEMU a virtserialport named org.qemu.guest_agent.0"
    for file in /etc/qemu/qemu-ga.conf /etc/qemu-ga/qemu-ga.conf /etc/sysconfig/qemu-ga /etc/default/qemu-guest-agent; do
        [ -r "$file" ] || continue
        for rpc in guest-file-open guest-file-read guest-file-close; do
            if grep -Eiq "^[^#]*(block-rpcs|blacklist|block_rpcs|blacklist_rpc)[^#]*$rpc" "$file" ||
                { grep -Eq '^[^#]*allow-rpcs' "$file" && ! grep -Eq "^[^#]*allow-rpcs[^#]*$rpc" "$file"; }; then
                echo "note: $file forbids $rpc, which the host reads the counters with; allow it and restart the agent"
            fi
        done
    done
    [ -e "$drop_in" ] && return
    case $(systemctl show --value -p LogLevelMax "$agent") in
        [0-5]) ;; # somebody has seen to it
        *)
            echo "note: the agent logs three lines for each file that the host reads, 260,000 to 520,000 a day;" \
                "--quiet-agent keeps them out"
            ;;
    esac
}

# -------------------------------------------------------------------------------------------------------------- doing
remove_files() {
    rm -rf -- "${library:?}/guest_agent" "$units/$unit" "$wants/$unit" "$drop_in"
    rmdir -- "$library" "$units/$agent.d" 2>/dev/null || true
    [ -n "$offline" ] || rm -rf -- /run/qmpalloc
}

copy_files() {
    rm -rf -- "${library:?}/guest_agent" # what an older version had and this one has not must not stay
    mkdir -p -- "$library/guest_agent" "$wants"
    for file in "$source"/*.py "$source/program.c" "$source/README.md" "$source/install.sh" "$source/$unit"; do
        cp -- "$file" "$library/guest_agent/"
    done
    chmod 0644 "$library/guest_agent"/*
    cp -- "$source/$unit" "$units/$unit"
    chmod 0644 "$units/$unit"
    ln -sfn -- "/etc/systemd/system/$unit" "$wants/$unit"
}

# The version of systemd, of this machine's or of the image's; empty if it cannot be told.
systemd_version() {
    if [ -z "$offline" ]; then
        systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p'
    else
        find "$root/usr/lib" "$root/usr/lib64" -name 'libsystemd-shared-*.so' 2>/dev/null |
            sed -n 's/.*libsystemd-shared-\([0-9]*\).*/\1/p' | sort -n | tail -n 1
    fi
}

# journald sorts out what came from the service, by settings that it learns when the service starts.
quiet_agent() {
    version=$(systemd_version)
    mkdir -p -- "$units/$agent.d"
    {
        echo "# By qmpalloc's install.sh --quiet-agent: without the lines that the agent logs whenever the host reads a file."
        echo '[Service]'
        if [ "${version:-0}" -ge 253 ]; then
            echo 'LogFilterPatterns=~guest-file-(open|close)'
        else
            echo "# systemd before 253 cannot tell lines apart: this leaves out all that the agent says of what it was asked."
            echo 'LogLevelMax=notice'
        fi
    } >"$drop_in"
    chmod 0644 "$drop_in"
}

[ "$source" != "$(cd -- "$library/guest_agent" 2>/dev/null && pwd)" ] || [ -n "$uninstall" ] ||
    fail "run the install.sh of the new version, not the installed one"

if [ -n "$uninstall" ]; then
    [ -n "$offline" ] || systemctl disable --now --quiet "$unit" 2>/dev/null || true
    [ -e "$drop_in" ] && quiet=yes
    remove_files
    [ -n "$offline" ] || systemctl daemon-reload
    [ -n "$offline" ] || [ -z "$quiet" ] || systemctl try-restart "$agent"
    echo "removed"
    exit 0
fi

if [ -n "$offline" ]; then
    copy_files
    [ -z "$quiet" ] || quiet_agent
    echo "installed in ${root:-/}: starts with the guest's next boot"
    exit 0
fi

check_guest
copy_files
[ -z "$quiet" ] || quiet_agent
systemctl daemon-reload
echo "starting; compiling the probes takes some seconds"
systemctl restart "$unit" || fail "it did not start: journalctl -u $unit"
[ -z "$quiet" ] || systemctl try-restart "$agent" || fail "the guest agent did not start again: journalctl -u $agent"
check_agent
echo "counting: /run/qmpalloc/counters.json"
