"""Rows of a task: from files, the Hub or the package, by columns and templates, to encoded batches."""
