"""The house: a file imports only from lower floors, and some things happen in one file alone."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import pyro_vae

ROOT = Path(pyro_vae.__file__).parent

FLOOR = {
    "arguments": -1,
    "autocast": -1,
    "arviz_container": 0,
    "assembly": 0,
    "autoregressive": 0,
    "bounds": -1,
    "capture": 0,
    "compiled_svi": 2,
    "config_file": 1,
    "kinds": 0,
    "datasets": 0,
    "distributions": 0,
    "files": 0,
    "interrupt": 0,
    "memory": -1,
    "modes": 0,
    "networks": 0,
    "option_types": 1,
    "optim": 0,
    "raw_bytes": -1,
    "report": 0,
    "rows": -1,
    "seeding": 0,
    "texts": 0,
    "toml": -1,
    "traces": 0,
    "fit_objective": 2,
    "fit_processes": 2,
    "fit_result": 0,
    "batches": 1,
    "held": 1,
    "checkpoint": 1,
    "environment": 1,
    "evaluation": 1,
    "fit_checkpoints": 3,
    "fit_epochs": 4,
    "fit_settings": 0,
    "kept_fit": 5,
    "families": 1,
    "likelihoods": 1,
    "objectives": 1,
    "output_layers": 1,
    "plots": 1,
    "program_checks": 1,
    "program_module": 1,
    "guides": 2,
    "priors": 2,
    "run_directory": 2,
    "sources": 2,
    "vae": 3,
    "ready_made": 4,
    "training": 6,
    "training_loop": 3,
    "baselines": 7,
    "diagnostics": 7,
    "comparison": 8,
    "diagnosis": 8,
    "export": 8,
    "html_report": 1,
    "imputation": 9,
    "missing_values": 2,
    "commands": 10,
    "cli": 11,
    "__main__": 12,
    "__init__": 12,
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in FILES.items()}


def imported_modules(name):
    """Modules of the package that one of its files imports, anywhere in it."""
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join(["pyro_vae", *up, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in names:
            parts = full.split(".")
            if parts[0] != "pyro_vae":
                continue
            while len(parts) > 1 and ".".join(parts[1:]) not in FILES:
                parts.pop()
            if len(parts) > 1:
                yield ".".join(parts[1:])


def floor(name):
    return FLOOR[name.split(".")[0]]


def test_every_file_has_a_floor():
    assert {name.split(".")[0] for name in FILES} == set(FLOOR)


@pytest.mark.parametrize("name", [name for name in FILES if name != "__init__"])
def test_file_imports_only_from_lower_floors(name):
    top = name.split(".")[0]
    for imported in imported_modules(name):
        if imported.split(".")[0] != top:
            assert floor(imported) < floor(name), f"{name} imports {imported}"


def test_imports_have_no_cycle():
    graph = {
        name: {other for other in imported_modules(name) if other != name}
        for name in FILES
        if name != "__init__"
    }
    # A package's own __init__ is the façade of its files.
    for name in graph:
        package = name.rpartition(".")[0]
        graph[name].discard(package)
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)


def calls(name):
    """Every call in a file, as written: ``torch.load``, ``scope``, ..."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize(
    ("ending", "homes"),
    [
        ("pyro.sample", {"vae", "baselines"}),
        ("pyro.module", {"vae", "baselines"}),
        ("get_param_store().scope", {"training"}),
        ("clear_param_store", set()),
        ("enable_validation", set()),
        ("manual_seed", {"seeding"}),
        ("torch.load", {"checkpoint.state_file"}),
        ("torch.save", {"checkpoint.state_file"}),
        ("set_default_dtype", set()),
        ("set_num_threads", set()),
        ("simplefilter", set()),
        (".cuda", set()),
    ],
)
def test_call_has_its_home(ending, homes):
    found = {
        name
        for name in FILES
        for written, _ in calls(name)
        if written == ending or written.endswith(ending if ending[0] == "." else f".{ending}")
    }
    assert found == homes


@pytest.mark.parametrize("name", FILES)
def test_file_is_small_enough_to_read(name):
    assert len(FILES[name].read_text("utf-8").splitlines()) <= 360
