import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from toolkit.evidence import Verdict, above, below, claim, exact, flips, holm, mean, within

SAMPLE = np.random.default_rng(0).normal(1, 1, 40)


def judge(estimate, rule, **more):
    return claim("demo/C1", "A statement", "ours", estimate, rule, **more)


@pytest.mark.parametrize(
    ("rule", "outcome"),
    [
        (above(0), "holds"),
        (above(0.9), "undecided"),
        (above(2), "fails"),
        (below(2), "holds"),
        (below(0), "fails"),
        (within(0, 2), "holds"),
        (within(0.9, 2), "undecided"),
        (within(5, 6), "fails"),
    ],
)
def test_the_interval_decides(rule, outcome):
    assert judge(mean(SAMPLE), rule).outcome == outcome


def test_p_is_that_of_the_t_test():
    reference = stats.ttest_1samp(SAMPLE, 0).pvalue
    assert judge(mean(SAMPLE), above(0)).p == pytest.approx(reference, rel=0.01)


def test_a_claim_that_does_not_hold_has_p_one():
    assert judge(mean(SAMPLE), above(2)).p == 1


def test_a_void_claim_is_undecided_with_its_reason():
    verdict = judge(mean(SAMPLE), above(0), void="under-trained")
    assert (verdict.outcome, verdict.void, verdict.p) == ("undecided", "under-trained", 1)


def test_a_diverged_run_is_undecided_with_the_seeds_as_reason():
    verdict = judge(mean([1.0, np.nan]), above(0))
    assert verdict.outcome == "undecided"
    assert "positions 1" in verdict.void


def test_a_verdict_survives_json():
    verdict = judge(mean(SAMPLE), within(0, 2), published="3.9×")
    back = Verdict.from_json(json.loads(json.dumps(verdict.to_json())))
    assert repr(back) == repr(verdict)
    assert back.rule == verdict.rule
    with pytest.raises(ValueError, match="95 %"):
        back.estimate.interval(0.99)


def test_a_damaged_record_is_refused():
    with pytest.raises(ValueError, match="no recorded verdict"):
        Verdict.from_json({"id": "demo/C1"})


def test_a_flip_is_a_changed_outcome_of_the_same_claim():
    then = [judge(exact(1), above(0))]
    assert flips([judge(exact(2), above(0))], then) == []
    assert len(flips([judge(exact(-1), above(0))], then)) == 1
    assert flips([claim("demo/C9", "new", "ours", exact(-1), above(0))], then) == []


@given(st.lists(st.floats(1e-9, 1), min_size=1, max_size=12))
def test_holm_agrees_with_its_definition(values):
    verdicts = [
        Verdict(f"d/C{i}", "", "", exact(1), above(0), "holds", p) for i, p in enumerate(values)
    ]
    found = dict(zip((v.id for v in verdicts), holm(verdicts), strict=True))
    ordered = sorted(verdicts, key=lambda v: v.p)
    passed = 0
    while passed < len(ordered) and ordered[passed].p <= 0.05 / (len(ordered) - passed):
        passed += 1
    assert {v.id for v in ordered[:passed]} == {name for name, kept in found.items() if kept}


def test_a_card_escapes_what_it_shows():
    verdict = claim("demo/C1", "a < b & <script>", "ours", exact(1), above(0))
    html = verdict._repr_mimebundle_()["text/html"]
    assert "<script>" not in html
    assert "a &lt; b" in html


@pytest.mark.parametrize("id", ["C1", "/C1", "demo/"])
def test_an_id_needs_slug_and_name(id):
    with pytest.raises(ValueError, match="id"):
        claim(id, "s", "ours", exact(1), above(0))


def test_a_rule_must_be_a_rule():
    with pytest.raises(TypeError):
        claim("demo/C1", "s", "ours", exact(1), lambda x: x > 0)
    with pytest.raises(ValueError, match="low < high"):
        within(2, 1)
