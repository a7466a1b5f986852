"""Looking things up in type information: in a synthetic one, and in this kernel's if it has any."""

import struct
from pathlib import Path

import pytest

from guest_agent.btf import Btf, BtfError
from guest_agent.probes import KERNEL_BTF, Probes

STRUCT, UNION, ENUM, TYPEDEF, CONST, FUNC, PROTO, INT, PTR = 4, 5, 6, 8, 10, 12, 13, 1, 2


class Builder:
    """Writes type information, type by type; `add` returns the new type's number."""

    def __init__(self):
        self.types = b""
        self.strings = b"\0"
        self.number = 0

    def string(self, text):
        if not text:
            return 0
        offset = self.strings.find(b"\0" + text.encode() + b"\0")
        if offset >= 0:
            return offset + 1
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text) - 1

    def add(self, kind, name="", target=0, count=0, trailing=b"", flag=0):
        info = kind << 24 | count | flag << 31
        self.types += struct.pack("=III", self.string(name), info, target) + trailing
        self.number += 1
        return self.number

    def structure(self, name, members, kind=STRUCT, flag=0):
        entries = [struct.pack("=III", self.string(member), number, bits) for member, number, bits in members]
        return self.add(kind, name, 64, len(members), b"".join(entries), flag)

    def function(self, name, parameters):
        prototype = self.add(PROTO, count=parameters, trailing=struct.pack("=II", 0, 0) * parameters)
        return self.add(FUNC, name, prototype)

    def tracepoint(self, name, arguments):
        prototype = self.add(PROTO, count=arguments + 1, trailing=struct.pack("=II", 0, 0) * (arguments + 1))
        return self.add(TYPEDEF, f"btf_trace_{name}", self.add(PTR, "", prototype))

    def enumeration(self, name, values):
        entries = [struct.pack("=Ii", self.string(entry), value) for entry, value in values.items()]
        return self.add(ENUM, name, 4, len(values), b"".join(entries))

    def build(self):
        header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings))
        return header + self.types + self.strings


def kernel(*, folio_pages="_folio_nr_pages", without=(), parameters=None):
    """Type information with what the collector looks for, as Linux 6.12 has it."""
    build = Builder()
    number = build.add(INT, "unsigned long", 8, trailing=struct.pack("=I", 64))
    build.add(PTR, "", number)
    build.structure("kiocb", [("ki_filp", number, 0), ("ki_pos", number, 64)])
    build.structure("file", [("f_mapping", number, 192)])
    build.structure("address_space", [("host", number, 0)])
    build.structure("inode", [("i_sb", number, 320), ("i_ino", number, 512), ("i_generation", number, 2816)])
    build.structure("super_block", [("s_dev", number, 128)])
    build.enumeration("vm_fault_reason", {"VM_FAULT_OOM": 1, "VM_FAULT_MAJOR": 4, "VM_FAULT_LOCKED": 512})
    build.structure("readahead_control", [("file", number, 0), ("mapping", number, 64), ("_index", number, 192)])
    vm_fault_part = build.structure("", [("vma", number, 0), ("pgoff", number, 128)])
    constant = build.add(CONST, "", vm_fault_part)
    build.structure("vm_fault", [("", constant, 0)])
    build.structure("vm_area_struct", [("vm_file", number, 1024)])
    build.structure("damon_region", [("ar", number, 0), ("nr_accesses", number, 192)])
    build.structure("page", [("compound_head", number, 64), ("_mapcount", number, 384)])
    head = build.structure("", [("flags", number, 0), ("mapping", number, 192), ("index", number, 256)])
    tail = build.structure("", [("_flags_1", number, 0), (folio_pages, number, 256)])
    first = build.structure("", [("", head, 0)], UNION)
    second = build.structure("", [("", tail, 0)], UNION)
    build.structure("folio", [("", first, 0), ("", second, 512)])
    build.enumeration("pageflags", {"PG_lru": 5, "PG_head": 6, "PG_swapbacked": 17, "PG_unevictable": 18})
    counts = {
        "filemap_read": 3,
        "filemap_splice_read": 5,
        "page_cache_sync_ra": 2,
        "page_cache_async_ra": 3,
        "force_page_cache_ra": 2,
        "filemap_fault": 1,
        "generic_perform_write": 2,
        "iomap_file_buffered_write": 4,
    }
    for name, count in counts.items():
        if name not in without:
            build.function(name, (parameters or {}).get(name, count))
    arguments = {"mm_filemap_add_to_page_cache": 1, "mm_filemap_delete_from_page_cache": 1, "damon_aggregated": 3}
    for name, count in arguments.items():
        if name not in without:
            build.tracepoint(name, (parameters or {}).get(name, count))
    return build.build()


