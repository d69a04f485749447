"""The command line: `toolkit build|serve|lab|run|course|data|doctor`."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from toolkit.course.cli import add_parser as add_course

PROFILES = ("quick", "full", "paper")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, with one clear message for a known fault."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except KeyboardInterrupt:
        print("stopped; what was finished is kept, run the same command to go on", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug or not _is_message(error):
            raise
        print(f"toolkit: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="toolkit", description="Papers That Run.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a fault")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    build = commands.add_parser("build", help="execute stale chapters and make the site")
    build.add_argument(
        "names", nargs="*", help="notebooks to execute only; default: all, and the site"
    )
    build.add_argument("--jobs", type=int, default=2, help="notebooks at a time (default 2)")
    build.add_argument(
        "--edition",
        choices=("reader", "student"),
        default="reader",
        help="student: a second site without solutions, in _build/student (default: reader)",
    )
    build.set_defaults(command=_build)

    serve = commands.add_parser("serve", help="serve the site on this machine")
    lab = commands.add_parser("lab", help="open JupyterLab with the live pages")
    for server, port, command in ((serve, 8000, _serve), (lab, 8888, _lab)):
        server.add_argument("--port", type=int, default=port, help=f"default {port}")
        server.add_argument("--no-browser", action="store_true", help="do not open a browser")
        server.set_defaults(command=command)

    run = commands.add_parser(
        "run",
        help="run a paper's experiments",
        description="quick and full execute the chapter and record its verdicts in "
        "evidence/SLUG.json (not with --seed or --set). paper runs the paper's own scale and may "
        "be started by torchrun: torchrun --nproc-per-node 8 -m toolkit run SLUG --profile paper",
    )
    run.add_argument("slug", help="the chapter, such as multipass_sgd")
    run.add_argument("--profile", choices=PROFILES, default="quick")
    run.add_argument("--seed", type=int, help="first seed (default 0); nothing is recorded")
    run.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the recipe, then run the experiment alone; nothing is recorded",
    )
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    run.set_defaults(command=_run)

    add_course(commands)

    data = commands.add_parser("data", help="list, fetch or verify the data sets")
    data.add_argument("rest", nargs=argparse.REMAINDER, help="see: toolkit data --help")
    data.set_defaults(command=_data)

    doctor = commands.add_parser("doctor", help="say what this machine lacks, and what mends it")
    doctor.set_defaults(command=_doctor)
    return parser


def _build(options: argparse.Namespace) -> int:
    from toolkit.press.build import build

    page = build(options.names, options.jobs, edition=options.edition)
    if not options.names:
        print(f"the book: {page}\n  open that file, or run: toolkit serve  (live: toolkit lab)")
    return 0


def _serve(options: argparse.Namespace) -> int:
    from toolkit.press.serve import serve

    serve(options.port, open_browser=not options.no_browser)
    return 0


def _lab(options: argparse.Namespace) -> int:
    from toolkit.press.serve import lab

    lab(options.port, open_browser=not options.no_browser)
    return 0


def _run(options: argparse.Namespace) -> int:
    from toolkit import module_name

    module_name(options.slug)  # an unknown slug ends here
    if options.profile == "paper" or options.changes:
        return _experiment(options)
    return _chapter(options)


def _chapter(options: argparse.Namespace) -> int:
    """Execute the chapter in a profile; record its verdicts unless a seed was chosen."""
    import nbformat

    from toolkit import paper
    from toolkit.evidence import harvest, write_record
    from toolkit.press.reader import execute, source_path

    print(f"{options.slug}: executing the chapter in {options.profile} …", flush=True)
    twin = execute(source_path(options.slug), options.profile, options.seed)
    notebook = nbformat.read(twin, as_version=4)
    verdicts = harvest(notebook)
    for verdict in verdicts:
        print(f"  {verdict!r}")
    print(f"  {notebook.metadata.toolkit['seconds']} s; the executed chapter: {twin}")
    if options.seed is None:
        seeds = paper(options.slug).PROFILES[options.profile].seeds
        seconds = notebook.metadata.toolkit["seconds"]
        path = write_record(options.slug, options.profile, verdicts, seeds, seconds)
        print(f"  recorded in {path}")
    return 0


def _experiment(options: argparse.Namespace) -> int:
    """Call the paper's experiment once, in this process (under torchrun: in each)."""
    from toolkit import paper
    from toolkit.runtime import start

    module = paper(options.slug)
    recipe = changed(module.PROFILES[options.profile], options.changes)
    seed = options.seed or 0
    device = start(seed, options.device)
    first = os.environ.get("RANK", "0") == "0"  # torchrun: all ranks compute, one reports
    if first:
        print(f"{options.slug}: {recipe}", file=sys.stderr)
    results = module.experiment(recipe, seed, device)
    if first:
        print(json.dumps(results, indent=1, default=float))
    return 0


def changed(recipe: Any, changes: Sequence[str]) -> Any:
    """A recipe with `FIELD=VALUE` replaced, each value of the field's own type.

    Raises:
        ValueError: for an unknown field, or a value of another type.
    """
    from dataclasses import fields, replace

    known = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    values = {}
    for change in changes:
        name, mark, text = change.partition("=")
        if not mark or name not in known:
            raise ValueError(
                f"--set wants FIELD=VALUE with one of {', '.join(known)}; got {change!r}"
            )
        values[name] = _typed(name, text, known[name])
    return replace(recipe, **values)


def _typed(name: str, text: str, old: Any) -> Any:
    try:
        if isinstance(old, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(old, tuple):
            kind = type(old[0]) if old else str
            return tuple(kind(item) for item in text.split(",") if item)
        if isinstance(old, int | float | str):
            return type(old)(text)
    except (KeyError, ValueError) as error:
        kind_name = type(old).__name__
        raise ValueError(f"--set {name}: {text!r} is no {kind_name}, as in {old!r}") from error
    raise ValueError(f"--set {name}: a field like {old!r} cannot be set here")


def _data(options: argparse.Namespace) -> int:
    return subprocess.run(
        [sys.executable, "-m", "data_scripts", *options.rest], check=False
    ).returncode


def _doctor(options: argparse.Namespace) -> int:
    from toolkit.doctor import report

    return report()


def _is_message(error: Exception) -> bool:
    """Faults that a user can mend: their message is enough."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(
        names & {"ValueError", "LookupError", "OSError", "BuildFailed", "CellFailed", "NoIsolation"}
    )


if __name__ == "__main__":
    sys.exit(main())
