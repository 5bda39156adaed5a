"""What rows of one schema id look like, fixed by the first fragment that bears it.

Fields that are uint8 ``[T, H, W, C]`` are images and live in a table of their own; all others are
low-dimensional and stay in the record, so that an index can hold them in memory.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from user_system.codec.fragments import is_image
from user_system.core.errors import DamageError, SpecError
from user_system.core.types import Fragment

Shape = tuple[int, ...]
_MAX_SIDE = (1 << 16) - 1


@dataclass(frozen=True, slots=True)
class Schema:
    """Shapes of one row, without the leading T."""

    id: str
    action: int
    """Da, dimensions of an action."""
    fields: Mapping[str, tuple[str, Shape]]
    """Low-dimensional observation field -> (dtype, shape)."""
    images: Mapping[str, Shape]
    """Image field -> ``(H, W, C)``, in the order in which the image table numbers them."""

    @classmethod
    def of(cls, fragment: Fragment) -> "Schema":
        """Return the schema of a fragment's rows.

        Raises:
            SpecError: an image is empty, or larger than the image table can say.
        """
        fields: dict[str, tuple[str, Shape]] = {}
        images: dict[str, Shape] = {}
        for name, array in sorted(fragment.observation.items()):
            if is_image(array):
                if not all(0 < size <= _MAX_SIDE for size in array.shape[1:]):
                    allowed = f"(H, W, C), each 1..{_MAX_SIDE}"
                    raise SpecError(f"image {name!r}", got=array.shape[1:], allowed=allowed)
                images[name] = array.shape[1:]
            else:
                fields[name] = (array.dtype.name, array.shape[1:])
        return cls(fragment.header.schema, fragment.executed.shape[1], fields, images)

    @classmethod
    def parse(cls, key: bytes, text: bytes | str) -> "Schema":
        """Return the schema that ``text`` holds.

        Raises:
            DamageError: it is none.
        """
        try:
            value = json.loads(text)
            fields = {n: (str(d), tuple(s)) for n, (d, s) in value["fields"].items()}
            images = {n: tuple(s) for n, s in value["images"].items()}
            return cls(key.decode(), int(value["action"]), fields, images)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamageError(f"schema {key!r} is not readable", got=error) from error

    def text(self) -> bytes:
        """Return what ``parse`` reads."""
        value = {"action": self.action, "fields": self.fields, "images": self.images}
        return json.dumps(value, sort_keys=True).encode()

    def require(self, other: "Schema") -> None:
        """Refuse rows that do not stack with those of this schema.

        Raises:
            SpecError: naming the first field that differs.
        """
        if other == self:
            return
        if other.action != self.action:
            raise SpecError(
                f"actions differ from the others of schema {self.id!r}",
                got=other.action,
                allowed=f"{self.action} dimensions",
            )
        mine, theirs = _rows(self), _rows(other)
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                raise SpecError(
                    f"observation {name!r} differs from the others of schema {self.id!r}",
                    got=theirs.get(name, "absent"),
                    allowed=mine.get(name, "no such field"),
                )

    def names(self) -> tuple[str, ...]:
        """Return all observation fields."""
        return (*self.fields, *self.images)


def _rows(schema: Schema) -> dict[str, tuple[str, Shape]]:
    images = {name: ("uint8", shape) for name, shape in schema.images.items()}
    return {**schema.fields, **images}
