"""The single-process loop as a process: ``python -m user_system.cluster.bench.single_host FILE``.

Prints the report of ``SingleLoop`` as one JSON object, the last line of its output.
"""

import json
import sys

from user_system.cluster.bench.single import SingleConfig, SingleLoop
from user_system.cluster.parse import read_json


def main() -> None:
    """Run what the file says."""
    print(json.dumps(SingleLoop(read_json(sys.argv[1], SingleConfig)).run()))


if __name__ == "__main__":
    main()
