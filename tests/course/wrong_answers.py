"""Wrong answers as data: `wrong/SLUG.toml`, and one run of a notebook that judges them all.

A file names the functions that are `costly` and depend on their arguments alone (their results are
kept, so that a wrong answer which asks the same does not wait again), the cells whose answers are
`numbers` (last year's must not pass this year), and tables `[[wrong]]`: the `cell` of the answer,
`why` in one line, either `change` (pairs of old and new text) or `answer` (the whole cell), and
`fails`: the tests that it must fail. It must pass the others.
"""

import dis
import tomllib
from pathlib import Path

from nbformat import NotebookNode

from toolkit.course import grade as grading
from toolkit.course.grade import is_answer, is_test
from toolkit.course.runner import defined, inner

LITERAL = """
def literals(names):
    import torch
    import numpy

    def text(value):
        if isinstance(value, torch.Tensor | numpy.ndarray | numpy.generic):
            return f"np.array({value.tolist()!r})"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{text(k)}: {text(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list | tuple):
            return type(value).__name__ + "([" + ", ".join(map(text, value)) + "])"
        if type(value).__name__ == "Estimate":
            parts = (value.value, value.low, value.high, value.n, value.method)
            return "Estimate(" + ", ".join(map(repr, parts)) + ")"
        if isinstance(value, bool | int | float | str):
            return repr(value)
        raise TypeError

    lines = []
    for name in names:
        try:
            lines.append(f"{name} = {text(globals()[name])}")
        except (TypeError, KeyError):
            pass
    head = "from toolkit.evidence import Estimate\\nnan, inf = float('nan'), float('inf')\\n"
    return head + "\\n".join(lines) if lines else ""
"""
"""Code that writes values as Python code: what a student would copy."""
PLACE = Path(__file__).with_name("wrong")


def load(slug):
    """The file of a chapter: `costly`, `numbers` and `wrong`."""
    path = PLACE / f"{slug}.toml"
    empty = {"costly": [], "numbers": [], "wrong": []}
    return empty | (tomllib.loads(path.read_text("utf-8")) if path.is_file() else {})


def written(cells, wrong):
    """The source of a wrong answer's cell.

    Raises:
        ValueError: if a change does not meet exactly one place of the solution.
    """
    source = cells[wrong["cell"]].source
    if "answer" in wrong:
        return wrong["answer"]
    for old, new in wrong["change"]:
        if source.count(old) != 1:
            raise ValueError(f"{wrong['why']}: {source.count(old)} places hold {old!r}")
        source = source.replace(old, new)
    return source


class Judge:
    """Talks with `branches.py` about one notebook.

    Args:
        sandbox: that runs it.
        notebook: with solutions and hidden tests.
    """

    def __init__(self, sandbox, notebook):
        self.sandbox = sandbox
        self.cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        self.by_name = {cell.id: cell for cell in self.cells}
        self.answers = [cell.id for cell in self.cells if is_answer(cell)]
        self.tests = [cell.id for cell in self.cells if is_test(cell)]
        self.allowed = sorted(
            set().union(*(defined(self.by_name[name].source) for name in self.answers))
        )

    def solved(self):
        """Run the solution, keeping the state before each answer: `{test: error or ""}`."""
        self._say("begin")
        found = {}
        for cell in self.cells:
            if is_answer(cell):
                self._say("hold")
            found |= self._run(cell, cell.source)
        return found

    def empty(self):
        """The verdicts on a submission without answers."""
        self._say("resume", number=0)
        found = {}
        for cell in self._from(self.answers[0]):
            found |= self._run(cell, "" if is_answer(cell) else cell.source)
        self._say("end")
        return found

    def tried(self, name, sources):
        """The verdicts on other sources of one answer; tests that it does not reach are left out.

        Returns:
            One `{test: error or ""}` a source.
        """
        self._say("resume", number=self.answers.index(name))
        found = []
        for source in sources:
            self._say("fork")
            verdicts = {}
            for cell in reached(self._from(name)):
                verdicts |= self._run(cell, source if cell.id == name else cell.source)
            self._say("end")
            found.append(verdicts)
        self._say("end")
        return found

    def numbers(self):
        """After the solution: a line of code a cell that sets its numbers without computing them.

        Cells that set none, and those whose tag says that they are conclusions, are left out.
        """
        found = {}
        for name in self.answers:
            cell = self.by_name[name]
            if "conclusion" not in cell.metadata.get("tags", []):
                wanted = sorted(names_of(cell.source)[1])
                if text := self.shown(f"{LITERAL}\nprint(literals({wanted!r}))").strip():
                    found[name] = text
        return found

    def shown(self, source):
        """What a line of code prints after the solution."""
        reply = self._reply(changed(self.cells[0], source))
        return "".join(output.get("text", "") for output in reply["outputs"])

    def close(self):
        """Leave the notebook."""
        self._say("end")

    def _from(self, name):
        return self.cells[self.cells.index(self.by_name[name]) :]

    def _run(self, cell, source):
        reply = self._reply(changed(cell, source))
        if not is_test(cell):
            return {}
        error = reply["verdict"].get("error", "it gave no answer")
        return {cell.id: "" if reply["passed"] else error}

    def _reply(self, cell):
        return grading._run(self.sandbox, cell, self.allowed)

    def _say(self, kind, **more):
        self.sandbox.send({"kind": kind} | more)
        assert self.sandbox.receive() == {"done": True}


def changed(cell, source):
    """The same cell with another source."""
    return NotebookNode(cell | {"source": source})


def reached(cells):
    """The first cell, those that its names reach, and those that these need, in order."""
    reads, writes = zip(*(names_of(cell.source) for cell in cells), strict=True)
    bodies = {}
    for cell in cells:
        bodies |= functions(cell.source)
    reads = [through(names, bodies) for names in reads]
    kept, names = {0}, set(writes[0])
    for i in range(1, len(cells)):
        if reads[i] & names:
            kept.add(i)
            names |= writes[i]
        else:
            names -= writes[i]
    needed: set[str] = set()
    for i in reversed(range(1, len(cells))):
        if i in kept or writes[i] & needed:
            kept.add(i)
            needed = (needed - writes[i]) | reads[i]
    return [cells[i] for i in sorted(kept)]


def names_of(source):
    """The global names that a cell reads from other cells, and those that it sets."""
    code, reads, writes = compile(source, "cell", "exec"), set(), set()
    for step in dis.get_instructions(code):
        if step.opname == "STORE_NAME":
            writes.add(step.argval)
        elif step.opname == "LOAD_NAME" and step.argval not in writes:
            reads.add(step.argval)
    for part in inner(code):
        reads |= globals_of(part) - writes
    return reads, writes


def globals_of(code):
    """The global names that a function's own code reads."""
    return {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}


def functions(source):
    """What each function of a cell reads when it is called."""
    return {
        part.co_name: globals_of(part).union(*(globals_of(deeper) for deeper in inner(part)))
        for part in inner(compile(source, "cell", "exec"))
    }


def through(names, bodies):
    """Names, with those that the functions among them read."""
    found, todo = set(), set(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo |= bodies.get(name, set())
    return found
