"""Open or save a table with microdb 0.1.3: run as a script, in an interpreter of its own.

``python old_microdb.py FOLDER open|save PATH`` prints how many seconds it took; that version lies in FOLDER.
"""

import sys
import time


def main() -> None:
    """See above."""
    folder, what, path = sys.argv[1:]
    sys.path.insert(0, folder)
    import microdb

    begin = time.perf_counter()
    mdb = microdb.MicroDB(path, ["id"])
    took = time.perf_counter() - begin
    if what == "save":
        begin = time.perf_counter()
        mdb.save()
        took = time.perf_counter() - begin
    print(took)


if __name__ == "__main__":
    main()
