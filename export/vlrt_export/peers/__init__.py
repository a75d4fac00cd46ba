"""Other libraries as sides of `vlrt bench --vs`; each runs in a process of its own, which the runtime starts."""
