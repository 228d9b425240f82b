# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Sourced by scripts that need a Debian of another release: a small system in a
# folder, made by debootstrap and removed at exit.  Root only.
#
# The system as debootstrap makes it is kept, one tar file for each release, in
# $SYSTEMS (default: nbdkit-qcow2-plugin/ in the user's cache folder).  A file
# that is removed is made again.  $APT_CONF is more configuration of apt in the
# system, for instance where a snapshot of sid is older than apt accepts:
#   APT_CONF='Acquire::Check-Valid-Until "false";'

SYSTEMS=${SYSTEMS:-${XDG_CACHE_HOME:-$HOME/.cache}/nbdkit-qcow2-plugin}
src=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 1

die () { echo "${0##*/}: $*" >&2; exit 1; }

# new_system RELEASE: make one.  Its folder is in $system from then on.
system=
new_system () {
    local tar=$SYSTEMS/$1.tar
    [ "$(id -u)" -eq 0 ] || die "only root can make a system"
    command -v debootstrap > /dev/null ||
        die "there is no debootstrap: apt-get install debootstrap"
    system=$(mktemp -d "${TMPDIR:-/var/tmp}/$1.XXXXXX") || exit 1
    trap 'rm -rf --one-file-system "$system"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    if [ ! -e "$tar" ]; then
        mkdir -p "$SYSTEMS" || exit 1
        debootstrap --variant=minbase "$1" "$system" > "$SYSTEMS/$1.log" ||
            die "debootstrap $1 failed: $SYSTEMS/$1.log"
        tar -C "$system" --numeric-owner -cf "$tar.part" . || exit 1
        mv "$tar.part" "$tar"
    else
        tar -C "$system" --numeric-owner -xf "$tar" || exit 1
    fi
    chmod 755 "$system"
    cp /etc/resolv.conf "$system/etc/" || exit 1
    echo "${APT_CONF-}" > "$system/etc/apt/apt.conf.d/zz-local" || exit 1
    # Nobody misses it after a crash.
    echo force-unsafe-io > "$system/etc/dpkg/dpkg.cfg.d/unsafe-io" || exit 1
}

# inside COMMAND [ARG...]: run in the system, as root in /root.  What it starts
# ends with it, and what it mounts is gone then.  A folder for temporary files
# that the caller has is not there.
inside () {
    # shellcheck disable=SC2016
    unshare --mount --pid --fork --kill-child sh -c '
        mount --rbind /dev "$0/dev" && mount --rbind /sys "$0/sys" &&
            mount -t proc proc "$0/proc" &&
            exec chroot "$0" env -u TMPDIR -C /root "$@"' "$system" \
        HOME=/root LC_ALL=C.UTF-8 \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        DEBIAN_FRONTEND=noninteractive "$@" < /dev/null
}

# copy_sources FOLDER: what git has of this checkout, as it is now.
copy_sources () {
    mkdir -p "$system$1" || exit 1
    git -C "$src" ls-files -z |
        tar -C "$src" --null --no-recursion -T - -c |
        tar -C "$system$1" --no-same-owner -x || die "copying the sources failed"
}

# quietly WHAT COMMAND...: its output only if it fails.
quietly () {
    local what=$1
    shift
    if "$@" > "$system/quietly.log" 2>&1; then
        echo "ok: $what"
    else
        tail -n 40 "$system/quietly.log" >&2
        die "failed: $what"
    fi
}
