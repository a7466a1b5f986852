#!/bin/sh
# Installs the collector in a guest, or into the file tree of a guest image. Runs in any POSIX shell, busybox included.
set -eu

usage() {
    cat <<'END'
usage: install.sh [--root DIR] [--quiet-agent] [--check | --uninstall]

Without options: install on this machine, check what the collector needs, start it now and at every boot (systemd,
OpenRC, or a script in /etc/init.d), and wait until it counts. What fails leaves the guest as it was.

  --check       check only
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

root='' offline='' quiet='' uninstall='' check='' undo=''
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
        --check) check=yes ;;
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
name=qmpalloc-collector
unit=$name.service
library=$root/usr/local/lib/qmpalloc
units=$root/etc/systemd/system
wants=$units/multi-user.target.wants
script=$root/etc/init.d/$name
counters=/run/qmpalloc/counters.json
agent=qemu-guest-agent.service
drop_in=$units/$agent.d/qmpalloc-quiet.conf
start_limit_s=600 # an emulated guest that does other things meanwhile

# What starts services here. A script in /etc/init.d also does where there is nobody to run it at boot.
if [ -d /run/systemd/system ]; then
    init=systemd
elif command -v openrc-run >/dev/null || [ -x /sbin/openrc-run ]; then
    init=openrc
else
    init=plain
fi

# ------------------------------------------------------------------------------------------------------------- checks
problems=0
problem() {
    echo "  missing: $*" >&2
    problems=$((problems + 1))
}

# Packages that bring the headers of each new kernel, where one does that for kernels: linux-headers-VERSION does not.
followers() {
    command -v dpkg-query >/dev/null || return 0
    dpkg-query -W -f '${db:Status-Status} ${Package} ${Depends}\n' 'linux-image-*' 2>/dev/null |
        sed -n '/-dbg /d; s/^installed linux-image-\([a-z][a-z0-9.-]*\) .*linux-image-[0-9].*/linux-headers-\1/p'
}

# How a package is installed here. $1 is what it is for; distributions do not agree on names.
package() {
    release=$(uname -r)
    if command -v apt-get >/dev/null; then
        set -- "$1" 'apt-get install' python3 python3-bpfcc "$(echo "linux-headers-$release" $(followers))"
    elif command -v dnf >/dev/null; then
        set -- "$1" 'dnf install' python3 python3-bcc "kernel-devel-$release"
    elif command -v apk >/dev/null; then
        set -- "$1" 'apk add' python3 py3-bcc "linux-${release##*-}-dev" # the flavour: 6.12.1-0-virt
    elif command -v pacman >/dev/null; then
        case $release in *-lts) headers=linux-lts-headers ;; *) headers=linux-headers ;; esac
        set -- "$1" 'pacman -S' python python-bcc "$headers"
    elif command -v zypper >/dev/null; then
        set -- "$1" 'zypper install' python3 python3-bcc "kernel-${release##*-}-devel"
    else
        echo "with this system's packages"
        return
    fi
    case $1 in
        python) echo "$2 $3" ;;
        bcc) echo "$2 $4" ;;
        headers) echo "$2 $5" ;;
        agent) echo "$2 qemu-guest-agent" ;;
    esac
}

# What the collector cannot do without. It would say the same itself, but one thing at a time.
check_guest() {
    release=$(uname -r)
    [ "$(id -u)" = 0 ] || fail "run it as root"
    if [ ! -x /usr/bin/python3 ]; then
        problem "/usr/bin/python3 ($(package python))"
    elif ! /usr/bin/python3 -I -c 'import sys; sys.exit(sys.version_info < (3, 9))'; then
        problem "Python 3.9 or later in /usr/bin/python3"
    elif ! /usr/bin/python3 -I -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("bcc"))'; then
        problem "bcc for /usr/bin/python3 ($(package bcc))"
    fi
    [ -d "/lib/modules/$release/build" ] || [ -e /sys/kernel/kheaders.tar.xz ] ||
        problem "headers of the running kernel $release ($(package headers))"
    [ -e /sys/kernel/btf/vmlinux ] || problem "type information in the kernel (CONFIG_DEBUG_INFO_BTF=y)"
    [ "$problems" = 0 ] || fail "nothing was installed"
}

# Without it the collector ends with the guest's next kernel.
check_followers() {
    for name in $(followers); do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] ||
            echo "note: install $name too; else the next kernel has no headers"
    done
}

# How the host reads the file. Not having it yet is no reason not to install.
check_agent() {
    if ! command -v qemu-ga >/dev/null && [ ! -x /usr/sbin/qemu-ga ]; then
        echo "note: install the guest agent too ($(package agent)); the host reads the counters through it"
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
    [ "$init" = systemd ] && [ ! -e "$drop_in" ] || return 0
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
    rm -rf -- "${library:?}/guest_agent" "$library/former" "$units/$unit" "$wants/$unit" "$drop_in" "$script"
    rmdir -- "$library" "$units/$agent.d" 2>/dev/null || true
    [ -n "$offline" ] || { stop_damon && rm -rf -- /run/qmpalloc; }
}

# A collector that was killed leaves the kernel's DAMON on, and a mark that says so.
stop_damon() {
    [ -e /run/qmpalloc/ages ] || return 0
    kdamonds=/sys/kernel/mm/damon/admin/kdamonds
    echo off 2>/dev/null >"$kdamonds/0/state" || true
    echo 0 2>/dev/null >"$kdamonds/nr_kdamonds" || true
}

