"""The source of toolkit code inside a chapter, so that text and code cannot drift apart."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any


class Source:
    """Highlighted source of one function or class, as it stands in its file."""

    def __init__(self, code: str, place: str) -> None:
        self.code, self.place = code, place

    def __repr__(self) -> str:
        return f"# {self.place}\n{self.code}" if self.place else self.code

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        # Markdown, since JupyterLab and the site both highlight it in their own theme.
        longest = max([2, *(len(ticks) for ticks in re.findall("`{3,}", self.code))])
        fence = "`" * (longest + 1)
        heading = f"*{self.place}*\n\n" if self.place else ""
        return {
            "text/markdown": f"{heading}{fence}python\n{self.code}{fence}\n",
            "text/plain": repr(self),
        }


def show(obj: Any) -> Source:
    """Show the source of a function, method or class, with its file and line.

    Raises:
        TypeError: the object has no Python source (a value, or a function written in C).
    """
    if isinstance(obj, property):
        obj = obj.fget
    try:
        obj = inspect.unwrap(obj)
        lines, first = inspect.getsourcelines(obj)
    except (TypeError, OSError, ValueError) as error:
        raise TypeError(f"show needs a function or class with source, got {obj!r}") from error
    code = textwrap.dedent("".join(lines)).rstrip() + "\n"
    return Source(code, _place(obj, first))


def _place(obj: Any, line: int) -> str:
    """``toolkit/part/file.py, line 12``; nothing for what a notebook cell defines."""
    module = getattr(obj, "__module__", None) or ""
    file = Path(inspect.getsourcefile(obj) or "")
    if module in ("", "__main__") or not file.is_file():
        return ""
    depth = module.count(".") + (2 if file.name == "__init__.py" else 1)
    return f"{'/'.join(file.parts[-depth:])}, line {line}"
