"""Every mistake in a configuration is named with file, key and hint, and all of them at once."""

import re
from pathlib import Path

import pytest

from qmpalloc import config
from qmpalloc.errors import ConfigError
from qmpalloc.units import GIB, MIB

FILE = Path("/somewhere/lab.toml")
GUEST = """
[[guest]]
name = "{name}"
monitor = "{name}.qmp"
agent = "{name}.qga"
floor = "512MiB"
cap = "2GiB"
baseline = "1GiB"
"""
GOOD = '[host]\nbudget = "3GiB"\n' + GUEST.format(name="web") + GUEST.format(name="db")


def parsed(text):
    return config.parse(text, file=FILE)


def mistake(text):
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    return str(caught.value)


def test_a_good_file_with_its_defaults():
    loaded = parsed(GOOD)
    assert loaded.host.budget == 3 * GIB
    assert [guest.name for guest in loaded.guests] == ["web", "db"]
    assert loaded.guest("web").monitor == "/somewhere/web.qmp"
    assert loaded.guest("db").floor == 512 * MIB
    assert loaded.control.on_exit == "baseline"
    assert loaded.policy == "curve"


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("vm.sock", "/somewhere/vm.sock"),
        ("/run/vm:1/qmp", "/run/vm:1/qmp"),
        ("./vm:1", "/somewhere/vm:1"),
        ("./@web", "/somewhere/@web"),
        ("unix:vm.sock", "/somewhere/vm.sock"),
        ("unix:/run/vm.sock", "/run/vm.sock"),
        ("unix:///run/vm.sock", "/run/vm.sock"),
        ("~/vm.sock", "/home/me/vm.sock"),
        ("unix:~/vm.sock", "/home/me/vm.sock"),
        ("~root/vm.sock", "/root/vm.sock"),
        ("./~", "/somewhere/~"),
        ("a,b.qmp", "/somewhere/a,b.qmp"),
        ("a,identity.qmp", "/somewhere/a,identity.qmp"),
    ],
)
@pytest.mark.parametrize("key", ["monitor", "agent"])
def test_the_path_of_a_socket_in_the_forms_that_are_understood(monkeypatch, key, written, path):
    monkeypatch.setenv("HOME", "/home/me")
    loaded = parsed(GOOD.replace("web.qmp" if key == "monitor" else "web.qga", written))
    assert getattr(loaded.guest("web"), key) == path


@pytest.mark.parametrize(
    ("written", "says", "hint"),
    [
        ("tcp:127.0.0.1:4444", "TCP is not supported", "-qmp unix:PATH,server=on,wait=off"),
        ("tcp:localhost:4444,server=on,wait=off", "TCP is not supported", "-qmp unix:PATH"),
        ("telnet:localhost:4444", "TCP is not supported", "-qmp unix:PATH"),
        ("127.0.0.1:4444", "TCP is not supported", "or ./127.0.0.1:4444 if that is the name of a file"),
        ("[::1]:4444", "TCP is not supported", "-qmp unix:PATH"),
        (":4444", "TCP is not supported", "-qmp unix:PATH"),
        ("vsock:3:1234", "vsock is not supported", "anybody on this host"),
        ("udp:localhost:9", "UDP is not supported", "-qmp unix:PATH"),
        ("@web", "an abstract socket is not supported", "or ./@web if that is the name of a file"),
        ("unix:web.qmp,server=on,wait=off", "options of QEMU's", "write the path alone: web.qmp"),
        ("web.qmp,server,nowait", "options of QEMU's", "write the path alone: web.qmp"),
        ("socket,id=agent,path=/run/a,server=on", "options of QEMU's", "write the path alone: /run/a"),
        ("unix:", "names no socket", "unix:PATH"),
        ("~nobody-of-that-name/web.qmp", "no home directory is known for ~nobody-of-that-name", "write it out"),
    ],
)
@pytest.mark.parametrize("key", ["monitor", "agent"])
def test_what_is_no_path_of_a_socket_is_refused_by_its_name(key, written, says, hint):
    text = mistake(GOOD.replace("db.qmp" if key == "monitor" else "db.qga", written))
    assert f"guest[1].{key}: {written}" in text or f"guest[1].{key}: ~" in text
    assert says in text
    assert hint in text


def test_a_socket_that_two_guests_have_is_found_however_it_is_written():
    assert "already guest[0].monitor" in mistake(GOOD.replace("db.qmp", "unix:./web.qmp"))


def test_what_is_wrong_with_an_address_does_not_hide_other_mistakes():
    text = mistake(GOOD.replace("web.qmp", "tcp:localhost:1").replace('"3GiB"', '"1500MiB"'))
    assert "guest[0].monitor" in text
    assert "baselines add up" in text


def test_the_run_directory_may_be_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parsed(GOOD.replace('"3GiB"', '"3GiB"\nrun_dir = "~/run"')).host.run_dir == "/home/me/run"
    assert "host.run_dir" in mistake(GOOD.replace('"3GiB"', '"3GiB"\nrun_dir = "~nobody-of-that-name"'))


