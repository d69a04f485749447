"""Points are earned by right answers, and by nothing else."""

import copy
import os
import time
from pathlib import Path

import pytest
from nbformat.v4 import new_notebook

from toolkit.course import sandbox
from toolkit.course.grade import assemble, judge
from toolkit.course.sandbox import Limits

FULL = {"square-test": 2, "square-array": 1, "mean-test": 2}
NOTHING = dict.fromkeys(FULL, 0)
RIGHT = "def square(x):\n    return x * x"
QUICK = Limits(cpu=20, wall=40, memory=2 * 2**30)


@pytest.fixture
def grade(exercises, tmp_path):
    """Grade a submission; the machine must be able to isolate."""

    def run(submission, limits=QUICK):
        return judge(exercises, submission, tmp_path, limits)

    return run


def test_the_solution_scores_all_and_an_empty_submission_none(grade, submit):
    solved, empty = grade(submit()), grade(submit(square="", mean=""))
    assert (solved.points, solved.remarks) == (FULL, ())
    assert (empty.points, empty.remarks) == (NOTHING, ())
    assert grade(None).points == NOTHING
    assert grade(new_notebook()).points == NOTHING


def test_each_test_stands_for_itself(grade, submit):
    got = grade(submit(square="def square(x):\n    return 9 if np.isscalar(x) else x**2"))
    assert got.points == {"square-test": 0, "square-array": 1, "mean-test": 2}
    error = next(c for c in got.notebook.cells if c.id == "square-test").outputs[0]
    assert error.evalue == "a hidden test fails"
    assert "144" not in str(error)


def test_a_failing_visible_line_is_shown(grade, submit):
    got = grade(submit(square="def square(x):\n    return x + x"))
    error = next(c for c in got.notebook.cells if c.id == "square-test").outputs[0]
    assert error.traceback[0] == "assert square(3) == 9"


def test_helpers_in_added_cells_count(grade, submit):
    got = grade(
        submit([(2, "def twice(f, x):\n    return f * x")], square="square = lambda x: twice(x, x)")
    )
    assert got.points == FULL


