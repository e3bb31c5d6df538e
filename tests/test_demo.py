"""The demonstration: what it indexes, how it judges, and whole runs with real processes, one of them killed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import types
from types import CodeType

import pytest

from microdb import MicroDB
from microdb.demo.crew import CrewMember
from microdb.demo.index import PARTITION_KEYS, Module, find_modules, index_file, index_source, key_of
from microdb.demo.interrupt import interrupt_as_message
from microdb.demo.parent import Parent
from microdb.demo.report import Report
from microdb.demo.result import DemoError, Kill, Outcome, Plan
from microdb.demo.scenario import play
from microdb.demo.verify import verify
from microdb.demo.worker import Failed, Finished, Order, Tally, Task, Unreadable, work

WAIT_S = 60

SOURCE = textwrap.dedent(
    """
    import functools

    @functools.cache
    @other(
        1,
    )
    def f(x):
        async def g():
            class C:
                def m(self): ...
            return C
        return g

    class A:
        if x:
            @property
            async def p(self):
                return 1
        class B:
            pass

    try:
        def late(): ...
    except Exception:
        def late():
            global lifted
            def lifted(): ...
    """
).lstrip()


class Silent:
    """An observer that looks away."""

    def progressed(self, outcome):
        pass

    def killed(self, kill):
        pass


class Murderer(Silent):
    """An observer that kills a worker behind the parent's back, once."""

    done = False

    def progressed(self, outcome):
        if not self.done:
            self.done = True
            multiprocessing.active_children()[0].kill()


def played(plan, observer):
    with interrupt_as_message() as interrupt:
        return play(plan, observer, interrupt)


