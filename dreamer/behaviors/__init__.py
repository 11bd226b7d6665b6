"""How to act from a state of a model, and how that is learned from imagined experience."""
