"""What a run of the fuzzer found: each kind of failure once, its file kept in ``corpus/TARGET/``."""

import hashlib
import traceback

from targets import CORPUS, attack


class Tally:
    """How many files one reader was given, and what it made of them.

    Args:
        name: of the target.

    Attributes:
        cases: files so far.
        taken: files that were read.
        kinds: error, file and line of each failure.
    """

    def __init__(self, name):
        self.name, self.cases, self.taken, self.kinds = name, 0, 0, set()

    def attack(self, text):
        """Give the reader a file; a failure of a new kind is told and its file kept."""
        self.cases += 1
        try:
            self.taken += attack(self.name, text)
        except Exception as error:  # the run goes on
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = (type(error).__name__, where.filename, where.lineno)
            if kind not in self.kinds:
                self.kinds.add(kind)
                path = CORPUS / self.name / hashlib.sha256(text).hexdigest()[:12]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text)
                place = f"{where.filename}:{where.lineno}"
                print(f"  {self.name}: {type(error).__name__}: {error} ({place}); kept in {path}", flush=True)

    def __str__(self):
        return f"{self.name}: {self.cases:,} cases, {self.taken:,} taken, {len(self.kinds)} kinds of failure"
