"""A long run of the fuzzer: ``python tests/fuzz/long.py --cases 100000 [--target header] [--seed 0] [--guided]``.

A file that makes a reader fail is kept in ``corpus/TARGET/``, so that it is tried in every later test. With
``--guided``, files follow the readers' code (atheris, the extra ``fuzz``) instead of the strategies of the tests.
"""

import argparse
import importlib.util
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: E402
from failures import Tally  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from targets import TARGETS  # noqa: E402


def fuzz(name: str, cases: int, start: int) -> bool:
    """Attack one reader with broken files of its strategy.

    Args:
        name: of the target.
        cases: how many files.
        start: of the random numbers.

    Returns:
        Whether it failed.
    """
    tally = Tally(name)

    @seed(start)
    @settings(
        max_examples=cases, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(TARGETS[name].cases)
    def run(text: bytes) -> None:
        tally.attack(text)

    run()
    print(tally, flush=True)
    return bool(tally.kinds)


def follow(name: str, cases: int, start: int) -> bool:
    """Attack one reader with files that follow its code, in a process of its own: it may end the process.

    Args:
        name: of the target.
        cases: how many files.
        start: of the random numbers.

    Returns:
        Whether it failed.
    """
    command = [Path(__file__).with_name("guided.py"), name, cases, start]
    ran = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    print(ran.stdout, end="", flush=True)
    if f"{name}: " not in ran.stdout:
        print(f"  {name}: the process ended ({ran.returncode}):\n{ran.stderr[-3000:]}", flush=True)
    return bool(ran.returncode)


def main() -> int:
    """Attack the readers.

    Returns:
        How many of them failed.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--target", choices=list(TARGETS), action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", action="store_true")
    given_options = parser.parse_args()
    if given_options.guided and importlib.util.find_spec("atheris") is None:
        parser.error("--guided needs atheris: pip install 'mergescope[fuzz]'")
    torch.set_num_threads(1)
    failed = 0
    for name in given_options.target or TARGETS:
        began = time.perf_counter()
        failed += (follow if given_options.guided else fuzz)(name, given_options.cases, given_options.seed)
        print(f"  {time.perf_counter() - began:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(bool(main()))
