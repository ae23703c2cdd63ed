"""The few functions worth a GPU kernel, each with a plain torch twin."""
