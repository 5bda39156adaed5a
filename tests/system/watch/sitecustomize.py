"""Loaded by every Python process of a watched run: notes what could turn bytes into running code.

``sys.addaudithook`` hears of it before it happens, whoever does it. Notes go to
``$WATCH/<pid>.jsonl``. Nothing of the product knows of this file.
"""

import json
import os
import sys

PLACE = os.environ.get("WATCH", "")
EVENTS = {"pickle.find_class", "marshal.loads", "marshal.load", "exec", "compile", "code.__new__"}
IMPORT = ("<frozen importlib", "<frozen zipimport", "<frozen runpy")
OURS = ("/user_system/", "/robots/", "/learners/", "/comms/")


def _frames() -> list[str]:
    frame, found = sys._getframe().f_back, []
    while frame is not None and len(found) < 60:
        if frame.f_code.co_filename != __file__:
            found.append(frame.f_code.co_filename)
        frame = frame.f_back
    return found


def _noteworthy(event: str, frames: list[str]) -> bool:
    nearest = frames[0] if frames else ""
    if nearest.startswith(IMPORT):
        return False  # an import reads compiled code that the interpreter itself has written
    if event in ("exec", "compile", "code.__new__"):
        # Libraries make classes and regular expressions by it; from a line of ours it is none.
        return any(part in nearest for part in OURS) and "site-packages" not in nearest
    return True


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event not in EVENTS:
        return
    frames = _frames()
    if _noteworthy(event, frames):
        note = {
            "event": event,
            "what": [str(a)[:80] for a in arguments[:3]],
            "frames": frames[:12],
            "ray": any("/ray/" in f or "/cloudpickle" in f for f in frames),
        }
        line = (json.dumps(note) + "\n").encode()
        handle = os.open(f"{PLACE}/{os.getpid()}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, line)
        os.close(handle)


if PLACE:
    # That a process is watched at all is noted too: else nothing found would say nothing.
    with open(f"{PLACE}/{os.getpid()}.watched", "w") as file:
        file.write("\0".join(sys.orig_argv))
    sys.addaudithook(_hook)
