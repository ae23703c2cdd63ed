"""Options of one prediction and settings of a process."""
