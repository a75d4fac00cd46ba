"""Commands: each parses, calls a task, and prints. The only place that prints."""
