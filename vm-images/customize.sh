#!/bin/sh
# Runs as root inside the new system (a chroot), after all packages are installed.
#   $1  directory of the build's inputs: overlay files are in place already, this holds the rest
#   $2  RPCs of the standard agent     $3  RPCs of the lab agent, empty for none     (comma-separated)
set -eu
inputs=$1 agent_rpcs=$2 lab_rpcs=$3

# ------------------------------------------------------------------------------------------------------ identity
# For people on the serial console, whose socket only the user who started the guest can open.
passwd --delete root >/dev/null
echo qmpalloc-guest >/etc/hostname
printf '127.0.0.1\tlocalhost\n127.0.1.1\tqmpalloc-guest\n::1\tlocalhost\n' >/etc/hosts
rm -f /etc/resolv.conf # the guest has no network, and the host's must not get in

# ---------------------------------------------------------------------------------------------------------- boot
sh "$inputs/boot.sh" /

# -------------------------------------------------------------------------------------------------------- agents
# Writes a qemu-ga configuration that permits the RPCs $2 only. Agents before QEMU 8.1 know no list of permitted
# commands, so there the list of all others is what is blocked.
restrict_agent() {
    conf=$1 rpcs=$2
    mkdir -p "$(dirname "$conf")"
    if qemu-ga --help | grep -q -- --allow-rpcs; then
        echo "allow-rpcs=$rpcs" >>"$conf"
    else
        blocked=$(qemu-ga --block-rpcs=help | tr ',' '\n' | while read -r rpc; do
            case ",$rpcs," in *",$rpc,"*) ;; *) echo "$rpc" ;; esac
        done | paste -sd, -)
        echo "block-rpcs=$blocked" >>"$conf"
    fi
}
echo '[general]' >/etc/qemu/qemu-ga.conf
restrict_agent /etc/qemu/qemu-ga.conf "$agent_rpcs"
if [ -n "$lab_rpcs" ]; then
    printf '[general]\npath=/dev/virtio-ports/org.qmpalloc.lab.0\nstatedir=/run/qmpalloc-lab-agent\n' \
        >/etc/qemu/qemu-ga-lab.conf
    restrict_agent /etc/qemu/qemu-ga-lab.conf "$lab_rpcs"
fi

# ----------------------------------------------------------------------------------------------------- collector
sh "$inputs/guest_agent/install.sh" --root /

# ---------------------------------------------------------------------------------- what differs between build hosts
# mmdebstrap itself empties machine-id, the logs and lists of apt and dpkg, and the linker's cache. Left to do: the mirror
# and the proxy of the machine that built this are no part of the image.
rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* /etc/apt/apt.conf.d/99mmdebstrap
