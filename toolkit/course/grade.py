"""Submissions, put together again from what may be trusted, and judged in a sandbox each."""

import copy
import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode, ValidationError, from_dict, validate
from nbformat.v4 import new_code_cell, new_output
from nbgrader.preprocessors import NbGraderPreprocessor
from traitlets import Bool

from toolkit.course import folders
from toolkit.course.collect import repair
from toolkit.course.folders import Course
from toolkit.course.release import HIDDEN, without_hidden_lines
from toolkit.course.runner import defined
from toolkit.course.sandbox import Limits, Sandbox, Stopped

RUNNER = Path(__file__).with_name("runner.py")
CELL_SECONDS = 90.0
"""Wall-clock seconds of one cell; a chapter's exercises take 30 in all."""
DEFAULT = Limits()
EXTRA_CELLS = 50
"""Cells of their own that students may add."""


@dataclass(frozen=True)
class Outcome:
    """What a submission came to."""

    notebook: NotebookNode
    """The source with the student's answers and the outputs of the run."""
    points: Mapping[str, float]
    """Of each test, by its `grade_id`."""
    remarks: tuple[str, ...]
    """What a teacher should look at: a replaced function, a stop by a limit."""


def grade(
    slugs: Sequence[str],
    course: Course,
    *,
    workers: int = 2,
    isolate: bool = True,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> dict[str, dict[str, float]]:
    """Grade what has been handed in, into nbgrader's gradebook.

    Submissions are judged side by side; one that was judged before, by the same tests, is not run
    again. Then nbgrader takes the results over. Grades that a person gave by hand stay.

    Args:
        slugs: notebooks; none means all that are released.
        course: the folders.
        workers: submissions at a time.
        isolate: False runs submissions with limits alone, where the machine has no namespaces.
        progress: called with (done, of how many, what) after each submission.

    Returns:
        Points by notebook and student.

    Raises:
        FileNotFoundError: for a notebook that was not released, or nothing handed in.
        NoIsolation: if the machine cannot isolate.
    """
    slugs = slugs or course.slugs()
    for slug in slugs:
        course.require_released(slug)
        repair(course, slug)
    todo = [(slug, student) for slug in slugs for student in course.students(slug)]
    if not todo:
        raise FileNotFoundError(f"nothing is handed in below {course.home / 'submitted'}")
    points: dict[str, dict[str, float]] = {slug: {} for slug in slugs}
    with ThreadPoolExecutor(workers) as pool:
        jobs = {pool.submit(judged, course, *item, isolate): item for item in todo}
        for done, job in enumerate(as_completed(jobs), 1):
            slug, student = jobs[job]
            points[slug][student] = sum(job.result().points.values())
            progress(done, len(todo), f"{slug} of {student}")
    for slug in slugs:
        course.convert("Autograde", slug)
    return points


def judged(course: Course, slug: str, student: str, isolate: bool = True) -> Outcome:
    """The outcome of one submission; kept in `judged/` until tests or answers change."""
    source = nbformat.read(course.source(slug), as_version=4)
    path = course.submitted(student, slug)
    submission = nbformat.read(path, as_version=4) if path.is_file() else None
    whole = assemble(source, submission)
    key = hashlib.sha256(nbformat.writes(whole).encode()).hexdigest()
    kept = course.home / "judged" / student / f"{slug}.json"
    if kept.is_file():
        found = json.loads(kept.read_text("utf-8"))
        if found["key"] == key:
            notebook = nbformat.reads(json.dumps(found["notebook"]), as_version=4)
            return Outcome(notebook, found["points"], tuple(found["remarks"]))
    outcome = judge(source, submission, folders.data(), isolate=isolate)
    kept_now = {"key": key, "points": dict(outcome.points), "remarks": outcome.remarks}
    folders.write(kept, json.dumps(kept_now | {"notebook": outcome.notebook}))
    return outcome


class SandboxedExecute(NbGraderPreprocessor):
    """Takes the place of nbgrader's `Execute`, whoever starts the grading."""

    isolate = Bool(True, help="run submissions in namespaces, not with limits alone").tag(
        config=True
    )

    def preprocess(self, nb: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        """The notebook as judged; nbgrader reads points from the errors that tests left."""
        names = resources["nbgrader"]
        home = Path(names["db_url"].removeprefix("sqlite:///")).parent
        outcome = judged(Course(home), names["assignment"], names["student"], self.isolate)
        nb.cells = outcome.notebook.cells
        for cell in nb.cells:
            cell.metadata.pop("added", None)
        nb.metadata["remarks"] = list(outcome.remarks)
        return nb, resources


def judge(
    source: NotebookNode,
    submission: NotebookNode | None,
    data: Path,
    limits: Limits = DEFAULT,
    isolate: bool = True,
) -> Outcome:
    """Run a submission's answers and judge them by the source's tests.

    Args:
        source: the exercises with solutions and hidden tests.
        submission: what the student handed in; None counts as empty.
        data: the folder of the data sets, readable inside if it is there.
        limits: of the sandbox.
        isolate: see `Sandbox`.

    Raises:
        NoIsolation: if the machine cannot isolate.
    """
    notebook = assemble(source, submission)
    allowed = sorted(set().union(*(defined(c.source) for c in source.cells if is_answer(c))))
    remarks: list[str] = []
    readable = [path for path in (Path(__file__).parents[1], data) if path.exists()]
    points: dict[str, float] = {cell.id: 0.0 for cell in notebook.cells if is_test(cell)}
    try:
        with Sandbox(RUNNER, readable, environment(data, isolate), limits, isolate) as sandbox:
            sandbox.receive()
            for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
                reply = _run(sandbox, cell, allowed)
                cell.outputs = reply["outputs"]
                if is_test(cell):
                    points[cell.id] = _points(cell, reply, remarks)
    except Stopped as stopped:
        remarks.append(f"stopped: {stopped}")
        _fail_the_rest(notebook, points, str(stopped))
    return Outcome(notebook, points, tuple(remarks))


def environment(data: Path, isolate: bool) -> dict[str, str]:
    """The variables that a submission sees: one thread, no pages' widgets, the data."""
    return {
        "TOOLKIT_DATA": str(data),
        "TOOLKIT_STATIC": "1",
        "TOOLKIT_JOBS": "1",
        "TQDM_DISABLE": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "MPLCONFIGDIR": "/tmp" if not isolate else "/desk",
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    }


def assemble(source: NotebookNode, submission: NotebookNode | None) -> NotebookNode:
    """The source's cells in the source's order, with the student's answers in place of solutions.

    Cells that the student has added stay behind the cell that they follow. What the student did to
    tests, to the text and to the set-up is not read at all. An answer that is missing is empty.
    """
    answers, extra = _answers(submission)
    notebook = copy.deepcopy(source)
    notebook.cells = []
    for cell in source.cells:
        kept = copy.deepcopy(cell)
        if cell.cell_type == "code":
            kept.outputs, kept.execution_count = [], None
        if is_answer(cell):
            kept.source = answers.get(_grade_id(cell), "")
        notebook.cells += [kept, *extra.get(_grade_id(cell), [])]
    return notebook


def is_test(cell: NotebookNode) -> bool:
    """Whether a cell gives points."""
    return cell.cell_type == "code" and bool(cell.metadata.get("nbgrader", {}).get("grade"))


def is_answer(cell: NotebookNode) -> bool:
    """Whether a cell is the student's, code that is."""
    if cell.cell_type != "code":
        return False
    return bool(cell.metadata.get("nbgrader", {}).get("solution")) or "added" in cell.metadata


def _answers(
    submission: NotebookNode | None,
) -> tuple[dict[str, str], dict[str, list[NotebookNode]]]:
    """The student's answers by `grade_id`, and added code cells by the one before them."""
    answers: dict[str, str] = {}
    extra: dict[str, list[NotebookNode]] = {}
    last, added = "", 0
    for cell in submission.cells if submission else []:
        name = _grade_id(cell)
        if name:
            last = name
            if cell.cell_type == "code":
                answers[name] = cell.source
        elif cell.cell_type == "code" and cell.source.strip() and added < EXTRA_CELLS:
            added += 1
            cell = new_code_cell(cell.source, id=f"added-{added}", metadata={"added": True})
            extra.setdefault(last, []).append(cell)
    return answers, extra


def _grade_id(cell: NotebookNode) -> str:
    return str(cell.metadata.get("nbgrader", {}).get("grade_id", ""))


def _run(sandbox: Sandbox, cell: NotebookNode, allowed: list[str]) -> dict:
    """One cell; a test's hidden lines are sent to the copy that asks, its proof to the end."""
    token, proof = secrets.token_hex(8), secrets.token_hex(16)
    kind = "test" if is_test(cell) else "answer" if is_answer(cell) else "given"
    request = {"kind": kind, "token": token, "seconds": CELL_SECONDS, "name": cell.id}
    sandbox.send(request | {"source": without_hidden_lines(cell.source), "allowed": allowed})
    reply = sandbox.receive()
    while isinstance(reply, dict) and "ask" in reply:
        sandbox.send({"source": cell.source} if reply["ask"] == "test" else {"proof": proof})
        reply = sandbox.receive()
    if not isinstance(reply, dict) or reply.get("token") != token:
        raise Stopped("it spoke out of turn")
    verdict = reply.get("verdict") or {}
    passed = isinstance(verdict, dict) and verdict.get("proof") == proof
    return {
        "outputs": _checked(reply.get("outputs")),
        "verdict": verdict if isinstance(verdict, dict) else {},
        "passed": passed,
    }


def _checked(outputs: object) -> list[NotebookNode]:
    """Outputs as far as they are valid ones; a sandbox may say anything."""
    found = []
    for output in outputs if isinstance(outputs, list) else []:
        try:
            node = from_dict(output)
            validate(node, ref="output", version=4, version_minor=5)
        except (ValidationError, TypeError, AttributeError, KeyError):
            continue
        found.append(node)
    return found


def _points(cell: NotebookNode, reply: dict, remarks: list[str]) -> float:
    """The points of a test; a failure leaves an error in the cell's outputs, as nbgrader asks."""
    if reply["passed"]:
        cell.outputs = [output for output in cell.outputs if output.output_type != "error"]
        return float(cell.metadata.nbgrader.points)
    text = str(reply["verdict"].get("error", "it gave no answer"))
    kind, _, message = text.partition(": ")
    if kind == "Tampered":
        remarks.append(f"{cell.id}: {message}")
    lines = cell.source.splitlines()
    number = reply["verdict"].get("line", 0)
    hidden = not isinstance(number, int) or number > _first_hidden(lines)
    said = "a hidden test fails" if hidden and kind != "Tampered" else message
    shown = [] if hidden or not 0 < number <= len(lines) else [lines[number - 1].strip()]
    _fail(cell, kind, said, [*shown, f"{kind}: {said}"])
    return 0.0


def _first_hidden(lines: list[str]) -> int:
    return next((i for i, line in enumerate(lines) if HIDDEN[0] in line), len(lines))


def _fail(cell: NotebookNode, kind: str, said: str, traceback: list[str]) -> None:
    cell.outputs = [output for output in cell.outputs if output.output_type != "error"]
    cell.outputs.append(new_output("error", ename=kind, evalue=said, traceback=traceback))


def _fail_the_rest(notebook: NotebookNode, points: dict[str, float], why: str) -> None:
    """A stop takes the points of every test that had not been judged, and says so."""
    for cell in notebook.cells:
        if is_test(cell) and not points[cell.id] and not cell.outputs:
            _fail(cell, "Stopped", why, [f"not run: {why}"])
