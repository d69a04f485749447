"""Records: the verdicts of a run, kept as `evidence/SLUG.json`, and what notebooks hold."""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from toolkit.evidence.claims import MIME, Verdict
from toolkit.source import digest

PROFILES = ("quick", "full")
REPORTED = ("torch", "numpy", "scipy")


@dataclass(frozen=True)
class Record:
    """One profile's half of `evidence/SLUG.json`.

    Attributes:
        verdicts: in the chapter's order.
        seeds: how many the chapter ran.
        seconds: wall time of the chapter.
        date: of the run, ISO.
        versions: of Python and the libraries that decide numbers.
        code: digest of the paper's module and all it reaches.
        stale: True once that digest differs.
    """

    verdicts: list[Verdict]
    seeds: int
    seconds: float
    date: str
    versions: dict[str, str]
    code: str
    stale: bool


def evidence_folder() -> Path:
    """`evidence/` of the checkout, or `$TOOLKIT_EVIDENCE`."""
    default = Path(__file__).parents[2] / "evidence"
    return Path(os.environ.get("TOOLKIT_EVIDENCE", default))


def write_record(
    slug: str, profile: str, verdicts: Sequence[Verdict], seeds: int, seconds: float
) -> Path:
    """Write one profile's half of the record; the other half stays as it is.

    Raises:
        ValueError: for a profile that is not recorded, or no verdicts at all.
    """
    from toolkit import module_name

    if profile not in PROFILES:
        raise ValueError(f"recorded profiles are {PROFILES}, got {profile!r}")
    if not verdicts:
        raise ValueError(f"the run of {slug} gave no verdict to record")
    path = evidence_folder() / f"{slug}.json"
    data = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    data[profile] = {
        "date": datetime.now(UTC).date().isoformat(),
        "seeds": seeds,
        "seconds": round(seconds, 1),
        "versions": {"python": platform.python_version()} | {n: version(n) for n in REPORTED},
        "code": digest(module_name(slug)),
        "verdicts": [verdict.to_json() for verdict in verdicts],
    }
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(
        json.dumps(dict(sorted(data.items())), indent=1, ensure_ascii=False) + "\n", "utf-8"
    )
    temporary.replace(path)
    return path


def read_record(slug: str) -> dict[str, Record]:
    """The recorded profiles of a chapter; empty if none.

    Raises:
        ValueError: if the file is damaged.
    """
    from toolkit import module_name

    path = evidence_folder() / f"{slug}.json"
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text("utf-8"))
        code = digest(module_name(slug))
        return {profile: _record(half, code) for profile, half in data.items()}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} is damaged ({error!r}); record the chapter again") from error


def recorded(id: str, profile: str = "full") -> Verdict:
    """The dated verdict of a recorded run, to be shown where this run cannot judge.

    Raises:
        LookupError: if that claim was never recorded in that profile.
    """
    slug = id.partition("/")[0]
    record = read_record(slug).get(profile)
    for verdict in record.verdicts if record else ():
        if verdict.id == id:
            return verdict
    raise LookupError(f"{id} has no {profile} record; run: toolkit run {slug} --profile {profile}")


def harvest(notebook: Any) -> list[Verdict]:
    """The verdicts that an executed notebook shows, without those shown by `recorded`.

    Args:
        notebook: a NotebookNode with outputs.

    Raises:
        ValueError: if a claim's id stands twice.
    """
    found = [
        Verdict.from_json(output["data"][MIME])
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
        if MIME in output.get("data", {})
    ]
    twice = _repeated(verdict.id for verdict in found)
    if twice:
        raise ValueError(f"these claims stand twice in one notebook: {sorted(twice)}")
    return found


def _record(half: dict[str, Any], code: str) -> Record:
    return Record(
        verdicts=[Verdict.from_json(item, half["date"]) for item in half["verdicts"]],
        seeds=half["seeds"],
        seconds=half["seconds"],
        date=half["date"],
        versions=half["versions"],
        code=half["code"],
        stale=half["code"] != code,
    )


def _repeated(names: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    return {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]
