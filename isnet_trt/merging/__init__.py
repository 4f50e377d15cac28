"""From the scores of windows to a label map: sizes, windows, resampling, accumulation."""
