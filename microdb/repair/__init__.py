"""``microdb repair``: save what can be saved of a damaged database, into a new one. The damaged one is only read.

Every batch of a log is saved whose crc is right, in order, also behind a damaged place; of a snapshot, every record
that can be read. Old logs and cut tails that are kept fill what a damaged snapshot lacks. What is lost, and what is
saved but cannot be proved, is listed.
"""

# command      its options, its exit codes, and how the report looks
# pretty       the findings as a table on a terminal; the only user of rich
# salvage      which parts go into the new table, and what is to be said of the others
# timeline     the changes of several logs in one order, and what is missing in it. Pure
# evidence     what still stands on the disk: snapshot, logs, cut tails, page
# search       the sound frames of a damaged log. Pure
# lines        the records of a damaged snapshot. Pure
# findings     what is to be said. Values only

from microdb.repair.command import add_arguments, run
from microdb.repair.salvage import Salvage, salvage

__all__ = ["Salvage", "add_arguments", "run", "salvage"]
