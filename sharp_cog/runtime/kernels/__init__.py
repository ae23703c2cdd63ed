"""The few functions that are worth a kernel, each with a twin in plain torch."""
