"""What the operating system says of a path, in our words: what it refused, and what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from user_system.core.errors import StoreError

_SPACE = "Free some space on its disk."
_RIGHTS = "Run this as somebody who may, or change the rights of the path."
_PATH = "Check the path."
_TODO = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: "Its file system may only be read: choose another place, or mount it for writing.",
    errno.EIO: "Its disk failed: look at the kernel's log, and go on with a backup.",
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG), _PATH
    ),
}


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what the system refuses into an error of ours.

    Args:
        what: what cannot be done then, such as "cannot open runs/demo/replay".

    Raises:
        StoreError: it refused something.
    """
    try:
        yield
    except OSError as error:
        todo = _TODO.get(error.errno or 0, "Check the path, its rights and its disk.")
        raise StoreError(what, got=error, todo=todo) from error
