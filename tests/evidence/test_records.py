import json

import nbformat
import numpy as np
import pandas as pd
import pytest

from toolkit.evidence import (
    above,
    claim,
    curve,
    exact,
    harvest,
    read_record,
    recorded,
    summary,
    write_record,
)
from toolkit.evidence.claims import MIME
from toolkit.evidence.scoreboard import Chapter, render

SLUG = "multipass_sgd"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_EVIDENCE", str(tmp_path))
    return tmp_path


def verdict(name="C1", value=1.0):
    return claim(f"{SLUG}/{name}", "A statement", "ours", exact(value), above(0), published="3.9×")


def notebook(*bundles):
    cell = nbformat.v4.new_code_cell()
    cell.outputs = [nbformat.v4.new_output("display_data", data=bundle) for bundle in bundles]
    return nbformat.v4.new_notebook(cells=[cell])


def test_a_record_keeps_both_profiles(folder):
    write_record(SLUG, "quick", [verdict()], seeds=3, seconds=12.34)
    write_record(SLUG, "full", [verdict(value=-1)], seeds=9, seconds=500)
    record = read_record(SLUG)
    assert record["quick"].verdicts[0].outcome == "holds"
    assert record["full"].verdicts[0].outcome == "fails"
    assert (record["full"].seeds, record["full"].stale) == (9, False)
    assert "torch" in record["full"].versions


def test_a_record_of_other_code_is_stale(folder):
    path = write_record(SLUG, "full", [verdict()], seeds=3, seconds=1)
    path.write_text(path.read_text().replace(read_record(SLUG)["full"].code, "0" * 20))
    assert read_record(SLUG)["full"].stale


def test_a_recorded_verdict_is_dated_and_not_harvested(folder):
    write_record(SLUG, "full", [verdict()], seeds=3, seconds=1)
    old = recorded(f"{SLUG}/C1")
    assert old.dated
    assert harvest(notebook(old._repr_mimebundle_())) == []


def test_a_claim_without_a_record_names_the_command(folder):
    with pytest.raises(LookupError, match=f"toolkit run {SLUG} --profile full"):
        recorded(f"{SLUG}/C1")


def test_a_damaged_record_says_so(folder):
    (folder / f"{SLUG}.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        read_record(SLUG)


@pytest.mark.parametrize(("profile", "verdicts"), [("paper", [verdict()]), ("quick", [])])
def test_bad_records_are_refused(folder, profile, verdicts):
    with pytest.raises(ValueError, match=r"\w"):
        write_record(SLUG, profile, verdicts, seeds=1, seconds=1)
    assert list(folder.iterdir()) == []


def test_harvest_finds_the_verdicts_of_a_notebook():
    found = harvest(notebook(verdict()._repr_mimebundle_(), verdict("C2", -1)._repr_mimebundle_()))
    assert [(v.id, v.outcome) for v in found] == [(f"{SLUG}/C1", "holds"), (f"{SLUG}/C2", "fails")]


def test_harvest_refuses_a_claim_that_stands_twice():
    with pytest.raises(ValueError, match="twice"):
        harvest(notebook({MIME: verdict().to_json()}, {MIME: verdict().to_json()}))


def test_the_scoreboard_shows_contradictions_and_provenance(folder):
    write_record(SLUG, "full", [verdict(value=-1)], seeds=9, seconds=500)
    chapter = Chapter(SLUG, "Why <more>?", "x.html", [verdict()], read_record(SLUG))
    page = render([chapter])
    assert "contradict each other" in page
    assert "Why &lt;more&gt;?" in page
    assert "9 seeds" in page
    assert "3.9×" in page


def test_a_summary_has_one_row_an_arm_and_setting():
    frame = pd.DataFrame(
        {
            "setting": [0, 0, 1, 1],
            "seed": [0, 1, 0, 1],
            "rate": [0.1, 0.1, 0.2, 0.2],
            "a/x": [1.0, 3.0, 5.0, 5.0],
            "b/y": 0.0,
            "error": "",
        }
    )
    table = summary(frame, "x")
    assert table[["arm", "rate", "mean", "seeds"]].to_numpy().tolist() == [
        ["a", 0.1, 2.0, 2],
        ["a", 0.2, 5.0, 2],
    ]
    with pytest.raises(ValueError, match=r"\['x', 'y'\]"):
        summary(frame, "z")


def test_a_curve_is_sorted_by_its_points():
    frame = pd.DataFrame({"a/risk@10": [1.0, 2.0], "a/risk@2": [3.0, 4.0], "a/other@1": 0.0})
    x, y = curve(frame, "a/risk")
    assert x.tolist() == [2, 10]
    assert np.array_equal(y, [[3, 1], [4, 2]])
    with pytest.raises(ValueError, match="a/other"):
        curve(frame, "b/risk")


def test_the_committed_records_can_be_read():
    for path in sorted((pytest.importorskip("pathlib").Path("evidence")).glob("*.json")):
        assert json.loads(path.read_text()).keys() <= {"quick", "full"}
        assert read_record(path.stem)
