"""What a set of weights must be before it is stored, and how its manifest is kept on disk."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from user_system.codec import weights as codec
from user_system.codec.arrays import DTYPES, Buffer
from user_system.core.errors import DamageError, SpecError
from user_system.core.ports import Manifest, TensorEntry

_HASH = re.compile(r"[0-9a-f]{64}")

FORMAT = 2
"""Of manifests on disk; 1 kept every tensor in a file of its own."""


def check_offer(manifest: Manifest, max_bytes: int) -> None:
    """Check a manifest before anything is allocated for it.

    Raises:
        SpecError: an odd policy id, a tensor twice, a dtype or hash that may not travel, more bytes
            than ``max_bytes``, or a hash that is not that of these tensors.
    """
    _check_policy_id(manifest.policy)
    names = [(entry.module, entry.name) for entry in manifest.tensors]
    if not names or len(set(names)) < len(names):
        raise SpecError("weights need at least one tensor, and each name once", got=len(names))
    for entry in manifest.tensors:
        if entry.dtype not in DTYPES or not is_hash(entry.hash):
            raise SpecError(
                f"tensor {entry.module}/{entry.name} may not travel",
                got=f"dtype {entry.dtype[:40]}, hash {entry.hash[:80]!r}",
                allowed=f"sha256 in hex and a dtype of {', '.join(sorted(DTYPES))}",
            )
    total = sum(nbytes(entry) for entry in manifest.tensors)
    if total > max_bytes:
        raise SpecError("weights are too large", got=total, allowed=f"{max_bytes} bytes")
    if manifest.hash != content_hash(manifest):
        raise SpecError("the hash is not that of these tensors", got=manifest.hash[:80])


def check_architecture(known: Manifest, offered: Manifest) -> None:
    """Check that two versions of a policy have the same tensors, by name, dtype and shape.

    Raises:
        SpecError: naming what differs.
    """
    different = _shapes(known) ^ _shapes(offered)
    if different:
        texts = sorted(f"{m}/{n} {d}{list(s)}" for m, n, d, s in different)
        raise SpecError(
            f"weights of another architecture than {known.policy!r} has",
            got=", ".join(texts[:4]),
            todo="A changed network is another policy: give it another id.",
        )


def check_tensor(entry: TensorEntry, data: Buffer) -> None:
    """Check the bytes of one tensor against its entry.

    Raises:
        SpecError: they are other bytes than those offered, or not finite.
    """
    digest = codec.tensor_digest(entry.dtype, entry.shape)
    digest.update(data)
    name = f"{entry.module}/{entry.name}"
    if digest.hexdigest() != entry.hash:
        raise SpecError(f"tensor {name} is not the one offered", todo="Send it again.")
    array = np.frombuffer(data, np.dtype(entry.dtype).newbyteorder("<"))
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise SpecError(f"tensor {name} is not finite", todo="The learner has diverged.")


def content_hash(manifest: Manifest) -> str:
    """Return the identity that these tensors make."""
    return codec.entries_hash(codec.Entry(*entry) for entry in manifest.tensors)


def nbytes(entry: TensorEntry) -> int:
    """Return the size of a tensor in bytes."""
    size = np.dtype(entry.dtype).itemsize
    for length in entry.shape:
        size *= int(length)
    return size


def is_hash(text: str) -> bool:
    """Return whether ``text`` is a sha256 in hex, and so safe as a file's name."""
    return _HASH.fullmatch(text) is not None


def to_bytes(manifest: Manifest, brought: Mapping[str, int]) -> bytes:
    """Return a manifest as it is kept on disk.

    Args:
        manifest: what the version consists of.
        brought: tensors that came with it, and where each begins in its file.
    """
    value: dict[str, Any] = {
        "format": FORMAT,
        "brought": dict(brought),
        "policy": manifest.policy,
        "version": manifest.version,
        "hash": manifest.hash,
        "tensors": [list(entry) for entry in manifest.tensors],
        "bases": dict(manifest.bases),
        "notes": dict(manifest.notes),
    }
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def read(path: Path) -> tuple[Manifest, dict[str, int]]:
    """Return the manifest that was written to ``path``, and what it says to have brought.

    Raises:
        DamageError: it is not what was written.
    """
    try:
        value = json.loads(path.read_text())
        if value.get("format") != FORMAT:
            raise DamageError(
                f"{path} is of another format",
                got=value.get("format"),
                allowed=FORMAT,
                todo="It was written by an older release: publish the weights again.",
            )
        brought = {str(tensor): int(at) for tensor, at in value["brought"].items()}
        tensors = tuple(TensorEntry(m, n, d, tuple(s), h) for m, n, d, s, h in value["tensors"])
        bases, notes = dict(value["bases"]), dict(value["notes"])
        version = int(value["version"])
        manifest = Manifest(value["policy"], version, value["hash"], tensors, bases, notes)
        if not brought.keys() <= {entry.hash for entry in tensors} or min(
            brought.values(), default=0
        ):
            raise ValueError("tensors that are not of it")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamageError(f"{path} is damaged", got=str(error)) from error
    if manifest.hash != content_hash(manifest):
        raise DamageError(f"{path} is damaged", got="a hash that is not that of its tensors")
    return manifest, brought


def _shapes(manifest: Manifest) -> set[tuple[str, str, str, tuple[int, ...]]]:
    return {(e.module, e.name, e.dtype, tuple(e.shape)) for e in manifest.tensors}


def _check_policy_id(policy: str) -> None:
    """Policy ids become directory names, so they are held to a plain alphabet."""
    plain = policy.replace("-", "").replace("_", "").replace(".", "")
    fits = plain.isalnum() and plain.isascii() and len(policy) <= 64
    if not fits or policy.startswith(".") or policy == "tensors":
        raise SpecError(
            "not a policy id",
            got=repr(policy[:80]),
            allowed="up to 64 of a-z A-Z 0-9 - _ . without a leading dot, and not 'tensors'",
        )
