"""The data disk is named by what it holds, its files are the same each time, and they hold no zeros."""

from qmpalloc.config import DataDiskConfig, Size
from qmpalloc.qemu import data_disk
from qmpalloc.units import MIB


def config(size=64 * MIB, **files):
    return DataDiskConfig(size=Size(size), files={name: Size(value) for name, value in files.items()})


def test_the_name_follows_the_content_only():
    configs = [config(), config(65 * MIB), config(a=MIB), config(a=2 * MIB), config(b=MIB)]
    assert len({data_disk.data_disk_dir(each) for each in configs}) == len(configs)
    throttled = DataDiskConfig(size=Size(64 * MIB), iops=100)
    assert data_disk.data_disk_dir(throttled) == data_disk.data_disk_dir(config())


def test_noise_is_the_same_each_time_and_no_block_is_like_another(tmp_path):
    for name in ("a", "b"):
        data_disk.write_noise(tmp_path / name, 3 * MIB + 5, seed="x")
    content = (tmp_path / "a").read_bytes()
    assert content == (tmp_path / "b").read_bytes()
    assert len(content) == 3 * MIB + 5
    blocks = [content[start : start + 4096] for start in range(0, len(content), 4096)]
    assert len(set(blocks)) == len(blocks)
    assert bytes(4096) not in blocks
