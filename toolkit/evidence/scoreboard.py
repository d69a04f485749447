"""The scoreboard: every claim of the book in one table."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.evidence.claims import FAILS, HOLDS, Verdict, holm
from toolkit.evidence.records import Record


@dataclass(frozen=True)
class Chapter:
    """What the scoreboard knows of a chapter.

    Attributes:
        slug: its name.
        title: as printed.
        href: of its page, from the scoreboard's.
        verdicts: of this build.
        records: of recorded runs, by profile.
    """

    slug: str
    title: str
    href: str
    verdicts: list[Verdict]
    records: dict[str, Record]


def render(chapters: Sequence[Chapter]) -> str:
    """The scoreboard as HTML: one table a chapter, a summary above."""
    full = [verdict for chapter in chapters for verdict in _full(chapter)]
    survives = dict(zip((v.id for v in full), holm(full), strict=True))
    tables = "".join(_table(chapter, survives) for chapter in chapters)
    return f'<div class="scoreboard">{_summary(chapters, full, survives)}{tables}</div>'


def _full(chapter: Chapter) -> list[Verdict]:
    record = chapter.records.get("full")
    return record.verdicts if record else []


def _summary(
    chapters: Sequence[Chapter], full: Sequence[Verdict], survives: dict[str, bool]
) -> str:
    rows = []
    for name, verdicts in (
        ("this build (quick)", [v for chapter in chapters for v in chapter.verdicts]),
        ("recorded full runs", list(full)),
    ):
        counts = [sum(v.outcome == o for v in verdicts) for o in (HOLDS, FAILS, "undecided")]
        cells = "".join(f"<td>{count}</td>" for count in (len(verdicts), *counts))
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    heads = "".join(f'<th scope="col">{h}</th>' for h in ("claims", "hold", "fail", "undecided"))
    note = (
        f"<p>After Holm's correction over the {len(full)} claims of the recorded runs, "
        f"{sum(survives.values())} hold.</p>"
    )
    return (
        _scroll(
            "Summary",
            f'<table><caption>All claims</caption><thead><tr><th scope="col">run</th>{heads}</tr>'
            f"</thead><tbody>{''.join(rows)}</tbody></table>",
        )
        + note
    )


def _table(chapter: Chapter, survives: dict[str, bool]) -> str:
    recorded = {verdict.id: verdict for verdict in _full(chapter)}
    ids = list(dict.fromkeys([*(v.id for v in chapter.verdicts), *recorded]))
    quick = {verdict.id: verdict for verdict in chapter.verdicts}
    rows = "".join(_row(quick.get(id), recorded.get(id), survives.get(id, False)) for id in ids)
    heads = "".join(
        f'<th scope="col">{h}</th>'
        for h in ("claim", "paper", "this build (quick)", "recorded (full)")
    )
    table = (
        f"<table><caption>Claims of {chapter.slug}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )
    title = f'<h2 id="{chapter.slug}"><a href="{chapter.href}">{_text(chapter.title)}</a></h2>'
    return title + _scroll(chapter.title, table) + _provenance(chapter)


def _row(quick: Verdict | None, full: Verdict | None, holds_after_holm: bool) -> str:
    known = quick or full
    assert known is not None
    published = "" if known.published is None else str(known.published)
    contradiction = {quick.outcome if quick else "", full.outcome if full else ""} == {HOLDS, FAILS}
    note = (
        '<p class="contradiction">The two profiles contradict each other.</p>'
        if contradiction
        else ""
    )
    return (
        f'<tr><th scope="row"><span class="verdict-id">{_text(known.id.partition("/")[2])}</span> '
        f"{_text(known.statement)}{note}</th><td>{_text(published)}</td>"
        f"{_cell(quick, False)}{_cell(full, holds_after_holm)}</tr>"
    )


def _cell(verdict: Verdict | None, holds_after_holm: bool) -> str:
    if verdict is None:
        return "<td>not run</td>"
    mark = ' <span class="holm">holds after Holm</span>' if holds_after_holm else ""
    void = f"<br><small>{_text(verdict.void)}</small>" if verdict.void else ""
    return (
        f'<td><span class="verdict-outcome verdict-{verdict.outcome}">{verdict.outcome}</span>'
        f"{mark}<br>{_text(str(verdict.estimate))}<br>"
        f"<small>rule {_text(str(verdict.rule))}</small>{void}</td>"
    )


def _provenance(chapter: Chapter) -> str:
    record = chapter.records.get("full")
    if record is None:
        return '<p class="provenance">No full run is recorded yet.</p>'
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    stale = (
        ' <strong class="stale">Stale: the code has changed since.</strong>' if record.stale else ""
    )
    return (
        f'<p class="provenance">Full run of {record.date}: {record.seeds} seeds, '
        f"{record.seconds:.0f} s (finished sweeps are read, not run again), "
        f"{_text(versions)}.{stale}</p>"
    )


def _scroll(label: str, table: str) -> str:
    """A wide table scrolls inside its own region, reachable by keyboard."""
    return (
        f'<div class="table-scroll" role="region" tabindex="0" aria-label="{_text(label)}">'
        f"{table}</div>"
    )


def _text(text: str) -> str:
    return html.escape(text)
