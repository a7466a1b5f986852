"""The command line of a guest: what must be in it, that a shell reads it as we do, and that it explains itself."""

import shlex
import subprocess
from pathlib import Path

import msgspec
import pytest

from qmpalloc.config import DataDiskConfig, GuestConfig, Size, VmConfig
from qmpalloc.errors import ConfigError
from qmpalloc.qemu import argv
from qmpalloc.qemu.accelerator import Accelerator
from qmpalloc.qemu.data_disk import DataDisk
from qmpalloc.qemu.image import Image, Manifest
from qmpalloc.units import GIB, MIB

TCG = Accelerator(name="tcg", reason="this is a test")
KVM = Accelerator(name="kvm", reason="a guest boots")


def image(profile="lab", directory="/cache/images/trixie-lab-0123456789ab", arch="amd64"):
    manifest = Manifest(
        suite="trixie", profile=profile, inputs_sha256="", rootfs_sha256="", kernel_release="6.12-cloud",
        kernel_arguments=("root=LABEL=x", "console=ttyS0"), source_date_epoch=0, packages=1, sizes_bytes={}, arch=arch,
    )  # fmt: skip
    return Image(directory=Path(directory), manifest=manifest)


def guest(**vm):
    settings = {"memory": Size(2 * GIB)} | vm
    run = "/run/user/1000/qmpalloc/web"
    return GuestConfig(
        name="web", monitor=f"{run}/monitor.sock", agent=f"{run}/agent.sock",
        floor=Size(GIB), cap=Size(2 * GIB), baseline=Size(GIB), vm=VmConfig(**settings),
    )  # fmt: skip


def built(config=None, *, profile="lab", disk=None, accelerator=TCG, die_with_parent=True, arch="amd64", **where):
    config = config or guest()
    return argv.build(
        config,
        image=image(profile, arch=arch, **where),
        data_disk=disk,
        accelerator=accelerator,
        sockets=argv.sockets_of(config, Path("/run/user/1000/qmpalloc")),
        die_with_parent=die_with_parent,
    )


def values(command, option):
    words = command.argv()
    return [words[index + 1] for index, word in enumerate(words) if word == option]


def test_the_whole_command_line():
    """The one golden test; a change of any option is to be seen here."""
    run = "/run/user/1000/qmpalloc/web"
    images = "/cache/images/trixie-lab-0123456789ab"
    assert built(guest(cpus=2)).argv() == [
        "setpriv", "--pdeathsig", "TERM", "qemu-system-x86_64",
        "-name", "guest=web,debug-threads=on",
        "-no-user-config", "-nodefaults", "-display", "none", "-machine", "q35",
        "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "size=2048M", "-no-reboot",
        "-kernel", f"{images}/vmlinuz", "-initrd", f"{images}/initrd.img", "-append", "root=LABEL=x console=ttyS0",
        "-drive", f"id=root,if=none,format=raw,snapshot=on,cache=unsafe,file={images}/root.ext4",
        "-device", "virtio-blk-pci,drive=root,serial=root",
        "-device",
        "virtio-balloon-pci,id=balloon0,deflate-on-oom=on,free-page-reporting=on,guest-stats-polling-interval=1",
        "-qmp", f"unix:{run}/monitor.sock,server=on,wait=off",
        "-qmp", f"unix:{run}/people.sock,server=on,wait=off",
        "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,path={run}/agent.sock,server=on,wait=off",
        "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
        "-chardev", f"socket,id=lab,path={run}/lab.sock,server=on,wait=off",
        "-device", "virtserialport,chardev=lab,name=org.qmpalloc.lab.0",
        "-chardev",
        f"socket,id=console,path={run}/console.sock,server=on,wait=off,logfile={run}/console.log,logappend=off",
        "-serial", "chardev:console",
    ]  # fmt: skip


def test_what_differs_with_another_architecture():
    """All else of the golden command line is the same."""
    before, after = built().argv(), built(arch="arm64").argv()
    assert len(before) == len(after)
    assert [(old, new) for old, new in zip(before, after, strict=True) if old != new] == [
        ("qemu-system-x86_64", "qemu-system-aarch64"),
        ("q35", "virt,gic-version=max"),
        ("max", "max,pauth-impdef=on"),
    ]
    assert "ttyAMA0 in the guest" in built(arch="arm64").shell()
    assert values(built(arch="arm64", accelerator=KVM), "-cpu") == ["host"]


