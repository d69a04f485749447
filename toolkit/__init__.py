"""The package behind the book *Papers That Run*: eighteen deep-learning papers that execute.

`import toolkit` is light: it loads neither torch nor numpy. A paper's module is imported by
name, `from toolkit.search import knn_softmax`, or looked up by its slug, `paper("knn_softmax")`.
"""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

__version__ = "0.1.0"

PARTS = {
    "optimization": ("multipass_sgd", "moving_average"),
    "supervision": ("noisy_labels", "label_smoothing", "wemix"),
    "representation": ("coke", "mosi", "context_motion"),
    "scenes": ("instant_teaching", "semi_anchored", "lcm"),
    "networks": ("genet", "zen_nas", "nystrom_distillation"),
    "search": ("knn_softmax", "sicot", "virtual_id", "visual_search"),
}
"""The book's parts and the slugs of their chapters, in reading order."""


def paper(slug: str) -> ModuleType:
    """Import the module of one paper.

    Args:
        slug: the paper's name everywhere in the project, such as `"multipass_sgd"`.

    Raises:
        ValueError: if the book has no chapter of that name.
    """
    return import_module(module_name(slug))


def module_name(slug: str) -> str:
    """The dotted name of a paper's module, without importing it.

    Raises:
        ValueError: if the book has no chapter of that name.
    """
    names = {name: f"toolkit.{part}.{name}" for part, slugs in PARTS.items() for name in slugs}
    if slug not in names or not _exists(names[slug]):
        written = ", ".join(sorted(name for name, module in names.items() if _exists(module)))
        raise ValueError(f"no chapter is called {slug!r}; the book has: {written}")
    return names[slug]


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