def test_policy_settings_are_passed_on_as_written():
    loaded = parsed(GOOD + '[policy]\nname = "paper"\nstep = "64MiB"\n')
    assert loaded.policy_settings == {"step": "64MiB"}


def test_a_guest_that_we_start_has_its_sockets_in_the_run_directory():
    text = GOOD.replace('budget = "3GiB"', 'budget = "3GiB"\nrun_dir = "here"').replace('monitor = "web.qmp"\n', "")
    loaded = parsed(text.replace('name = "web"\n', 'name = "web"\nvm = { memory = "2GiB" }\n'))
    assert loaded.guest("web").monitor == "/somewhere/here/web/monitor.sock"
    assert loaded.guest("web").agent == "/somewhere/web.qga"


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        (("budget", "bugdet"), "host.bugdet", "did you mean budget?"),
        (("[host]", "[hosts]"), "hosts", "unknown table"),
        (('"3GiB"', '"3"'), "host.budget", "no unit"),
        (('"3GiB"', "3000"), "host.budget", "no unit"),
        (('"3GiB"', '"3 elephants"'), "host.budget", "unknown unit 'elephants'"),
        (('budget = "3GiB"', ""), "host.budget", "missing"),
        (('floor = "512MiB"', 'floor = "3GiB"'), "guest[0].floor", "above the cap"),
        (('floor = "512MiB"', 'floor = "0B"'), "guest[0].floor", "must be above 0"),
        (
            ('"512MiB"\ncap = "2GiB"', '"1000B"\ncap = "4095B"'),
            "guest[0].floor",
            "no whole page of 4096",
        ),
        (('"512MiB"\ncap = "2GiB"', '"1073741825B"\ncap = "1073741825B"'), "guest[0].floor", "no whole page of 4096"),
        (('baseline = "1GiB"', 'baseline = "3GiB"'), "guest[0].baseline", "not between floor and cap"),
        (('baseline = "1GiB"', ""), "guest[0].baseline", "missing"),
        (('"3GiB"', '"900MiB"'), "host.budget", "floors add up to 1G"),
        (('"3GiB"', '"1500MiB"'), "host.budget", "baselines add up to 2G"),
        (('name = "db"', 'name = "web"'), "guest[1].name", "already guest[0].name"),
        (("db.qmp", "web.qmp"), "guest[1].monitor", "one client per socket"),
        (("db.qga", "./web.qga"), "guest[1].agent", "already guest[0].agent"),
        (("db.qmp", "db.qga"), "guest[1].agent", "already guest[1].monitor"),
        (('name = "db"', 'name = "../db"'), "guest[1].name", "is not a name"),
        (('name = "db"', 'name = "\\u001b[31m"'), "guest[1].name", "is not a name"),
        (("db.qmp", "x" * 120), "guest[1].monitor", "longer than a Unix socket path"),
        (('monitor = "db.qmp"', ""), "guest[1].monitor", "missing"),
        (('agent = "db.qga"', "agent = 7"), "guest[1].agent", "must be text in quotes, not a whole number"),
        (("[[guest]]", "[[gest]]"), "gest", "did you mean guest?"),
        ((GUEST.format(name="web") + GUEST.format(name="db"), ""), "guest", "add a [[guest]] table for each"),
        (("[host]", "[control]\ninterval = '0s'\n[host]"), "control.interval", "must be above 0"),
        (("[host]", "[control]\nlate_after = '30s'\n[host]"), "control.late_after", "below control.lost_after"),
        (
            ("[host]", "[control]\nsample_interval = '1h'\n[host]"),
            "control.late_after",
            "above control.sample_interval",
        ),
        (("[host]", "[control]\non_exit = 'explode'\n[host]"), "control.on_exit", "none of 'baseline', 'keep'"),
        (('"3GiB"', '"99999999999TiB"'), "host.budget", "too large"),
        (('name = "db"', 'name = "db"\nweight = nan'), "guest[1].weight", "no number"),
        (('name = "db"', 'name = "db"\nweight = -1.0'), "guest[1].weight", "must be above 0"),
        (("[host]", "[policy]\nname = 3\n[host]"), "policy.name", "must be text"),
        (("[host]", "host"), "", "not valid TOML"),
        (("[host]", "a = " + "[" * 9999), "", "nested too deeply"),
        (("web.qmp", r"web\u0000"), "guest[0].monitor", "holds a NUL"),
        (
            ('name = "db"', 'name = "db"\nweight = 1.0\nchannel = ["ssh", "a\\u0000"]'),
            "guest[1].channel[1]",
            "holds a NUL",
        ),
    ],
)
def test_a_mistake_is_named_with_file_key_and_hint(change, key, says):
    text = mistake(GOOD.replace(*change))
    assert str(FILE) in text
    assert key in text
    assert says in text


