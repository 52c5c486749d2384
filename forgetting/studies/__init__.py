"""A study: rows × repeats × columns in one YAML, what is missing of it, its table and figure."""
