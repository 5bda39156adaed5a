"""The hub's numbers under kill -9: what somebody heard is never handed out again."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from user_system.codec import weights as codec
from user_system.core.clock import WallClock
from user_system.core.ports import Manifest, TensorEntry
from user_system.hub.audit import verify
from user_system.hub.leases import Leases
from user_system.hub.weight_store import WeightStore

pytestmark = pytest.mark.system

WORK = """
import sys, time
from pathlib import Path
import numpy as np
from user_system.codec import weights as codec
from user_system.core.clock import WallClock
from user_system.core.ports import Manifest, TensorEntry
from user_system.hub.audit import Audit
from user_system.hub.leases import Leases
from user_system.hub.weight_store import WeightStore

root, start = Path(sys.argv[1]), int(sys.argv[2])
leases = Leases(root / "tokens.json", WallClock()); leases.open()
audit = Audit(root / "audit.jsonl", time.time_ns); audit.open()
store = WeightStore(root / "weights", WallClock()); store.open()
for i in range(start, start + 10**6):
    lease, _ = leases.claim("arm-1", "ann", realtime=False)
    audit.write("claim", "ann", token=lease.token)
    array = np.full(3, i, np.float32)
    rows = codec.entries({"policy": {"w": array}})
    entries = tuple(TensorEntry(*row) for row in rows)
    upload, missing = store.offer(Manifest("p", 0, codec.entries_hash(rows), entries))
    for tensor in missing:
        store.put(upload, tensor, 0, array.nbytes, array.tobytes())
    print(lease.token, store.commit(upload), i, flush=True)
"""


def one_life(tmp_path, start, lines):
    """Let a hub work until it said ``lines`` lines, kill it, return what it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(tmp_path), str(start)], stdout=subprocess.PIPE, text=True
    )
    said = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    said += process.stdout.readlines()
    process.stdout.close()
    process.wait()
    return [tuple(map(int, line.split())) for line in said if line.endswith("\n")]


def test_tokens_and_versions_only_grow_over_kills(tmp_path):
    tokens, versions, contents, start = [], [], {}, 1
    for life in range(5):
        for token, version, content in one_life(tmp_path, start, 3 + 4 * life):
            tokens.append(token)
            versions.append(version)
            contents[version] = content
            start = content + 1000
    assert tokens == sorted(set(tokens))
    assert versions == sorted(set(versions))
    leases = Leases(tmp_path / "tokens.json", WallClock())
    leases.open()
    assert leases.current("arm-1").token >= tokens[-1]
    store = WeightStore(tmp_path / "weights", WallClock())
    store.open()
    assert store.newest("p") >= versions[-1]
    manifest = store.get("p", versions[-1])
    data = store.tensor(manifest.tensors[0].hash)
    assert (np.frombuffer(data, np.float32) == contents[versions[-1]]).all()
    rows = codec.entries({"policy": {"w": np.frombuffer(data, np.float32)}})
    assert manifest == Manifest(
        "p", versions[-1], codec.entries_hash(rows), (TensorEntry(*rows[0]),)
    )
    assert verify(tmp_path / "audit.jsonl")[0] >= len(tokens)
