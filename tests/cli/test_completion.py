"""What the shell offers after Tab."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest

from mergescope import cli
from mergescope.cli import completion

ENTRY = Path(sysconfig.get_path("scripts")) / "mergescope"


@pytest.fixture
def offered(monkeypatch, capsys):
    """What bash offers for the last word of a line."""

    def offer(line):
        words = f"mergescope {line}"
        monkeypatch.setenv("_MERGESCOPE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - (not words.endswith(" "))))
        capsys.readouterr()
        with pytest.raises(SystemExit):
            cli.app(prog_name="mergescope")
        return capsys.readouterr().out.split()

    return offer


@pytest.fixture
def family(tmp_path, monkeypatch):
    """A directory with a family of two regimes in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "family").mkdir(parents=True)
    models = "".join(f"- {{regime: {name}, task: a}}\n" for name in ("full", "attention-1", "full"))
    (tmp_path / "runs" / "family" / "family.yaml").write_text(f"family: 1\nmodels:\n{models}")
    return "runs/family"


def test_commands_and_options_are_offered(offered):
    assert offered("me") == ["measure", "mergeability", "merge"]
    assert offered("study s") == ["show"]
    assert offered("measure --mod") == ["--models"]


def test_studies_and_their_presets_are_offered(offered):
    assert {"ctl-fig7", "ctl-fig11"} <= set(offered("study run ctl-fig"))
    assert offered("study show add") == ["addition"]
    assert offered("study run addition --preset ") == ["quick", "default", "full"]
    assert offered("study run ctl-fig11 --preset p") == offered("study run ctl-fig7 --preset p") == ["paper"]


def test_families_and_their_regimes_are_offered(offered, family):
    assert offered("measure --family ") == ["clip8", "t5-six", "llama2-13b", "runs/family"]
    assert offered("measure --family runs/") == offered("measure --family ru") == ["runs/family"]
    assert offered(f"measure --family {family} --regime ") == ["full", "attention-1"]
    assert offered(f"mergeability --family {family} --regime a") == ["attention-1"]
    assert offered("measure --family absent --regime ") == []
    Path(family, "family.yaml").write_text("models: [")
    assert offered(f"measure --family {family} --regime ") == []


def test_names_are_offered_by_what_the_command_takes(offered):
    assert offered("merge --method tie") == ["ties"]
    assert offered("predict --method ") == ["jvp", "differences"]
    assert offered("disentangle --preset ") == ["tangent", "attn"]
    assert offered("finetune --preset c") == ["clip"]
    assert offered("measure --engine r") == ["ray"]
    assert offered("measure --layers ") == ["blocks", "output"]
    assert offered("demo --data e") == ["embedded"]


def test_a_further_value_of_an_option_is_offered_too(offered):
    assert offered("search --methods ties ts") == ["tsv"]
    assert offered("equations --tests ctl eq") == ["eq1", "eq2", "eq3"]
    assert offered("finetune --data mnist cars sv") == ["svhn"]
    assert offered("finetune --data mnist --regime full lin") == ["linearized"]
    assert offered("search --methods ties --random ") == []


def test_paths_are_left_to_the_shell(offered):
    for line in ("measure --models ", "measure --base ", "merge ", "report ", "check ", "measure --out "):
        assert offered(line) == []