def demo(*arguments, cwd):
    """A running demonstration: in a process group of its own, and with `cwd` as the place of its temporary folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "microdb", "demo", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(cwd), "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )


def wait_for_line(process, beginning):
    for line in process.stdout:
        if line.startswith(beginning):
            return line
    raise AssertionError(f"the demonstration ended before it said {beginning!r}: {process.stderr.read()}")


def wait_for_end(process):
    """Exit code, rest of the output and errors. Every process that it started is gone, for they share its output."""
    output, errors = process.communicate(timeout=WAIT_S)
    return process.returncode, output, errors


def row(output, name):
    """The value that the table gives for `name`."""
    (line,) = [line for line in output.splitlines() if line.startswith(f"│ {name} ")]
    return line.split("│")[2].strip()


def source_files(folder, count, definitions=30):
    for number in range(count):
        text = "".join(f"def f{line}(): ...\n" for line in range(definitions))
        (folder / f"m{number}.py").write_text(text)
    return find_modules(str(folder))


@pytest.fixture
def plan(tmp_path):
    def make(modules, workers=2, seed=1):
        return Plan(str(tmp_path / "demo.json"), modules, workers, seed, "process")

    return make


# Indexing


def test_each_definition_becomes_one_record_in_the_order_in_which_they_begin():
    found = [(r["name"], r["kind"], r["line"], r["length"]) for r in index_source(SOURCE, "m")]
    assert found == [
        ("f", "function", 3, 10),
        ("f.<locals>.g", "function", 8, 4),
        ("f.<locals>.g.<locals>.C", "class", 9, 2),
        ("f.<locals>.g.<locals>.C.m", "method", 10, 1),
        ("A", "class", 14, 7),
        ("A.p", "method", 16, 3),
        ("A.B", "class", 19, 2),
        ("late", "function", 23, 1),
        ("late", "function", 25, 3),
        ("lifted", "function", 27, 1),
    ]


def test_a_record_names_its_module_and_has_no_other_fields():
    assert index_source("def f(): ...", "a.b") == [
        {"module": "a.b", "name": "f", "kind": "function", "line": 1, "length": 1}
    ]


def test_names_and_lines_are_those_that_the_compiler_gives():
    def compiled(code):
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                if not constant.co_name.startswith("<"):  # A lambda or a comprehension is no definition.
                    yield constant.co_qualname, constant.co_firstlineno
                yield from compiled(constant)

    for module in find_modules()[::20]:
        with open(module.path, "rb") as file:
            code = compile(file.read(), module.path, "exec", dont_inherit=True)
        indexed = {(record["name"], record["line"]) for record in index_file(module)}
        assert indexed >= set(compiled(code)), module.name


@pytest.mark.parametrize("source", [b"def f(:", b"# coding: nonsense\n", b"x = '\xff'"])
def test_source_that_does_not_parse_or_decode_raises(source):
    with pytest.raises(SyntaxError):
        index_source(source, "m")


def test_modules_are_named_as_they_are_imported_and_tests_are_left_out(tmp_path):
    for name in ["a.py", "p/__init__.py", "p/q.py", "both.py", "both/__init__.py", "test/t.py", "p/tests/t.py"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "p" / "data.txt").touch()
    modules = find_modules(str(tmp_path))
    assert [module.name for module in modules] == ["a", "both", "p", "p.q"]
    assert modules[1].path == str(tmp_path / "both" / "__init__.py")


def test_the_standard_library_is_found():
    names = {module.name for module in find_modules()}
    assert {"json", "json.decoder", "dataclasses"} <= names
    assert not [name for name in names if "test" in name.split(".") or "site-packages" in name]


# Verification

ACKNOWLEDGED = {("m", "f"): {"line": 1}, ("m", "g"): {"line": 2}}


def test_a_table_as_it_was_acknowledged_is_good():
    verdict = verify(ACKNOWLEDGED, dict(ACKNOWLEDGED))
    assert verdict.good
    assert verdict.lost == 0
    assert verdict.lines() == []


def test_a_removed_record_is_missing():
    verdict = verify(ACKNOWLEDGED, {("m", "f"): {"line": 1}})
    assert not verdict.good
    assert verdict.lost == 1
    assert verdict.lines() == ["missing: m g"]


def test_a_changed_record_is_different():
    verdict = verify(ACKNOWLEDGED, {("m", "f"): {"line": 1}, ("m", "g"): {"line": 3}})
    assert verdict.lost == 1
    assert verdict.lines() == ["different: m g"]


def test_a_record_that_nobody_acknowledged_is_unexpected_but_not_lost():
    verdict = verify(ACKNOWLEDGED, {**ACKNOWLEDGED, ("m", "h"): {"line": 3}})
    assert not verdict.good
    assert verdict.lost == 0
    assert verdict.lines() == ["unexpected: m h"]


def test_a_record_that_a_killed_writer_had_in_flight_is_good():
    stored = {**ACKNOWLEDGED, ("m", "g"): {"line": 3}, ("m", "h"): {"line": 4}}
    assert verify(ACKNOWLEDGED, stored, in_flight=[{"line": 3}, {"line": 4}]).good


# Runs within this process


def test_all_definitions_are_stored_and_one_worker_is_killed(tmp_path, plan):
    modules = source_files(tmp_path, count=12)
    outcome = played(plan(modules), Silent())
    assert outcome.good
    assert (outcome.modules, outcome.records) == (12, 360)
    assert outcome.acknowledged >= 360
    assert outcome.kill is not None
    assert outcome.repairs == outcome.kill.in_mid_write
    with MicroDB(tmp_path / "demo.json", PARTITION_KEYS) as mdb:
        assert {key_of(record) for record in mdb.all()} == {
            key_of(record) for module in modules for record in index_file(module)
        }


def test_modules_that_do_not_parse_are_named_and_the_others_are_stored(tmp_path, plan):
    (tmp_path / "broken.py").write_text("def f(:")
    (tmp_path / "null.py").write_text("\0")
    outcome = played(plan(source_files(tmp_path, count=4)), Silent())
    assert sorted(outcome.unreadable) == ["broken", "null"]
    assert outcome.good
    assert outcome.modules == 6


def test_without_enough_work_nobody_is_killed(tmp_path, plan):
    (tmp_path / "empty.py").touch()
    outcome = played(plan(find_modules(str(tmp_path)), workers=4), Silent())
    assert outcome.kill is None
    assert outcome.good


def test_a_worker_that_dies_by_itself_fails_the_run(tmp_path, plan):
    with pytest.raises(DemoError, match="died by itself"):
        played(plan(source_files(tmp_path, count=40)), Murderer())
    assert multiprocessing.active_children() == []


def test_a_worker_that_raises_fails_the_run_with_its_traceback(plan):
    with pytest.raises(DemoError, match="TypeError"):
        played(plan([Module("m", None)]), Silent())


# Runs of the command


def test_the_demonstration_loses_nothing_and_cleans_up(tmp_path):
    code, output, errors = wait_for_end(demo("--limit", 20, "--seed", 7, cwd=tmp_path))
    assert (code, errors) == (0, "")
    assert output.startswith("seed 7, 4 workers, 20 modules, durability process\ndatabase ")
    assert row(output, "workers") == "4"
    assert row(output, "lost") == "0"
    assert row(output, "unexpected") == "0"
    assert row(output, "wrong reads") == "0"
    assert row(output, "killed in mid-write") in {"yes", "no"}
    assert os.listdir(tmp_path) == []


def test_a_database_named_by_the_user_is_kept(tmp_path):
    path = tmp_path / "kept.json"
    code, output, _ = wait_for_end(
        demo("--limit", 5, "--workers", 2, "--path", path, "--durability", "power", cwd=tmp_path)
    )
    assert code == 0
    with MicroDB(path, PARTITION_KEYS) as mdb:
        assert f"{len(mdb):,}" == row(output, "records")


def test_a_temporary_folder_is_kept_if_told(tmp_path):
    code, _, _ = wait_for_end(demo("--limit", 2, "--keep", cwd=tmp_path))
    (folder,) = tmp_path.iterdir()
    assert code == 0
    assert (folder / "stdlib.json").exists()


def test_a_record_that_a_stranger_changed_meanwhile_is_named_and_fails_the_run(tmp_path):
    path = tmp_path / "demo.json"
    process = demo("--limit", 100, "--path", path, cwd=tmp_path)
    wait_for_line(process, "killed worker")
    with MicroDB(path, PARTITION_KEYS) as mdb:
        victim = next(iter(mdb.all()))
        mdb.upsert(victim | {"line": -1})
        mdb.upsert({"module": "stranger", "name": "f"})
    code, output, _ = wait_for_end(process)
    assert code == 1
    assert f"after reopening: different: {victim['module']} {victim['name']}\n" in output
    assert "after reopening: unexpected: stranger f\n" in output
    assert row(output, "lost") == "1"


@pytest.mark.parametrize("line", ["database", "killed worker"])
def test_ctrl_c_ends_it_without_a_trace(tmp_path, line):
    process = demo(cwd=tmp_path)  # All modules: it must not have ended by itself.
    wait_for_line(process, line)
    os.killpg(process.pid, signal.SIGINT)  # As a terminal does: to the parent and to its workers.
    code, output, errors = wait_for_end(process)
    assert (code, errors) == (130, "")
    assert "ended early" in output
    assert row(output, "lost") == "0"
    assert os.listdir(tmp_path) == []


def test_an_existing_file_is_refused(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text("[]")
    code, output, errors = wait_for_end(demo("--path", path, cwd=tmp_path))
    assert (code, output) == (2, "")
    assert f"{path} exists" in errors


def test_without_rich_it_says_how_to_install_it():
    program = "import sys; sys.modules['rich'] = None; from microdb.cli import main; sys.exit(main(['demo']))"
    command = [sys.executable, "-c", program]
    process = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert process.returncode == 2
    assert process.stderr == 'microdb demo: the demo needs rich: pip install "microdb[cli]"\n'


# What one worker does, in this process: what a killed one measured is lost with it


@pytest.fixture
def worker(tmp_path):
    """A worker that has had all its tasks; `run` tells what it said."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    tasks, tasks_end = multiprocessing.Pipe(duplex=False)
    messages_end, messages = multiprocessing.Pipe(duplex=False)
    order = Order(str(tmp_path / "demo.json"), "process", "1")

    class Worker:
        def give(self, module, known=()):
            tasks_end.send(Task(module, list(known)))

        def stop_listening(self):
            messages_end.close()

        def run(self):
            tasks_end.close()
            work(order, tasks, messages)
            messages.close()
            said = []
            while not messages_end.closed:
                try:
                    said.append(messages_end.recv())
                except EOFError:
                    messages_end.close()
            return said

    yield Worker()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for pipe in (tasks, tasks_end, messages, messages_end):
        pipe.close()


