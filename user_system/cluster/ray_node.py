"""``ray start`` that stays on the loopback address.

Ray replaces 127.0.0.1 by the machine's outward address, and then listens on every interface. Its
switch for loopback-only clusters (``RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0``) refuses a second node.
On one machine nothing of Ray's has any business outside, so this runs the same command line with
that one replacement turned off.
"""

from ray._private import services  # noqa: PLC2701
from ray.scripts.scripts import main

from user_system.cluster.process import begin


def stay_local() -> None:
    """Make Ray use the address that it was given."""
    services.resolve_ip_for_localhost = lambda host: host


if __name__ == "__main__":
    begin()
    stay_local()
    main()
