"""The commands of bpf(2) that the reader needs, by ctypes: bcc would cost a hundred times the memory."""

from __future__ import annotations

import ctypes
import os
import sys

_SYSCALL_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
# enum bpf_cmd and the layout of union bpf_attr and struct bpf_prog_info: include/uapi/linux/bpf.h, a stable interface.
_MAP_LOOKUP_ELEM = 1
_MAP_UPDATE_ELEM = 2
_MAP_DELETE_ELEM = 3
_OBJ_GET_INFO_BY_FD = 15
_RAW_TRACEPOINT_OPEN = 17
_RECURSION_MISSES_OFFSET = 208
_PROG_INFO_SIZE = 232

_libc = ctypes.CDLL(None, use_errno=True)
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


class _ElementAttr(ctypes.Structure):
    _fields_ = (
        ("map_fd", ctypes.c_uint32),
        ("key", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class _InfoAttr(ctypes.Structure):
    _fields_ = (("bpf_fd", ctypes.c_uint32), ("info_len", ctypes.c_uint32), ("info", ctypes.c_uint64))


class _AttachAttr(ctypes.Structure):
    _fields_ = (("name", ctypes.c_uint64), ("prog_fd", ctypes.c_uint32), ("padding", ctypes.c_uint32))


def _bpf(command: int, attr: ctypes.Structure) -> int:
    number = _SYSCALL_NUMBERS[os.uname().machine]
    result: int = _libc.syscall(number, command, ctypes.byref(attr), ctypes.sizeof(attr))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


class PerCpuCounters:
    """Entry 0 of a per-CPU array map whose value is a struct of 64-bit counters.

    Args:
        map_fd: Descriptor of the map.
        slots: Number of counters in the struct.
        cpus: Possible (not online) CPUs: the kernel returns one value for each.
    """

    def __init__(self, map_fd: int, slots: int, cpus: int) -> None:
        self._slots = slots
        self._key = ctypes.c_uint32(0)
        self._values = (ctypes.c_uint64 * (slots * cpus))()
        self._attr = _ElementAttr(map_fd, ctypes.addressof(self._key), ctypes.addressof(self._values), 0)

    def read(self) -> list[int]:
        """Return the sums over all CPUs, in the order of the struct.

        Raises:
            OSError: The map cannot be read.
        """
        _bpf(_MAP_LOOKUP_ELEM, self._attr)
        return [sum(self._values[slot :: self._slots]) for slot in range(self._slots)]


class Element:
    """Entry 0 of an array map.

    Args:
        map_fd: Descriptor of the map.
        size_bytes: Of its value.
    """

    def __init__(self, map_fd: int, size_bytes: int) -> None:
        self._key = ctypes.c_uint32(0)
        self._value = ctypes.create_string_buffer(size_bytes)
        self._attr = _ElementAttr(map_fd, ctypes.addressof(self._key), ctypes.addressof(self._value), 0)

    def read(self) -> bytes:
        """Return its value.

        Raises:
            OSError: The map cannot be read.
        """
        _bpf(_MAP_LOOKUP_ELEM, self._attr)
        return self._value.raw


def set_element(map_fd: int, value: int) -> None:
    """Set entry 0 of an array map whose value is a 64-bit number.

    Raises:
        OSError: The map cannot be written.
    """
    key, content = ctypes.c_uint32(0), ctypes.c_uint64(value)
    _bpf(_MAP_UPDATE_ELEM, _ElementAttr(map_fd, ctypes.addressof(key), ctypes.addressof(content), 0))


class Table:
    """A hash map from 64-bit numbers to 64-bit numbers.

    Args:
        map_fd: Descriptor of the map.
    """

    def __init__(self, map_fd: int) -> None:
        self._key, self._value = ctypes.c_uint64(0), ctypes.c_uint64(0)
        key = ctypes.addressof(self._key)
        self._attr = _ElementAttr(map_fd, key, ctypes.addressof(self._value), 0)
        self._key_attr = _ElementAttr(map_fd, key, 0, 0)  # the kernel refuses a value where none is due

    def read(self, key: int) -> int:
        """Return the value of a key that is in it.

        Raises:
            OSError: The map cannot be read.
        """
        self._key.value = key
        _bpf(_MAP_LOOKUP_ELEM, self._attr)
        return self._value.value

    def put(self, key: int) -> None:
        """Put a key in, with the value 0.

        Raises:
            OSError: The map cannot be written.
        """
        self._key.value, self._value.value = key, 0
        _bpf(_MAP_UPDATE_ELEM, self._attr)

    def remove(self, key: int) -> None:
        """Remove a key that is in it.

        Raises:
            OSError: The map cannot be written.
        """
        self._key.value = key
        _bpf(_MAP_DELETE_ELEM, self._key_attr)


class Link:
    """An attachment of a program to the function that it was loaded for (fentry, fexit).

    Args:
        fd: What keeps it attached.
        program_fd: The program's descriptor, which stays open.
    """

    def __init__(self, fd: int, program_fd: int) -> None:
        self._fd, self._attr = fd, _AttachAttr(0, program_fd, 0)

    def detach(self) -> None:
        """Detach it, so that the function costs what it does without. Calls that have not returned are not seen."""
        os.close(self._fd)

    def attach(self) -> None:
        """Attach it again (Linux 5.13 or later): calls from now on are seen.

        Raises:
            OSError: The kernel refuses.
        """
        self._fd = _bpf(_RAW_TRACEPOINT_OPEN, self._attr)


def recursion_misses(program_fd: int) -> int:
    """Return how often the kernel skipped a program because it was running on that CPU already.

    That happens on a preemptible kernel, when one task is preempted inside the program and the next one enters it.

    Raises:
        OSError: The kernel does not say.
    """
    info = ctypes.create_string_buffer(_PROG_INFO_SIZE)
    attr = _InfoAttr(program_fd, _PROG_INFO_SIZE, ctypes.addressof(info))
    _bpf(_OBJ_GET_INFO_BY_FD, attr)
    return int.from_bytes(info.raw[_RECURSION_MISSES_OFFSET : _RECURSION_MISSES_OFFSET + 8], sys.byteorder)


def keep_resident() -> None:
    """Lock every page this process has touched or will touch, so that no memory pressure delays the next sample.

    Pages never touched stay out (MCL_ONFAULT), so that this adds nothing to the resident size. Without the privilege
    nothing happens.
    """
    _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
