import ast
import subprocess
import sys
from pathlib import Path

import pytest

import toolkit
from toolkit import module_name, paper, source


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A project of three modules: a imports b; c stands alone."""
    home = tmp_path / "toolkit"
    home.mkdir()
    (home / "__init__.py").write_text("")
    (home / "a.py").write_text(
        '"""A."""\nfrom toolkit import b\n\ndef f():\n    """F."""\n    return b.g\n'
    )
    (home / "b.py").write_text("def g():\n    return 1\n")
    (home / "c.py").write_text("x = 1\n")
    monkeypatch.setattr(source, "_home", lambda name: home if name == "toolkit" else None)
    return home


def test_a_digest_follows_imports(package):
    before = source.digest("toolkit.a")
    (package / "b.py").write_text("def g():\n    return 2\n")
    assert source.digest("toolkit.a") != before


def test_a_digest_ignores_what_is_not_reached(package):
    before = source.digest("toolkit.a")
    (package / "c.py").write_text("x = 2\n")
    assert source.digest("toolkit.a") == before


def test_docstrings_and_comments_change_only_the_digest_of_the_text(package):
    code, text = source.digest("toolkit.a"), source.digest("toolkit.a", text=True)
    content = (package / "a.py").read_text()
    (package / "a.py").write_text(content.replace('"""F."""', '"""Better."""  # why'))
    assert source.digest("toolkit.a") == code
    assert source.digest("toolkit.a", text=True) != text


def test_relative_imports_are_followed(package):
    (package / "a.py").write_text("from . import c\nfrom .b import g\n")
    assert source.reach("toolkit.a") == {"toolkit.a", "toolkit.b", "toolkit.c"}


def test_a_package_that_only_re_exports_is_seen_through(package):
    (package / "__init__.py").write_text(
        '"""Doc."""\nfrom toolkit.b import g\nfrom toolkit.c import x as y\n__all__ = ["g", "y"]\n'
    )
    assert source.imports("from toolkit import g") == {"toolkit.b"}
    assert source.imports("from toolkit import y, a") == {"toolkit.c", "toolkit.a"}
    assert source.imports("import toolkit") == {"toolkit"}
    assert source.imports("from toolkit import *") == {"toolkit"}


def test_a_package_with_code_of_its_own_counts(package):
    (package / "__init__.py").write_text("from toolkit.b import g\nONE = 1\n")
    assert source.imports("from toolkit import g") == {"toolkit"}
    assert source.imports("from toolkit import a") == {"toolkit", "toolkit.a"}


def test_an_unknown_module_is_an_error(package):
    with pytest.raises(ModuleNotFoundError, match=r"toolkit\.nothing"):
        source.digest("toolkit.nothing")


def test_the_real_reach_of_a_paper_holds_what_it_imports():
    reached = source.reach("toolkit.optimization.multipass_sgd")
    assert "toolkit.optimization.problems" in reached
    assert not any(name.startswith("toolkit.press") for name in reached)


def test_a_chapter_is_found_by_its_slug():
    assert module_name("knn_softmax") == "toolkit.search.knn_softmax"
    assert paper("multipass_sgd").PROFILES.keys() >= {"quick", "full", "paper"}


def test_an_unknown_slug_names_the_chapters_that_exist():
    with pytest.raises(ValueError, match="multipass_sgd"):
        paper("resnet")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import toolkit", {"torch", "numpy"}),
        (
            "import toolkit.cli; toolkit.cli._parser().format_help()",
            {"torch", "plotly", "papermill"},
        ),
        ("import toolkit.evidence, toolkit.press.reader", {"torch", "faiss", "av", "cv2", "timm"}),
    ],
)
def test_light_imports_stay_light(code, absent):
    report = f"{code}; import sys; print(*sorted(set(sys.modules) & {absent!r}))"
    done = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_paper_scale_changes_the_digest_of_the_text_alone(package):
    (package / "a.py").write_text("from toolkit import scale\n")
    (package / "scale.py").write_text("STEPS = 1\n")
    code, text = source.digest("toolkit.a"), source.digest("toolkit.a", text=True)
    named = source.digest("toolkit.a", "toolkit.scale")
    (package / "scale.py").write_text("STEPS = 2\n")
    assert source.digest("toolkit.a") == code
    assert source.digest("toolkit.a", text=True) != text
    assert source.digest("toolkit.a", "toolkit.scale") != named


SCALES = sorted(Path(toolkit.__path__[0]).glob("*/*/scale.py"))


@pytest.mark.parametrize("path", SCALES, ids=lambda path: path.parent.name)
def test_only_a_choice_in_experiment_runs_paper_scale(path):
    """So a record of `quick` or `full` cannot depend on it."""
    for module in set(path.parent.glob("*.py")) - {path}:
        tree = ast.parse(module.read_text("utf-8"))
        functions = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").endswith(".scale")
            for alias in node.names
            if alias.name.islower()
        }
        chosen = {id(call) for call in _calls_by_choice(tree)}
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Name) and call.func.id in functions:
                assert id(call) in chosen, f"{module.name}:{call.lineno} calls {call.func.id}"


def _calls_by_choice(tree):
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name == "experiment":
            for choice in (node for node in function.body if isinstance(node, ast.If)):
                yield from (node for node in ast.walk(choice) if isinstance(node, ast.Call))
