"""The data disk is named by what it holds, its files are the same each time, and they hold no zeros."""

import subprocess

import pytest

from qmpalloc.config import DataDiskConfig, Origin, Size
from qmpalloc.errors import ConfigError
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


@pytest.fixture
def beside(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "fill.sh").write_text('mkdir rows; for n in 1 2 3; do echo "$n $1 $(cat "$2")" > rows/$n; done\n')
    (tmp_path / "words.txt").write_text("hello\n")
    return tmp_path


def of(beside, size=0, files=(), **source):
    noise = {name: Size(MIB) for name in files}
    return DataDiskConfig(
        size=Size(size), files=noise, origin=Origin(str(beside / "x.toml"), "guest[0].data"), **source
    )


def inside(disk, command):
    return subprocess.run(["debugfs", "-R", command, disk], capture_output=True, text=True, check=True).stdout


def test_a_script_fills_a_disk_that_is_as_large_as_that_needs(beside):
    wanted = of(beside, build=("fill.sh", "40", "words.txt"), files=("noise",))
    made = data_disk.obtain_data_disk(wanted)
    assert inside(made.file, "cat rows/3") == "3 40 hello\n"
    assert "noise" in inside(made.file, "ls /")
    assert 2 * MIB < made.file.stat().st_size < 64 * MIB
    assert [path.name for path in made.file.parent.iterdir()] == ["data.ext4"]


def test_a_disk_of_many_small_files_has_room_for_each(beside):
    (beside / "fill.sh").write_text("for n in $(seq 3000); do echo $n > $n; done\n")
    made = data_disk.obtain_data_disk(of(beside, build=("fill.sh",)))
    assert inside(made.file, "cat 3000") == "3000\n"


def test_a_disk_is_another_when_its_script_a_word_or_a_file_it_reads_is(beside):
    def name(*build):
        return data_disk.data_disk_dir(of(beside, build=build))

    first = name("fill.sh", "40", "words.txt")
    assert name("fill.sh", "40", "words.txt") == first
    assert name("fill.sh", "41", "words.txt") != first
    (beside / "words.txt").write_text("goodbye\n")
    second = name("fill.sh", "40", "words.txt")
    (beside / "fill.sh").write_text("echo > x")
    assert len({first, second, name("fill.sh", "40", "words.txt")}) == 3


@pytest.mark.parametrize(
    ("script", "message", "hint"),
    [
        (
            "echo rows; echo no such table; exit 3",
            "fill.sh failed; its last lines:\n    rows\n    no such table",
            "host",
        ),
        ("echo 'write: No space left on device'; exit 1", "No space left", "free some space"),
        ("true", "fill.sh has made no file", "fill the directory"),
        ("echo > noise", "makes noise, which is also a file of noise", "rename one"),
    ],
)
def test_a_script_that_does_not_do_is_named_and_leaves_nothing(beside, script, message, hint):
    (beside / "fill.sh").write_text(script)
    with pytest.raises(ConfigError, match=message) as caught:
        data_disk.obtain_data_disk(of(beside, build=("fill.sh",), files=("noise",)))
    assert (caught.value.file, caught.value.key) == (str(beside / "x.toml"), "guest[0].data.build")
    assert hint in caught.value.hint
    assert not [path for path in (beside / "cache/qmpalloc/data").iterdir() if path.is_dir()]


@pytest.mark.parametrize("source", [{"build": ("none.sh",)}, {"image": "none.img"}])
def test_a_file_that_is_not_there_is_known_before_anything_is_made(beside, source):
    with pytest.raises(ConfigError, match=r"none\.\w+: No such file") as caught:
        data_disk.data_disk_dir(of(beside, **source))
    assert caught.value.key == f"guest[0].data.{next(iter(source))}"


def test_what_does_not_fit_is_told_at_the_size(beside):
    (beside / "fill.sh").write_text("head -c 9000000 /dev/urandom > rows")
    with pytest.raises(ConfigError, match="does not fit into 4M") as caught:
        data_disk.obtain_data_disk(of(beside, size=4 * MIB, build=("fill.sh",)))
    assert caught.value.key == "guest[0].data.size"


@pytest.fixture
def user_image(beside):
    (beside / "tree").mkdir()
    (beside / "tree" / "rows").write_text("rows\n")
    file = beside / "my data.img"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", beside / "tree", file, "8M"], check=True)
    return file


def test_a_file_system_of_the_users_is_copied_named_and_given_the_noise(beside, user_image):
    before = user_image.read_bytes()
    made = data_disk.obtain_data_disk(of(beside, image=user_image.name, files=("noise",)))
    assert inside(made.file, "cat rows") == "rows\n"
    assert inside(made.file, "stat noise").count(f"Size: {MIB}") == 1
    label = subprocess.run(["e2label", made.file], capture_output=True, text=True, check=True).stdout.strip()
    assert label == data_disk.LABEL
    assert made.file.stat().st_size >= 8 * MIB + MIB
    assert user_image.read_bytes() == before
    subprocess.run(["e2fsck", "-n", "-f", made.file], check=True, capture_output=True)


def test_another_file_system_is_another_disk(beside, user_image):
    first = data_disk.data_disk_dir(of(beside, image=user_image.name))
    assert data_disk.data_disk_dir(of(beside, image=user_image.name)) == first
    subprocess.run(["e2label", user_image, "other"], check=True)
    assert data_disk.data_disk_dir(of(beside, image=user_image.name)) != first


def test_a_file_system_that_no_guest_mounts_is_refused(beside):
    with pytest.raises(ConfigError, match=r"words\.txt is not an ext4 file system") as caught:
        data_disk.data_disk_dir(of(beside, image="words.txt"))
    assert "qemu-img convert" in caught.value.hint
