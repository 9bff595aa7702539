"""osteoprint: from two X-rays of a bone, whose bone it is and what its 3D shape is."""

__version__ = "0.1.0"
