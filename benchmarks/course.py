"""Grading a class in sandboxes: at most 2.5 × raw nbgrader on the same cores.

Raw nbgrader judges one submission after another in plain kernels; its time is divided by the
workers that ours uses. `SUBMISSIONS=100 python benchmarks/course.py` grades as many (default 10).
"""

import logging
import os
import shutil
import tempfile
import time
import warnings
from pathlib import Path

from sqlalchemy.exc import SAWarning

from toolkit.course.folders import Course, write
from toolkit.course.grade import grade
from toolkit.course.release import release

TARGET = 2.5
SLUG = "coke"
CLASS = 300
PLAIN = """c = get_config()
c.CourseDirectory.course_id = "raw"
c.CourseDirectory.root = {root!r}
c.ExecutePreprocessor.timeout = 300
"""


def main() -> None:
    warnings.filterwarnings("ignore", category=SAWarning)
    logging.disable(logging.WARNING)
    count, workers = int(os.environ.get("SUBMISSIONS", "10")), os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        ours = timed(lambda home: grade([SLUG], home, workers=workers), Path(folder, "a"), count)
        raw = timed(lambda home: home.convert("Autograde", SLUG), Path(folder, "b"), count, PLAIN)
    ratio = ours / (raw / workers)
    print(
        f"{count} submissions of {SLUG}, {workers} workers: {ours:.1f} s; raw nbgrader {raw:.1f} s "
        f"one after another\n  ratio to raw / workers: {ratio:.2f}×, target ≤ {TARGET}×: "
        f"{'met' if ratio <= TARGET else 'missed'}\n"
        f"  extrapolated from these, not measured: {CLASS} submissions in "
        f"{ours / count * CLASS / 60:.0f} min"
    )


def timed(run, home: Path, count: int, config: str = "") -> float:
    """Seconds for a class whose submissions are all the solution: the slowest kind."""
    course = Course(home)
    if config:
        write(home / "nbgrader_config.py", config.format(root=str(home)))
    release([SLUG], course)
    for number in range(count):
        target = course.submitted(f"student{number:03d}", SLUG)
        target.parent.mkdir(parents=True)
        shutil.copy(course.source(SLUG), target)
    begin = time.perf_counter()
    run(course)
    seconds = time.perf_counter() - begin
    made = list(home.glob(f"autograded/*/{SLUG}/{SLUG}.ipynb"))
    assert len(made) == count, f"{len(made)} of {count} were graded"
    return seconds


if __name__ == "__main__":
    main()
