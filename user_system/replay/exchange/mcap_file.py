"""One MCAP file, written front to back; the only door to the mcap library."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mcap.writer import CompressionType, Writer

LIBRARY = "user-system"


class McapFile:
    """Channels of JSON messages, compressed with zstd. Not readable before ``close``."""

    def __init__(self, path: Path):
        self._file: BinaryIO = path.open("xb")
        self._writer = Writer(self._file, compression=CompressionType.ZSTD)
        self._writer.start(profile="", library=LIBRARY)
        self._schemas: dict[str, int] = {}
        self._channels: dict[str, int] = {}
        self._finished = False

    def channel(self, topic: str, schema: Mapping[str, Any], notes: Mapping[str, str]) -> str:
        """Make a channel if there is none of that topic; return the topic.

        Args:
            topic: its name.
            schema: a JSON schema; its ``title`` is the name of the type.
            notes: metadata of the channel.
        """
        if topic not in self._channels:
            title = schema["title"]
            if title not in self._schemas:
                data = json.dumps(schema).encode()
                self._schemas[title] = self._writer.register_schema(title, "jsonschema", data)
            self._channels[topic] = self._writer.register_channel(
                topic, "json", self._schemas[title], dict(notes)
            )
        return topic

    def write(self, topic: str, log_ns: int, publish_ns: int, number: int, message: Any) -> None:
        """Append a message to a channel; NaN is not allowed in it."""
        data = json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
        self._writer.add_message(
            self._channels[topic], log_ns, data, publish_ns, number & 0xFFFFFFFF
        )

    def note(self, name: str, values: Mapping[str, str]) -> None:
        """Add a record about the whole file."""
        self._writer.add_metadata(name, dict(values))

    def finish(self) -> None:
        """Write indexes and footer: only now is it a whole file."""
        self._writer.finish()

    def close(self) -> None:
        """Close the file; safe to repeat."""
        self._file.close()

    def __enter__(self) -> "McapFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
