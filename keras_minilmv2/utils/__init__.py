"""Small tools that know nothing of models: files, tables, seeds, devices, checks."""
