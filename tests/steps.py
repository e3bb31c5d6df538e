"""What goes on in a fork or a thread while the test looks, one step at a time."""

import contextlib
import os
import signal
import sys
import threading

SOON_S = 0.05
"""Long enough to be refused."""

WAIT_S = 60
"""Longer than anything takes."""


class Child:
    """A fork that runs a generator, one step for each call of `step`, which returns what it yielded, as bytes.

    What goes wrong in the child ends it, and the next step or the end tells.
    """

    def __init__(self, steps):
        to_child, self._go = os.pipe()
        self._said, from_child = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                os.close(self._go)
                generator = steps()
                while os.read(to_child, 1) and (said := next(generator, None)):
                    os.write(from_child, said)
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(code)
        os.close(to_child)
        os.close(from_child)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._go)
        os.close(self._said)
        if self.pid:
            self.end()

    def step(self):
        self.begin_step()
        return self.end_step()

    def begin_step(self):
        os.write(self._go, b"g")

    def end_step(self):
        said = os.read(self._said, 1)
        assert said, "the child died"
        return said

    def end(self):
        """Let it run to its end; its exit code."""
        with contextlib.suppress(OSError):
            os.write(self._go, b"g")
        return self._wait()

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        return self._wait()

    def _wait(self):
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_thread(function):
    """What a function returns, or raises, in another thread."""
    found = []

    def run():
        try:
            found.append(function())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(WAIT_S)
    return found[0]
