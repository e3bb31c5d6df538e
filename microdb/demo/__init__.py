"""``microdb demo``: several processes index the standard library into one shared table, and one is killed amid it.

    command      its options and exit codes
    index        source text becomes records. Pure
    worker       what one worker process does, and the messages that it sends
    crew         the worker processes as the parent sees them: start, stop, kill
    parent       hands out modules, notes acknowledgements, kills one worker in the middle of a write
    verify       what the table holds against what was acknowledged. Pure
    scenario     the whole of one run, from an empty database to the verdict
    interrupt    Ctrl-C as something that a loop can wait for
    result       what a run is told, and what comes of it
    report       how it looks; the only user of rich

Nothing of this is imported by ``import microdb``.
"""

from microdb.demo.command import add_arguments, run

__all__ = ["add_arguments", "run"]
