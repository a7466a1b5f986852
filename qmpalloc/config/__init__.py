"""The configuration file: TOML in, frozen values out. Format: ``docs/configuration.md``.

Relative paths are relative to the file. Values are plain numbers: sizes in bytes, durations in seconds.
"""

from qmpalloc.config.convert import convert
from qmpalloc.config.keys import Duration, Size
from qmpalloc.config.origin import Origin
from qmpalloc.config.reading import load, parse
from qmpalloc.config.schema import (
    DEFAULT_COUNTERS_FILE,
    DISK_OVERHEAD_BYTES,
    Config,
    ControlConfig,
    DataDiskConfig,
    DataSource,
    GuestConfig,
    HostConfig,
    ImageConfig,
    KernelFiles,
    VmConfig,
    default_run_dir,
)

__all__ = [
    "DEFAULT_COUNTERS_FILE",
    "DISK_OVERHEAD_BYTES",
    "Config",
    "ControlConfig",
    "DataDiskConfig",
    "DataSource",
    "Duration",
    "GuestConfig",
    "HostConfig",
    "ImageConfig",
    "KernelFiles",
    "Origin",
    "Size",
    "VmConfig",
    "convert",
    "default_run_dir",
    "load",
    "parse",
]
