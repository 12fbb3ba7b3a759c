"""The command line through its real entry point."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import typer
from entered import entered

from mergescope.cli import app
from mergescope.studies.rundir import RESULTS, read_rows

ENTRY = Path(sysconfig.get_path("scripts")) / "mergescope"


def run(*arguments, cwd=None):
    return subprocess.run(
        [str(ENTRY), *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_help_names_every_command_without_importing_torch():
    shown = run("--help")
    assert shown.returncode == 0
    assert all(f" {name} " in shown.stdout for name in typer.main.get_command(app).commands)
    code = "import sys, mergescope.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_user_error_prints_its_message_and_exits_2_without_a_traceback(tmp_path):
    for arguments, said in (
        (("study", "show", "digit"), "Did you mean: digits?"),
        (("study", "run", "digits", "--preset", "quik"), "Did you mean: quick?"),
        (("demo", "--tasks", "rotation"), "Did you mean: rotations?"),
        (("demo", "--quick", "--full"), "exclude each other"),
        (("demo", "--quick", "--data", tmp_path / "nowhere", "--out", tmp_path / "r"), "nowhere"),
        (("report", tmp_path / "absent"), "absent"),
    ):
        failed = entered(*arguments, cwd=tmp_path)
        assert failed.returncode == 2, (arguments, failed.stderr)
        assert said in failed.stderr.replace("\n", " ")
        assert "Traceback" not in failed.stderr
    failed = run("study", "show", "digit")
    assert (
        failed.returncode == 2
        and "Did you mean: digits?" in failed.stderr
        and "Traceback" not in failed.stderr
    )
    assert "Traceback" in run("--debug", "study", "show", "digit").stderr
    assert not list(tmp_path.iterdir())


def test_a_wrong_report_directory_is_not_created(tmp_path):
    entered("report", tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_study_list_show_and_dry_run_say_what_would_happen(tmp_path):
    assert "digits" in entered("study", "list").stdout
    shown = entered("study", "show", "digits").stdout
    assert "CTL" in shown and "quick" in shown
    planned = entered("study", "run", "digits", "--preset", "quick", "--dry-run", cwd=tmp_path)
    assert planned.returncode == 0 and "22.5°, 45°, 67.5°, 90°" in planned.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.demo
def test_the_quick_demo_makes_a_report_that_can_be_rebuilt(tmp_path):
    done = run("demo", "--quick", "--workers", 1, "--out", "first", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = tmp_path / "first" / "report.html"
    assert str(Path("first") / "report.html") in done.stdout.replace("\n", "")
    text = report.read_text()
    assert "<svg" in text and "mlp" in text and "vit" in text
    rows = read_rows(tmp_path / "first" / RESULTS)
    moderate = [r.mean for r in rows if (r.regime, r.kind, r.measure) == ("moderate", "ctl", "cos")]
    strangers = [r.mean for r in rows if (r.kind, r.measure, r.layer) == ("null-init", "cos", "output")]
    assert min(moderate) > max(strangers)
    report.unlink()
    rebuilt = entered("report", tmp_path / "first")
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert report.is_file() and list((tmp_path / "first" / "figures").glob("*.svg"))