def test_the_base_profile_has_no_port_to_execute_through():
    text = " ".join(built(profile="base").argv())
    assert "lab.sock" not in text
    assert "org.qmpalloc.lab.0" not in text


def test_no_drive_of_ours_is_ever_written():
    data = DataDiskConfig(size=Size(GIB))
    command = built(guest(data=data), disk=DataDisk(file=Path("/cache/data/x/data.ext4"), direct=True))
    drives = values(command, "-drive")
    assert len(drives) == 2
    assert all("snapshot=on" in drive for drive in drives)


def test_the_data_disk_is_read_around_the_hosts_cache_and_throttled():
    config = guest(data=DataDiskConfig(size=Size(GIB), iops=500))
    direct = built(config, disk=DataDisk(file=Path("/cache/data.ext4"), direct=True))
    assert "cache=none" in values(direct, "-drive")[1]
    assert values(direct, "-drive")[1].endswith(",throttling.iops-total=500")


def test_without_direct_io_the_reason_says_so():
    config = guest(data=DataDiskConfig(size=Size(GIB)))
    command = built(config, disk=DataDisk(file=Path("/cache/data.ext4"), direct=False))
    assert "cache=writeback" in values(command, "-drive")[1]
    assert "throttling" not in values(command, "-drive")[1]
    assert "has no O_DIRECT" in command.shell().replace("\n#       ", " ")


def test_kvm_takes_the_hosts_cpu():
    assert values(built(accelerator=KVM), "-accel") == ["kvm"]
    assert values(built(accelerator=KVM), "-cpu") == ["host"]


def test_a_guest_that_is_left_running_is_not_tied_to_us():
    assert built(die_with_parent=False).argv()[0] == "qemu-system-x86_64"


def test_virtio_mem_in_place_of_a_balloon():
    command = built(guest(actuator="virtio-mem", memory=Size(1500 * MIB)))
    assert values(command, "-m") == ["size=1024M,maxmem=1536M"]  # its floor, and whole blocks of 128 MiB
    assert values(command, "-object") == ["memory-backend-ram,id=plugged,size=512M,reserve=off"]
    assert "virtio-mem-pci,id=virtiomem0,memdev=plugged,requested-size=0" in values(command, "-device")
    assert not any("balloon" in device for device in values(command, "-device"))
    assert values(command, "-append")[0].endswith(" memhp_default_state=online_movable swiotlb=noforce")


def test_memory_that_is_no_whole_mebibyte():
    assert values(built(guest(memory=Size(768 * MIB + 4096))), "-m") == ["size=786436K"]


def test_a_guest_of_the_users_own_is_not_built():
    with pytest.raises(ConfigError, match="not started by qmpalloc"):
        built(msgspec.structs.replace(guest(), vm=None))


@pytest.mark.parametrize("directory", ["/plain", "/with space/and 'quote'", "/with,comma/$HOME/`x`/*"])
def test_a_shell_reads_it_as_we_do(directory):
    command = built(directory=directory, disk=DataDisk(file=Path(directory) / "d", direct=True))
    # Python's shlex knows no continued lines. A real shell does, and prints the words here instead of running them.
    assert shlex.split(command.shell().replace("\\\n", ""), comments=True) == command.argv()
    script = command.shell().replace("\nsetpriv", "\nprintf '%s\\n' setpriv", 1)
    printed = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == command.argv()


def test_a_comma_in_a_path_is_doubled_for_qemu():
    command = built(directory="/a,b")
    assert values(command, "-drive")[0].endswith("file=/a,,b/root.ext4")
    assert values(command, "-kernel") == ["/a,b/vmlinuz"]


def test_every_option_has_a_reason():
    options = [option for group in built().groups for option in group.options]
    assert all(option.why for option in options)
    text = built().shell()
    assert all(f"#   {shlex.join(option.words)}\n#       " in text for option in options)
