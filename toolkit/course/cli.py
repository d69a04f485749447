"""`toolkit course …`: hand out, collect, grade, give back."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.course.folders import Course


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `course` and its commands; imports nothing heavy."""
    course = commands.add_parser(
        "course",
        help="hand out exercises, collect, grade, and give feedback",
        description="Four commands make a course of the book's exercises: release, collect, "
        "grade, report. They work on nbgrader's folders, so that formgrader shows the same course. "
        "slides and quiz make more of the same notebooks.",
    )
    steps = course.add_subparsers(required=True, metavar="STEP")

    release = steps.add_parser("release", help="make the students' notebooks")
    release.add_argument("slugs", nargs="*", metavar="SLUG", help="chapters; default: all")
    release.set_defaults(command=_release)

    collect = steps.add_parser(
        "collect",
        help="sort a folder or zip of submissions into the course",
        description="Reads what Moodle and Canvas download, nbgrader's own folders, and one file "
        "or folder a student. The last attempt counts.",
    )
    collect.add_argument("slug", metavar="SLUG", help="the notebook that was handed in")
    collect.add_argument("place", type=Path, metavar="PLACE", help="a folder or zip archive")
    collect.set_defaults(command=_collect)

    grade = steps.add_parser(
        "grade",
        help="run and judge what has been handed in, each in a sandbox",
        description="Every submission runs in processes, files and a network of its own, with "
        "limits. What was judged before is run again only if its answers or tests changed.",
    )
    grade.add_argument("slugs", nargs="*", metavar="SLUG", help="notebooks; default: all released")
    grade.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="submissions at a time (default: one a core)",
    )
    grade.add_argument(
        "--no-isolation",
        dest="isolate",
        action="store_false",
        help="for machines without namespaces: limits alone; submissions can read your files",
    )
    grade.set_defaults(command=_grade)

    report = steps.add_parser("report", help="write feedback pages and tables of grades")
    report.add_argument("slugs", nargs="*", metavar="SLUG", help="notebooks; default: all released")
    report.set_defaults(command=_report)

    reseed = steps.add_parser(
        "reseed",
        help="give the course another year's data and constants",
        description="What is released already is released again with them; grades of last year's "
        "submissions belong into last year's course, so use a --course folder a year.",
    )
    reseed.add_argument("year", type=int, metavar="YEAR")
    reseed.set_defaults(command=_reseed)

    slides = steps.add_parser(
        "slides", help="one reveal.js deck a part, from the executed chapters; needs no network"
    )
    slides.set_defaults(command=_slides)

    quiz = steps.add_parser(
        "quiz",
        help="the chapters' predictions for Moodle (XML) and Canvas (QTI 1.2)",
    )
    quiz.set_defaults(command=_quiz)

    for step in (release, collect, grade, report, reseed, slides, quiz):
        step.add_argument(
            "--course",
            type=Path,
            help="the course's folder (default: build/course of this checkout)",
        )


def _course(options: argparse.Namespace) -> "Course":
    from toolkit.course.folders import Course, default_home

    return Course((options.course or default_home()).resolve())


def _release(options: argparse.Namespace) -> int:
    from toolkit.course.release import release

    _quiet()
    for path in release(options.slugs, _course(options)):
        print(path)
    return 0


def _collect(options: argparse.Namespace) -> int:
    from toolkit.course.collect import collect

    found = collect(options.place, options.slug, _course(options))
    faults = [one for one in found if one.fault]
    print(f"{len(found)} submissions of {options.slug}")
    for one in faults:
        print(f"  {one.name} ({one.student}): {one.fault}; counts as empty")
    return 0


def _grade(options: argparse.Namespace) -> int:
    from toolkit.course.grade import grade

    def progress(done: int, total: int, what: str) -> None:
        print(f"\r{done}/{total} {what}\x1b[K", end="", file=sys.stderr, flush=True)

    if options.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {options.workers}")
    _quiet()
    points = grade(
        options.slugs,
        _course(options),
        workers=options.workers,
        isolate=options.isolate,
        progress=progress,
    )
    print(file=sys.stderr)
    for slug, marks in points.items():
        mean = sum(marks.values()) / max(1, len(marks))
        print(f"{slug}: {len(marks)} graded, {mean:.1f} points on average")
    return 0


def _report(options: argparse.Namespace) -> int:
    from toolkit.course.report import report

    _quiet()
    course = _course(options)
    rows = report(options.slugs, course)
    look = sum(bool(row.remarks or row.needs_manual_grade) for row in rows)
    print(f"{len(rows)} results, {look} to look at: {course.home / 'reports' / 'overview.md'}")
    print(f"feedback: {course.home / 'feedback'}")
    return 0


def _reseed(options: argparse.Namespace) -> int:
    from toolkit.course.release import release
    from toolkit.course.reseed import reseed

    course = _course(options)
    reseed(options.year, course)
    if slugs := course.slugs():
        _quiet()
        release(slugs, course)
    print(f"{course.home}: exercises of {options.year}, {len(slugs)} released again")
    return 0


def _slides(options: argparse.Namespace) -> int:
    from toolkit.course.slides import slides

    for path in slides(_course(options).home / "slides"):
        print(path)
    return 0


def _quiz(options: argparse.Namespace) -> int:
    from toolkit.course.quiz import export

    for path in export(_course(options).home / "quiz"):
        print(path)
    return 0


def _quiet() -> None:
    """Leave out nbgrader's and its database's small talk."""
    import logging
    import warnings

    from sqlalchemy.exc import SAWarning

    warnings.filterwarnings("ignore", category=SAWarning)
    logging.getLogger("traitlets").setLevel(logging.ERROR)
