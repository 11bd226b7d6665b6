"""Sweeps: one file describes many runs, and one command starts, resumes and compares them.

``values``, ``plan`` and ``file`` say what a sweep is; ``search`` chooses settings; ``scores`` reads what a run is
worth; ``board`` knows which trials are done; ``local`` and ``cluster`` run them; ``report`` writes tables and
plots, and ``wandb_file`` a file for sweeps at Weights & Biases.
"""
