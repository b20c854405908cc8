"""What the package's code may not do, found by walking it; the walker is tried on each of them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyro_vae

ROOT = Path(pyro_vae.__file__).parent
FILES = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}

EXECUTES_ITS_FILES = (
    "pickle cPickle _pickle marshal shelve dill joblib cloudpickle yaml runpy code"
)
SPEAKS_TO_OTHERS = "urllib urllib3 http requests httpx aiohttp socket ssl ftplib smtplib gdown"
STARTS_PROGRAMS = "subprocess pty ctypes cffi"
FORBIDDEN_MODULES = set(
    f"{EXECUTES_ITS_FILES} {SPEAKS_TO_OTHERS} {STARTS_PROGRAMS} tarfile".split()
)
FORBIDDEN_MODULES |= {"torch.package", "torch.hub", "torch.utils.model_zoo"}
FORBIDDEN_MODULES |= {"torchvision.datasets.utils"}

HOMES = {
    # The addresses of the data sets are torchvision's; http for the names of its errors.
    "datasets/downloads.py": {"http", "torchvision.datasets.utils"},
    "optim/processes.py": {"socket"},  # names of network interfaces, to bind to the loopback
    # Parts are imported when they are asked for, by the names in a table.
    "__init__.py": {"importlib.import_module", "globals"},
}
"""What one file may have that no other may."""

FORBIDDEN_NAMES = {
    *("eval", "exec", "compile", "__import__", "globals", "locals", "breakpoint"),
    *("builtins.eval", "builtins.exec", "builtins.compile"),
    *("importlib.import_module", "importlib.reload", "importlib.util", "importlib.machinery"),
    *("torch.hub", "torch.package", "torch.jit.load", "torch.export.load", "torch.compile_cache"),
    *("torch._inductor.aoti_load_package", "torch._C.import_ir_module"),
    *("torch.serialization.add_safe_globals", "torch.serialization.safe_globals"),
    *("torch.serialization.load", "torch.utils.serialization"),
    *("pandas.read_pickle", "pandas.read_hdf", "pandas.eval", "numpy.fromregex"),
    *("os.system", "os.popen", "os.startfile", "os.posix_spawn", "os.posix_spawnp", "os.fork"),
    *("os.execv", "os.execve", "os.execvp", "os.execvpe", "os.execl", "os.execlp"),
    *("os.spawnl", "os.spawnv", "os.spawnlp", "os.spawnvp"),
    *("shutil.unpack_archive", "sys.modules"),
    *("pyro.get_param_store.load", "pyro.get_param_store.save"),
}

FORBIDDEN_METHODS = {"extractall", "extract", "add_safe_globals", "read_pickle", "to_pickle"}
# torch.distributed sends objects as pickles; tensors are sent as they are.
FORBIDDEN_METHODS |= {"all_gather_object", "gather_object", "send_object_list", "recv_object_list"}
FORBIDDEN_METHODS |= {"broadcast_object_list", "scatter_object_list"}

LITERAL = {
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    "numpy.lib.format.read_array": ("allow_pickle", False),
}
"""What a call must say in so many words, whatever the default is."""

SAVERS = {"torch.save", "numpy.save", "pyro_vae.plots.save"}
OWN_FILES = {"self", "states", "checkpoints"}
"""What may be called .save(...) and .load(...): functions, and what holds a run's states. The
methods of these names that Pyro's store and optimizers have read pickles."""

LOOKED_UP = {
    # The name is one of the parser's own commands.
    ("cli.py", "getattr(commands, options.command)"),
    # The name is a key of a table in the same file.
    ("__init__.py", "getattr(importlib.import_module(_HOMES[name]), name)"),
    # The name is that of a class of Pyro's, of an object that the user made.
    ("priors/copies.py", "getattr(pyro_torch, kind.__name__, None)"),
}
"""getattr of a module by a name that is not written out, and why it is not a stranger's."""


def imported_names(tree: ast.Module) -> dict[str, str]:
    """Names in a file to what they stand for, as np to numpy."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                full = alias.name if alias.asname else alias.name.partition(".")[0]
                names[alias.asname or full] = full
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    """A dotted name with its beginning spelled out; calls on the way are dropped."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value, names)}.{node.attr}"
    if isinstance(node, ast.Call):
        return full_name(node.func, names)
    return "?"


