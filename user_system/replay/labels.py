"""A late label as it is stored: what is said of an episode, by whom, and when it was said."""

import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xxhash

from user_system.codec import arrays, fragments
from user_system.core.errors import SpecError
from user_system.core.types import Array

RESERVED = frozenset(fragments.COLUMNS) - {"reward"}
"""Columns that no label may be called."""


class Label(NamedTuple):
    """One label, encoded."""

    of: bytes
    """Hash of what it is about: episode, name, version."""
    says: bytes
    """Hash of that and of what it says."""
    record: bytes


def encode(
    episode: str, name: str, version: str, success: bool | None, values: Array | None
) -> Label:
    """Return a label; see ``Store.label``.

    Raises:
        SpecError: it is none.
    """
    for text in (episode, name, version):
        if not fragments.is_text(text):
            raise SpecError("label holds what is no text", got=ascii(text), allowed="Unicode")
    blocks = _blocks(name, values)
    meta: Mapping[str, arrays.Json] = {
        "episode": episode,
        "name": name,
        "version": version,
        "success": success,
    }
    of = xxhash.xxh3_128_digest("\0".join((episode, name, version)).encode())
    says = xxhash.xxh3_128_digest(arrays.pack(meta, blocks))
    return Label(of, says, arrays.pack({**meta, "wall_ns": time.time_ns()}, blocks))


def _blocks(name: str, values: Array | None) -> dict[str, Array]:
    if name == "success":
        if values is not None:
            raise SpecError("a success label has no values", got=values.shape, allowed="None")
        return {}
    if name in RESERVED or "@" in name:
        # ``@`` is how a draw names a version of a label.
        raise SpecError("label would hide a recorded column", got=name, allowed="another name")
    if not name or values is None or values.ndim != 1 or values.dtype.kind not in "fiu":
        got = None if values is None else (values.dtype, values.shape)
        raise SpecError(f"label {name!r}", got=got, allowed="numbers [T], one per step")
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    if np.isinf(found).any():
        allowed = "numbers that float32 holds, or NaN"
        raise SpecError(f"label {name!r} is infinite", got="infinity", allowed=allowed)
    return {"values": found}
