"""numsim."""
