"""``--json``: every command has it, standard output is one JSON document, and after an error it is empty."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from given_models import family as given_family
from given_models import labels, save_rows, texts
from small_families import described, make_inputs
from typer.testing import CliRunner

from mergescope import cli
from mergescope.errors import StudyError
from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import plan_family

SMALL = ("--limit", "4", "--batch-size", "4")
PASSES = ("measure", "equations", "evaluate", "stitch", "predict", "theorems", "curvature", "search")


def names():
    """Every command, ``study run`` and the like as two words."""
    found = []
    for name, command in typer.main.get_command(cli.app).commands.items():
        found += [f"{name} {inner}" for inner in getattr(command, "commands", ())] or [name]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a base, data, a family of three regimes, a recipe, and models of one label space."""
    folder = make_inputs(tmp_path_factory.mktemp("json"))
    config = read_family_config(described(folder, regimes=["full", "attention", "linearized"]))
    plan_family(config, folder / "family").run(progress=False, device="cpu")
    models = [{"model": str(folder / "family" / "full" / name)} for name in ("left", "right")]
    recipe = {"merge_method": "linear", "models": models, "parameters": {"weight": 0.5}}
    (folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
    given_family(folder / "given")
    save_rows(folder / "reviews" / "test.csv", texts(10, seed=2), label=labels(10, 2))
    return folder


@pytest.fixture
def typed(place, monkeypatch, capsys):
    """A command as it is typed in that directory: its code, standard output and standard error."""
    monkeypatch.setattr(cli, "quiet_packages", lambda: None)  # which would hold for the tests that follow
    monkeypatch.chdir(place)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["mergescope", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code or 0, *capsys.readouterr())

    return run


def strictly(text):
    """Read the whole of a text as JSON; NaN and infinity, which Python would take, are none."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


FAMILY = ("--family", "family", "--regime", "full")
SOUP = ("--models", "given/a", "given/b", "--base", "given/base", "--data", "reviews", *SMALL, "--size", "2")
RUNS = {
    "demo": ("--quick", "--dry-run"),
    "check": ("family/full/left", "family/full/right", "--base", "base"),
    "geometry": FAMILY,
    "finetune": ("--base", "base", "--data", "left", "--regime", "full", "--out", "never", "--dry-run"),
    **dict.fromkeys(PASSES, (*FAMILY, *SMALL, "--dry-run")),
    "disentangle": (*FAMILY, *SMALL, "--points", "2", "--dry-run"),
    "soup": SOUP,
    "mergeability": ("--family", "family", "--regime", "full", "--limit", "8", "--dry-run"),
    "layers": ("base",),
    "merge": ("recipe.yml", "merged", "--dry-run"),
    "report": ("runs/evaluated",),
    "doctor": (),
    "study list": (),
    "study show": ("ctl-fig7",),
    "study run": ("ctl-fig7", "--family", "family", "--dry-run"),
    "study publish": ("runs/claims", "--out", "pages"),
}
"""A cheap run of every command."""


def test_there_is_a_run_of_every_command_here():
    assert sorted(RUNS) == sorted(names())


def prepared(typed, name):
    """Make the finished run that a command asks for."""
    if name == "report":
        words = ("evaluate", *FAMILY, *SMALL, "--out", "runs/evaluated", "--json")
    elif name == "study publish":
        words = ("study", "run", "attn-fig5", "--family", "family", "--preset", "quick", "--workers", "1",
                 "--work", "work", "--out", "runs/claims", "--json")  # fmt: skip
    else:
        return
    code, out, errors = typed(*words)
    assert code == 0, errors
    strictly(out)


@pytest.mark.parametrize("name", names())
def test_standard_output_is_one_json_document(typed, name):
    prepared(typed, name)
    code, out, errors = typed(*name.split(), *RUNS[name], "--json")
    assert code == 0, errors
    assert strictly(out)
    assert name == "study publish" or not list(Path.cwd().glob("never*")) and not Path("merged").exists()


MISTAKES = {
    "demo": ("--tasks", "rotation"),
    "check": ("family/full/lft",),
    "finetune": ("absent.yml", "--out", "never"),
    **dict.fromkeys((*PASSES, "disentangle", "soup"), ("--family", "famly")),
    "geometry": ("family/full/lft", "--base", "base"),
    "mergeability": ("--family", "famly"),
    "layers": ("bse.gguf",),
    "merge": ("recipe.yaml", "merged"),
    "report": ("runs/absent",),
    "doctor": ("--netwrk",),
    "study list": ("--al",),
    "study show": ("ctl-fg7",),
    "study run": ("ctl-fg7",),
    "study publish": ("absent",),
}


@pytest.mark.parametrize("name", names())
def test_after_an_error_standard_output_is_empty(typed, name):
    code, out, errors = typed(*name.split(), *MISTAKES[name], "--json")
    assert (code, out) == (2, "") and "Error" in errors and "Traceback" not in errors


def test_what_a_script_asks_for_is_in_it(typed):
    code, out, errors = typed("merge", "recipe.yml", "scripted", "--json")
    found = strictly(out)
    assert (code, found["method"], found["directory"]) == (0, "linear", "scripted") and found["seconds"] >= 0
    assert Path("scripted/model.safetensors").is_file() and "Merged into" in errors
    plan = strictly(typed("merge", "recipe.yml", "scripted", "--dry-run", "--json")[1])
    assert len(plan["plan"]) == plan["tensors"] == found["tensors"]
    assert plan["plan"][0]["parameters"]["weight"] == [0.5, 0.5] and "scripted" in plan["notes"][-1]
    listed = strictly(typed("study", "list", "--json")[1])["studies"]
    assert {study["name"] for study in listed} >= {"digits", "addition", "ctl-fig7"}
    shown = strictly(typed("study", "show", "ctl-fig11", "--json")[1])
    assert shown["name"] == "root-causes" and shown["kind"] == "figure" and len(shown["there"]) > 1


def test_a_report_has_every_row_and_its_files(typed):
    prepared(typed, "report")
    found = strictly(typed("report", "runs/evaluated", "--json")[1])
    assert found["study"] == "evaluate" and Path(found["report"]).is_file()
    assert found["says"] and all(Path(figure).is_file() for figure in found["figures"])
    kinds = {(row["points"], row["measure"]) for row in found["results"]}
    assert ("left", "accuracy") in kinds and len(found["results"]) > 8


def test_studies_tell_what_they_ran_and_publish_what_differs(typed):
    prepared(typed, "study publish")
    told = strictly(typed("report", "runs/claims", "--json")[1])
    assert told["study"] == "attn-fig5" and {"says", "verdict", "value"} <= told["claims"][0].keys()
    pages = strictly(typed("study", "publish", "runs/claims", "--out", "checked", "--json")[1])["pages"]
    assert pages == ["checked/attn-fig5.md"]
    check = ("study", "publish", "runs/claims", "--out", "checked", "--check", "--json")
    assert strictly(typed(*check)[1]) == {"differences": {"runs/claims": []}}
    known = json.loads(Path("checked/attn-fig5.json").read_text())
    known["claims"] = known["claims"][1:]
    Path("checked/attn-fig5.json").write_text(json.dumps(known))
    code, out, errors = typed(*check)  # what was found is told, and the code says that it differs
    assert code == 2 and "differ from what is published" in errors
    assert strictly(out)["differences"]["runs/claims"][0].startswith("new: ")
    mine = ("study", "publish", "runs/claims", "--out", "named", "--name", "mine")
    assert (
        strictly(typed(*mine, "--json")[1]) == {"pages": ["named/mine.md"]}
        and Path("named/mine.json").is_file()
    )
    assert strictly(typed(*mine, "--check", "--json")[1]) == {"differences": {"runs/claims": []}}
    code, _, errors = typed(*mine, "runs/others")
    assert code == 2 and "names one page, and there are 2 runs" in errors


def test_a_study_that_is_a_command_prints_what_the_command_prints(typed):
    told = strictly(typed("study", "run", "theorems", *FAMILY, "--preset", "quick", "--dry-run", "--json")[1])
    assert told["pairs"] == ["left:right"] and told["forward_passes"] > 0
    told = strictly(typed("study", "run", "geometry", "--family", "family", "--dry-run", "--json")[1])
    assert told["plan"] == ["mergescope geometry --by-regime --family family"]


def test_findings_are_printed_although_the_code_says_that_there_are_some(typed, tmp_path):
    code, out, errors = typed("check", "base", tmp_path, "--json")
    assert code == 2 and [it for it in strictly(out)["findings"] if it["severity"] == "error"]


def test_too_few_points_for_a_correlation_are_null_and_told_in_words(typed):
    _, out, errors = typed("soup", *SOUP, "--json")
    rows = {row["measure"]: row for row in strictly(out)["results"]}
    assert rows["pearson"]["mean"] is None and rows["pearson"]["n"] == 1
    text = typed("soup", *SOUP)[1]
    assert "Pearson correlation unknown: it takes 3 pairs of numbers, and there is 1" in text
    assert "nan" not in text.lower().split()


TALKATIVE = """
import os, subprocess, sys
from mergescope.cli.printing import print_json, results_alone
with results_alone(True):
    print("text")
    os.write(1, b"a descriptor\\n")
    subprocess.run([sys.executable, "-c", "print('a worker')"])
    with results_alone(True):
        print_json({"inner": float("inf")})
print("after")
"""


def test_descriptors_and_worker_processes_do_not_write_between():
    done = subprocess.run([sys.executable, "-c", TALKATIVE], capture_output=True, text=True, check=True)
    assert done.stdout == '{\n "inner": null\n}\nafter\n'
    assert sorted(done.stderr.splitlines()) == ["a descriptor", "a worker", "text"]


def test_nothing_is_printed_if_it_fails_half_way(monkeypatch):
    def failing(*args, **given):
        print("half of it")
        raise StudyError("It broke.")

    monkeypatch.setattr("mergescope.cli.report.report_content", failing)
    done = CliRunner().invoke(cli.app, ["report", "run", "--json"])
    assert isinstance(done.exception, StudyError) and done.stdout == "" and "half of it" in done.stderr
