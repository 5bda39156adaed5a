import pytest

from user_system.core.errors import ConfigError
from user_system.core.helping import HelpConfig, Helper


def test_help_fades_out() -> None:
    helper = Helper(HelpConfig(watch=0.8, fade_steps=1000))
    assert [helper.share(n) for n in (0, 500, 1000, 9999)] == [0.8, 0.4, 0.0, 0.0]


def test_a_helper_waits_then_steps_in_where_nothing_moves() -> None:
    helper = Helper(HelpConfig(patience=5))
    helper.begin(0)
    assert [helper.wants(k, on_its_way=False) for k in (0, 4, 5, 9)] == [False, False, True, True]
    assert not helper.wants(9, on_its_way=True)


def test_nobody_steps_in_after_the_fade() -> None:
    helper = Helper(HelpConfig(patience=0, fade_steps=10))
    for _ in range(50):
        helper.begin(10)
        assert not helper.wants(100, on_its_way=False)


def test_the_share_is_met_and_repeats_from_the_seed() -> None:
    def watched(seed: int) -> list[bool]:
        helper = Helper(HelpConfig(seed=seed, watch=0.5, fade_steps=10**9))
        result = []
        for _ in range(400):
            helper.begin(0)
            result.append(helper.wants(100, on_its_way=False))
        return result

    assert 150 < sum(watched(1)) < 250
    assert watched(1) == watched(1)
    assert watched(1) != watched(2)


@pytest.mark.parametrize("bad", [{"watch": 1.5}, {"fade_steps": 0}, {"patience": -1}])
def test_an_impossible_habit_is_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        HelpConfig(**bad)