def is_or_is_in(name: str, places: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:end]) in places for end in range(1, len(parts) + 1))


def findings(source: str, file: str = "other.py") -> Iterator[str]:
    """What a file does that it may not."""
    tree = ast.parse(source)
    names = imported_names(tree)
    literal_calls = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from wrong_imports(node, file)
        if isinstance(node, ast.Call):
            name = full_name(node.func, names)
            if name in LITERAL:
                key, value = LITERAL[name]
                said = {k.arg: k.value for k in node.keywords}.get(key)
                if isinstance(said, ast.Constant) and said.value is value:
                    literal_calls.add(id(node.func))
            if any(k.arg == "shell" and not is_false(k.value) for k in node.keywords):
                yield "shell"
            if isinstance(node.func, ast.Name) and name in {"getattr", "builtins.getattr"}:
                yield from wrong_lookups(node, names, file)
    own = parameters(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name | ast.Attribute) or id(node) in own:
            continue
        name, last = full_name(node, names), getattr(node, "attr", "")
        # A method of the same name, as module.eval() or re.compile(), is another matter.
        if is_or_is_in(name, FORBIDDEN_NAMES) and not is_or_is_in(name, HOMES.get(file, set())):
            yield name
        if name in LITERAL and id(node) not in literal_calls:
            yield name
        if last in FORBIDDEN_METHODS:
            yield f".{last}"
        if last in {"load", "save"} and name not in {*LITERAL, *SAVERS}:
            if name.split(".")[-2].lstrip("_") not in OWN_FILES:
                yield f".{last}"


