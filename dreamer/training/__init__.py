"""Runs: what the loops on the host and on the device share, and the two loops."""
