"""The command ``microdb``: its version, its usage, and what reaches the user when something is wrong."""

import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

import microdb
from microdb import demo, repair
from microdb.cli import main
from microdb.demo import parent
from microdb.demo.report import Report

WAIT_S = 60


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"microdb {microdb.__version__}\n"


def test_python_dash_m_is_the_same_command():
    command = [sys.executable, "-m", "microdb", "--version"]
    output = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True).stdout
    assert output == f"microdb {microdb.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["demo", "--durability", "no"]],
)
def test_wrong_usage_exits_with_2_and_shows_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.startswith("usage: microdb")


@pytest.mark.parametrize("option", ["--workers", "--limit"])
@pytest.mark.parametrize("given", ["0", "-1", "x", "1.5", ""])
def test_what_is_no_number_of_things_is_refused_as_it_was_given(option, given, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["demo", option, given])
    assert exit_info.value.code == 2
    said = capsys.readouterr().err
    assert said.endswith(f"microdb demo: error: argument {option}: {given!r} is no whole number from 1 on\n")


@pytest.mark.parametrize("command", ["demo", "repair"])
def test_every_command_is_in_the_help_and_has_help_of_its_own(command, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"\n    {command} " in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    assert exit_info.value.code == 0
    usage, description, *_ = capsys.readouterr().out.split("\n\n")
    assert usage.startswith(f"usage: microdb {command} ")
    module = {"demo": demo, "repair": repair}[command]
    assert description.split() == module.__doc__.splitlines()[0].split()


def test_an_error_of_the_operating_system_is_one_line(tmp_path, capsys):
    assert main(["demo", "--limit", "1", "--path", str(tmp_path / ("x" * 300))]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("microdb: ")
    assert "File name too long" in line


@pytest.mark.parametrize("folder", ["no such folder", "a file"])
def test_a_database_that_has_no_folder_is_refused_before_anything_is_done(tmp_path, folder, capsys):
    (tmp_path / "a file").touch(mode=0o777)
    path = tmp_path / folder / "demo.json"
    assert main(["demo", "--limit", "1", "--path", str(path)]) == 2
    said = f"{path}: there is no folder for it that can be written to; make one, or name another file"
    assert capsys.readouterr().err == f"microdb demo: {said}\n"
    assert [file.name for file in tmp_path.iterdir()] == ["a file"]


def test_a_folder_that_cannot_be_written_to_is_no_place_for_a_database(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda folder, _: folder != str(tmp_path))
    assert main(["demo", "--limit", "1", "--path", str(tmp_path / "demo.json")]) == 2
    assert "there is no folder for it that can be written to" in capsys.readouterr().err


def test_a_file_without_a_folder_belongs_into_the_one_that_one_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--limit", "2", "--workers", "1", "--path", "demo.json"]) == 0
    assert (tmp_path / "demo.json").exists()


def test_importing_microdb_imports_no_command_and_no_extra():
    program = (
        "import sys, microdb; "
        "print([name for name in sys.modules if name.split('.')[0] in {'rich'}"
        " or name.startswith(('microdb.cli', 'microdb.demo'))])"
    )
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True).stdout
    assert output == "[]\n"


def test_a_second_ctrl_c_ends_the_demonstration_at_once_with_the_code_of_an_interrupt(tmp_path, monkeypatch):
    def interrupt_twice(_report, _outcome):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Report, "progressed", interrupt_twice)
    assert main(["demo", "--limit", "40", "--workers", "2", "--path", str(tmp_path / "demo.json")]) == 130
    assert multiprocessing.active_children() == []


def test_a_demonstration_that_fails_is_one_line_and_exits_with_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parent, "_SILENCE_S_MAX", 0)
    assert main(["demo", "--limit", "9", "--path", str(tmp_path / "demo.json")]) == 1
    assert capsys.readouterr().err == "microdb demo: no worker said anything for 0 s\n"
    assert multiprocessing.active_children() == []


def test_a_system_that_cannot_stop_a_process_is_told_so(tmp_path, monkeypatch, capsys):
    monkeypatch.delattr(signal, "SIGSTOP")
    assert main(["demo", "--path", str(tmp_path / "demo.json")]) == 2
    assert "which this system does not have" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
