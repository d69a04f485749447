"""The verdicts of this build against their records."""

import nbformat
import pytest

from toolkit import PARTS
from toolkit.evidence import flips, harvest, read_record
from toolkit.press import reader

SLUGS = [
    slug for slugs in PARTS.values() for slug in slugs if slug in {p.stem for p in reader.sources()}
]


@pytest.fixture(params=SLUGS)
def slug(request):
    return request.param


def verdicts(slug):
    return harvest(nbformat.read(reader.twin_path(slug), as_version=4))


def test_no_verdict_flipped_against_its_record(slug):
    changed = flips(verdicts(slug), read_record(slug)["quick"].verdicts)
    assert not changed, "\n".join(f"now {new!r}\nthen {old!r}" for new, old in changed)


def test_the_record_holds_every_claim_of_the_chapter(slug):
    now = [verdict.id for verdict in verdicts(slug)]
    assert now
    assert all(id.startswith(f"{slug}/") for id in now)
    for profile in ("quick", "full"):
        assert {verdict.id for verdict in read_record(slug)[profile].verdicts} >= set(now)


def test_the_rules_of_both_profiles_are_the_same(slug):
    record = read_record(slug)
    quick = {verdict.id: verdict.rule for verdict in record["quick"].verdicts}
    full = {verdict.id: verdict.rule for verdict in record["full"].verdicts}
    assert {id: full[id] for id in quick} == quick


def test_the_full_record_is_of_this_code(slug):
    assert not read_record(slug)["full"].stale


def test_a_chapter_keeps_its_time(slug):
    seconds = nbformat.read(reader.twin_path(slug), as_version=4).metadata.toolkit.seconds
    record = read_record(slug)
    assert record["full"].seconds <= 15 * 60
    assert seconds <= 3 * 90, "far over the 90 s of a chapter, even for a busy machine"


def test_a_statement_stands_alone_on_the_scoreboard(slug):
    for verdict in verdicts(slug):
        assert not verdict.statement.startswith("…"), verdict.id