copy_files() {
    mkdir -p -- "$library/guest_agent"
    for file in "$source"/*.py "$source/program.c" "$source/README.md" "$source/install.sh" "$source/$name".*; do
        cp -- "$file" "$library/guest_agent/"
    done
    chmod 0644 "$library/guest_agent"/*
}

# Puts what starts the service where its init looks.
register() {
    case $init in
        systemd)
            mkdir -p -- "$wants"
            cp -- "$source/$unit" "$units/$unit"
            chmod 0644 "$units/$unit"
            ln -sfn -- "/etc/systemd/system/$unit" "$wants/$unit"
            [ -n "$offline" ] || systemctl daemon-reload
            ;;
        openrc)
            cp -- "$source/$name.openrc" "$script"
            chmod 0755 "$script"
            rc-update -q add "$name" default
            ;;
        plain)
            mkdir -p -- "$(dirname -- "$script")"
            cp -- "$source/$name.init" "$script"
            chmod 0755 "$script"
            if command -v update-rc.d >/dev/null; then
                update-rc.d "$name" defaults >/dev/null
            elif command -v chkconfig >/dev/null; then
                chkconfig --add "$name"
            else
                echo "note: nothing here starts services at boot: have your own script call $script start"
            fi
            ;;
    esac
}

unregister() {
    case $init in
        systemd) systemctl disable --quiet "$unit" 2>/dev/null || true ;;
        openrc) rc-update -q del "$name" default 2>/dev/null || true ;;
        plain)
            if command -v update-rc.d >/dev/null; then
                rm -f -- "$script" && update-rc.d "$name" remove >/dev/null 2>&1 || true
            elif command -v chkconfig >/dev/null; then
                chkconfig --del "$name" 2>/dev/null || true
            fi
            ;;
    esac
}

# Starts, stops or restarts ($1) the service.
service_() {
    case $init in
        systemd) systemctl --quiet "$1" "$unit" ;;
        openrc) rc-service -q "$name" "$1" ;;
        plain) "$script" "$1" ;;
    esac
}

# With systemd the service counts as started only then; elsewhere it has only been begun.
wait_until_it_counts() {
    [ "$init" != systemd ] || return 0
    waited=0
    while [ "$waited" -lt "$start_limit_s" ]; do
        if [ -s "$counters" ]; then
            case $(cat "$counters") in
                *'"accesses"'*) return 0 ;;
                *'"error"'*'starting: '*) ;;
                *) return 1 ;;
            esac
        elif ! service_ status >/dev/null 2>&1; then
            return 1
        fi
        sleep 1
        waited=$((waited + 1))
    done
    return 1
}

# The last words of a collector that does not count.
why() {
    if [ -s "$counters" ]; then
        sed -n 's/.*"error": *"\([^"]*\)".*/\1/p' "$counters"
    elif [ "$init" = systemd ]; then
        journalctl -qu "$unit" -n 3 -o cat
    else
        tail -n 3 "/var/log/$name.log" 2>/dev/null || true
    fi
}

# Leaves the guest as it was, if this ends before the collector counts: what was there comes back.
undo() {
    code=$?
    trap '' INT TERM HUP
    trap - EXIT
    [ -n "$undo" ] || exit "$code"
    service_ stop >/dev/null 2>&1 || true
    if [ -d "$library/former" ]; then
        rm -rf -- "${library:?}/guest_agent"
        mv -- "$library/former" "$library/guest_agent"
        source=$library/guest_agent
        register >/dev/null 2>&1 && service_ start >/dev/null 2>&1 || true
        echo "install.sh: the former version is back" >&2
    else
        unregister
        remove_files
        [ "$init" != systemd ] || systemctl daemon-reload
        echo "install.sh: nothing of it is left" >&2
    fi
    exit "$code"
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
    [ "$init" = systemd ] || fail "--quiet-agent is for systemd; README.md tells what else can be done"
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

if [ -n "$uninstall" ]; then
    if [ -n "$offline" ]; then
        remove_files
        echo "removed"
        exit 0
    fi
    [ "$(id -u)" = 0 ] || fail "run it as root"
    installed=''
    [ ! -e "$library/guest_agent" ] && [ ! -e "$script" ] && [ ! -e "$units/$unit" ] || installed=yes
    [ -z "$installed" ] || service_ stop >/dev/null 2>&1 || true
    [ ! -e "$drop_in" ] || quiet=yes
    unregister
    remove_files
    [ "$init" != systemd ] || systemctl daemon-reload
    [ -z "$quiet" ] || [ "$init" != systemd ] || systemctl try-restart "$agent"
    if [ -n "$installed" ]; then echo "removed"; else echo "it was not installed"; fi
    exit 0
fi

[ "$source" != "$(cd -- "$library/guest_agent" 2>/dev/null && pwd)" ] ||
    fail "run the install.sh of the new version, not the installed one"

if [ -n "$offline" ]; then
    init=systemd
    rm -rf -- "${library:?}/guest_agent" # what an older version had and this one has not must not stay
    copy_files
    register
    [ -z "$quiet" ] || quiet_agent
    echo "installed in ${root:-/}: starts with the guest's next boot"
    exit 0
fi

check_guest
if [ -n "$check" ]; then
    echo "nothing is missing"
    exit 0
fi
trap undo EXIT
trap 'exit 130' INT TERM HUP
undo=yes
rm -rf -- "$library/former"
[ ! -d "$library/guest_agent" ] || mv -- "$library/guest_agent" "$library/former"
copy_files
register
[ -z "$quiet" ] || quiet_agent
echo "starting ($init); compiling the probes takes some seconds"
service_ restart || fail "it did not start: $(why)"
wait_until_it_counts || fail "it does not count: $(why)"
undo=''
rm -rf -- "$library/former"
[ -z "$quiet" ] || [ "$init" != systemd ] || systemctl try-restart "$agent" ||
    fail "the guest agent did not start again: journalctl -u $agent"
check_agent
check_followers
echo "counting: $counters"
