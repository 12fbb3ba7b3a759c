"""Directories that can't be written to: commands say which before they compute, and what is there stays as it was."""

import pytest
from commands import Commands, require_permissions_that_hold
from given_models import labels, save_rows, texts
from small_families import contents


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    require_permissions_that_hold(folder)
    made = Commands(folder, plain=True)
    yield made
    made.close()


@pytest.fixture
def close(tmp_path):  # closed ones are opened before tmp_path is removed
    """Closes directories with all that is in them, until the test ends."""
    closed = []

    def shut(folder):
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        closed.append(folder)
        return folder

    yield shut
    for folder in closed:
        folder.chmod(0o755)
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)


COMMANDS = {
    "merge": lambda inputs, out: ["merge", inputs / "recipe.yml", out],
    "finetune": lambda inputs, out: ["finetune", "--base", inputs / "start", "--data", f"t={inputs / 'task'}",
                                     "--regime", "full", "--epochs", 1, "--batch", 8, "--device", "cpu", "--out", out],
    "measure": lambda inputs, out: ["measure", "--base", inputs / "start", "--models", inputs / "a", inputs / "b",
                                    "--data", f"t={inputs / 'task'}", "--out", out],
    "demo": lambda inputs, out: ["demo", "--quick", "--out", out],
    "study": lambda inputs, out: ["study", "run", "ctl-fig2-mlp", "--preset", "quick", "--work", out / "work", "--out",
                                  out.parents[1] / "results"],
}  # fmt: skip


def refused(ran, place):
    assert ran.code == 2 and "Traceback" not in ran.stderr, ran.stderr
    assert str(place) in ran.stderr and "ermission" in ran.stderr, ran.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_an_output_in_a_closed_directory_is_refused(inputs, commands, close, tmp_path, name):
    (tmp_path / "closed").mkdir()
    out = close(tmp_path / "closed") / "out"
    refused(commands.run(COMMANDS[name](inputs, out)), out)
    assert not list((tmp_path / "closed").iterdir())


def test_a_closed_measurement_is_neither_made_again_nor_reported_anew(inputs, commands, close, tmp_path):
    out = tmp_path / "out"
    assert not commands.run(COMMANDS["measure"](inputs, out)).code
    before = contents(close(out))
    refused(commands.run(COMMANDS["measure"](inputs, out)), out)
    refused(commands.run(["report", out]), out)
    assert contents(out) == before


def test_a_closed_fine_tune_that_is_finished_is_used_and_no_other_is_made_there(
    inputs, commands, close, tmp_path
):
    out = tmp_path / "out"
    assert not commands.run(COMMANDS["finetune"](inputs, out)).code
    before = contents(close(out))
    assert not commands.run(COMMANDS["finetune"](inputs, out)).code
    another = ["attention" if word == "full" else word for word in COMMANDS["finetune"](inputs, out)]
    refused(commands.run(another), out)
    assert contents(out) == before


def test_a_closed_merge_is_not_replaced(inputs, commands, close, tmp_path):
    out = tmp_path / "closed" / "out"
    assert not commands.run(COMMANDS["merge"](inputs, out)).code
    before = contents(close(tmp_path / "closed"))
    refused(commands.run([*COMMANDS["merge"](inputs, out), "--overwrite"]), out)
    assert contents(tmp_path / "closed") == before


def test_a_closed_cache_is_named_where_it_is_needed(inputs, close, tmp_path):
    require_permissions_that_hold(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "figures").mkdir()
    close(home)
    more = {
        "HOME": home,
        "XDG_CACHE_HOME": home / ".cache",
        "HF_HOME": home / "hf",
        "MPLCONFIGDIR": tmp_path / "figures",
    }
    made = Commands(tmp_path, plain=True, **{name: str(place) for name, place in more.items()})
    refused(made.run(COMMANDS["measure"](inputs, tmp_path / "out")), home / "hf" / "datasets")
    for split in ("train", "test"):  # these need no cache
        save_rows(tmp_path / "task" / f"{split}.csv", texts(8), label=labels(8, 2))
        rows = (tmp_path / "task" / f"{split}.csv").read_text().splitlines()[1:]
        (tmp_path / "task" / f"{split}.txt").write_text("\n".join(row.partition(",")[0] for row in rows))
        (tmp_path / "task" / f"{split}.csv").unlink()
    with_texts = [
        word if word != f"t={inputs / 'task'}" else f"t={tmp_path / 'task'}"
        for word in COMMANDS["measure"](inputs, tmp_path / "out")
    ]
    ran = made.run(with_texts)
    assert not ran.code, ran.stderr
    made.close()
