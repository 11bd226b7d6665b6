"""Whether a world model can be trusted: report card, findings and page, ``python -m dreamer.report LOGDIR``."""
