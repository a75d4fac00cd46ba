"""Our own torch modules: written once for tracing, loaded by state-dict name mapping."""
