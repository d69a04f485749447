"""Runs one submission, cell by cell, inside the sandbox.

Started by `toolkit.course.sandbox`; the grader sends one cell a line and reads one reply a line.
A test never runs where an answer runs: this process forks, the copy receives the test with its
hidden lines, says whether it passed, and ends. So answers never see hidden lines, and what the
copy prints goes nowhere. In this process only the visible lines run, for the names that later cells
need.

Before a test, the copy compares everything that tests rely on (`builtins`, NumPy, torch, the
toolkit …) with how it was before the first answer, and refuses values whose class an answer has
made, so that neither a replaced `allclose` nor an object that equals everything passes.

What this does not stop: for the length of one test, answer and test share an interpreter. An answer
that walks the interpreter's frames while a test calls it could read that test, or forge its end.
"""

import ast
import builtins
import contextlib
import io
import json
import operator
import os
import signal
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

RELIED_ON = ("builtins", "numpy", "torch", "toolkit", "math", "cmath", "operator", "itertools")
"""Packages whose functions tests call: an answer must leave them as they were."""
OUTPUT_LIMIT = 200_000
"""Characters of output kept of a cell."""


class Line:
    """The grader's end: one message asked for, one got; nothing is read ahead."""

    def __init__(self) -> None:
        self.inwards, self.outwards = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1):
            os.dup2(nothing, standard)

    def say(self, message: dict) -> None:
        """Write a message."""
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self.outwards, data) :]

    def hear(self) -> dict | None:
        """The next message; None at the end."""
        data = b""
        while not data.endswith(b"\n"):
            if not (chunk := os.read(self.inwards, 2**16)):
                return None
            data += chunk
        return json.loads(data)


def main() -> None:
    """Do what the grader asks until it asks no more."""
    line = Line()
    session = Session(line)
    line.say({"ready": True})
    while (request := line.hear()) is not None:
        line.say(session.do(request) | {"token": request["token"]})


class Session:
    """A notebook's names, and what they were before an answer could touch them."""

    def __init__(self, line: Line) -> None:
        from IPython.core.interactiveshell import InteractiveShell

        self.line = line
        self.shell = InteractiveShell.instance(history_manager=None)
        self.shell.colors = "nocolor"
        self.guard: Guard | None = None

    def do(self, request: dict) -> dict[str, Any]:
        """Run a cell of kind `given`, `answer` or `test`."""
        if request["kind"] != "given" and self.guard is None:
            self.guard = Guard(self.shell.user_ns, set(request["allowed"]))
        if request["kind"] == "test":
            verdict = self._judged(request)
            if only_asserts(request["source"]):
                return {"outputs": [], "error": None, "verdict": verdict}
        reply = self.run(request["source"], request["seconds"])
        if request["kind"] != "answer" and self.guard is not None:
            self.guard.accept(request["source"])
        return reply | ({"verdict": verdict} if request["kind"] == "test" else {})

    def run(self, source: str, seconds: float) -> dict[str, Any]:
        """Execute a cell as Jupyter would.

        Returns:
            `outputs` in the notebook's format, `error` or None.
        """
        from IPython.utils.capture import capture_output

        with capture_output() as shown, time_limit(seconds):
            result = self.shell.run_cell(source, store_history=False)
        error = result.error_before_exec or result.error_in_exec
        return {"outputs": outputs(shown, error), "error": describe(error)}

    def _judged(self, request: dict) -> dict[str, Any]:
        """Judge a test in a copy of this process: `proof`, or `error` and `line`."""
        receive, send = os.pipe()
        if (copy := os.fork()) == 0:
            self._judge(request, send)
        os.close(send)
        with os.fdopen(receive, "rb") as stream:
            said = stream.read(20_000)
        os.waitpid(copy, 0)
        try:
            return json.loads(said)
        except ValueError:
            return {"error": "it ended before its last line", "line": 0}

    def _judge(self, request: dict, send: int) -> None:
        """In the copy; never returns. The proof is asked for after the last line has passed."""
        assert self.guard is not None
        os.dup2(os.open(os.devnull, os.O_RDWR), 2)
        name = request["name"]
        try:
            sys.settrace(None)
            sys.setprofile(None)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, request["seconds"])
            self.line.say({"ask": "test"})
            source = (self.line.hear() or {})["source"]
            self.guard.check()
            execute_watched(source, name, self.shell.user_ns, self.guard)
            self.guard.check()
            self.line.say({"ask": "proof"})
            verdict = {"proof": (self.line.hear() or {})["proof"]}
        except BaseException as error:
            verdict = {"error": describe(error), "line": first_line(error, name)}
        os.write(send, json.dumps(verdict).encode())
        os._exit(0)