def test_a_worker_acknowledges_each_record_and_then_the_module(tmp_path, worker):
    first, second = source_files(tmp_path, count=2, definitions=3)
    worker.give(first)
    worker.give(second, index_file(first))
    said = worker.run()
    assert [type(message) for message in said] == [dict, dict, dict, Finished] * 2
    assert said[:3] + said[4:7] == index_file(first) + index_file(second)
    assert (said[3].tally.reads, said[7].tally.reads, said[7].tally.wrong_reads) == (0, 24, [])


def test_a_worker_notices_a_record_that_is_not_what_was_acknowledged(tmp_path, worker):
    [module] = source_files(tmp_path, count=1, definitions=1)
    other = {"module": "other", "name": "f", "line": 1}
    worker.give(module, [other])
    *_, finished = worker.run()
    assert finished.tally.wrong_reads == [key_of(other)] * 8


def test_a_worker_tells_why_a_module_is_unreadable_and_goes_on(tmp_path, worker):
    (tmp_path / "broken.py").write_text("def f(:")
    (tmp_path / "sound.py").write_text("def f(): ...")
    for module in find_modules(str(tmp_path)):
        worker.give(module)
    unreadable, record, finished = worker.run()
    assert (type(unreadable), unreadable.module) == (Unreadable, "broken")
    assert unreadable.reason.startswith("SyntaxError: ")
    assert (record["name"], finished.tally.writes) == ("f", 1)


