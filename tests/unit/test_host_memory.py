"""What this host's kernel tells of its memory, with control groups of either version, and what cannot be read of it."""

import resource

import pytest

from qmpalloc.host.memory import read_host_memory
from qmpalloc.model import HostMemory
from qmpalloc.units import GIB, MIB

NO_LIMIT = 9223372036854771712  # of v1: as many pages as fit a signed number
V2 = "30 23 0:26 / {0}/unified rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / {0} rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / {0}/cpu rw - cgroup cgroup rw,cpu\n"
    "35 31 0:32 / {0}/mem\\040ory rw - cgroup cgroup rw,memory\n"
)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


class Host:
    """A host in a directory: its ``/proc``, and its control groups beside it."""

    def __init__(self, directory):
        self.directory = directory
        self.write("proc/meminfo", "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:   600 kB\n")
        self.write("proc/vmstat", "pswpin 7\npswpout 9\n")
        self.write("proc/pressure/memory", "some avg10=1.25 avg60=0.50 total=5\nfull avg10=0.00 avg60=0.00 total=3\n")

    def write(self, name, text):
        file = self.directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(text))

    def groups(self, membership, mounts):
        self.write("proc/self/cgroup", membership)
        self.write("proc/self/mountinfo", mounts.format(self.directory))

    def v2(self, group, *, limit="max", high="max", used=0, cache=0):
        for name, value in (("max", limit), ("high", high), ("current", used)):
            self.write(f"unified/{group}/memory.{name}", f"{value}\n")
        active = cache // 5
        self.write(f"unified/{group}/memory.stat", f"anon 9\nactive_file {active}\ninactive_file {cache - active}\n")

    def v1(self, group, *, limit=NO_LIMIT, lowest=NO_LIMIT, used=0, cache=0, hierarchy=1):
        for name, value in (("limit_in_bytes", limit), ("usage_in_bytes", used), ("use_hierarchy", hierarchy)):
            self.write(f"mem ory/{group}/memory.{name}", f"{value}\n")
        stat = f"active_file 1\nhierarchical_memory_limit {lowest}\ntotal_inactive_file {cache}\ntotal_active_file 0\n"
        self.write(f"mem ory/{group}/memory.stat", stat)

    def read(self):
        return read_host_memory(self.directory / "proc")


class TestHost:
    def test_all_of_it(self, host):
        host.groups("0::/user/run\n", V2)
        host.v2("user", limit=5000, used=4000, cache=1500)
        host.v2("user/run")
        assert host.read() == HostMemory(
            total_bytes=1_024_000,
            available_bytes=614_400,
            swapped_in_pages=7,
            stalled_us=3,
            psi_some_avg10=1.25,
            group_left_bytes=2500,
            group_limit_bytes=5000,
        )

    def test_a_host_that_tells_less(self, host):
        for name in ("vmstat", "pressure/memory"):
            (host.directory / "proc" / name).unlink()
        assert host.read() == HostMemory(total_bytes=1_024_000, available_bytes=614_400)

    @pytest.mark.parametrize("text", ["", "MemTotal: 1000 kB\n", "MemTotal: many kB\nMemAvailable: 5 kB\n"])
    def test_a_host_that_does_not_tell_its_memory(self, host, text):
        host.write("proc/meminfo", text)
        (unread,) = host.read().unread
        assert unread.startswith(f"{host.directory}/proc/meminfo: ")

    def test_without_descriptors_it_says_so_and_says_nothing_else(self, host):
        host.groups("0::/user\n", V2)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, most[1]))
        try:
            found = host.read()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, most)
        assert found == HostMemory(unread=found.unread)
        assert f"{host.directory}/proc/meminfo: Too many open files" in found.unread
        assert f"{host.directory}/proc/self/cgroup: Too many open files" in found.unread

    def test_this_host(self):
        found = read_host_memory()
        assert found.available_bytes > 0
        assert found.unread == ()