def parameters(tree: ast.Module) -> set[int]:
    """Where a name is that of a parameter, as compile in fit(..., compile=True)."""
    found = set()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.Lambda):
            continue
        arguments = function.args
        own = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
        found |= {
            id(node)
            for node in ast.walk(function)
            if isinstance(node, ast.Name) and node.id in own
        }
    return found


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def wrong_imports(node: ast.Import | ast.ImportFrom, file: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        full = [alias.name for alias in node.names]
    elif node.level:
        return
    else:
        full = [f"{node.module}.{alias.name}" for alias in node.names]
    for name in full:
        if is_or_is_in(name, FORBIDDEN_MODULES):
            if not is_or_is_in(name, HOMES.get(file, set())):
                yield f"import {name}"


def wrong_lookups(node: ast.Call, names: dict[str, str], file: str) -> Iterator[str]:
    """getattr of something imported, by a name that the file does not spell out."""
    of, by = node.args[0], node.args[1]
    root = of
    while isinstance(root, ast.Attribute | ast.Call):
        root = root.func if isinstance(root, ast.Call) else root.value
    is_imported = isinstance(root, ast.Name) and root.id in names
    if is_imported and not isinstance(by, ast.Constant):
        if (file, ast.unparse(node)) not in LOOKED_UP:
            yield f"lookup {ast.unparse(node)}"


@pytest.mark.parametrize("file", FILES)
def test_file_executes_no_file_starts_no_program_and_speaks_to_nobody(file):
    assert list(findings(FILES[file].read_text("utf-8"), file)) == []


def test_exceptions_are_still_needed():
    written = {
        file: ast.unparse(ast.parse(path.read_text("utf-8"))) for file, path in FILES.items()
    }
    for file, text in LOOKED_UP:
        assert text in written[file]
    for file, modules in HOMES.items():
        assert all(name.rpartition(".")[2] in written[file] for name in modules)


PLANTED = {
    "import pickle": "import pickle",
    "import under another name": "import pickle as p",
    "import of a part": "from marshal import loads",
    "import in a function": "def f():\n    import shelve",
    "dill": "import dill",
    "joblib": "from joblib import load",
    "yaml": "import yaml",
    "tarfile": "import tarfile",
    "hub": "import torch.hub",
    "hub as a name": "import torch\nf = torch.hub.load_state_dict_from_url",
    "package": "from torch.package import PackageImporter",
    "eval": "x = eval('1')",
    "exec": "exec('1')",
    "compile": "compile('1', '', 'eval')",
    "builtins": "import builtins\nbuiltins.exec('1')",
    "eval for later": "f = eval",
    "import by name": "__import__('os')",
    "eval beside a parameter": "def f(eval):\n    pass\neval('1')",
    "importlib, renamed": "from importlib import import_module as load_it\nload_it('os')",
    "importlib by way of metadata": "import importlib.metadata\nimportlib.import_module('os')",
    "importlib": "import importlib\nimportlib.import_module('os')",
    "sys.modules": "import sys\nsys.modules['os']",
    "torch.load": "import torch\ntorch.load(p)",
    "torch.load, False": "import torch\ntorch.load(p, weights_only=False)",
    "torch.load, variable": "import torch\ntorch.load(p, weights_only=safe)",
    "torch.load, options": "import torch\ntorch.load(p, **options)",
    "torch.load, one": "import torch\ntorch.load(p, weights_only=1)",
    "torch.load, renamed": "from torch import load as read\nread(p)",
    "torch.load, passed on": "import torch\nmap(torch.load, paths)",
    "torch.load, both": "import torch\ntorch.load(p, weights_only=True)\ntorch.load(p)",
    "jit": "import torch\ntorch.jit.load(p)",
    "export": "import torch\ntorch.export.load(p)",
    "export renamed": "from torch import export as e\ne.load(p)",
    "safe globals": "import torch\ntorch.serialization.add_safe_globals([C])",
    "safe globals imported": "from torch.serialization import safe_globals\nsafe_globals([C])",
    "np.load": "import numpy as np\nnp.load(p)",
    "np.load, True": "import numpy as np\nnp.load(p, allow_pickle=True)",
    "read_array": "import numpy as np\nnp.lib.format.read_array(f)",
    "read_pickle": "import pandas as pd\npd.read_pickle(p)",
    "store": "import pyro\npyro.get_param_store().load(p)",
    "store saved": "import pyro\npyro.get_param_store().save(p)",
    "optimizer": "def f(optim):\n    optim.load(p)",
    "attribute": "class A:\n    def f(self):\n        self.svi.optim.save(p)",
    "extractall": "def f(archive):\n    archive.extractall(p)",
    "extract": "def f(archive):\n    archive.extract('x')",
    "objects sent": "from torch import distributed as dist\ndist.all_gather_object(a, b)",
    "unpack": "import shutil\nshutil.unpack_archive(p)",
    "system": "import os\nos.system('ls')",
    "popen": "from os import popen\npopen('ls')",
    "subprocess": "import subprocess",
    "shell": "def f(run):\n    run('ls', shell=True)",
    "urlopen": "from urllib.request import urlopen",
    "requests": "import requests",
    "socket": "import socket",
    "sockets of another kind": "import http.client",
    "torchvision": "from torchvision.datasets import utils",
    "lookup": "import torch\ngetattr(torch, name)",
    "lookup below": "import torch\ngetattr(torch.nn, kind + 'Loss')()",
    "lookup in a package": "from pyro_vae import priors\ngetattr(priors, name)",
}


@pytest.mark.parametrize("source", PLANTED.values(), ids=PLANTED)
def test_walker_finds_what_is_planted(source):
    clean = "import torch\nx = torch.zeros(1)\n"
    assert list(findings(clean)) == []
    assert list(findings(source)) != []
    assert list(findings(f"{clean}{source}\n")) != []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(p, map_location='cpu', weights_only=True)",
        "import numpy as np\nnp.load(p, allow_pickle=False)\nnp.save(p, x)",
        "import re\nre.compile('a')",
        "def f(module):\n    module.eval()\n    module.compile()",
        "import torch\nclass A:\n    def f(self):\n        return getattr(self.part, self.name)",
        "import torch\ngetattr(torch, 'float32')",
        "import importlib.metadata\nimportlib.metadata.version('torch')",
        "def fit(x, *, compile=False):\n    return make(x, compile=compile)",
        "from pyro_vae import plots\nplots.save(figure, p)",
        "import zipfile\nzipfile.ZipFile(p).open('x')",
        "load = 3\nsave(load)",
    ],
)
def test_walker_lets_pass_what_is_harmless(source):
    assert list(findings(source)) == []


def test_modules_with_a_home_are_found_elsewhere():
    assert list(findings("import socket", "optim/processes.py")) == []
    assert list(findings("import socket", "optim/adam.py")) == ["import socket"]
    assert list(findings("import urllib.request", "optim/processes.py")) != []
