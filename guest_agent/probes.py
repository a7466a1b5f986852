"""Which hooks this kernel has, and what can be counted with them. Asks for symbols, never for the kernel's version."""

from __future__ import annotations

from typing import NamedTuple

from guest_agent.btf import Btf

KERNEL_BTF = "/sys/kernel/btf/vmlinux"


class _Hook(NamedTuple):
    """What program.c relies on at one place.

    Attributes:
        parameters: Number of the function's parameters; None if only the first one matters.
        definitions: Members (``structure.member``) and page flags that are read there.
    """

    parameters: int | None
    definitions: tuple[str, ...]


_READ_AHEAD = ("readahead_control.file", "readahead_control.mapping", "readahead_control._index", "file.f_mapping")
_WRITE = ("kiocb.ki_filp", "file.f_mapping")
_FUNCTIONS = {
    "filemap_read": _Hook(3, ("kiocb.ki_pos",)),
    "filemap_splice_read": _Hook(5, ()),
    "page_cache_sync_ra": _Hook(2, _READ_AHEAD),
    "page_cache_async_ra": _Hook(3, _READ_AHEAD),
    "force_page_cache_ra": _Hook(2, _READ_AHEAD),
    "filemap_fault": _Hook(1, ("vm_fault.vma", "vm_area_struct.vm_file", "file.f_mapping")),
    # It took (file, iter, pos) before "fs: Use iocb in generic_perform_write" of 5.18.
    "generic_perform_write": _Hook(2, _WRITE),
    # It has gained parameters since 6.1.
    "iomap_file_buffered_write": _Hook(None, _WRITE),
}
_FOLIO = ("folio.flags", "folio.mapping", "folio.index", "folio.pages", "PG_head", "PG_swapbacked")
# With how many arguments each passes on.
_TRACEPOINTS = {"mm_filemap_add_to_page_cache": 1, "mm_filemap_delete_from_page_cache": 1}
# What tells a sampled page's file from all others.
_SAMPLES = (
    "kiocb.ki_filp",
    "file.f_mapping",
    "address_space.host",
    "inode.i_ino",
    "inode.i_generation",
    "inode.i_sb",
    "super_block.s_dev",
)
_SAMPLES_FAULTS = ("vm_fault.pgoff", "VM_FAULT_LOCKED")
_MAJOR = ("VM_FAULT_MAJOR",)
_GHOSTS = (*_MAJOR, "vm_fault.pgoff")
# What the age of memory is told by.
_AGES = (
    "damon_region.ar",
    "damon_region.nr_accesses",
    "page.compound_head",
    "page._mapcount",
    "folio.flags",
    "folio.mapping",
    "folio.index",
    "PG_lru",
    "PG_unevictable",
    "PG_swapbacked",
)
_AGES_TRACEPOINT = "damon_aggregated"
# One more came first before "mm/damon/core: remove 'struct target *' parameter from damon_aggregated" of 6.7.
_AGES_ARGUMENTS = 3
# The number of a large folio's pages, newest name first: "mm: rename _folio_nr_pages to _nr_pages" of 6.15.
_FOLIO_PAGES = ("_nr_pages", "_folio_nr_pages")
_ENUMERATIONS = ("pageflags", "vm_fault_reason")


