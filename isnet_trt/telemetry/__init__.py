"""What happens inside: log records, call statistics, and ranges for profilers. Nothing here is needed to compute."""
