"""Commands in children of one process that has imported everything already: each starts at once."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

ZYGOTE = """
import contextlib, importlib, os, resource, signal, sys
import torch; torch.set_num_threads(int(sys.argv[1]))
import transformers, datasets, pyarrow.parquet, matplotlib.pyplot
import mergescope.studies.given, mergescope.studies.family_run, mergescope.reports, mergescope.merging.merge
import mergescope.studies.digits, mergescope.merging.methods
from mergescope.cli import main
for name in sys.argv[2].split():
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
with contextlib.suppress(ImportError):
    importlib.import_module("mergescope.data.digits")._embedded()
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        said, room, *words = line.rstrip("\\n").split("\\t")
        if room:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), resource.RLIM_INFINITY))
        sys.argv = ["mergescope", *words]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        main()
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


LATER = """
accelerate accelerate.utils jinja2 matplotlib.backends.backend_agg matplotlib.backends.backend_svg mlxtend.data pandas
rich.console rich.progress rich.table scipy.stats yaml
datasets.packaged_modules.csv.csv datasets.packaged_modules.parquet.parquet
transformers.core_model_loading transformers.models.auto.modeling_auto transformers.models.auto.tokenization_auto
transformers.models.bert.modeling_bert
mergescope.merging.check mergescope.reports.measured_page mergescope.studies.finetune mergescope.studies.papers.runner
mergescope.studies.protocol_runs mergescope.training.loop mergescope.weights.references
"""
"""What commands import when they need it; without one of them they are slower, no more."""


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    seconds: float
    stderr: str


class Commands:
    """Runs commands, one after the other.

    Args:
        folder: for what they say.
        plain: without root's right to write everywhere.
        threads: of torch, and of the libraries that ask the environment.
        more: environment variables.
    """

    def __init__(self, folder, plain=False, threads=1, **more):
        self.said = folder / f"said{threads}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE, str(threads), LATER], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            preexec_fn=as_anyone if plain else None, env={**os.environ, "OMP_NUM_THREADS": str(threads), **more},
        )  # fmt: skip

    def run(self, command, after=None, room=""):
        """Run a command, killed after so many seconds, or where files have room for so many bytes."""
        self.process.stdin.write("\t".join(map(str, [self.said, room, *command])) + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        began = time.perf_counter()
        if after is not None:
            time.sleep(after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        code = int(self.process.stdout.readline())
        return Ran(code, time.perf_counter() - began, self.said.read_text() if self.said.exists() else "")

    def close(self):
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


OVERRIDE, READ_SEARCH, DROP = 1, 2, 24


def as_anyone():
    """Give up root's right to write where nobody may, for what this process starts next."""
    for right in (OVERRIDE, READ_SEARCH):
        ctypes.CDLL(None).prctl(DROP, right, 0, 0, 0)


def require_permissions_that_hold(folder):
    """Skip where closed directories can be written to whatever is given up."""
    closed = folder / "closed-to-all"
    closed.mkdir(mode=0o500)
    open_it = f"open({str(closed / 'file')!r}, 'w')"
    ran = subprocess.run([sys.executable, "-c", open_it], preexec_fn=as_anyone, capture_output=True)
    if not ran.returncode:
        pytest.skip("this process may write everywhere, and can't give up that right (no CAP_SETPCAP)")
