"""Files that appear whole or not at all, and folders that disappear with their process."""
