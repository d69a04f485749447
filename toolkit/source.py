"""One digest of source text: the key of every cache and record.

A result depends on the code that made it. `digest` hashes a module together with every module of
the project that it imports, found in the syntax trees, so nothing has to be imported to be hashed.

A paper's module `scale` is the exception: it holds the paper's own scale, which no run of `quick`
or `full` calls (`tests/test_source.py` holds that), so it makes no recorded result stale.
"""

import ast
import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("toolkit", "data_scripts")
PAPER_SCALE = ".scale"
"""The end of the names of modules that only the profile `paper` runs."""


def digest(*modules: str, text: bool = False) -> str:
    """Hash the source of modules and of all the project's modules that they reach.

    Args:
        modules: dotted names, such as `"toolkit.optimization.multipass_sgd"`.
        text: hash the files as written (what `show` prints), paper scale included. By default
            the syntax trees without docstrings are hashed, so a better comment makes no result
            stale, and modules of paper scale count only where they are named.

    Returns:
        20 hexadecimal digits.

    Raises:
        ModuleNotFoundError: if a name is no module of the project.
    """
    total = hashlib.sha256()
    for name in sorted(reach(*modules, paper_scale=text)):
        path = _path(name)
        content = path.read_text("utf-8")
        total.update(f"{name}\n{content if text else _code(content)}\n".encode())
    return total.hexdigest()[:20]


def reach(*modules: str, paper_scale: bool = True) -> set[str]:
    """The project's modules that the given ones import, directly or not, and themselves.

    Args:
        modules: dotted names.
        paper_scale: follow imports of modules of paper scale, too.
    """
    todo, seen = list(modules), set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        found = imports(_path(name).read_text("utf-8"), name)
        todo += [other for other in found if paper_scale or not other.endswith(PAPER_SCALE)]
    return seen


def imports(code: str, module: str = "") -> set[str]:
    """The project's modules that a piece of code imports, read from its syntax tree.

    Args:
        code: Python source.
        module: the dotted name of the module it stands in, for relative imports.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module)
            for alias in node.names:
                found |= _homes(base, alias.name)
    return {name for name in found if name.split(".")[0] in PACKAGES and _is_file(name)}


def _homes(base: str, name: str) -> set[str]:
    """The modules that `from base import name` needs.

    A package that only re-exports is seen through, so that a new data set changes the digest of
    nothing that does not read it.
    """
    if _is_file(f"{base}.{name}"):
        return {f"{base}.{name}"} | (set() if _exports(base) is not None else {base})
    exports = _exports(base) or {}
    return _homes(*exports[name]) if name in exports else {base}


def _exports(package: str) -> dict[str, tuple[str, str]] | None:
    """Where the names of a package come from, if its `__init__.py` is nothing but imports."""
    path = _find(package)
    if path is None or path.name != "__init__.py":
        return None
    exports: dict[str, tuple[str, str]] = {}
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            exports |= {alias.asname or alias.name: (base, alias.name) for alias in node.names}
        elif not (_is_docstring(node) or _is_all(node)):
            return None
    return exports


def _is_all(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "__all__"
    )


def _absolute(node: ast.ImportFrom, module: str) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    is_package = bool(module) and _path(module).name == "__init__.py"
    parent = parts[: len(parts) - node.level + is_package]
    return ".".join([*parent, *([node.module] if node.module else [])])


def _code(content: str) -> str:
    tree = ast.parse(content)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [item for item in node.body if not _is_docstring(item)] or [ast.Pass()]
    return ast.dump(tree)


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _path(name: str) -> Path:
    path = _find(name)
    if path is None:
        raise ModuleNotFoundError(f"{name} is no module of {' or '.join(PACKAGES)}")
    return path


def _is_file(name: str) -> bool:
    return _find(name) is not None


def _find(name: str) -> Path | None:
    root, *rest = name.split(".")
    home = _home(root)
    if home is None:
        return None
    place = home.joinpath(*rest)
    candidates = (
        (place / "__init__.py", place.with_suffix(".py")) if rest else (place / "__init__.py",)
    )
    return next((path for path in candidates if path.is_file()), None)


@cache
def _home(package: str) -> Path | None:
    spec = find_spec(package) if package in PACKAGES else None
    return Path(spec.origin).parent if spec and spec.origin else None
