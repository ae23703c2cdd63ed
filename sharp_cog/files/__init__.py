"""Files that appear whole or not at all, temporary folders, capped reads, and the retry policy."""
