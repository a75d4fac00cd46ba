"""Torch side of vlrt: traces checkpoints into bundles. Import name of the exporter."""
