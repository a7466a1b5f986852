"""KVM is chosen when a guest boots, not when a device exists; a hang, an end and a refusal are told apart."""

import sys
from pathlib import Path

import pytest

from qmpalloc.qemu import accelerator
from qmpalloc.qemu.accelerator import ProbeResult
from qmpalloc.qemu.image import Image, Manifest

BOOTS = ProbeResult(True, "a guest boots under KVM, in 1.1 s")
HANGS = ProbeResult(False, "a guest under KVM hangs without a word (4 s)")


@pytest.fixture
def image(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(accelerator, "kvm_usable", lambda: (True, ""))
    manifest = Manifest(
        suite="trixie", profile="lab", inputs_sha256="", rootfs_sha256="", kernel_release="6.12",
        kernel_arguments=(), source_date_epoch=0, packages=1, sizes_bytes={},
    )  # fmt: skip
    return Image(directory=Path("/cache/trixie-lab-012345"), manifest=manifest)


def no_probe(image):
    raise AssertionError("nothing is to be probed")


def test_a_guest_that_boots_means_kvm(image):
    chosen = accelerator.choose("auto", image, probe=lambda _: BOOTS)
    assert (chosen.name, chosen.warning) == ("kvm", "")


def test_a_guest_that_hangs_means_emulation_and_a_warning(image):
    chosen = accelerator.choose("auto", image, probe=lambda _: HANGS)
    assert chosen.name == "tcg"
    assert HANGS.reason in chosen.warning


def test_the_outcome_is_remembered(image):
    accelerator.choose("auto", image, probe=lambda _: HANGS)
    assert accelerator.choose("auto", image, probe=no_probe).name == "tcg"
    assert accelerator.choose("auto", image, probe=lambda _: BOOTS, refresh=True).name == "kvm"
    assert accelerator.expected("auto", image).name == "kvm"


def test_a_cache_that_cannot_be_written_keeps_nobody_from_it(image, tmp_path):
    (tmp_path / "qmpalloc").touch()
    assert accelerator.choose("auto", image, probe=lambda _: BOOTS).name == "kvm"


def test_another_image_is_another_question(image):
    accelerator.choose("auto", image, probe=lambda _: HANGS)
    other = Image(directory=Path("/cache/bookworm-lab-543210"), manifest=image.manifest)
    assert accelerator.choose("auto", other, probe=lambda _: BOOTS).name == "kvm"
    assert accelerator.choose("auto", image, probe=no_probe).name == "tcg"


def test_what_was_true_before_the_host_rebooted_is_forgotten(image, monkeypatch):
    monkeypatch.setattr(accelerator, "_boot_id", lambda: "former boot")
    accelerator.choose("auto", image, probe=lambda _: HANGS)
    monkeypatch.setattr(accelerator, "_boot_id", lambda: "this boot")
    assert accelerator.choose("auto", image, probe=lambda _: BOOTS).name == "kvm"
    assert len(accelerator._read()) == 1


def test_a_spoilt_memory_is_no_memory(image, tmp_path):
    (tmp_path / "qmpalloc").mkdir()
    (tmp_path / "qmpalloc" / "accelerator.json").write_text("{half")
    assert accelerator.choose("auto", image, probe=lambda _: BOOTS).name == "kvm"


def test_what_is_known_without_an_image_is_of_this_boot_and_the_best(image, monkeypatch):
    assert accelerator.known() is None
    accelerator.choose("auto", image, probe=lambda _: HANGS)
    assert accelerator.known() == HANGS
    other = Image(directory=Path("/cache/bookworm-lab-543210"), manifest=image.manifest)
    accelerator.choose("auto", other, probe=lambda _: BOOTS)
    assert accelerator.known() == BOOTS
    monkeypatch.setattr(accelerator, "_boot_id", lambda: "another boot")
    assert accelerator.known() is None


def test_what_the_user_says_is_not_questioned(image):
    assert accelerator.choose("kvm", image, probe=no_probe).name == "kvm"
    chosen = accelerator.choose("tcg", image, probe=no_probe)
    assert (chosen.name, chosen.warning) == ("tcg", "")


def test_without_the_device_nothing_is_probed(image, monkeypatch):
    monkeypatch.setattr(accelerator, "kvm_usable", lambda: (False, "this host has no /dev/kvm"))
    chosen = accelerator.choose("auto", image, probe=no_probe)
    assert chosen.name == "tcg"
    assert "no /dev/kvm" in chosen.warning


def test_a_dry_run_starts_nothing_and_says_what_is_not_known(image):
    assert "probe" in accelerator.expected("auto", image).reason


def test_the_devices_absence_is_named(tmp_path):
    assert accelerator.kvm_usable(tmp_path / "kvm") == (False, f"this host has no {tmp_path}/kvm")
    (tmp_path / "kvm").touch()
    assert accelerator.kvm_usable(tmp_path / "kvm") == (True, "")


def watched(program, *, silence_s=5.0, deadline_s=10.0):
    """Watch a stand-in for QEMU whose standard output is the guest's serial port."""
    return accelerator.watch_boot([sys.executable, "-uc", program], silence_s=silence_s, deadline_s=deadline_s)


def test_a_guest_that_switches_itself_off_has_booted():
    result = watched("print('Linux version'); print('reboot: Power', end=''); print(' down')")
    assert result.booted


def test_a_guest_that_falls_silent_hangs():
    result = watched("import time; print('Linux version'); time.sleep(60)", silence_s=0.5)
    assert not result.booted
    assert "hangs after 1 lines" in result.reason


def test_a_guest_that_never_says_a_word_hangs():
    result = watched("import time; time.sleep(60)", silence_s=0.3)
    assert "hangs without a word" in result.reason


def test_a_guest_that_talks_for_ever_does_not_boot():
    result = watched("import time\nwhile True: print('x'); time.sleep(0.01)", deadline_s=0.5)
    assert not result.booted


def test_a_qemu_that_ends_gives_its_last_words():
    result = watched("import sys; sys.exit('qemu: \\x1b[0mkvm failed')")
    assert not result.booted
    assert "(qemu: ?[0mkvm failed)" in result.reason


def test_a_missing_qemu_is_no_crash():
    assert not accelerator.watch_boot(["no-such-qemu"], silence_s=1, deadline_s=1).booted