class Probes:
    """What one kernel offers.

    Args:
        btf: The kernel's type information (`KERNEL_BTF`).

    Attributes:
        hooks: Names of the functions and tracepoints that will be hooked.
        missing: Those that program.c could use and this kernel does not have.

    Raises:
        BtfError: `btf` cannot be understood.
    """

    def __init__(self, btf: bytes) -> None:
        needed = {*_FOLIO, *_SAMPLES, *_SAMPLES_FAULTS, *_MAJOR, *_AGES}.union(
            *(hook.definitions for hook in _FUNCTIONS.values())
        )
        structures = {definition.partition(".")[0] for definition in needed if "." in definition}
        traced = map("btf_trace_{}".format, (*_TRACEPOINTS, _AGES_TRACEPOINT))
        types = Btf(btf, {*_FUNCTIONS, *structures, *_ENUMERATIONS, *traced})
        self._definitions = {definition: _look_up(types, definition) for definition in sorted(needed)}
        self.hooks = {name for name, hook in _FUNCTIONS.items() if self._is_usable(types, name, hook)}
        if self._are_known(_FOLIO):
            self.hooks.update(name for name, count in _TRACEPOINTS.items() if types.argument_count(name) == count)
        tells_ages = types.argument_count(_AGES_TRACEPOINT) == _AGES_ARGUMENTS
        self._page_bytes = types.size_bytes("page") if tells_ages else None
        self.missing = [name for name in (*_FUNCTIONS, *_TRACEPOINTS) if name not in self.hooks]

    def _is_usable(self, types: Btf, name: str, hook: _Hook) -> bool:
        count = types.parameter_count(name)
        return count is not None and hook.parameters in (count, None) and self._are_known(hook.definitions)

    def _are_known(self, definitions: tuple[str, ...]) -> bool:
        return all(self._definitions[definition] is not None for definition in definitions)

    @property
    def compiler_flags(self) -> list[str]:
        """What selects the parts of program.c: HAVE_<hook>, OFFSET_<structure>_<member>, VALUE_<flag>."""
        flags = [f"-DHAVE_{name}" for name in sorted(self.hooks)]
        for definition, value in self._definitions.items():
            prefix = "OFFSET_" if "." in definition else "VALUE_"
            if value is not None:
                flags.append(f"-D{prefix}{definition.replace('.', '_')}={value}")
        return flags

    @property
    def can_sample(self) -> bool:
        """Whether accesses can be sampled."""
        return "filemap_read" in self.hooks and self._are_known(_SAMPLES)

    def sampling_flags(self, salt: int) -> list[str]:
        """Return what more the compiler is told for samples to be taken; `salt` makes their keys unpredictable."""
        flags = ["-DSAMPLES", f"-DSAMPLE_SALT={salt:#x}ULL"]
        if "filemap_fault" in self.hooks and self._are_known(_SAMPLES_FAULTS):
            flags.append("-DSAMPLES_FAULTS")
        return flags

    @property
    def can_tell_ghosts(self) -> bool:
        """Whether it can be told how far evicted pages had gone when they came back."""
        return self.can_sample and {*_TRACEPOINTS, "filemap_fault"} <= self.hooks and self._are_known(_GHOSTS)

    @property
    def can_tell_ages(self) -> bool:
        """Whether this kernel's DAMON tells what it finds."""
        return self._page_bytes is not None and self._are_known(_AGES)

    def ages_flags(self, *, shift: int, frames: int, step_ms: int, vmemmap: int) -> list[str]:
        """Return what more the compiler is told for ages of memory to be kept.

        Args:
            shift: How many frames one stands for, as a power of two.
            frames: Number of blocks of so many up to the end of memory.
            step_ms: Time between two looks.
            vmemmap: Where the kernel keeps the address of its array of pages.
        """
        return [
            "-DAGES", f"-DAGES_SHIFT={shift}", f"-DAGES_FRAMES={frames}", f"-DAGES_STEP_NS={step_ms * 1_000_000}ULL",
            f"-DAGES_VMEMMAP={vmemmap:#x}ULL", f"-DSIZE_page={self._page_bytes}",
        ]  # fmt: skip

    @property
    def countable(self) -> set[str]:
        """Names of the counters that these hooks make exact; all others must stay absent."""
        counted = set()
        if "filemap_read" in self.hooks:
            counted.add("accesses")
        if "mm_filemap_delete_from_page_cache" in self.hooks:
            counted.add("evictions")
        if "filemap_fault" in self.hooks and self._are_known(_MAJOR):
            counted.add("faults_major")
        if "mm_filemap_add_to_page_cache" in self.hooks:
            # A miss is told from what a page fault reads ahead only if faults are hooked as well.
            if "filemap_fault" in self.hooks:
                counted.add("inserts_fault")
                if {"page_cache_sync_ra", "page_cache_async_ra"} <= self.hooks:
                    counted.add("inserts_read")
            if {"generic_perform_write", "iomap_file_buffered_write"} & self.hooks:
                counted.add("inserts_write")
            if {"inserts_fault", "inserts_read", "inserts_write"} <= counted:
                counted.add("inserts_other")
        return counted


def _look_up(types: Btf, definition: str) -> int | None:
    structure, _, member = definition.partition(".")
    if not member:
        values = (types.enumerator(enumeration, definition) for enumeration in _ENUMERATIONS)
        return next((value for value in values if value is not None), None)
    for name in _FOLIO_PAGES if definition == "folio.pages" else (member,):
        offset = types.member_offset(structure, name)
        if offset is not None:
            return offset
    return None
