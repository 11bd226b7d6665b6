"""Whether a world model may be trusted: report card, findings and page, ``python -m dreamer.report LOGDIR``."""
