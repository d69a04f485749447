"""Where a course lies: nbgrader's folders, so that its own tools work on them.

source/SLUG/SLUG.ipynb                  with solutions and hidden tests
release/SLUG/SLUG.ipynb                 what students get
submitted/STUDENT/SLUG/SLUG.ipynb       what they hand in
autograded/STUDENT/SLUG/SLUG.ipynb      the same, run and judged
feedback/STUDENT/SLUG/SLUG.html         what they get back
gradebook.db                            nbgrader's database
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from traitlets.config import Config

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,99}")
"""What may be the name of a student's folder: no separator, no leading dot."""
CONFIG = """# Read by nbgrader in this folder; written by `toolkit course release`.
c = get_config()
c.CourseDirectory.course_id = "papers-that-run"
c.CourseDirectory.root = {root!r}
c.CourseDirectory.ignore = [".ipynb_checkpoints", "origin.json", "unreadable"]
# Submissions run in a sandbox, whoever starts the grading: this command line or formgrader.
c.Autograde.autograde_preprocessors = [
    "toolkit.course.grade.SandboxedExecute",
    "nbconvert.preprocessors.ClearMetadataPreprocessor",
    "nbgrader.preprocessors.LimitOutput",
    "nbgrader.preprocessors.SaveAutoGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]
c.ClearMetadataPreprocessor.enabled = False
# Feedback never holds a hidden test.
c.GenerateFeedback.preprocessors = [
    "toolkit.course.report.HideTests",
    "nbgrader.preprocessors.GetGrades",
    "nbconvert.preprocessors.CSSHTMLHeaderPreprocessor",
]
"""


class NotConverted(ValueError):
    """nbgrader could not do its part; the message says which."""


@dataclass(frozen=True)
class Course:
    """The folders of one course."""

    home: Path

    def source(self, slug: str) -> Path:
        """The notebook with solutions and hidden tests."""
        return self.home / "source" / slug / f"{slug}.ipynb"

    def release(self, slug: str) -> Path:
        """The notebook for students."""
        return self.home / "release" / slug / f"{slug}.ipynb"

    def submitted(self, student: str, slug: str) -> Path:
        """What a student has handed in."""
        return self.home / "submitted" / student / slug / f"{slug}.ipynb"

    def students(self, slug: str) -> list[str]:
        """Who has handed in this notebook, in order."""
        found = self.home.glob(f"submitted/*/{slug}")
        return sorted(path.parent.name for path in found if NAME.fullmatch(path.parent.name))

    def slugs(self) -> list[str]:
        """What has been released, in order."""
        return sorted(path.parent.name for path in self.home.glob("release/*/*.ipynb"))

    def configure(self) -> None:
        """Write nbgrader's configuration; a teacher's own stays as it is."""
        path = self.home / "nbgrader_config.py"
        if not path.exists():
            self.home.mkdir(parents=True, exist_ok=True)
            write(path, CONFIG.format(root=str(self.home)))

    def nbgrader_config(self) -> "Config":
        """The configuration that nbgrader's own tools read in this folder."""
        from traitlets.config.loader import PyFileConfigLoader

        self.configure()
        return PyFileConfigLoader("nbgrader_config.py", path=str(self.home)).load_config()

    def convert(self, kind: str, slug: str) -> None:
        """Run one of nbgrader's converters over all of a notebook, as its own commands would.

        Args:
            kind: `"GenerateAssignment"`, `"Autograde"` or `"GenerateFeedback"`.
            slug: the notebook.

        Raises:
            NotConverted: if nbgrader gives up.
        """
        from nbgrader import converters
        from nbgrader.coursedir import CourseDirectory

        config = self.nbgrader_config()
        config.CourseDirectory.assignment_id = slug
        directory = CourseDirectory(config=config)
        converter = getattr(converters, kind)(coursedir=directory, config=config)
        converter.force = True
        try:
            converter.start()
        except (converters.base.NbGraderException, SystemExit) as error:
            raise NotConverted(f"nbgrader's {kind} gives up on {slug}: {error}") from error

    def require_released(self, slug: str) -> None:
        """Raise `FileNotFoundError` that names the command if students cannot have it yet."""
        if not self.source(slug).is_file():
            raise FileNotFoundError(
                f"{slug} is not in the course {self.home}; run: toolkit course release {slug}"
            )


def default_home() -> Path:
    """`build/course` of a checkout, else below the data folder."""
    return ROOT / "build" / "course" if (ROOT / "pyproject.toml").is_file() else data() / "course"


def data() -> Path:
    """The folder of the data sets: `$TOOLKIT_DATA`, by default in the user's cache."""
    return Path(os.environ.get("TOOLKIT_DATA", Path.home() / ".cache" / "papers-that-run"))


def write(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)
