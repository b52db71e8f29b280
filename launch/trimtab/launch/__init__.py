"""From a plan to running processes, one launcher for each kind of machine."""
