#!/bin/sh
# Decides what the base system does at boot, in the file tree $1. Run by customize.sh after all packages are installed.
#
# A package may bring a service as a unit, by a generator, or as an init script, and rely on what Debian's base system
# does at boot: modules loaded, device nodes made, users let in. So no generator is masked, and no unit but the two at
# the end. What is of no use in a guest that lives for one run on known devices is merely not *wanted*: in place of the
# target's link to it stands one to /dev/null. Who asks for such a unit gets it.
set -eu
root=${1%/}
units=$root/etc/systemd/system

not_wanted() {
    wants=$units/$1.wants
    shift
    mkdir -p "$wants"
    for unit; do
        ln -sfn /dev/null "$wants/$unit"
    done
}

mkdir -p "$root/data" "$units/getty.target.wants"
ln -sfn /usr/lib/systemd/system/multi-user.target "$units/default.target"
ln -sfn /usr/lib/systemd/system/serial-getty@.service "$units/getty.target.wants/serial-getty@@CONSOLE@.service"

# Each of these costs up to a second of boot under emulation, or would disturb a measurement later.
not_wanted timers.target apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
    systemd-tmpfiles-clean.timer
not_wanted default.target e2scrub_reap.service
not_wanted multi-user.target e2scrub_reap.service systemd-ask-password-wall.path systemd-update-utmp-runlevel.service
# Started by D-Bus when a package that has sessions brings D-Bus.
not_wanted multi-user.target systemd-logind.service
not_wanted getty.target getty@tty1.service getty-static.service
not_wanted sysinit.target systemd-ask-password-console.path systemd-pstore.service systemd-random-seed.service \
    systemd-journal-flush.service systemd-machine-id-commit.service systemd-update-utmp.service \
    dev-hugepages.mount dev-mqueue.mount sys-fs-fuse-connections.mount sys-kernel-config.mount
# The kernel mounts the root file system as it is to be.
not_wanted local-fs.target systemd-remount-fs.service

# What systemd does after an update of /usr (users, caches of libraries, devices and messages) the packages have done.
touch "$root/etc/.updated" "$root/var/.updated"

# Modules and binary formats are set up only where a package lists some; these lists are the base system's own.
if [ -e "$root/etc/modules" ] && ! grep -q '^[^#]' "$root/etc/modules"; then
    rm -f "$root/etc/modules-load.d/modules.conf"
fi
rm -f "$root"/usr/lib/binfmt.d/python3*.conf

# Masked for all. /tmp is a directory on the disk: as a tmpfs, its files would take memory that no cache can give back.
ln -sfn /dev/null "$units/tmp.mount"
# udev rules handed in by the host, of which there are none. udev itself wants it, so there is no link to replace.
ln -sfn /dev/null "$units/systemd-udev-load-credentials.service"
