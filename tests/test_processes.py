"""Many processes on one path: nothing is lost, nothing is stale, and a batch is seen whole or not at all."""

import pytest

from children import answer_reads, finish, increment, save_often, spawned, start, write_batches, write_numbers


def test_8_writers_with_saves_in_between_lose_nothing_and_keep_their_order(path, open_db):
    writers = [(write_numbers, str(path), writer, 2_000, {}) for writer in range(8)]
    with spawned((save_often, str(path), 10), *writers) as (pipes, _):
        start(pipes)
        finish(pipes)
    mdb = open_db(partition_keys=["writer", "n"])
    seen = list(mdb)
    assert len(seen) == 16_000
    for writer in range(8):
        assert [n for who, n in seen if who == writer] == list(range(2_000))


def test_a_reader_never_sees_half_a_batch(path, open_db):
    mdb = open_db()
    with spawned((write_batches, str(path), 7, 300)) as (pipes, _):
        start(pipes)
        seen = set()
        while not pipes[0].poll():
            for numbers in ({record["number"] for record in mdb.all()}, {r["number"] for r in mdb.values()}):
                assert len(numbers) <= 1
                seen |= numbers
            assert len(mdb) in (0, 7)
        finish(pipes)
    assert {record["number"] for record in mdb.all()} == {299}
    assert len(seen) > 1, "the reader has seen it change"


@pytest.mark.parametrize("how", ["lock", "transaction"])
def test_a_counter_that_8_processes_increment_ends_exact(path, open_db, how):
    with spawned(*[(increment, str(path), 250, how)] * 8) as (pipes, _):
        start(pipes)
        finish(pipes)
    assert open_db()["counter",]["n"] == 2_000


def test_the_read_after_an_acknowledgement_sees_it_100_000_times(path, open_db):
    mdb = open_db(auto_save_bytes=1 << 20)
    mdb.upsert({"id": "x", "n": -1})
    with spawned((answer_reads, str(path))) as (pipes, _):
        pipe = pipes[0]
        assert pipe.recv() == "ready"
        stale = 0
        for number in range(100_000):
            mdb.upsert({"id": "x", "n": number})
            pipe.send(number)
            stale += pipe.recv() is not True
        pipe.send(None)
    assert stale == 0
    assert mdb.stats().saves > 0, "saves went on meanwhile"
