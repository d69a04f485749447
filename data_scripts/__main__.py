"""`python -m data_scripts list | fetch [NAME…] [--size SIZE] | verify [NAME…]`."""

import argparse
import sys
from collections.abc import Sequence

from data_scripts import manifest, pipeline
from data_scripts.manifest import DataSet
from toolkit.data import store


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a fault ends it with one message and the exit code 1."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except store.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what is complete is kept, nothing else remains", file=sys.stderr)
        return 130


def _list(options: argparse.Namespace) -> int:
    rows = [("name", "state", "size", "licence", "what it is")]
    for dataset in manifest.datasets().values():
        rows.append((_shown(dataset), *_state(dataset), dataset.licence, dataset.what))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        )
    print(f"\nin {store.root()}")
    return 0


def _fetch(options: argparse.Namespace) -> int:
    wanted = _chosen(options) or [one for one in manifest.datasets().values() if one.default]
    made = pipeline.fetch(wanted)
    for name, seconds in made:
        print(f"prepared {name} in {seconds:.1f} s")
    if not made:
        print(f"nothing to do: {', '.join(one.name for one in wanted)} in {store.root()}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    there = [one for one in manifest.datasets().values() if pipeline.read_receipt(one)]
    wrong = []
    for dataset in _chosen(options) or there:
        faults = pipeline.verify(dataset)
        print(f"{_shown(dataset)}: {'; '.join(faults) or 'verified'}")
        wrong += faults
    if wrong:
        raise store.DataError("run `python -m data_scripts fetch` to make these sets again")
    return 0


def _chosen(options: argparse.Namespace) -> list[DataSet]:
    if options.size and len(options.names) != 1:
        raise store.DataError("--size goes with the name of one data set")
    return [manifest.find(name, options.size) for name in options.names]


def _state(dataset: DataSet) -> tuple[str, str]:
    receipt = pipeline.read_receipt(dataset)
    if receipt is None:
        return ("not prepared", "" if dataset.default else "on demand")
    size = sum(size for _, size, _ in receipt["files"])
    if receipt["key"] != manifest.key(dataset.name):
        state = "outdated"
    else:
        state = "verified" if pipeline.is_verified(dataset) else "damaged"
    return (state, f"{size / 1e6:,.1f} MB")


def _shown(dataset: DataSet) -> str:
    return dataset.script + (f" --size {dataset.size}" if dataset.size else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m data_scripts", description="The book's data sets.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("list", _list, "what there is, how large, under which licence, verified or not"),
        ("fetch", _fetch, "download, verify and prepare; without names, all that chapters need"),
        ("verify", _verify, "hold every prepared file against its SHA-256"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run, names=[], size="")
        if name != "list":
            command.add_argument("names", nargs="*", metavar="NAME", help="a data set")
            command.add_argument("--size", default="", help="of a data set with several sizes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
