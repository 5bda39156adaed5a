import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robots.sim import link
from robots.sim.pacer import PATIENCE_NS, Pacer
from robots.sim.state import PARTS, SIZE, cartesian_setpoint, joint_setpoint, observe, part
from user_system.core.clock import MS, SECOND
from user_system.core.errors import ConfigError
from user_system.core.types import Stream


def test_state_parts_tile_the_vector():
    covered = sorted(i for piece in PARTS.values() for i in range(piece.start, piece.stop))
    assert covered == list(range(SIZE))


def test_observation_and_setpoints_are_parts_of_the_state():
    state = np.arange(SIZE, dtype=np.float64)
    fields = observe(state, joints=True)
    np.testing.assert_array_equal(fields["cube_position"], part(state, "cube"))
    np.testing.assert_array_equal(
        fields["cube_offset"], part(state, "cube") - part(state, "tcp")[:3]
    )
    assert cartesian_setpoint(state).shape == (7,)
    assert joint_setpoint(state).shape == (8,)
    assert cartesian_setpoint(state)[6] == part(state, "width_command")[0]
    assert "joint_position" not in observe(state, joints=False)


@settings(deadline=None)
@given(
    robot_ns=st.integers(0, 2**62),
    wall_ns=st.integers(0, 2**62),
    rate=st.floats(0.01, 100.0),
    fault=st.text(max_size=80),
)
def test_reports_survive_the_line(robot_ns, wall_ns, rate, fault):
    state = np.linspace(-1, 1, SIZE)
    got = link.unpack_report(link.pack_report(link.Report(robot_ns, wall_ns, rate, state, fault)))
    assert (got.robot_ns, got.wall_ns, got.rate, got.fault) == (robot_ns, wall_ns, rate, fault)
    np.testing.assert_array_equal(got.state, state)


def test_setpoints_and_requests_survive_the_line():
    setpoint = np.array([0.1, np.pi, -1e-300])
    np.testing.assert_array_equal(link.unpack_setpoint(link.pack_setpoint(setpoint)), setpoint)
    body = {"id": 3, "do": "pace", "rate": 4.0}
    assert link.unpack_json(link.pack_json(link.REQUEST, body)) == body
    with pytest.raises(ValueError, match="object"):
        link.unpack_json(b"Q[1]")


def picture(seed: int, size=(200, 300)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def test_images_are_put_together_from_parts():
    parts = link.ImageParts((200, 300))
    packets = list(link.pack_image("wrist", 17, picture(0)))
    assert len(packets) > 1
    assert all(len(p) <= link.MAX_PACKET for p in packets)
    *early, last = packets
    assert all(parts.add(p) is None for p in early)
    camera, image, stamp = parts.add(last)
    assert (camera, stamp) == ("wrist", 17)
    np.testing.assert_array_equal(image, picture(0))


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_lost_part_costs_one_image_and_no_more(lost):
    parts = link.ImageParts((200, 300))
    packets = list(link.pack_image("front", 1, picture(0)))
    del packets[lost]
    assert all(parts.add(p) is None for p in packets)
    done = [parts.add(p) for p in link.pack_image("front", 2, picture(1))]
    np.testing.assert_array_equal(done[-1][1], picture(1))


def test_pacer_follows_the_wall_at_its_rate():
    pacer = Pacer(4.0, wall_ns=100, robot_ns=0)
    assert pacer.due_ns(4 * SECOND) == 100 + SECOND
    pacer.set_rate(1.0, wall_ns=SECOND, robot_ns=4 * SECOND)
    assert pacer.due_ns(5 * SECOND) == 2 * SECOND


def test_pacer_catches_up_a_little_and_slips_a_lot():
    pacer = Pacer(1.0, wall_ns=0, robot_ns=0)
    pacer.arrived(10 * MS, 10 * MS + PATIENCE_NS)
    assert pacer.slipped_ns == 0
    assert pacer.due_ns(20 * MS) == 20 * MS
    pacer.arrived(20 * MS, SECOND)
    assert pacer.slipped_ns == SECOND - 20 * MS
    assert pacer.due_ns(30 * MS) == SECOND + 10 * MS


@pytest.mark.parametrize("rate", [0.0, -1.0, 1e6, float("nan")])
def test_impossible_paces_are_refused(rate):
    with pytest.raises(ConfigError):
        Pacer(rate, 0, 0)


@pytest.mark.parametrize("count", [0, 1, 250])
def test_samples_at_the_wrist_survive_the_line(count):
    stamps = np.arange(count, dtype=np.int64) << 40
    values = np.random.default_rng(0).normal(size=(count, 6))
    packet = link.pack_wrist(Stream(stamps, values))
    assert packet[:1] == link.WRIST
    assert len(packet) <= link.MAX_PACKET
    got = link.unpack_wrist(packet)
    np.testing.assert_array_equal(got.stamps, stamps)
    np.testing.assert_array_equal(got.values, values.astype(np.float32))
