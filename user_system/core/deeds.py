"""What is written into the audit log: one table of all deeds that somebody may have to answer for.

Each is recorded where it happens, before its effect is told to anybody; only stops, which wait for
no disk, are recorded right after. ``tests/hub/test_deeds.py`` does each of them once.
"""

from collections.abc import Mapping
from enum import StrEnum


class Deed(StrEnum):
    """A name in the log's ``action``."""

    CLAIM = "claim"
    FORCE = "force"
    YIELD = "yield"
    RELEASE = "release"
    ESTOP = "estop"
    ATTACH = "attach"
    WEIGHTS = "weights"
    ROLLBACK = "rollback"
    LOGIN = "login"
    LOGIN_REFUSED = "login.refused"
    LOGOUT = "logout"
    REFUSED = "refused"
    INVITE = "invite"
    JOIN = "join"
    JOIN_AGAIN = "join again"
    RENEW = "renew"
    REVOKE = "revoke"
    RESTORE = "restore"
    REFUSE = "refuse"
    SETTINGS = "settings"
    REPLAY_DELETE = "replay.delete"
    TORN = "audit.torn"


MEANING: Mapping[Deed, str] = {
    Deed.CLAIM: "a person took a robot over",
    Deed.FORCE: "an engineer took a robot from the person who held it, and why",
    Deed.YIELD: "a person gave a robot back",
    Deed.RELEASE: "a person cleared a robot's fault",
    Deed.ESTOP: "somebody stopped a robot; at most one record a second for each robot and person",
    Deed.ATTACH: "a robot host went into service, with which robots",
    Deed.WEIGHTS: "a learner published a version of a policy",
    Deed.ROLLBACK: "an engineer made an older version of a policy a new one",
    Deed.LOGIN: "a person logged in on the page, from where",
    Deed.LOGIN_REFUSED: "somebody tried to, with a wrong name or token",
    Deed.LOGOUT: "a person logged out",
    Deed.REFUSED: "a process called what its role may not, or is not enrolled (any more)",
    Deed.INVITE: "a person made an invitation for a new host or person",
    Deed.JOIN: "somebody showed an invitation and was let in, from where",
    Deed.JOIN_AGAIN: "the answer to a join was lost, and given once more",
    Deed.RENEW: "a certificate was renewed",
    Deed.REVOKE: "a person revoked a name or an invitation, or a robot host left for good",
    Deed.RESTORE: "a person let a revoked name in again, with new keys",
    Deed.REFUSE: "somebody asked to join or renew and was refused, and why",
    Deed.SETTINGS: "a run was started, resumed or judged: with which settings, by whom",
    Deed.REPLAY_DELETE: "an engineer deleted an episode from the replay buffer, and why",
    Deed.TORN: "a power cut tore the last line; what was left of it stands beside the log",
}

OF_THE_PAGE = frozenset({Deed.LOGIN, Deed.LOGIN_REFUSED, Deed.LOGOUT})
"""What the page tells the hub of; the hub sees everything else itself."""

MAX_TEXT = 500
"""Characters of a text in a record."""
