"""Settings that hold for every test."""

import os

from hypothesis import HealthCheck, settings

# Shared, noisy cores: how long an example takes says nothing about the code. In CI the same
# examples are drawn each time, so that a red build can be repeated.
settings.register_profile("any", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("any"), derandomize=True)
# pytest --hypothesis-profile=fuzz tests/codec: for a night, or after a change of format.
settings.register_profile("fuzz", settings.get_profile("any"), max_examples=3000)
settings.load_profile("ci" if os.environ.get("CI") else "any")