def test_floors_are_counted_rounded_up_and_baselines_rounded_down():
    tight = GOOD.replace('"3GiB"', '"1GiB"').replace('baseline = "1GiB"', 'baseline = "512MiB"')
    parsed(tight)
    parsed(tight.replace('baseline = "512MiB"', f'baseline = "{512 * MIB + 4095}B"'))
    two_bytes = tight.replace('floor = "512MiB"', f'floor = "{512 * MIB - 1}B"', 1)
    two_bytes = two_bytes.replace('floor = "512MiB"', f'floor = "{512 * MIB + 1}B"')
    text = mistake(two_bytes.replace('baseline = "512MiB"', f'baseline = "{512 * MIB + 1}B"'))
    assert "floors add up to 1G, the budget is 1G" in text
    assert "whole pages of 4096 bytes" in text


def test_the_cap_must_fit_the_guest_that_we_start():
    text = GOOD.replace('name = "web"\n', 'name = "web"\nvm = { memory = "1GiB" }\n')
    assert "guest[0].cap" in mistake(text)


@pytest.mark.parametrize(
    ("vm", "key", "says"),
    [
        ("cpus = 0", "guest[0].vm.cpus", "at least 1"),
        ('data = { size = "64MiB", files = { a = "60MiB" } }', "guest[0].vm.data.size", "the files need"),
        ('data = { size = "64MiB", files = { "../a" = "1MiB" } }', "guest[0].vm.data.files", "not a file name"),
        ('data = { size = "64MiB", files = { "lost+found" = "1MiB" } }', "guest[0].vm.data.files", "not a file name"),
        ('data = { size = "64MiB", iops = -1 }', "guest[0].vm.data.iops", "at least 0"),
        ('profile = "base", load = ["fio"]', "guest[0].vm.load", "starts no loads"),
        ('actuator = "dimm"', "guest[0].vm.actuator", "'balloon', 'virtio-mem'"),
    ],
)
def test_what_qmpalloc_could_not_start_is_named(vm, key, says):
    text = mistake(GOOD.replace('name = "web"\n', f'name = "web"\nvm = {{ memory = "2GiB", {vm} }}\n'))
    assert key in text
    assert says in text


def test_a_key_that_was_meant_is_not_also_missing():
    text = mistake(GOOD.replace("floor", "flor"))
    assert "did you mean floor?" in text
    assert "missing" not in text


def test_what_is_no_text_file(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file"):
        config.load(tmp_path / "binary.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        config.load(tmp_path)


def test_mistakes_in_nested_tables_carry_the_whole_path():
    text = GOOD.replace('name = "web"\n', 'name = "web"\nvm = { memory = "2GiB", data = { size = "x", speed = 1 } }\n')
    message = mistake(text)
    assert "guest[0].vm.data.size" in message
    assert "guest[0].vm.data.speed" in message


def test_several_mistakes_are_reported_together():
    message = mistake(GOOD.replace("budget", "bugdet").replace("512MiB", "512").replace("db.qga", "x" * 120))
    assert message.count("lab.toml:") == 3
    assert "host.bugdet" in message
    assert "guest[1].floor" in message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml: no such file"):
        config.load(tmp_path / "absent.toml")


def test_a_file_without_end_is_not_read_for_ever():
    with pytest.raises(ConfigError, match="longer than"):
        config.load("/dev/zero")


def test_the_mark_that_some_editors_write_before_the_text_is_left_out(tmp_path):
    (tmp_path / "lab.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert config.load(tmp_path / "lab.toml").host.budget == 3 * GIB


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_another_encoding_is_named(tmp_path, encoding):
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""  # the other one writes it itself
    (tmp_path / "lab.toml").write_bytes(mark + GOOD.encode(encoding))
    with pytest.raises(ConfigError, match="save it as UTF-8"):
        config.load(tmp_path / "lab.toml")


@pytest.mark.parametrize(("written", "size_bytes"), [("2G", 2 * GIB), ("1.5G", 3 * GIB // 2), ("1536M", 3 * GIB // 2)])
def test_a_size_as_the_screen_shows_it(written, size_bytes):
    assert parsed(GOOD.replace('cap = "2GiB"', f'cap = "{written}"')).guest("web").cap == size_bytes


def test_an_experiment_is_told_from_a_configuration():
    said = mistake('[experiment]\nname = "x"\n[[guest]]\nname = "web"\n')
    assert said == f"{FILE}: this is an experiment, not a configuration\n  hint: qmpalloc experiment run {FILE}"


def test_virtio_mem_needs_ram_to_boot_with():
    text = GOOD.replace('name = "web"\n', 'name = "web"\nvm = { memory = "2GiB", actuator = "virtio-mem" }\n')
    assert parsed(text).guests[0].vm.actuator == "virtio-mem"
    found = mistake(re.sub(r'floor = "[^"]*"', 'floor = "100MiB"', text, count=1))
    assert "guest[0].floor" in found
    assert "100M is less RAM than a guest boots with" in found
    assert 'actuator = "balloon"' in found
