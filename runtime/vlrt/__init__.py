"""Captions, retrieves and classifies photographs from exported bundles, without torch.

``vlrt.load("caption")("photo.jpg").text``
"""

__version__ = "0.1.0"
