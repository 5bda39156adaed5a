"""Looks at a run from where it is asked to run: one line of JSON for each line on stdin.

python look.py RUN
"""

import json
import sys
from pathlib import Path

from user_system.cluster import status
from user_system.cluster.parse import dump
from user_system.core.errors import LinkError


def main() -> None:
    """Look until stdin ends; null: the hub does not answer."""
    with status.Looker(Path(sys.argv[1])) as looker:
        for _ in sys.stdin:
            try:
                view = dump(looker.look())
            except LinkError:
                view = None
            print(json.dumps(view), flush=True)


if __name__ == "__main__":
    main()
