#!/bin/sh
# Runs as root inside the new system (a chroot) after all packages are installed, and before customize.sh, when a user adds
# something to the recipe.
#   $1  directory of the build's inputs: files/ is a tree that goes over the system's, kernel/ a kernel, prepare a script
set -eu
inputs=$1

# --------------------------------------------------------------------------------------------------------- files
# One by one, as /lib and others are links that a whole tree would replace; directories that exist stay as they are.
if [ -d "$inputs/files" ]; then
    cd "$inputs/files"
    find . -mindepth 1 -type d -exec sh -c 'for path; do mkdir -p "/$path"; done' sh {} +
    find . ! -type d -exec sh -c 'for path; do cp -d --preserve=mode,timestamps "$path" "/$path"; done' sh {} +
    cd /
fi

# -------------------------------------------------------------------------------------------------------- kernel
if [ -d "$inputs/kernel" ]; then
    release=$(cat "$inputs/kernel/release")
    mkdir -p "/usr/lib/modules/$release" "/usr/src/linux-headers-$release"
    cp -a "$inputs/kernel/modules/." "/usr/lib/modules/$release"
    cp -a "$inputs/kernel/headers/." "/usr/src/linux-headers-$release"
    ln -sfn "/usr/src/linux-headers-$release" "/usr/lib/modules/$release/build"
    cp "$inputs/kernel/vmlinuz" "/boot/vmlinuz-$release"
    depmod "$release"
    update-initramfs -c -k "$release"
fi

# ------------------------------------------------------------------------------------------------------- prepare
# With nothing of the build's own environment, and where the host allows it in a process namespace: what the script leaves
# running ends with it.
if [ -e "$inputs/prepare" ]; then
    alone="unshare --pid --fork --kill-child --mount-proc"
    $alone true 2>/dev/null || alone=
    cd /
    echo "qmpalloc: prepare begins"
    # shellcheck disable=SC2086
    $alone env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
        DEBIAN_FRONTEND=noninteractive SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH-}" "$inputs/prepare" </dev/null || {
        echo "qmpalloc: prepare failed: $?"
        exit 1
    }
    echo "qmpalloc: prepare ended"
fi
