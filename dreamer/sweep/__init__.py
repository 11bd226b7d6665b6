"""Sweeps: one file describes many runs, and one command starts, resumes and compares them.

``values``, ``plan`` and ``file`` define a sweep; ``search`` chooses settings; ``scores`` reads the score of a run;
``board`` keeps track of trials; ``local`` and ``cluster`` run them; ``report`` writes tables and plots, and
``wandb_file`` a file for sweeps at Weights & Biases.
"""
