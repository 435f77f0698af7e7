"""The settings of a run: fields, files, rules, and the code that they name."""
