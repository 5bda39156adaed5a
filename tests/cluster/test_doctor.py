"""What a machine lacks, where that can be decided without the machine."""

from pathlib import Path

import pytest

from user_system.cluster import doctor


@pytest.mark.parametrize(("kernel", "advice"), [("bbr\n", False), ("cubic\n", True)])
def test_a_congestion_control_that_gives_way_to_loss_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str, advice: bool
) -> None:
    path = tmp_path / "tcp_congestion_control"
    path.write_text(kernel)
    monkeypatch.setattr(doctor, "CONGESTION", path)
    (finding,) = doctor._congestion()
    assert finding.ok  # it works all the same
    assert finding.found.startswith(kernel.strip())
    assert ("sysctl" in finding.found) is advice


def test_a_system_without_it_has_no_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "CONGESTION", tmp_path / "none")
    assert list(doctor._congestion()) == []
