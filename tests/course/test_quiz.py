"""The predictions as platforms import them."""

import zipfile
from xml.etree import ElementTree

import pytest

from toolkit.course import quiz
from toolkit.course.chapters import chapters

NAMES = {"q": quiz.QTI}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return quiz.export(tmp_path_factory.mktemp("quiz"))


def test_every_chapter_asks_at_least_once():
    found = list(quiz.questions())
    assert {q.chapter.slug for q in found} == {c.slug for c in chapters()}
    assert len({q.name for q in found}) == len(found)


def test_moodle_gets_one_right_option_and_the_reason(written):
    root = ElementTree.parse(written[0]).getroot()
    assert root.tag == "quiz"
    categories = root.findall("question[@type='category']/category/text")
    assert len(categories) == len(chapters())
    assert all(node.text.startswith("$course$/top/") for node in categories)
    asked = root.findall("question[@type='multichoice']")
    for node, question in zip(asked, quiz.questions(), strict=True):
        assert {"name", "questiontext", "generalfeedback", "defaultgrade", "single"} <= {
            child.tag for child in node
        }
        assert node.findtext("single") == "true"
        fractions = [answer.get("fraction") for answer in node.findall("answer")]
        assert fractions.count("100") == 1
        assert fractions.index("100") == question.prediction.answer
        assert set(fractions) <= {"0", "100"}
        assert len(fractions) == len(question.prediction.options)
        assert all(answer.findtext("text").strip() for answer in node.findall("answer"))
        assert node.findtext("generalfeedback/text").strip()
        assert "$" not in node.findtext("questiontext/text")


def test_canvas_gets_a_package_whose_items_refer_to_what_there_is(written):
    with zipfile.ZipFile(written[1]) as archive:
        assert archive.testzip() is None
        manifest = ElementTree.fromstring(archive.read("imsmanifest.xml"))
        href = manifest.find(".//{*}resource/{*}file").get("href")
        root = ElementTree.fromstring(archive.read(href))
    assert manifest.find(".//{*}resource").get("type") == "imsqti_xmlv1p2"
    items = root.findall("q:assessment/q:section/q:item", NAMES)
    for item, question in zip(items, quiz.questions(), strict=True):
        labels = [node.get("ident") for node in item.iterfind(".//q:response_label", NAMES)]
        assert len(labels) == len(question.prediction.options)
        right = item.find(".//q:varequal", NAMES)
        assert right.text == labels[question.prediction.answer]
        assert right.get("respident") == item.find(".//q:response_lid", NAMES).get("ident")
        linked = item.find(".//q:displayfeedback", NAMES).get("linkrefid")
        assert linked in {node.get("ident") for node in item.findall("q:itemfeedback", NAMES)}
        kinds = item.iterfind(".//q:fieldentry", NAMES)
        assert "multiple_choice_question" in {node.text for node in kinds}


def test_the_same_questions_make_the_same_bytes(written, tmp_path):
    for one, two in zip(written, quiz.export(tmp_path), strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_mathematics_and_code_survive():
    assert quiz._html("is $a<b$ in `f(x)`?") == "<p>is \\(a&lt;b\\) in <code>f(x)</code>?</p>"