def test_a_worker_that_is_told_to_stop_begins_nothing_more(tmp_path, worker, monkeypatch):
    for module in source_files(tmp_path, count=2, definitions=3):
        worker.give(module)
    upsert = MicroDB.upsert

    def upsert_and_stop(mdb, record):
        signal.raise_signal(signal.SIGTERM)
        upsert(mdb, record)

    monkeypatch.setattr(MicroDB, "upsert", upsert_and_stop)
    [record] = worker.run()
    assert record["name"] == "f0", "the write that was under way is acknowledged, and the last"


def test_a_worker_whose_parent_is_gone_leaves_without_a_word(tmp_path, worker):
    worker.give(*source_files(tmp_path, count=1))
    worker.stop_listening()
    assert worker.run() == []


def test_a_worker_that_meets_an_exception_sends_its_traceback(worker):
    worker.give(Module("m", None))
    [failed] = worker.run()
    assert type(failed) is Failed
    assert "TypeError" in failed.traceback


def test_a_worker_whose_parent_is_gone_when_it_meets_an_exception_leaves_without_a_word(worker):
    worker.give(Module("m", None))
    worker.stop_listening()
    assert worker.run() == []


def test_a_report_names_the_first_twenty_that_are_wrong_and_counts_the_rest(plan, capsys):
    outcome = Outcome(unreadable={f"m{number}": "SyntaxError" for number in range(1_050)})
    with Report(plan([])) as report:
        report.show(outcome)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not indexed: ")]
    assert lines[0] == "not indexed: m0: SyntaxError"
    assert lines[19:] == ["not indexed: m19: SyntaxError", "not indexed: and 1,030 more"]


class MurdererInTheEnd(Silent):
    """An observer that kills the one worker that is left, and waits until it is dead."""

    def progressed(self, outcome):
        [worker] = multiprocessing.active_children()
        worker.kill()
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)


