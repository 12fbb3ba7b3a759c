"""``mergescope doctor``: what is here, what is missing, what does not fit."""

import json
from importlib import metadata

import pytest
from typer.testing import CliRunner

from mergescope.cli import app, doctor
from mergescope.errors import MergescopeError


def run(*words):
    return CliRunner().invoke(app, ["doctor", *words], catch_exceptions=False)


def test_it_tells_versions_devices_and_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in doctor.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "mergescope" / "heads").mkdir(parents=True)
    (tmp_path / "mergescope" / "heads" / "head").write_bytes(bytes(30_000_000))
    found = json.loads(run("--json").stdout)
    assert found["packages"]["torch"] == metadata.version("torch") and found["problems"] == []
    assert found["devices"][0].startswith("cpu: ") and found["memory"]["total"] > 0
    cache = found["caches"]["mergescope (XDG_CACHE_HOME)"]
    assert cache == {"path": str(tmp_path / "mergescope"), "gigabytes": 0.03, "writable": True}
    text = run().stdout
    assert "hub        not asked" in text and f"torch {metadata.version('torch')}" in text


def test_what_is_missing_is_told_with_how_to_get_it(monkeypatch):
    monkeypatch.setattr(
        doctor, "OPTIONAL", {"a": (("no_such_module",), "pip install it"), "b": (("json",), "x")}
    )
    lines = run().stdout
    assert "missing    a: pip install it" in lines and "works      b" in lines


def test_offline_is_told_by_name(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "offline by HF_HUB_OFFLINE" in run("--network").stdout


def test_packages_that_do_not_fit_are_an_error(monkeypatch):
    needed = ["torch>=99", "no-such-package>=1", "mlxtend; extra == 'demo'"]
    monkeypatch.setattr(metadata, "requires", lambda name: needed)
    result = CliRunner().invoke(app, ["doctor"])
    assert isinstance(result.exception, MergescopeError)
    said = str(result.exception)
    assert "torch" in said and ">=99 is needed" in said and "no-such-package is missing" in said
    assert "mlxtend" not in said
    with pytest.raises(MergescopeError, match="2 packages"):
        raise result.exception


@pytest.mark.parametrize(("asked", "package"), [("_devices", "torch"), ("_caches", "datasets")])
def test_packages_that_can_not_be_used_are_told_and_the_rest_too(monkeypatch, asked, package):
    def broken():
        raise OSError("libtorch.so: cannot open shared object file")

    monkeypatch.setattr(doctor, asked, broken)
    result = CliRunner().invoke(app, ["doctor"])
    assert f"{package} can't be used: OSError: libtorch.so" in str(result.exception)
    assert "mergescope" in result.stdout and "hub" in result.stdout
