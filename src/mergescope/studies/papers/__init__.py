"""The papers' figures and tables, each a declarative file: models, passes, figures, and claims that are checked."""
