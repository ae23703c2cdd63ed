"""External depth maps: their files, the meaning of their numbers, and networks that estimate depth."""