class Tampered(AssertionError):
    """An answer touched what judges it."""


class Guard:
    """How things were before the first answer.

    Args:
        names: the notebook's names.
        allowed: names that the exercise asks answers to define.
    """

    def __init__(self, names: dict, allowed: set[str]) -> None:
        self.names, self.allowed, self.before = names, allowed, set(names)
        self.modules = {
            name: (vars(module), {k: v for k, v in vars(module).items() if is_fixed(k, v)})
            for name, module in list(sys.modules.items())
            if name.split(".")[0] in RELIED_ON and isinstance(module, types.ModuleType)
        }
        values = [value for _, kept in self.modules.values() for value in kept.values()]
        kinds = {value for value in values if isinstance(value, type)}
        self.parts = [
            (kind, {k: v for k, v in vars(kind).items() if callable(v)}) for kind in kinds
        ]
        values += [value for _, part in self.parts for value in part.values()]
        functions = {f for v in values if isinstance(f := plain(v), types.FunctionType)}
        self.codes = [(f, f.__code__, f.__defaults__) for f in functions]
        self.libraries = {
            Path(place).resolve()
            for name in RELIED_ON
            for place in getattr(sys.modules.get(name), "__path__", ())
        }
        self.inner = {id(code) for _, code, _ in self.codes for code in inner(code)}
        self.kinds = known_kinds()
        self.given = {name: value for name, value in names.items() if is_fixed(name, value)}

    def accept(self, source: str) -> None:
        """Take the names that a cell of the exercise itself has defined as given."""
        for name in defined(source):
            self.before.add(name)
            value = self.names.get(name)
            if is_fixed(name, value):
                self.given[name] = value
            if isinstance(value, type):
                self.kinds.add(value)

    def know(self, kind: type) -> type:
        """Trust a class; it comes back, as from a decorator."""
        self.kinds.add(kind)
        return kind

    def check(self) -> None:
        """Raise `Tampered` if anything that tests rely on was replaced."""
        for name, (now, before) in self.modules.items():
            self._compare(name, now, before)
        for function, code, defaults in self.codes:
            if function.__code__ is not code or function.__defaults__ is not defaults:
                raise Tampered(f"{function.__qualname__} is not what it was")
        for kind, before in self.parts:
            self._compare(kind.__qualname__, vars(kind), before)
        for name, value in self.given.items():
            if self.names.get(name) is not value and name not in self.allowed:
                raise Tampered(f"{name} is not what it was")
        if hiding := (set(self.names) & set(vars(builtins))) - self.allowed - self.before:
            raise Tampered(f"{min(hiding)} hides the built-in of that name")

    def _compare(self, place: str, now: Mapping[str, object], before: dict[str, object]) -> None:
        if all(map(operator.is_, map(now.get, before), before.values())):
            return
        for name, value in before.items():
            if now.get(name) is not value and not self._wraps(now.get(name), value):
                raise Tampered(f"{place}.{name} is not what it was")

    def _wraps(self, now: object, before: object) -> bool:
        """A library may wrap its own functions at first use, as torch does with `SGD.step`."""
        code = getattr(now, "__code__", None)
        if code is None or getattr(now, "__wrapped__", None) is not before:
            return False
        return id(code) in self.inner or self._of_library(code)

    def _of_library(self, code: types.CodeType) -> bool:
        """Whether a library's file, compiled again, holds this very code."""
        path = Path(code.co_filename).resolve()
        if not any(path.is_relative_to(folder) for folder in self.libraries):
            return False
        whole = compile(path.read_bytes(), code.co_filename, "exec", dont_inherit=True)
        return any(code == part for part in inner(whole))

    def trusted(self, value: Any, depth: int = 3) -> Any:
        """The value itself, unless an answer has made its class."""
        kind = type(value)
        if kind not in self.kinds and not self._may(kind):
            raise Tampered(f"a value of a class of your own, {kind.__name__}")
        if depth and kind in (list, tuple, set, dict):
            for item in value.values() if kind is dict else value:
                self.trusted(item, depth - 1)
        return value

    def _may(self, kind: type) -> bool:
        """A class that the exercise asks for, or of a module imported since."""
        if kind.__module__ == "__main__":
            return kind.__name__ in self.allowed
        module = sys.modules.get(kind.__module__)
        origin = getattr(getattr(module, "__spec__", None), "origin", None)
        found = origin and getattr(module, kind.__qualname__, None) is kind
        return bool(found) and kind.__module__ not in self.modules