def test_every_name_is_one_that_is_known():
    from mergescope.cli.engine_options import ENGINES
    from mergescope.data.registry import TASKS
    from mergescope.data.task_splits import SPLITS
    from mergescope.merging.methods import METHODS
    from mergescope.models.features import CHOICES
    from mergescope.protocols.coefficients.objectives import OBJECTIVES
    from mergescope.protocols.curvature.lanczos import ENDS
    from mergescope.protocols.equations import EquationSettings
    from mergescope.readings.disagreement import DISTANCES
    from mergescope.studies import STUDIES
    from mergescope.studies.family_config import ATTENTION, FamilyConfig
    from mergescope.studies.networks import DTYPES
    from mergescope.studies.papers.runner import PRESETS as PAPER_PRESETS
    from mergescope.studies.papers.spec import paper_studies
    from mergescope.studies.published import DECLARED
    from mergescope.studies.training_heads import HEADS
    from mergescope.tracing.derivatives import METHODS as DERIVATIVES
    from mergescope.tracing.parts import EXECUTORS
    from mergescope.training.hessian import BATCHNORM
    from mergescope.training.recipe import PRESETS, Recipe
    from mergescope.training.regimes.registry import REGIMES

    names, recipe = completion.NAMES, get_type_hints(Recipe)
    assert tuple(sorted(METHODS)) == completion.METHODS and tuple(DECLARED) == completion.FAMILIES
    assert set(completion.REGIMES) == {*REGIMES, ATTENTION} and set(completion.TASKS) == set(TASKS)
    known = {
        "engine": ENGINES, "split": SPLITS, "validation_split": SPLITS, "features": CHOICES,
        "end": set(ENDS) - {"smallest"},
        "distance": DISTANCES, "dtype": DTYPES, "tests": EquationSettings().kinds, "batchnorm": BATCHNORM,
        "objective": ("auto", *OBJECTIVES), "executor": ("auto", *EXECUTORS), "finetune preset": PRESETS,
        "predict method": DERIVATIVES, "finetune head": HEADS,
        "finetune paradigm": [name.partition("-")[2] for name in REGIMES if name.startswith(ATTENTION)],
        "finetune keep": get_args(FamilyConfig.model_fields["keep"].annotation),
    }  # fmt: skip
    assert {name: set(names[name]) for name in known} == {name: set(taken) for name, taken in known.items()}
    for name in ("optimizer", "schedule", "precision"):
        assert get_args(recipe[name]) == names[f"finetune {name}"]
    told = dict(completion.studies())
    assert told == {
        **{name: study.title for study in STUDIES for name in (study.name, *study.aliases)},
        **{study.name: study.title for study in paper_studies()},
    }
    assert tuple(completion.presets(SimpleNamespace(params={"name": "ctl-fig7"}))) == PAPER_PRESETS


def test_what_has_names_is_an_argument_of_a_command():
    # A name that is misspelt, or of an option that is gone, would be offered to nobody.
    import typer

    commands = dict(typer.main.get_command(cli.app).commands)
    commands |= commands.pop("study").commands
    taken = {f"{name} {param.name}" for name, command in commands.items() for param in command.params}
    plain = {each.partition(" ")[2] for each in taken}
    for key in (*completion.NAMES, *completion.READ):
        assert key in (taken if " " in key else plain), key


@pytest.mark.parametrize(
    ("shell", "variables"),
    [
        ("bash", {"COMP_WORDS": "mergescope study show dig", "COMP_CWORD": "3"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "mergescope study show dig"}),
        (
            "fish",
            {"_TYPER_COMPLETE_ARGS": "mergescope study show dig", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
        ),
    ],
)
def test_shells_are_answered_without_heavy_imports(shell, variables):
    environment = {**os.environ, **variables, "_MERGESCOPE_COMPLETE": f"complete_{shell}"}
    code = (
        "import atexit, sys\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pandas'}\n"
        "atexit.register(lambda: print('imported:', sorted(heavy & sys.modules.keys()), file=sys.stderr))\n"
        "sys.argv = ['mergescope']\n"
        "from mergescope.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "digits" in done.stdout and done.stderr == "imported: []\n"


def test_the_script_for_a_shell_can_be_shown():
    environment = {**os.environ, "_MERGESCOPE_COMPLETE": "source_zsh"}
    done = subprocess.run([str(ENTRY)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "#compdef mergescope" in done.stdout


def test_completion_installs_itself_in_the_shell_that_asks(tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path)}
    for option in ("--show-completion", "--install-completion"):
        ran = subprocess.run(  # a shell that does not leave its place to the command
            ["bash", "-c", f"'{ENTRY}' {option}; exit $?"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "_MERGESCOPE_COMPLETE=complete_bash" in ran.stdout or "bash completion installed" in ran.stdout
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert str(script) in (tmp_path / ".bashrc").read_text()
    subprocess.run(["bash", "-n", script], check=True)