def test_a_worker_that_is_found_dead_when_it_is_to_be_killed_fails_the_run(tmp_path, plan):
    with pytest.raises(DemoError, match=r"died by itself in m\d, exit code -9"):
        played(plan(source_files(tmp_path, count=2), workers=1), MurdererInTheEnd())
    assert multiprocessing.active_children() == []


def test_what_a_worker_said_before_it_was_found_dead_is_heard(tmp_path, plan, monkeypatch):
    pause = CrewMember.pause
    acknowledged = []

    def die_first(member):
        assert member.messages.poll(WAIT_S), "it has acknowledged something"
        os.kill(member.pid, signal.SIGKILL)
        os.waitid(os.P_PID, member.pid, os.WEXITED | os.WNOWAIT)
        return pause(member)

    def noted(parent, member, record):
        acknowledged.append(record)
        note(parent, member, record)

    note = Parent._note_acknowledged
    monkeypatch.setattr(CrewMember, "pause", die_first)
    monkeypatch.setattr(Parent, "_note_acknowledged", noted)
    with pytest.raises(DemoError, match=r"died by itself in .*, exit code -9"):
        played(plan(source_files(tmp_path, count=2), workers=1), Silent())
    assert len(acknowledged) > 30, "more than those of the first module"


# What the parent makes of a stop. Where a real process stops, and what it had said by then, nobody can order.


class Scripted:
    """A crew member that stops when it is told to, and has said this before it is killed."""

    def __init__(self, pid, said=()):
        self.pid = pid
        self.module = Module(f"m{pid}", f"m{pid}.py")
        self.keys = []
        self.said = said
        self.done = []

    def pause(self):
        self.done.append("paused")
        return True

    def resume(self):
        self.done.append("resumed")

    def kill(self):
        self.done.append("killed")
        return self.said

    def wait_gone(self):
        self.done.append("gone")


@pytest.fixture
def parent_of(plan, monkeypatch):
    """A parent of such a crew, with so many modules left to do, that sees one of the crew inside a write."""

    def make(crew, *, pending=0, writing=0):
        mdb = types.SimpleNamespace(stats=lambda: types.SimpleNamespace(dirty_pid=writing))
        modules = [Module(f"later {number}", "later.py") for number in range(pending)]
        parent = Parent(plan(modules), mdb, Silent(), None)
        parent._crew = list(crew)
        return parent

    monkeypatch.setattr(Parent, "_hire", lambda parent: parent._crew.append("hired"))
    return make


def test_a_worker_that_stopped_outside_of_a_write_goes_on_until_another_time(parent_of):
    member = Scripted(7)
    parent = parent_of([member], pending=1)
    parent._try_to_kill()
    assert member.done == ["paused", "resumed"]
    assert (parent._crew, parent.outcome.kill) == ([member], None)


def test_the_worker_that_is_inside_a_write_is_killed_and_another_one_does_its_module_first(parent_of):
    record = index_source("def f(): ...", "m8")[0]
    one, other = Scripted(7), Scripted(8, said=[record])
    parent = parent_of([one, other], pending=1, writing=8)
    parent._try_to_kill()
    assert (one.done, other.done) == ([], ["paused", "killed", "gone"])
    assert parent.outcome.kill == Kill(8, "m8", 1, in_mid_write=True)
    assert parent.acknowledged == {key_of(record): record}
    assert [module.name for module in parent._pending] == ["m8", "later 0"]
    assert parent._crew == [one, "hired"]


def test_nobody_is_hired_for_a_worker_that_was_done_before_it_was_killed(parent_of):
    member = Scripted(7, said=[Finished(Tally())])
    parent = parent_of([member])
    parent._try_to_kill()
    assert parent.outcome.kill == Kill(7, "no module", 1, in_mid_write=False)
    assert (parent.outcome.modules, parent.records_in_flight()) == (1, [])
    assert (list(parent._pending), parent._crew) == ([], [])
