"""Attack one reader with files that follow its code: those that reach a new line are kept and changed further.

``python tests/fuzz/long.py --guided`` runs this, one process a reader. It needs the extra ``fuzz`` (atheris).
"""

import os
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))

with atheris.instrument_imports(include=["mergescope", "yaml", "safetensors"]):
    import torch
    from failures import Tally
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from targets import CORPUS, TARGETS, attack

    attack(
        sys.argv[1], TARGETS[sys.argv[1]].valid
    )  # imports what is imported late, so that it is followed too

SEEDS = 200
LONGEST = 8192


def seeds(name, start, folder):
    """Write the files to begin with: a valid one, what once broke the reader, and some broken ones."""
    files = [TARGETS[name].valid, *(path.read_bytes() for path in (CORPUS / name).glob("*"))]

    @seed(start)
    @settings(max_examples=SEEDS, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(TARGETS[name].cases)
    def draw(text):
        files.append(text)

    draw()
    for number, text in enumerate(files):
        (folder / str(number)).write_bytes(text[:LONGEST])


def main(name, cases, start):
    """Attack a reader.

    Args:
        name: of the target.
        cases: how many files.
        start: of the random numbers.
    """
    torch.set_num_threads(1)
    tally = Tally(name)

    def one(text):
        tally.attack(text)
        if tally.cases == cases:
            print(tally, flush=True)
            os._exit(bool(tally.kinds))  # the fuzzer's own end is an exit as well

    folder = Path(tempfile.mkdtemp())
    seeds(name, start, folder)
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    options = [
        f"-seed={start + 1}", f"-max_len={LONGEST}", "-len_control=0", "-verbosity=0", "-timeout=300",
        "-report_slow_units=300", "-rss_limit_mb=8192", f"-artifact_prefix={CORPUS / name / 'ended-'}",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(folder)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
