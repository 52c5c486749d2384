"""Results beside the paper's: tables and figures from the run folders that are there."""
