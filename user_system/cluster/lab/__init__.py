"""A network laboratory on one machine: hosts, a NAT and a bad link, for tests and benchmarks.

    edge  10.77.0.2 --veth-- nat --emulated link-- head  192.0.2.1      Lab(profile)
    edge  192.0.2.2 ---------emulated link-------- head  192.0.2.1      Wire(profile)

Each host is a network namespace; the link between two of them is a process that moves packets
between two TUN devices and delays, loses, limits, doubles and reorders them. Nothing of it has a
name on this machine: the namespaces belong to that process, and end with it.
"""

from user_system.cluster.lab.host import Host
from user_system.cluster.lab.link import Counters, Stats
from user_system.cluster.lab.profiles import PROFILES, Line, Profile, profile
from user_system.cluster.lab.topology import Lab, Wire, available

__all__ = [
    "PROFILES",
    "Counters",
    "Host",
    "Lab",
    "Line",
    "Profile",
    "Stats",
    "Wire",
    "available",
    "profile",
]
