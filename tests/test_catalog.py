"""The catalog lists what can be named, from the source alone, and helps with what cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from normlens import catalog

OBJECT = '"""{summary}\n\nMore."""\n__all__ = {listed}\n{body}\n'


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of an entry, a helper, a private module, one without __all__, and one that cannot be imported."""
    files = {
        "rms_norm": OBJECT.format(summary="RMSNorm: the sentence.", listed=["RMSNorm", "helper"], body="RMSNorm = 1"),
        "top_two": OBJECT.format(summary="A function.", listed=["top_two"], body="top_two = 1"),
        "functional": OBJECT.format(summary="Helpers.", listed=["first"], body="first = 1"),
        "_norm": OBJECT.format(summary="Private.", listed=["Norm"], body="Norm = 1"),
        "__init__": '"""Index."""\n',
        "bare": "bare = 1\n",
        "empty": "__all__ = []\n",
        "explosive": OBJECT.format(summary="Raises when imported.", listed=["Explosive"], body="1 / 0"),
        "silent": "__all__ = ['silent']\nsilent = None\n",
    }
    folder = tmp_path / "zoo"
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(catalog, "__file__", str(tmp_path / "catalog.py"))
    return folder


def test_a_name_is_a_module_whose_first_public_name_is_its_own(package):
    assert catalog.names("normlens.zoo") == ["explosive", "rms_norm", "silent", "top_two"]


def test_a_summary_is_the_first_line_of_the_docstring_or_nothing(package):
    assert catalog.summaries("normlens.zoo") == {
        "explosive": "Raises when imported.",
        "rms_norm": "RMSNorm: the sentence.",
        "silent": "",
        "top_two": "A function.",
    }


def test_a_subpackage_is_found_by_its_dotted_name(package):
    package.joinpath("deep").mkdir()
    package.joinpath("deep", "x.py").write_text("__all__ = ['X']\n", encoding="utf-8")
    assert catalog.names("normlens.zoo.deep") == ["x"]
    assert "x" not in catalog.names("normlens.zoo")


def test_loading_a_name_gives_the_object_itself():
    from normlens.probes.activation_drift import ActivationDrift

    assert catalog.load("normlens.probes", "activation_drift") is ActivationDrift


def test_listing_imports_neither_torch_nor_the_listed_modules():
    code = (
        "import sys; from normlens import catalog; found = catalog.summaries('normlens.probes');"
        "assert 'elimination' in found, found;"
        "assert not {'torch', 'numpy', 'normlens.probes', 'normlens.probes.elimination'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_answered_with_the_nearest_ones():
    with pytest.raises(catalog.UnknownNameError, match=r"unknown name 'eliminaton' in probes: did you mean 'eliminat"):
        catalog.load("normlens.probes", "eliminaton")


def test_a_name_near_to_nothing_is_answered_with_all_of_them():
    message = catalog.nearest("zzz", ["alpha", "beta"], what="layers")
    assert message == "unknown name 'zzz' in layers: known: alpha, beta."


def test_an_unknown_name_is_a_value_error_and_imports_nothing(package):
    with pytest.raises(ValueError, match="unknown name 'functional' in zoo"):
        catalog.load("normlens.zoo", "functional")
