"""What is promised in words: names, docstrings with examples, and the README."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch

import pyro_vae as pv

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
MODULES = [name for name in pv.__all__ if inspect.ismodule(getattr(pv, name))]
ABSTRACT = {"DistributionModule", "Family", "FamilyGuide", "Likelihood"}


def public_objects():
    for name in (
        "VAE",
        "gaussian_vae",
        "bernoulli_vae",
        "make_vae",
        "fit",
        "FitResult",
        "compare",
        "diagnose",
        "to_arviz",
    ):
        yield name, getattr(pv, name)
    for module in MODULES:
        loaded = importlib.import_module(f"pyro_vae.{module}")
        for name in loaded.__all__:
            value = getattr(loaded, name)
            if (
                inspect.isclass(value) or inspect.isfunction(value)
            ) and value.__module__.startswith("pyro_vae"):
                yield f"{module}.{name}", value


OBJECTS = dict(public_objects())


@pytest.mark.parametrize("name", OBJECTS)
def test_public_name_has_a_docstring_with_an_example(name):
    text = inspect.getdoc(OBJECTS[name]) or ""
    assert len(text.splitlines()[0]) <= 99
    assert name.split(".")[-1] in ABSTRACT or ">>>" in text


@pytest.mark.parametrize("name", [n for n, o in OBJECTS.items() if inspect.isfunction(o)])
def test_optional_arguments_are_keyword_only(name):
    parameters = inspect.signature(OBJECTS[name]).parameters.values()
    positional = [
        p.name
        for p in parameters
        if p.default is not p.empty
        and p.kind is not p.KEYWORD_ONLY
        and p.name not in {"num_data", "labels", "split", "size"}
    ]
    assert positional == []


def test_names_of_the_facade_are_there():
    assert all(hasattr(pv, name) for name in pv.__all__)
    assert set(pv.__all__) <= set(dir(pv))
    with pytest.raises(AttributeError, match="has no attribute 'vea'"):
        _ = pv.vea


@pytest.mark.parametrize("section", ["Quick start", "Tests"])
def test_readme_section_has_one_command_line(section):
    text = README.split(f"## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 1
    assert len(blocks[0].strip().splitlines()) == 1


def test_readme_shows_the_programs_as_they_are():
    for program in (pv.VAE.model, pv.VAE.guide):
        source = inspect.cleandoc("\n" + inspect.getsource(program))
        shown = re.sub(r'\n    """.*?"""', "", source, flags=re.DOTALL)
        shown = re.sub(r": Tensor\) -> Tensor", ")", shown)
        assert shown in README


def test_readme_examples_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    blocks = [
        b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "def model" not in b
    ]
    assert len(blocks) == 8
    names = {}
    for block in blocks:
        exec(
            block.replace("epochs=50", "epochs=2, progress=False")
            .replace("x[:50]", "x[:5]")
            .replace("compile=True", "compile=False"),  # which other tests try
            names,
        )
    printed = capsys.readouterr().out
    assert "expected_log_likelihood" in printed
    assert "amortization_gap" in printed
    assert names["axes"].get_ylabel().startswith("Pareto")
    assert "log_likelihood" in names["idata"].groups()
    assert names["full"].p_x_given_z is names["diagonal"].p_x_given_z


def test_readme_has_no_placeholder_and_no_word_in_capitals_alone():
    assert not [line for line in README.splitlines() if line.isupper() and line.isalpha()]