EVERYTHING = {
    "accesses", "evictions", "faults_major", "inserts_read", "inserts_fault", "inserts_write", "inserts_other",
}  # fmt: skip


def test_finds_members_inside_anonymous_parts_and_behind_modifiers():
    types = Btf(kernel(), {"folio", "vm_fault"})
    assert types.member_offset("vm_fault", "vma") == 0
    assert types.member_offset("folio", "mapping") == 24
    assert types.member_offset("folio", "_folio_nr_pages") == 64 + 32
    assert types.member_offset("folio", "no_such_member") is None
    assert types.member_offset("kiocb", "ki_pos") is None  # not among the names asked for


def test_offsets_of_a_structure_with_bit_fields():
    build = Builder()
    number = build.add(INT, "int", 4, trailing=struct.pack("=I", 32))
    build.structure("flags", [("small", number, 3 << 24 | 8), ("next", number, 32)], flag=1)
    assert Btf(build.build(), {"flags"}).member_offset("flags", "next") == 4


@pytest.mark.parametrize("data", [b"", b"\x9f\xeb", b"\0" * 64, kernel()[:24] + b"\xff" * 4000])
def test_refuses_what_is_no_type_information(data):
    with pytest.raises(BtfError):
        Btf(data, {"folio"})


def test_counts_everything_on_a_kernel_that_has_everything():
    probes = Probes(kernel())
    assert probes.countable == EVERYTHING
    assert probes.missing == []
    assert {"-DHAVE_filemap_read", "-DOFFSET_kiocb_ki_pos=8", "-DOFFSET_folio_pages=96", "-DVALUE_PG_head=6"} <= set(
        probes.compiler_flags
    )


def test_takes_the_new_name_of_a_renamed_member():
    assert "-DOFFSET_folio_pages=96" in Probes(kernel(folio_pages="_nr_pages")).compiler_flags


@pytest.mark.parametrize(
    ("missing", "not_counted"),
    [
        ("filemap_read", {"accesses"}),
        ("filemap_splice_read", set()),
        ("force_page_cache_ra", set()),
        ("page_cache_async_ra", {"inserts_read", "inserts_other"}),
        # without it, what faults read ahead would pass for misses of reads
        ("filemap_fault", {"faults_major", "inserts_read", "inserts_fault", "inserts_other"}),
        ("generic_perform_write", set()),
        ("mm_filemap_delete_from_page_cache", {"evictions"}),
        ("mm_filemap_add_to_page_cache", {"inserts_read", "inserts_fault", "inserts_write", "inserts_other"}),
    ],
)
def test_a_missing_hook_leaves_its_counters_out(missing, not_counted):
    probes = Probes(kernel(without={missing}))
    assert probes.countable == EVERYTHING - not_counted
    assert missing in probes.missing
    assert f"-DHAVE_{missing}" not in probes.compiler_flags


def test_samples_where_files_can_be_told_apart():
    assert Probes(kernel()).can_sample
    assert Probes(kernel()).sampling_flags(255) == ["-DSAMPLES", "-DSAMPLE_SALT=0xffULL", "-DSAMPLES_FAULTS"]
    assert Probes(kernel(without={"filemap_fault"})).sampling_flags(1) == ["-DSAMPLES", "-DSAMPLE_SALT=0x1ULL"]
    assert not Probes(kernel(without={"filemap_read"})).can_sample


@pytest.mark.parametrize("absent", ["filemap_read", "filemap_fault", "mm_filemap_delete_from_page_cache"])
def test_how_far_pages_had_gone_takes_samples_and_both_ways_of_a_page(absent):
    assert Probes(kernel()).can_tell_ghosts
    assert not Probes(kernel(without={absent})).can_tell_ghosts


def test_does_not_hook_a_function_whose_parameters_differ():
    # as in Linux 5.15: (file, iter, pos) instead of (iocb, iter)
    assert Probes(kernel(parameters={"generic_perform_write": 3})).missing == ["generic_perform_write"]


def test_tells_no_ages_where_damon_does_not_pass_on_what_is_read():
    assert Probes(kernel()).can_tell_ages
    assert not Probes(kernel(without={"damon_aggregated"})).can_tell_ages
    assert not Probes(
        kernel(parameters={"damon_aggregated": 4})
    ).can_tell_ages  # (target, number, region, …): before 6.7


def test_without_the_size_of_folios_counts_accesses_only():
    probes = Probes(kernel(folio_pages="_something_else"))
    assert probes.countable == {"accesses", "faults_major"}


def test_understands_a_real_kernel():
    try:
        data = Path(KERNEL_BTF).read_bytes()
    except OSError:
        pytest.skip("this kernel has no type information")
    probes = Probes(data)
    assert "filemap_read" in probes.hooks
    assert "accesses" in probes.countable