HOSTILE = {
    "replaces allclose": RIGHT.replace("x * x", "0 * x") + "\nnp.allclose = lambda *_, **__: True",
    "replaces code": "def square(x):\n    return 0 * x\ndef yes(*_, **__):\n    return True\n"
    "try:\n    np.allclose.__code__ = yes.__code__\nexcept Exception:\n    pass",
    "replaces numpy": "def square(x):\n    return 0 * x\nclass np:\n    arange = float\n"
    "    array = list\n    allclose = staticmethod(lambda *_: True)\n"
    "    isclose = allclose\n    mean = staticmethod(lambda _: 3)",
    "equals everything": "class Any:\n    def __eq__(self, other):\n        return True\n"
    "    def __getitem__(self, i):\n        return self\n    def __array__(self, *_, **__):\n"
    "        return np.arange(4.0) ** 2\ndef square(x):\n    return Any()",
    "a liar's class name": "class Any(float):\n    __module__ = 'numpy'\n"
    "    def __eq__(self, other):\n        return True\ndef square(x):\n    return Any()",
    "hides builtins": "abs = all = any = bool = float = lambda *_: True\n"
    "def square(x):\n    return 0 * x",
    "removes asserts": "import ast\nclass No(ast.NodeTransformer):\n"
    "    def visit_Assert(self, node):\n        return ast.Pass()\n"
    "get_ipython().ast_transformers.append(No())\ndef square(x):\n    return 0 * x",
    "clears the cell": "get_ipython().input_transformers_cleanup.append(lambda lines: ['pass'])\n"
    "def square(x):\n    return 0 * x",
    "exits": "import os\ndef square(x):\n    os._exit(0)",
    "exits politely": "import sys\ndef square(x):\n    sys.exit(0)",
    "prints scores": 'def square(x):\n    print(\'{"verdict": {"proof": 1}, "points": 5}\')',
    "writes to every file": "import os\ndef square(x):\n    for f in range(3, 64):\n        try:\n"
    '            os.write(f, b\'{"token": 1, "verdict": {"proof": 1}}\\n\')\n'
    "        except OSError:\n            pass",
    "traces": "import sys\nsys.settrace(lambda *_: None)\ndef square(x):\n    return 0 * x",
    "replaces AssertionError": "import builtins\nclass E(Exception):\n    pass\n"
    "builtins.AssertionError = E\ndef square(x):\n    return 0 * x",
    "loops in a test": "def square(x):\n    while True:\n        pass",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_no_trick_earns_points(grade, submit, name, monkeypatch):
    monkeypatch.setattr("toolkit.course.grade.CELL_SECONDS", 2.0)
    got = grade(submit(square=HOSTILE[name], mean=""))
    assert got.points == NOTHING, got.remarks


HUNGRY = {
    "an endless loop": "while True:\n    pass",
    "a loop that catches": "while True:\n    try:\n        while True:\n            pass\n"
    "    except BaseException:\n        pass",
    "sleeps": "import time\ntime.sleep(10_000)",
    "100 GB": "block = bytearray(100 * 2**30)",
    "a fork bomb": "import os\nwhile True:\n    os.fork()",
    "threads": "import threading, time\nwhile True:\n"
    "    threading.Thread(target=time.sleep, args=(1000,)).start()",
    "a daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
    "        time.sleep(10_000)\n    os._exit(0)",
    "a full disk": "with open('big', 'wb') as f:\n    while True:\n        f.write(bytes(2**20))",
    "endless output": "while True:\n    print('x' * 10_000)",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HUNGRY)
def test_greed_ends_and_leaves_nothing_behind(grade, submit, name, monkeypatch):
    monkeypatch.setattr("toolkit.course.grade.CELL_SECONDS", 3.0)
    begin, before = time.monotonic(), processes()
    got = grade(submit(square=HUNGRY[name]), Limits(cpu=8, wall=15, memory=2 * 2**30))
    assert time.monotonic() - begin < 40
    assert got.points["square-test"] == 0
    until = time.monotonic() + 5
    while processes() > before and time.monotonic() < until:
        time.sleep(0.1)  # the kernel is still at it
    assert processes() <= before


WRAPPED = """import torch
w = torch.zeros(1, requires_grad=True)
torch.optim.SGD([w], lr=0.1).step()  # torch wraps `step` when it is first used
average = 3.0"""


@pytest.mark.slow
def test_a_library_may_change_itself(exercises, submit, tmp_path):
    source = copy.deepcopy(exercises)
    source.cells[1].source += "\nimport torch"
    got = judge(source, submit(mean=WRAPPED), tmp_path, QUICK)
    assert (got.points, got.remarks) == (FULL, ())


def test_a_slow_cell_costs_only_its_own_points(grade, submit, monkeypatch):
    monkeypatch.setattr("toolkit.course.grade.CELL_SECONDS", 2.0)
    got = grade(submit(square="while True:\n    pass"))
    assert got.points == {"square-test": 0, "square-array": 0, "mean-test": 2}


CURIOUS = """import os, pathlib
found = []
for place in {places!r}:
    try:
        found.append(str(os.listdir(place)))
    except OSError as error:
        found.append(type(error).__name__)
    try:
        pathlib.Path(place, "written").write_text("x")
        found.append("WRITTEN")
    except OSError as error:
        found.append(type(error).__name__)
print(found, dict(os.environ), os.getcwd())
import socket
try:
    socket.create_connection(("127.0.0.1", {port}), timeout=2)
    print("CONNECTED")
except OSError:
    pass
"""


def test_it_sees_no_solution_no_other_student_no_network_and_no_environment(
    grade, submit, tmp_path, monkeypatch
):
    import socket

    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    root = Path(sandbox.__file__).parents[2]
    places = [root / "book" / "optimization", root / "tests", root, Path.home(), tmp_path, "/etc"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = CURIOUS.format(places=[str(place) for place in places], port=port)
        got = grade(submit(mean=code))
    shown = str(next(c for c in got.notebook.cells if c.id == "mean").outputs)
    assert "found" not in shown or "WRITTEN" not in shown
    for secret in ("ipynb", "hunter2", "CONNECTED", "WRITTEN", "conftest", "passwd"):
        assert secret not in shown, secret
    assert "/desk" in shown


def test_hidden_lines_are_nowhere_in_reach(grade, submit):
    code = """import gc, sys
text = " ".join(str(o) for o in gc.get_objects() if isinstance(o, (str, dict, list)))
print("SEEN" if "secret = " + "12" in text else "unseen")"""
    got = grade(submit(mean=code))
    assert "unseen" in str(next(c for c in got.notebook.cells if c.id == "mean").outputs)


def test_deleted_and_changed_cells_are_put_back(exercises, submit):
    made = submit()
    made.cells = [c for c in made.cells if c.id in ("square", "mean-test")]
    made.cells[1].source = "pass"
    made.cells[1].metadata.nbgrader.points = 100
    whole = assemble(exercises, made)
    assert [c.id for c in whole.cells] == [c.id for c in exercises.cells]
    assert whole.cells[-1].source == exercises.cells[-1].source
    assert whole.cells[-1].metadata.nbgrader.points == 2
    assert next(c for c in whole.cells if c.id == "mean").source == ""


def processes():
    """How many processes this machine runs for the sandbox's users."""
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        count += b"runner.py" in words and os.getpid() != int(folder.name)
    return count
