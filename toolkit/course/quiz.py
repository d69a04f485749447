"""The chapters' predictions as a quiz, in the formats that learning platforms import.

Read from the sources, so nothing need be executed: a prediction is written with literals.
"""

import ast
import html
import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import nbformat

from toolkit.course.chapters import Chapter, chapters
from toolkit.course.folders import write
from toolkit.explore import Prediction

QTI = "http://www.imsglobal.org/xsd/ims_qtiasiv1p2"
MANIFEST = "http://www.imsglobal.org/xsd/imscp_v1p1"


@dataclass(frozen=True)
class Question:
    """One prediction of a chapter."""

    name: str
    """Unique and stable: the chapter's slug and the cell's id."""
    chapter: Chapter
    prediction: Prediction


def export(place: Path) -> list[Path]:
    """Write `predictions-moodle.xml` and `predictions-qti.zip` (QTI 1.2, for Canvas) to a folder.

    Raises:
        ValueError: for a chapter without a prediction, or one that is not written with literals.
    """
    found = list(questions())
    if missing := {c.slug for c in chapters()} - {q.chapter.slug for q in found}:
        raise ValueError(f"no prediction in {', '.join(sorted(missing))}")
    moodle, canvas = place / "predictions-moodle.xml", place / "predictions-qti.zip"
    write(moodle, moodle_xml(found))
    temporary = canvas.with_name(f".{canvas.name}.tmp")
    temporary.write_bytes(qti_archive(found))
    temporary.replace(canvas)
    return [moodle, canvas]


def questions() -> Iterator[Question]:
    """Every prediction of the book, in reading order."""
    for chapter in chapters():
        for cell in nbformat.read(chapter.path, as_version=4).cells:
            if cell.cell_type == "code" and "Prediction(" in cell.source:
                for number, prediction in enumerate(_predictions(cell.source)):
                    name = f"{chapter.slug}-{cell.id}" + (f"-{number + 1}" if number else "")
                    yield Question(name, chapter, prediction)


def _predictions(source: str) -> Iterator[Prediction]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Prediction":
            named = {one.arg or "": ast.literal_eval(one.value) for one in node.keywords}
            yield Prediction(*map(ast.literal_eval, node.args), **named)


# --- Moodle -------------------------------------------------------------------------------------


def moodle_xml(found: Sequence[Question]) -> str:
    """Moodle XML: one category a chapter, options in the book's order, one right option."""
    quiz, last = Element("quiz"), None
    for question in found:
        if question.chapter != last:
            last = question.chapter
            category = SubElement(SubElement(quiz, "question", type="category"), "category")
            _moodle_text(category, f"$course$/top/Papers That Run/{last.title.replace('/', '//')}")
        quiz.append(_moodle_question(question))
    return _document(quiz)


def _moodle_question(question: Question) -> Element:
    asked = question.prediction
    node = Element("question", type="multichoice")
    _moodle_text(SubElement(node, "name"), question.name)
    _moodle_text(SubElement(node, "questiontext", format="html"), _html(asked.question))
    _moodle_text(SubElement(node, "generalfeedback", format="html"), _html(asked.because))
    for name, value in (
        ("defaultgrade", "1"),
        ("penalty", "0.3333333"),
        ("hidden", "0"),
        ("single", "true"),
        ("shuffleanswers", "false"),
        ("answernumbering", "abc"),
    ):
        SubElement(node, name).text = value
    for place, option in enumerate(asked.options):
        right = place == asked.answer
        answer = SubElement(node, "answer", fraction="100" if right else "0", format="html")
        _moodle_text(answer, _html(option))
        _moodle_text(SubElement(answer, "feedback", format="html"), "")
    return node


def _moodle_text(parent: Element, text: str) -> None:
    SubElement(parent, "text").text = text


# --- Canvas, and others that read QTI 1.2 -------------------------------------------------------


def qti_archive(found: Sequence[Question]) -> bytes:
    """An IMS content package with one QTI 1.2 assessment; the same bytes for the same questions."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (
            ("imsmanifest.xml", _document(_manifest())),
            ("predictions.xml", _document(_assessment(found))),
        ):
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), text)
    return stream.getvalue()


def _manifest() -> Element:
    root = Element("manifest", xmlns=MANIFEST, identifier="papers-that-run-predictions")
    metadata = SubElement(root, "metadata")
    SubElement(metadata, "schema").text = "IMS Content"
    SubElement(metadata, "schemaversion").text = "1.1.3"
    SubElement(root, "organizations")
    resource = SubElement(
        SubElement(root, "resources"), "resource", identifier="predictions", type="imsqti_xmlv1p2"
    )
    SubElement(resource, "file", href="predictions.xml")
    return root


def _assessment(found: Sequence[Question]) -> Element:
    root = Element("questestinterop", xmlns=QTI)
    assessment = SubElement(root, "assessment", ident="predictions", title="Predict first")
    section = SubElement(assessment, "section", ident="root_section")
    for question in found:
        section.append(_item(question))
    return root


def _item(question: Question) -> Element:
    asked = question.prediction
    item = Element("item", ident=question.name, title=question.chapter.title)
    for label, entry in (("question_type", "multiple_choice_question"), ("points_possible", "1")):
        field = SubElement(_path(item, "itemmetadata", "qtimetadata"), "qtimetadatafield")
        SubElement(field, "fieldlabel").text = label
        SubElement(field, "fieldentry").text = entry
    shown = SubElement(item, "presentation")
    _material(shown, asked.question)
    choice = SubElement(shown, "response_lid", ident="response1", rcardinality="Single")
    choices = SubElement(choice, "render_choice")
    for place, option in enumerate(asked.options):
        _material(SubElement(choices, "response_label", ident=f"option{place}"), option)
    item.append(_scoring(f"option{asked.answer}"))
    feedback = SubElement(item, "itemfeedback", ident="general_fb")
    _material(SubElement(feedback, "flow_mat"), asked.because)
    return item


def _scoring(right: str) -> Element:
    """The explanation for everyone, all points for the right option."""
    node = Element("resprocessing")
    SubElement(
        SubElement(node, "outcomes"),
        "decvar",
        {"maxvalue": "100", "minvalue": "0", "varname": "SCORE", "vartype": "Decimal"},
    )
    always = SubElement(node, "respcondition", {"continue": "Yes"})
    SubElement(SubElement(always, "conditionvar"), "other")
    SubElement(always, "displayfeedback", feedbacktype="Response", linkrefid="general_fb")
    met = SubElement(node, "respcondition", {"continue": "No"})
    SubElement(SubElement(met, "conditionvar"), "varequal", respident="response1").text = right
    SubElement(met, "setvar", action="Set", varname="SCORE").text = "100"
    return node


def _material(parent: Element, text: str) -> None:
    shown = SubElement(SubElement(parent, "material"), "mattext", texttype="text/html")
    shown.text = _html(text)


def _path(node: Element, *names: str) -> Element:
    """The element at a path, made where it is missing."""
    for name in names:
        found = node.find(name)
        node = SubElement(node, name) if found is None else found
    return node


def _document(root: Element) -> str:
    indent(root)
    return tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _html(text: str) -> str:
    r"""A paragraph: `$…$` in the brackets that the platforms' MathJax knows, backticks as code."""
    text = re.sub(r"\$([^$]+)\$", r"\\(\1\\)", html.escape(text, quote=False))
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return f"<p>{text}</p>"
