"""Is this machine fit for training? ``python -m dreamer.doctor`` checks, and says how to fix what is not."""
