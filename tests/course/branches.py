"""The course's runner with branches: one notebook is run once, and what-ifs start in its midst.

Started inside the sandbox like `toolkit/course/runner.py`, whose session does the work. Beside its
cells it understands: `begin` (a notebook, in a copy of this process, which has imported what it
imports), `hold` (keep a copy of the state as it is now), `resume` (go on from a kept
copy), `fork` (try something in a copy), and `end` (of the copy that runs now).
"""

import contextlib
import gc
import importlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from toolkit.course.runner import Line, Session


def main():
    line = Line()
    warm(os.environ["PRELOAD"].split(), os.environ["MEMOISE"].split())
    line.say({"ready": True})
    serve(line, None)


def warm(modules, functions):
    """Import what notebooks import, and let experiments keep their results for the branches."""
    from joblib import Memory

    for name in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # no collection writes to the pages that copies share
    memory = Memory("memory", verbose=0)
    for name in functions:
        module, _, function = name.rpartition(".")
        place = importlib.import_module(module)
        setattr(place, function, memory.cache(getattr(place, function)))


def serve(line, session):
    """Do what is asked until it ends; kept copies wait, each for a byte of its own pipe.

    Every message but a cell gets one answer: from the copy that goes on, or, after its end, from
    the process that goes on then.
    """
    kept = []
    while (request := line.hear()) is not None:
        kind = request["kind"]
        if kind == "end":
            os._exit(0)
        elif kind in ("begin", "fork"):
            if child := os.fork():
                os.waitpid(child, 0)
            elif kind == "begin":
                session, kept = Session(line), []
            line.say({"done": True})
        elif kind == "hold":
            copy = Kept(kept)
            if copy.woken:
                session.guard = Trusting()
            kept.append(copy)
            line.say({"done": True})
        elif kind == "resume":
            kept[request["number"]].go()
            line.say({"done": True})
        else:
            line.say(session.do(request) | {"token": request["token"]})


class Trusting:
    """Stands for the guard in what-ifs: they are wrong, not hostile, and looking on takes time."""

    def check(self):
        pass

    def accept(self, source):
        pass

    def know(self, kind):
        return kind

    def trusted(self, value):
        return value


class Kept:
    """A copy of this process that waits; told to go, it sends a copy of its own ahead.

    Made, it returns once in the process that makes it, and once more in every copy that goes.
    """

    def __init__(self, others):
        self.woken = False
        wait, self.wake = os.pipe()
        self.over, back = os.pipe()
        if os.fork():
            os.close(wait), os.close(back)
            return
        os.close(self.wake), os.close(self.over)
        for other in others:
            os.close(other.wake), os.close(other.over)
        while os.read(wait, 1):
            if not (child := os.fork()):
                self.woken = True
                return
            os.waitpid(child, 0)
            os.write(back, b"!")
        os._exit(0)  # the notebook is over

    def go(self):
        """Let a copy run until it ends."""
        os.write(self.wake, b"!")
        os.read(self.over, 1)


if __name__ == "__main__":
    main()
