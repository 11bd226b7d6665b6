"""Suites of environments, one file each, with ``tasks() -> names`` and ``make(name, config, render_mode)``."""
