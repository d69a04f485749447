"""Training loop, small networks, probes, metrics and processes; import from the files by name."""
