"""What a run will need of a machine, before there is one."""
