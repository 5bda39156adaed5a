"""A process tells the hub how it does; what the hub makes of it is no matter of its work."""

import threading

import pytest

from user_system.cluster import heartbeat
from user_system.cluster.process import Life
from user_system.core.errors import LinkError, SecurityError


@pytest.mark.parametrize("error", [LinkError("no answer"), SecurityError("not enrolled any more")])
def test_work_goes_on_whatever_the_hub_says(monkeypatch, error) -> None:
    heard, again = [], threading.Event()

    class Hub:
        def __init__(self, way) -> None:
            pass

        def report(self, message) -> None:
            heard.append(dict(message.figures))
            if len(heard) > 1:
                again.set()
                return
            raise error

    monkeypatch.setattr(heartbeat, "HubClient", Hub)
    monkeypatch.setattr(heartbeat, "REPORT_S", 0.01)
    life = Life()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            heartbeat.report(None, life, "shard-lab-1", "replay", lambda: {"steps": 3.0})
        except Exception as caught:
            failed.append(caught)

    thread = threading.Thread(target=work)
    thread.start()
    again.wait(20.0)
    life.stop.set()
    thread.join(20.0)
    assert failed == []
    assert heard[:2] == [{"steps": 3.0}] * 2
