"""Errors, one tree. Each message says what happened, what was got, what is allowed, what to do.

UserSystemError
├── ConfigError        a manifest, option or command line is wrong            (exit status 2)
├── MissingError       something the machine lacks: package, port, space       (exit status 2)
├── SpecError          an array does not fit its declared field
├── PluginError        code of a plugin raised, hung or answered nonsense
├── TransitionError    a mode change that the table does not allow
├── LeaseError         somebody commands a robot without the right token
├── RobotFault         a robot reports that it cannot move
├── LinkError          a peer cannot be reached or refuses us
├── StoreError         the replay buffer, the spool or the disk under them
│   └── DamageError    stored bytes are not what was written
└── SecurityError      a credential, certificate or role is missing or wrong
"""


class UserSystemError(Exception):
    """Base of every error raised on purpose.

    Args:
        what: one sentence that says what went wrong, naming the thing.
        got: what was found, where it helps.
        allowed: what would have been accepted.
        todo: the next action for the person who reads this.
    """

    def __init__(self, what: str, *, got: object = None, allowed: object = None, todo: str = ""):
        self.what, self.got, self.allowed, self.todo = what, got, allowed, todo
        parts = [what.rstrip(".")]
        if got is not None:
            parts.append(f"got {got}")
        if allowed is not None:
            parts.append(f"allowed: {allowed}")
        text = "; ".join(parts)
        super().__init__(f"{text}. {todo}" if todo else text)


class ConfigError(UserSystemError):
    """A manifest, option or command line is wrong; nothing was started."""


class MissingError(UserSystemError):
    """The machine lacks something: a package, a port, disk space, rendering."""


class SpecError(UserSystemError):
    """An array does not fit the field that declares it."""


class PluginError(UserSystemError):
    """Code of a plugin raised, hung past its deadline or answered nonsense."""


class TransitionError(UserSystemError):
    """A mode change that the mode table does not allow."""


class LeaseError(UserSystemError):
    """A robot was commanded without the current lease."""


class RobotFault(UserSystemError):
    """A robot reports that it cannot move; only a person releases it."""


class LinkError(UserSystemError):
    """A peer cannot be reached, went away or refuses us."""


class StoreError(UserSystemError):
    """The replay buffer, the spool or the disk under them failed."""


class DamageError(StoreError):
    """Stored bytes are not the bytes that were written."""


class SecurityError(UserSystemError):
    """A credential, certificate or role is missing or wrong."""
