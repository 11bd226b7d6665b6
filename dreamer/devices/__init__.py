"""Where arrays live and what fits there: backends, placement, hosts, memory, cores, and the cache of programs."""
