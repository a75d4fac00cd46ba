"""One file per model family; `build(request)` returns a `Plan`. The file name is the family name in models.yaml."""
