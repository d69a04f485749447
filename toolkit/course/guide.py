"""The tables of the teaching guide, made from the chapters that stand, as Markdown."""

import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import nbformat

from toolkit.course.chapters import Chapter, chapters
from toolkit.course.folders import ROOT
from toolkit.evidence import read_record

EXERCISES_MINUTES = 180
"""What a student needs for three exercises; an estimate, said as such on the page."""


@dataclass(frozen=True)
class Lesson:
    """A chapter with what `book/teaching.toml` says of it."""

    chapter: Chapter
    short: int
    needs: str
    goals: tuple[str, ...]

    @property
    def link(self) -> str:
        """The chapter's title, leading to its page."""
        return f"[{self.chapter.title}](/{self.chapter.path.relative_to(ROOT).as_posix()})"


@dataclass(frozen=True)
class Exercise:
    """One of a chapter's exercises."""

    title: str
    points: float
    tests: int


def table(name: str) -> str:
    """One of the guide's tables.

    Args:
        name: `"chapters"`, `"goals"`, `"weeks-12"` or `"weeks-4"`.

    Raises:
        ValueError: for another name, or a chapter that `book/teaching.toml` does not describe.
    """
    tables: dict[str, Callable[[], str]] = {
        "chapters": _chapters,
        "goals": _goals,
        "weeks-12": lambda: _weeks(12),
        "weeks-4": lambda: _weeks(4),
    }
    if name not in tables:
        raise ValueError(f"the guide has the tables {', '.join(tables)}, not {name!r}")
    return tables[name]()


def lessons() -> list[Lesson]:
    """Every chapter that stands, in reading order.

    Raises:
        ValueError: naming what `book/teaching.toml` lacks.
    """
    told = tomllib.loads((ROOT / "book" / "teaching.toml").read_text("utf-8"))
    found = []
    for chapter in chapters():
        try:
            one = told[chapter.slug]
            found.append(Lesson(chapter, one["short"], one["needs"], tuple(one["goals"])))
        except KeyError as missing:
            raise ValueError(f"book/teaching.toml lacks {missing} of {chapter.slug}") from None
    return found


def exercises_of(chapter: Chapter) -> list[Exercise]:
    """The exercises of a chapter: titles, points and numbers of tests."""
    path = chapter.path.with_name(f"{chapter.slug}_exercises.ipynb")
    found: list[Exercise] = []
    for cell in nbformat.read(path, as_version=4).cells:
        heading = re.match(r"## \d+\. (.+)", cell.source)
        if cell.cell_type == "markdown" and heading:
            found.append(Exercise(heading[1], 0.0, 0))
        marks = cell.metadata.get("nbgrader", {})
        if marks.get("grade") and found:
            last = found[-1]
            found[-1] = Exercise(last.title, last.points + marks["points"], last.tests + 1)
    return found


def _chapters() -> str:
    """Prerequisites, time to read, time to run."""
    rows = []
    for lesson in lessons():
        record = read_record(lesson.chapter.slug)
        seconds = [
            f"{record[name].seconds:.0f}\u00a0s" if name in record else "not recorded"
            for name in ("quick", "full")
        ]
        minutes = f"{lesson.chapter.reading_minutes}\u00a0min"
        rows.append([lesson.chapter.part, lesson.link, lesson.needs, minutes, *seconds])
    return _markdown(["Part", "Chapter", "Needs", "Reading", "`quick`", "`full`"], rows)


def _goals() -> str:
    """Which exercise checks which goal."""
    rows = []
    for lesson in lessons():
        own = exercises_of(lesson.chapter)
        for number, (goal, exercise) in enumerate(zip(lesson.goals, own, strict=True), 1):
            checked = f"{number}. {exercise.title}"
            points = f"{exercise.points:g} ({exercise.tests}\u00a0tests)"
            rows.append([lesson.link if number == 1 else "", goal, checked, points])
    return _markdown(["Chapter", "Goal", "Exercise", "Points"], rows)


def _weeks(count: int) -> str:
    """A syllabus: the first chapters in line, in reading order, and what frames them."""
    return _markdown(["Week", "In class", "At home", "Hours"], list(_plan(count)))


def _plan(count: int) -> Iterator[list[str]]:
    opening, closing = (1, 2) if count >= 8 else (0, 0)
    most = count - opening - closing
    line = sorted(lessons(), key=lambda lesson: lesson.short)
    taught = [lesson for lesson in lessons() if lesson in line[:most]]
    if opening:
        yield ["1", "How to read a claim: estimate, interval, rule, verdict", SETUP, "2"]
    for week, lesson in enumerate(taught, 1 + opening):
        yield [
            str(week),
            f"{lesson.link}: play, predict, claims",
            f"read; exercises ({_points(lesson)} points)",
            f"{(lesson.chapter.reading_minutes + EXERCISES_MINUTES) / 60:.0f}",
        ]
    spare = range(1 + opening + len(taught), count + 1)
    for place, week in enumerate(spare):
        last = place == len(spare) - 1
        yield [str(week), *(LAST if last else PROJECT), "6"]


SETUP = "install, build the book, read its introduction"
PROJECT = ("Project: one claim, a setting that the chapter did not try", "run, write two pages")
LAST = ("Presentations: what held, what failed", "read two reports of others")


def _points(lesson: Lesson) -> str:
    return f"{sum(exercise.points for exercise in exercises_of(lesson.chapter)):g}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
