"""Errors across gRPC: the class and text that a handler raised arrive at the caller unchanged.

Each class of ``core.errors`` has one gRPC status, for tools that only know statuses; its name
travels in the trailing metadata ``error-kind``. Whatever arrives without a known kind becomes a
``LinkError``.
"""

import errno
from typing import NoReturn

import grpc

from user_system.core import errors
from user_system.core.errors import LinkError, SecurityError, StoreError, UserSystemError

KIND = "error-kind"

_TEXT_LIMIT = 2000
"""Characters of an error that travel: all trailing metadata together may have 8 KiB."""

_STATUS: dict[type[UserSystemError], grpc.StatusCode] = {
    errors.ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.MissingError: grpc.StatusCode.NOT_FOUND,
    errors.SpecError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.PluginError: grpc.StatusCode.INTERNAL,
    errors.TransitionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LeaseError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RobotFault: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LinkError: grpc.StatusCode.UNAVAILABLE,
    errors.StoreError: grpc.StatusCode.UNAVAILABLE,
    errors.DamageError: grpc.StatusCode.DATA_LOSS,
    errors.SecurityError: grpc.StatusCode.PERMISSION_DENIED,
}
_KINDS = {kind.__name__: kind for kind in _STATUS}


def status_of(error: UserSystemError) -> grpc.StatusCode:
    """Return the status that ``error`` is answered with."""
    cause = error.__cause__
    if (
        isinstance(error, StoreError)
        and isinstance(cause, OSError)
        and cause.errno
        in (
            errno.ENOSPC,
            errno.EDQUOT,
        )
    ):
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    for kind in type(error).__mro__:
        if kind in _STATUS:
            return _STATUS[kind]
    return grpc.StatusCode.INTERNAL


def known(kind: str, text: str) -> UserSystemError:
    """Return the error that another process names by its class, with its text to the letter."""
    again = _KINDS.get(kind, LinkError)(text)
    again.args = (text,)
    return again


def abort(context: grpc.ServicerContext, error: UserSystemError) -> NoReturn:
    """End a call with ``error``."""
    kind = next((k.__name__ for k in type(error).__mro__ if k.__name__ in _KINDS), "")
    context.set_trailing_metadata(((KIND, kind),))
    context.abort(status_of(error), str(error)[:_TEXT_LIMIT])
    raise error


def unreached(error: BaseException | None) -> bool:
    """Whether a call, or what ``received`` made of it, failed for want of a connection.

    The other side has then not been asked: what it answers carries a kind.
    """
    if isinstance(error, UserSystemError):
        error = error.__cause__
    if not isinstance(error, grpc.RpcError) or not isinstance(error, grpc.Call):
        return False
    told = KIND in dict(error.trailing_metadata() or ())
    return error.code() is grpc.StatusCode.UNAVAILABLE and not told


def received(error: grpc.RpcError, what: str) -> UserSystemError:
    """Return what a failed call means.

    Args:
        error: as the call raised it.
        what: what was tried, e.g. ``"ask the hub for a lease"``.
    """
    if not isinstance(error, grpc.Call):
        return LinkError(f"could not {what}", got=error)
    kind = dict(error.trailing_metadata() or ()).get(KIND, "")
    text = error.details() or error.code().name
    if kind in _KINDS:
        return known(str(kind), text)
    if error.code() is grpc.StatusCode.PERMISSION_DENIED:
        return SecurityError(text)
    return LinkError(
        f"could not {what}",
        got=f"{error.code().name}: {text[:300]}",
        todo="Is the other side running, and were both credentials issued by one authority?",
    )
