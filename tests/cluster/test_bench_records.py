"""What a benchmark reads of a run, beside whoever writes it."""

from pathlib import Path

from user_system.cluster.bench.ingest_outbox import EPOCH, Factory
from user_system.cluster.bench.records import Records
from user_system.codec import fragments
from user_system.replay import queue
from user_system.replay.env import Env
from user_system.replay.store import Store


def test_records_say_how_far_each_source_is(tmp_path: Path) -> None:
    made = Factory("arm")
    with Store(tmp_path / "replay").open(create=True) as store:
        assert not store.append([made.make(k) for k in range(3)])
    with queue.Queue(tmp_path / "spool").open(create=True) as spool:
        for k in range(5):
            spool.append("arm", EPOCH, k, fragments.encode(made.make(k)), boot="b")
        spool.forget("arm", EPOCH, 3)
    records = Records(tmp_path)
    records._spools = [Env(tmp_path / "spool", queue.KIND, queue.TABLES, readonly=True)]
    with records:
        assert records.acked() == {("arm", EPOCH): 3}
        assert records.spooled() == {("arm", EPOCH): 5}
        assert records.waiting() == {("arm", EPOCH): {3, 4}}
        assert [entry.sequence for entry in records.log()] == [0, 1, 2]
        assert records.refused() == 0
