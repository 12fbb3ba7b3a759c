"""Studies: the papers' experiments and the demo, each a configuration and a run directory."""

from mergescope.studies.registry import STUDIES, Study, default_directory, find_study

__all__ = ["STUDIES", "Study", "default_directory", "find_study"]
