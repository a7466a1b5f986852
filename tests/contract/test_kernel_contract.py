"""What docs/safety.md says of the host's kernel."""

import ctypes
import mmap
import os
import subprocess
import sys

SIZE = 1 << 20  # within what everybody may lock

LOCK = """
import ctypes, mmap, sys
memory = mmap.mmap(int(sys.argv[1]), int(sys.argv[2]))
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
print(ctypes.CDLL(None).mlock(ctypes.c_void_p(address), ctypes.c_size_t(len(memory))), flush=True)
sys.stdin.read()
"""


def test_a_lock_of_another_process_does_not_keep_shared_memory():
    """A hole in the file, which QEMU punches, goes through the ``mlock`` of another process."""
    file = os.memfd_create("ram")
    os.ftruncate(file, SIZE)
    os.pwrite(file, b"x" * SIZE, 0)
    command = [sys.executable, "-c", LOCK, str(file), str(SIZE)]
    with subprocess.Popen(command, pass_fds=[file], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as locker:
        assert locker.stdout.readline() == b"0\n"
        assert os.fstat(file).st_blocks * 512 == SIZE
        mmap.mmap(file, SIZE).madvise(mmap.MADV_REMOVE)
        assert os.fstat(file).st_blocks == 0
        locker.stdin.close()
    os.close(file)


def test_a_lock_of_its_own_keeps_memory():
    memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(SIZE)) == 0
    assert libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(SIZE), mmap.MADV_DONTNEED) == -1
