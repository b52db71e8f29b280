"""A real Slurm or Ray on this one machine, to try things on: `trimtab dev-cluster`."""