class TestControlGroups:
    def test_the_one_that_is_nearest_to_what_must_be_left_counts(self, host):
        host.groups("0::/user/run\n", V2)
        host.v2("user", limit=100 * GIB, used=99 * GIB)  # of which 2 GiB must be left
        host.v2("user/run", limit=GIB, used=100 * MIB)
        found = host.read()
        assert (found.group_left_bytes, found.group_limit_bytes) == (GIB, 100 * GIB)

    def test_memory_high_is_a_limit_too(self, host):
        host.groups("0::/user/run\n", V2)
        host.v2("user", limit=9000, used=3000)
        host.v2("user/run", high=4000, used=3000, cache=500)
        assert host.read().group_left_bytes == 1500

    def test_v1_up_to_the_root(self, host):
        host.groups("5:cpu,cpuacct:/else\n4:memory:/user/run\n1:name=systemd:/x\n", V1)
        host.v1("", used=9_000_000)
        host.v1("user", limit=5000, lowest=5000, used=4000, cache=1500)
        host.v1("user/run", lowest=5000, used=100)
        assert host.read().group_left_bytes == 2500

    def test_in_a_hybrid_the_memory_is_with_v1(self, host):
        host.groups("4:memory:/user\n0::/other\n", V2 + V1)
        host.v1("user", limit=5000, used=4000)
        host.v2("other", limit=1, used=1)
        assert host.read().group_left_bytes == 1000

    def test_in_a_hybrid_the_memory_is_with_v2(self, host):
        host.groups("4:cpu:/user\n0::/user\n", V2 + V1)
        host.v2("user", limit=5000, used=4000)
        assert host.read().group_left_bytes == 1000

    def test_a_group_of_v1_that_leaves_those_in_it_alone(self, host):
        host.groups("4:memory:/user/run\n", V1)
        host.v1("user", limit=1000, used=999, hierarchy=0)
        host.v1("user/run", limit=5000, used=1000, hierarchy=0)
        assert host.read().group_left_bytes == 4000

    def test_a_container_sees_its_own_group_as_the_root(self, host):
        mount = "35 31 0:32 /docker/1a2b {0}/mem\\040ory ro - cgroup cgroup rw,memory\n"
        host.groups("4:memory:/docker/1a2b/run\n", mount)
        host.v1("", lowest=3000, used=1000)  # by a group around it that it does not see
        host.v1("run", lowest=3000, used=100)
        assert host.read().group_left_bytes == 2000

    @pytest.mark.parametrize("membership", ["0::/user\n", "4:memory:/user\n0::/\n", "0::/../user\n"])
    def test_a_group_that_no_mount_shows_is_told(self, host, membership):
        host.groups(membership, "35 31 0:32 /docker {0} ro - cgroup cgroup rw,memory\n")
        found = host.read()
        assert found.group_left_bytes is None
        assert len(found.unread) == 1
        assert "user (v" in found.unread[0]
        assert "no mount shows it" in found.unread[0]

    @pytest.mark.parametrize("name", ["memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"])
    @pytest.mark.parametrize("text", ["much", ""])
    def test_a_file_of_it_that_says_something_else_is_told(self, host, name, text):
        host.groups("4:memory:/user\n", V1)
        host.v1("user", limit=GIB, used=100)
        host.write(f"mem ory/user/{name}", f"hierarchical_memory_limit {text}\n" if name == "memory.stat" else text)
        found = host.read()
        assert set(found.unread) == {f"{host.directory}/mem ory/user/{name}: not as Linux writes it"}

    def test_where_the_mounts_cannot_be_read_that_is_told_alone(self, host):
        host.groups("0::/user\n", V2)
        (host.directory / "proc/self/mountinfo").unlink()
        (host.directory / "proc/self/mountinfo").mkdir()
        assert host.read().unread == (f"{host.directory}/proc/self/mountinfo: Is a directory",)

    def test_without_control_groups_nothing_is_missing(self, host):
        assert host.read().unread == ()
