"""What a transaction of LMDB offers, as far as this project uses it."""

from typing import Any, Protocol


class Cursor(Protocol):
    """A position in one table."""

    def first(self) -> bool:
        """Go to the first key."""

    def last(self) -> bool:
        """Go to the last key."""

    def next(self) -> bool:
        """Go to the next key."""

    def set_range(self, key: bytes) -> bool:
        """Go to the first key >= ``key``."""

    def key(self) -> Any:
        """Return the key here."""

    def value(self) -> Any:
        """Return the value here."""


class Txn(Protocol):
    """A transaction. What it returns from reads is valid until it ends."""

    def get(self, key: bytes, default: None = None, db: Any = None) -> Any:
        """Return a value or None."""

    def put(self, key: bytes, value: Any, *, db: Any = None, append: bool = False) -> bool:
        """Store a value."""

    def delete(self, key: bytes, value: bytes = b"", db: Any = None) -> bool:
        """Remove a key; False if there was none."""

    def cursor(self, db: Any = None) -> Cursor:
        """Return a cursor on a table."""

    def stat(self, db: Any) -> dict[str, int]:
        """Return pages and entries of a table."""

    def id(self) -> int:
        """Return the number of the transaction, or of the last one that a snapshot includes."""
