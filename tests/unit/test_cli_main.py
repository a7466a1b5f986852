"""Errors become words and exit codes in one place; a command that is missing or broken does not harm the others."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import qmpalloc
from qmpalloc import cli
from qmpalloc.cli import Entry
from qmpalloc.errors import ConfigError, HostError, RefusedError


@pytest.fixture
def failing(monkeypatch):
    """Returns a function that runs a command which raises what it is given."""

    def run(error, *args):
        @click.command()
        def command():
            if isinstance(error, BaseException):
                raise error
            return error

        monkeypatch.setattr(cli.Program, "get_command", lambda self, ctx, name: command if name == "run" else None)
        return CliRunner().invoke(cli.main, [*args, "run"])

    return run


def test_help_lists_every_command_without_importing_one():
    program = (
        "import sys\nfrom qmpalloc.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted(name for name in sys.modules if name == 'trio' or name.startswith('qmpalloc.')))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert all(f"  {name} " in output for name in cli.COMMANDS)
    assert output.splitlines()[-1] == "['qmpalloc.cli', 'qmpalloc.cli.streams', 'qmpalloc.errors']"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command_imports_nothing_that_takes_long(command):
    program = (
        "import sys\nfrom qmpalloc.cli import main\n"
        f"try: main(['{command}', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'trio', 'numpy', 'rich', 'asyncio', 'qemu'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"


def test_a_command_whose_module_is_missing_is_named_and_the_others_work(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "demo", Entry("qmpalloc.cli.no_such_module:demo", "Gone."))
    result = CliRunner().invoke(cli.main, ["demo"])
    assert result.exit_code == 2
    assert "the command demo is not part of this installation" in result.output
    assert CliRunner().invoke(cli.main, ["image", "--help"]).exit_code == 0


def test_an_import_error_inside_a_command_is_not_hidden(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError("no module named elsewhere", name="elsewhere")

    monkeypatch.setattr(cli.importlib, "import_module", broken)
    result = CliRunner().invoke(cli.main, ["image"])
    assert isinstance(result.exception, ModuleNotFoundError)


def test_an_error_is_one_line_and_a_hint(failing):
    result = failing(HostError("mke2fs is missing", hint="apt install e2fsprogs"))
    assert result.stderr == "error: mke2fs is missing\nhint: apt install e2fsprogs\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (3, 3),
        (HostError("x"), 1),
        (RefusedError("x", command="balloon", error_class="DeviceNotActive"), 1),
        (ConfigError("x"), 2),
        (click.UsageError("x"), 2),
        (KeyboardInterrupt(), 130),
        (ExceptionGroup("x", [HostError("a")]), 1),
        (ExceptionGroup("x", [HostError("a"), ExceptionGroup("y", [ConfigError("b")])]), 2),
        (BaseExceptionGroup("x", [HostError("a"), KeyboardInterrupt()]), 130),
        (BrokenPipeError(), 1),
    ],
)
def test_exit_codes(failing, error, code):
    assert failing(error).exit_code == code


def test_every_error_of_a_group_is_shown(failing):
    result = failing(ExceptionGroup("x", [HostError("one"), HostError("two")]))
    assert result.stderr == "error: one\nerror: two\n"


def test_what_an_error_quotes_does_nothing_to_a_terminal(failing):
    output = failing(ConfigError("\x1b[2J\u202e: unknown key\nand " + "x" * 5000, hint="\x07")).output
    lines = output.splitlines()
    assert lines[0] == "error: ?[2J?: unknown key"
    assert (len(lines[1]), lines[2]) == (cli.SHOWN_CHARS, "hint: ?")


def test_debug_shows_where_an_error_comes_from(failing):
    result = failing(HostError("x"), "--debug")
    assert isinstance(result.exception, HostError)


def test_a_bug_of_ours_is_not_dressed_up(failing):
    assert isinstance(failing(ZeroDivisionError()).exception, ZeroDivisionError)
    assert isinstance(failing(ExceptionGroup("x", [HostError("a"), ValueError()])).exception, ExceptionGroup)


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_no_color_is_respected(monkeypatch, no_color, coloured):
    monkeypatch.setenv("NO_COLOR", no_color)

    @click.command()
    def command():
        click.echo(click.style("x", fg="red"))

    monkeypatch.setattr(cli.Program, "get_command", lambda self, ctx, name: command)
    assert ("\x1b[31m" in CliRunner().invoke(cli.main, ["run"], color=True).stdout) is coloured


@pytest.mark.parametrize(
    ("words", "completed"),
    [("qmpalloc wa", "plain,watch"), ("qmpalloc watch --du", "plain,--duration"), ("qmpalloc run la", "file,la")],
)
def test_a_shell_completes_commands_options_and_files(words, completed):
    asked = {"_QMPALLOC_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    program = "import sys; sys.argv[0] = 'qmpalloc'; from qmpalloc.__main__ import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert result.stdout.splitlines() == [completed], result.stderr


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version(option):
    result = CliRunner().invoke(cli.main, [option])
    assert result.exit_code == 0
    assert result.stdout == f"qmpalloc {qmpalloc.__version__}\n"


def test_a_file_that_is_not_there_hints_at_examples_that_are(tmp_path):
    error = CliRunner().invoke(cli.main, ["doctor", str(tmp_path / "gone.toml")], standalone_mode=False).exception
    assert "qmpalloc init" in error.hint
    assert (Path(error.hint.rpartition(" ")[2]) / "demo.toml").is_file()


def test_an_unknown_command_is_a_usage_error():
    result = CliRunner().invoke(cli.main, ["nonsense"])
    assert result.exit_code == 2
    assert "No such command" in result.output
