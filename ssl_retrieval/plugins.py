"""Find a dataset, extractor or method by name: the file name is the config name."""

import difflib
import importlib
import importlib.util
import pkgutil
from types import ModuleType

from ssl_retrieval.errors import UserError

_PACKAGES = {
    "dataset": ("ssl_retrieval.data", "load"),
    "extractor": ("ssl_retrieval.extractors", "Extractor"),
    "method": ("ssl_retrieval.methods", "Method"),
}
"""Kind -> (package, the fixed symbol that makes a file of it a plugin)."""

TIMM = "timm_model"
"""The extractor behind every timm name; it has no name of its own."""


def known(kind: str) -> list[str]:
    """List the plugin names of a kind (``dataset``, ``extractor`` or ``method``).

    >>> "folder" in known("dataset"), "simclr" in known("method")
    (True, True)
    """
    package, symbol = _PACKAGES[kind]
    modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
    names = sorted(module.name for module in modules)
    return [name for name in names if hasattr(importlib.import_module(f"{package}.{name}"), symbol)]


def find(kind: str, name: str) -> ModuleType:
    """Import the plugin ``name`` of a kind.

    An extractor that is no file here may be the name of a timm model: that gives the plugin
    ``timm_model``.

    Raises:
        UserError: No such plugin; the text lists the known ones and the nearest names.
    """
    package, symbol = _PACKAGES[kind]
    # The named file first: listing all of them imports all of them, which takes seconds.
    if name.isidentifier() and name != TIMM and importlib.util.find_spec(f"{package}.{name}"):
        module = importlib.import_module(f"{package}.{name}")
        if hasattr(module, symbol):
            return module
    names = known(kind)
    if kind == "extractor":
        import timm

        if timm.is_model(name.partition(".")[0]):
            return importlib.import_module(f"{package}.{TIMM}")
        names = [*names, *timm.list_models()]
    near = difflib.get_close_matches(name, names, n=3)
    guess = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise UserError(f"unknown {kind} {name!r}{guess} (known: {listing(kind)})")


def listing(kind: str) -> str:
    """Put the known names into words, for messages.

    >>> listing("extractor")
    'asmk, bow, checkpoint, color_histogram, ... or any timm model'
    """
    if kind == "extractor":
        return f"{', '.join(name for name in known(kind) if name != TIMM)} or any timm model"
    return ", ".join(known(kind))
