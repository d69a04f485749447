import errno
import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from toolkit.press import build, reader


@pytest.fixture
def book(tmp_path, monkeypatch, build_folder):
    """A checkout of one chapter, `demo`, whose kernel runs for real."""
    (tmp_path / "book").mkdir()
    (tmp_path / "_toc.yml").write_text("root: book/demo\n")
    monkeypatch.setattr(reader, "ROOT", tmp_path)
    write(tmp_path, "print(profile, 6 * 7)")
    return tmp_path


def write(root, code, name="demo"):
    cells = [
        nbformat.v4.new_code_cell(
            'profile = "quick"', id="parameters", metadata={"tags": ["parameters"]}
        ),
        nbformat.v4.new_code_cell(code, id="work"),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.update(
        kernelspec={"name": "python3", "display_name": "Python 3", "language": "python"},
        toolkit={"name": name},
    )
    path = root / "book" / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def printed(path):
    return nbformat.read(path, as_version=4).cells[-1].outputs[0].text


@pytest.mark.slow
def test_a_twin_is_made_once_and_again_when_the_text_changes(book):
    path = book / "book" / "demo.ipynb"
    twin = reader.execute(path)
    assert printed(twin) == "quick 42\n"
    stamp = twin.stat().st_mtime_ns
    assert reader.execute(path).stat().st_mtime_ns == stamp
    assert build.stale([path]) == []
    write(book, "print(43)")
    assert build.stale([path]) == [path]
    assert printed(reader.execute(path)) == "43\n"


@pytest.mark.slow
def test_a_run_gets_its_parameters_and_leaves_the_twin_alone(book):
    run = reader.execute(book / "book" / "demo.ipynb", profile="full")
    assert run.name == "demo-full.ipynb"
    assert printed(run) == "full 42\n"
    assert not reader.twin_path("demo").exists()


@pytest.mark.slow
def test_a_failing_cell_is_named_and_the_old_twin_stays(book):
    path = book / "book" / "demo.ipynb"
    twin = reader.execute(path)
    before = twin.read_bytes()
    write(book, "1 / 0")
    with pytest.raises(reader.CellFailed, match=r"demo: cell .* raised ZeroDivisionError"):
        reader.execute(path)
    assert twin.read_bytes() == before
    assert reader.build_place("failed").joinpath("demo.ipynb").is_file()
    assert not list(twin.parent.glob("*.tmp*"))


def test_a_kernel_that_dies_as_it_starts_is_started_again():
    starts = iter([RuntimeError("Kernel died before replying to kernel_info")] * 2)

    def run(value, more):
        for error in starts:
            raise error
        return value + more

    assert reader.in_a_kernel(run, 40, more=2) == 42


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (RuntimeError("Kernel died before replying to kernel_info"), 3),
        (RuntimeError("Kernel died"), 1),
        (OSError("no space"), 1),
    ],
)
def test_other_failures_of_a_kernel_are_raised_at_once(error, tries):
    seen = []

    def run():
        seen.append(1)
        raise error

    with pytest.raises(type(error), match=str(error)):
        reader.in_a_kernel(run)
    assert len(seen) == tries


@pytest.mark.slow
def test_a_killed_build_leaves_no_half_twin(book):
    write(book, "import time; print('up', flush=True); time.sleep(60)")
    code = (
        "from pathlib import Path; from toolkit.press import reader; "
        f"reader.ROOT = Path({str(book)!r}); "
        f"reader.execute(Path({str(book / 'book/demo.ipynb')!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    time.sleep(4)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not reader.twin_path("demo").exists()
    write(book, "print('again')")
    assert printed(reader.execute(book / "book" / "demo.ipynb")) == "again\n"


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_twin_and_nothing_half_written(book, monkeypatch):
    path = book / "book" / "demo.ipynb"
    twin = reader.execute(path)
    before = twin.read_bytes()
    write(book, "print('larger')")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(twin))

    monkeypatch.setattr(reader, "_stamp", full)
    with pytest.raises(OSError, match="No space left on device"):
        reader.execute(path)
    assert twin.read_bytes() == before
    assert [file.name for file in twin.parent.iterdir()] == ["demo.ipynb"]


@pytest.mark.slow
def test_the_build_names_every_failure_and_keeps_the_rest(book):
    write(book, "raise KeyError('lost')", name="broken")
    (book / "_toc.yml").write_text("root: book/demo\nchapters:\n- file: book/broken\n")
    with pytest.raises(build.BuildFailed, match=r"broken: cell .* raised KeyError"):
        build.build(jobs=1)
    assert reader.twin_path("demo").is_file()


def test_the_key_follows_record_data_and_lock(book):
    text = (book / "book" / "demo.ipynb").read_text()
    keys = {reader.key(text)}
    for name in ("evidence/demo.json", "data_scripts/manifest.json", "requirements.txt"):
        (book / name).parent.mkdir(exist_ok=True)
        (book / name).write_text("{}")
        keys.add(reader.key(text))
    assert len(keys) == 4


def test_a_damaged_twin_counts_as_missing(book):
    twin = reader.twin_path("demo")
    twin.parent.mkdir(parents=True)
    twin.write_text('{"cells": [')
    assert reader.key_of(twin) is None


def test_a_notebook_must_name_itself():
    with pytest.raises(ValueError, match="names itself"):
        reader.read(json.dumps(nbformat.v4.new_notebook()))


@pytest.mark.parametrize("kind", sorted(reader.KERNEL_ONLY))
def test_a_bare_widget_or_figure_does_not_reach_a_page(kind):
    cell = nbformat.v4.new_code_cell(id="bare")
    cell.outputs = [nbformat.v4.new_output("display_data", data={kind: {}})]
    notebook = nbformat.v4.new_notebook(cells=[cell])
    with pytest.raises(ValueError, match="'bare' shows"):
        reader.require_page_outputs(notebook)
    cell.outputs[0].data["text/html"] = "<figure></figure>"
    reader.require_page_outputs(notebook)


def test_an_unknown_notebook_is_refused(book):
    with pytest.raises(ValueError, match="demo"):
        build.build(["nothing"])
