"""Why a guest agent did not open a file or run a program, by its own words, and what a person can do about it."""

from __future__ import annotations

from enum import StrEnum

from qmpalloc.errors import RefusedError


class FileTrouble(StrEnum):
    """Why a file was not opened. The words are the guest's: they can be a lie, or in its language, which is OTHER."""

    ABSENT = "absent"
    FORBIDDEN = "forbidden"
    FROZEN = "frozen"
    EXHAUSTED = "exhausted"
    DISABLED = "disabled"
    OTHER = "other"

    @property
    def hint(self) -> str:
        """What to do about it; empty where only the file's purpose tells."""
        return _HINTS.get(self, "")


_WORDS = {
    "the agent is in frozen state": FileTrouble.FROZEN,
    "No such file or directory": FileTrouble.ABSENT,
    "Permission denied": FileTrouble.FORBIDDEN,
    "Too many open files": FileTrouble.EXHAUSTED,
    # It numbers the files in a file of its own, for which the last descriptor is missing first.
    "failed to commit persistent state": FileTrouble.EXHAUSTED,
    # qemu-ga before 7.2, and qemu-ga 10 that was restarted meanwhile, say that of a frozen agent as well.
    "has been disabled": FileTrouble.DISABLED,
    "has not been found": FileTrouble.DISABLED,  # what an agent of another make says
}

_HINTS = {
    FileTrouble.FORBIDDEN: (
        "SELinux, or the mode of the file or of a directory above it, keeps the agent out. In the guest: ls -lZ on it, "
        "ausearch -m avc -c qemu-ga; with SELinux: setsebool -P virt_qemu_ga_read_nonsecurity_files on"
    ),
    FileTrouble.FROZEN: (
        "a backup has frozen the guest's file systems, and the agent does nothing else meanwhile: wait until it thaws "
        "them; if no backup runs, send guest-fsfreeze-thaw to the agent"
    ),
    FileTrouble.EXHAUSTED: (
        "the agent is out of descriptors, because somebody has opened files through it and not closed them; or its "
        "/run is full. In the guest: df /run, then systemctl restart qemu-guest-agent"
    ),
    FileTrouble.DISABLED: (
        "allow guest-file-open, guest-file-read and guest-file-close in the guest's /etc/qemu/qemu-ga.conf or "
        "/etc/sysconfig/qemu-ga (allow-rpcs, block-rpcs); some agents say the same while a backup freezes the guest: "
        "then wait until it thaws"
    ),
}


def file_trouble(error: RefusedError) -> FileTrouble:
    """Return why a guest agent refused to open a file."""
    return next((trouble for words, trouble in _WORDS.items() if words in error.message), FileTrouble.OTHER)


PROGRAM_HINTS = {
    FileTrouble.DISABLED: (
        "allow guest-exec and guest-exec-status, with guest-file-open, -read, -write and -close, in the guest's "
        "/etc/qemu/qemu-ga.conf or /etc/sysconfig/qemu-ga (allow-rpcs, block-rpcs); or let a command of this host "
        'reach the guest: channel = ["ssh", "root@…"]'
    ),
    FileTrouble.ABSENT: "no such program in the guest: give its whole path, or install it there",
    FileTrouble.FORBIDDEN: "SELinux or the mode of the file keeps the agent from it. In the guest: ls -lZ on it",
}


def program_hint(error: RefusedError) -> str:
    """Return what to do when a guest agent refused to start a program, or to take a file for one."""
    trouble = file_trouble(error)
    return PROGRAM_HINTS.get(trouble, trouble.hint)
