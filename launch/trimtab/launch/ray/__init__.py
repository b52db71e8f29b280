"""Ray: jobs through its Jobs API, nodes by placement groups, agents started by actors."""