def execute_watched(source: str, name: str, names: dict, guard: Guard) -> None:
    """Execute a test; every value that its lines call or name must be trusted."""
    tree = ast.fix_missing_locations(Watch().visit(ast.parse(source, name)))
    names |= {Watch.VALUE: guard.trusted, Watch.KIND: guard.know}
    exec(compile(tree, name, "exec"), names)


class Watch(ast.NodeTransformer):
    """Hands the values in a test's lines to `Guard.trusted`, its own classes to `Guard.kinds`."""

    VALUE, KIND = "__trusted__", "__own_kind__"

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """`f(x)` becomes `__trusted__(f(x))`."""
        self.generic_visit(node)
        return self._through(self.VALUE, node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """`x` becomes `__trusted__(x)` where it is read."""
        return self._through(self.VALUE, node) if isinstance(node.ctx, ast.Load) else node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """A class of the test itself is known from its definition on."""
        self.generic_visit(node)
        node.decorator_list.append(ast.Name(self.KIND, ast.Load()))
        return node

    def _through(self, name: str, node: ast.expr) -> ast.AST:
        return ast.copy_location(ast.Call(ast.Name(name, ast.Load()), [node], []), node)


def is_fixed(name: str, value: object) -> bool:
    """Whether a name is one that nobody has reason to give another value."""
    fixed = isinstance(value, type | types.ModuleType) or callable(value)
    return fixed and not (name.startswith("_") and len(name) < 4) and name not in SHELL


SHELL = {"get_ipython", "exit", "quit", "open", "display"}
"""Names that IPython sets itself."""


def plain(value: object) -> object:
    """The function of a static or class method; anything else as it is."""
    return value.__func__ if isinstance(value, staticmethod | classmethod) else value


def inner(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of the functions that a function defines."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from inner(constant)


def known_kinds() -> set[type]:
    """Every class there is now."""
    found: set[type] = {object}
    todo: list[type] = [object]
    while todo:
        new: set[type] = set(type.__subclasses__(todo.pop())) - found
        found |= new
        todo += new
    return found


def defined(source: str) -> set[str]:
    """The names that a piece of code defines at its top level."""
    found: set[str] = set()
    for node in ast.parse(source).body:
        for part in ast.walk(node):
            if isinstance(part, ast.FunctionDef | ast.ClassDef):
                found.add(part.name)
            elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                found.add(part.id)
            elif isinstance(part, ast.alias):
                found.add((part.asname or part.name).split(".")[0])
    return found


def only_asserts(source: str) -> bool:
    """Whether a test's visible lines leave nothing behind."""
    return all(isinstance(node, ast.Assert) for node in ast.parse(source).body)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt a cell; a cell that resists meets the sandbox's limits."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"the cell took more than {seconds:.0f} s")

    before: Callable | int | None = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except TimeoutError:
        pass  # raised between the cell's last line and the timer's end
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outputs(shown: Any, error: BaseException | None) -> list[dict]:
    """What a cell showed, as a notebook keeps it."""
    found: list[dict] = []
    for name in ("stdout", "stderr"):
        if text := getattr(shown, name)[:OUTPUT_LIMIT]:
            found.append({"output_type": "stream", "name": name, "text": text})
    for rich in shown.outputs:
        data = {kind: value for kind, value in rich.data.items() if len(str(value)) < OUTPUT_LIMIT}
        found.append({"output_type": "display_data", "data": data, "metadata": {}})
    if error is not None:
        found.append(
            {
                "output_type": "error",
                "ename": type(error).__name__,
                "evalue": str(error)[:2000],
                "traceback": [text_of(error)],
            }
        )
    return found


def text_of(error: BaseException) -> str:
    """The traceback without the runner's own frames."""
    stream = io.StringIO()
    traceback.print_exception(type(error), error, error.__traceback__, limit=-5, file=stream)
    return stream.getvalue()[-4000:]


def describe(error: BaseException | None) -> str | None:
    """`ValueError: message`, in one line."""
    if error is None:
        return None
    return f"{type(error).__name__}: {str(error)[:500]}"


def first_line(error: BaseException, name: str) -> int:
    """The test's line that failed; 0 if none."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or 0 for frame in frames if frame.filename == name), 0)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
