"""Is this machine fit for training? ``python -m dreamer.doctor`` looks, and says how to mend what is not."""
