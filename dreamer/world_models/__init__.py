"""What an agent believes about its environment, and how it imagines."""
