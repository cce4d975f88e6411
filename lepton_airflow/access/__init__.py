"""Policy decisions, and the guard through which every job passes."""
