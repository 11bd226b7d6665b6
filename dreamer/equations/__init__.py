"""Pure functions that bear a paper's formula, without parameters: transforms, returns, distributions."""
